"""What a dataset's feedback is, by its columns, whether its rows are sound, and the rows in one clean form."""

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.dialogues import inside_of, own_columns
from rlhf_recipes.data.feedback.formats import (
    COLUMNS,
    LEFT_OUT,
    OPTIONAL,
    SIGNAL,
    TEXTS,
    WEIGHT,
    Check,
    FeedbackFormat,
    FeedbackSettings,
    Inside,
    Kind,
    is_number,
    shown,
)
from rlhf_recipes.data.feedback.rows import check_labels, check_numbers, read_row, texts_of_two_kinds, with_lists
from rlhf_recipes.data.local_files import without_decimals
from rlhf_recipes.texts import is_conversational

logger = logging.getLogger(__name__)
DEFAULTS = FeedbackSettings()
MOST_RATINGS = 20  # whole numbers over a wider range than this are no ordinal scale
KEYS = ("chosen", "completion", "completions", "prompt")  # what tells a row, where it has no prompt
LOOK_AT = 10  # rows that show whether the prompt stands inside the answers


# --- Recognizing ------------------------------------------------------------------------------


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
    return _prepared(dataset, format)[0]


def _prepared(dataset: Dataset, format: Kind | None) -> tuple[FeedbackFormat, Dataset]:
    """What the feedback is, and the rows in our columns, with lists where lists must be."""
    if not len(dataset):
        raise ValueError("The dataset has no rows, so there is no feedback in it.")
    # lists, also where the user wants tensors
    dataset, laid_out = own_columns(without_decimals(dataset.with_format(None)))
    kind = _kind_of(dataset, format)
    dataset = with_lists(dataset, kind)
    return _described(dataset, kind, laid_out), dataset


def _described(dataset: Dataset, kind: Kind, laid_out: tuple[str, ...]) -> FeedbackFormat:
    optional = (*OPTIONAL.get(kind, ()), WEIGHT)
    columns = (*COLUMNS[kind], *(name for name in optional if name in dataset.column_names))
    twice = [name for name in ("prompt", *columns) if f"{name}.1" in dataset.column_names]
    if twice:
        raise ValueError(
            f"There are two columns {twice[0]!r}: the second of a CSV is read as '{twice[0]}.1'. Remove or rename one."
        )
    values = _first_text(dataset, next(name for name in columns if name in TEXTS))
    inside = None if kind == "steps" else _prompt_inside(dataset)
    return FeedbackFormat(
        kind,
        columns,
        conversational=values is not None and is_conversational(values),
        has_prompt="prompt" in dataset.column_names,
        notes=(*laid_out, *_notes(dataset, kind, inside)),
        inside=inside,
    )


def _kind_of(dataset: Dataset, wanted: Kind | None) -> Kind:
    present = set(dataset.column_names)
    if wanted is not None:
        FeedbackSettings(format=wanted)  # refuses what is no format
        require_columns(dataset, COLUMNS[wanted], f"Feedback of the format {wanted!r}")
        return wanted
    half = present & {"chosen_votes", "rejected_votes"}
    if len(half) == 1:
        raise ValueError(
            f"There is a column {half.pop()!r}, but not the votes of the other side. Add chosen_votes or "
            "rejected_votes, or say format='pairs' to do without."
        )
    fits = [kind for kind, columns in COLUMNS.items() if set(columns) <= present]
    # votes are pairs too: what asks for more columns is the better name
    fits = [kind for kind in fits if not any(set(COLUMNS[kind]) < set(COLUMNS[other]) for other in fits)]
    if len(fits) == 1:
        return fits[0]
    separated = [name for name in dataset.column_names if re.search(r"[;\t|]", name)]
    if not fits and len(dataset.column_names) == 1 and separated:
        raise ValueError(
            f"The only column is {separated[0]!r}, so the file is not separated by commas. Write it as a CSV with "
            "commas, or as JSONL."
        )
    if not fits:
        missing = {kind: len(set(columns) - present) for kind, columns in COLUMNS.items()}
        near = [COLUMNS[kind] for kind in COLUMNS if missing[kind] == min(missing.values())]
        require_columns(dataset, near, "Feedback")  # raises, and says what to rename
    named = " and ".join(f"{kind} ({', '.join(COLUMNS[kind])})" for kind in fits)
    raise ValueError(
        f"The columns {', '.join(dataset.column_names)} fit {len(fits)} formats: {named}. Choose with "
        f"{' or '.join(f'format={kind!r}' for kind in fits)}, or remove the columns that do not count."
    )


def _first_text(dataset: Dataset, column: str) -> Any:
    """The first value that is there; of a list of completions, its first."""
    for value in dataset[column]:
        is_list = column == "completions" and isinstance(value, list)
        value = (value[0] if value else None) if is_list else value
        if value is not None:
            return value
    return None


def _prompt_inside(dataset: Dataset) -> Inside | None:
    """How one of the first rows holds its prompt; one of them may be broken."""
    first = (inside_of(row) for row in dataset.select(range(min(LOOK_AT, len(dataset)))))
    return next((inside for inside in first if inside is not None), None)


def _notes(dataset: Dataset, kind: Kind, inside: str | None) -> Iterable[str]:
    if inside == "dialogues":
        yield "HH-RLHF dialogues, split into prompt and answer when read"
    elif inside is not None:
        yield "the prompt stands inside the answers, split off when read"
    if kind == "ratings":
        yield _range_note(dataset["score"], "scores")
        if "votes" in dataset.column_names:
            yield f"{_count_note(dataset['votes'])} votes a row"
    elif kind == "votes":
        sides = zip(dataset["chosen_votes"], dataset["rejected_votes"], strict=True)
        yield f"{sum(a is not None and a == b for a, b in sides)} of {len(dataset)} rows are ties"
    elif kind == "rankings":
        ties = sum(isinstance(ranks, list) and len(set(ranks)) < len(ranks) for ranks in dataset["ranks"])
        yield f"{_count_note(dataset['completions'])} completions a row"
        yield f"ties in {ties} of {len(dataset)} rows"
    elif kind == "best_worst":
        yield f"{_count_note(dataset['completions'])} completions a row"
    elif kind == "unpaired":
        yield _label_note(dataset["label"])
    elif kind == "dwell":
        yield _range_note(dataset["dwell_seconds"], "seconds")
    elif kind == "objectives":
        rows = [scores for scores in dataset["scores"] if scores]
        names = dict.fromkeys(name for scores in rows if isinstance(scores, dict) for name in scores)
        yield f"objectives {', '.join(names)}" if names else f"{_count_note(rows)} scores a row, in lists"
    elif kind == "steps":
        yield f"{_count_note(dataset['completions'])} steps a row"
        yield _label_note([label for labels in dataset["labels"] for label in labels or ()])


def _range_note(values: Iterable[Any], what: str) -> str:
    known = [value for value in values if is_number(value)]
    if not known:
        return f"{what} are no numbers"
    low, high = min(known), max(known)
    if all(float(value).is_integer() for value in known):
        ordinal = "ordinal" if high - low <= MOST_RATINGS else "counts"
        return f"{low:g}..{high:g} whole numbers: {ordinal}"
    return f"{low:.4g}..{high:.4g}: continuous"


def _count_note(lists: Iterable[Any]) -> str:
    counts = [len(value) for value in lists if isinstance(value, list)]
    low, high = min(counts, default=0), max(counts, default=0)
    return f"{low}" if low == high else f"{low} to {high}"


def _label_note(labels: Iterable[Any]) -> str:
    known = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in known):
        return f"labels are texts, {shown(known)}: label_map must say what they count"
    if not all(is_number(label) and 0 <= label <= 1 for label in known):
        return f"labels are not all within 0 and 1, {shown(known)}: label_map must say what they count"
    return "labels are 0 and 1" if set(known) <= {0, 1} else "labels from 0 to 1: soft"


# --- Checking and normalizing -----------------------------------------------------------------


def check(dataset: Dataset, settings: FeedbackSettings = DEFAULTS) -> Check:
    """Look at every row: count what is odd, and refuse what is wrong.

    Left out and counted: an empty text, a pair of identical texts, a missing value or votes that are missing or all 0,
    a ranking of fewer than two or with all ranks tied, best and worst in the same place, a text never shown, and
    dialogues without a common beginning or an answer at the end.

    Kept and counted: ties, texts of 50,000 characters or more, the same completion twice in a ranking, dialogues that
    part before the last answer, objectives without a score, steps without a label.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        settings ([`FeedbackSettings`], *optional*): How they are read.

    Raises:
        `ValueError`: for NaN and infinity, negative votes, clicks or seconds, more clicks than views, scores out of
            the stated range, ranks below 1, lists of unequal length, places outside the list, labels that are texts or
            outside 0 and 1 without a `label_map`, rows that all say the same (one class), and no row left. The message
            names the row.
    """
    return _read(dataset, settings)[0]


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
    found, columns, old = _read(dataset, settings)
    for why, count in found.left_out.items():
        logger.warning("Left out %d of %d rows of feedback: %s.", count, found.rows, why)
    for what, count in found.noted.items():
        logger.info("%d of %d rows of feedback, kept: %s.", count, found.rows, what)
    order = [*old.column_names] if "prompt" in old.column_names or "prompt" not in columns else ["prompt"]
    order += [name for name in old.column_names if name not in order]
    clean = old if len(found.kept) == found.rows else old.select(found.kept)
    clean = clean.remove_columns([name for name in columns if name in old.column_names])
    for name, values in columns.items():
        clean = clean.add_column(name, values) if clean.column_names else Dataset.from_dict({name: values})
    return clean.select_columns(order), found


def _read(dataset: Dataset, settings: FeedbackSettings) -> tuple[Check, dict[str, list[Any]], Dataset]:
    """What was found, the clean values of those columns that change, and the rows that have the others."""
    feedback, dataset = _prepared(dataset, settings.format)
    names = [*feedback.columns, *(["prompt"] if feedback.has_prompt else [])]
    rows = dataset.select_columns(names)
    check_numbers(rows)
    if feedback.kind in ("unpaired", "steps"):
        check_labels(rows, feedback.kind, settings)
    left_out: Counter[str] = Counter()
    noted: Counter[str] = Counter()
    kept: list[int] = []
    columns: dict[str, list[Any]] = {}
    seen: dict[str, bool] = {}
    for number, row in enumerate(rows):
        try:
            clean, odd = read_row(row, number, feedback, settings)
        except (ValueError, TypeError) as error:
            raise ValueError(f"Row {number} of the {feedback.kind}: {error}") from None
        reasons = [what for what in dict.fromkeys(odd) if what in LEFT_OUT]
        left_out.update(reasons)
        if reasons:
            continue
        mixed = texts_of_two_kinds(row | clean, seen)
        if mixed:
            raise ValueError(f"Row {number} of the {feedback.kind}: {mixed}. Make all of them text, or all messages.")
        noted.update(list(dict.fromkeys(odd)))
        kept.append(number)
        for name, value in clean.items():
            columns.setdefault(name, []).append(value)
    found = Check(feedback, len(dataset), kept, dict(left_out), dict(noted))
    _check_whole(found, columns)
    return found, columns, dataset


def _check_whole(found: Check, columns: Mapping[str, list[Any]]) -> None:
    if not found.kept:
        where = ", ".join(f"{why} ({count})" for why, count in found.left_out.items())
        raise ValueError(f"None of the {found.rows} rows of {found.format.kind} can be used: {where}.")
    if not any(columns.get(WEIGHT, [1])):
        raise ValueError(f"The weight of all {len(found.kept)} rows is 0, so none would count. Correct the column.")
    name = SIGNAL.get(found.format.kind)
    if name is None:
        return
    values = columns[name]
    flat = [label for labels in values for label in labels] if name == "labels" else values
    distinct = {value for value in flat if value is not None}
    if len(distinct) < 2:
        only = f"{distinct.pop():g}" if distinct else "missing"
        raise ValueError(
            f"There is one class only: in all {len(found.kept)} rows the {name} is {only}, so there is nothing to "
            "tell apart. Add rows of the other kind."
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
