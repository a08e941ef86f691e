"""One row of feedback: what its values are, what is odd about it, and what is wrong.

Each reader gives the clean values of a row and what is odd; what is wrong is a `ValueError` that names the value, and
`rlhf_recipes.data.feedback` adds the row.
"""

import json
import math
import numbers
import re
from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import is_blank
from rlhf_recipes.data.feedback.dialogues import split_prompt
from rlhf_recipes.data.feedback.formats import (
    ALL_TIED,
    COLUMNS,
    COPIES,
    EMPTY,
    FEW,
    IDENTICAL,
    LEFT_OUT,
    LISTS,
    LONG,
    LOOKS_LIKE_MESSAGES,
    MISSING,
    MISSING_VOTES,
    NO_OBJECTIVE,
    NO_PROMPT,
    NO_STEP_LABEL,
    NO_VOTES,
    OPTIONAL,
    SAME_PLACE,
    TEXTS,
    TIE,
    TIES,
    UNSEEN,
    WEIGHT,
    FeedbackFormat,
    FeedbackSettings,
    Kind,
    Read,
    Row,
    is_number,
    shown,
)
from rlhf_recipes.data.tables import NUMBERS
from rlhf_recipes.texts import as_text, is_conversational

MESSAGES_AS_TEXT = re.compile(r"""\s*\[\s*\{\s*['"](role|content)['"]\s*:""")

# How a list looks in a cell of a CSV.
EXAMPLES: Mapping[str, str] = {
    "completions": '["Red.", "Blue."]',
    "ranks": "[1, 2]",
    "votes": "[4, 5]",
    "labels": "[true, false]",
    "scores": '{"helpful": 4}',
    "objectives": '["helpful"]',
}


def read_row(row: Row, number: int, feedback: FeedbackFormat, settings: FeedbackSettings) -> Read:
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
        odd += _odd_texts(row, number, settings)
    if LEFT_OUT.intersection(odd):
        return {}, odd
    values, more = READERS[feedback.kind](row, settings)
    if WEIGHT in row:
        values[WEIGHT] = _not_negative(_number(row[WEIGHT], WEIGHT), WEIGHT)
        more = [*more, *([MISSING] if values[WEIGHT] is None else [])]
    return clean | values, odd + more


def _odd_texts(row: Row, number: int, settings: FeedbackSettings) -> list[str]:
    odd: list[str] = []
    for name in TEXTS:
        if name not in row:
            continue
        values = row[name] if name == "completions" else [row[name]]
        if values is not None and not isinstance(values, list):
            raise ValueError(f"completions must be a list of texts, but is {values!r:.60}.")
        if name != "completions" and isinstance(row[name], list) and any(isinstance(one, str) for one in row[name]):
            raise ValueError(
                f"{name} is a list of {len(row[name])} texts, and must be one text, or messages. Write a row for each "
                "pair; several answers of one prompt, best first, are `completions` with `ranks`."
            )
        if values is None or any(is_blank(value, name, number) for value in values):
            return [EMPTY]
        if any(len(as_text(value)) >= settings.long_text for value in values):
            odd.append(LONG)
        if any(isinstance(value, str) and MESSAGES_AS_TEXT.match(value) for value in values):
            odd.append(LOOKS_LIKE_MESSAGES)
    if "prompt" in row and is_blank(row["prompt"], "prompt", number):
        odd.append(NO_PROMPT)
    return odd


def texts_of_two_kinds(row: Row, seen: dict[str, bool]) -> str | None:
    """What is text here and messages there, in words, or nothing.

    Args:
        row (`dict`): One that is kept.
        seen (`dict[str, bool]`):
            Whether answers and prompts were messages in the rows before; what this row has is noted in it.
    """
    answers = [value for name in TEXTS if name in row for value in _listed(row[name], name)]
    prompts = [row["prompt"]] if row.get("prompt") else []
    for what, values in (("answer", answers), ("prompt", prompts)):
        for value in values:
            if seen.setdefault(what, is_conversational(value)) != is_conversational(value):
                here, before = ("messages", "text") if is_conversational(value) else ("text", "messages")
                return f"an {what} is {here}, and those before it are {before}".replace("an p", "a p")
    return None


def _listed(value: Any, name: str) -> list[Any]:
    return value if name == "completions" else [value]


def with_lists(dataset: Dataset, kind: Kind) -> Dataset:
    """Read lists that stand in the cells of a CSV as JSON. Where all are lists, it is the same dataset.

    Only columns that must be lists are read so: a completion that looks like JSON is a text.

    Raises:
        `ValueError`: if a cell is a text and no JSON list (for `scores`, no mapping either). It names the row.
    """
    for name in LISTS.get(kind, ()):
        if name not in dataset.column_names or not any(isinstance(value, str) for value in dataset[name]):
            continue
        values = [_from_json(value, name, number) for number, value in enumerate(dataset[name])]
        order = dataset.column_names
        rest = dataset.remove_columns([name])
        dataset = rest.add_column(name, values) if rest.column_names else Dataset.from_dict({name: values})
        dataset = dataset.select_columns(order)
    return dataset


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
        f"{EXAMPLES[name]} (in quotes, each quote inside doubled); JSONL and parquet hold lists as they are."
    )


def check_numbers(rows: Dataset) -> None:
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


def _is_missing(value: Any) -> bool:
    """Null, or NaN, which is how a null comes out of pandas."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def _number(value: Any, name: str) -> float | None:
    if _is_missing(value):
        return None
    if not isinstance(value, numbers.Real):
        raise ValueError(
            f"{name} is {value!r:.60}, a {type(value).__name__}, and must be a number, without quotes or a list "
            "around it."
        )
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, and must be a finite number. Leave the row out, or the value empty.")
    return float(value)


def _numbers(values: Any, name: str, length: int) -> list[float | None]:
    if not isinstance(values, list):
        raise ValueError(f"{name} must be a list, but is {values!r:.60}.")
    if len(values) != length:
        raise ValueError(f"there are {length} completions and {len(values)} {name}; give one for each.")
    return [_number(value, f"{name}[{place}]") for place, value in enumerate(values)]


def _not_negative(value: float | None, name: str) -> float | None:
    if value is not None and value < 0:
        raise ValueError(f"{name} is {value:g}; it must be 0 or more.")
    return value


def _in_range(value: float | None, name: str, bounds: tuple[float, float] | None) -> float | None:
    if value is not None and bounds is not None and not bounds[0] <= value <= bounds[1]:
        raise ValueError(
            f"{name} is {value:g}, outside the score_range from {bounds[0]:g} to {bounds[1]:g}. Correct the row or "
            "the range."
        )
    return value


def _read_pair(row: Row, settings: FeedbackSettings) -> Read:
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    clean: Row = {name: _number(row[name], name) for name in OPTIONAL["pairs"] if name in row}
    if "target" in clean and clean["target"] is not None and not 0 <= clean["target"] <= 1:
        raise ValueError(f"target is {clean['target']:g}; it is the chance that chosen is better, from 0 to 1.")
    if clean.get("target") == 0.5:
        odd.append(TIE)
    return clean, odd + ([MISSING] if None in clean.values() else [])


def _read_votes(row: Row, settings: FeedbackSettings) -> Read:
    names = ("chosen_votes", "rejected_votes")
    clean = {name: _not_negative(_number(row[name], name), name) for name in names}
    chosen, rejected = clean.values()
    odd = [IDENTICAL] if row["chosen"] == row["rejected"] else []
    if chosen is None or rejected is None or chosen + rejected == 0:
        odd.append(MISSING_VOTES)
    elif chosen == rejected:
        odd.append(TIE)
    return clean, odd


def _read_rating(row: Row, settings: FeedbackSettings) -> Read:
    score = _in_range(_number(row["score"], "score"), "score", settings.score_range)
    odd = [MISSING] if score is None else []
    if "votes" in row:
        # The list stays as it is: a vote that was not given holds the place of its rater.
        odd += [] if any(vote is not None for vote in _votes(row["votes"])) else [NO_VOTES]
    return {"score": score}, odd


def _votes(votes: Any) -> list[float | None]:
    """Numbers; `None` where no vote was given, which may be NaN in the file."""
    if votes is None:
        return []
    if not isinstance(votes, list):
        raise ValueError(
            f"votes must be a list with one number for each vote, but is {votes!r:.60}. If it says how many voted, "
            "rename the column."
        )
    return [_number(vote, f"votes[{place}]") for place, vote in enumerate(votes)]


def _read_ranking(row: Row, settings: FeedbackSettings) -> Read:
    completions = row["completions"]
    ranks = _numbers(row["ranks"], "ranks", len(completions))
    for place, rank in enumerate(ranks):
        if rank is None or rank < 1:
            given = "missing" if rank is None else f"{rank:g}"
            raise ValueError(f"ranks[{place}] is {given}; ranks are numbers from 1 (best) on.")
    odd = [FEW] if len(ranks) < 2 else [ALL_TIED] if len(set(ranks)) == 1 else []
    if len(set(ranks)) < len(ranks):
        odd.append(TIES)
    if len({json.dumps(completion) for completion in completions}) < len(completions):
        odd.append(COPIES)
    return {"ranks": ranks}, odd


def _read_best_worst(row: Row, settings: FeedbackSettings) -> Read:
    count = len(row["completions"])
    clean: Row = {}
    for name in ("best", "worst"):
        place = _number(row[name], name)
        if place is not None and (not place.is_integer() or not 0 <= place < count):
            raise ValueError(f"{name} is {place:g}; it is a place in the list, from 0 to {count - 1}.")
        clean[name] = None if place is None else int(place)
    missing = None in clean.values()
    odd = [MISSING] if missing else [SAME_PLACE] if clean["best"] == clean["worst"] else []
    return clean, odd + ([FEW] if count < 2 else [])


def _label(value: Any, settings: FeedbackSettings) -> float | None:
    if _is_missing(value):
        return None
    if settings.label_map is None:
        return float(value)
    return float(settings.label_map[_label_key(value, settings.label_map)])


def _label_key(label: Any, label_map: Mapping[Any, float]) -> Any:
    """The key under which a map has a label: itself, or as text, since a map of a command line has no other keys."""
    if label in label_map or isinstance(label, str):
        return label
    return json.dumps(int(label) if isinstance(label, float) and label.is_integer() else label)


def _read_label(row: Row, settings: FeedbackSettings) -> Read:
    label = _label(row["label"], settings)
    return {"label": label}, [MISSING] if label is None else []


def _read_clicks(row: Row, settings: FeedbackSettings) -> Read:
    clean = {name: _not_negative(_number(row[name], name), name) for name in ("clicks", "views")}
    clicks, views = clean.values()
    if clicks is None or views is None:
        return clean, [MISSING]
    if clicks > views:
        raise ValueError(f"there are {clicks:g} clicks of {views:g} views. Count both of the same people.")
    return clean, [UNSEEN] if views == 0 else []


def _read_dwell(row: Row, settings: FeedbackSettings) -> Read:
    seconds = _not_negative(_number(row["dwell_seconds"], "dwell_seconds"), "dwell_seconds")
    return {"dwell_seconds": seconds}, [MISSING] if seconds is None else []


def _read_objectives(row: Row, settings: FeedbackSettings) -> Read:
    scores = row["scores"]
    if isinstance(scores, list):
        names = row.get("objectives") or settings.objective_names
        if not names:
            raise ValueError("scores is a list without names. Give objective_names, or a column 'objectives'.")
        if len(names) != len(scores):
            raise ValueError(f"there are {len(scores)} scores for {len(names)} objectives ({', '.join(names)}).")
        scores = dict(zip(names, scores, strict=True))
    elif scores is not None and not isinstance(scores, dict):
        raise ValueError(f"scores is {scores!r:.60}; it must be a mapping of names and numbers, or a list.")
    clean = {
        name: _in_range(_number(value, f"scores.{name}"), f"scores.{name}", settings.score_range)
        for name, value in (scores or {}).items()
    }
    known = [value for value in clean.values() if value is not None]
    return {"scores": clean}, [] if len(known) == len(clean) > 0 else [NO_OBJECTIVE] if known else [MISSING]


def _read_steps(row: Row, settings: FeedbackSettings) -> Read:
    if not isinstance(row["labels"], list):
        raise ValueError(f"labels must be a list, but is {row['labels']!r:.60}.")
    steps, labels = len(row["completions"]), [_label(label, settings) for label in row["labels"]]
    if len(labels) != steps:
        raise ValueError(f"there are {steps} steps and {len(labels)} labels; give one for each.")
    known = [label for label in labels if label is not None]
    return {"labels": labels}, [MISSING] if not known else [NO_STEP_LABEL] if len(known) < steps else []


READERS: Mapping[Kind, Any] = {
    "pairs": _read_pair,
    "votes": _read_votes,
    "ratings": _read_rating,
    "rankings": _read_ranking,
    "best_worst": _read_best_worst,
    "unpaired": _read_label,
    "clicks": _read_clicks,
    "dwell": _read_dwell,
    "objectives": _read_objectives,
    "steps": _read_steps,
}


def check_labels(rows: Dataset, kind: Kind, settings: FeedbackSettings) -> None:
    """All labels at once, so that the error can show every value there is."""
    column = "label" if kind == "unpaired" else "labels"
    lists = ([value] if kind == "unpaired" else value for value in rows[column])
    labels = [label for labels in lists if isinstance(labels, list) for label in labels if not _is_missing(label)]
    if settings.label_map is not None:
        unknown = [label for label in labels if _label_key(label, settings.label_map) not in settings.label_map]
        if unknown:
            known = ", ".join(map(repr, settings.label_map))
            bare = any(isinstance(label, bool) for label in settings.label_map)
            quote = " In YAML yes, no, on and off are true and false: write labels in quotes." if bare else ""
            raise ValueError(
                f"label_map does not say what these labels count: {shown(unknown)}. It has {known}.{quote}"
            )
        return
    if any(not is_number(label) or not 0 <= label <= 1 for label in labels):
        example = ", ".join(f"{label}: ..." for label in sorted(set(map(repr, labels)))[:3])
        raise ValueError(
            f"Labels must be true or false, or numbers from 0 to 1, but column {column!r} has {shown(labels)}. Say "
            f"what each counts, from 0 (bad) to 1 (good), with label_map={{{example}}}."
        )


assert set(COLUMNS) == set(READERS)
