"""Rewards made of rewards: products, gates, maps. A weighted sum is in `base.py`; this is what a sum cannot say.

A composition is a reward like any other. Each reward inside it is an object, or is named as in a YAML file:

```yaml
reward_funcs:
  - func: Product                                   # quality times what it cost
    name: quality_per_flop
    args:
      rewards:
        - {func: Map, args: {reward: runs/quickstart/reward, by: sigmoid}}
        - {func: Discount, args: {cost: TokenCount, scale: 40}}
  - func: Gate                                      # praise counts only in plain prose
    args: {reward: Vader, only_if: PlainProse}
```

Inside a composition the mean of each reward is logged as `<name of the composition>/<name of the reward>`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.rewards.base import Series, StartedRewards, by_name
from rlhf_recipes.rewards.compute import check_positive
from rlhf_recipes.rewards.contract.checks import (
    check_setting,
    checked_call,
    checked_values,
    is_per_token,
    is_potential,
    reward_name,
)
from rlhf_recipes.rewards.diversity import siblings
from rlhf_recipes.rewards.loading import inner_reward, load_spec
from rlhf_recipes.rewards.rules import Rule
from rlhf_recipes.rewards.weighted_sum import check_not_nested
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import Text, short


@dataclass(frozen=True, repr=False)
class Composition:
    """A reward of rewards: a subclass names the fields that hold them, and defines `merged`."""

    name: str | None = field(default=None, kw_only=True)
    holds: ClassVar[tuple[str, ...]] = ("reward",)
    per_token_allowed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        inner = []
        for held in self.holds:
            given = getattr(self, held)
            many = isinstance(given, Sequence) and not isinstance(given, str)
            loaded = [load_spec(spec) for spec in (given if many else [given])]
            object.__setattr__(self, held, tuple(loaded) if many else loaded[0])
            inner += loaded
        named = by_name(inner)
        for name, func in named.items():
            check_not_nested(name, func)
            if is_potential(func) or (is_per_token(func) and not self.per_token_allowed):
                raise ValueError(
                    f"{self.__name__} takes rewards of one number for each completion, but {name!r} gives one "
                    "for each token. Put it into the list of rewards on its own."
                )
        object.__setattr__(self, "inner", named)

    inner: ClassVar[Mapping[str, Any]]  # by name; set on the object, and no setting

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    @property
    def inner_rewards(self) -> tuple[Any, ...]:
        """What it is made of."""
        return tuple(self.inner.values())

    @property
    def per_token(self) -> bool:
        return any(is_per_token(func) for func in self.inner.values())

    @property
    def constant(self) -> bool:
        return all(getattr(func, "constant", False) for func in self.inner.values())

    @property
    def may_not_apply(self) -> bool:
        return any(getattr(func, "may_not_apply", False) for func in self.inner.values())

    @property
    def wants_prompt_ids(self) -> bool:
        return any(getattr(func, "wants_prompt_ids", False) for func in self.inner.values())

    @property
    def wants_ref_logprobs(self) -> bool:
        return any(getattr(func, "wants_ref_logprobs", False) for func in self.inner.values())

    @property
    def wants_siblings(self) -> bool:
        return any(getattr(func, "wants_siblings", False) for func in self.inner.values())

    def merged(self, parts: list[list[Any]]) -> list[Any]:
        """The composition's values, from those of each reward inside it."""
        raise NotImplementedError

    def start(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Callable[[], list[Any]]:
        """Begin what can begin; the function that is returned gives the values."""
        rewards = StartedRewards(self.inner, prompts, completions, completion_ids, columns)

        def finish() -> list[Any]:
            parts = rewards.values()
            log_metric = columns.get("log_metric")
            if log_metric is not None and len(parts) > 1:
                for name, values in parts.items():
                    applying = [value for value in values if value is not None]
                    if applying:
                        log_metric(f"{self.__name__}/{name}", math.fsum(applying) / len(applying))
            return checked_values(self.merged(list(parts.values())), self, self.__name__, rewards.batch)

        return finish

    def __call__(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> list[Any]:
        return self.start(prompts, completions, completion_ids, **columns)()

    def __repr__(self) -> str:
        settings = {key: value for key, value in vars(self).items() if key not in ("inner", "name", *self.holds)}
        said = [*self.inner, *(f"{key}={value!r}" for key, value in settings.items())]
        return f"{self.__name__}({', '.join(said)})"


@dataclass(frozen=True, repr=False)
class Product(Composition):
    """The product of rewards, each 0 or more: `R = r_1 * r_2 * ...`. With a discount for cost, `R = P * delta(C)`.

    Two negative factors would make a reward, so that a factor below 0 is an error; `Map` makes any reward positive.
    `None` where any of the factors does not apply.

    Args:
        rewards (`Sequence`): The factors, two or more.
    """

    rewards: Sequence[Any] = ()
    holds: ClassVar[tuple[str, ...]] = ("rewards",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.inner) < 2:
            raise ValueError(f"A Product needs two rewards or more in `rewards`, and has {len(self.inner)}.")

    def merged(self, parts: list[Series]) -> Series:
        for name, values in zip(self.inner, parts, strict=True):
            below = [(row, value) for row, value in enumerate(values) if value is not None and value < 0]
            if below:
                raise RewardValueError(
                    f"The factor {name!r} of {self.__name__!r} is {below[0][1]:g} in row {below[0][0]}, and a factor "
                    "must be 0 or more: two negative ones would make a reward. Put it into a Map, as in "
                    "{func: Map, args: {reward: ..., by: sigmoid}}."
                )
        return [None if None in row else math.prod(row) for row in zip(*parts, strict=True)]


@dataclass(frozen=True, repr=False)
class Gate(Composition):
    """A reward that counts only where another reaches a threshold: `r if c >= at_least else otherwise`.

    `None` where the condition does not apply, or the gate is open and the reward does not apply.

    Args:
        reward: What counts where the gate is open.
        only_if: The condition, a reward.
        at_least (`float`, *optional*, defaults to 0.5): The condition's threshold.
        otherwise (`float`, *optional*, defaults to 0.0):
            The value where the gate is closed. Choose it below all values of `reward`, or closing the gate pays;
            `None` makes the reward not apply there.
    """

    reward: Any = None
    only_if: Any = None
    at_least: float = 0.5
    otherwise: float | None = 0.0
    holds: ClassVar[tuple[str, ...]] = ("reward", "only_if")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_setting("Gate", "at_least", self.at_least)
        if self.otherwise is not None:
            check_setting("Gate", "otherwise", self.otherwise)

    @property
    def may_not_apply(self) -> bool:
        return self.otherwise is None or super().may_not_apply

    def merged(self, parts: list[Series]) -> Series:
        return [
            None if condition is None else value if condition >= self.at_least else self.otherwise
            for value, condition in zip(*parts, strict=True)
        ]


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
class Relative(Composition):
    """A reward less the mean of the other completions of the same prompt: `r_i - mean_{j != i} r_j`.

    This is the leave-one-out baseline of RLOO (Kool, van Hoof and Welling 2019; arXiv 2402.14740), for PPO: what a
    prompt makes easy or hard drops out, so that far fewer completions tell which was the better one. The others do not
    depend on completion i, so that the expected gradient stays that of the reward. It needs several completions of
    each prompt (`num_generations`).

    `None` where the reward is, or where no other completion of the prompt has a value, as in evaluation. Put the
    reward itself beside it with weight 0, to see it and to have a value there.

    Args:
        reward: The reward.
    """

    reward: Any = None
    wants_siblings: ClassVar[bool] = True

    def start(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Callable[[], list[Any]]:
        finish = super().start(prompts, completions, completion_ids, **columns)

        def relative() -> Series:
            values = finish()
            result: Series = []
            for value, others in zip(values, siblings(prompts), strict=True):
                known = [values[other] for other in others if values[other] is not None]
                result.append(value - math.fsum(known) / len(known) if value is not None and known else None)
            return result

        return relative

    def merged(self, parts: list[Series]) -> Series:
        return parts[0]


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
        if self.by not in ("sigmoid", "exp", "softplus", "relu"):
            raise ValueError(f"Map has by {self.by!r}; known are sigmoid, exp, softplus and relu.")
        _check_unit(self)

    def of(self, value: float) -> float:
        x = (value - self.center) / self.scale
        if self.by == "relu":
            return max(x, 0.0)
        if self.by == "sigmoid":
            return 0.5 * (1.0 + math.tanh(0.5 * x))  # the same function, and no exponential that overflows
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


@dataclass(frozen=True)
class Discount(Rule):
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
    cost_func: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_positive(self, "scale")
        if self.shape not in SHAPES:
            raise ValueError(f"The shape of Discount is {self.shape!r}; it can be {', '.join(SHAPES)}.")
        object.__setattr__(self, "cost_func", inner_reward(self.cost, "the cost of Discount"))

    @property
    def wants_prompt_ids(self) -> bool:
        return bool(getattr(self.cost_func, "wants_prompt_ids", False))

    @property
    def wants_ref_logprobs(self) -> bool:
        return bool(getattr(self.cost_func, "wants_ref_logprobs", False))

    @property
    def constant(self) -> bool:
        return bool(getattr(self.cost_func, "constant", False))

    @property
    def may_not_apply(self) -> bool:
        return bool(getattr(self.cost_func, "may_not_apply", False))

    def __call__(self, completions: Sequence[Text], **batch: Any) -> list[float | None]:
        name = reward_name(self.cost_func)
        costs = checked_call(self.cost_func, name, {"completions": completions, **batch})
        for row, cost in enumerate(costs):
            if cost is not None and cost < 0:
                raise ValueError(
                    f"The cost {name!r} of {self.__name__} is {cost:g} for row {row}, but a cost is 0 or more. If it "
                    "counts what is saved, turn its sign."
                )
        return [None if cost is None else SHAPES[self.shape](cost / self.scale) for cost in costs]


# delta as a function of C / scale.
SHAPES: dict[str, Any] = {
    "exponential": lambda ratio: math.exp(-ratio),
    "hyperbolic": lambda ratio: 1.0 / (1.0 + ratio),
    "linear": lambda ratio: max(0.0, 1.0 - ratio),
    "step": lambda ratio: 1.0 if ratio <= 1.0 else 0.0,
}
