"""What a linear reward model says of its features."""

from dataclasses import dataclass
from typing import NamedTuple

from rlhf_recipes.reward_modeling.linear.groups import Feature


class Contribution(NamedTuple):
    """What one feature did to one score: its value (`None` for an embedding), and what it added or took away."""

    feature: str
    value: float | None
    contribution: float


@dataclass(frozen=True)
class Coefficient:
    """The weight of one feature, in two units: score for one unit of it, and score for one standard deviation.

    Only the second can be compared between features. `low` and `high` are its 95% interval, where `bootstrap` was
    called.
    """

    feature: Feature
    per_unit: float
    per_std: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Importance:
    """How much a measure falls when a feature is shuffled: mean and standard deviation over the shuffles."""

    name: str
    mean: float
    std: float
