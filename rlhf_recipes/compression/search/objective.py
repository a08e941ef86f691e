"""What a structure is worth: R = P * delta(C), quality times a factor that falls with cost."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf_recipes.statistics import is_finite

logger = logging.getLogger(__name__)

FAMILIES = ("power", "exponential", "hinge")
MAPS = ("exp", "sigmoid", "rescale")
LEAST = 1e-6  # what a quality at or below the lower end of `rescale` becomes


@dataclass(frozen=True)
class Delta:
    """The factor delta(C), which never grows with the cost C in (0, 1], relative to the original's.

    With a = `strength` and B = `budget`:

    - `power`: C^-a. Twice the cost needs 2^a times the quality.
    - `exponential`: exp(-a C). An a-th of the original's cost needs e times the quality.
    - `hinge`: 1 up to the budget, `max(0, 1 - a (C / B - 1))` beyond it: with a = 20 it is 0 from 5% beyond it on.

    Args:
        family (`str`): One of the three.
        strength (`float`): a, greater than 0.
        budget (`float`, *optional*): B in (0, 1]; for `hinge` alone, which needs it.
    """

    family: str
    strength: float
    budget: float | None = None

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"delta is {self.family!r}; it can be {', '.join(FAMILIES)}.")
        if not is_finite(self.strength) or self.strength <= 0:
            raise ValueError(f"The strength of delta is {self.strength}; it must be a number greater than 0.")
        if (self.family == "hinge") != (self.budget is not None):
            needs = "needs a budget" if self.family == "hinge" else "has no budget"
            raise ValueError(f"delta {self.family!r} {needs}; the budget given is {self.budget}.")
        if self.budget is not None and not (is_finite(self.budget) and 0 < self.budget <= 1):
            raise ValueError(
                f"The budget is {self.budget}; it is a share of the original's cost, greater than 0 and at most 1."
            )

    def __call__(self, cost: float) -> float:
        """delta of a relative cost, which must be greater than 0."""
        if not is_finite(cost) or cost <= 0:
            raise ValueError(f"The cost is {cost}; relative to the original it must be greater than 0.")
        if self.family == "power":
            return float(cost**-self.strength)
        if self.family == "exponential":
            return math.exp(-self.strength * cost)
        return max(0.0, 1.0 - self.strength * max(0.0, cost / (self.budget or 1.0) - 1.0))


@dataclass(frozen=True)
class QualityMap:
    """A map from a quality that may be negative to P, which may not, and which grows with it.

    - `exp`: exp(x). Of a mean log-probability it is one over the perplexity.
    - `sigmoid`: 1 / (1 + exp(-x)). Of the margin of a reward model it is the probability of preference.
    - `rescale`: (x - low) / (high - low), at least 1e-6. Above `high` it goes on growing.

    Args:
        name (`str`): One of the three.
        low, high (`float`, *optional*): For `rescale` alone, which needs both.
    """

    name: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if self.name not in MAPS:
            raise ValueError(
                f"The map of the quality is {self.name!r}; it can be exp, sigmoid, or rescale with [low, high]."
            )
        ends = (self.low, self.high)
        if self.name != "rescale":
            if ends != (None, None):
                raise ValueError(f"The map {self.name!r} has no ends; leave out {list(ends)}.")
        elif not all(map(is_finite, ends)) or self.low >= self.high:  # type: ignore[operator]
            raise ValueError(f"rescale has the ends {list(ends)}; give two numbers, the lower one first: [0, 10].")

    @classmethod
    def of(cls, given: Any) -> "QualityMap | None":
        """From what stands in a YAML file: `exp`, `sigmoid`, `{rescale: [low, high]}`, or nothing."""
        if given is None or isinstance(given, QualityMap):
            return given
        if isinstance(given, Mapping) and list(given) == ["rescale"]:
            ends = given["rescale"]
            if isinstance(ends, str) or not isinstance(ends, Sequence) or len(ends) != 2:
                raise ValueError(f"rescale has the ends {ends!r}; give two numbers, the lower one first: [0, 10].")
            return cls("rescale", *ends)
        return cls(str(given))

    def __call__(self, quality: float) -> float:
        """P, which is positive."""
        if self.name == "exp":
            return math.exp(quality)
        if self.name == "sigmoid":
            return 1.0 / (1.0 + math.exp(-quality)) if quality >= 0 else math.exp(quality) / (1.0 + math.exp(quality))
        assert self.low is not None
        assert self.high is not None
        return max(LEAST, (quality - self.low) / (self.high - self.low))


@dataclass(frozen=True)
class Objective:
    """R = P * delta(C).

    Args:
        delta ([`Delta`]): The factor.
        quality_map ([`QualityMap`], *optional*): From the quality as measured to P.
        nonnegative (`bool`): Whether the quality is known never to be negative, as likelihoods and accuracies are.
            Any other needs a map.

    Raises:
        `ValueError`: if a quality that may be negative has no map.
    """

    delta: Delta
    quality_map: QualityMap | None = None
    nonnegative: bool = False
    name: str = field(default="quality", compare=False)

    def __post_init__(self) -> None:
        if self.quality_map is None and not self.nonnegative:
            raise ValueError(
                f"The {self.name} may be negative, and R = P * delta(C) would then reward cost: give it a map, `exp`, "
                "`sigmoid` or `rescale: [low, high]`."
            )

    def positive(self, quality: float) -> float:
        """P of a quality as measured; `ValueError` where it is negative or not finite."""
        if not is_finite(quality):
            raise ValueError(f"The {self.name} of a structure is {quality}; it must be a finite number.")
        p = quality if self.quality_map is None else self.quality_map(quality)
        if p < 0:
            raise ValueError(
                f"The {self.name} of a structure is {quality}, and was said never to be negative: give it a map, "
                "`exp`, `sigmoid` or `rescale: [low, high]`."
            )
        return p

    def __call__(self, quality: float, cost: float) -> float:
        """R of a quality as measured and a cost relative to the original."""
        return self.positive(quality) * self.delta(cost)


def relative_cost(costs: Mapping[str, float], original: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """`C = sum_i w_i c_i / c_i(original) / sum_i w_i`, 1 for the original.

    Args:
        costs, original: By name, in whichever unit: parameters, bytes, FLOPs, seconds.
        weights: Of those that count; none negative.

    Raises:
        `ValueError`: if a cost that counts is not known, or is 0 for the original, or all weights are 0.
    """
    check_weights(original, weights)
    total = math.fsum(weights.values())
    return math.fsum(weight * costs[name] / original[name] for name, weight in weights.items() if weight) / total


def check_weights(original: Mapping[str, float], weights: Mapping[str, float]) -> None:
    """Raise `ValueError` where these weights of the original's costs make no relative cost."""
    unknown = sorted(set(weights) - set(original))
    if unknown:
        raise ValueError(f"The cost {unknown[0]!r} is not known; known are {', '.join(sorted(original))}.")
    if any(not is_finite(weight) or weight < 0 for weight in weights.values()) or not any(weights.values()):
        raise ValueError(f"The weights of costs are {dict(weights)}; they must be 0 or more, and one of them not 0.")
    for name, weight in weights.items():
        if weight and not original[name] > 0:
            raise ValueError(
                f"The {name} of the original are {original[name]}, so that nothing can be said relative to them: "
                "leave this cost out."
            )
