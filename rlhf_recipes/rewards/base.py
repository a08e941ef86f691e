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
- A value depends on its own row, and where a reward says so on the other completions of the same prompt. Statistics
  over the batch belong to the trainer.

It may be a coroutine function, `async def`, or have a method `start(**batch)` (see `concurrent.py`): such rewards
begin as soon as the completions are written, and run side by side.

Six attributes of the callable, all `False` unless set, say that it is more than that:

- `per_token = True`: for each row it returns `None` or a list of numbers, one for each id in `completion_ids[row]`.
  TRL's trainers take such a reward inside a `WeightedSum`, which adds its numbers up.
- `potential = True`, with `per_token`: number t is the potential Phi(s_t) of the state before token t, that is of the
  prompt and the tokens before t. The trainer makes shaping rewards of them with its own gamma.
- `wants_prompt_ids = True`: it is given `prompt_ids`, B lists of token ids without padding, where the trainer has
  them. No other reward is.
- `wants_ref_logprobs = True`: it is given `ref_logprobs`, B lists of log-probabilities under the reference policy, one
  for each id in `completion_ids`, at the sampling temperature, where the trainer has them. No other reward is.
- `wants_siblings = True`: it compares a completion with the others of its prompt, and is `None` where there are none.
- `constant = True`: its value is the same for all completions. As a reward it would teach nothing, so that PPO refuses
  it; as a factor of a product it is welcome.

Settings go into a small picklable object with `__call__` and `__name__`; the name is what logs and tables show.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

from rlhf_recipes.rewards.checks import (
    RewardError,
    Weight,
    checked_call,
    checked_weights,
    is_per_token,
    is_potential,
    reward_name,
)
from rlhf_recipes.rewards.concurrent import Finish, begun, can_start
from rlhf_recipes.rewards.schedules import progress_of

Messages: TypeAlias = list[dict[str, Any]]
Text: TypeAlias = str | Messages
Series: TypeAlias = list[float | None]  # (B,)  one reward for each row
TokenSeries: TypeAlias = list[list[float] | None]  # (B, tokens of the row)  one reward for each token
Parts: TypeAlias = dict[str, Any]  # by reward, a Series, or a TokenSeries of one that is per token

# What only those rewards are given that ask for it, and the attribute by which they ask.
ON_REQUEST = {"prompt_ids": "wants_prompt_ids", "ref_logprobs": "wants_ref_logprobs"}


class RewardFunction(Protocol):
    """What a trainer asks of a reward; see the docstring of this module."""

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **kwargs: Any
    ) -> Sequence[float | None] | Sequence[Sequence[float] | None]: ...


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
) -> Parts:
    """Call each reward as TRL's trainers do, by keyword, and check what comes back.

    Args:
        columns (`Mapping`):
            What else the rewards are given; `prompt_ids` and `ref_logprobs` only to those that want them.

    Returns:
        `dict[str, list]`: for each reward, by name and in the order given, its B values: `float | None`, or
        `list[float] | None` of a reward with `per_token`.

    Raises:
        `RewardError`: if a reward raises, or does not return B finite numbers or `None`, or of a per-token reward
            B lists of as many as there are tokens or `None`.
        `ValueError`: if two rewards have the same name, or a column has that of an argument.
    """
    return StartedRewards(by_name(reward_funcs), prompts, completions, completion_ids, columns).values()


class StartedRewards:
    """Rewards in work: those that can be started have been, the others are called when `values` asks for them.

    Attributes:
        seconds (`dict[str, float]`): for each reward, how long `values` had to wait for it.
    """

    def __init__(
        self,
        reward_funcs: Mapping[str, RewardFunction],
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        columns: Mapping[str, Any],
    ) -> None:
        batch: dict[str, Any] = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids}
        taken = sorted(set(batch) & set(columns))
        if taken:
            raise ValueError(
                f"The dataset's column {taken[0]!r} has the name of what every reward is given; rename it."
            )
        self.reward_funcs = reward_funcs
        self.batch = batch | dict(columns)
        self.seconds: dict[str, float] = {}
        self._begun: dict[str, Finish] = {
            name: begun(func, self._given_to(func))
            for name, func in reward_funcs.items()
            if can_start(func) and not getattr(func, "wants_ref_logprobs", False)  # which come later
        }

    def values(self, **late: Any) -> Parts:
        """Wait for all, and check what comes back; see `compute_rewards`.

        Args:
            late: What was not known when the rewards began, such as `ref_logprobs`.
        """
        self.batch |= late
        parts = {}
        for name, func in self.reward_funcs.items():
            begin = time.perf_counter()
            parts[name] = checked_call(func, name, self._given_to(func), self._begun.get(name))
            self.seconds[name] = time.perf_counter() - begin
        return parts

    def _given_to(self, func: Any) -> dict[str, Any]:
        kept_back = {key for key, attribute in ON_REQUEST.items() if not getattr(func, attribute, False)}
        return {key: value for key, value in self.batch.items() if key not in kept_back}


class WeightedSum:
    """Several rewards as one: `sum_k weight_k * reward_k`, over the rewards that apply to the row. It is a reward.

    Args:
        reward_funcs (`Sequence`):
            The rewards. Their names must differ.
        weights (`Sequence`, *optional*):
            One for each reward; 1 for all when left out. A negative weight makes a penalty, a
            [`~rlhf_recipes.rewards.WeightSchedule`] one that changes while the run goes on. A reward of weight 0 is
            only watched.
        name (`str`, *optional*, defaults to `"weighted_sum"`):
            Its own name, for when it is part of another sum. A sum with per-token rewards cannot be.

    A trainer that logs each part calls `parts` and hands the result to `combine`, `combine_tokens` and
    `combine_potentials`. Called as a reward it gives one number for each row, and logs the mean of each part by
    `log_metric` where the trainer has it, as TRL's have.

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
        weights: Sequence[Weight] | None = None,
        name: str = "weighted_sum",
    ) -> None:
        named = by_name(reward_funcs)
        if not named:
            raise ValueError("No reward was given: a weighted sum needs one at least.")
        for own_name, func in named.items():
            check_not_nested(own_name, func)
        self.reward_funcs = tuple(reward_funcs)
        self.names = tuple(named)
        self.weights = checked_weights(weights, self.names)
        self.__name__ = name
        self.wants_prompt_ids = any(getattr(func, "wants_prompt_ids", False) for func in reward_funcs)
        self.wants_ref_logprobs = any(getattr(func, "wants_ref_logprobs", False) for func in reward_funcs)
        self.wants_siblings = all(getattr(func, "wants_siblings", False) for func in reward_funcs)
        self.constant = all(getattr(func, "constant", False) for func in reward_funcs)
        per_token = [name for name, func in named.items() if is_per_token(func)]
        self.potential_names = tuple(name for name in per_token if is_potential(named[name]))
        self.token_names = tuple(name for name in per_token if name not in self.potential_names)

    def begin(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> StartedRewards:
        """Start the rewards that can be started; `values()` of the result are the parts."""
        return StartedRewards(by_name(self.reward_funcs), prompts, completions, completion_ids, columns)

    def parts(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Parts:
        """The values of each reward by name, before weighting (see `compute_rewards`)."""
        return self.begin(prompts, completions, completion_ids, **columns).values()

    def weights_at(self, progress: float) -> dict[str, float]:
        """The weight of each reward, by name, when that share of the run is over."""
        at_hand = zip(self.names, self.weights, strict=True)
        return {name: weight(progress) if callable(weight) else weight for name, weight in at_hand}

    def combine(self, parts: Mapping[str, Sequence[Any]], progress: float = 0.0) -> list[float]:
        """The score of each row: the weighted sum of the per-sequence rewards that apply to it. `(B,)`

        It is 0 for a row to which none of them applies, but a per-token reward or a potential does.

        Args:
            parts (`Mapping`): Values by name, as from `parts`.
            progress (`float`, *optional*, defaults to 0.0): The share of the run that is over, for schedules.

        Raises:
            `RewardError`: if no reward of any kind applies to some row.
        """
        apart = self.token_names + self.potential_names
        return self._sum_rows(parts, {name: parts[name] for name in self.names if name not in apart}, progress)

    def totals(self, parts: Mapping[str, Sequence[Any]], progress: float = 0.0) -> list[float]:
        """As `combine`, with the per-token rewards weighted in, each as its sum over the tokens of the row. `(B,)`"""
        return self._sum_rows(parts, self.per_row(parts), progress)

    def per_row(self, parts: Mapping[str, Sequence[Any]]) -> dict[str, Series]:
        """One number for each row from every reward but the potentials: per-token rewards as their sums. Unweighted.

        Potentials are left out because no sum of theirs is a reward.
        """
        return {
            name: [v if v is None or name not in self.token_names else math.fsum(v) for v in parts[name]]
            for name in self.names
            if name not in self.potential_names
        }

    def combine_tokens(
        self, parts: Mapping[str, Sequence[Any]], completion_ids: Sequence[Sequence[int]], progress: float = 0.0
    ) -> list[list[float]] | None:
        """Weighted sum of the per-token rewards, without potentials; `None` if there is no such reward.

        Returns:
            `list[list[float]]`: one number for each token of each row; zeros where no such reward applies.
        """
        return self._sum_tokens(parts, completion_ids, self.token_names, progress)

    def combine_potentials(
        self, parts: Mapping[str, Sequence[Any]], completion_ids: Sequence[Sequence[int]], progress: float = 0.0
    ) -> list[list[float]] | None:
        """Weighted sum of the potentials, Phi(s_t) at t; `None` if there is no such reward.

        Returns:
            `list[list[float]]`: one number for each token of each row; zeros where no such reward applies.
        """
        return self._sum_tokens(parts, completion_ids, self.potential_names, progress)

    def __call__(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> list[float]:
        """One number for each row, as TRL's `GRPOTrainer` and `RLOOTrainer` want it.

        Per-token rewards are summed over the tokens of the row and weighted in. Potentials are left out: over a whole
        completion their shaping telescopes to -Phi(s_0), a constant of the prompt, so that they add nothing that a
        policy can change.
        """
        return self.start(prompts, completions, completion_ids, **columns)()

    def start(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        completion_ids: Sequence[Sequence[int]],
        **columns: Any,
    ) -> Callable[[], list[float]]:
        """Begin what can begin; the function that is returned gives the sums."""
        rewards = self.begin(prompts, completions, completion_ids, **columns)

        def finish() -> list[float]:
            parts = rewards.values()
            if columns.get("log_metric") is not None:
                for name, values in self.per_row(parts).items():
                    applying = [value for value in values if value is not None]
                    if applying:
                        columns["log_metric"](f"rewards/{self.__name__}/{name}", math.fsum(applying) / len(applying))
            return self.totals(parts, progress_of(columns.get("trainer_state")))

        return finish

    def _sum_rows(
        self, parts: Mapping[str, Sequence[Any]], series: Mapping[str, Sequence[Any]], progress: float
    ) -> list[float]:
        """Weighted sum of `series`, row by row. `parts` are all of them, to tell a row without any."""
        weight_of = self.weights_at(progress)
        scores = []
        for row, values in enumerate(zip(*(parts[name] for name in self.names), strict=True)):
            if all(value is None for value in values):
                raise RewardError(
                    f"Row {row} has no reward: each of {', '.join(self.names)} returned None for it, which means "
                    "'does not apply'. Add a reward that applies to every row, or drop such rows from the dataset."
                )
            applying = [weight_of[name] * own[row] for name, own in series.items() if own[row] is not None]
            scores.append(math.fsum(applying))
        return scores

    def _sum_tokens(
        self,
        parts: Mapping[str, Sequence[Any]],
        completion_ids: Sequence[Sequence[int]],
        names: Sequence[str],
        progress: float,
    ) -> list[list[float]] | None:
        if not names:
            return None
        weight_of = self.weights_at(progress)
        rows = []
        for row, ids in enumerate(completion_ids):
            applying = [(weight_of[name], parts[name][row]) for name in names if parts[name][row] is not None]
            rows.append([math.fsum(weight * values[t] for weight, values in applying) for t in range(len(ids))])
        return rows

    def __repr__(self) -> str:
        at_hand = zip(self.names, self.weights, strict=True)
        # A function's repr has its address, and PPO holds this text against that of the checkpoint it resumes from.
        terms = [
            f"{getattr(weight, '__qualname__', None) or repr(weight)} * {name}" if callable(weight)
            else f"{weight:g} * {name}"
            for name, weight in at_hand
        ]  # fmt: skip
        return f"WeightedSum({', '.join(terms)})"


def by_name(reward_funcs: Sequence[RewardFunction]) -> dict[str, RewardFunction]:
    """Rewards by name, each checked to be callable and to have a name of its own."""
    named: dict[str, RewardFunction] = {}
    for func in reward_funcs:
        if not callable(func):
            raise TypeError(f"A reward must be callable, but {func!r} is of type {type(func).__name__}.")
        name = reward_name(func)
        if name in named:
            raise ValueError(f"Two rewards are named {name!r}, so their logs would mix. Give them names of their own.")
        if is_potential(func) and not is_per_token(func):
            raise ValueError(
                f"Reward {name!r} has potential = True but not per_token = True. A potential is one number for each "
                "token; set both."
            )
        named[name] = func
    return named


def check_not_nested(name: str, func: Any) -> None:
    """Raise `ValueError` for a weighted sum that holds what would be lost inside another composition."""
    inner = getattr(func, "reward", func)  # a LoadedReward holds what it has loaded
    if isinstance(inner, WeightedSum) and (inner.token_names or inner.potential_names):
        raise ValueError(
            f"The weighted sum {name!r} contains the per-token rewards "
            f"{', '.join(inner.token_names + inner.potential_names)}, so it cannot be part of another sum or "
            "composition, where only their sums would be left. Put its rewards into the outer sum, with the "
            "product of the weights."
        )
