"""From tokenized rows to one batch of tensors."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase


class PairCollator:
    """Put pairs of token ids into the layout of TRL's `RewardTrainer`: all chosen texts, then all rejected ones.

    A row has `chosen_ids` and `rejected_ids`, and in all rows or in none a `margin`, by which the chosen text should
    win; other columns (such as the length by which batches are grouped) are not looked at. For B rows with texts of
    at most L tokens the batch holds

    - `input_ids (2B, L)`: padded on the right, row `i` against row `B + i`;
    - `attention_mask (2B, L)`: 1 for a real token;
    - `margin (B,)`: where the rows have one.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Its pad token is used.
        pad_to_multiple_of (`int`, *optional*):
            Round L up to a multiple of this, which suits tensor cores.

    Raises:
        `ValueError`: if there is no pad token, or if it is the end-of-sequence token: a decoder's head reads the last
            token that is not padding, so it would never read the end of a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pad_to_multiple_of: int | None = None) -> None:
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise ValueError(
                f"The pad token is {tokenizer.pad_token!r} and the end-of-sequence token {tokenizer.eos_token!r}: "
                "padding must be a token of its own, or the end of a text cannot be seen. "
                "`rlhf_recipes.modeling.loading.load_tokenizer` finds one."
            )
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of is {pad_to_multiple_of}; give 1 or more, or None.")
        self.pad_token_id: int = tokenizer.pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row[side], dtype=torch.long) for side in ("chosen_ids", "rejected_ids") for row in rows]
        longest = max(len(of_text) for of_text in ids)
        multiple = self.pad_to_multiple_of or 1
        width = -(-longest // multiple) * multiple
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)  # (2B, longest)
        input_ids = torch.nn.functional.pad(input_ids, (0, width - longest), value=self.pad_token_id)  # (2B, L)
        # From the lengths, not from the ids: a text may hold the pad token as text.
        lengths = torch.tensor([len(of_text) for of_text in ids])
        batch = {"input_ids": input_ids, "attention_mask": (torch.arange(width) < lengths[:, None]).long()}
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float)
        return batch
