"""Feedback that gives a number to one answer, or a number for each of several objectives."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.record import (
    MISSING,
    FeedbackSettings,
    Format,
    Read,
    Row,
    converted,
    count_note,
    number,
    range_note,
)
from rlhf_recipes.data.pairs import TOLERANCE, preferences

NO_VOTES, NO_OBJECTIVE = "a score without votes", "an objective without a score"


def _read_rating(row: Row, settings: FeedbackSettings) -> Read:
    score = number(row["score"], "score", bounds=settings.score_range)
    odd = [MISSING] if score is None else []
    if "votes" in row:
        # The list stays as it is: a vote that was not given holds the place of its rater.
        odd += [] if any(vote is not None for vote in _votes(row["votes"])) else [NO_VOTES]
    return {"score": score}, odd


def _votes(votes: Any) -> list[float | None]:
    """Numbers; `None` where no vote was given, which may be NaN in the file."""
    if votes is not None and not isinstance(votes, list):
        raise ValueError(
            f"votes must be a list with one number for each vote, but is {votes!r:.60}. If it says how many voted, "
            "rename the column."
        )
    return [number(vote, f"votes[{place}]") for place, vote in enumerate(votes or [])]


def _rating_notes(rows: Dataset) -> Iterator[str]:
    yield range_note(rows["score"], "scores")
    if "votes" in rows.column_names:
        yield count_note(rows["votes"], " votes a row")


def ratings_to_pairs(dataset: Dataset, passes: int = 1, min_gap: float = 0.5, seed: int = 0) -> Dataset:
    """Pairs of texts that are at least `min_gap` apart, drawn by [`~rlhf_recipes.data.pairs.preferences`].

    Lost: by how much one is better, ratings that are close to all others, and all columns but the texts.
    """
    require_columns(dataset, RATINGS.columns, "A conversion of ratings")
    return Dataset.from_dict(preferences(dataset.with_format(None).to_dict(), passes, min_gap, seed))


def ratings_to_unpaired(dataset: Dataset, threshold: float, dead_zone: float = 0.0) -> Dataset:
    """Good is what is rated `threshold + dead_zone` or higher, bad what is rated `threshold - dead_zone` or lower.

    What is rated between is left out and counted. With no dead zone a rating of exactly `threshold` is good. Lost: how
    good and how bad, the single votes, and all that is in the dead zone.
    """
    if dead_zone < 0 or not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold} and dead_zone {dead_zone}; give a number, and one of 0 or more.")

    def label(row: Row) -> Iterator[Row]:
        good = row["score"] >= threshold + dead_zone - TOLERANCE
        if good or row["score"] <= threshold - dead_zone + TOLERANCE:
            yield {"label": bool(good)}

    why = f"within {dead_zone:g} of the threshold {threshold:g}"
    return converted(dataset, RATINGS, label, why, used=("score", "votes"))


RATINGS = Format(
    "ratings",
    ("completion", "score"),
    _read_rating,
    optional=("votes",),
    lists=("votes",),
    signal="score",
    notes=_rating_notes,
    conversions={"pairs": ratings_to_pairs, "unpaired": ratings_to_unpaired},
)


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
        name: number(value, f"scores.{name}", bounds=settings.score_range) for name, value in (scores or {}).items()
    }
    known = [value for value in clean.values() if value is not None]
    return {"scores": clean}, [] if len(known) == len(clean) > 0 else [NO_OBJECTIVE] if known else [MISSING]


def _objective_notes(rows: Dataset) -> Iterator[str]:
    given = [scores for scores in rows["scores"] if scores]
    names = dict.fromkeys(name for scores in given if isinstance(scores, dict) for name in scores)
    yield f"objectives {', '.join(names)}" if names else count_note(given, " scores a row, in lists")


def objectives_to_ratings(dataset: Dataset, weights: Mapping[str, float]) -> Dataset:
    """One score: the weighted sum of the objectives' scores, `sum(weight * score)`.

    A negative weight is for what should be low. A row that lacks a score which counts is left out and counted. Lost:
    which objective a completion is good at, and every objective without a weight.
    """
    require_columns(dataset, OBJECTIVES.columns, "A conversion of objectives")
    names = dict.fromkeys(name for scores in dataset.with_format(None)["scores"] for name in scores)
    unknown = [name for name in weights if name not in names]
    if unknown or not weights:
        what = f"name {unknown[0]!r}, which is no objective" if unknown else "are empty"
        raise ValueError(f"The weights {what}. There are {', '.join(names)}.")

    def total(row: Row) -> Iterator[Row]:
        values = {name: row["scores"].get(name) for name in weights}
        if None not in values.values():
            yield {"score": float(sum(weights[name] * value for name, value in values.items()))}

    return converted(dataset, OBJECTIVES, total, NO_OBJECTIVE, used=("scores", "objectives"))


OBJECTIVES = Format(
    "objectives",
    ("completion", "scores"),
    _read_objectives,
    optional=("objectives",),
    lists=("scores", "objectives"),
    notes=_objective_notes,
    conversions={"ratings": objectives_to_ratings},
)
