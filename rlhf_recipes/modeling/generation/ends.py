"""Where a completion ends: at a token, or with the last token of a string."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class StopAtString(StoppingCriteria):
    """Ends a row as soon as its completion has one of the strings, seen as [`completion_mask`] will see it.

    `generate` has a criterion of its own, which also looks at the prompt. A string that begins there and ends with
    the completion would end the row, and no mask over the completion could tell its end from padding.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt_width: int) -> None:
        self.strings = strings
        self.tokenizer = tokenizer
        self.prompt_width = prompt_width
        # A token is a byte or more, and a character at most four. The rest is room for the decoder's manners at the
        # beginning of a text.
        self.window = 4 * max(len(string) for string in strings) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self.prompt_width :].tolist()
        ended = [
            _has_string(ids[-self.window :], self.strings, self.tokenizer)
            and _has_string(ids, self.strings, self.tokenizer)
            for ids in rows
        ]
        return torch.tensor(ended, device=input_ids.device)


class Thinning(StoppingCriteria):
    """Stops all rows when a share of them has ended, so that the others may go on without them.

    Args:
        eos_token_id (`int` or `Sequence[int]`, *optional*): Tokens that end a row.
        criteria (`Sequence[StoppingCriteria]`): What else ends one.
        may_stop (callable): Whether the others could go on.
        share (`float`): Of the rows, those that must have ended.

    Attributes:
        stopped (`Tensor`, *optional*): `(B,)` which rows have ended, if all were stopped.
    """

    def __init__(
        self,
        eos_token_id: int | Sequence[int] | None,
        criteria: Sequence[StoppingCriteria],
        may_stop: Callable[[], bool],
        share: float = 0.25,
    ) -> None:
        self.eos_token_id = [] if eos_token_id is None else eos_token_id
        self.criteria = criteria
        self.may_stop = may_stop
        self.share = share
        self.stopped: Tensor | None = None
        self._ended: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = torch.isin(input_ids[:, -1], torch.as_tensor(self.eos_token_id, device=input_ids.device))
        for criterion in self.criteria:
            ended = ended | criterion(input_ids, scores, **kwargs)
        self._ended = ended if self._ended is None else self._ended | ended
        count = int(self._ended.sum())
        if count and count >= self.share * len(input_ids) and self.may_stop():
            self.stopped = self._ended
            return torch.ones_like(self._ended)
        return self._ended


def completion_mask(
    completion_ids: Tensor,
    eos_token_id: int | Sequence[int] | None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Tensor, Tensor]:
    """Which tokens count: all up to and with the first end, be it a token or the last token of a stop string.

    Returns:
        `tuple[Tensor, Tensor]`: the mask `(B, T)`, and `(B,)` whether there is such an end.
    """
    ends_at = torch.as_tensor([] if eos_token_id is None else eos_token_id, device=completion_ids.device)
    ends = torch.isin(completion_ids, ends_at)
    if stop_strings:
        assert tokenizer is not None, "stop strings without a tokenizer"
        for row, position in enumerate(_string_ends(completion_ids, stop_strings, tokenizer)):
            if position is not None:
                ends[row, position] = True
    after_end = ends.cumsum(dim=1) - ends.long()
    return (after_end == 0).long(), ends.any(dim=1)


def _string_ends(
    completion_ids: Tensor, stop_strings: str | Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[int | None]:
    """For each row, the position of the token with which the first stop string is complete."""
    strings = listed(stop_strings)
    positions: list[int | None] = []
    for ids in completion_ids.tolist():
        if not _has_string(ids, strings, tokenizer):
            positions.append(None)
            continue
        low, high = 0, len(ids) - 1  # the shortest prefix that has one ends at `low`
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _has_string(ids[: middle + 1], strings, tokenizer) else (middle + 1, high)
        positions.append(low)
    return positions


def _has_string(ids: list[int], strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> bool:
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    return any(string in text for string in strings)


def listed(strings: str | Sequence[str]) -> list[str]:
    return [strings] if isinstance(strings, str) else list(strings)
