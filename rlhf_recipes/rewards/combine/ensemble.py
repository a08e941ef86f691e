"""Several reward models as one: what one of them can be fooled into, the others may refuse."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from rlhf_recipes.rewards.base import Series, StartedRewards
from rlhf_recipes.rewards.contract.checks import is_per_token, reward_name
from rlhf_recipes.rewards.loading import load_spec
from rlhf_recipes.statistics import is_finite

Reduction = Literal["mean", "min", "mean_minus_std", "mean_minus_variance"]


class EnsembleReward:
    """One number out of several reward models, lower where they disagree.

    With member scores `r_1 .. r_k`, their mean `m` and variance `v = 1/k sum_i (r_i - m)^2`:

    - `"mean"`: `m`.
    - `"min"`: `min_i r_i`, worst-case optimization (Coste, Anwar, Kirk and Krueger, arXiv 2310.02743, section 3).
    - `"mean_minus_variance"`: `m - std_coef * v`, the uncertainty-weighted optimization of the same paper.
    - `"mean_minus_std"`: `m - std_coef * sqrt(v)`. It is in the unit of the scores, so that `std_coef` means the same
      whatever their scale.

    The members should have been trained from different seeds, better on different data or backbones: what fools all of
    them is not seen. Each reads text with its own tokenizer. They must be on one scale, and nothing here brings them
    there: put each into a `Scale` or `Map`, or give them a calibration when they are trained.

    `None` where any member says `None`: a mean or a minimum over fewer of them is no measure of the same thing. Range,
    languages and what becomes of an empty completion are those of the members. Where the trainer has `log_metric`, the
    mean over the rows of the standard deviation `sqrt(v)` is logged as `<name>/disagreement`: if it climbs while the
    reward does, the policy has gone where the members guess.

    Args:
        models (`Sequence`):
            Two members or more: a folder or model id, as [`LearnedReward`] takes it, an entry of a reward list
            (`{func: runs/seed1/reward, args: {label: good}}`), or any reward of one number for each completion.
        reduce (`str`, *optional*, defaults to `"mean"`):
            One of the four above.
        std_coef (`float`, *optional*, defaults to 1.0):
            What disagreement costs; 0 or more. Not read by `"mean"` and `"min"`.
        name (`str`, *optional*, defaults to `"EnsembleReward"`):
            What logs show.

    Raises:
        `ValueError`: if there are fewer than two members, or one of them is per token.
        `RewardError`: when called, if a member fails or gives no finite number.

    Example:

    >>> def by_length(completions, **kwargs):
    ...     return [float(len(text)) for text in completions]
    >>> def constant(completions, **kwargs):
    ...     return [1.0 for _ in completions]
    >>> EnsembleReward([by_length, constant], reduce="mean_minus_std")([""], ["abc"], [[1]])
    [1.0]
    """

    def __init__(
        self,
        models: Sequence[Any],
        reduce: Reduction = "mean",
        std_coef: float = 1.0,
        name: str | None = None,
    ) -> None:
        if isinstance(models, str) or not isinstance(models, Sequence) or len(models) < 2:
            raise ValueError(f"An EnsembleReward needs a list of two models or more, but has {models!r}.")
        check_reduction(type(self).__name__, reduce, "std_coef", std_coef)
        self._arguments = (models, reduce, std_coef, name)
        self.reduce = reduce
        self.std_coef = std_coef
        self.__name__ = name or type(self).__name__
        self.members = tuple(load_spec(str(model) if isinstance(model, Path) else model) for model in models)
        self.inner_rewards = self.members
        for member in self.members:
            if is_per_token(member):
                raise ValueError(
                    f"EnsembleReward takes rewards of one number for each completion, but {reward_name(member)!r} "
                    "gives one for each token. Put it into the list of rewards on its own."
                )
        self.wants_prompt_ids = any(getattr(member, "wants_prompt_ids", False) for member in self.members)
        self.wants_ref_logprobs = any(getattr(member, "wants_ref_logprobs", False) for member in self.members)
        self.may_not_apply = any(getattr(member, "may_not_apply", False) for member in self.members)
        self.constant = all(getattr(member, "constant", False) for member in self.members)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def start(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Callable[[], Series]:
        """Begin the members that can be begun; the function that is returned gives the values."""
        # Members may share a name: models of several seeds often lie in folders of the same name.
        named = {f"{self.__name__}/{index}/{reward_name(member)}": member for index, member in enumerate(self.members)}
        rewards = StartedRewards(named, prompts, completions, completion_ids, columns)

        def finish() -> Series:
            scores = list(zip(*rewards.values().values(), strict=True))  # (B, members)
            judged = [row for row in scores if None not in row]
            log_disagreement(self.__name__, judged, columns.get("log_metric"))
            return [None if None in row else reduced(row, self.reduce, self.std_coef) for row in scores]

        return finish

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Series:
        """Score each prompt with its completion. `(B,)`"""
        return self.start(prompts, completions, completion_ids, **columns)()

    def __repr__(self) -> str:
        members = ", ".join(reward_name(member) for member in self.members)
        return f"EnsembleReward(name={self.__name__!r}, models=[{members}], reduce={self.reduce!r})"


def check_reduction(owner: str, reduce: str, coefficient_name: str, coefficient: float) -> None:
    """Raise `ValueError` for a reduction that is not known, or a price of disagreement below 0."""
    if reduce not in get_args(Reduction):
        raise ValueError(f"{owner} reduces by {', '.join(get_args(Reduction))}, not by {reduce!r}.")
    if not is_finite(coefficient) or coefficient < 0:
        raise ValueError(
            f"{owner} has {coefficient_name} {coefficient!r}; it must be a number of 0 or more, since a negative one "
            "would pay for disagreement."
        )


def reduced(scores: Sequence[float], reduce: Reduction, coefficient: float) -> float:
    """One number of the members' scores of one row, see [`EnsembleReward`]."""
    if reduce == "min":
        return min(scores)
    mean = math.fsum(scores) / len(scores)
    if reduce == "mean":
        return mean
    spread = variance(scores)
    return mean - coefficient * (spread if reduce == "mean_minus_variance" else math.sqrt(spread))


def log_disagreement(name: str, rows: Sequence[Sequence[float]], log_metric: Callable[..., Any] | None) -> None:
    """Log the mean over the rows of the members' standard deviation."""
    if rows and log_metric is not None:
        log_metric(f"{name}/disagreement", math.fsum(math.sqrt(variance(row)) for row in rows) / len(rows))


def variance(scores: Sequence[float]) -> float:
    """`1/k sum_i (r_i - m)^2`"""
    mean = math.fsum(scores) / len(scores)
    return math.fsum((score - mean) ** 2 for score in scores) / len(scores)
