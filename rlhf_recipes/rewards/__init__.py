"""Rewards: the contract, the weighted sum, and the rewards that come with this project.

Each name is imported when it is first used, so that a rule does not wait for torch, and no reward for the libraries of
another.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_recipes.errors import RewardError
    from rlhf_recipes.modeling.embedder import Embedder
    from rlhf_recipes.modeling.heads import LogisticCalibration, RewardModelSettings
    from rlhf_recipes.reward_modeling.linear.reward import LinearReward
    from rlhf_recipes.reward_modeling.personal.reward import PersonalReward
    from rlhf_recipes.rewards.base import RewardFunction, compute_rewards
    from rlhf_recipes.rewards.combine.compose import Clip, Discount, Gate, Map, Product, Relative, Scale
    from rlhf_recipes.rewards.combine.ensemble import EnsembleReward
    from rlhf_recipes.rewards.combine.shared_ensemble import SharedBaseEnsemble
    from rlhf_recipes.rewards.compute import ActiveParameters, Flops, TokenCount
    from rlhf_recipes.rewards.contract.checks import reward_name
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
    from rlhf_recipes.rewards.timed import TimedReward
    from rlhf_recipes.rewards.verifiable.answers import JsonSchema, NumberAnswer, ThinkAnswerFormat
    from rlhf_recipes.rewards.verifiable.short import ShortAnswer
    from rlhf_recipes.rewards.verifiable.symbolic import MathAnswer
    from rlhf_recipes.rewards.weighted_sum import WeightedSum, WeightSchedule
    from rlhf_recipes.rewards.workbench.balance import Balance, measure_balance
    from rlhf_recipes.texts import as_text


# What completions can be rewarded with: the names that a YAML file may use. By module.
_REWARDS_OF = {
    "answers": (
        "JsonSchema",
        "NumberAnswer",
        "ThinkAnswerFormat",
    ),
    "compose": (
        "Clip",
        "Gate",
        "Map",
        "Product",
        "Relative",
        "Scale",
    ),
    "compute": (
        "ActiveParameters",
        "Discount",
        "Flops",
        "TokenCount",
    ),
    "diversity": (
        "DistinctN",
        "NgramNovelty",
        "SelfBLEU",
    ),
    "ensemble": ("EnsembleReward",),
    "fluency": ("Fluency",),
    "grammar": (
        "Acceptability",
        "Spelling",
    ),
    "image_text": ("ImageTextReward",),
    "languagetool": ("LanguageTool",),
    "learned": ("LearnedReward",),
    "linear": ("LinearReward",),
    "personal": ("PersonalReward",),
    "process": (
        "StepReward",
        "TokenClassifierReward",
    ),
    "reference": (
        "BLEU",
        "ChrF",
        "ExactMatch",
        "ROUGE",
        "TokenF1",
    ),
    "remote": ("RemoteReward",),
    "rules": (
        "EndsWithSentence",
        "KeywordCoverage",
        "Language",
        "LengthWindow",
        "OnText",
        "PlainProse",
        "RegexMatch",
        "Repetition",
    ),
    "semantics": (
        "EmbeddingDistance",
        "EmbeddingSimilarity",
    ),
    "sentiment": (
        "SentimentClassifier",
        "Vader",
    ),
    "shaping": (
        "KeywordProgress",
        "PrefixScore",
    ),
    "shared_ensemble": ("SharedBaseEnsemble",),
    "verifiable.short": ("ShortAnswer",),
    "verifiable.symbolic": ("MathAnswer",),
}
_OTHERS_OF = {
    "base": (
        "RewardFunction",
        "WeightedSum",
        "as_text",
        "compute_rewards",
    ),
    "balance": (
        "Balance",
        "measure_balance",
    ),
    "calibration": ("LogisticCalibration",),
    "checks": (
        "RewardError",
        "reward_name",
    ),
    "learned": ("RewardModelSettings",),
    "loading": (
        "load_reward",
        "load_rewards",
    ),
    "process": ("StepModel",),
    "reference": ("corpus_bleu",),
    "schedules": ("WeightSchedule",),
    "semantics": ("Embedder",),
    "timed": ("TimedReward",),
}
_MODULE_OF = {name: module for group in (_REWARDS_OF, _OTHERS_OF) for module, names in group.items() for name in names}
REWARDS = tuple(sorted(name for names in _REWARDS_OF.values() for name in names))
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
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
