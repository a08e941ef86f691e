"""Rewards made of rewards: products, gates, and in `maps.py` functions of one. This is what a weighted sum cannot say.

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
from typing import Any, ClassVar

from rlhf_recipes.errors import RewardValueError
from rlhf_recipes.rewards.base import Series, StartedRewards, by_name, log_means
from rlhf_recipes.rewards.contract.checks import check_setting, checked_values, is_per_token, is_potential, reward_name
from rlhf_recipes.rewards.diversity import siblings
from rlhf_recipes.rewards.loading import load_spec
from rlhf_recipes.rewards.weighted_sum import check_not_nested


def any_inside(attribute: str) -> Any:
    """A property: whether any of the rewards inside says so of itself."""
    return property(lambda made: any(getattr(func, attribute, False) for func in made.inner.values()))


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
        named = self.named(inner)
        for name, func in named.items():
            check_not_nested(name, func)
            if is_potential(func) or (is_per_token(func) and not self.per_token_allowed):
                raise ValueError(
                    f"{self.__name__} takes rewards of one number for each completion, but "
                    f"{reward_name(func)!r} gives one for each token. Put it into the list of rewards on its own."
                )
        object.__setattr__(self, "inner", named)

    inner: ClassVar[Mapping[str, Any]]  # by name; set on the object, and no setting

    def named(self, inner: Sequence[Any]) -> Mapping[str, Any]:
        """What is inside, by name."""
        return by_name(inner)

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    @property
    def inner_rewards(self) -> tuple[Any, ...]:
        """What it is made of."""
        return tuple(self.inner.values())

    per_token: ClassVar[Any] = any_inside("per_token")
    may_not_apply: ClassVar[Any] = any_inside("may_not_apply")
    wants_prompt_ids: ClassVar[Any] = any_inside("wants_prompt_ids")
    wants_ref_logprobs: ClassVar[Any] = any_inside("wants_ref_logprobs")
    wants_siblings: ClassVar[Any] = any_inside("wants_siblings")

    @property
    def constant(self) -> bool:
        return all(getattr(func, "constant", False) for func in self.inner.values())

    def logged(self, parts: Mapping[str, Any]) -> Mapping[str, Any]:
        """Of what the mean is logged: the rewards inside it, where it has several."""
        return parts if len(parts) > 1 else {}

    def merged(self, parts: list[list[Any]]) -> list[Any]:
        """The composition's values, from those of each reward inside it."""
        raise NotImplementedError

    def start(self, prompts: Any, completions: Any, completion_ids: Any, **columns: Any) -> Callable[[], list[Any]]:
        """Begin what can begin; the function that is returned gives the values."""
        rewards = StartedRewards(self.inner, prompts, completions, completion_ids, columns)

        def finish() -> list[Any]:
            parts = rewards.values()
            log_means(columns.get("log_metric"), self.__name__, self.logged(parts))
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
