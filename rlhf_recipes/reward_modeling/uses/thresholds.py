"""Labels only where the model is sure: confidence, what accuracy it buys, and a threshold with a guarantee.

A selective classifier labels the rows whose confidence is at least a threshold, and abstains from the others.
Its *coverage* is the share of rows that it labels, its accuracy the share of right ones among these (El-Yaniv and
Wiener 2010, "On the Foundations of Noise-free Selective Classification", JMLR 11, whose risk is 1 - accuracy). A
labelled sample shows one against the other, and picks a threshold for a wanted accuracy ([`pick_threshold`]).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.statistics import Floats, Spread, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Groups that count as seen for a bound: with it, no kind of groups that was tried breaks a promise too often.
UNSEEN = 6
STEPS = 20  # thresholds that are tried for a guarantee
MOST_POINTS = 200  # of a curve that is written down


# --- from scores to probabilities ------------------------------------------------------------------------


@dataclass(frozen=True)
class Sigmoid:
    """`p = 1 / (1 + exp(-(scale x + offset)))`, the chance that a text is good, or the first of two better.

    Args:
        scale (`float`): Above 0. Its inverse is the temperature.
        offset (`float`, *optional*, defaults to 0): 0 for pairs, whose order must not matter.
    """

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale > 0):
            raise ValueError(f"{self} gives no probabilities: both must be finite, and the scale above 0.")

    def __call__(self, x: ArrayLike) -> Floats:
        from scipy.special import expit

        return np.asarray(expit(self.scale * np.asarray(x, dtype=np.float64) + self.offset))

    @property
    def boundary(self) -> float:
        """Where the probability is 1/2."""
        return -self.offset / self.scale

    @classmethod
    def fit(cls, x: ArrayLike, labels: ArrayLike, pairs: bool = False) -> "Sigmoid":
        """The most likely curve through labelled rows, with scikit-learn's logistic regression.

        Texts get scale and offset (Platt 1999, "Probabilistic Outputs for Support Vector Machines"); pairs the scale
        alone, which is temperature scaling (Guo et al., arXiv 1706.04599, section 4.2). As Platt does, labels are
        taken for `(N+ + 1) / (N+ + 2)` and `1 / (N- + 2)` and not for 1 and 0, so that a few rows without a mistake
        do not make the model infinitely sure.

        Args:
            x (`(N,)`): Scores; of pairs, differences of the two.
            labels (`(N,)`): 1 or 0, or the chance of 1.
            pairs (`bool`, *optional*, defaults to `False`): Whether rows are pairs, whose order means nothing.

        Raises:
            `ValueError`: if lengths differ, a label is not from 0 to 1, labels are of one class (texts), or labels do
                not rise with the scores.
        """
        from sklearn.linear_model import LogisticRegression  # takes seconds

        x, y = _matching(x, labels, "scores")
        good, bad = (len(y), len(y)) if pairs else (y.sum(), (1 - y).sum())
        if min(good, bad) == 0:
            raise ValueError(
                f"All {len(y)} labels are of one class, so it cannot be told what a score says of the other. Add rows "
                "of both kinds, or move the decision threshold."
            )
        target = y * (good + 1) / (good + 2) + (1 - y) / (bad + 2)
        # scikit-learn takes classes: every row stands there twice, as good and as bad, with its share as weight.
        spread = float(np.abs(x).max()) or 1.0
        columns = np.concatenate([x, x])[:, None] / spread
        model = LogisticRegression(C=1e12, fit_intercept=not pairs, tol=1e-10, max_iter=10_000)
        classes = np.repeat([1, 0], len(x))
        model.fit(columns, classes, sample_weight=np.concatenate([target, 1 - target]))
        scale = float(model.coef_[0, 0]) / spread
        if not scale > 0:
            raise ValueError(
                f"The labels of {len(x)} rows do not rise with the scores (slope {scale:.3g}), so the scores say "
                "nothing of them. Check that a higher score means a better text, and which label is the good one."
            )
        return cls(scale, 0.0 if pairs else float(model.intercept_[0]))


# --- bounds -------------------------------------------------------------------------------------------


def accuracy_bound(right: float, rows: float, delta: float) -> float:
    """The accuracy below which the truth lies with a chance of at most `delta`, of `right` rows of `rows`.

    The one-sided bound of Clopper and Pearson: the accuracy `a` at which `right` or more would be seen with chance
    `delta`, `P(Binomial(rows, a) >= right) = delta`; 0 where none is right. In terms of errors it is what Geifman and
    El-Yaniv (arXiv 1705.08500) bound the risk of a selective classifier with.
    """
    from scipy.special import betaincinv

    return float(betaincinv(right, rows - right + 1, delta)) if right > 0 else 0.0


# --- coverage and accuracy -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What a threshold does to a labelled sample."""

    threshold: float
    coverage: float  # share of all rows that are labelled
    rows: int  # that are labelled
    right: int
    accuracy: float
    spread: Spread  # of the accuracy

    @property
    def interval(self) -> list[float]:
        """95% interval of the accuracy; of a single group, which says nothing of others, from 0 to 1."""
        return self.spread.bounded(self.accuracy) or [0.0, 1.0]

    def bound(self, delta: float) -> float:
        """The accuracy below which the truth lies with a chance of at most `delta`.

        [`accuracy_bound`], exact where no rows hang together. Of groups it is that of as many rows as the accuracy is
        worth (`Spread.rows_worth`): no more than there are, and no fewer than groups of one size, wholly right or
        wrong. That it holds is shown by simulation, for groups of many kinds, in the tests.
        """
        rows = float(self.rows)
        if not self.spread.alone:
            worth = self.spread.rows_worth(self.accuracy, UNSEEN) if self.spread.units > 1 else 1.0
            rows = min(max(worth, self.spread.equal), rows)
        return accuracy_bound(self.accuracy * rows, rows, delta)

    def figures(self) -> dict[str, Any]:
        """With the 95% interval of the accuracy, for JSON."""
        plain = ("threshold", "coverage", "rows", "right", "accuracy")
        return {name: getattr(self, name) for name in plain} | {
            "groups": self.spread.units,
            "accuracy_ci95": self.interval,
        }


def coverage_curve(
    confidence: ArrayLike, right: ArrayLike, total: int | None = None, groups: Sequence[int] | None = None
) -> list[Point]:
    """Accuracy against coverage, one point for each different confidence, from the surest rows on to all.

    Args:
        confidence (`(N,)`), right (`(N,)` of `bool`): How sure the model is of each row, and whether it is right.
        total (`int`, *optional*): What coverage is a share of, where rows were refused beforehand. Default: N.
        groups (`Sequence[int]` of length N, *optional*): Which rows hang together. Default: none.

    Raises:
        `ValueError`: if lengths differ, there are no rows, or more of them than `total`.
    """
    c, r = _matching(confidence, right, "confidences")
    total = len(c) if total is None else total
    if total < len(c):
        raise ValueError(f"total is {total}, less than the {len(c)} rows.")
    order = np.argsort(-c, kind="stable")
    ends = np.flatnonzero(np.append(c[order][1:] != c[order][:-1], True))  # rows of one confidence go together
    counts, hits = ends + 1, np.cumsum(r[order])[ends]
    spreads = _spreads(r[order], order if groups is None else np.asarray(groups)[order], ends)
    return [
        Point(float(c[order][end]), float(count / total), int(count), int(hit), float(hit / count), spread)
        for end, count, hit, spread in zip(ends, counts, hits, spreads, strict=True)
    ]


def _spreads(right: Floats, groups: NDArray[Any], ends: NDArray[np.int64]) -> list[Spread]:
    """Of the accuracy of the rows up to each of the ends: as `Units.spread`, out of running sums."""
    import pandas as pd  # takes half a second

    of_group = pd.Series(right).groupby(groups)
    hits, rows = of_group.cumsum().to_numpy(), of_group.cumcount().to_numpy() + 1.0  # of the row's group so far
    before = hits - right, rows - 1
    moved = [hits**2 - before[0] ** 2, hits * rows - before[0] * before[1], rows**2 - before[1] ** 2]
    squares, units = np.cumsum(moved, axis=1)[:, ends], np.cumsum(rows == 1)[ends]
    count = ends + 1.0
    p = np.cumsum(right)[ends] / count
    missed = np.maximum(squares[0] - 2 * p * squares[1] + p**2 * squares[2], 0.0)
    variance, equal = missed / count**2 * units / np.maximum(units - 1, 1), count**2 / squares[2]
    return [
        Spread(float(v), 0.0, int(u), float(e), bool(u == n), bool(u < n))
        for v, u, e, n in zip(variance, units, equal, count, strict=True)
    ]


@dataclass(frozen=True)
class Choice:
    """A threshold, what it does to the sample it was chosen on, and what is sure of it.

    `wanted` is the accuracy that was asked for, `guarantee` the probability with which it holds (0 where only the
    sample was asked), `bound` the accuracy that holds with it.
    """

    point: Point
    wanted: float
    guarantee: float
    bound: float | None

    @property
    def threshold(self) -> float:
        return self.point.threshold

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        named = {f"validation_{key}": value for key, value in self.point.figures().items() if key != "threshold"}
        return {
            "threshold": self.threshold,
            "wanted_accuracy": self.wanted,
            "guarantee": self.guarantee,
            "guaranteed_accuracy": self.bound,
            **named,
        }


def pick_threshold(
    confidence: ArrayLike,
    right: ArrayLike,
    wanted: float,
    guarantee: float = 0.95,
    grid: ArrayLike | None = None,
    total: int | None = None,
    groups: Sequence[int] | None = None,
) -> Choice:
    """The lowest threshold, hence the most labels, at which the labels are as accurate as wanted.

    With `guarantee` g, the accuracy on fresh rows of the same kind is at least `wanted` with probability g or more,
    over the draw of the sample. The thresholds that 5%, 10%, ... of `grid` reach are fixed before a label is looked
    at, and tested from the strictest on: one passes if [`Point.bound`] at `delta = 1 - g` is at least
    `wanted`, and the first that does not ends it. Of thresholds in a fixed order, each may be tested at the full
    `delta` (fixed sequence testing; Angelopoulos et al., "Learn then Test", arXiv 2110.01052, for predictions). It
    begins where three times as many rows are expected as would be enough without a mistake: a few shall not end it.
    Geifman and El-Yaniv (SGR, arXiv 1705.08500) bisect instead, with `delta` divided by the number of steps.

    With `guarantee=0` it is the lowest threshold at which the sample itself is as accurate as wanted. The best of many
    thresholds looks better than it is, so expect somewhat less on fresh rows.

    Args:
        confidence, right, total, groups: As in [`coverage_curve`]. For a guarantee, the confidence must not have been
            fitted to these rows.
        wanted (`float`): Above 0 and below 1, or 1 without a guarantee.
        guarantee (`float`, *optional*, defaults to 0.95): From 0 to below 1.
        grid (`ArrayLike`, *optional*): Confidences of rows without labels, such as those to be labelled. Default: the
            sample's own.

    Raises:
        `ValueError`: if no threshold will do. It says what can be had.
    """
    if not 0 < wanted <= 1 or not 0 <= guarantee < 1:
        raise ValueError(
            f"wanted is {wanted} and guarantee {guarantee}; give an accuracy above 0 and no more than 1, and a "
            "probability from 0 to below 1 (0 for what the sample shows and no more)."
        )
    curve = coverage_curve(confidence, right, total, groups)
    if guarantee == 0:
        good = [point for point in curve if point.accuracy >= wanted]
        if not good:
            best = max(curve, key=lambda point: point.accuracy)
            raise ValueError(
                f"No threshold reaches an accuracy of {wanted:g} on the labelled rows. The most is "
                f"{best.accuracy:.3f}, with {best.rows} of them. Want less, or take a better reward model."
            )
        return Choice(good[-1], wanted, guarantee, None)
    points = _at(_quantiles(confidence if grid is None else grid, curve[-1], wanted, 1 - guarantee), curve)
    bounds = [point.bound(1 - guarantee) for point in points]
    failed = next((place for place, bound in enumerate(bounds) if bound < wanted), len(points))
    if not failed:
        raise _nothing_passes(points[:1], bounds[:1], curve[-1], wanted, guarantee)
    return Choice(points[failed - 1], wanted, guarantee, bounds[failed - 1])


def _nothing_passes(
    first: Sequence[Point], bounds: Sequence[float], whole: Point, wanted: float, guarantee: float
) -> ValueError:
    seen = "".join(
        f" Of the {point.rows} surest ones {point.right} are right, which allows {bound:.4f}."
        for point, bound in zip(first, bounds, strict=True)
    )
    rows, more = f"{whole.rows} labelled rows", "labelled rows"
    if not whole.spread.alone:
        rows += f" in {whole.spread.units} groups (rows of one prompt, or with a text in common)"
        more = "labelled rows of other prompts"
    return ValueError(
        f"{rows} cannot guarantee an accuracy of {wanted:g} with probability {guarantee:g}.{seen} Want less, give "
        f"more {more} or a better reward model, or set guarantee to 0, for what they show and no more."
    )


def _quantiles(grid: ArrayLike, whole: Point, wanted: float, delta: float) -> list[float]:
    """The confidences that 5%, 10% ... of the grid reach, highest first, from where enough of the rows will be."""
    ordered = np.sort(numbers(grid, "confidences of the grid"))[::-1]
    enough = 3 * math.log(delta) / math.log(wanted) if wanted < 1 else math.inf
    enough = enough if whole.spread.alone else min(enough, whole.spread.units)
    steps = [step for step in range(1, STEPS + 1) if whole.rows * step / STEPS >= enough]
    thresholds = [float(ordered[max(math.ceil(len(ordered) * step / STEPS) - 1, 0)]) for step in steps]
    return list(dict.fromkeys(thresholds))


def _at(thresholds: Sequence[float], curve: Sequence[Point]) -> list[Point]:
    """The curve at these thresholds and no others; one that no row of the sample reaches is left out."""
    reached = [[point for point in curve if point.threshold >= threshold] for threshold in thresholds]
    return [replace(points[-1], threshold=own) for own, points in zip(thresholds, reached, strict=True) if points]


def thinned(curve: Sequence[Point]) -> list[Point]:
    """At most 200 points, evenly over the curve, both ends among them: enough to draw."""
    if len(curve) <= MOST_POINTS:
        return list(curve)
    return [curve[place] for place in np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int)]


def draw_coverage(curves: Mapping[str, Sequence[Point]], path: str | Path, choice: Choice | None = None) -> Path:
    """Draw accuracy over coverage as PNG, each curve with its 95% intervals, and where the threshold lies.

    Args:
        curves (`Mapping`): One or two, by name, such as validation and test. The choice is drawn on the first one.
    """
    from matplotlib.ticker import FuncFormatter

    from rlhf_recipes.figures import COLORS, MUTED, SERIES, draw_png

    def paint(canvas: "Figure") -> None:
        axes = canvas.add_subplot()
        lowest = 1.0
        for color, (name, curve) in zip((COLORS[SERIES[0]], COLORS[SERIES[1]]), curves.items(), strict=False):
            points = thinned(curve)
            coverage = [point.coverage for point in points]
            intervals = [point.interval for point in points]
            low, high = zip(*intervals, strict=True)
            axes.fill_between(coverage, low, high, color=color, alpha=0.15, linewidth=0)
            axes.plot(coverage, [point.accuracy for point in points], color=color, label=name)
            lowest = min(lowest, *(bound for point, bound in zip(points, low, strict=True) if point.coverage >= 0.1))
        if choice is not None:
            point, said = choice.point, f"the threshold, {choice.threshold:.3f}"
            axes.plot(point.coverage, point.accuracy, "o", color=COLORS[SERIES[0]], markersize=7, label=said)
            axes.axhline(choice.wanted, color=COLORS[MUTED], linewidth=1, linestyle=(0, (3, 2)), label="wanted")
        axes.set(xlim=(0, 1.01), ylim=(max(0.0, lowest - 0.03), 1.005), xlabel="share of rows that are labelled")
        axes.set_ylabel("right among the labelled")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.legend(loc="lower left", frameon=False)

    return draw_png(path, (5.6, 3.6), paint)


def _matching(values: ArrayLike, labels: ArrayLike, what: str) -> tuple[Floats, NDArray[np.float64]]:
    x, y = numbers(values, what), numbers(np.asarray(labels, dtype=np.float64), "labels")
    if len(x) != len(y) or not len(x):
        raise ValueError(f"There are {len(x)} {what} and {len(y)} labels; give one of each for every row, and a row.")
    if y.min() < 0 or y.max() > 1:
        raise ValueError(f"The labels run from {y.min():g} to {y.max():g}; they must be from 0 to 1.")
    return x, y
