"""Rewards: the contract, the weighted sum, and the rewards that come with this project.

Each name is imported when it is first used, so that a rule does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_recipes.rewards.base import RewardFunction, WeightedSum, as_text, compute_rewards
    from rlhf_recipes.rewards.calibration import LogisticCalibration
    from rlhf_recipes.rewards.checks import RewardError, reward_name
    from rlhf_recipes.rewards.learned import LearnedReward, RewardModelSettings
    from rlhf_recipes.rewards.loading import load_reward, load_rewards
    from rlhf_recipes.rewards.rules import EndsWithSentence, LengthWindow, PlainProse, RegexMatch, Repetition
    from rlhf_recipes.rewards.sentiment import Vader

_MODULE_OF = {
    "EndsWithSentence": "rules",
    "LearnedReward": "learned",
    "LengthWindow": "rules",
    "LogisticCalibration": "calibration",
    "PlainProse": "rules",
    "RegexMatch": "rules",
    "Repetition": "rules",
    "RewardError": "checks",
    "RewardFunction": "base",
    "RewardModelSettings": "learned",
    "Vader": "sentiment",
    "WeightedSum": "base",
    "as_text": "base",
    "compute_rewards": "base",
    "load_reward": "loading",
    "load_rewards": "loading",
    "reward_name": "checks",
}

__all__ = [
    "EndsWithSentence",
    "LearnedReward",
    "LengthWindow",
    "LogisticCalibration",
    "PlainProse",
    "RegexMatch",
    "Repetition",
    "RewardError",
    "RewardFunction",
    "RewardModelSettings",
    "Vader",
    "WeightedSum",
    "as_text",
    "compute_rewards",
    "load_reward",
    "load_rewards",
    "reward_name",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
