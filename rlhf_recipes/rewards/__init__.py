"""Rewards: the contract, the weighted sum, and the rewards that come with this project.

Each name is imported when it is first used, so that a rule does not wait for torch, and no reward for the libraries of
another.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_recipes.errors import RewardError, RewardValueError
    from rlhf_recipes.modeling.calibration import LogisticCalibration
    from rlhf_recipes.modeling.embedder import Embedder
    from rlhf_recipes.modeling.heads import RewardModelSettings
    from rlhf_recipes.rewards.base import RewardFunction, compute_rewards
    from rlhf_recipes.rewards.combine.compose import Clip, Discount, Gate, Map, Otherwise, Product, Relative, Scale
    from rlhf_recipes.rewards.combine.ensemble import EnsembleReward
    from rlhf_recipes.rewards.combine.shared_ensemble import SharedBaseEnsemble
    from rlhf_recipes.rewards.compute import ActiveParameters, Flops, TokenCount
    from rlhf_recipes.rewards.contract.checks import reward_name
    from rlhf_recipes.rewards.contract.timed import TimedReward
    from rlhf_recipes.rewards.diversity import DistinctN, NgramNovelty, SelfBLEU
    from rlhf_recipes.rewards.embeddings import EmbeddingDistance, EmbeddingSimilarity
    from rlhf_recipes.rewards.fluency import Fluency
    from rlhf_recipes.rewards.grammar import Acceptability, Spelling
    from rlhf_recipes.rewards.image_text import ImageTextReward
    from rlhf_recipes.rewards.languagetool import LanguageTool
    from rlhf_recipes.rewards.learned import LearnedReward
    from rlhf_recipes.rewards.loading import load_reward, load_rewards
    from rlhf_recipes.rewards.process import StepModel, StepReward, TokenClassifierReward
    from rlhf_recipes.rewards.reference import BLEU, ROUGE, ChrF, ExactMatch, TokenF1, corpus_bleu
    from rlhf_recipes.rewards.remote import RemoteReward
    from rlhf_recipes.rewards.rules import (
        EndsWithSentence,
        KeywordCoverage,
        Language,
        LengthWindow,
        OnText,
        PlainProse,
        RegexMatch,
        Repetition,
    )
    from rlhf_recipes.rewards.sentiment import SentimentClassifier, Vader
    from rlhf_recipes.rewards.shaping import KeywordProgress, PrefixScore
    from rlhf_recipes.rewards.verifiable.answers import JsonSchema, NumberAnswer, ThinkAnswerFormat
    from rlhf_recipes.rewards.verifiable.short import ShortAnswer
    from rlhf_recipes.rewards.verifiable.symbolic import MathAnswer
    from rlhf_recipes.rewards.weighted_sum import WeightedSum, WeightSchedule
    from rlhf_recipes.rewards.workbench.balance import Balance, measure_balance
    from rlhf_recipes.texts import as_text

# What completions can be rewarded with: the names that a YAML file may use. By module, below `rlhf_recipes`.
REWARDS_OF = {
    "rewards.verifiable.answers": (
        "JsonSchema",
        "NumberAnswer",
        "ThinkAnswerFormat",
    ),
    "rewards.combine.compose": (
        "Clip",
        "Discount",
        "Gate",
        "Map",
        "Otherwise",
        "Product",
        "Relative",
        "Scale",
    ),
    "rewards.compute": (
        "ActiveParameters",
        "Flops",
        "TokenCount",
    ),
    "rewards.diversity": (
        "DistinctN",
        "NgramNovelty",
        "SelfBLEU",
    ),
    "rewards.combine.ensemble": ("EnsembleReward",),
    "rewards.fluency": ("Fluency",),
    "rewards.grammar": (
        "Acceptability",
        "Spelling",
    ),
    "rewards.image_text": ("ImageTextReward",),
    "rewards.languagetool": ("LanguageTool",),
    "rewards.learned": ("LearnedReward",),
    "reward_modeling.linear.reward": ("LinearReward",),
    "reward_modeling.personal.reward": ("PersonalReward",),
    "rewards.process": (
        "StepReward",
        "TokenClassifierReward",
    ),
    "rewards.reference": (
        "BLEU",
        "ChrF",
        "ExactMatch",
        "ROUGE",
        "TokenF1",
    ),
    "rewards.remote": ("RemoteReward",),
    "rewards.rules": (
        "EndsWithSentence",
        "KeywordCoverage",
        "Language",
        "LengthWindow",
        "OnText",
        "PlainProse",
        "RegexMatch",
        "Repetition",
    ),
    "rewards.embeddings": (
        "EmbeddingDistance",
        "EmbeddingSimilarity",
    ),
    "rewards.sentiment": (
        "SentimentClassifier",
        "Vader",
    ),
    "rewards.shaping": (
        "KeywordProgress",
        "PrefixScore",
    ),
    "rewards.combine.shared_ensemble": ("SharedBaseEnsemble",),
    "rewards.verifiable.short": ("ShortAnswer",),
    "rewards.verifiable.symbolic": ("MathAnswer",),
}
_OTHERS_OF = {
    "errors": (
        "RewardError",
        "RewardValueError",
    ),
    "modeling.embedder": ("Embedder",),
    "modeling.calibration": ("LogisticCalibration",),
    "modeling.heads": ("RewardModelSettings",),
    "rewards.base": (
        "RewardFunction",
        "compute_rewards",
    ),
    "rewards.contract.checks": ("reward_name",),
    "rewards.loading": (
        "load_reward",
        "load_rewards",
    ),
    "rewards.process": ("StepModel",),
    "rewards.reference": ("corpus_bleu",),
    "rewards.contract.timed": ("TimedReward",),
    "rewards.weighted_sum": (
        "WeightSchedule",
        "WeightedSum",
    ),
    "rewards.workbench.balance": (
        "Balance",
        "measure_balance",
    ),
    "texts": ("as_text",),
}
_MODULE_OF = {name: module for group in (REWARDS_OF, _OTHERS_OF) for module, names in group.items() for name in names}
REWARDS = tuple(sorted(name for names in REWARDS_OF.values() for name in names))
__all__ = [
    "Acceptability",
    "ActiveParameters",
    "BLEU",
    "Balance",
    "ChrF",
    "Clip",
    "Discount",
    "DistinctN",
    "Embedder",
    "EmbeddingDistance",
    "EmbeddingSimilarity",
    "EndsWithSentence",
    "EnsembleReward",
    "ExactMatch",
    "Flops",
    "Fluency",
    "Gate",
    "ImageTextReward",
    "JsonSchema",
    "KeywordCoverage",
    "KeywordProgress",
    "Language",
    "LanguageTool",
    "LearnedReward",
    "LengthWindow",
    "LinearReward",
    "LogisticCalibration",
    "Map",
    "MathAnswer",
    "NgramNovelty",
    "NumberAnswer",
    "OnText",
    "Otherwise",
    "PersonalReward",
    "PlainProse",
    "PrefixScore",
    "Product",
    "ROUGE",
    "RegexMatch",
    "Relative",
    "RemoteReward",
    "Repetition",
    "RewardError",
    "RewardFunction",
    "RewardModelSettings",
    "RewardValueError",
    "Scale",
    "SelfBLEU",
    "SentimentClassifier",
    "SharedBaseEnsemble",
    "ShortAnswer",
    "Spelling",
    "StepModel",
    "StepReward",
    "ThinkAnswerFormat",
    "TimedReward",
    "TokenClassifierReward",
    "TokenCount",
    "TokenF1",
    "Vader",
    "WeightSchedule",
    "WeightedSum",
    "as_text",
    "compute_rewards",
    "corpus_bleu",
    "load_reward",
    "load_rewards",
    "measure_balance",
    "reward_name",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_recipes.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
