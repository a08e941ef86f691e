"""Columns of a dataset: what they are called, which format they make, which rows say nothing."""

import difflib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, cast

from datasets import Dataset

from rlhf_recipes.data.loading import VISIBLE, logger
from rlhf_recipes.texts import Text, is_conversational

Format = Literal["pairs", "ratings", "prompts"]
FORMAT_COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "ratings": ("completion", "score"),
    "prompts": ("prompt",),
}

# What others call these columns where the spelling alone would not tell.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "instruction", "input", "text"),
    "completion": ("response", "answer", "output", "reply", "text", "review"),
    "chosen": ("preferred", "winner", "accepted", "better"),
    "rejected": ("dispreferred", "loser", "worse"),
    "score": ("rating", "reward", "stars", "grade", "points"),
    "votes": ("ratings", "annotations"),
    "label": ("class", "good", "is_good", "liked", "thumbs_up", "feedback"),
    "completions": ("responses", "answers", "outputs", "replies", "candidates", "texts", "steps"),
    "ranks": ("ranking", "order", "positions"),
    "best": ("best_index", "most"),
    "worst": ("worst_index", "least"),
    "scores": ("aspects", "attributes", "criteria", "rewards"),
    "labels": ("correct", "correctness", "step_labels"),
    "clicks": ("clicked", "click_count"),
    "views": ("impressions", "shown", "displays"),
    "dwell_seconds": ("dwell", "dwell_time", "seconds", "duration", "time_on_page", "reading_time"),
    "chosen_votes": ("wins", "votes_for", "preferred_votes"),
    "rejected_votes": ("losses", "votes_against", "dispreferred_votes"),
}


def detect_format(column_names: Iterable[str]) -> Format:
    """Tell what kind of data this is from its columns.

    Returns:
        `str`: `"pairs"` (`chosen`, `rejected`), else `"ratings"` (`completion`, `score`, perhaps `votes`), else
        `"prompts"` (`prompt`).

    Raises:
        `ValueError`: if the columns are of no known format.

    Example:
        >>> detect_format(["prompt", "chosen", "rejected"]), detect_format(["prompt", "id"])
        ('pairs', 'prompts')
    """
    present = list(column_names)
    for name, columns in FORMAT_COLUMNS.items():
        if set(columns) <= set(present):
            return name
    raise ValueError(_missing_columns(present, list(FORMAT_COLUMNS.values()), "The data"))


def require_columns(
    dataset: Dataset, needed: Sequence[str] | Sequence[Sequence[str]], what_for: str
) -> tuple[str, ...]:
    """Check that the columns are there before anything is tokenized.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        needed (`Sequence[str]` or `Sequence[Sequence[str]]`):
            The columns, or alternatives of them, the preferred one first.
        what_for (`str`): Who needs them; the first words of the error, such as `"PPO"`.

    Returns:
        `tuple[str, ...]`: The first alternative that is there in full.

    Raises:
        `ValueError`: if none is. It says which exist, which are near, and how to rename.
    """
    alternatives = [needed] if all(isinstance(column, str) for column in needed) else needed
    choices = [tuple(cast(Sequence[str], columns)) for columns in alternatives]
    for columns in choices:
        if set(columns) <= set(dataset.column_names):
            return columns
    raise ValueError(_missing_columns(dataset.column_names, choices, what_for))


def _missing_columns(present: Sequence[str], choices: Sequence[Sequence[str]], what_for: str) -> str:
    wanted = ", or ".join(" and ".join(f"'{column}'" for column in columns) for columns in choices)
    message = f"{what_for} needs the columns {wanted}. The dataset has: {', '.join(present) or 'none'}."
    free = [name for name in present if not any(name in columns for columns in choices)]
    tried = [_renames(columns, present, free) for columns in choices]
    renames, left = min(tried, key=lambda one: (not one[0], len(one[1]), len(one[0])))
    if left == ["rejected"] and "chosen" in renames.values():  # a verdict more often than a text
        (verdict,) = (old for old, new in renames.items() if new == "chosen")
        return (
            f"{message} If {verdict!r} says which of two answers is the better one, write that answer into a column "
            "'chosen' and the other one into 'rejected', row by row. If it holds the better answers themselves, "
            f"`dataset.rename_column({verdict!r}, 'chosen')`, and name the column with the worse ones 'rejected'."
        )
    if renames:
        calls = ", ".join(f"`dataset.rename_column({old!r}, {new!r})`" for old, new in renames.items())
        still = f" Still missing is then {' and '.join(map(repr, left))}." if left else ""
        return f"{message} Perhaps {calls} and save it, or rename them in the file.{still}"
    return f"{message} Rename columns with `dataset.rename_column(old, new)` and save it, or in the file."


def _renames(columns: Sequence[str], present: Sequence[str], free: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Which columns that are free might be meant by those of one format, and which of these are then still missing."""
    renames: dict[str, str] = {}
    missing = [column for column in columns if column not in present]
    for column in missing:
        near = _nearest_column(column, [name for name in free if name not in renames])
        if near:
            renames[near] = column
    return renames, [column for column in missing if column not in renames.values()]


def _nearest_column(column: str, present: Sequence[str]) -> str | None:
    lowered = {name.lower().strip(): name for name in present}
    synonyms = [word for word in SYNONYMS.get(column, ()) if word in lowered]
    near = difflib.get_close_matches(column, lowered, n=1, cutoff=0.7) or synonyms
    return lowered[near[0]] if near else None


def drop_blank(dataset: Dataset, columns: Sequence[str], name: str | None = None) -> tuple[Dataset, int]:
    """Leave out rows in which one of the columns says nothing, and log how many.

    Text is blank if it is `None` or has nothing but white space and zero-width characters. A conversation is blank if
    it has no messages, or if its last message, which is the one to answer or to learn, has neither text nor tool
    calls.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        columns (`Sequence[str]`): The columns that must say something.
        name (`str`, *optional*): What the log and errors call the dataset.

    Returns:
        `tuple[Dataset, int]`: The other rows in their order, and how many were left out.

    Raises:
        `ValueError`: if a column does not exist, or if no row is left.
        `TypeError`: if a column holds neither text nor messages.
    """
    require_columns(dataset, columns, "Looking for blank rows")
    blank_in: Counter[str] = Counter()
    kept, first_blank = [], None
    for row_number, row in enumerate(dataset.select_columns(list(columns))):
        blank = [column for column in columns if is_blank(row[column], column, row_number)]
        blank_in.update(blank)
        if not blank:
            kept.append(row_number)
        elif first_blank is None:
            first_blank = row_number
    dropped = len(dataset) - len(kept)
    if not dropped:
        return dataset, 0
    where = ", ".join(f"{count} in {column!r}" for column, count in blank_in.items())
    where += f" of {name}" if name else ""
    if not kept:
        raise ValueError(f"All {dropped} rows are empty or blank ({where}). Look at the data, or name another column.")
    logger.warning(
        "Left out %d of %d rows, empty or blank: %s; the first is row %d. Fill them in to have them read.",
        *(dropped, len(dataset), where, first_blank),
    )
    return dataset.select(kept), dropped


def with_columns(dataset: Dataset, columns: Mapping[str, list[Any]]) -> Dataset:
    """Columns put behind those of a dataset, which may have none (and then no rows)."""
    for name, values in columns.items():
        dataset = dataset.add_column(name, values) if dataset.column_names else Dataset.from_dict({name: values})
    return dataset


def is_blank(value: Any, column: str, row_number: int) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not VISIBLE.search(value)
    if is_conversational(value):
        return not value or (_says_nothing(value[-1].get("content")) and not value[-1].get("tool_calls"))
    raise TypeError(
        f"Column {column!r} holds neither text nor messages in row {row_number}, but a {type(value).__name__}: "
        f"{str(value)[:60]}. Make it text, for instance with `dataset.cast_column({column!r}, Value('string'))`."
    )


def _says_nothing(content: Any) -> bool:
    """Content is text, or a list of parts as of a model that sees: a part that is no text says something."""
    if isinstance(content, list):
        return all(part.get("type", "text") == "text" and _says_nothing(part.get("text")) for part in content)
    return not VISIBLE.search(content or "")


def prompts_of(dataset: Dataset, completions: Sequence[Text], column: str = "prompt") -> list[Text]:
    """The prompt of each row; where it has none nothing, as text or as messages, whichever the completions are."""
    nothing: Text = [] if completions and not isinstance(completions[0], str) else ""
    given = dataset[column] if column in dataset.column_names else [None] * len(dataset)
    return [nothing if prompt is None else prompt for prompt in given]
