"""What a tokenizer puts before and behind a text by itself, and how to make it part of the tokenizer's files.

A decoder's head reads the last token of a text, and that is the end-of-sequence token (EOS) which training put there.
Whoever loads the model with other code (`pipeline`, `CrossEncoder`, vLLM) calls the tokenizer that lies beside it and
nothing more, so that the tokenizer itself has to end the text:

```
                     one text               prompt and completion, as a pair
a decoder's own      <bos> text             <bos> prompt <bos> completion
as it is saved       <bos> text <eos>       <bos> prompt completion <eos>
```
A pair is read as the one text that the model was trained on, in the tokens of its two parts.
"""

import copy
import json
import tempfile
from collections.abc import Sequence
from typing import Any, cast

from tokenizers import processors
from transformers import PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

PROBES = ("a", "the", "0", ".", "\u4e00")  # of one of them any vocabulary has a token
SAMPLES = ("The film", " is good.", "", "Caf\u00e9\n\n  42!? \u4f60\u597d", "USER: it's <b>so-so</b>\tIt\u2019s ok")


def frame_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]] | None:
    """The ids that a tokenizer puts before a text, and those behind it; `None` where it does more than that."""
    for probe in PROBES:
        bare = list(tokenizer(probe, add_special_tokens=False).input_ids)
        whole = list(tokenizer(probe).input_ids)
        if bare:
            starts = [start for start in range(len(whole)) if whole[start : start + len(bare)] == bare]
            return (whole[: starts[0]], whole[starts[0] + len(bare) :]) if starts else None
    return None


def ends_texts(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts a special token behind each text by itself, as those of encoders do."""
    frame = frame_of(tokenizer)
    return frame is not None and bool(frame[1]) and frame[1][-1] in tokenizer.all_special_ids


def adds_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a tokenizer puts the end-of-sequence token behind each text by itself."""
    frame = frame_of(tokenizer)
    return frame is not None and tokenizer.eos_token_id in frame[1]


def ended(text: str, eos_token: Any, append_eos: bool, adds_it: bool) -> str:
    """A plain text with its end, as the tokenizer is to be given it: once, also where it was written into the text.

    `append_eos` writes the tokenizer's `eos_token` behind a text that has none; [`adds_eos`] says whether it `adds_it`
    by itself.
    """
    if append_eos:
        return text if text.endswith(eos_token) else text + eos_token
    return text.removesuffix(eos_token) if adds_it else text


def ending_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    max_length: int | None = None,
    append_eos: bool = False,
    rendered: bool = False,
) -> PreTrainedTokenizerBase:
    """A copy of a tokenizer that reads texts, called alone and after it was saved, as a reward model was trained to.

    It puts the end-of-sequence token behind a text where that is asked for, reads a pair as one text, and cuts the
    beginning off where it is told to cut. Where it cannot learn that (a tokenizer that is written in Python has no
    place for it) the copy is the tokenizer as it was, but for where it cuts: [`adds_eos`] tells.

    Args:
        tokenizer, config: The model's; the configuration tells `AutoTokenizer` the class to load.
        max_length (`int`, *optional*): Tokens of a text that were read in training.
        append_eos (`bool`): Whether training put an end-of-sequence token behind each text, which the tokenizer did
            not.
        rendered (`bool`): Whether a chat template made the texts. They then have all special tokens in them.
    """
    own = copy.deepcopy(tokenizer)
    own.truncation_side = own.init_kwargs["truncation_side"] = "left"
    own.padding_side = own.init_kwargs["padding_side"] = "right"
    if max_length is not None:
        own.model_max_length = max_length
    frame = frame_of(own)
    if not own.is_fast or frame is None:
        return own
    before, after = frame
    if rendered:
        before, after = [], []
    elif append_eos:
        after = [*after, cast(int, own.eos_token_id)]
    for taught in (copy.deepcopy(own), _of_plain_class(own)):
        set_frame(taught, before, after)
        if _lasts(taught, own, config, before, after):
            return taught
    return own


def _of_plain_class(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same tokenizer as a class that takes its files as they are; some make their special tokens anew."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        plain: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    plain.name_or_path = tokenizer.name_or_path
    plain.model_input_names = plain.init_kwargs["model_input_names"] = list(tokenizer.model_input_names)
    return plain


def set_frame(tokenizer: Any, before: Sequence[int], after: Sequence[int]) -> None:
    """Make the tokenizer put these ids around a text, and around both texts of a pair."""
    tokens = {token: tokenizer.convert_ids_to_tokens(token) for token in (*before, *after)}
    first, last = ([{"SpecialToken": {"id": tokens[token], "type_id": 0}} for token in ids] for ids in (before, after))
    texts = [{"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B")]
    template = {
        "type": "TemplateProcessing",
        "single": [*first, texts[0], *last],
        "pair": [*first, *texts, *last],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]} for number, token in tokens.items()
        },
    }
    backend = tokenizer.backend_tokenizer
    kept = _without_frames(json.loads(backend.to_str())["post_processor"])
    state = {"type": "Sequence", "processors": [*kept, template]} if kept else template
    # A text of special tokens ("<s>:0 $A") could not name one with a colon or a space in it.
    made = processors.Sequence([]) if kept else processors.TemplateProcessing(single="$A", special_tokens=[])
    made.__setstate__(json.dumps(state).encode())
    backend.post_processor = made


def _without_frames(post: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What a post-processor does besides adding tokens: it takes spaces out of the offsets."""
    if post is None:
        return []
    if post["type"] == "Sequence":
        return [part for inner in post["processors"] for part in _without_frames(inner)]
    if post["type"] == "ByteLevel":
        return [post]
    if post["type"] == "RobertaProcessing":
        shared = {name: post[name] for name in ("add_prefix_space", "trim_offsets")}
        return [{"type": "ByteLevel", "use_regex": True, **shared}]
    return []


def _lasts(
    tokenizer: PreTrainedTokenizerBase,
    old: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    before: Sequence[int],
    after: Sequence[int],
) -> bool:
    """Whether a tokenizer, saved beside its model, puts these ids around texts that it splits as the old one does."""
    from transformers import AutoTokenizer  # lists all models that there are

    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        again: Any = AutoTokenizer.from_pretrained(folder)
    bare = [list(old(text, add_special_tokens=False).input_ids) for text in SAMPLES]
    alone = [again(text).input_ids == [*before, *ids, *after] for text, ids in zip(SAMPLES, bare, strict=True)]
    both = again(SAMPLES[0], SAMPLES[1]).input_ids == [*before, *bare[0], *bare[1], *after]
    return both and all(alone)
