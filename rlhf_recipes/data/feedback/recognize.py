"""What a dataset's feedback is, by its columns, and what is special about its values."""

import json
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns, with_columns
from rlhf_recipes.data.feedback.dialogues import inside_of, own_columns, sides
from rlhf_recipes.data.feedback.formats import COLUMNS, FORMATS, WEIGHT, FeedbackFormat, Kind
from rlhf_recipes.data.feedback.record import ANSWERS, Format, is_number
from rlhf_recipes.data.local_files import without_decimals
from rlhf_recipes.starting.options import check_choice
from rlhf_recipes.texts import is_conversational

KEYS = ("chosen", "completion", "completions", "prompt")  # what tells a row, where it has no prompt
LOOK_AT = 10  # rows that show whether the prompt stands inside the answers

# How a list looks in a cell of a CSV.
EXAMPLES: Mapping[str, str] = {
    "completions": '["Red.", "Blue."]',
    "ranks": "[1, 2]",
    "votes": "[4, 5]",
    "labels": "[true, false]",
    "scores": '{"helpful": 4}',
    "objectives": '["helpful"]',
}


def recognize(dataset: Dataset, format: Kind | None = None) -> FeedbackFormat:
    """Tell from the columns which feedback this is, and from the values what is special about it.

    Args:
        dataset ([`~datasets.Dataset`]): One row at least.
        format (`str`, *optional*): Which format it is, for columns that fit several.

    Raises:
        `ValueError`: if the columns fit no format (it says which are near), or several (it says how to choose).

    Example:
        >>> str(recognize(Dataset.from_dict({"completion": ["Fine.", "Dull."], "score": [5, 2]})))
        'ratings (completion, score; text, without prompt): 2..5 whole numbers: ordinal'
    """
    return recognized(dataset, format)[0]


def recognized(dataset: Dataset, kind: Kind | None) -> tuple[FeedbackFormat, Dataset]:
    """What the feedback is, and the rows in our columns, with lists where lists must be; as [`recognize`]."""
    if not len(dataset):
        raise ValueError("The dataset has no rows, so there is no feedback in it.")
    # lists, also where the user wants tensors
    dataset, laid_out = own_columns(without_decimals(dataset.with_format(None)))
    if kind is None:
        kind = _kind_of(dataset)
    else:
        check_choice("format", kind, FORMATS)
        require_columns(dataset, COLUMNS[kind], f"Feedback of the format {kind!r}")
    format = FORMATS[kind]
    dataset = _with_lists(dataset, format)
    columns = (*format.columns, *(name for name in (*format.optional, WEIGHT) if name in dataset.column_names))
    twice = [name for name in ("prompt", *columns) if f"{name}.1" in dataset.column_names]
    if twice:
        raise ValueError(
            f"There are two columns {twice[0]!r}: the second of a CSV is read as '{twice[0]}.1'. Remove or rename one."
        )
    answers = dataset.select_columns([name for name in columns if name in ANSWERS][:1])
    first = next(
        (text for row in answers for texts in sides(row).values() for text in texts if text is not None), None
    )
    # one of the first rows may be broken
    rows = () if format.of_parts else dataset.select(range(min(LOOK_AT, len(dataset))))
    inside = next((found for found in map(inside_of, rows) if found is not None), None)
    if inside == "dialogues":
        laid_out = (*laid_out, "HH-RLHF dialogues, split into prompt and answer when read")
    elif inside is not None:
        laid_out = (*laid_out, "the prompt stands inside the answers, split off when read")
    return FeedbackFormat(
        kind,
        columns,
        conversational=first is not None and is_conversational(first),
        has_prompt="prompt" in dataset.column_names,
        notes=(*laid_out, *format.notes(dataset)),
        inside=inside,
    ), dataset


def _kind_of(dataset: Dataset) -> Kind:
    present = dataset.column_names
    half = {"chosen_votes", "rejected_votes"}.intersection(present)
    if len(half) == 1:
        raise ValueError(
            f"There is a column {half.pop()!r}, but not the votes of the other side. Add chosen_votes or "
            "rejected_votes, or say format='pairs' to do without."
        )
    fits = [kind for kind, columns in COLUMNS.items() if set(columns) <= set(present)]
    # votes are pairs too: what asks for more columns is the better name
    fits = [kind for kind in fits if not any(set(COLUMNS[kind]) < set(COLUMNS[other]) for other in fits)]
    if len(fits) == 1:
        return fits[0]
    if not fits and len(present) == 1 and re.search(r"[;\t|]", present[0]):
        raise ValueError(
            f"The only column is {present[0]!r}, so the file is not separated by commas. Write it as a CSV with "
            "commas, or as JSONL."
        )
    if not fits:
        missing = {kind: len(set(columns) - set(present)) for kind, columns in COLUMNS.items()}
        near = [COLUMNS[kind] for kind in COLUMNS if missing[kind] == min(missing.values())]
        require_columns(dataset, near, "Feedback")  # raises, and says what to rename
    named = " and ".join(f"{kind} ({', '.join(COLUMNS[kind])})" for kind in fits)
    raise ValueError(
        f"The columns {', '.join(present)} fit {len(fits)} formats: {named}. Choose with "
        f"{' or '.join(f'format={kind!r}' for kind in fits)}, or remove the columns that do not count."
    )


def _with_lists(dataset: Dataset, format: Format) -> Dataset:
    """Read lists that stand in the cells of a CSV as JSON. Where all are lists, it is the same dataset.

    Only columns that must be lists are read so: a completion that looks like JSON is a text.

    Raises:
        `ValueError`: if a cell is a text and no JSON list (for `scores`, no mapping either). It names the row.
    """
    order = dataset.column_names
    for name in format.lists:
        if name in order and any(isinstance(value, str) for value in dataset[name]):
            values = [_from_json(value, name, number) for number, value in enumerate(dataset[name])]
            dataset = with_columns(dataset.remove_columns([name]), {name: values})
    return dataset.select_columns(order)


def _from_json(value: Any, name: str, number: int) -> Any:
    if not isinstance(value, str) or not value.strip():
        return None if isinstance(value, str) else value
    try:
        found = json.loads(value)
    except json.JSONDecodeError:
        found = None
    if isinstance(found, list) or is_number(found) or (name == "scores" and isinstance(found, dict)):
        return found  # a number is refused where its row is read, and says what it may have been meant for
    raise ValueError(
        f"Row {number}: {name} must be a list, but is the text {value!r:.60}. A CSV can hold a list as JSON, such as "
        f"{EXAMPLES.get(name, '[1, 2]')} (in quotes, each quote inside doubled); JSONL and parquet hold lists as they "
        "are."
    )


def row_keys(dataset: Dataset) -> list[str]:
    """What each row is about: its prompt, so that all that was said of one prompt stays together, or else its text.

    For drawing shares of rows and telling whether two rows are about the same. Messages and lists are written as JSON.
    A row whose prompt is missing or empty is about its own text: the completion, the chosen text, or all completions.

    Args:
        dataset ([`~datasets.Dataset`]): Feedback of any format, as it is or normalized.

    Raises:
        `ValueError`: if there is no column with texts.
    """
    texts = next((name for name in KEYS if name in dataset.column_names), None)
    if texts is None:
        require_columns(dataset, [(name,) for name in KEYS], "Telling rows apart")
    columns = [name for name in ("prompt", texts) if name in dataset.column_names]
    rows = zip(*(dataset.with_format(None)[name] for name in columns), strict=True)
    keys = (next((value for value in row if value), row[-1]) for row in rows)
    return [key if isinstance(key, str) else json.dumps(key) for key in keys]
