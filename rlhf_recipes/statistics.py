"""Intervals, groups and weights: the arithmetic that every figure of a report shares."""

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def percentile_interval(values: ArrayLike) -> list[float]:
    """The 2.5th and the 97.5th percentile of bootstrap values."""
    return [float(bound) for bound in np.percentile(np.asarray(values, dtype=np.float64), [2.5, 97.5])]


Floats = NDArray[np.float64]


# --- reading ---------------------------------------------------------------------------------------------


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
        raise ValueError(f"The {what} must be one number for each row: {error}.") from error
    if array.ndim != 1:
        raise ValueError(f"The {what} must be one number for each row; they have the shape {array.shape}.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"The {what} of {len(bad)} of {len(array)} rows are missing or not finite, row {bad[0]} the first of "
            "them. Leave these rows out."
        )
    return array


def paired_gain(
    before: Sequence[float], after: Sequence[float], seed: int = 0, draws: int = 10_000
) -> Mapping[str, Any]:
    """Mean of `after - before` over prompts, with its 95% percentile bootstrap interval (prompts are resampled).

    Returns:
        `dict`: `gain`, and `gain_ci95` as `[low, high]`.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"{len(before)} scores before and {len(after)} after: both need one for each prompt.")
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return {"gain": float(difference.mean()), "gain_ci95": [float(low), float(high)]}


Ints = NDArray[np.int64]


def strata_of(gaps: ArrayLike, strata: int, rows: int) -> Ints:
    """Which of the strata, of equally many rows by gap, each row is in, `(N,)`. Equal gaps are never put apart."""
    values = numbers(gaps, "gaps")
    if len(values) != rows:
        raise ValueError(f"There are {len(values)} gaps for {rows} pairs; give one for each.")
    starts = np.unique(np.sort(values)[np.arange(strata) * rows // strata])
    return np.asarray(np.searchsorted(starts, values, side="right") - 1, dtype=np.int64)


Metrics = dict[str, Any]
Keys = Sequence[Any]  # texts, numbers, or messages


# --- Means -----------------------------------------------------------------------------------------------


def mean_with_interval(
    values: ArrayLike, units: Keys | None = None, samples: int = 1000, seed: int = 0
) -> tuple[float, list[float] | None]:
    """The mean and its interval; no interval for a single value or unit."""
    (v,) = float_columns(values=values)
    drawn = [
        (block @ v)[total > 0] / total[total > 0]
        for block in row_weights(len(v), units, None, samples, seed)
        for total in [block.sum(axis=1)]
    ]
    return float(v.mean()), bootstrap_interval(np.concatenate([*drawn, np.zeros(0)]))


BLOCK = 8_000_000  # numbers of a block of bootstrap weights


def correlation(a: Floats, b: Floats) -> float:
    a, b = a - a.mean(), b - b.mean()
    # Divided by their sizes first: squares of tiny numbers would be 0.
    a, b = a / np.abs(a).max(), b / np.abs(b).max()
    return float(np.clip(a @ b / np.sqrt((a @ a) * (b @ b)), -1.0, 1.0))


# --- helpers ---------------------------------------------------------------------------------------------


def float_columns(**columns: ArrayLike) -> list[Floats]:
    arrays = {name: numbers(values, name.replace("_", " ")) for name, values in columns.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        said = " and ".join(f"{length} {name}" for name, length in lengths.items())
        raise ValueError(f"There are {said}; give one of each for every row.")
    if not all(lengths.values()):
        raise ValueError(f"There are no rows: {' and '.join(arrays)} are empty.")
    return list(arrays.values())


def check_length(keys: Sequence[Any], rows: int, what: str) -> None:
    if len(keys) != rows:
        raise ValueError(f"There are {len(keys)} {what} for {rows} rows; give one for each.")


def rows_by_key(keys: Keys, rows: int, what: str = "prompts") -> list[NDArray[np.int64]]:
    """Row numbers of each different key, in the order in which keys first come."""
    check_length(keys, rows, what)
    found: dict[Hashable, list[int]] = {}
    for row, key in enumerate(keys):
        found.setdefault(hashable(key), []).append(row)
    return [np.array(of_key) for of_key in found.values()]


def hashable(key: Any) -> Hashable:
    return key if isinstance(key, Hashable) else json.dumps(key)  # a prompt may be a list of messages


def bootstrap_weights(units: int, samples: int, seed: int) -> Iterator[Floats]:
    """How often each unit stands in each bootstrap sample, in blocks `(s, U)`."""
    generator = np.random.default_rng(seed)
    size = max(1, BLOCK // units)
    for start in range(0, samples, size):
        drawn = generator.multinomial(units, np.full(units, 1 / units), size=min(size, samples - start))
        yield drawn.astype(np.float64)


def row_weights(rows: int, units: Keys | None, other_units: Keys | None, samples: int, seed: int) -> Iterator[Floats]:
    """How often each row stands in each sample, in blocks `(s, N)`: its unit's weight, or the product of its two."""
    if units is None and other_units is not None:
        raise ValueError("other_units is given without units; give both texts of each pair.")
    first = list(range(rows)) if units is None else list(units)
    second = [] if other_units is None else list(other_units)
    check_length(first, rows, "units")
    index: dict[Hashable, int] = {}
    columns = [
        np.array([index.setdefault(hashable(key), len(index)) for key in keys], dtype=int) for keys in (first, second)
    ]
    if second:
        check_length(second, rows, "other_units")
    if len(index) < 2:
        return
    for block in bootstrap_weights(len(index), samples, seed):
        yield block[:, columns[0]] * (block[:, columns[1]] if second else 1.0)


def bootstrap_interval(values: ArrayLike) -> list[float] | None:
    drawn = np.asarray(values, dtype=np.float64)
    return percentile_interval(drawn) if len(drawn) else None


def is_finite(value: Any) -> bool:
    """Whether a setting is a number that a float can hold, and no truth value."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for any float
        return False
