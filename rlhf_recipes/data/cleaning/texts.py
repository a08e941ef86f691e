"""Rows and their texts, for steps that clean: which columns hold texts, which rows are the same, what is counted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.record import ANSWERS
from rlhf_recipes.data.preprocessing import normalize_text
from rlhf_recipes.texts import as_text

TEXT_COLUMNS = ("prompt", *ANSWERS)
BATCH = 1000
SEPARATOR = "\x1f"  # between the texts of a row, which then cannot run into each other


@dataclass(frozen=True)
class Counts:
    """What one step did, in rows."""

    before: int
    after: int
    changed: int = 0  # rows that were kept and are no longer what they were
    notes: Mapping[str, int | str] = field(default_factory=dict)  # more counts, by what they count


class Step(Protocol):
    """A named callable that takes rows and returns rows and counts."""

    @property
    def name(self) -> str: ...

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]: ...


def text_columns(dataset: Dataset, columns: Sequence[str] | None = None) -> tuple[str, ...]:
    """The columns asked for, or all of prompt and answers that there are; `ValueError` if there is none."""
    if columns is not None:
        return require_columns(dataset, columns, "Cleaning")
    present = tuple(name for name in TEXT_COLUMNS if name in dataset.column_names)
    if not present:
        require_columns(dataset, [(name,) for name in TEXT_COLUMNS], "Cleaning")
    return present


def answer_columns(dataset: Dataset) -> tuple[str, ...]:
    """Prompts are what they are: the answers decide. Where there are only prompts, they do."""
    columns = text_columns(dataset)
    return tuple(name for name in columns if name != "prompt") or columns


def each_row(dataset: Dataset, columns: Sequence[str]) -> Iterable[tuple[int, dict[str, Any]]]:
    return enumerate(dataset.select_columns(list(columns)))


def each_text(value: Any, column: str) -> list[Any]:
    return (value or [None]) if column == "completions" else [value]


def texts_of(row: Mapping[str, Any]) -> list[str]:
    return [as_text(value or "") for name in row for value in each_text(row[name], name)]


def text_keys(dataset: Dataset, columns: Sequence[str] | None) -> list[str]:
    """For each row the form of its texts in which two copies are equal."""
    names = text_columns(dataset, columns)
    keys = []
    for _, row in each_row(dataset, names):
        texts = (texts_of({name: value}) if name in TEXT_COLUMNS else [str(value)] for name, value in row.items())
        keys.append(SEPARATOR.join(normalize_text(text) for of_column in texts for text in of_column))
    return keys


def selected(
    dataset: Dataset, kept: Sequence[int], notes: Mapping[str, int | str] | None = None
) -> tuple[Dataset, Counts]:
    left = dataset if len(kept) == len(dataset) else dataset.select(kept)
    return left, Counts(len(dataset), len(left), 0, notes or {})
