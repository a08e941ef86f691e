"""Labels only where the model is sure: confidence, what accuracy it buys, and a threshold with a guarantee.

A selective classifier labels the rows whose confidence is at least a threshold, and abstains from the others.
Its *coverage* is the share of rows that it labels, its accuracy the share of right ones among these (El-Yaniv and
Wiener 2010, "On the Foundations of Noise-free Selective Classification", JMLR 11, whose risk is 1 - accuracy). A
labelled sample shows one against the other, and picks a threshold for a wanted accuracy ([`pick_threshold`]).
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.imports import optional
from rlhf_recipes.statistics import Floats, Spread, numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)
EXTRA = {"needed_by": "Selective labelling", "extra": "feedback"}
UNSEEN = (
    6  # groups that count as seen for a bound: with it, no kind of groups that was tried breaks a promise too often
)
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
        return 0.5 * (1.0 + np.tanh(0.5 * (self.scale * np.asarray(x, dtype=np.float64) + self.offset)))

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
            x (`ArrayLike` of shape `(N,)`): Scores; of pairs, differences of the two.
            labels (`ArrayLike` of shape `(N,)`): 1 or 0, or the chance of 1.
            pairs (`bool`, *optional*, defaults to `False`): Whether rows are pairs, whose order means nothing.

        Raises:
            `ValueError`: if lengths differ, a label is not from 0 to 1, labels are of one class (texts), or labels do
                not rise with the scores.
        """
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
        linear_model = optional("sklearn.linear_model", package="scikit-learn", **EXTRA)
        model = linear_model.LogisticRegression(C=1e12, fit_intercept=not pairs, tol=1e-10, max_iter=10_000)
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
        confidence (`ArrayLike` of shape `(N,)`): How sure the model is of each row.
        right (`ArrayLike` of shape `(N,)` of `bool`): Whether it is right.
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
    spreads = _spreads(r[order], order.tolist() if groups is None else [groups[row] for row in order])
    return [
        Point(float(c[order][end]), float(count / total), int(count), int(hit), float(hit / count), spreads[end])
        for end, count, hit in zip(ends, counts, hits, strict=True)
    ]


def _spreads(right: Floats, groups: Sequence[int]) -> list[Spread]:
    """Of the accuracy of the first row, of the first two, ...: as `Units.spread`, with sums kept up to date."""
    own: dict[int, tuple[float, float]] = {}  # of each group its right rows and its rows
    squares = np.zeros(3)  # over groups: right^2, right rows, rows^2
    hits, spreads = 0.0, []
    for count, (hit, group) in enumerate(zip(right.tolist(), groups, strict=True), start=1):
        a, n = own.get(group, (0.0, 0.0))
        b, m = own[group] = a + hit, n + 1
        squares += [b * b - a * a, b * m - a * n, m * m - n * n]
        hits += hit
        p, units = hits / count, len(own)
        variance = max(float(squares @ [1, -2 * p, p * p]), 0.0) / count**2 * units / max(units - 1, 1)
        spreads.append(Spread(variance, 0.0, units, count**2 / float(squares[2]), units == count, units < count))
    return spreads


@dataclass(frozen=True)
class Choice:
    """A threshold, what it does to the sample it was chosen on, and what is sure of it.

    Args:
        point ([`Point`]): On the labelled sample.
        wanted (`float`): The accuracy that was asked for.
        guarantee (`float`): With which probability it holds; 0 where only the sample was asked.
        bound (`float`, *optional*): The accuracy that holds with it.
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
        confidence (`ArrayLike` of shape `(N,)`), right (`ArrayLike` of shape `(N,)`):
            As in [`coverage_curve`]. For a guarantee, the confidence must not have been fitted to these rows.
        wanted (`float`): Above 0 and below 1, or 1 without a guarantee.
        guarantee (`float`, *optional*, defaults to 0.95): From 0 to below 1.
        grid (`ArrayLike`, *optional*): Confidences of rows without labels, such as those to be labelled. Default: the
            sample's own.
        total (`int`, *optional*), groups (`Sequence[int]`, *optional*): As in [`coverage_curve`].

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
    return _tested(points, curve[-1], wanted, guarantee)


def _tested(points: Sequence[Point], whole: Point, wanted: float, guarantee: float) -> Choice:
    """The last of the points, strictest first, that passes before one does not."""
    bounds = [point.bound(1 - guarantee) for point in points]
    failed = next((place for place, bound in enumerate(bounds) if bound < wanted), len(points))
    if failed:
        return Choice(points[failed - 1], wanted, guarantee, bounds[failed - 1])
    seen = (
        f" Of the {points[0].rows} surest ones {points[0].right} are right, which allows {bounds[0]:.4f}."
        if points
        else ""
    )
    rows, more = f"{whole.rows} labelled rows", "labelled rows"
    if not whole.spread.alone:
        rows += f" in {whole.spread.units} groups (rows of one prompt, or with a text in common)"
        more = "labelled rows of other prompts"
    raise ValueError(
        f"{rows} cannot guarantee an accuracy of {wanted:g} with probability {guarantee:g}.{seen} Want less, give "
        f"more {more} or a better reward model, or set guarantee to 0, for what they show and no more."
    )


def _quantiles(grid: ArrayLike, whole: Point, wanted: float, delta: float) -> list[float]:
    """The confidences that 5%, 10% ... of the grid reach, highest first, from where enough of the rows will be."""
    ordered = np.sort(numbers(grid, "confidences of the grid"))[::-1]
    enough = 3 * math.log(delta) / math.log(wanted) if wanted < 1 else math.inf
    enough = min(enough, whole.spread.units) if not whole.spread.alone else enough
    steps = [step for step in range(1, STEPS + 1) if whole.rows * step / STEPS >= enough]
    thresholds = [float(ordered[max(math.ceil(len(ordered) * step / STEPS) - 1, 0)]) for step in steps]
    return list(dict.fromkeys(thresholds))


def _at(thresholds: Sequence[float], curve: Sequence[Point]) -> list[Point]:
    """The curve at these thresholds and no others; one that no row of the sample reaches is left out."""
    points = []
    for threshold in thresholds:
        reached = [point for point in curve if point.threshold >= threshold]
        if reached:
            points.append(replace(reached[-1], threshold=threshold))
    return points


def thinned(curve: Sequence[Point]) -> list[Point]:
    """At most 200 points, evenly over the curve, both ends among them: enough to draw."""
    if len(curve) <= MOST_POINTS:
        return list(curve)
    return [curve[place] for place in np.linspace(0, len(curve) - 1, MOST_POINTS).round().astype(int)]


# --- to be read ------------------------------------------------------------------------------------------


def coverage_table(curve: Sequence[Point], coverages: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)) -> str:
    """A few points of a curve as lines of text: coverage, the threshold, the accuracy and its 95% interval."""
    lines = ["coverage  confidence  accuracy  95% interval"]
    for wanted in coverages:
        reaching = [point for point in curve if point.coverage >= wanted - 1e-9]
        point = reaching[0] if reaching else curve[-1]
        low, high = point.interval
        lines.append(f"{point.coverage:8.1%}  {point.threshold:10.3f}  {point.accuracy:8.3f}  {low:.3f} to {high:.3f}")
    return "\n".join(dict.fromkeys(lines))


def draw_coverage(curves: Mapping[str, Sequence[Point]], path: str | Path, choice: Choice | None = None) -> Path:
    """Draw accuracy over coverage as PNG, each curve with its 95% intervals, and where the threshold lies.

    Args:
        curves (`Mapping[str, Sequence[Point]]`): One or two, by name, such as validation and test.
        path (`str` or `Path`): The file.
        choice ([`Choice`], *optional*): Drawn on the first curve, and what was wanted as a line across.
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
