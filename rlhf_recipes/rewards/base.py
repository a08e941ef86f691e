"""The reward contract, TRL's own, and the weighted sum that the trainers score with.

A reward is any callable

    f(prompts, completions, completion_ids, **kwargs) -> list[float | None]

with one number for each row. So every reward here also works in TRL's `GRPOTrainer` and `RLOOTrainer`, and every
synchronous reward written for them works here.

- `prompts`, `completions`: B texts each. Conversational rows give lists of messages (`{"role", "content"}`) instead.
- `completion_ids`: B lists of token ids, without padding, the end-of-sequence token kept.
- `kwargs`: every other column of the dataset as a list of B values, and, where the trainer has them, `trainer_state`,
  `log_extra(column, values)` and `log_metric(name, value)`. Write `**kwargs` to let through what is not needed.
- `None` means "does not apply to this row": the other rewards are summed, and a row without any is an error.
- A value depends on its own row. Statistics over the batch belong to the trainer.

Settings go into a small picklable object with `__call__` and `__name__`; the name is what logs and tables show.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from rlhf_recipes.rewards.checks import RewardError, checked_call, checked_weights, reward_name

Messages: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Messages
Series: TypeAlias = list[float | None]  # (B,)  one reward for each row


class RewardFunction(Protocol):
    """What a trainer asks of a reward; see the docstring of this module."""

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> Sequence[float | None]: ...


def as_text(value: Text) -> str:
    """Plain text of a prompt or a completion: of messages, the text of each, one below the other."""
    if isinstance(value, str):
        return value
    texts = []
    for message in value:
        content = message.get("content") or ""
        blocks = [content] if isinstance(content, str) else [block.get("text") or "" for block in content]
        texts.append("".join(blocks))
    return "\n".join(texts)


def compute_rewards(
    reward_funcs: Sequence[RewardFunction],
    prompts: Sequence[Text],
    completions: Sequence[Text],
    completion_ids: Sequence[Sequence[int]],
    columns: Mapping[str, Any],
) -> dict[str, Series]:
    """Call each reward as TRL's trainers do, by keyword, and check what comes back.

    Returns:
        `dict[str, list[float | None]]`: for each reward, by name and in the order given, its B values.

    Raises:
        `RewardError`: if a reward raises, or does not return B finite numbers or `None`.
        `ValueError`: if two rewards have the same name, or a column has that of an argument.
    """
    batch: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
    taken = sorted(set(batch) & set(columns))
    if taken:
        raise ValueError(f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it.")
    batch.update(columns)
    return {name: checked_call(func, name, batch) for name, func in _by_name(reward_funcs).items()}


class WeightedSum:
    """Several rewards as one: `sum_k weight_k * reward_k`, over the rewards that apply to the row. It is a reward.

    Args:
        reward_funcs (`Sequence`):
            The rewards. Their names must differ.
        weights (`Sequence[float]`, *optional*):
            One for each reward; 1 for all when left out. A negative weight makes a penalty.
        name (`str`, *optional*, defaults to `"weighted_sum"`):
            Its own name, for when it is part of another sum.

    A trainer that logs each part calls `parts` and hands the result to `combine`. Called as a reward it does both, and
    logs the mean of each part by `log_metric` where the trainer has it, as TRL's have.

    Example:

    >>> def brevity(completion_ids, **kwargs):
    ...     return [-float(len(ids)) for ids in completion_ids]
    >>> def politeness(completions, **kwargs):
    ...     return [1.0 if "please" in text else None for text in completions]
    >>> reward = WeightedSum([brevity, politeness], weights=[0.5, 3.0])
    >>> reward(prompts=["a", "b"], completions=["yes", "please"], completion_ids=[[1, 2], [3, 4, 5, 6]])
    [-1.0, 1.0]
    """

    def __init__(
        self,
        reward_funcs: Sequence[RewardFunction],
        weights: Sequence[float] | None = None,
        name: str = "weighted_sum",
    ) -> None:
        named = _by_name(reward_funcs)
        if not named:
            raise ValueError("No reward was given: a weighted sum needs one at least.")
        self.reward_funcs = tuple(reward_funcs)
        self.names = tuple(named)
        self.weights = checked_weights(weights, self.names)
        self.__name__ = name

    def parts(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> dict[str, Series]:
        """The values of each reward by name, before weighting (see `compute_rewards`)."""
        return compute_rewards(self.reward_funcs, prompts, completions, completion_ids, columns)

    def combine(self, parts: Mapping[str, Sequence[float | None]]) -> list[float]:
        """The score of each row: the weighted sum of what applies to it. `(B,)`

        Raises:
            `RewardError`: if no reward applies to some row.
        """
        scores = []
        for row, values in enumerate(zip(*(parts[name] for name in self.names), strict=True)):
            applying = [weight * v for weight, v in zip(self.weights, values, strict=True) if v is not None]
            if not applying:
                raise RewardError(
                    f"Row {row} has no reward: each of {', '.join(self.names)} returned None for it, which means "
                    "'does not apply'. Add a reward that applies to every row, or drop such rows from the dataset."
                )
            scores.append(math.fsum(applying))
        return scores

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        parts = self.parts(prompts, completions, completion_ids, **columns)
        if columns.get("log_metric") is not None:
            for name, values in parts.items():
                applying = [value for value in values if value is not None]
                if applying:
                    columns["log_metric"](f"rewards/{self.__name__}/{name}", math.fsum(applying) / len(applying))
        return self.combine(parts)

    def __repr__(self) -> str:
        terms = ", ".join(f"{weight:g} * {name}" for name, weight in zip(self.names, self.weights, strict=True))
        return f"WeightedSum({terms})"


def _by_name(reward_funcs: Sequence[RewardFunction]) -> dict[str, RewardFunction]:
    named: dict[str, RewardFunction] = {}
    for func in reward_funcs:
        if not callable(func):
            raise TypeError(f"A reward must be callable, but {func!r} is of type {type(func).__name__}.")
        name = reward_name(func)
        if name in named:
            raise ValueError(f"Two rewards are named {name!r}, so their logs would mix. Give them names of their own.")
        named[name] = func
    return named
