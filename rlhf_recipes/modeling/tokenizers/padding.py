"""What a tokenizer lacks to be trained with, and the room that a model needs for it: pad tokens, ends of texts.

Base models come with tokenizers that were made to read, not to be trained with: many have no pad token, or pad with
the token that ends a text. Here a spare token of the vocabulary is found for it, else one is added.
"""

import contextlib
import json
import logging
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes import filenames
from rlhf_recipes.modeling.zero import gathered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# Names of tokens that pad or that stand for nothing, most fitting first. Names with `image` and the like mark the
# place of a picture; `vision_pad` is the one of them that Qwen's models never read.
SPARE = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(<pad>|\[pad\]|<\|pad\|>)",
        r"[<\[](?!.*(image|video|audio|vision|speech)).*(?<![a-z])(pad|padding)(?![a-z]).*[>\]]",
        r"<\|vision_pad\|>",
        r"[<\[].*(reserved|unused|dummy|place.?holder|extratoken|(?<![a-z])(extra|special|control)_\d).*[>\]]",
        r"<\|endoftext\|>",  # of a chat model, whose texts end with another token
    )
)
ADDED = ("<pad>", "<|pad|>", "[PAD]", "<|padding|>")

# A tokenizer that has no unknown token for these falls back on bytes, and never gives one.
RARE = "\u0378\ue000 \u16a0\u4e2d\U0001f40b"


def ensure_pad_token(tokenizer: PreTrainedTokenizerBase, ends: Collection[int] = ()) -> PreTrainedTokenizerBase:
    """Give the tokenizer a pad token that does not end a text.

    A pad token of its own is kept. Otherwise a spare token of the vocabulary is taken (see [`spare_token`]), or one is
    added; a model may then need another row in its embedding ([`fit_model`]). The choice is logged. The tokenizer is
    changed, and returned. `ends` are ids that end a text besides the tokenizer's own, as a model's configuration has
    them.
    """
    before = tokenizer.pad_token
    if before is not None and tokenizer.pad_token_id not in {tokenizer.eos_token_id, *ends}:
        return tokenizer
    spare = spare_token(tokenizer, ends)
    if spare is None:
        vocabulary = tokenizer.get_vocab()
        chosen, where = next(name for name in ADDED if name not in vocabulary), "added to its vocabulary"
        tokenizer.add_special_tokens({"pad_token": chosen})
    else:
        tokenizer.pad_token, chosen, where = spare, spare, "spare in its vocabulary"
    why = "has no pad token" if before is None else f"pads with {before!r}, which ends texts too"
    logger.info("The tokenizer of %s %s: %r pads now, %s.", tokenizer.name_or_path, why, chosen, where)
    return tokenizer


def spare_token(tokenizer: PreTrainedTokenizerBase, taken: Collection[int] = ()) -> str | None:
    """A token of the vocabulary that says pad, or that stands for nothing and never occurs in a text; else `None`.

    `taken` are ids that end a text, besides those that have a role in the tokenizer.
    """
    used = {*taken, *(getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "cls", "sep", "mask"))}
    vocabulary = tokenizer.get_vocab()
    free = sorted((id, token) for token, id in vocabulary.items() if id not in used and token[:1] in "<[")
    for pattern in SPARE:
        found = next((token for _, token in free if pattern.fullmatch(token)), None)
        if found is not None:
            return found
    unknown = tokenizer.unk_token
    if unknown is None or vocabulary.get(unknown) in used:
        return None
    return None if vocabulary[unknown] in tokenizer(RARE).input_ids else unknown


def ends_of(*configs: Any) -> set[int]:
    """The ids that end a text, as configurations of a model or of its sampling name them: none, one, or several."""
    ends: set[int] = set()
    for config in configs:
        named = getattr(config, "eos_token_id", None)
        ends |= {named} if isinstance(named, int) else set(named or ())
    return ends


def saved_ends(name: str, **kwargs: Any) -> set[int]:
    """[`ends_of`] what lies in a model's folder, or of a model id of the Hub."""
    from transformers import AutoConfig
    from transformers.utils import cached_file

    configs: list[Any] = []
    # An adapter's folder, or a tokenizer on its own, has neither.
    with contextlib.suppress(OSError, ValueError):
        configs.append(AutoConfig.from_pretrained(name, **kwargs).get_text_config())
    with contextlib.suppress(OSError, ValueError):  # read as a file: the class brings torch's compiler with it
        file = str(cached_file(name, filenames.GENERATION_CONFIG, **kwargs))
        configs.append(SimpleNamespace(**json.loads(Path(file).read_text(encoding="utf-8"))))
    return ends_of(*configs)


def name_end(tokenizer: PreTrainedTokenizerBase, ends: Iterable[int]) -> None:
    """Take the end-of-sequence token from the model's configuration, where the tokenizer names none."""
    known = [token for token in sorted(ends) if token < len(tokenizer)]
    if tokenizer.eos_token is None and known:
        tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(known[0]))
        logger.info(
            "The tokenizer of %s names no end-of-sequence token; the model's configuration does: %r.",
            tokenizer.name_or_path, tokenizer.eos_token,
        )  # fmt: skip


def require_end(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where a text that is written or learned could not end."""
    if tokenizer.eos_token is None:
        raise ValueError(
            f"Neither the tokenizer of {tokenizer.name_or_path!r} nor its model names an end-of-sequence token, so no "
            "completion could end. Name one that the vocabulary has, as eos_token in its tokenizer_config.json."
        )


def leave_open(tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a policy's tokenizer from closing each text: a prompt that is closed cannot be continued."""
    end = tokenizer.eos_token_id
    if end is None or tokenizer.cls_token_id is not None or tokenizer("a").input_ids[-1] != end:
        return
    if getattr(tokenizer, "add_eos_token", False):
        tokenizer.add_eos_token = False
    from rlhf_recipes.modeling.tokenizers.text_ends import frame_of, set_frame  # takes seconds

    frame = frame_of(tokenizer)
    if tokenizer.is_fast and frame is not None and end in frame[1]:
        set_frame(tokenizer, frame[0], [token for token in frame[1] if token != end])
    logger.info(
        "The tokenizer of %s closes each text with %r. Prompts are left open: here, and where it is saved.",
        tokenizer.name_or_path, tokenizer.eos_token,
    )  # fmt: skip


def fit_model(model: Any, tokenizer: PreTrainedTokenizerBase, may_grow: bool = True) -> None:
    """Tell the model which token pads, and give it an embedding of that token where it has none.

    Vocabularies are often padded beyond what the tokenizer knows, so that a token that was added has its row already.
    Where there is none, one row is added, the mean of all others: so a policy gives the pad token at most 1 / V of
    the probability, V tokens being known (by Jensen's inequality), where a row of zeros could get nearly all of it.
    Without `may_grow` it gets none: adapters that are there already would no longer load on their base.
    """
    from peft import PeftModel
    from transformers import PreTrainedModel

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    pad, config = tokenizer.pad_token_id, cast(Any, getattr(base, "config", None))
    if pad is None or not hasattr(config, "get_text_config"):
        return
    rows = embedding_rows(base) if isinstance(base, PreTrainedModel) else 0
    others = (id for id in tokenizer.get_vocab().values() if id != pad)
    if may_grow and 0 < rows <= pad and max(others) < rows:
        _add_row(base, int(pad) + 1)
        logger.info(
            "The embedding of %s has %d rows and now %d, for the pad token %r.",
            getattr(base, "name_or_path", "") or type(base).__name__, rows, pad + 1, tokenizer.pad_token,
        )  # fmt: skip
    for kept in (config, config.get_text_config(), getattr(base, "generation_config", None)):
        if kept is not None:
            kept.pad_token_id = pad


def embedding_rows(model: Any) -> int:
    """How many token ids a model has an embedding for; 0 where it has no such table.

    ZeRO-3 divides weights, and their shape is then no longer told by the weight.
    """
    embedding = model.get_input_embeddings()
    weight = getattr(embedding, "weight", torch.empty(0))
    return int(getattr(embedding, "num_embeddings", None) or getattr(weight, "ds_shape", weight.shape)[0])


@torch.no_grad()
def _add_row(model: "PreTrainedModel", rows: int) -> None:
    before = embedding_rows(model)
    model.resize_token_embeddings(rows, mean_resizing=False)
    layers = [layer for layer in (model.get_input_embeddings(), model.get_output_embeddings()) if layer is not None]
    parameters = [getattr(layer, name, None) for layer in layers for name in ("weight", "bias")]
    for parameter in {id(p): p for p in parameters if p is not None}.values():
        with gathered([parameter]):
            if parameter.shape[0] == rows:
                parameter[before:] = parameter[:before].float().mean(dim=0).to(parameter.dtype)
