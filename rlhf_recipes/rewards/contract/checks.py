"""What a reward may return, and the words in which a failure is told.

Kept apart from `base.py`, so that the contract there reads without them. A failure names the reward and, as far as it
can be known, the row with its prompt and completion.
"""

import functools
import numbers
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from rlhf_recipes.errors import RewardError, RewardValueError
from rlhf_recipes.rewards.contract.concurrent import begun, is_async, started
from rlhf_recipes.rewards.contract.watchdog import is_library, watched
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import sentence, short

# What no reward can change, and need not be copied for it.
UNCHANGEABLE = (str, bytes, int, float, complex, type(None))
UNCHANGEABLE_TYPES = frozenset({*UNCHANGEABLE, bool})

# What a reward may say of itself, see `base.py`. A wrapper around a reward has to say the same.
REWARD_ATTRIBUTES = (
    "per_token", "potential", "constant", "may_not_apply", "wants_prompt_ids", "wants_ref_logprobs", "wants_siblings",
)  # fmt: skip

# Trainers compute in float32, where the square of a number beyond 1.8e19 is infinite: so would be the spread of the
# rewards, and a loss divided by it 0.
LARGEST = 1e18
Weight: TypeAlias = float | Callable[[float], float]


def reward_name(reward_func: Any) -> str:
    """The name under which a reward is logged: its `__name__`, of a partial that of its function, or its class's."""
    named = getattr(reward_func, "__name__", None)
    if named is None and isinstance(reward_func, functools.partial):
        return reward_name(reward_func.func)
    return named or type(reward_func).__name__


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
        if not is_finite(weight):
            raise ValueError(
                f"The weight of reward {name!r} is {weight!r}, but a weight must be a finite number or a"
                " WeightSchedule."
            )
    return tuple(weight if callable(weight) else float(weight) for weight in weights)


def check_setting(owner: str, name: str, value: Any, least: float | None = None, whole: bool = False) -> None:
    """Raise `ValueError` for a setting that is no finite number, or below `least`, or not whole where it must be."""
    if is_finite(value) and (least is None or value >= least) and (not whole or isinstance(value, numbers.Integral)):
        return
    kind = "a whole number" if whole else "a finite number"
    wanted = kind if least is None else f"{least:g} or more, and {kind}"
    raise ValueError(f"{name} of {owner} is {short(value)}; it must be {wanted}.")


def check_positive(owner: str, name: str, value: Any, unit: str = "") -> None:
    """Raise `ValueError` for a setting that is no finite number above 0, of seconds or whatever the unit is."""
    if not is_finite(value) or value <= 0:
        of_unit = f" of {unit}" if unit else ""
        raise ValueError(f"{name} of {owner} is {short(value)}; it must be a number{of_unit} above 0.")


def check_choice(owner: str, name: str, value: Any, known: Sequence[str]) -> None:
    """Raise `ValueError` for a setting that is none of those that are known."""
    if value not in known:
        raise ValueError(f"{name} of {owner} is {short(value)}; it must be one of {', '.join(known)}.")


def weight_at(weight: Weight, progress: float, name: str) -> float:
    """The weight of the reward `name` when that share of the run is over.

    Raises:
        `RewardValueError`: if a schedule gives what is no weight.
    """
    value = weight(progress) if callable(weight) else weight
    if not is_finite(value):
        raise RewardValueError(
            f"The weight of reward {name!r} is {short(value)} when {progress:.0%} of the run is over, but a weight "
            "must be a finite number. Look into the function or schedule that gives it."
        )
    return float(value)


def weighted(weight: float, value: float, name: str, row: int) -> float:
    """`weight * value`.

    Raises:
        `RewardValueError`: if it is beyond what trainers can compute with.
    """
    product = weight * value
    if not abs(product) <= LARGEST:
        raise RewardValueError(
            f"Reward {name!r} is {value:g} in row {row}, and its weight {weight:g}: {product:g} is beyond "
            f"{LARGEST:g}, more than trainers can compute with in float32. Give a smaller weight, or put the reward "
            "into a Scale, a Clip or a Map."
        )
    return product


def own_copy(value: Any) -> Any:
    """A copy that a reward may do with what it likes: of lists and mappings at every depth, of arrays and images.

    Texts and numbers cannot be changed and are not copied, nor is what has no `copy` of its own.
    """
    if isinstance(value, UNCHANGEABLE):
        return value
    if isinstance(value, list):
        # Most lists are long and hold texts or ids alone; to look at each part in Python would take much longer.
        return value.copy() if UNCHANGEABLE_TYPES.issuperset(map(type, value)) else [own_copy(part) for part in value]
    if isinstance(value, tuple):
        parts = [own_copy(part) for part in value]
        same = all(copied is part for copied, part in zip(parts, value, strict=True))
        return value if same else tuple(parts)
    if isinstance(value, dict):
        return {key: own_copy(part) for key, part in value.items()}
    copying = getattr(value, "clone", None) or getattr(value, "copy", None)  # of tensors; of arrays, images, sets
    return copying() if callable(copying) and not isinstance(value, type) else value


def own_batch(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What one reward is given: copies of the columns, so that the next one sees what was written."""
    return {name: own_copy(values) for name, values in batch.items()}


def all_inside(func: Any) -> Iterator[Any]:
    """A reward, and all that it is made of at any depth."""
    yield func
    for inner in getattr(func, "inner_rewards", ()):
        yield from all_inside(inner)


def reads_policy_base(func: Any) -> bool:
    """Whether a reward is an adapter that reads the base of the policy (`base: policy`)."""
    return getattr(func, "base", None) == "policy"


def is_per_token(func: Any) -> bool:
    """Whether a reward gives one number for each token of a completion (`per_token = True`)."""
    return bool(getattr(func, "per_token", False))


def check_can_stand(rewards: Mapping[str, Any]) -> None:
    """Raise `ValueError` where a completion can be written that none of these rewards, by name, has a value for.

    A run would come to its end there, hours after its beginning, or a trainer would make a 0 of it: the best value
    that a mean log-probability can have.
    """
    if rewards and all(getattr(func, "may_not_apply", False) for func in rewards.values()):
        raise ValueError(
            f"{', '.join(rewards)} cannot stand alone: of a completion that is empty, or has no words, "
            f"{'it has' if len(rewards) == 1 else 'they have'} nothing to say (None), and a row without any reward "
            "ends the run. Add a reward that applies to every completion, with weight 0 if it is only to fill the "
            "gap, or say what such a completion gets: {func: Otherwise, args: {reward: "
            f"{next(iter(rewards))}, value: -10}}}}."
        )


def is_potential(func: Any) -> bool:
    """Whether the numbers of a per-token reward are potentials, which the trainer shapes (`potential = True`)."""
    return bool(getattr(func, "potential", False))


def checked_call(
    func: Callable[..., Any], name: str, batch: dict[str, Any], finish: Callable[[], Any] | None = None
) -> list[Any]:
    """Call a reward on a copy of a batch and return its B values as Python floats or `None`.

    Of a per-token reward each value is `None` or a list with one float for each token of its completion.

    Args:
        finish (callable, *optional*): Gives the values of a reward that was started on this batch before.

    Raises:
        `RewardError`: if it raises, or returns anything but B such values.
    """
    try:
        with watched(name):
            values = started(func, own_batch(batch))() if finish is None else finish()
    except RewardError:  # a composition: the reward inside it has been named
        raise
    except Exception as error:
        raise RewardError(
            f"Reward {name!r} raised {type(error).__name__}: {sentence(str(error))} {_first_failing_row(func, batch)} "
            f"It was called with {', '.join(batch)}.{_line_of(error)}"
        ) from error
    return checked_values(values, func, name, batch)


def checked_values(values: Any, func: Any, name: str, batch: Mapping[str, Any]) -> list[Any]:
    """What a reward returned for a batch, as Python floats or `None`; see [`checked_call`]."""
    if hasattr(values, "tolist"):  # numpy arrays and tensors
        values = values.tolist()
    wanted = "list of numbers" if is_per_token(func) else "number"
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardValueError(
            f"Reward {name!r} returned {short(values)} ({type(values).__name__}); it must return a list with one "
            f"{wanted} or None for each completion."
        )
    size = len(batch["completions"])
    if len(values) != size:
        raise RewardValueError(
            f"Reward {name!r} returned {len(values)} values for {size} completions; it must return one {wanted} or "
            "None for each."
        )
    check = _checked_tokens if is_per_token(func) else _checked_value
    return [check(value, name, row, batch) for row, value in enumerate(values)]


def _checked_tokens(values: Any, name: str, row: int, batch: Mapping[str, Any]) -> list[float] | None:
    if values is None:
        return None
    if hasattr(values, "tolist"):
        values = values.tolist()
    wanted = len(batch["completion_ids"][row])
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise RewardValueError(
            f"Reward {name!r} is per token and returned {short(values)} ({type(values).__name__}), for "
            f"{_describe(row, batch)}. It must be a list of {wanted} numbers, one for each token, or None where "
            "it does not apply."
        )
    if len(values) != wanted:
        raise RewardValueError(
            f"Reward {name!r} is per token and returned {len(values)} numbers for the {wanted} tokens of "
            f"{_describe(row, batch)}. It must return one for each id in completion_ids[{row}], the end-of-sequence "
            "token included."
        )
    return [_checked_number(value, name, f"token {t} of {_describe(row, batch)}") for t, value in enumerate(values)]


def _checked_value(value: Any, name: str, row: int, batch: Mapping[str, Any]) -> float | None:
    or_none = ", or None where it does not apply"
    return None if value is None else _checked_number(value, name, _describe(row, batch), or_none)


def _checked_number(value: Any, name: str, place: str, or_none: str = "") -> float:
    if hasattr(value, "tolist"):  # a number of numpy or torch becomes one of Python
        value = value.tolist()
    is_number = isinstance(value, numbers.Real)
    if is_number and -LARGEST <= value <= LARGEST:  # compared as it is: a float cannot hold every whole number
        return float(value)
    problem = short(value) if is_number else f"{short(value)}, of type {type(value).__name__}"
    raise RewardValueError(
        f"Reward {name!r} returned {problem}, for {place}. A reward must be a finite number{or_none}, and not beyond "
        f"{LARGEST:g}, since trainers compute in float32."
    )


def _line_of(error: Exception) -> str:
    """File and line of the innermost call that is neither of this package nor of an installed library."""
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if not is_library(frame.filename)]
    return f" It was raised in {own[-1].filename}, line {own[-1].lineno}." if own else ""


def _first_failing_row(func: Callable[..., Any], batch: Mapping[str, Any]) -> str:
    """Try the rows one by one, once the batch has failed, and say which is the first that fails alone."""
    size = len(batch["completions"])
    alone = [row_of(batch, row) for row in range(size)]
    # Coroutines all at once: one after the other, slow ones would keep their user waiting for the message.
    attempts = [
        begun(func, row) if is_async(func) else functools.partial(func, **row) for row in map(own_batch, alone)
    ]
    for row, attempt in enumerate(attempts):
        try:
            attempt()
        except Exception:  # a reward may raise anything; its caller reports it, with the first error as its cause
            return f"Tried one by one, the first row to fail is {_describe(row, batch)}."
    return f"None of its {size} rows fails alone."


def row_of(batch: Mapping[str, Any], row: int) -> dict[str, Any]:
    """One row of a batch, as a batch."""
    size = len(batch["completions"])
    return {
        key: [value[row]] if isinstance(value, (list, tuple)) and len(value) == size else value
        for key, value in batch.items()
    }


def _describe(row: int, batch: Mapping[str, Any]) -> str:
    return f"row {row} (prompt {short(batch['prompts'][row])}, completion {short(batch['completions'][row])})"
