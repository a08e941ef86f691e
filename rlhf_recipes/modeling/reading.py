"""What rewards with a model do alike: batches of similar length, padded on the right, and checks of what comes out.

Padding on the right is never seen by the tokens of a text: a decoder looks back only, and an encoder is told by its
mask. So a score is that of the text alone, whatever it was batched with (up to the rounding of float32).

Which characters of a completion each of the policy's tokens stands for.
"""

import contextlib
import functools
import json
import logging
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import once, read_kwargs, render, starts_itself, whole
from rlhf_recipes.data.collators import padded
from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.tokenizers.text_ends import ended
from rlhf_recipes.texts import Messages, Text, as_text, one_text, prompt_and_completion, short

logger = logging.getLogger(__name__)

# Who speaks, where a model has no chat template and reads a conversation as text.
SPEAKERS = {"user": "Human", "assistant": "Assistant"}

CHARACTERS = 16  # of a text for each token, at first; few texts have so many
SEAM = 64  # tokens


def length_batches(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Row numbers in batches of similar length, the longest first: what fits into memory once fits to the end."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def model_outputs(
    model: Any, token_ids: Sequence[Sequence[int]], batch_size: int, pad_id: int
) -> Iterator[tuple[list[int], Any]]:
    """Run a model over texts that are encoded already, in evaluation mode and without gradients.

    Yields:
        `tuple[list[int], ModelOutput]`: the rows of a batch, and what the model says of them.
    """
    for rows in length_batches([len(ids) for ids in token_ids], batch_size):
        yield rows, forward(model, [token_ids[row] for row in rows], pad_id)


def forward(model: Any, token_ids: Sequence[Sequence[int]], pad_id: int, **kwargs: Any) -> Any:
    """One pass over one batch of texts, padded on the right, in evaluation mode and without gradients."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in padded(token_ids, pad_id).items()}
    with torch.inference_mode(), evaluating(model):
        return model(**batch, **kwargs)


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout is off inside; the mode that the model was in is given back."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def joined(
    prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase, template_kwargs: Any = None
) -> tuple[str, str, bool]:
    """The text that a model reads, in two parts, and whether the tokenizer has yet to add special tokens to it.

    A plain completion goes on where its prompt ends; a prompt that a template has rendered has its special tokens. The
    messages of a conversation become text through the chat template, up to where the answer begins, or goes on;
    without a template their texts stand one below the other.
    """
    start, end = prompt_and_completion(prompt, completion)
    if isinstance(prompt, str):
        return start, end, not starts_itself(prompt, tokenizer)
    if tokenizer.chat_template is None:
        return start, end, True
    return render(tokenizer, prompt, read_kwargs(template_kwargs), is_open=True), end, False


def judged_text(
    prompt: Text,
    completion: Text,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    adds_it: bool,
    template_kwargs: Any,
    name: str,
) -> tuple[str, bool]:
    """The one text that a reward model is trained on and scores, and whether special tokens are yet to be added to it.

    Args:
        adds_it (`bool`): Whether the tokenizer ends texts by itself, see
            [`~rlhf_recipes.modeling.tokenizers.text_ends.adds_eos`].
        name (`str`): Whose tokenizer it is, in what is said where there is no chat template for messages.
    """
    if isinstance(prompt, str) and isinstance(completion, str):
        text = one_text(prompt, completion)
    elif tokenizer.chat_template is not None:
        options = {**(settings.chat_template_kwargs or {}), **read_kwargs(template_kwargs)}
        return render(tokenizer, whole(prompt, completion), options), False
    else:
        say_plain_reading(name)
        text = dialogue_text(whole(prompt, completion))
    return ended(text, tokenizer.eos_token, settings.append_eos, adds_it), True


def judged_ids(
    text: str, add_special_tokens: bool, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> tuple[list[int], bool]:
    """The token ids of one text, never empty, and whether it lost its beginning because it was too long."""
    text = text[part_to_read(text, tokenizer, max_length)]
    ids = once(tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids, tokenizer)
    cut = max_length is not None and len(ids) > max_length
    if cut:
        options = {"truncation": True, "max_length": max_length}
        ids = tokenizer(text, add_special_tokens=add_special_tokens, **options).input_ids
    return ids or [first_special(tokenizer)], cut


def dialogue_text(messages: Messages) -> str:
    r"""A conversation as the one text that a model without a chat template reads, as in HH-RLHF.

    Example:
        >>> dialogue_text([{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}])
        '\n\nHuman: Hello\n\nAssistant: Hi!'
    """
    turns = []
    for message in messages:
        said = as_text([message])
        if message.get("tool_calls"):
            said += json.dumps(message["tool_calls"], ensure_ascii=False)
        turns.append(f"\n\n{SPEAKERS.get(message['role'], str(message['role']).title())}: {said}")
    return "".join(turns)


@functools.cache
def say_plain_reading(name: str) -> None:
    """Say in one line, once in a process, how a model without a chat template reads conversations."""
    logger.warning(
        "%s has no chat template, so that conversations are read as plain text: %r.",
        name,
        "\n\nHuman: ...\n\nAssistant: ...",
    )


def part_to_read(
    text: str, tokenizer: PreTrainedTokenizerBase, max_length: int | None, cut: Literal["left", "right"] = "left"
) -> slice:
    """The characters of a text that hold every token which is left when it is cut to `max_length`, and some more.

    To encode all of a very long text would take minutes for tokens that nobody reads. Where a text is cut, its tokens
    may be others than in the whole, but only close to the cut: `SEAM` tokens more are kept, which go with the rest.

    Args:
        cut (`"left"` or `"right"`, *optional*, defaults to `"left"`): Which end of the text is lost.
    """
    if max_length is None:
        return slice(0, len(text))
    size = CHARACTERS * (max_length + SEAM)
    while size < len(text):
        part = slice(len(text) - size, len(text)) if cut == "left" else slice(0, size)
        if len(tokenizer(text[part], add_special_tokens=False, verbose=False).input_ids) >= max_length + SEAM:
            return part
        size *= 4  # white space, say, of which many characters are one token or none
    return slice(0, len(text))


def first_special(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to read where a text has none: the beginning-of-sequence token, or what comes nearest to it."""
    candidates = (tokenizer.bos_token_id, tokenizer.cls_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return next((token for token in candidates if token is not None), 0)


def check_finite(values: Sequence[Any], name: str, prompts: Sequence[Text], completions: Sequence[Text]) -> None:
    """Refuse NaN and infinity out of a model: passed on, one such number ends a training run.

    Args:
        values (`Sequence`): for each row a number, a list of numbers, or `None`.

    Raises:
        `RewardError`: names the reward and the first such row, with its prompt and completion.
    """
    for row, value in enumerate(values):
        numbers = value if isinstance(value, list) else [] if value is None else [value]
        bad = next((number for number in numbers if not math.isfinite(number)), None)
        if bad is not None:
            raise RewardValueError(
                f"The model of reward {name!r} gave {bad}, for row {row} (prompt {short(prompts[row])}, completion "
                f"{short(completions[row])}). Its weights are damaged, or its precision overflows: float16 does "
                "where bfloat16 and float32 do not (`dtype`)."
            )


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token to pad with. The mask hides it, so that any id would do that the model has."""
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0


# What decoders write for bytes that are no character, and for those of one that is not complete yet.
UNFINISHED = "\ufffd"


def token_pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to its completion, special tokens adding none; together they are the completion.

    A character of several tokens (byte-level BPE writes one emoji with up to four) belongs to the token that completes
    it, and the tokens before get `""`. Bytes at the end that never became a character belong to the last token.
    """
    pieces = [""] * len(ids)
    # Decoding the last finished tokens together with the new ones shows the space between them, which depends on both,
    # and keeps the work linear.
    start, finished = 0, 0
    for end in range(1, len(ids) + 1):
        text = _decode(tokenizer, ids[start:end])
        if text.endswith(UNFINISHED) and end < len(ids):
            continue
        known = len(_decode(tokenizer, ids[start:finished]))
        owner = end - 1
        while text.endswith(UNFINISHED) and owner > finished and ids[owner] in tokenizer.all_special_ids:
            owner -= 1  # an end-of-sequence token completes nothing
        pieces[owner] = text[known:]
        if pieces[owner]:  # a special token shows no space
            start = finished
        finished = end
    return pieces


class TokenPlaces:
    """Finds the token in which a character of the completion ends.

    Args:
        tokenizer (`PreTrainedTokenizerBase`), ids (`Sequence[int]`): the policy's, and its tokens.
        text (`str`): the completion as the trainer decoded it, without special tokens.
        may_be_begun (`bool`): whether what the prompt had begun of the answer may stand before, as in messages; its
            characters count for the first token.

    Raises:
        `ValueError`: if the tokens are not those of the text, as with a tokenizer that is not the policy's.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int], text: str, may_be_begun: bool = False) -> None:
        pieces = token_pieces(tokenizer, ids)
        written = "".join(pieces)
        begun = len(text) - len(written)
        if not text.endswith(written) or (begun and not (may_be_begun and written)):
            raise ValueError(
                f"The policy tokenizer {tokenizer.name_or_path!r} makes {short(written)} of completion_ids, "
                f"but the completion is {short(text)}. Give the policy's own tokenizer as policy_tokenizer."
            )
        self.ends = [begun + end for end in accumulate(len(piece) for piece in pieces)]

    def of(self, end: int) -> int:
        """The token in whose text the character before `end` stands, counted from 0."""
        return bisect_left(self.ends, end)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)) if len(ids) else ""
