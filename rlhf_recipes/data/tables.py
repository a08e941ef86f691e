"""Tables of text, CSV and TSV: every row has the fields of the header, and no cell is read by guess.

A table has no types, so that the name of a column decides: `NUMBERS` hold numbers, `label` numbers or truth values,
and all other cells are the text that stands there, be it `007`, `NA` or `4.50`. An empty cell is a missing value.
"""

import csv
import io
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from rlhf_recipes.texts import sentence

Columns: TypeAlias = dict[str, list[Any]]

# What must be numbers, in feedback of any format.
NUMBERS = (
    *("score", "margin", "target", "chosen_votes", "rejected_votes", "best", "worst", "clicks", "views"),
    *("dwell_seconds", "weight"),
)
LABEL = "label"

# How R, pandas and databases write a number that is not there; a text of these letters stays a text.
NO_NUMBER = frozenset({"nan", "na", "n/a", "null", "none"})
TRUTH = {"true": True, "false": False}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?", re.IGNORECASE)
_WHOLE = re.compile(r"[+-]?\d{1,18}")
SEPARATORS: Mapping[str, str] = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}


def parse_table(text: str, delimiter: str = ",") -> Columns:
    r"""The columns of a table, each with one value for each row; rows without a character are passed over.

    Args:
        text (`str`): The whole file. Fields may stand in quotes, with each quote inside doubled, and hold line breaks.
        delimiter (`str`, *optional*, defaults to `","`): What stands between two fields.

    Raises:
        `ValueError`: if a row has more or fewer fields than the header, a quote is not closed, or two columns have one
            name. It names the line.

    Example:
        >>> parse_table('completion,score\n"Fine, really",4\n007,\n')
        {'completion': ['Fine, really', '007'], 'score': [4, None]}
    """
    records = list(_records(text, delimiter))
    if not records:
        return {}
    _, header = records.pop(0)
    names = [name.strip() or f"Unnamed: {place}" for place, name in enumerate(header)]  # as pandas names an index
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise ValueError(f"line 1: there are two columns {twice!r}. Remove or rename one.")
    _check_fields(records, names, delimiter)
    return {name: _typed(name, [cells[place] for _, cells in records]) for place, name in enumerate(names)}


def _records(text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Each row with the line on which it begins."""
    limit = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a text may be longer than the 128 KB that csv allows
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"line {begins}: {sentence(error)} A field that begins with a quote ends with one, and each quote inside "
            'it is doubled: "She said ""no"", twice".'
        ) from None
    finally:
        csv.field_size_limit(limit)


def _check_fields(records: list[tuple[int, list[str]]], names: list[str], delimiter: str) -> None:
    wrong = [(line, len(cells)) for line, cells in records if len(cells) != len(names)]
    if not wrong:
        return
    line, fields = wrong[0]
    others = [word for mark, word in SEPARATORS.items() if mark != delimiter and len(names) == 1 and mark in names[0]]
    separator = SEPARATORS.get(delimiter, repr(delimiter))
    remedy = (
        f"The header has no {separator} but {others[0]}: write the file with {separator}, or as JSONL."
        if others
        else f"Fields are separated by {separator}: a text that holds some must stand in quotes, with each quote "
        "inside doubled. JSONL has no such rule."
    )
    raise ValueError(
        f"line {line}: {fields} field{'s' * (fields != 1)}, where the header has {len(names)} ({', '.join(names)}); "
        f"so in {len(wrong)} of {len(records)} rows. {remedy}"
    )


def _typed(name: str, cells: list[str]) -> list[Any]:
    """Numbers and truth values where the name asks for them and all cells are such; else texts, as they stand."""
    if name in NUMBERS or name == LABEL:
        words = [cell.strip().lower() for cell in cells]
        there = [word for word in words if word and word not in NO_NUMBER]
        if all(_NUMBER.fullmatch(word) for word in there):
            kind = int if all(_WHOLE.fullmatch(word) for word in there) else float
            return [kind(word) if word and word not in NO_NUMBER else None for word in words]
        if name == LABEL and all(word in TRUTH for word in there):
            return [TRUTH.get(word) for word in words]
    return [cell or None for cell in cells]
