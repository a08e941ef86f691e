"""Steps that add rows or turn them round: pairs that change places, and copies that lack words."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset, concatenate_datasets

from rlhf_recipes.data.corruption import drop_words, row_rng
from rlhf_recipes.data.formats import require_columns
from rlhf_recipes.data.row_texts import BATCH, Counts, answer_columns, each_row, text_keys
from rlhf_recipes.data.text_edits import edit_each


@dataclass(frozen=True)
class SwapPairs:
    """Let chosen and rejected change places in a share of the rows, and turn the soft label with them.

    For models that read both texts at once, so that they do not learn that the first is better. `target` becomes
    `1 - target`, `margin` changes its sign, and the votes of both sides change places. Without a soft label a swap
    would only be wrong, and is refused.

    Args:
        share (`float`, *optional*, defaults to 0.5): The chance of each row to be swapped.
        seed (`int`, *optional*, defaults to 0): Of the draw, which depends on the row's texts alone.
    """

    share: float = 0.5
    seed: int = 0
    name: str = "swap"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"The share of pairs to swap is {self.share}; give a number from 0 to 1.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        soft = [("chosen", "rejected", "target"), ("chosen", "rejected", "chosen_votes", "rejected_votes")]
        require_columns(dataset, soft, "Swapping pairs with a soft label")
        keys = text_keys(dataset, ("chosen", "rejected"))
        swapped = [row_rng(self.seed, self.name, key).random() < self.share for key in keys]
        new = dataset.map(_swap, batched=True, batch_size=BATCH, with_indices=True, fn_kwargs={"swapped": swapped})
        return new, Counts(len(dataset), len(new), sum(swapped))


def _swap(batch: dict[str, list[Any]], numbers: list[int], swapped: Sequence[bool]) -> dict[str, list[Any]]:
    new = {name: list(values) for name, values in batch.items()}
    for place, number in enumerate(numbers):
        if not swapped[number]:
            continue
        for one, other in (("chosen", "rejected"), ("chosen_votes", "rejected_votes")):
            if one in new and other in new:
                new[one][place], new[other][place] = batch[other][place], batch[one][place]
        if "target" in new:
            new["target"][place] = 1 - batch["target"][place]
        if "margin" in new:
            new["margin"][place] = -batch["margin"][place]
    return new


@dataclass(frozen=True)
class WordDropout:
    """Add a copy of each row, with words of its answers missing, behind all rows. The feedback is that of the row.

    A word is what stands between white space; one word at least stays. Copies in which nothing is missing are not
    added, but counted. Whether feedback still holds for the copy is for you to say: a dropped "not" turns it round.

    Args:
        rate (`float`, *optional*, defaults to 0.1): The chance of each word to be left out.
        seed (`int`, *optional*, defaults to 0): Of the draw, which depends on the row's texts alone.
    """

    rate: float = 0.1
    seed: int = 0
    name: str = "word dropout"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"word_dropout is {self.rate}; give a rate above 0 and below 1, or leave it out.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = answer_columns(dataset)
        keys = text_keys(dataset, None)

        def dropped(batch: dict[str, list[Any]], numbers: list[int]) -> dict[str, list[Any]]:
            new: dict[str, list[Any]] = {}
            for name in columns:
                chances = [row_rng(self.seed, self.name, name, keys[number]) for number in numbers]
                new[name] = [
                    edit_each(value, _DropWords(chance, self.rate))
                    for value, chance in zip(batch[name], chances, strict=True)
                ]
            return new

        copies = dataset.map(dropped, batched=True, batch_size=BATCH, with_indices=True, desc=self.name)
        pairs = zip(each_row(dataset, columns), each_row(copies, columns), strict=True)
        other = [number for (number, row), (_, copy) in pairs if row != copy]
        new = concatenate_datasets([dataset, copies.select(other)]) if other else dataset
        return new, Counts(len(dataset), len(new), 0, {"copies like their row, not added": len(dataset) - len(other)})


@dataclass(frozen=True)
class _DropWords:
    chance: random.Random
    rate: float

    def __call__(self, text: str) -> str:
        return "".join(drop_words(re.findall(r"\s*\S+", text), self.chance, self.rate))
