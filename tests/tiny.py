"""Models and tokenizers small enough for a test, built in code: nothing is downloaded and nothing takes seconds.

```python
tokenizer = tiny_tokenizer()
policy = tiny_causal_lm(tokenizer)
reward_model = tiny_classifier(tokenizer, kind="bert")
folder = save_tiny(tmp_path / "reward", reward_model, tokenizer)
```
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

SENTENCES = (
    "The film is a quiet, funny and moving story about two brothers.",
    "A dull script and a tired cast make this a long evening.",
    "It was bad, but the music was good and the ending was great.",
    "Nobody could save a plot as thin as this one.",
    "What a wonderful little picture! I would watch it again.",
    "user assistant system question answer: yes, no, maybe?",
)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def tiny_tokenizer(
    kind: str = "llama",
    chat_template: bool = False,
    padding_side: str = "right",
    vocab_size: int = 400,
    sentences: Sequence[str] = SENTENCES,
    model_max_length: int = 512,
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, trained on a few sentences; any text goes through it and comes back unchanged.

    Args:
        kind (`str`):
            `"llama"` adds no special tokens; `"bert"` puts `[CLS]` before a text and `[SEP]` after it.
        chat_template (`bool`):
            Whether it can render a conversation: `<|user|>Hello<|assistant|>Hi<eos>`.
        vocab_size (`int`):
            Upper bound of the vocabulary, special tokens and the 256 bytes included.
    """
    specials = {
        "llama": {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"},
        "bert": {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"},
    }[kind]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(specials.values()),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if kind == "bert":
        ends = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        backend.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, padding_side=padding_side, model_max_length=model_max_length, **specials
    )
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_causal_lm(
    tokenizer: PreTrainedTokenizerBase, seed: int = 0, num_layers: int = 2, hidden_size: int = 32, **config: object
) -> LlamaForCausalLM:
    """A Llama of two layers with random weights, in evaluation mode."""
    return _build(LlamaForCausalLM, _llama_config(tokenizer, num_layers, hidden_size, **config), seed)


def tiny_classifier(
    tokenizer: PreTrainedTokenizerBase,
    kind: str = "bert",
    num_labels: int = 1,
    seed: int = 0,
    num_layers: int = 2,
    hidden_size: int = 32,
    **config: object,
) -> BertForSequenceClassification | LlamaForSequenceClassification:
    """A sequence classifier with random weights, in evaluation mode: an encoder (`"bert"`) or a decoder (`"llama"`).

    Its head is drawn wide enough that two texts get scores some tenths apart.
    """
    if kind == "llama":
        settings = _llama_config(tokenizer, num_layers, hidden_size, num_labels=num_labels, **config)
        model = _build(LlamaForSequenceClassification, settings, seed)
        head = model.score
    else:
        sizes = {"hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_hidden_layers": num_layers}
        # With BERT's usual 0.02 so small a model says nearly the same of every text.
        options = {
            "num_attention_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            **sizes,
            **config,
        }
        settings = BertConfig(
            vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, num_labels=num_labels, **options
        )
        model = _build(BertForSequenceClassification, settings, seed)
        head = model.classifier
    torch.nn.init.normal_(head.weight, std=1.0, generator=torch.Generator().manual_seed(seed))
    return model


def tiny_base(kind: str, tokenizer: PreTrainedTokenizerBase, seed: int = 0) -> PreTrainedModel:
    """A language model with random weights, as it comes from the Hub: a reward model made of it gets a new head.

    Its layers are 64 wide, because bitsandbytes puts 64 weights into one block.

    Args:
        kind (`str`):
            The `model_type` of a configuration: an encoder if the tokenizer has a `[CLS]` (`"bert"`, `"modernbert"`,
            `"distilbert"`, `"roberta"`, `"deberta-v2"`, `"electra"`), else a decoder (`"llama"`, `"qwen3"`,
            `"gemma3_text"`, `"gpt2"`, `"gpt_neox"`, ...).
    """
    is_encoder = tokenizer.cls_token_id is not None
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"max_position_embeddings": 128}
    if kind == "distilbert":
        sizes = {"dim": 64, "hidden_dim": 128, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 128}
    elif kind == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    elif kind == "electra":
        sizes |= {"embedding_size": 64}
    elif kind in ("llama", "qwen3", "gemma2", "gemma3_text"):
        sizes |= {"num_key_value_heads": 4, "head_dim": 16}
    elif kind == "qwen2":
        sizes |= {"num_key_value_heads": 4}
    names = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")
    specials = {name: getattr(tokenizer, name) for name in names}
    # With the usual 0.02 so small a model says nearly the same of every text.
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), initializer_range=0.2, **specials, **sizes)
    auto = AutoModelForMaskedLM if is_encoder else AutoModelForCausalLM
    return _build(auto.from_config, config, seed)


def save_tiny(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Save both into one folder, as a recipe does, and return it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _llama_config(
    tokenizer: PreTrainedTokenizerBase, num_layers: int, hidden_size: int, **config: object
) -> LlamaConfig:
    options = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512, **config}
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=num_layers,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **options,
    )


def _build(model_class: type, config: object, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def keep_the_wrong_logits(model):
    """Let a model give the logits of the first positions where it is asked for those of the last."""
    plain = model.forward

    def forward(*args, logits_to_keep=0, **kwargs):
        said = plain(*args, **kwargs)
        said.logits = said.logits[:, :logits_to_keep] if logits_to_keep else said.logits
        return said

    model.forward = forward
    return model
