"""Which characters of a completion each of the policy's tokens stands for."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

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
        tokenizer (`PreTrainedTokenizerBase`): the policy's.
        ids (`Sequence[int]`): the policy's tokens.
        text (`str`): the completion as the trainer decoded it, without special tokens.

    Raises:
        `ValueError`: if the tokens are not those of the text, as with a tokenizer that is not the policy's.
    """

    def __init__(self, tokenizer: Any, ids: Sequence[int], text: str) -> None:
        pieces = token_pieces(tokenizer, ids)
        if "".join(pieces) != text:
            raise ValueError(
                f"The policy tokenizer {tokenizer.name_or_path!r} makes {_short(''.join(pieces))} of completion_ids, "
                f"but the completion is {_short(text)}. Give the policy's own tokenizer as policy_tokenizer."
            )
        self.ends = list(accumulate(len(piece) for piece in pieces))

    def of(self, end: int) -> int:
        """The token in whose text the character before `end` stands, counted from 0."""
        return bisect_left(self.ends, end)


def _decode(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True)) if len(ids) else ""


def _short(text: str, limit: int = 80) -> str:
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")
