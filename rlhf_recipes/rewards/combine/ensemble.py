"""Several reward models as one: what one of them can be fooled into, the others may refuse."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.combine.compose import Composition
from rlhf_recipes.rewards.contract.checks import check_choice, reward_name
from rlhf_recipes.statistics import is_finite

Reduction = Literal["mean", "min", "mean_minus_std", "mean_minus_variance"]


@dataclass(frozen=True, repr=False)
class EnsembleReward(Composition):
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

    `None` where any member says `None`: a mean or a minimum over fewer of them is no measure of the same thing. Where
    the trainer has `log_metric`, the mean over the rows of the standard deviation `sqrt(v)` is logged as
    `<name>/disagreement`: if it climbs while the reward does, the policy has gone where the members guess.

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

    models: Sequence[Any]
    reduce: Reduction = "mean"
    std_coef: float = 1.0
    holds: ClassVar[tuple[str, ...]] = ("models",)

    def __post_init__(self) -> None:
        models = self.models
        if isinstance(models, str) or not isinstance(models, Sequence) or len(models) < 2:
            raise ValueError(f"An EnsembleReward needs a list of two models or more, but has {models!r}.")
        check_reduction("EnsembleReward", self.reduce, "std_coef", self.std_coef)
        super().__post_init__()

    def named(self, inner: Sequence[Any]) -> Mapping[str, Any]:
        """The members, which may share a name: models of several seeds often lie in folders of the same name."""
        return {f"{self.__name__}/{index}/{reward_name(member)}": member for index, member in enumerate(inner)}

    def logged(self, parts: Mapping[str, Series]) -> Mapping[str, Series]:
        """The standard deviation of the members."""
        rows = zip(*parts.values(), strict=True)
        return {"disagreement": [None if None in row else math.sqrt(variance(row)) for row in rows]}

    def merged(self, parts: list[Series]) -> Series:
        rows = zip(*parts, strict=True)
        return [None if None in row else reduced(row, self.reduce, self.std_coef) for row in rows]


def check_reduction(owner: str, reduce: str, coefficient_name: str, coefficient: float) -> None:
    """Raise `ValueError` for a reduction that is not known, or a price of disagreement below 0."""
    check_choice(owner, "reduce", reduce, get_args(Reduction))
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


def variance(scores: Sequence[float]) -> float:
    """`1/k sum_i (r_i - m)^2`"""
    mean = math.fsum(scores) / len(scores)
    return math.fsum((score - mean) ** 2 for score in scores) / len(scores)
