"""Several rewards as one, the weighted sum that trainers score with, and weights that change while a run goes on."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.rewards.base import Ids, Parts, RewardFunction, Series, StartedRewards, Texts, by_name, log_means
from rlhf_recipes.rewards.contract.checks import (
    Weight,
    check_choice,
    check_setting,
    checked_weights,
    is_per_token,
    is_potential,
    weight_at,
    weighted,
)


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that goes from `start` to `end` while the run's progress goes from `begin` to `until`.

    With x = (progress - begin) / (until - begin), held within 0 and 1, and d = end - start:

    - `"linear"`: `start + d * x`
    - `"cosine"`: `start + d * (1 - cos(pi * x)) / 2`, slow at both ends
    - `"step"`: `start`, and from `until` on `end`

    Progress is `global_step / max_steps` when the rollout begins, so that a run that is resumed goes on with the same
    weights; one that is made longer when it is resumed does not. In YAML:

    ```yaml
    - {func: LengthWindow, args: {maximum: 40}, weight: {start: 0.0, end: 1.0, until: 0.5}}
    ```

    Args:
        start (`float`): The weight until `begin`.
        end (`float`): The weight from `until` on.
        begin (`float`, *optional*, defaults to 0.0): Share of the run, from 0 to 1.
        until (`float`, *optional*, defaults to 1.0): Share of the run, above `begin`.
        shape (`"linear"`, `"cosine"` or `"step"`, *optional*, defaults to `"linear"`): The way between.
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end", "begin", "until"):
            check_setting("the weight schedule", name, getattr(self, name))
        check_setting("the weight schedule", "end - start", float(self.end) - float(self.start))
        if not 0 <= self.begin < self.until <= 1:
            raise ValueError(
                f"The weight schedule goes from begin {self.begin:g} to until {self.until:g}; these are shares of the "
                "run, from 0 to 1, begin below until."
            )
        check_choice("the weight schedule", "shape", self.shape, ("linear", "cosine", "step"))

    def __call__(self, progress: float) -> float:
        x = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        elif self.shape == "step":
            x = float(x >= 1)
        return self.start + (self.end - self.start) * x

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], of: str) -> "WeightSchedule":
        """The schedule that a YAML file describes for the reward named `of`; `ValueError` says what is unknown."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown or not {"start", "end"} <= set(given):
            raise ValueError(
                f"The weight of reward {of!r} is {dict(given)}. A weight is a number, or a schedule with start and "
                f"end, and where wanted {', '.join(known[2:])}."
            )
        return cls(**given)


def progress_of(trainer_state: Any) -> float:
    """How far a run has come, from 0 to 1; 0 where there is no trainer, or it does not know its length."""
    steps = getattr(trainer_state, "max_steps", None) or 0
    return min(trainer_state.global_step / steps, 1.0) if steps > 0 else 0.0


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
        self.reward_funcs = self.inner_rewards = tuple(reward_funcs)
        self.names = tuple(named)
        self.weights = checked_weights(weights, self.names)
        self.__name__ = name
        self.wants_prompt_ids = any(getattr(func, "wants_prompt_ids", False) for func in reward_funcs)
        self.wants_ref_logprobs = any(getattr(func, "wants_ref_logprobs", False) for func in reward_funcs)
        self.wants_siblings = all(getattr(func, "wants_siblings", False) for func in reward_funcs)
        self.constant = all(getattr(func, "constant", False) for func in reward_funcs)
        self.may_not_apply = all(getattr(func, "may_not_apply", False) for func in reward_funcs)
        per_token = [name for name, func in named.items() if is_per_token(func)]
        self.potential_names = tuple(name for name in per_token if is_potential(named[name]))
        self.token_names = tuple(name for name in per_token if name not in self.potential_names)

    def begin(self, prompts: Texts, completions: Texts, completion_ids: Ids, **columns: Any) -> StartedRewards:
        """Start the rewards that can be started; `values()` of the result are the parts."""
        return StartedRewards(by_name(self.reward_funcs), prompts, completions, completion_ids, columns)

    def parts(self, prompts: Texts, completions: Texts, completion_ids: Ids, **columns: Any) -> Parts:
        """The values of each reward by name, before weighting (see `compute_rewards`)."""
        return self.begin(prompts, completions, completion_ids, **columns).values()

    def weights_at(self, progress: float) -> dict[str, float]:
        """The weight of each reward, by name, when that share of the run is over."""
        at_hand = zip(self.names, self.weights, strict=True)
        return {name: weight_at(weight, progress, name) for name, weight in at_hand}

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
        self, parts: Mapping[str, Sequence[Any]], completion_ids: Ids, progress: float = 0.0
    ) -> list[list[float]] | None:
        """Weighted sum of the per-token rewards, without potentials; `None` if there is no such reward.

        Returns:
            `list[list[float]]`: one number for each token of each row; zeros where no such reward applies.
        """
        return self._sum_tokens(parts, completion_ids, self.token_names, progress)

    def combine_potentials(
        self, parts: Mapping[str, Sequence[Any]], completion_ids: Ids, progress: float = 0.0
    ) -> list[list[float]] | None:
        """Weighted sum of the potentials, Phi(s_t) at t; `None` if there is no such reward.

        Returns:
            `list[list[float]]`: one number for each token of each row; zeros where no such reward applies.
        """
        return self._sum_tokens(parts, completion_ids, self.potential_names, progress)

    def __call__(self, prompts: Texts, completions: Texts, completion_ids: Ids, **columns: Any) -> list[float]:
        """One number for each row, as TRL's `GRPOTrainer` and `RLOOTrainer` want it.

        Per-token rewards are summed over the tokens of the row and weighted in. Potentials are left out: over a whole
        completion their shaping telescopes to -Phi(s_0), a constant of the prompt, so that they add nothing that a
        policy can change.
        """
        return self.start(prompts, completions, completion_ids, **columns)()

    def start(
        self, prompts: Texts, completions: Texts, completion_ids: Ids, **columns: Any
    ) -> Callable[[], list[float]]:
        """Begin what can begin; the function that is returned gives the sums."""
        rewards = self.begin(prompts, completions, completion_ids, **columns)

        def finish() -> list[float]:
            parts = rewards.values()
            log_means(columns.get("log_metric"), f"rewards/{self.__name__}", self.per_row(parts))
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
                raise RewardValueError(
                    f"Row {row} has no reward: each of {', '.join(self.names)} returned None for it, which means "
                    "'does not apply'. Add a reward that applies to every row, or drop such rows from the dataset."
                )
            scores.append(
                math.fsum(
                    weighted(weight_of[name], own[row], name, row)
                    for name, own in series.items()
                    if own[row] is not None
                )
            )
        return scores

    def _sum_tokens(
        self,
        parts: Mapping[str, Sequence[Any]],
        completion_ids: Ids,
        names: Sequence[str],
        progress: float,
    ) -> list[list[float]] | None:
        if not names:
            return None
        weight_of = self.weights_at(progress)
        rows = []
        for row, ids in enumerate(completion_ids):
            applying = [
                [weighted(weight_of[name], value, name, row) for value in parts[name][row]]
                for name in names
                if parts[name][row] is not None
            ]
            rows.append([math.fsum(values[t] for values in applying) for t in range(len(ids))])
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
