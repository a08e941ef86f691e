"""From tokenized rows to one batch of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

NOT_TARGETS = ("input_ids", "length", "covariates")


def padded(ids: Sequence[Sequence[int]], pad_token_id: int, multiple: int | None = None) -> dict[str, torch.Tensor]:
    """Token ids of N texts, padded on the right: `input_ids` and `attention_mask`, `(N, L)` each."""
    longest = max(len(of_text) for of_text in ids)
    width = -(-longest // (multiple or 1)) * (multiple or 1)
    texts = [torch.tensor(of_text, dtype=torch.long) for of_text in ids]
    input_ids = pad_sequence(texts, batch_first=True, padding_value=pad_token_id)  # (N, longest)
    input_ids = torch.nn.functional.pad(input_ids, (0, width - longest), value=pad_token_id)  # (N, L)
    # From the lengths, not from the ids: a text may hold the pad token as text.
    lengths = torch.tensor([len(of_text) for of_text in ids])
    return {"input_ids": input_ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}


def own_pad_token(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"The pad token is {tokenizer.pad_token!r} and the end-of-sequence token {tokenizer.eos_token!r}: "
            "padding must be a token of its own, or the end of a text cannot be seen. "
            "`rlhf_recipes.modeling.loading.load_tokenizer` finds one."
        )
    return int(tokenizer.pad_token_id)


class FeedbackCollator:
    """Put rows of one or more texts, and what is known of them, into one batch.

    A row has `input_ids`, a list of texts, each a list of token ids. All other columns are targets, numbers or lists
    of numbers, but for `length`, and for `covariates`, C numbers for each text. For R rows with N texts in all, at
    most L tokens and K numbers in a list, the batch holds

    - `input_ids (N, L)`, `attention_mask (N, L)`: padded on the right, the texts of a row behind one another;
    - `rows (N,)`, `places (N,)`: the row of each text, and its place in the row;
    - `targets`: a `dict` of `(R,)` or `(R, K)`, NaN where a list is shorter;
    - `covariates (N, C)`: where the rows have them.

    The settings are those of [`PairCollator`].
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None) -> None:
        self.pad_token_id = own_pad_token(tokenizer)
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        ids = [of_text for row in rows for of_text in row["input_ids"]]
        sizes = [len(row["input_ids"]) for row in rows]
        batch: dict[str, Any] = padded(ids, self.pad_token_id, self.pad_to_multiple_of)
        batch["rows"] = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(sizes))
        batch["places"] = torch.cat([torch.arange(size) for size in sizes])
        batch["targets"] = {
            name: number_columns([row[name] for row in rows]) for name in rows[0] if name not in NOT_TARGETS
        }
        if "covariates" in rows[0]:
            batch["covariates"] = torch.tensor([of_text for row in rows for of_text in row["covariates"]])
        return batch


def number_columns(values: Sequence[Any]) -> torch.Tensor:
    if not isinstance(values[0], list):
        return torch.tensor([float("nan") if value is None else value for value in values], dtype=torch.float)
    lists = [torch.tensor([float("nan") if x is None else x for x in value], dtype=torch.float) for value in values]
    return pad_sequence(lists, batch_first=True, padding_value=float("nan"))


class PairCollator:
    """Put pairs of token ids into the layout of TRL's `RewardTrainer`: all chosen texts, then all rejected ones.

    A row has `chosen_ids` and `rejected_ids`, and in all rows or in none a `margin`, by which the chosen text should
    win; other columns (such as the length by which batches are grouped) are not looked at. For B rows with texts of
    at most L tokens the batch holds

    - `input_ids (2B, L)`: padded on the right, row `i` against row `B + i`;
    - `attention_mask (2B, L)`: 1 for a real token;
    - `margin (B,)`: where the rows have one.

    `pad_to_multiple_of` rounds L up to a multiple of it, which suits tensor cores.

    Raises:
        `ValueError`: if there is no pad token, or if it is the end-of-sequence token: a decoder's head reads the last
            token that is not padding, so it would never read the end of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None) -> None:
        self.pad_token_id = own_pad_token(tokenizer)
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}; give 1 or more, or None.")
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [row[side] for side in ("chosen_ids", "rejected_ids") for row in rows]
        batch = padded(ids, self.pad_token_id, self.pad_to_multiple_of)
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float)
        return batch
