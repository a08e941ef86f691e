"""How much scores lean on what people were not asked about: the arithmetic of `measure.py`, on columns of numbers.

x is a covariate such as the length of a text, s the score, y what people say: a number for each of N texts, or for
each of M pairs the better text's less that of the other. Each figure has its 95% interval beside it, `<key>_ci95`,
over `units`: prompts where several texts answer one, for pairs the texts of each (`other_units` is the second), and by
default the rows. `None` stands for a figure that does not exist. Columns of different lengths, and numbers that are
not finite, are a `ValueError`.
"""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.statistics import Floats, Keys, Metrics, Units, check_length, float_columns, strata_of, without_each

# The ends of figures that have some, and how much of a unit counts as unseen, see `Spread.bounded`.
BETWEEN = dict.fromkeys(("with_score", "with_rating", "partial", "partial_corrected"), ((-1.0, 1.0), 0.25))
BETWEEN |= dict.fromkeys(("accuracy_difference", "favoured"), ((-1.0, 1.0), 1.0))
BETWEEN |= dict.fromkeys(("accuracy_more", "accuracy_less", "accuracy", "by_score", "by_people"), ((0.0, 1.0), 1.0))
CONSTANT = 1e-12  # a share of a variance, below which what is left of it is rounding


# --- Single texts ----------------------------------------------------------------------------------------


def partial_correlation(
    scores: ArrayLike,
    covariate: ArrayLike,
    ratings: ArrayLike | None = None,
    reliability: float | None = None,
    units: Keys | None = None,
) -> Metrics:
    """How score and covariate go together, and what of it is left among texts that people rate alike.

    | key | formula |
    |---|---|
    | `with_score`, `with_rating` | Pearson's `r_sx` and `r_yx` |
    | `partial` | `(r_sx - r_sy r_yx) / sqrt((1 - r_sy^2) (1 - r_yx^2))` |
    | `slope` | `(r_sx - r_sy r_yx) / (1 - r_yx^2)`: standard deviations of s for one of x, at equal y |
    | `partial_corrected` | `partial` with `r_sy` and `r_yx` divided by `sqrt(reliability)` |

    `partial` is the correlation of what is left of s and of x after a straight line in y is taken out of both (Yule
    1907). Ratings of few raters hide a part of the quality. What they hide stays in the score, and where quality and
    covariate go together `partial` is not 0 even for a perfect score. `partial_corrected` is that of the rating on
    which very many raters would agree (Kahneman 1965, Psychological Bulletin 64).

    Args:
        scores, covariate: s and x.
        ratings (*optional*): y. Without, only `with_score` can be said.
        reliability (`float`, *optional*): Share of the variance of y that is the texts', above 0 and at most 1.

    Returns:
        `dict`: the keys above; `None` where a column does not vary, or where y says all of x.
    """
    if reliability is not None and not 0.0 < reliability <= 1.0:
        raise ValueError(f"reliability is {reliability}; give a share above 0 and at most 1, or None.")
    columns = float_columns(scores=scores, covariate=covariate, **({} if ratings is None else {"ratings": ratings}))
    # Means and sizes first, or squares of large numbers would drown the differences.
    z = np.stack([_standard(column) for column in columns], axis=1)  # (N, C)
    products = z[:, :, None] * z[:, None, :]
    moments = np.concatenate([np.ones((len(z), 1)), z, products.reshape(len(z), -1)], axis=1)
    found = without_each(lambda sums: _partials(sums, z.shape[1], reliability), moments)
    return _with_intervals(found, Units.of(len(z), units))


def _standard(column: Floats) -> Floats:
    centered = column - column.mean()
    spread = np.abs(centered).max()
    # A column of equal numbers keeps rounding, which is not to be blown up.
    return centered / spread if spread > CONSTANT * max(1.0, np.abs(column).max()) else np.zeros(len(column))


def _partials(sums: Floats, columns: int, reliability: float | None) -> dict[str, Floats]:
    """The figures of [`partial_correlation`] of sums of moments `(S, 1 + C + C^2)`; NaN for none."""
    means, products = np.split(sums[:, 1:] / sums[:, :1], [columns], axis=1)
    covariance = products.reshape(-1, columns, columns) - means[:, :, None] * means[:, None, :]
    sizes = np.sqrt(_positive(np.diagonal(covariance, axis1=1, axis2=2)))
    r = np.clip(covariance / (sizes[:, :, None] * sizes[:, None, :]), -1.0, 1.0)
    figures = {"with_score": r[:, 0, 1]}
    if columns == 3:
        s_x, s_y, y_x = r[:, 0, 1], r[:, 0, 2], r[:, 1, 2]
        figures |= {"with_rating": y_x, "partial": _partial(s_x, s_y, y_x)}
        figures["slope"] = (s_x - s_y * y_x) / _positive(1 - y_x**2)
        if reliability is not None:
            root = np.sqrt(reliability)
            figures["partial_corrected"] = _partial(s_x, s_y / root, y_x / root)
    return figures


def _partial(s_x: Floats, s_y: Floats, y_x: Floats) -> Floats:
    return np.clip((s_x - s_y * y_x) / np.sqrt(_positive(1 - s_y**2) * _positive(1 - y_x**2)), -1.0, 1.0)


def _positive(values: Floats) -> Floats:
    return np.where(values > CONSTANT, values, np.nan)


# --- Pairs -----------------------------------------------------------------------------------------------


def matched_accuracy(
    score_differences: ArrayLike,
    covariate_differences: ArrayLike,
    gaps: ArrayLike | None = None,
    strata: int = 4,
    units: Keys | None = None,
    other_units: Keys | None = None,
) -> Metrics:
    """Accuracy where the better text has more of the covariate against where it has less, at the same rating gap.

    `acc_more = sum_b w_b acc_more,b`, over strata b of equally many pairs by gap, and `acc_less` with the same
    weights `w_b ~ n_more,b n_less,b / (n_more,b + n_less,b)` (Mantel and Haenszel 1959). So a difference is not one
    of how hard the pairs are. Equal scores count half. Pairs with equal covariates say nothing here.

    Args:
        score_differences, covariate_differences: Of each pair.
        gaps (*optional*): By how much people prefer the better text.
        strata (`int`, *optional*, defaults to 4): Pairs of equal gaps are never put apart, so there may be fewer.

    Returns:
        `dict`: `accuracy_more`, `accuracy_less`, `accuracy_difference` (more less less), `pairs_more`, `pairs_less`.
        `None` where no stratum has pairs of both sorts.
    """
    d, x = float_columns(score_differences=score_differences, covariate_differences=covariate_differences)
    if strata < 1:
        raise ValueError(f"strata is {strata}; give 1 or more.")
    stratum = strata_of(np.zeros(len(d)) if gaps is None else gaps, strata, len(d))
    member = np.eye(stratum.max() + 1)[stratum]  # (M, B)
    more, less = member * (x > 0)[:, None], member * (x < 0)[:, None]
    credit = (0.5 + 0.5 * np.sign(d))[:, None]
    sums = np.concatenate([more, less, credit * more, credit * less], axis=1)  # (M, 4 B)
    figures = _with_intervals(without_each(_matched, sums), Units.of(len(d), units, other_units))
    return {**figures, "pairs_more": int((x > 0).sum()), "pairs_less": int((x < 0).sum())}


def _matched(sums: Floats) -> dict[str, Floats]:
    more, less, right_more, right_less = np.split(sums, 4, axis=1)  # (S, B) each
    both = (more > 0) & (less > 0)
    weight = np.where(both, more * less / np.where(both, more + less, 1.0), 0.0)
    total = _positive(weight.sum(axis=1))
    a, b = (
        (weight * right / np.where(both, count, 1.0)).sum(axis=1) / total
        for right, count in ((right_more, more), (right_less, less))
    )
    return {"accuracy_more": a, "accuracy_less": b, "accuracy_difference": a - b}


# --- Groups ----------------------------------------------------------------------------------------------


def group_residuals(
    residuals: ArrayLike, groups: Sequence[Hashable], units: Keys | None = None
) -> dict[Hashable, Metrics]:
    """Whether the score is too high for some group: mean of score less rating in a group, and against all others.

    That these means are equal is the constraint of balanced residuals (Calders et al. 2013, Controlling Attribute
    Effect in Linear Regression). A score that knows less than everything lies between the rating and the mean of all:
    it is a little too low for a group that is rated high and too high for one that is rated low, with no prejudice.

    Args:
        residuals: Calibrated score less rating, in units of the rating.
        groups (`Sequence` of length N): The group of each text; those of `None` count among the others.

    Returns:
        `dict`: for each group `residual` (its mean) and `beyond_others` (less the mean of the texts of other groups).
    """
    (r,) = float_columns(residuals=residuals)
    together = Units.of(len(r), units)
    found: dict[Hashable, Metrics] = {}
    for name in _names(groups, len(r)):
        inside = np.array([group == name for group in groups], dtype=np.float64)
        sums = np.stack([inside, inside * r, 1 - inside, (1 - inside) * r], axis=1)
        found[name] = _with_intervals(without_each(_residual, sums), together)
    return found


def _residual(sums: Floats) -> dict[str, Floats]:
    count, total, other_count, other_total = sums.T
    mean = total / _positive(count)
    return {"residual": mean, "beyond_others": mean - other_total / _positive(other_count)}


def group_preferences(
    score_differences: ArrayLike,
    better: Sequence[Hashable],
    other: Sequence[Hashable],
    units: Keys | None = None,
    other_units: Keys | None = None,
) -> dict[Hashable, Metrics]:
    """Accuracy within each group, and between groups how often score and people prefer a text of the group.

    Args:
        score_differences: Of each pair.
        better, other (`Sequence` of length M): The groups of both texts.

    Returns:
        `dict`: for each group `accuracy` (both texts are of it) and `pairs_within`; `by_score` and `by_people`, the
        shares of pairs with one text of it in which that one is preferred, `favoured` (the first less the second) and
        `pairs_across`. Equal scores count half.
    """
    (d,) = float_columns(score_differences=score_differences)
    credit, together = 0.5 + 0.5 * np.sign(d), Units.of(len(d), units, other_units)
    found: dict[Hashable, Metrics] = {}
    for name in _names([*better, *other], 2 * len(d)):
        a, b = (np.array([group == name for group in side]) for side in (better, other))
        within, across = a & b, a != b
        by_score = np.where(a, credit, 1 - credit) * across
        sums = np.stack([within, within * credit, across, by_score, a & across], axis=1).astype(np.float64)
        counts = {"pairs_within": int(within.sum()), "pairs_across": int(across.sum())}
        found[name] = _with_intervals(without_each(_preference, sums), together) | counts
    return found


def _preference(sums: Floats) -> dict[str, Floats]:
    within, right, across, by_score, by_people = sums.T
    said, wanted = by_score / _positive(across), by_people / _positive(across)
    return {"accuracy": right / _positive(within), "by_score": said, "by_people": wanted, "favoured": said - wanted}


def _names(groups: Sequence[Hashable], rows: int) -> list[Hashable]:
    check_length(groups, rows, "groups")
    return [name for name in dict.fromkeys(groups) if name is not None]


def _with_intervals(figures: Mapping[str, tuple[float, Floats]], units: Units) -> Metrics:
    """Figures, each with its interval by the influences of rows; NaN is a figure that does not exist."""
    metrics: Metrics = {}
    for key, (value, influences) in figures.items():
        known = bool(np.isfinite(value))
        ends = units.interval(value, influences, *BETWEEN.get(key, (None, 1.0))) if known else None
        metrics |= {key: value if known else None, f"{key}_ci95": ends}
    return metrics
