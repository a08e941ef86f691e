"""Tokenizers as base models bring them: small vocabularies with the special tokens of the real ones, as published.

```python
tokenizer = base_tokenizer("qwen")              # pads with the token that ends texts
folder = save_base(tmp_path / "base", "qwen")   # with a model whose embedding has as many spare rows as the real one
```
"""

from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.tiny import SENTENCES, save_tiny, tiny_causal_lm

ROLE = "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
CHATML = f"{{% for message in messages %}}{ROLE}{{% endfor %}}" + (
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Base:
    """What is known of a base model's tokenizer.

    Args:
        pads (`str`): The token that must pad in the end.
        names (`dict`): Its special tokens by role, as tokenizer_config.json names them.
        added (`tuple`): Its other special tokens.
        rows (`int`): Rows of the model's embedding that no token of the tokenizer has.
        grows (`bool`): Whether the embedding must get one row more.
        sentencepiece (`bool`): Whether unknown characters are written as bytes (else the vocabulary is of bytes).
        starts, closes (`bool`): Whether each text gets the first, and the last token.
        chat_template (`str`): Its chat template, of those that have one.
    """

    pads: str
    names: dict
    added: tuple = ()
    rows: int = 0
    grows: bool = False
    sentencepiece: bool = False
    starts: bool = False
    closes: bool = False
    chat_template: str | None = None


END = "<|endoftext|>"
VISION = ("vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
FIM = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
QWEN = tuple(f"<|{name}|>" for name in ("im_start", "im_end", "object_ref_start", "box_start", *VISION, *FIM))
LLAMA3 = tuple(f"<|{name}|>" for name in (
    "reserved_special_token_0", "reserved_special_token_1", "start_header_id", "end_header_id", "eot_id",
))  # fmt: skip
LLAMA31 = ("<|reserved_special_token_0|>", "<|finetune_right_pad_id|>", "<|start_header_id|>", "<|eom_id|>")
LLAMA2 = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
BASES = {
    "gpt2": Base("<pad>", {"bos_token": END, "eos_token": END, "unk_token": END}, grows=True),
    "pythia": Base(
        "<|padding|>", {"bos_token": END, "eos_token": END, "unk_token": END}, ("<|padding|>", "   "), rows=27
    ),
    "olmo": Base("<pad>", {"eos_token": END, "bos_token": END}, rows=24),  # room for one that is added
    "qwen": Base("<|fim_pad|>", {"eos_token": END, "pad_token": END}, QWEN, rows=271, chat_template=CHATML),
    "qwen_vision": Base("<|vision_pad|>", {"eos_token": END, "pad_token": END}, QWEN[:-6], rows=8),
    "llama3": Base(
        "<|reserved_special_token_0|>",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        LLAMA3,
        starts=True,
    ),
    "llama3.1": Base(
        "<|finetune_right_pad_id|>",
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
        LLAMA31,
        starts=True,
    ),
    "llama2": Base("<unk>", LLAMA2, sentencepiece=True, starts=True),
    "llama2_closes": Base("<unk>", LLAMA2, sentencepiece=True, starts=True, closes=True),
    "mistral": Base("[control_8]", LLAMA2, ("[INST]", "[/INST]", "[control_8]"), sentencepiece=True, starts=True),
    "gemma": Base(
        "<pad>",
        {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"},
        ("<mask>", "<unused0>", "<start_of_turn>", "<end_of_turn>"),
        sentencepiece=True,
        starts=True,
    ),
    "phi3": Base(
        "<|placeholder1|>",
        {"bos_token": "<s>", "eos_token": END, "pad_token": END, "unk_token": "<unk>"},
        ("<|assistant|>", "<|placeholder1|>", "<|end|>"),
        sentencepiece=True,
        rows=30,
    ),
    "falcon": Base("<pad>", {"eos_token": END}, (">>TITLE<<", ">>SUFFIX<<"), grows=True),
}


def base_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """The tokenizer of one of `BASES`, with some 300 tokens."""
    base = BASES[kind]
    specials = list(dict.fromkeys([*base.names.values(), *base.added]))
    backend = _bytes_in_text(specials) if base.sentencepiece else byte_level(specials)
    first, last = base.names.get("bos_token"), base.names.get("eos_token")
    if base.starts:
        single = [f"{first}:0", "$A:0", *([f"{last}:0"] if base.closes else [])]
        ids = [(token, backend.token_to_id(token)) for token in (first, last)]
        backend.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, f"{first}:1", "$B:1"], special_tokens=ids
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **base.names)
    tokenizer.chat_template = base.chat_template
    return tokenizer


def base_model(kind: str, tokenizer: PreTrainedTokenizerFast, **config: object) -> LlamaForCausalLM:
    """A Llama of two layers, whose embedding has as many rows beyond the tokenizer's as the real model's."""
    model = tiny_causal_lm(tokenizer, hidden_size=64, **config)
    settings = LlamaConfig(**{**model.config.to_dict(), "vocab_size": len(tokenizer) + BASES[kind].rows})
    return LlamaForCausalLM(settings).eval()


def save_base(folder: Path, kind: str, **config: object) -> Path:
    """Both in one folder, as they come from the Hub."""
    tokenizer = base_tokenizer(kind)
    return save_tiny(folder, base_model(kind, tokenizer, **config), tokenizer)


def byte_level(specials: list[str]) -> Tokenizer:
    """A byte-level BPE of 300 tokens, trained on a few sentences, and these special ones."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return backend


def _bytes_in_text(specials: list[str]) -> Tokenizer:
    """As SentencePiece makes them: a space is part of the word behind it, what is not known is written in bytes."""
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581"]
    pieces += sorted({letter for sentence in SENTENCES for letter in sentence if letter != " "})
    unknown = "<unk>" if "<unk>" in specials else None
    model = models.BPE(
        {piece: id for id, piece in enumerate(pieces)}, [], unk_token=unknown, byte_fallback=True, fuse_unk=True
    )
    backend = Tokenizer(model)
    backend.normalizer = normalizers.Replace(" ", "\u2581")
    backend.decoder = decoders.Sequence([
        decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
    ])  # fmt: skip
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return backend
