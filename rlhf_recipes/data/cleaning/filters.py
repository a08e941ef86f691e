"""Rows and their texts, walked and counted; and steps that leave rows out by what stands in them.

Rows are left out that are blank, too short or long, in another language, or too many of one class.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from datasets import Dataset

from rlhf_recipes.data.columns import is_blank, require_columns
from rlhf_recipes.data.corruption import row_rng
from rlhf_recipes.data.feedback.record import ANSWERS
from rlhf_recipes.data.preprocessing import normalize_text
from rlhf_recipes.texts import as_text
from rlhf_recipes.words import language_identifier, language_probability

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


# --- Steps ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DropBlank:
    """Leave out rows that say nothing, as after other steps: an answer is empty or blank, or the two are the same.

    A prompt may be empty. The two answers of a pair may differ in what the steps before took away; such pairs are
    counted by themselves.
    """

    name: str = "blank"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = answer_columns(dataset)
        told = [(number, row) for number, row in each_row(dataset, columns) if not self._blank(row, number)]
        kept = [number for number, row in told if "chosen" not in row or row["chosen"] != row.get("rejected")]
        same = len(told) - len(kept)
        return selected(dataset, kept, {"chosen and rejected the same": same} if same else None)

    def _blank(self, row: Mapping[str, Any], number: int) -> bool:
        values = ((name, value) for name in row for value in each_text(row[name], name))
        return any(is_blank(value, name, number) for name, value in values)


@dataclass(frozen=True)
class Length:
    """Leave out rows with an answer that is too short or too long, in characters, as they fit any language."""

    minimum: int | None = None  # both are allowed
    maximum: int | None = None
    name: str = "length"

    def __post_init__(self) -> None:
        low, high = self.minimum or 0, self.maximum
        if low < 0 or (high is not None and high < max(low, 1)):
            raise ValueError(
                f"min_characters is {self.minimum} and max_characters {self.maximum}; give 0 or more, and the larger "
                "one as the maximum."
            )

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        kept, notes = [], {"too short": 0, "too long": 0}
        for number, row in each_row(dataset, answer_columns(dataset)):
            lengths = [len(text) for text in texts_of(row)]
            short = min(lengths, default=0) < (self.minimum or 0)
            long = self.maximum is not None and max(lengths, default=0) > self.maximum
            notes["too short"] += short
            notes["too long"] += long
            if not short and not long:
                kept.append(number)
        return selected(dataset, kept, notes)


@dataclass(frozen=True)
class InLanguage:
    """Leave out rows with an answer in another language, as [`~rlhf_recipes.words.language_probability`] judges it.

    Answers with too few letters to tell pass, and are counted.
    """

    language: str  # an ISO 639-1 code
    threshold: float = 0.5  # the probability from which on a text is in it
    min_letters: int = 20  # fewer cannot be told
    name: str = "language"

    def __post_init__(self) -> None:
        known = language_identifier().labels
        if self.language not in known:
            raise ValueError(f"language is {self.language!r}, which is not known. Known: {', '.join(sorted(known))}.")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"language_threshold is {self.threshold}; it must be above 0 and at most 1.")

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        kept, short = [], 0
        for number, row in each_row(dataset, answer_columns(dataset)):
            told = [language_probability(text, self.language, min_letters=self.min_letters) for text in texts_of(row)]
            short += None in told
            if all(probability is None or probability >= self.threshold for probability in told):
                kept.append(number)
        return selected(dataset, kept, {"rows with a text too short to tell": short})


@dataclass(frozen=True)
class BalanceLabels:
    """Leave out rows of the more frequent label until good (0.5 or more) and bad are equally many.

    Which rows stay is drawn by a hash of their texts, so the order of the rows does not matter.
    """

    seed: int = 0
    name: str = "balance"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        require_columns(dataset, ["label"], "Balancing labels")
        sides: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
        keys = text_keys(dataset, None)
        for number, (key, label) in enumerate(zip(keys, dataset["label"], strict=True)):
            sides[label >= 0.5].append((row_rng(self.seed, self.name, key).random(), number))
        fewer = min(map(len, sides.values()))
        if not fewer:
            raise ValueError(
                "There is one class only, so labels cannot be balanced. Add rows, or leave balance_labels out."
            )
        kept = sorted(number for rows in sides.values() for _, number in sorted(rows)[:fewer])
        notes = {"good before": len(sides[True]), "bad before": len(sides[False])}
        return selected(dataset, kept, notes)
