"""What a reward may return, and the words in which a failure is told.

Kept apart from `base.py`, so that the contract there reads without them. A failure names the reward and, as far as it
can be known, the row with its prompt and completion.
"""

import functools
import math
import numbers
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from rlhf_recipes.errors import RewardError
from rlhf_recipes.rewards.contract.concurrent import begun, called, is_async
from rlhf_recipes.rewards.watchdog import is_library, watched

# What a reward may say of itself, see `base.py`. A wrapper around a reward has to say the same.
REWARD_ATTRIBUTES = ("per_token", "potential", "constant", "wants_prompt_ids", "wants_ref_logprobs", "wants_siblings")
Weight: TypeAlias = float | Callable[[float], float]


def reward_name(reward_func: Any) -> str:
    """The name under which a reward is logged: its `__name__`, or that of its class."""
    return getattr(reward_func, "__name__", None) or type(reward_func).__name__


def checked_weights(weights: Sequence[Weight] | None, names: Sequence[str]) -> tuple[Weight, ...]:
    """One weight for each name, 1 for all where `weights` is `None`; `ValueError` says what does not fit.

    A weight is a finite number, or a callable from progress (0 to 1) to one.
    """
    if weights is None:
        return (1.0,) * len(names)
    if len(weights) != len(names):
        raise ValueError(
            f"{len(weights)} weights were given for {len(names)} rewards ({', '.join(names)}): {list(weights)}. "
            "Give one weight for each reward, in the same order, or none at all for weights of 1."
        )
    for name, weight in zip(names, weights, strict=True):
        if callable(weight):
            continue
        if isinstance(weight, bool) or not isinstance(weight, numbers.Real) or not math.isfinite(weight):
            raise ValueError(
                f"The weight of reward {name!r} is {weight!r}, but a weight must be a finite number or a"
                " WeightSchedule."
            )
    return tuple(weight if callable(weight) else float(weight) for weight in weights)


def is_per_token(func: Any) -> bool:
    """Whether a reward gives one number for each token of a completion (`per_token = True`)."""
    return bool(getattr(func, "per_token", False))


def is_potential(func: Any) -> bool:
    """Whether the numbers of a per-token reward are potentials, which the trainer shapes (`potential = True`)."""
    return bool(getattr(func, "potential", False))


def checked_call(
    func: Callable[..., Any], name: str, batch: dict[str, Any], finish: Callable[[], Any] | None = None
) -> list[Any]:
    """Call a reward on a batch and return its B values as Python floats or `None`.

    Of a per-token reward each value is `None` or a list with one float for each token of its completion.

    Args:
        finish (callable, *optional*): Gives the values of a reward that was started on this batch before.

    Raises:
        `RewardError`: if it raises, or returns anything but B such values.
    """
    try:
        with watched(name):
            values = called(func, batch) if finish is None else finish()
    except RewardError:  # a composition: the reward inside it has been named
        raise
    except Exception as error:
        raise RewardError(
            f"Reward {name!r} raised {type(error).__name__}: {error}. {_first_failing_row(func, batch)} "
            f"It was called with {', '.join(batch)}.{_line_of(error)}"
        ) from error
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    wanted = "list of numbers" if is_per_token(func) else "number"
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardError(
            f"Reward {name!r} returned {_short(values)} ({type(values).__name__}); it must return a list with one "
            f"{wanted} or None for each completion."
        )
    size = len(batch["completions"])
    if len(values) != size:
        raise RewardError(
            f"Reward {name!r} returned {len(values)} values for {size} completions; it must return one {wanted} or "
            "None for each."
        )
    check = _checked_tokens if is_per_token(func) else _checked_value
    return [check(value, name, row, batch) for row, value in enumerate(values)]


def _checked_tokens(values: Any, name: str, row: int, batch: dict[str, Any]) -> list[float] | None:
    if values is None:
        return None
    if hasattr(values, "tolist"):
        values = values.tolist()
    wanted = len(batch["completion_ids"][row])
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardError(
            f"Reward {name!r} is per token and returned {_short(values)} ({type(values).__name__}), for "
            f"{_describe(row, batch)}. It must be a list of {wanted} numbers, one for each token, or None where "
            "it does not apply."
        )
    if len(values) != wanted:
        raise RewardError(
            f"Reward {name!r} is per token and returned {len(values)} numbers for the {wanted} tokens of "
            f"{_describe(row, batch)}. It must return one for each id in completion_ids[{row}], the end-of-sequence "
            "token included."
        )
    return [_checked_number(value, name, f"token {t} of {_describe(row, batch)}") for t, value in enumerate(values)]


def _checked_value(value: Any, name: str, row: int, batch: dict[str, Any]) -> float | None:
    return (
        None
        if value is None
        else _checked_number(value, name, _describe(row, batch), ", or None where it does not apply")
    )


def _checked_number(value: Any, name: str, place: str, or_none: str = "") -> float:
    if hasattr(value, "tolist"):  # a number of numpy or torch becomes one of Python
        value = value.tolist()
    if not isinstance(value, numbers.Real):
        problem = f"{_short(value)}, of type {type(value).__name__}"
    elif not math.isfinite(value):
        problem = f"{float(value)}"
    else:
        return float(value)
    raise RewardError(f"Reward {name!r} returned {problem}, for {place}. A reward must be a finite number{or_none}.")


def _line_of(error: Exception) -> str:
    """File and line of the innermost call that is neither of this package nor of an installed library."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f" It was raised in {own[-1].filename}, line {own[-1].lineno}." if own else ""


def _first_failing_row(func: Callable[..., Any], batch: dict[str, Any]) -> str:
    """Try the rows one by one, once the batch has failed, and say which is the first that fails alone."""
    size = len(batch["completions"])
    alone = [row_of(batch, row) for row in range(size)]
    # Coroutines all at once: one after the other, slow ones would keep their user waiting for the message.
    attempts = [begun(func, row) if is_async(func) else functools.partial(called, func, row) for row in alone]
    for row, attempt in enumerate(attempts):
        try:
            attempt()
        except Exception:  # reported by the caller, with the first error as its cause
            return f"Tried one by one, the first row to fail is {_describe(row, batch)}."
    return f"None of its {size} rows fails alone."


def row_of(batch: dict[str, Any], row: int) -> dict[str, Any]:
    """One row of a batch, as a batch."""
    size = len(batch["completions"])
    return {
        key: [value[row]] if isinstance(value, (list, tuple)) and len(value) == size else value
        for key, value in batch.items()
    }


def _describe(row: int, batch: dict[str, Any]) -> str:
    return f"row {row} (prompt {_short(batch['prompts'][row])}, completion {_short(batch['completions'][row])})"


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 4]}...{text[-1]}"
