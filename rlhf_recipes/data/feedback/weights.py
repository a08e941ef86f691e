"""Training targets and row weights that know how noisy people's votes are.

    target, weight = targets_from_votes(rows["votes"])
    rows = add_weights(rows, "votes")

A column `weight` is honoured in training wherever it stands: the loss of a row is multiplied by it. Uncertainty is
counted once. A plain mean has it in its weight; a posterior has it in the target, and all its rows weigh the same.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from datasets import Dataset

from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.formats import WEIGHT, Weighting
from rlhf_recipes.data.raters.trust import dawid_skene, rater_weights
from rlhf_recipes.data.raters.votes import RatingModel, Votes, class_list, numeric_votes
from rlhf_recipes.starting.options import check_choice
from rlhf_recipes.statistics import Floats, is_missing

logger = logging.getLogger(__name__)
How = Literal["auto", "mean", "posterior", "raters", "dawid_skene"]
GROUPS = ("source_row", "prompt")  # the columns that say which rows belong together, the better one first


def targets_from_votes(
    votes: Votes,
    raters: Sequence[Sequence[Hashable]] | None = None,
    how: How = "auto",
    label_map: Mapping[Any, float] | None = None,
) -> tuple[Floats, Floats]:
    """Make of each text's votes one number to learn, and say how much it should count.

    | how | target | weight |
    |---|---|---|
    | `"mean"` | the mean vote | `RatingModel.effective_votes`: more votes, more weight |
    | `"posterior"` | the mean vote, pulled to that of all texts the more, the fewer it has | 1 |
    | `"raters"` | the mean without the raters' leniency, careful raters counting more | inverse variance |
    | `"dawid_skene"` | the expected class (Dawid and Skene 1979) | 1 |

    A target that is an expectation given the votes needs no weight: it makes the expected loss what is minimized.
    `"raters"` weighs a text by `1 / (between + 1 / P)`, P being the sum of its raters' inverse variances and `between`
    the variance of ratings that they do not explain. `"auto"` takes `"mean"`, or where it is known who voted
    `"raters"`, and for classes (texts and truth values) `"dawid_skene"`. Where no text has two votes, or all votes
    agree, means weigh the same.

    Args:
        votes (`Sequence[Sequence]` of length N): Of each text; `None` and NaN are votes that were not given.
        raters (`Sequence[Sequence]`, *optional*):
            Who gave each vote, in the same shape. For `"raters"` and `"dawid_skene"` without it, the place in the list
            is the rater.
        how (`str`, *optional*, defaults to `"auto"`): One of the table.
        label_map (`Mapping`, *optional*):
            What each class counts. Needed for classes that are texts; truth values count 1 and 0, numbers themselves.

    Returns:
        `tuple[numpy.ndarray, numpy.ndarray]`: targets `(N,)` in the unit of the votes, and weights `(N,)`, 1 on
        average over texts with votes. A text without votes has the target NaN, and the weight 0: leave it out.

    Raises:
        `ValueError`: if `how` is unknown, no text has a vote, raters have another shape, `label_map` lacks a class, or
            a model cannot be fitted to the votes.
    """
    check_choice("how", how, get_args(How))
    votes = [list(of_text) if of_text is not None else [] for of_text in votes]
    given = [[vote for vote in of_text if not is_missing(vote)] for of_text in votes]
    counts = np.array([len(of_text) for of_text in given], dtype=np.float64)
    if not counts.any():
        raise ValueError(f"None of {len(given)} texts has a vote, so there is nothing to learn from them.")
    classes = label_map is not None or any(isinstance(vote, str | bool) for of_text in given for vote in of_text)
    how = how if how != "auto" else "mean" if raters is None else "dawid_skene" if classes else "raters"
    if how == "dawid_skene":
        found = dawid_skene(votes, raters)
        return _masked(found.posterior @ _class_values(found.classes, label_map), np.ones(len(given)), counts)
    if classes:
        found_classes = class_list([vote for of_text in given for vote in of_text])
        value_of = dict(zip(found_classes, _class_values(found_classes, label_map).tolist(), strict=True))
        votes = [[None if is_missing(vote) else value_of[vote] for vote in of_text] for of_text in votes]
        given = [[vote for vote in of_text if vote is not None] for of_text in votes]
    if how == "mean":
        return _masked(_means(given), _effective_votes(lambda: RatingModel.fit(given), counts), counts)
    if how == "posterior":
        return _masked(RatingModel.fit(given).posterior(given)[0], np.ones(len(given)), counts)
    return _rater_targets(votes, raters, counts)


def add_weights(dataset: Dataset, how: Weighting, column: str | None = None) -> Dataset:
    """Add a column `weight`, 1 on average, that says how much each row should count in training.

    | how | what counts more | columns |
    |---|---|---|
    | `"votes"` | what more people voted on, as far as they disagree | `votes`; `chosen_votes` and `rejected_votes` |
    | `"labels"` | the rarer label, such that good and bad count the same in all | `label` |
    | `"groups"` | rows of small groups, such that each group counts the same | `source_row`, else `prompt` |

    Of `"votes"`: n votes count as `n / (1 + (n - 1) rho)`, see
    [`~rlhf_recipes.data.raters.votes.RatingModel.effective_votes`]. Give weights to rows of votes before they become
    pairs: afterwards the numbers of votes are gone, and the weights stay. `"groups"` is for the pairs of one ranking:
    K completions make K (K - 1) / 2 of them.

    Args:
        dataset ([`~datasets.Dataset`]): Clean rows, as [`~rlhf_recipes.data.feedback.read.normalize`] gives them.
        how (`str`): `"votes"`, `"labels"` or `"groups"`.
        column (`str`, *optional*): For `"groups"`, another column that says which rows belong together.

    Returns:
        [`~datasets.Dataset`]: the same rows. Weights that were there are multiplied, and 1 on average again.

    Raises:
        `ValueError`: if a column is missing, `how` is unknown, or there is one class only.
    """
    check_choice("how", how, get_args(Weighting))
    if column is not None and how != "groups":
        raise ValueError(f"column is {column!r}, but only weights of groups take one.")
    plain = dataset.with_format(None)
    if how == "groups":
        weights = _group_weights(plain, column)
    else:
        weights = _vote_weights(plain) if how == "votes" else _label_weights(plain)
    if WEIGHT in plain.column_names:
        weights = weights * np.array(plain[WEIGHT], dtype=np.float64)
        plain = plain.remove_columns([WEIGHT])
    if not weights.any():
        raise ValueError("All weights are 0, so no row would count. Look at the votes and at the column 'weight'.")
    return plain.add_column(WEIGHT, (weights / weights.mean()).tolist())


# --- Weights of votes -------------------------------------------------------------------------


def _masked(targets: Floats, weights: Floats, counts: Floats) -> tuple[Floats, Floats]:
    voted = counts > 0
    weights = np.where(voted, weights, 0.0)
    return np.where(voted, targets, np.nan), weights / weights[voted].mean()


def _means(given: Votes) -> Floats:
    return np.array([series.mean() if len(series) else np.nan for series in numeric_votes(given)])


def _effective_votes(fit: Callable[[], RatingModel], counts: Floats) -> Floats:
    """Of how many votes each row's are worth; the same where no model of ratings can be fitted."""
    try:
        return fit().effective_votes(counts)
    except ValueError as error:
        logger.warning("All rows with votes weigh the same: %s", error)
        return np.asarray(counts > 0, dtype=np.float64)


def _rater_targets(votes: Votes, raters: Sequence[Sequence[Hashable]] | None, counts: Floats) -> tuple[Floats, Floats]:
    found = rater_weights(votes, raters)
    names = raters or [range(len(of_text)) for of_text in votes]
    precision_of = dict(zip(found.raters, 1 / found.variance, strict=True))
    precision = np.zeros(len(counts))
    for row, (of_text, its_raters) in enumerate(zip(votes, names, strict=True)):
        pairs = zip(of_text, its_raters, strict=True)
        precision[row] = sum(precision_of[rater] for vote, rater in pairs if not is_missing(vote))
    voted = counts > 0
    error = np.divide(1.0, precision, out=np.zeros_like(precision), where=voted)
    between = max(0.0, float(found.ratings[voted].var() - error[voted].mean()))
    return _masked(found.ratings, np.divide(1.0, between + error, out=np.zeros_like(error), where=voted), counts)


def _class_values(classes: Sequence[Any], label_map: Mapping[Any, float] | None) -> Floats:
    values = {label: label for label in classes} if label_map is None else label_map
    unknown = [label for label in classes if label not in values or isinstance(values[label], str)]
    if unknown:
        example = ", ".join(f"{label!r}: ..." for label in classes)
        raise ValueError(
            f"The class {unknown[0]!r} is no number. Say what each class counts with label_map={{{example}}}."
        )
    return np.array([float(values[label]) for label in classes])


def _vote_weights(rows: Dataset) -> Floats:
    sides = ("chosen_votes", "rejected_votes")
    columns = require_columns(rows, [("votes",), sides], "Weights of votes")
    if columns == sides:
        first, second = (np.array(rows[side], dtype=np.float64) for side in sides)
        return _effective_votes(lambda: RatingModel.of_pairs(first, second), first + second)
    weights = targets_from_votes(rows["votes"], how="mean")[1]
    without = int((weights == 0).sum())
    if without:
        logger.warning("%d of %d rows have no votes, and weigh 0.", without, len(weights))
    return weights


# --- Weights of labels and groups -------------------------------------------------------------


def _label_weights(rows: Dataset) -> Floats:
    """A soft label counts for both sides: 0.7 is 70% of a good text and 30% of a bad one."""
    require_columns(rows, ("label",), "Weights of labels")
    good = np.array(rows["label"], dtype=np.float64)
    share = good.mean()
    if not 0 < share < 1:
        raise ValueError(f"There is one class only: all {len(good)} labels are {share:g}, so none is rarer.")
    return good / share + (1 - good) / (1 - share)


def _group_weights(rows: Dataset, column: str | None) -> Floats:
    names = [(name,) for name in GROUPS] if column is None else [(column,)]
    (name,) = require_columns(rows, names, "Weights of groups")
    groups = [json.dumps(value) for value in rows[name]]
    sizes = Counter(groups)
    return np.array([1 / sizes[group] for group in groups])
