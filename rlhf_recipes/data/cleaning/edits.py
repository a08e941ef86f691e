"""Steps that change texts: tidying, punctuation, stop words, or a function of your own.

Steps that add rows or turn them round: pairs that change places, and copies that lack words.
"""

import functools
import random
import re
import sys
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset, concatenate_datasets

from rlhf_recipes.data.cleaning.filters import BATCH, Counts, answer_columns, each_row, text_columns, text_keys
from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.corruption import drop_words, row_rng
from rlhf_recipes.imports import optional
from rlhf_recipes.texts import is_conversational

ENGLISH = "english"
JOINERS = frozenset("'\u2019-\u2010\u2011")  # apostrophes and hyphens
WORD = re.compile(r"(\w+(?:['\u2019-]\w+)*)\s*")
Edit: TypeAlias = Callable[[str], str]


@dataclass(frozen=True)
class EditTexts:
    """A function of a text, applied to every text of every row: prompts, answers, and the content of messages.

    Where the prompt is plain text, so that prompt and answer are read as one, white space between the two stays, as
    one space at least.
    """

    edit: Edit  # one that can be pickled
    name: str = "edit"  # what the table shows
    columns: tuple[str, ...] | None = None  # default: all columns with texts

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = text_columns(dataset, self.columns)
        joined = "prompt" in dataset.column_names

        def edited(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {
                name: [edit_each(value, self.edit, ("end" if name == "prompt" else "start") if joined else None)
                       for value in batch[name]]
                for name in columns
            }  # fmt: skip

        new = dataset.map(edited, batched=True, batch_size=BATCH, desc=self.name)
        pairs = zip(each_row(dataset, columns), each_row(new, columns), strict=True)
        return new, Counts(len(dataset), len(new), sum(one != other for one, other in pairs))


def edit_each(value: Any, edit: Edit, seam: str | None = None) -> Any:
    """A text, messages, or a list of either, with each text edited."""
    if value is None:
        return None
    if isinstance(value, str):
        new = edit(value)
        if new and seam == "start" and value[:1].isspace() and not new[0].isspace():
            return f" {new}"
        return f"{new} " if new and seam == "end" and value[-1:].isspace() and not new[-1].isspace() else new
    if not is_conversational(value):
        return [edit_each(one, edit, seam) for one in value]
    return [message | {"content": _edited_content(message.get("content"), edit)} for message in value]


def _edited_content(content: Any, edit: Edit) -> Any:
    if isinstance(content, list):  # parts, as of a model that sees
        return [part | {"text": edit(part["text"])} if part.get("text") else part for part in content]
    return edit(content) if content else content


def tidy_light(text: str) -> str:
    r"""Make alike what looks alike: line ends become `\n`, accents are composed (Unicode NFC), NUL is taken out."""
    return unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", ""))


def remove_punctuation(text: str) -> str:
    """Take out what Unicode calls punctuation, in any script; symbols such as $, + and emoji stay.

    An apostrophe or hyphen between two letters or digits is a part of the word and stays. Other punctuation between
    two becomes a space, so that words do not run together; `3.5` falls apart, too. Runs of spaces become one.

    Example:
        >>> remove_punctuation("Well-made, isn't it?Yes!")
        "Well-made isn't it Yes"
    """

    def gap(match: re.Match[str]) -> str:
        inside = text[match.start() - 1 : match.start()].isalnum() and text[match.end() : match.end() + 1].isalnum()
        if inside and match.group() in JOINERS:
            return match.group()
        return " " if inside else ""

    return _squeezed(_punctuation().sub(gap, text))


@functools.cache
def _punctuation() -> re.Pattern[str]:
    marks = (mark for mark in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(mark)[0] == "P")
    return re.compile(f"[{re.escape(''.join(marks))}]+")


def _squeezed(text: str) -> str:
    return re.sub(" {2,}", " ", text).strip(" ")


@dataclass(frozen=True)
class WithoutWords:
    """Takes words out of a text, in whatever case they are written, with the white space behind them."""

    words: frozenset[str]  # in lower case

    def __call__(self, text: str) -> str:
        def kept(match: re.Match[str]) -> str:
            return "" if match.group(1).casefold() in self.words else match.group()

        return _squeezed(WORD.sub(kept, text))


def read_stop_words(source: str) -> WithoutWords:
    """Stop words from a file with one on each line, or, for `"english"`, the 318 of scikit-learn.

    Raises:
        `ValueError`: if there is no such file, or no word in it.
    """
    if source == ENGLISH:
        text = optional("sklearn.feature_extraction.text", "stop_words", package="scikit-learn", extra="feedback")
        return WithoutWords(frozenset(text.ENGLISH_STOP_WORDS))
    path = Path(source).expanduser()
    if not path.is_file():
        raise ValueError(
            f"stop_words is {source!r}, which is no file. Give one with a word on each line, or {ENGLISH!r}."
        )
    words = frozenset(
        line.strip().casefold() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    )
    if not words:
        raise ValueError(
            f"The file of stop words {source!r} is empty. Put a word on each line, or leave stop_words out."
        )
    return WithoutWords(words)


@dataclass(frozen=True)
class SwapPairs:
    """Let chosen and rejected change places in a share of the rows, and turn the soft label with them.

    For models that read both texts at once, so that they do not learn that the first is better. `target` becomes
    `1 - target`, `margin` changes its sign, and the votes of both sides change places. Without a soft label a swap
    would only be wrong, and is refused.
    """

    share: float = 0.5  # the chance of each row to be swapped
    seed: int = 0  # of the draw, which depends on the row's texts alone
    name: str = "swap"

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"The share of pairs to swap is {self.share}; give a number from 0 to 1.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        soft = [("chosen", "rejected", "target"), ("chosen", "rejected", "chosen_votes", "rejected_votes")]
        require_columns(dataset, soft, "Swapping pairs with a soft label")
        keys = text_keys(dataset, ("chosen", "rejected"))
        swapped = [row_rng(self.seed, self.name, key).random() < self.share for key in keys]
        new = dataset.map(lambda row, number: _swapped(row) if swapped[number] else row, with_indices=True)
        return new, Counts(len(dataset), len(new), sum(swapped))


def _swapped(row: dict[str, Any]) -> dict[str, Any]:
    new: dict[str, Any] = {}
    for one, other in (("chosen", "rejected"), ("chosen_votes", "rejected_votes")):
        if one in row and other in row:
            new |= {one: row[other], other: row[one]}
    if "target" in row:
        new["target"] = 1 - row["target"]
    if "margin" in row:
        new["margin"] = -row["margin"]
    return new


@dataclass(frozen=True)
class WordDropout:
    """Add a copy of each row, with words of its answers missing, behind all rows. The feedback is that of the row.

    A word is what stands between white space; one word at least stays. Copies in which nothing is missing are not
    added, but counted. Whether feedback still holds for the copy is for you to say: a dropped "not" turns it round.
    """

    rate: float = 0.1  # the chance of each word to be left out
    seed: int = 0  # of the draw, which depends on the row's texts alone
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
                chances = (row_rng(self.seed, self.name, name, keys[number]) for number in numbers)
                new[name] = [
                    edit_each(value, functools.partial(_without_some, chance=chance, rate=self.rate))
                    for value, chance in zip(batch[name], chances, strict=True)
                ]
            return new

        copies = dataset.map(dropped, batched=True, batch_size=BATCH, with_indices=True, desc=self.name)
        pairs = zip(each_row(dataset, columns), each_row(copies, columns), strict=True)
        other = [number for (number, row), (_, copy) in pairs if row != copy]
        new = concatenate_datasets([dataset, copies.select(other)]) if other else dataset
        return new, Counts(len(dataset), len(new), 0, {"copies like their row, not added": len(dataset) - len(other)})


def _without_some(text: str, chance: random.Random, rate: float) -> str:
    return "".join(drop_words(re.findall(r"\s*\S+", text), chance, rate))
