"""Whether a model can write what PPO learns from. What cannot is refused before anything is sampled."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.modeling.tokenizers.padding import embedding_rows
from rlhf_recipes.modeling.zero import is_divided

WORKS = "Give a decoder, as AutoModelForCausalLM loads it (Llama, Qwen, Gemma, GPT-2, ...)."


def check_decoder_config(config: Any, name: str) -> None:
    """Raise `ValueError` where a configuration is that of an encoder-decoder, or of no causal language model."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{name} is an encoder-decoder (model_type {config.model_type!r}), which reads a prompt apart from its "
            f"completion; here both are one text. {WORKS}"
        )
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    own_code = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own_code:
        raise ValueError(
            f"{name} is of model_type {config.model_type!r}, for which transformers has no causal language model, so "
            f"it cannot write completions. {WORKS}"
        )


def check_decoder_name(name: str, **kwargs: Any) -> None:
    """[`check_decoder_config`] of a folder or id, before its weights are read; `kwargs` are for `from_pretrained`."""
    from transformers import AutoConfig

    check_decoder_config(AutoConfig.from_pretrained(name, **kwargs), repr(name))


@torch.no_grad()
def check_decoder(model: Any) -> None:
    """Make sure that a model is a language model, and that no position of it sees the tokens that are to come.

    Configurations do not tell the latter (`BertLMHeadModel` is an encoder unless its `is_decoder` is set; XLNet is one
    always). So a text is read twice, with another last token: what the model says before it must stay.

    Raises:
        `TypeError`: if it has no language-model head.
        `ValueError`: if it is an encoder-decoder or sees what is to come.
    """
    name = type(model.get_base_model() if hasattr(model, "get_base_model") else model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        check_decoder_config(model.config, name)
    if model.get_output_embeddings() is None:
        raise TypeError(f"{name} has no language-model head, so it cannot write completions. {WORKS}")
    if is_divided(model):  # weights in shares work inside a launcher's engine alone
        return
    ids = 5 + torch.arange(8, device=model.get_input_embeddings().weight.device).repeat(2, 1)
    ids = ids % embedding_rows(model)
    ids[1, -1] = 0
    was_training = model.training
    model.eval()
    said = [
        model(input_ids=row[None], attention_mask=torch.ones_like(row)[None], use_cache=False).logits for row in ids
    ]
    model.train(was_training)
    one, other = (logits[:, :-1].float() for logits in said)
    # Rounding in half precision, with its experts, is far below what a look ahead changes.
    if (one - other).abs().mean() > (1e-3 if said[0].dtype == torch.float32 else 0.05) * one.std():
        raise ValueError(
            f"{name} sees what is to come, as an encoder does: what it says of a token depends on the tokens after "
            f"it, which are not written yet. {WORKS} A BERT, RoBERTa or ELECTRA that was trained as a decoder needs "
            "is_decoder=True in its configuration."
        )


def check_ids(rows: Sequence[Sequence[int]], model: Any, tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise `ValueError` where a row has a token that the model has no embedding for; `what` names the rows."""
    known = embedding_rows(model)
    for number, ids in enumerate(rows):
        beyond = sorted({token for token in ids if not 0 <= token < known})
        if beyond:
            text = str(tokenizer.convert_ids_to_tokens(beyond[-1]))
            raise ValueError(
                f"Row {number} of the {what} has token {beyond[-1]} ({text!r}), but {type(model).__name__} has "
                f"embeddings for {known} tokens, 0 to {known - 1}; the tokenizer has {len(tokenizer)}. They do not "
                "belong together, or tokens were added to the tokenizer alone: then call "
                f"model.resize_token_embeddings({max(len(tokenizer), beyond[-1] + 1)}), and train what is new."
            )


def check_ends(ends: Any, given: Sequence[int] | None, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where one of `given`, which a user named, or all of `ends` could never be sampled."""
    known = embedding_rows(model)
    beyond = [token for token in given or () if token >= known]
    if beyond or (ends and min(ends) >= known):
        token = beyond[0] if beyond else min(ends)
        raise ValueError(
            f"Token {token} ({str(tokenizer.convert_ids_to_tokens(token))!r}) is to end completions, but "
            f"{type(model).__name__} has embeddings for {known} tokens, 0 to {known - 1}: it is never sampled. Name "
            f"another with stop_token_id, or call model.resize_token_embeddings({len(tokenizer)}) and train it."
        )


def check_same_vocabulary(readers: Mapping[str, Any], policy: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where a model that reads the policy's token ids has no embedding for some of them.

    Readers come by the name that a user gives them; what has no embeddings is passed over.
    """
    pad = tokenizer.pad_token_id  # nobody reads it
    highest = max(number for number in tokenizer.get_vocab().values() if number != pad)
    wanted = min(embedding_rows(policy), highest + 1)
    for name, model in readers.items():
        known = embedding_rows(model) if hasattr(model, "get_input_embeddings") else wanted
        if known < wanted:
            raise ValueError(
                f"The {name} ({type(model).__name__}) has embeddings for {known} tokens, but the policy "
                f"({type(policy).__name__}) writes with {wanted}. It reads the policy's own token ids, so both need "
                f"one vocabulary: give a {name} that was made from the policy's tokenizer."
            )
