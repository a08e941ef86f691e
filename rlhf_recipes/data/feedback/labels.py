"""Feedback that calls one answer good or bad, or its steps; and signs from which a label can be guessed."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from datasets import Dataset

from rlhf_recipes.data.feedback.record import (
    MISSING,
    UNSEEN,
    FeedbackSettings,
    Format,
    Read,
    Row,
    check_noise,
    converted,
    count_note,
    counts,
    is_number,
    range_note,
    shown,
)
from rlhf_recipes.starting.options import check_choice
from rlhf_recipes.statistics import is_missing

NO_STEP_LABEL = "a step without a label"


def read_label(value: Any, settings: FeedbackSettings) -> float | None:
    """What a label counts, from 0 (bad) to 1 (good); `None` where it is missing."""
    if is_missing(value):
        return None
    if settings.label_map is None:
        return float(value)
    return float(settings.label_map[_label_key(value, settings.label_map)])


def _label_key(label: Any, label_map: Mapping[Any, float]) -> Any:
    """The key under which a map has a label: itself, or as text, since a map of a command line has no other keys."""
    if label in label_map or isinstance(label, str):
        return label
    return json.dumps(int(label) if isinstance(label, float) and label.is_integer() else label)


def _check_labels(column: str, given: Iterable[Any], settings: FeedbackSettings) -> None:
    """All labels at once, so that the error can show every value there is."""
    labels = [label for label in given if not is_missing(label)]
    if settings.label_map is not None:
        unknown = [label for label in labels if _label_key(label, settings.label_map) not in settings.label_map]
        if unknown:
            known = ", ".join(map(repr, settings.label_map))
            bare = any(isinstance(label, bool) for label in settings.label_map)
            quote = " In YAML yes, no, on and off are true and false: write labels in quotes." if bare else ""
            raise ValueError(
                f"label_map does not say what these labels count: {shown(unknown)}. It has {known}.{quote}"
            )
    elif any(not is_number(label) or not 0 <= label <= 1 for label in labels):
        example = ", ".join(f"{label}: ..." for label in sorted(set(map(repr, labels)))[:3])
        raise ValueError(
            f"Labels must be true or false, or numbers from 0 to 1, but column {column!r} has {shown(labels)}. Say "
            f"what each counts, from 0 (bad) to 1 (good), with label_map={{{example}}}."
        )


def _label_note(labels: Iterable[Any]) -> str:
    known = [label for label in labels if label is not None]
    if any(isinstance(label, str) for label in known):
        return f"labels are texts, {shown(known)}: label_map must say what they count"
    if not all(is_number(label) and 0 <= label <= 1 for label in known):
        return f"labels are not all within 0 and 1, {shown(known)}: label_map must say what they count"
    return "labels are 0 and 1" if set(known) <= {0, 1} else "labels from 0 to 1: soft"


def _read_unpaired(row: Row, settings: FeedbackSettings) -> Read:
    label = read_label(row["label"], settings)
    return {"label": label}, [MISSING] if label is None else []


UNPAIRED = Format(
    "unpaired",
    ("completion", "label"),
    _read_unpaired,
    signal="label",
    check=lambda rows, settings: _check_labels("label", rows["label"], settings),
    notes=lambda rows: [_label_note(rows["label"])],
)


# --- Signs of what readers liked --------------------------------------------------------------


def _read_clicks(row: Row, settings: FeedbackSettings) -> Read:
    clean = counts(row, "clicks", "views")
    clicks, views = clean.values()
    if clicks is None or views is None:
        return clean, [MISSING]
    if clicks > views:
        raise ValueError(f"there are {clicks:g} clicks of {views:g} views. Count both of the same people.")
    return clean, [UNSEEN] if views == 0 else []


def clicks_to_unpaired(
    dataset: Dataset, false_click: float = 0.0, missed_click: float = 0.0, min_views: int = 1
) -> Dataset:
    """The share of readers who like a text, estimated from how many clicked, as a soft label.

    A reader who likes it is taken to click with probability `1 - missed_click`, and one who does not with
    `false_click`. Of the click rate `r = clicks / views` that makes

        label = (r - false_click) / (1 - false_click - missed_click), no less than 0 and no more than 1

    (Rogan and Gladen 1978, the prevalence behind an imperfect test). Without noise it is the click rate. That texts
    shown first are clicked more is not corrected.

    Lost: how often the text was shown, and texts with fewer than `min_views` views, which are counted.
    """
    check_noise(false_click=false_click, missed_click=missed_click)
    least = max(min_views, 1)

    def label(row: Row) -> Iterator[Row]:
        if None not in (row["clicks"], row["views"]) and row["views"] >= least:
            liked = (row["clicks"] / row["views"] - false_click) / (1 - false_click - missed_click)
            yield {"label": float(min(max(liked, 0.0), 1.0))}

    return converted(dataset, CLICKS, label, f"fewer than {least} views", used=("clicks", "views"))


CLICKS = Format(
    "clicks", ("completion", "clicks", "views"), _read_clicks, conversions={"unpaired": clicks_to_unpaired}
)


def _read_dwell(row: Row, settings: FeedbackSettings) -> Read:
    clean = counts(row, "dwell_seconds")
    return clean, [MISSING] if clean["dwell_seconds"] is None else []


def dwell_to_unpaired(
    dataset: Dataset,
    threshold: float = 30.0,
    prior: float = 0.5,
    false_stay: float = 0.0,
    missed_stay: float = 0.0,
) -> Dataset:
    """The chance that a reader liked a text, from how long he stayed, as a soft label.

    Who stays `threshold` seconds or longer is taken to be content; 30 is the usual mark for web pages (Fox et al.
    2005; Kim et al. 2014 show that it depends on the text, and long texts need more). Signs go wrong: a reader who is
    not content stays all the same with probability `false_stay`, one who is content leaves early with `missed_stay`.
    By Bayes' rule

        label after a long stay  = prior (1 - missed_stay) / (prior (1 - missed_stay) + (1 - prior) false_stay)
        label after a short stay = prior missed_stay / (prior missed_stay + (1 - prior) (1 - false_stay))

    where `prior` is the share of texts that content a reader. Without noise they are 1 and 0. Lost: how long exactly.
    """
    check_noise(false_stay=false_stay, missed_stay=missed_stay)
    if not 0 < prior < 1 or not threshold > 0:
        raise ValueError(f"threshold is {threshold} and prior {prior}; give seconds above 0, and a share in (0, 1).")
    stayed = prior * (1 - missed_stay), (1 - prior) * false_stay
    left = prior * missed_stay, (1 - prior) * (1 - false_stay)

    def label(row: Row) -> Iterator[Row]:
        if row["dwell_seconds"] is not None:
            good, bad = stayed if row["dwell_seconds"] >= threshold else left
            yield {"label": float(good / (good + bad))}

    return converted(dataset, DWELL, label, used=("dwell_seconds",))


DWELL = Format(
    "dwell",
    ("completion", "dwell_seconds"),
    _read_dwell,
    signal="dwell_seconds",
    notes=lambda rows: [range_note(rows["dwell_seconds"], "seconds")],
    conversions={"unpaired": dwell_to_unpaired},
)


# --- Steps of one answer ----------------------------------------------------------------------


def _read_steps(row: Row, settings: FeedbackSettings) -> Read:
    if not isinstance(row["labels"], list):
        raise ValueError(f"labels must be a list, but is {row['labels']!r:.60}.")
    steps, labels = len(row["completions"]), [read_label(label, settings) for label in row["labels"]]
    if len(labels) != steps:
        raise ValueError(f"there are {steps} steps and {len(labels)} labels; give one for each.")
    known = [label for label in labels if label is not None]
    return {"labels": labels}, [MISSING] if not known else [NO_STEP_LABEL] if len(known) < steps else []


def _labels_of_steps(rows: Dataset) -> list[Any]:
    return [label for labels in rows["labels"] if isinstance(labels, list) for label in labels]


def steps_to_ratings(
    dataset: Dataset, how: Literal["mean", "min", "product", "last"] = "mean", separator: str = "\n\n"
) -> Dataset:
    """The steps joined to one completion, and their labels to one score.

    `"min"` and `"product"` ask for every step to be right, as process rewards are usually read (Lightman et al. 2023,
    section 2.6 multiplies), `"last"` for the answer alone. Steps without a label do not count. Lost: where it goes
    wrong.
    """
    check_choice("how", how, ("mean", "min", "product", "last"))

    def joined(row: Row) -> Iterator[Row]:
        labels = [float(label) for label in row["labels"] if label is not None]
        if labels:
            scores = {"mean": sum(labels) / len(labels), "min": min(labels), "product": math.prod(labels)}
            score = labels[-1] if how == "last" else scores[how]
            yield {"completion": separator.join(row["completions"]), "score": score}

    return converted(dataset, STEPS, joined, "no step has a label")


def _step_notes(rows: Dataset) -> Iterator[str]:
    yield count_note(rows["completions"], " steps a row")
    yield _label_note(_labels_of_steps(rows))


STEPS = Format(
    "steps",
    ("completions", "labels"),
    _read_steps,
    lists=("completions", "labels"),
    signal="labels",
    check=lambda rows, settings: _check_labels("labels", _labels_of_steps(rows), settings),
    notes=_step_notes,
    conversions={"ratings": steps_to_ratings},
    of_parts=True,
)
