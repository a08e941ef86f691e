"""Intervals: between which ends a figure lies 95 times of 100, if texts, prompts or raters are drawn anew.

No samples are drawn. A figure moves by the *influence* of a row when that row counts once more (Efron 1982, The
Jackknife, the Bootstrap and Other Resampling Plans, chapter 6), and what independent units bring makes its variance:

    variance = U / (U - 1) sum_u r_u^2         r_u = sum of the influences of the rows of unit u

so several rows of one prompt count as what they are, a single draw (Liang and Zeger 1986, Biometrika 73). A pair of
texts is a part of both, and what it brings by itself must not count twice (Aronow, Samii and Assenova 2015, Political
Analysis 23): `variance = sum_u r_u^2 - sum_pairs e^2`.

From there two ways lead to an interval. Shares and all else that has two ends take [`Spread.bounded`], which does not
pass the ends, nor shrink to nothing where every row is right. All others take [`Spread.interval`]: quantiles of
Student's t, mended for skewness. How often both hold is shown by simulation in `tests/test_statistics.py`.

All of it rests on [`Spread`] and [`Units`], and so stands in one file.
"""

import json
import math
from collections.abc import Callable, Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.texts import sentence

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Metrics = dict[str, Any]
Keys = Sequence[Any]  # texts, numbers, or messages
Interval = list[float] | None
Ends = tuple[float, float]

TAIL = 0.025  # beyond each end of an interval
NORMAL_QUANTILE = 1.959964
GROUPS = 200  # of units that are left out in turn, where a figure has no formula for what each row brings


def correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; NaN where one of the two does not vary, which then tells nothing of the other."""
    from scipy.stats import pearsonr  # takes most of a second

    return float(pearsonr(x, y).statistic) if np.ptp(x) > 0 and np.ptp(y) > 0 else math.nan


@dataclass(frozen=True)
class Spread:
    """How far a figure may be off.

    Args:
        variance (`float`): Of the figure.
        skew (`float`): Of the figure too: the third moment of what units bring, over the 1.5th power of the second.
        units (`int`): How many are independent.
        equal (`float`): As many as units of one size would be, `(sum of sizes)^2 / sum of squares` (Kish 1965).
        alone (`bool`): Whether each row is a unit.
        together (`bool`): Whether units are of several rows, which may be right or wrong together.
    """

    variance: float
    skew: float
    units: int
    equal: float
    alone: bool = False
    together: bool = False

    def interval(self, value: float) -> Interval:
        """Of a mean, or another figure without ends; `None` for a single unit, which says nothing of others.

        From `value - error g(t)` to `value - error g(-t)`, t being a quantile of Student's distribution with
        `units - 1` degrees and `g(x) = 3 / a ((1 + a (x - a / 6))^(1/3) - 1)` of the skewness a: Hall's transformation
        (1992, Journal of the Royal Statistical Society B 54). Without skewness g(x) is x.
        """
        if self.units < 2:
            return None
        t, a, error = self._t, self.skew, self.variance**0.5
        if abs(a) < 1e-6:
            return [value - error * t, value + error * t]
        return [float(value - error * 3 / a * (np.cbrt(1 + a * (end - a / 6)) - 1)) for end in (t, -t)]

    def bounded(self, value: float, low: float = 0.0, high: float = 1.0, unseen: float = 1.0) -> Interval:
        """Of a share, or another figure that lies between two ends; `None` for a single unit.

        The share `p = (value - low) / (high - low)` is taken for that of `n = p (1 - p) / variance` independent rows
        (Korn and Graubard 1998, Survey Methodology 24). Near an end few units differ, so that the variance is hardly
        known, and 0 on it: a unit more counts as seen, that is wholly on one side or on the other, and where rows hang
        together up to three of them, the nearer the end. The interval goes between quantiles of
        `Beta(p n + 1/4, n - p n + 3/4)` and of its mirror image, halfway between those of Clopper and Pearson (1934),
        which hold too often, and those of Jeffreys' prior, which hold too seldom near 0 and 1.

        Args:
            value (`float`): The figure.
            low, high (`float`, *optional*, defaults to 0 and 1): Its ends.
            unseen (`float`, *optional*, defaults to 1.0): How much of a unit counts as seen. A correlation takes 1/4:
                near its ends its variance falls with the square of the distance from them.
        """
        if self.units < 2:
            return None
        from scipy.special import betaincinv  # takes a tenth of a second

        width = high - low
        p = min(max((value - low) / width, 0.0), 1.0)
        if self.together:
            unseen *= 3 - 8 * p * (1 - p)
        n = replace(self, variance=self.variance / width**2).rows_worth(p, unseen)
        if self.together and p in (0.0, 1.0):
            n = max(n, self.equal)  # as if each unit were wholly right or wrong
        right, wrong = p * n, (1 - p) * n
        lower = float(betaincinv(right + 0.25, wrong + 0.75, TAIL)) if right > 1e-9 else 0.0
        upper = float(betaincinv(right + 0.75, wrong + 0.25, 1 - TAIL)) if wrong > 1e-9 else 1.0
        return [low + width * lower, low + width * upper]

    def rows_worth(self, share: float, unseen: float = 1.0) -> float:
        """How many independent rows are as sure of a share; see [`Spread.bounded`]. Of several units."""
        equal = self.equal / unseen
        centre = (share * equal + 0.5) / (equal + 1)
        more = centre * (1 - centre) / equal
        rows = (share * (1 - share) + more) / (self.variance + more / equal)
        # The variance of a share of single rows is known from the share; any other is an estimate.
        return rows if self.alone and unseen >= 1 else rows * (NORMAL_QUANTILE / self._t) ** 2

    @property
    def _t(self) -> float:
        from scipy.special import stdtrit

        return float(stdtrit(self.units - 1, 1 - TAIL))


def spread_of(influences: Floats, sizes: Floats, rows: float, own: float = 0.0, own_third: float = 0.0) -> Spread:
    """The spread of a figure by what each unit brings.

    Args:
        influences (`(U,)`): Sum of the influences of the rows that a unit has a part in.
        sizes (`(U,)`): How many rows these are. Units of size 0 do not count.
        rows (`float`): How many rows there are: the sum of the sizes, or half of it where rows are pairs of units.
        own (`float`, *optional*, defaults to 0): Sum of the squared influences of rows that are pairs of units.
        own_third (`float`, *optional*, defaults to 0): Sum of their third powers.
    """
    there = sizes > 0
    units = int(min(there.sum(), rows))
    squares = max(float((influences**2).sum()) - own, own)
    skew = (float((influences**3).sum()) - own_third) / squares**1.5 if squares > 0 else 0.0
    equal = min(float(rows), float(sizes.sum()) ** 2 / float((sizes**2).sum()))
    alone = bool(sizes.max() <= 1)
    together = not alone and rows >= sizes.sum()
    return Spread(squares * units / max(units - 1, 1), skew, units, equal, alone, bool(together))


@dataclass(frozen=True)
class Units:
    """Which of N rows hang together: those of one prompt, or pairs that have a text in common.

    Args:
        columns (`(K, N)`): The number of each row's unit; K is 2 where rows are pairs of units.
        sizes (`(N,)`): 1, or how many rows each row is the sum of.
    """

    columns: Ints
    sizes: Floats

    @classmethod
    def of(
        cls, rows: int, units: Keys | None = None, other_units: Keys | None = None, sizes: ArrayLike | None = None
    ) -> "Units":
        """Number the units. Where none are given, each row is one.

        Raises:
            `ValueError`: if there is not one for each row, or the second ones are given alone.
        """
        if units is None and other_units is not None:
            raise ValueError("other_units is given without units; give both texts of each pair.")
        index: dict[Hashable, int] = {}
        columns = []
        for name, given in (("units", range(rows) if units is None else units), ("other_units", other_units)):
            if given is None:
                continue
            check_length(given, rows, name)
            columns.append([index.setdefault(as_key(unit), len(index)) for unit in given])
        weights = np.ones(rows) if sizes is None else np.asarray(sizes, dtype=np.float64)
        return cls(np.array(columns, dtype=np.int64), weights)

    def spread(self, influences: ArrayLike) -> Spread:
        """The spread of a figure that each row moves by its influence, `(N,)`."""
        moved = np.asarray(influences, dtype=np.float64)
        twice = self.columns[0] != self.columns[-1]  # rows that are pairs of units
        sums, sizes = self._by_unit(moved, twice), self._by_unit(self.sizes, twice)
        own = moved[twice]
        return spread_of(sums, sizes, float(self.sizes.sum()), float((own**2).sum()), float((own**3).sum()))

    def interval(self, value: float, influences: ArrayLike, ends: Ends | None = None, unseen: float = 1.0) -> Interval:
        """Of a figure that each row moves by its influence: [`Spread.bounded`] by its ends, if it has some."""
        spread = self.spread(influences)
        return spread.interval(value) if ends is None else spread.bounded(value, *ends, unseen=unseen)

    def _by_unit(self, values: Floats, twice: NDArray[np.bool_] | None = None) -> Floats:
        count = int(self.columns.max()) + 1
        sums = np.bincount(self.columns[0], values, count)
        if twice is not None:
            sums += np.bincount(self.columns[-1][twice], values[twice], count)
        return np.asarray(sums, dtype=np.float64)

    def spread_of_pairs(self, influences: Floats, asked: Floats, own: float = 0.0) -> Spread:
        """The spread of a figure of pairs of rows, each row being the sum of its pairs.

        Args:
            influences (`(N,)`), asked (`(N,)`): Of each row, summed over its pairs, and how many these are.
            own (`float`, *optional*, defaults to 0): As in [`spread_of`].
        """
        return spread_of(self._by_unit(influences), self._by_unit(asked), float(asked.sum()) / 2, own)

    def mean(self, values: Floats) -> tuple[float, Floats]:
        """The mean of rows, each the sum of as many as its size says, and the influence of each `(N,)`."""
        total = float(self.sizes.sum())
        mean = float(values.sum()) / total
        return mean, (values - mean * self.sizes) / total


def without_each(figures: Callable[[Floats], Mapping[str, Floats]], sums: Floats) -> dict[str, tuple[float, Floats]]:
    """Figures that are functions of sums over rows, and the influence of each row: what is missed without it.

    Args:
        figures (callable): From sums `(S, K)` to figures by name, `(S,)` each; NaN for one that does not exist.
        sums (`(N, K)`): Of each row.

    Returns:
        `dict[str, tuple]`: the figure and influences `(N,)`; 0 of a row without which the figure does not exist.
    """
    total, rows = sums.sum(axis=0)[None], len(sums)
    whole, left = figures(total), figures(total - sums)
    return {
        name: (float(value[0]), np.nan_to_num(value[0] - left[name]) * (rows - 1) / rows)
        for name, value in whole.items()
    }


def jackknife(figures: Callable[[Ints], ArrayLike], units: Units) -> list[Spread | None]:
    """The spread of figures of which no more is known than how to compute them (Efron 1982, chapter 3).

    One unit is left out after another; of many units, one of `GROUPS` groups of them. Of a single unit there are none.

    Args:
        figures (callable): From row numbers to K figures; NaN for one that does not exist.
    """
    count = int(units.columns.max()) + 1
    group = (np.random.default_rng(0).permutation(count) % min(count, GROUPS))[units.columns[0]]
    left = [figures(np.flatnonzero(group != out)) for out in range(min(count, GROUPS)) if count > 1]
    equal = units.spread(np.zeros(len(group))).equal

    def spread(known: Floats) -> Spread | None:
        if len(known) < 2:
            return None
        influences = (known.mean() - known) * (len(known) - 1) / len(known)
        return replace(spread_of(influences, np.ones(len(known)), len(known)), equal=equal, alone=False)

    return [spread(column[np.isfinite(column)]) for column in np.array(left, dtype=np.float64).T]


def combined(parts: Sequence[tuple[float, Spread]]) -> Spread:
    """The spread of a weighted sum of figures of rows that have no unit in common."""
    variance = sum(weight**2 * spread.variance for weight, spread in parts)
    third = sum(weight**3 * spread.skew * spread.variance**1.5 for weight, spread in parts)
    total = sum(weight for weight, _ in parts)
    return Spread(
        variance,
        third / variance**1.5 if variance > 0 else 0.0,
        sum(spread.units - 1 for _, spread in parts) + 1,
        total**2 / sum(weight**2 / spread.equal for weight, spread in parts),
        all(spread.alone for _, spread in parts),
        any(spread.together for _, spread in parts),
    )


def mean_with_interval(
    values: ArrayLike, units: Keys | None = None, other_units: Keys | None = None, ends: Ends | None = None
) -> tuple[float, Interval]:
    """The mean of rows and its interval: within its ends, where it has some; `None` for a single value or unit."""
    (v,) = float_columns(values=values)
    together = Units.of(len(v), units, other_units)
    mean, influences = together.mean(v)
    return mean, together.interval(mean, influences, ends)


def ratio_interval(sums: ArrayLike, counts: ArrayLike, low: float = 0.0, high: float = 1.0) -> Interval:
    """Of `sum(sums) / sum(counts)`, between two ends, of an independent unit each; `None` for fewer than two."""
    a, n = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if n.sum() <= 0:
        return None
    units = Units.of(len(a), sizes=n)
    return units.interval(*units.mean(a), (low, high))


def paired_gain(before: Sequence[float], after: Sequence[float]) -> Metrics:
    """`gain`, the mean of `after - before` over prompts, and `gain_ci95`, `None` for a single prompt."""
    if len(before) != len(after) or not len(before):
        raise ValueError(f"{len(before)} scores before and {len(after)} after: both need one for each prompt.")
    gain, interval = mean_with_interval(np.asarray(after, dtype=float) - np.asarray(before, dtype=float))
    return {"gain": gain, "gain_ci95": interval}


def percentile_interval(values: ArrayLike) -> list[float]:
    """The 2.5th and the 97.5th percentile of bootstrap values."""
    return [float(bound) for bound in np.percentile(np.asarray(values, dtype=np.float64), [2.5, 97.5])]


def as_key(unit: Any) -> Hashable:
    """What tells a unit from others: itself, or its JSON where it is a list of messages."""
    return unit if isinstance(unit, Hashable) else json.dumps(unit, sort_keys=True, default=str)


def shared(prompts: Sequence[Any]) -> list[Hashable] | None:
    """The prompts as units, where one of them has several rows; else `None`, and each row stands by itself."""
    keys = [as_key(prompt) for prompt in prompts]
    return keys if len(set(keys)) < len(keys) and any(prompts) else None


def pair_units(
    prompts: Sequence[Any], first: Sequence[Any], second: Sequence[Any]
) -> tuple[list[Hashable] | None, list[Hashable] | None]:
    """What pairs hang together by: their prompts, where some are shared; else their texts, where some are."""
    keys = shared(prompts)
    if keys is not None:
        return keys, None
    left, right = ([as_key([*both]) for both in zip(prompts, side, strict=True)] for side in (first, second))
    return (None, None) if len({*left, *right}) == 2 * len(left) else (left, right)


def linked(*columns: Sequence[Any]) -> list[int]:
    """The group of each row, as a number: rows that have an entry in common are of one group, and so on.

    Args:
        columns (`Sequence` of length N): Entries of rows, in whichever column; `None` is none.
    """
    from scipy.sparse import coo_array  # takes a third of a second
    from scipy.sparse.csgraph import connected_components

    index: dict[Hashable, int] = {}
    entries = [(row, as_key(key)) for column in columns for row, key in enumerate(column) if key is not None]
    rows, ends = [row for row, _ in entries], [index.setdefault(key, len(index)) for _, key in entries]
    count, nodes = len(columns[0]), len(columns[0]) + len(index)
    links = coo_array((np.ones(len(rows)), (rows, np.add(ends, count, dtype=np.int64))), shape=(nodes, nodes))
    groups: list[int] = connected_components(links, directed=False)[1][:count].tolist()
    return groups


def is_missing(value: Any) -> bool:
    """Whether a vote was not given: `None` or NaN."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def numbers(values: Any, what: str) -> Floats:
    """Finite numbers as an array `(N,)`; `ValueError` with the first row that is none."""
    if not isinstance(values, np.ndarray):
        values = list(values)
        for row, value in enumerate(values):
            if isinstance(value, str | bytes):
                raise ValueError(f"The {what} must be numbers, and row {row} is the text {value!r}.")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {what} must be one number for each row: {sentence(error)}") from error
    if array.ndim != 1:
        raise ValueError(f"The {what} must be one number for each row; they have the shape {array.shape}.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"The {what} of {len(bad)} of {len(array)} rows are missing or not finite, row {bad[0]} the first of "
            "them. Leave these rows out."
        )
    return array


def float_columns(**columns: ArrayLike) -> list[Floats]:
    arrays = {name: numbers(values, name.replace("_", " ")) for name, values in columns.items()}
    same_length(**arrays)
    if not all(map(len, arrays.values())):
        raise ValueError(f"There are no rows: {' and '.join(arrays)} are empty.")
    return list(arrays.values())


def same_length(**columns: Sized) -> None:
    """Raise `ValueError` where there is not one of each for every row."""
    counts = {name.replace("_", " "): len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        *said, last = (f"{count} {name}" for name, count in counts.items())
        raise ValueError(f"There are {', '.join(said)} and {last}; give one of each for every row.")


def check_length(keys: Sequence[Any], rows: int, what: str) -> None:
    if len(keys) != rows:
        raise ValueError(f"There are {len(keys)} {what} for {rows} rows; give one for each.")


def rows_by_key(keys: Keys, rows: int, what: str = "prompts") -> list[Ints]:
    """Row numbers of each different key, in the order in which keys first come."""
    check_length(keys, rows, what)
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(as_key(key), []).append(row)
    return [np.array(of_key) for of_key in found.values()]


def strata_of(gaps: ArrayLike, strata: int, rows: int) -> Ints:
    """Which of the strata, of equally many rows by gap, each row is in, `(N,)`. Equal gaps are never put apart."""
    values = numbers(gaps, "gaps")
    if len(values) != rows:
        raise ValueError(f"There are {len(values)} gaps for {rows} pairs; give one for each.")
    starts = np.unique(np.sort(values)[np.arange(strata) * rows // strata])
    return np.asarray(np.searchsorted(starts, values, side="right") - 1, dtype=np.int64)


def is_finite(value: Any) -> bool:
    """Whether a setting is a number that a float can hold, and no truth value."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for any float
        return False
