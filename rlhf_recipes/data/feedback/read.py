"""From rows of feedback to clean rows of one form: checked, counted, weighted, and in the format that is wanted."""

import inspect
import logging
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import is_blank, with_columns
from rlhf_recipes.data.feedback.dialogues import sides, split_prompt
from rlhf_recipes.data.feedback.formats import (
    CONVERSIONS,
    FORMATS,
    WEIGHT,
    Check,
    Feedback,
    FeedbackArguments,
    FeedbackFormat,
    Kind,
)
from rlhf_recipes.data.feedback.recognize import recognized
from rlhf_recipes.data.feedback.record import (
    EMPTY,
    LEFT_OUT,
    MISSING,
    FeedbackSettings,
    Read,
    Row,
    number,
    shown,
)
from rlhf_recipes.data.feedback.weights import add_weights
from rlhf_recipes.data.tables import NUMBERS
from rlhf_recipes.texts import as_text, is_conversational

logger = logging.getLogger(__name__)
DEFAULTS = FeedbackSettings()
MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")
LONG, NO_PROMPT = "very long text", "an empty prompt"
LOOKS_LIKE_MESSAGES = "a text that looks like messages in JSON"


def read_rows(rows: Dataset, args: FeedbackArguments) -> Feedback:
    """Check and clean rows as the options say, give them weights, and put them into another format.

    Votes are counted before a conversion takes them away; labels and groups after it, which may make them.

    Raises:
        `ValueError`: as [`normalize`], [`convert`] and [`~rlhf_recipes.data.feedback.weights.add_weights`].
    """
    feedback, dataset = recognized(rows, args.feedback_format)
    kind, wanted = feedback.kind, args.convert_to or feedback.kind
    options = args.convert_args or {}
    _check_conversion(kind, wanted, options)
    clean, found = _normalized(feedback, dataset, args.settings())
    if args.weights == "votes":
        clean = add_weights(clean, "votes")
    if wanted != kind:
        clean = CONVERSIONS[kind, wanted](clean, **options)
    if args.weights == "votes" and WEIGHT not in clean.column_names:
        raise ValueError(f"{kind} become {wanted} without their weights. Leave out weights.")
    if args.weights in ("labels", "groups"):
        clean = add_weights(clean, "labels" if args.weights == "labels" else "groups")
    return Feedback(clean, wanted, found)


def convert(
    dataset: Dataset, to: Kind, settings: FeedbackSettings = DEFAULTS, **options: Any
) -> tuple[Dataset, Check]:
    """Check and clean the rows, and put them into another format.

    Args:
        dataset ([`~datasets.Dataset`]): Feedback of any format.
        to (`str`): The format wanted. If it is the one there is, the rows are cleaned and that is all.
        settings ([`FeedbackSettings`], *optional*): How the rows are read.
        options: Passed to the conversion, such as `threshold` to `ratings_to_unpaired`.

    Raises:
        `ValueError`: As [`check`] and the conversion, and if there is none: the message names those there are.
    """
    feedback, rows = recognized(dataset, settings.format)
    _check_conversion(feedback.kind, to, options)
    clean, found = _normalized(feedback, rows, settings)
    return (clean if to == feedback.kind else CONVERSIONS[feedback.kind, to](clean, **options)), found


def normalize(dataset: Dataset, settings: FeedbackSettings = DEFAULTS) -> tuple[Dataset, Check]:
    """The rows that can be used, in one form: prompt and answers apart, numbers as floats, labels from 0 to 1.

    Args:
        dataset, settings: As in [`check`].

    Returns:
        `tuple[Dataset, Check]`: the rows in their order, with all other columns as they were, and what was found. A
        prompt that stood inside the answers becomes a column `prompt` of messages. `scores` become a mapping of name
        and number.

    Raises:
        `ValueError`: As [`check`].
    """
    return _normalized(*recognized(dataset, settings.format), settings)


def check(dataset: Dataset, settings: FeedbackSettings = DEFAULTS) -> Check:
    """Look at every row: count what is odd, and refuse what is wrong (docs/feedback_formats.md has the table).

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        settings ([`FeedbackSettings`], *optional*): How they are read.

    Raises:
        `ValueError`: for a value that cannot be, with its row; for rows that all say the same (one class), and where
            no row is left.
    """
    return _checked(*recognized(dataset, settings.format), settings)[0]


def _check_conversion(kind: Kind, to: Kind, options: Mapping[str, Any]) -> None:
    """Refuse a conversion that there is not, and options that it does not have or lacks; `ValueError`."""
    if kind == to:
        if options:
            raise ValueError(f"The rows are {kind} already, so {', '.join(options)} would change nothing.")
        return
    there = FORMATS[kind].conversions
    if to not in there:
        two = next((mid for mid in there if to in FORMATS[mid].conversions), None)
        step = f" Convert to {two} first." if two else ""
        raise ValueError(
            f"No conversion from {kind} to {to!r}. From {kind} there is: {', '.join(there) or 'none'}.{step}"
        )
    taken = list(inspect.signature(there[to]).parameters.values())[1:]
    unknown = [name for name in options if name not in {option.name for option in taken}]
    missing = [option.name for option in taken if option.default is option.empty and option.name not in options]
    if unknown or missing:
        what = f"has no option {unknown[0]!r}" if unknown else f"needs the option {missing[0]!r}"
        names = ", ".join(option.name for option in taken) or "none"
        raise ValueError(f"{there[to].__name__} {what}. Its options are: {names}.")


# --- All rows ---------------------------------------------------------------------------------


def _normalized(feedback: FeedbackFormat, dataset: Dataset, settings: FeedbackSettings) -> tuple[Dataset, Check]:
    found, columns = _checked(feedback, dataset, settings)
    for why, count in found.left_out.items():
        logger.warning("Left out %d of %d rows of feedback: %s.", count, found.rows, why)
    for what, count in found.noted.items():
        logger.info("%d of %d rows of feedback, kept: %s.", count, found.rows, what)
    order = dict.fromkeys(["prompt"] if "prompt" in columns and not feedback.has_prompt else [])
    order |= dict.fromkeys(dataset.column_names)
    clean = dataset if len(found.kept) == found.rows else dataset.select(found.kept)
    clean = clean.remove_columns([name for name in columns if name in dataset.column_names])
    return with_columns(clean, columns).select_columns(list(order)), found


def _checked(
    feedback: FeedbackFormat, dataset: Dataset, settings: FeedbackSettings
) -> tuple[Check, dict[str, list[Any]]]:
    """What was found, and the clean values of those columns that change."""
    format = FORMATS[feedback.kind]
    rows = dataset.select_columns([*feedback.columns, *(["prompt"] if feedback.has_prompt else [])])
    _check_numbers(rows)
    if format.check is not None:
        format.check(rows, settings)
    left_out: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    kept: list[int] = []
    columns: dict[str, list[Any]] = {}
    seen: dict[str, bool] = {}
    for place, row in enumerate(rows):
        try:
            clean, odd = _read_row(row, place, feedback, settings)
            reasons = LEFT_OUT.intersection(odd)
            if not reasons:
                _check_alike(row | clean, seen)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Row {place} of the {feedback.kind}: {error}") from None
        if reasons:
            left_out.update(what for what in dict.fromkeys(odd) if what in reasons)
            continue
        noted.update(dict.fromkeys(odd, 1))
        kept.append(place)
        for name, value in clean.items():
            columns.setdefault(name, []).append(value)
    found = Check(feedback, len(dataset), kept, dict(left_out), dict(noted))
    _check_whole(found, columns)
    return found, columns


def _check_numbers(rows: Dataset) -> None:
    """Refuse columns in which numbers are texts, and show the texts that are none; `ValueError`."""
    for name in NUMBERS:
        texts = [value for value in rows[name] if isinstance(value, str)] if name in rows.column_names else []
        strangers = [text for text in texts if not _reads_as_number(text)]
        if strangers:
            raise ValueError(
                f"Column {name!r} must hold numbers, but has {shown(strangers)}. Correct them, with a point and no "
                "comma before decimals, or leave the cells empty."
            )
        if texts:
            raise ValueError(
                f"Column {name!r} must hold numbers, but holds them as text, such as {texts[0]!r}. Write them without "
                f"quotes, or convert the column: `dataset.cast_column({name!r}, Value('float64'))`."
            )


def _reads_as_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_whole(found: Check, columns: Mapping[str, list[Any]]) -> None:
    if not found.kept:
        where = ", ".join(f"{why} ({count})" for why, count in found.left_out.items())
        raise ValueError(f"None of the {found.rows} rows of {found.format.kind} can be used: {where}.")
    if not any(columns.get(WEIGHT, [1])):
        raise ValueError(f"The weight of all {len(found.kept)} rows is 0, so none would count. Correct the column.")
    name = FORMATS[found.format.kind].signal
    if name is None:
        return
    distinct = {one for value in columns[name] for one in (value if isinstance(value, list) else [value])} - {None}
    if len(distinct) < 2:
        only = f"{distinct.pop():g}" if distinct else "missing"
        raise ValueError(
            f"There is one class only: in all {len(found.kept)} rows the {name} is {only}, so there is nothing to "
            "tell apart. Add rows of the other kind."
        )


# --- One row ----------------------------------------------------------------------------------


def _read_row(row: Row, place: int, feedback: FeedbackFormat, settings: FeedbackSettings) -> Read:
    """The values of a row that change, and what is odd about it; nothing of it if it is left out.

    Raises:
        `ValueError`: if something is wrong. It does not name the row.
    """
    clean: Row = {}
    odd: list[str] = []
    if feedback.inside is not None:
        clean, odd = split_prompt(row, feedback.inside)
        row = row | clean
    if not LEFT_OUT.intersection(odd):
        odd += _odd_texts(row, place, settings)
    if LEFT_OUT.intersection(odd):
        return {}, odd
    values, more = FORMATS[feedback.kind].read(row, settings)
    odd += more
    if WEIGHT in row:
        values[WEIGHT] = number(row[WEIGHT], WEIGHT, low=0)
        odd += [MISSING] if values[WEIGHT] is None else []
    return clean | values, odd


def _odd_texts(row: Row, place: int, settings: FeedbackSettings) -> list[str]:
    odd: list[str] = []
    if "completions" in row and not isinstance(row["completions"], list | None):
        raise ValueError(f"completions must be a list of texts, but is {row['completions']!r:.60}.")
    for name, values in sides(row).items():
        if name != "completions" and isinstance(row[name], list) and any(isinstance(one, str) for one in row[name]):
            raise ValueError(
                f"{name} is a list of {len(row[name])} texts, and must be one text, or messages. Write a row for each "
                "pair; several answers of one prompt, best first, are `completions` with `ranks`."
            )
        if row[name] is None or any(is_blank(value, name, place) for value in values):
            return [EMPTY]
        if any(len(as_text(value)) >= settings.long_text for value in values):
            odd.append(LONG)
        if any(isinstance(value, str) and MESSAGES_AS_TEXT.match(value) for value in values):
            odd.append(LOOKS_LIKE_MESSAGES)
    if "prompt" in row and is_blank(row["prompt"], "prompt", place):
        odd.append(NO_PROMPT)
    return odd


def _check_alike(row: Row, seen: dict[str, bool]) -> None:
    """Refuse text where there were messages before, and the other way round; `ValueError`.

    `seen` says whether answers and prompts were messages in the rows before; what this row has is noted in it.
    """
    answers = [("an answer", value) for values in sides(row).values() for value in values]
    for what, value in answers + ([("a prompt", row["prompt"])] if row.get("prompt") else []):
        if seen.setdefault(what, is_conversational(value)) != is_conversational(value):
            here, before = ("messages", "text") if is_conversational(value) else ("text", "messages")
            raise ValueError(
                f"{what} is {here}, and those before it are {before}. Make all of them text, or all messages."
            )
