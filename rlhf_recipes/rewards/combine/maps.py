"""Functions of one reward, value by value: bounds, units, maps to what can be a factor, discounts for a cost."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.combine.compose import Composition
from rlhf_recipes.rewards.contract.checks import check_choice, check_positive, check_setting, reward_name
from rlhf_recipes.rewards.loading import inner_reward
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import short


@dataclass(frozen=True, repr=False)
class OneReward(Composition):
    """A function of one reward's values, one by one; also of one that pays per token. `None` stays `None`."""

    reward: Any = None
    per_token_allowed: ClassVar[bool] = True

    def of(self, value: float) -> float:
        """What one value becomes."""
        raise NotImplementedError

    def merged(self, parts: list[list[Any]]) -> list[Any]:
        return [
            None if value is None else [self.of(v) for v in value] if isinstance(value, list) else self.of(value)
            for value in parts[0]
        ]

    @property
    def __name__(self) -> str:
        return self.name or reward_name(self.reward)


@dataclass(frozen=True, repr=False)
class Clip(OneReward):
    """A reward held within bounds: `min(max(r, low), high)`. It keeps the name of the reward unless it has its own.

    Args:
        reward: The reward.
        low (`float`, *optional*), high (`float`, *optional*): The bounds. One of them is needed.
    """

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low is None and self.high is None:
            raise ValueError("Clip has neither low nor high, so that it would do nothing. Give one of them.")
        for setting in ("low", "high"):
            if getattr(self, setting) is not None:
                check_setting("Clip", setting, getattr(self, setting))
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"Clip goes from low {self.low:g} to high {self.high:g}; low must be below high.")

    def of(self, value: float) -> float:
        value = value if self.low is None else max(value, self.low)
        return value if self.high is None else min(value, self.high)


@dataclass(frozen=True, repr=False)
class Otherwise(OneReward):
    """A reward where it applies, and a fixed value where it does not: `r`, or `value` where that is `None`.

    With it a reward can stand alone that has nothing to say of some completions, such as the mean log-probability of
    an empty one. Choose the value below what any completion gets that says something, or saying nothing pays.

    Args:
        reward: The reward.
        value (`float`): What a row gets to which the reward does not apply.
    """

    value: float | None = None
    per_token_allowed: ClassVar[bool] = False
    may_not_apply: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("Otherwise", "value", self.value)

    def merged(self, parts: list[Series]) -> Series:
        return [self.value if value is None else value for value in parts[0]]


@dataclass(frozen=True, repr=False)
class Scale(OneReward):
    """`(r - center) / scale`: a reward in units of its own spread, say. It keeps its name unless it has its own.

    `python -m rlhf_recipes.rewards calibrate` proposes both. They are fixed numbers, so that a value still depends on
    its row alone; `normalize_rewards` of PPO keeps running ones.

    Args:
        reward: The reward.
        scale (`float`, *optional*, defaults to 1.0): Above 0.
        center (`float`, *optional*, defaults to 0.0): What becomes 0.
    """

    scale: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_unit(self)

    def of(self, value: float) -> float:
        return (value - self.center) / self.scale


@dataclass(frozen=True, repr=False)
class Map(OneReward):
    """A map from any number to one that is 0 or more, so that a reward can be a factor. All of them rise.

    With `x = (r - center) / scale`:

    - `"sigmoid"`: `1 / (1 + exp(-x))`, from 0 to 1
    - `"exp"`: `exp(x)`; refused above x = 50, where a number would decide everything
    - `"softplus"`: `log(1 + exp(x))`
    - `"relu"`: `max(x, 0)`

    Args:
        reward: The reward.
        by (`str`, *optional*, defaults to `"sigmoid"`): Which map.
        scale (`float`, *optional*, defaults to 1.0), center (`float`, *optional*, defaults to 0.0): See above.
    """

    by: Literal["sigmoid", "exp", "softplus", "relu"] = "sigmoid"
    scale: float = 1.0
    center: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("Map", "by", self.by, ("sigmoid", "exp", "softplus", "relu"))
        _check_unit(self)

    def of(self, value: float) -> float:
        x = (value - self.center) / self.scale
        if self.by == "relu":
            return max(x, 0.0)
        if self.by == "sigmoid":
            from scipy.special import expit

            return float(expit(x))
        if self.by == "softplus":
            return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
        if x > 50:
            raise RewardValueError(
                f"Map by exp has the value {value:g} of {reward_name(self.reward)!r}, {x:g} scales above its center: "
                "one such row would decide everything. Raise scale, or take sigmoid."
            )
        return math.exp(x)


def _check_unit(reward: Any) -> None:
    """Refuse a center and a scale that no number can be measured with."""
    kind = type(reward).__qualname__
    check_setting(kind, "center", reward.center)
    if not is_finite(reward.scale) or reward.scale <= 0:
        raise ValueError(
            f"scale of {kind} is {short(reward.scale)}; the scale must be above 0, and finite. To turn a reward "
            "around, give it a negative weight."
        )


@dataclass(frozen=True, repr=False)
class Discount(Composition):
    """A factor `delta(C)` that falls from 1 towards 0 as a cost C grows, for a product `R = P * delta(C)`.

    | shape | delta(C) | at C = scale |
    |---|---|---|
    | `"exponential"` | `exp(-C / scale)` | 0.37 |
    | `"hyperbolic"` | `1 / (1 + C / scale)` | 0.5 |
    | `"linear"` | `max(0, 1 - C / scale)` | 0 |
    | `"step"` | `1 if C <= scale else 0` | 1 |

    Where the cost does not apply (`None`), the factor does not either. It asks for what its cost asks for.

    Args:
        cost (callable, `str` or `dict`):
            A reward with one number of 0 or more for each completion, such as [`Flops`], or what a YAML file says of
            one: a name, or a dictionary with `func` and, where wanted, `name` and `args`.
        scale (`float`):
            The cost at which the factor is as in the table, in units of the cost. Above 0.
        shape (`str`, *optional*, defaults to `"exponential"`):
            How it falls. Exponential takes the same share for each further unit; hyperbolic forgives large costs;
            linear and step are 0 from some cost on, where a policy can no longer tell which of two is the dearer.

    Raises:
        `ValueError`: if a setting is not what it can be; while scoring, if a cost is below 0.

    Example:

    ```yaml
    - {func: Discount, args: {cost: {func: Flops, args: {model: starter/policy}}, scale: 5.0, shape: hyperbolic}}
    ```
    """

    cost: Any
    scale: float
    shape: Literal["exponential", "hyperbolic", "linear", "step"] = "exponential"
    holds: ClassVar[tuple[str, ...]] = ("cost",)

    def __post_init__(self) -> None:
        check_positive("Discount", "scale", self.scale)
        check_choice("Discount", "shape", self.shape, list(SHAPES))
        object.__setattr__(self, "cost", inner_reward(self.cost, "the cost of Discount"))
        super().__post_init__()

    def merged(self, parts: list[Series]) -> Series:
        for row, cost in enumerate(parts[0]):
            if cost is not None and cost < 0:
                raise RewardValueError(
                    f"The cost {reward_name(self.cost)!r} of {self.__name__} is {cost:g} for row {row}, but a cost is "
                    "0 or more. If it counts what is saved, turn its sign."
                )
        return [None if cost is None else SHAPES[self.shape](cost / self.scale) for cost in parts[0]]


# delta as a function of C / scale.
SHAPES: dict[str, Any] = {
    "exponential": lambda ratio: math.exp(-ratio),
    "hyperbolic": lambda ratio: 1.0 / (1.0 + ratio),
    "linear": lambda ratio: max(0.0, 1.0 - ratio),
    "step": lambda ratio: 1.0 if ratio <= 1.0 else 0.0,
}
