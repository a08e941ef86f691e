"""What a format of human feedback is, and what its reader, its notes and its conversions are made of.

The formats themselves are records in `pairs.py`, `ratings.py`, `lists.py` and `labels.py`; `formats.py` lists them.
"""

import logging
import math
import numbers
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns, with_columns
from rlhf_recipes.statistics import is_missing

logger = logging.getLogger(__name__)
Row: TypeAlias = dict[str, Any]
Read: TypeAlias = tuple[Row, list[str]]  # the clean values of a row, and what is odd about it

# What is odd about a row, in words. The rows with one of these are left out; all else that is counted is kept.
EMPTY, MISSING, IDENTICAL = "empty text", "missing value", "identical chosen and rejected"
NO_DIALOGUE, NO_ANSWER = "no dialogue of Human and Assistant", "no answer at the end"
NO_BEGINNING, MISSING_VOTES, UNSEEN = "no common beginning", "missing votes", "never shown"
FEW, ALL_TIED, SAME_PLACE = "fewer than two completions", "all ranks tied", "best and worst are the same"
LEFT_OUT = frozenset(
    {EMPTY, IDENTICAL, NO_DIALOGUE, NO_ANSWER, NO_BEGINNING, MISSING_VOTES, MISSING, FEW, ALL_TIED, SAME_PLACE, UNSEEN}
)
TIE = "tie"
ANSWERS = ("completion", "chosen", "rejected", "completions")  # the columns that hold answers
MOST_RATINGS = 20  # whole numbers over a wider range than this are no ordinal scale
MOST_SHOWN = 8  # values in a message


@dataclass(frozen=True)
class FeedbackSettings:
    """How feedback is read, where the columns alone do not say it.

    Raises:
        `ValueError`: if a label counts less than 0 or more than 1, or the range is none.
    """

    format: str | None = None  # for columns that fit several
    # What each label counts, from 0 (bad) to 1 (good): {"good": 1, "bad": 0}. Labels that are texts, or numbers
    # outside 0 and 1, are read through it and through nothing else.
    label_map: Mapping[Any, float] | None = None
    # The scale of ratings, and of the scores of objectives. A score outside of it is an error.
    score_range: tuple[float, float] | None = None
    objective_names: Sequence[str] | None = None  # in order, where `scores` are lists and no column names them
    long_text: int = 50_000  # from how many characters on a text is counted as very long; it is kept

    def __post_init__(self) -> None:
        for label, value in (self.label_map or {}).items():
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"label_map gives {label!r} {value!r}; give a number from 0 (bad) to 1 (good).")
        if self.score_range is not None and not self.score_range[0] < self.score_range[1]:
            raise ValueError(f"score_range is {self.score_range}; give the lowest score and the highest.")
        if self.long_text < 1:
            raise ValueError(f"long_text is {self.long_text}; give 1 or more characters.")


@dataclass(frozen=True)
class Format:
    """A format of feedback, and all that is only its own."""

    name: str
    # What it must have, by which it is recognized. Its texts are in `completion`, `completions`, `chosen`, `rejected`.
    columns: tuple[str, ...]
    # From a row to those of its values that change, and what is odd about it; a row with an oddity of `LEFT_OUT` is
    # left out. What is wrong is a `ValueError` that names the value.
    read: Callable[[Row, FeedbackSettings], Read]
    optional: tuple[str, ...] = ()  # what it may have
    lists: tuple[str, ...] = ()  # columns that hold lists, which a CSV can only hold as JSON
    signal: str | None = None  # the column in which rows must differ, or there is nothing to learn
    # Looks at all rows at once before they are read, where an error should show all values there are.
    check: Callable[[Dataset, FeedbackSettings], None] | None = None
    notes: Callable[[Dataset], Iterable[str]] = lambda rows: ()  # what is said of the values, in words
    # By the name of another format: what makes its rows of clean rows of this one.
    conversions: Mapping[str, Callable[..., Dataset]] = field(default_factory=dict)
    of_parts: bool = False  # `completions` are parts of one answer: no prompt is looked for inside them


# --- Reading values ---------------------------------------------------------------------------


def is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


def number(value: Any, name: str, low: float | None = None, bounds: tuple[float, float] | None = None) -> float | None:
    """A value as a number, `None` where it is missing.

    Errors call it by its `name`. It must not be below `low`, and lie in `bounds`, which are those of a `score_range`.
    """
    if is_missing(value):
        return None
    if not isinstance(value, numbers.Real):
        raise ValueError(
            f"{name} is {value!r:.60}, a {type(value).__name__}, and must be a number, without quotes or a list "
            "around it."
        )
    value = float(value)
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and must be a finite number. Leave the row out, or the value empty.")
    if low is not None and value < low:
        raise ValueError(f"{name} is {value:g}; it must be {low:g} or more.")
    if bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"{name} is {value:g}, outside the score_range from {bounds[0]:g} to {bounds[1]:g}. Correct the row or "
            "the range."
        )
    return value


def counts(row: Row, *names: str) -> Row:
    """The values of columns that are numbers of 0 or more."""
    return {name: number(row[name], name, low=0) for name in names}


# --- Notes ------------------------------------------------------------------------------------


def shown(values: Iterable[Any]) -> str:
    found = sorted(Counter(map(repr, values)).items())
    more = f" and {len(found) - MOST_SHOWN} more" if len(found) > MOST_SHOWN else ""
    return ", ".join(f"{value} ({count})" for value, count in found[:MOST_SHOWN]) + more


def range_note(values: Iterable[Any], what: str) -> str:
    known = [value for value in values if is_number(value)]
    if not known:
        return f"{what} are no numbers"
    low, high = min(known), max(known)
    if all(float(value).is_integer() for value in known):
        ordinal = "ordinal" if high - low <= MOST_RATINGS else "counts"
        return f"{low:g}..{high:g} whole numbers: {ordinal}"
    return f"{low:.4g}..{high:.4g}: continuous"


def count_note(lists: Iterable[Any], what: str) -> str:
    lengths = [len(value) for value in lists if isinstance(value, list)]
    low, high = min(lengths, default=0), max(lengths, default=0)
    return f"{low}{what}" if low == high else f"{low} to {high}{what}"


# --- Converting -------------------------------------------------------------------------------


def converted(
    dataset: Dataset,
    format: Format,
    make: Callable[[Row], Iterable[Row]],
    why: str = MISSING,
    used: Sequence[str] | None = None,
    source_row: bool = False,
) -> Dataset:
    """The rows that `make` gives of each row, in the order of the rows, with the columns that it does not use.

    Args:
        dataset ([`~datasets.Dataset`]), format ([`Format`]): Clean rows, and their format.
        make (`Callable`): From the used columns of one row to new rows, none, one or several.
        why (`str`, *optional*): What the log says of rows that give none.
        used (`Sequence[str]`, *optional*): The columns that are used up. Default: those that the format must have.
        source_row (`bool`, *optional*, defaults to `False`): Add a column that says of which row each was made.

    Raises:
        `ValueError`: if a column is missing, a new one is there already, or no row is left.
    """
    require_columns(dataset, format.columns, f"A conversion of {format.name}")
    gone = [name for name in dataset.column_names if name in (used or format.columns)]
    needed = {*gone, *format.columns}
    plain = dataset.with_format(None)
    rows: list[int] = []
    made: dict[str, list[Any]] = {}
    for place, row in enumerate(plain.select_columns([name for name in plain.column_names if name in needed])):
        for new in make(row):
            rows.append(place)
            for name, value in (new | ({"source_row": place} if source_row else {})).items():
                made.setdefault(name, []).append(value)
    if not rows:
        raise ValueError(f"None of {len(dataset)} rows is left after the conversion. Look at its settings.")
    left_out = len(dataset) - len(set(rows))
    if left_out:
        logger.warning("Left out %d of %d rows: %s.", left_out, len(dataset), why)
    clash = [name for name in made if name in dataset.column_names and name not in gone]
    if clash:
        raise ValueError(f"The conversion makes a column {clash[0]!r}, but the dataset has one. Rename it first.")
    return with_columns(plain.select(rows).remove_columns(gone), made)


def check_noise(**rates: float) -> None:
    """Refuse rates of wrong signs by which a sign would say nothing; `ValueError`."""
    if any(not 0 <= rate < 1 for rate in rates.values()) or sum(rates.values()) >= 1:
        given = " and ".join(f"{name} {rate}" for name, rate in rates.items())
        raise ValueError(f"The noise rates are {given}; give numbers from 0 on whose sum is below 1.")
