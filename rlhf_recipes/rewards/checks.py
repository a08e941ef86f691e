"""What a reward may return, and the words in which a failure is told.

Kept apart from `base.py`, so that the contract there reads without them. A failure names the reward and, as far as it
can be known, the row with its prompt and completion.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any


class RewardError(RuntimeError):
    """A reward raised, or returned something that is no reward. The message names it and, where known, the row."""


def reward_name(reward_func: Any) -> str:
    """The name under which a reward is logged: its `__name__`, or that of its class."""
    return getattr(reward_func, "__name__", None) or type(reward_func).__name__


def checked_weights(weights: Sequence[float] | None, names: Sequence[str]) -> tuple[float, ...]:
    """One finite number for each name, 1 for all where `weights` is `None`; `ValueError` says what does not fit."""
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(
            f"{len(weights)} weights were given for {len(names)} rewards ({', '.join(names)}): {list(weights)}. "
            "Give one weight for each reward, in the same order, or none at all for weights of 1."
        )
    for name, weight in zip(names, weights, strict=True):
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise ValueError(f"The weight of reward {name!r} is {weight!r}, but a weight must be a finite number.")
    return tuple(float(weight) for weight in weights)


def checked_call(func: Callable[..., Any], name: str, batch: dict[str, Any]) -> list[float | None]:
    """Call a reward on a batch and return its B values as Python floats or `None`.

    Raises:
        `RewardError`: if it raises, or returns anything but B finite numbers or `None`.
    """
    try:
        values = func(**batch)
    except RewardError:  # a composition: the reward inside it has been named
        raise
    except Exception as error:
        raise RewardError(
            f"Reward {name!r} raised {type(error).__name__}: {error}. {_first_failing_row(func, batch)} "
            f"It was called with {', '.join(batch)}."
        ) from error
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardError(
            f"Reward {name!r} returned {_short(values)} ({type(values).__name__}); it must return a list with one "
            "number or None for each completion."
        )
    size = len(batch["completions"])
    if len(values) != size:
        raise RewardError(
            f"Reward {name!r} returned {len(values)} values for {size} completions; it must return one number or "
            "None for each."
        )
    return [_checked_value(value, name, row, batch) for row, value in enumerate(values)]


def _checked_value(value: Any, name: str, row: int, batch: dict[str, Any]) -> float | None:
    if value is None:
        return None
    if hasattr(value, "tolist"):  # a number of numpy or torch becomes one of Python
        value = value.tolist()
    if not isinstance(value, numbers.Real):
        problem = f"{_short(value)}, of type {type(value).__name__}"
    elif not math.isfinite(value):
        problem = f"{float(value)}"
    else:
        return float(value)
    raise RewardError(
        f"Reward {name!r} returned {problem}, for {_describe(row, batch)}. A reward must be a finite number, or None "
        "where it does not apply."
    )


def _first_failing_row(func: Callable[..., Any], batch: dict[str, Any]) -> str:
    """Try the rows one by one, once the batch has failed, and say which is the first that fails alone."""
    size = len(batch["completions"])
    for row in range(size):
        alone = {
            key: [value[row]] if isinstance(value, (list, tuple)) and len(value) == size else value
            for key, value in batch.items()
        }
        try:
            func(**alone)
        except Exception:  # reported by the caller, with the first error as its cause
            return f"Tried one by one, the first row to fail is {_describe(row, batch)}."
    return f"None of its {size} rows fails alone."


def _describe(row: int, batch: dict[str, Any]) -> str:
    return f"row {row} (prompt {_short(batch['prompts'][row])}, completion {_short(batch['completions'][row])})"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"
