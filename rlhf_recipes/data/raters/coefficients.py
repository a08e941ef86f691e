"""Coefficients of how far raters agree: Krippendorff's alpha of all votes, Cohen's kappa of two raters.

Votes and raters are those of `rlhf_recipes.data.raters.votes`.
"""

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np

from rlhf_recipes.data.raters.votes import Votes, class_list, named_votes
from rlhf_recipes.imports import optional
from rlhf_recipes.starting.options import check_choice
from rlhf_recipes.statistics import Floats, Units, is_missing, numbers, without_each

Level = Literal["nominal", "ordinal", "interval", "ratio"]
LEVELS = ("nominal", "ordinal", "interval", "ratio")


def krippendorff_alpha(votes: Votes, level: Level = "interval", classes: Sequence[Any] | None = None) -> float:
    """Krippendorff's alpha, for any number of raters and of missing votes (Krippendorff 2011, section E).

    `1 - D_o / D_e`: disagreement of votes for one text over that of votes drawn from all. Raters need no names: only
    how often each value was given to each text counts. Texts with a single vote are left out.

    Args:
        votes (`Sequence[Sequence]` of length N): Of each text.
        level (`"nominal"`, `"ordinal"`, `"interval"` or `"ratio"`, *optional*, defaults to `"interval"`):
            What differences mean: same or not; ranks; distances; proportions.
        classes (`Sequence`, *optional*):
            The possible values in their order. Needed where votes are texts and the level is ordinal.

    Returns:
        `float`: 1 for perfect agreement, 0 for chance; below 0 if raters differ more than by chance.

    Raises:
        `ValueError`: if no text has two votes, all votes are equal, or votes are texts at a level that needs numbers.
    """
    counts, values = value_counts(votes, level, classes)
    return alpha_of(counts, values, level)


def value_counts(votes: Votes, level: Level, classes: Sequence[Any] | None) -> tuple[Floats, list[Any]]:
    """How often each value was given to each text with two votes or more, `(N, K)`, and the values."""
    check_choice("level", level, LEVELS)
    rows = [[vote for vote in of_text if not is_missing(vote)] for of_text in votes]
    compared = [of_text for of_text in rows if len(of_text) > 1]
    if not compared:
        most = max(map(len, rows), default=0)
        raise ValueError(
            f"None of {len(rows)} texts has two votes (the most are {most}), so agreement cannot be seen. Have some "
            "texts rated twice or more."
        )
    all_votes = list(itertools.chain.from_iterable(compared))
    texts = any(isinstance(vote, str) for vote in all_votes)
    if texts and (level in ("interval", "ratio") or (level == "ordinal" and classes is None)):
        raise ValueError(
            f"Votes are texts, such as {next(v for v in all_votes if isinstance(v, str))!r}, and the level is "
            f"{level}. Use the level nominal, or ordinal with the classes in their order, or give numbers."
        )
    if not texts:
        numbers(all_votes, "votes")
    values = class_list(all_votes, classes)
    if len(set(all_votes)) < 2:
        raise ValueError(f"All {len(all_votes)} votes are {all_votes[0]!r}: there is no variation to agree on.")
    tallies = map(Counter, compared)
    return np.array([[tally[value] for value in values] for tally in tallies], dtype=np.float64), values


def alpha_of(counts: Floats, values: list[Any], level: Level) -> float:
    krippendorff = optional("krippendorff", "krippendorff_alpha", extra="feedback")
    return float(krippendorff.alpha(value_counts=counts, value_domain=values, level_of_measurement=level))


def alpha_interval(counts: Floats, values: Floats) -> list[float] | None:
    """95% interval of the interval alpha, over texts, by sums of squares without one text after another."""
    n = counts.sum(axis=1)
    totals, squares = counts @ values, counts @ values**2
    within = (squares - totals**2 / n) * n / (n - 1)

    def alpha(sums: Floats) -> dict[str, Floats]:
        votes, total, square, inside = sums.T
        spread = square - total**2 / votes
        varied = spread > 1e-12
        return {"alpha": np.where(varied, 1 - (votes - 1) * inside / (votes * np.where(varied, spread, 1.0)), np.nan)}

    if len(n) < 2:
        return None
    value, influences = without_each(alpha, np.stack([n, totals, squares, within], axis=1))["alpha"]
    return Units.of(len(n)).spread(influences).bounded(value, -1, 1, unseen=0.25)


def cohen_kappa(
    first: Sequence[Any],
    second: Sequence[Any],
    weights: Literal["linear", "quadratic"] | None = None,
    classes: Sequence[Any] | None = None,
) -> float:
    """Cohen's kappa of two raters over the texts that both have rated (Cohen 1960; weighted, Cohen 1968).

    `1 - sum(w * observed) / sum(w * expected)` over the K x K table of shares, with w = 1 off the diagonal, or
    `|i - j|`, or `(i - j)^2`. For weights, i and j are the places of the classes in their order, numbers or not.

    Raises:
        `ValueError`: if lengths differ, both rated no text, both gave one and the same label to all, or labels are
            texts, weighted, and without `classes`.
    """
    if len(first) != len(second):
        raise ValueError(f"There are {len(first)} and {len(second)} votes; give one of each rater for every text.")
    if weights not in (None, "linear", "quadratic"):
        raise ValueError(f"weights is {weights!r}; give 'linear', 'quadratic' or None.")
    both = [(a, b) for a, b in zip(first, second, strict=True) if not is_missing(a) and not is_missing(b)]
    if not both:
        raise ValueError("The two raters have no text in common.")
    labels = [label for pair in both for label in pair]
    if _without_order(labels, weights, classes):
        raise ValueError("Weights need an order, and the labels are texts: give `classes` in their order.")
    found = class_list(labels, classes)
    if len(set(labels)) == 1:
        raise ValueError(f"Both raters gave the label {labels[0]!r} to all {len(both)} texts; kappa is 0 / 0 there.")
    metrics = optional("sklearn.metrics", "cohen_kappa", package="scikit-learn", extra="feedback")
    places = [[found.index(label) for label in of_rater] for of_rater in zip(*both, strict=True)]
    return float(metrics.cohen_kappa_score(*places, labels=range(len(found)), weights=weights))


def pairwise_kappas(
    votes: Votes,
    raters: Sequence[Sequence[Hashable]] | None = None,
    weights: Literal["linear", "quadratic"] | None = None,
    classes: Sequence[Any] | None = None,
    min_shared: int = 10,
) -> dict[tuple[Hashable, Hashable], float]:
    """[`cohen_kappa`] of every two raters with `min_shared` texts in common; those where it is 0 / 0 are left out.

    A rater whose kappas are all low did not understand the task, or did not look. Where a rater voted twice for a text
    the last vote counts.

    Raises:
        `ValueError`: as [`named_votes`], and if there are no two such raters.
    """
    named = named_votes(votes, raters)
    given: list[dict[int, Any]] = [{} for _ in named.raters]
    for row, rater, vote in zip(named.rows, named.of, named.votes, strict=True):
        given[rater][int(row)] = vote
    found = class_list(named.votes, classes) if not _without_order(named.votes, weights, classes) else None
    kappas = {}
    for a, b in itertools.combinations(range(len(given)), 2):
        shared = sorted(given[a].keys() & given[b].keys())
        x, y = [given[a][row] for row in shared], [given[b][row] for row in shared]
        if len(shared) >= min_shared and len({*x, *y}) > 1:
            kappas[named.raters[a], named.raters[b]] = cohen_kappa(x, y, weights, found)
    if not kappas:
        raise ValueError(
            f"No two of {len(given)} raters have {min_shared} texts in common, with more than one label. Lower "
            "min_shared, or use krippendorff_alpha, which needs no pairs of raters."
        )
    return kappas


def _without_order(votes: Sequence[Any], weights: str | None, classes: Sequence[Any] | None) -> bool:
    return weights is not None and classes is None and any(isinstance(vote, str) for vote in votes)
