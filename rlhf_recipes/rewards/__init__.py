"""Rewards: the contract, the weighted sum, and the rewards that come with this project.

Each name is imported when it is first used, so that a rule does not wait for torch, and no reward for the libraries of
another.
"""

import importlib
from typing import Any

# What completions can be rewarded with: the names that a YAML file may use, by the file that holds them, below
# `rlhf_recipes`. A new reward is a line here.
REWARDS_OF = {
    "rewards.verifiable.answers": ("JsonSchema", "NumberAnswer", "ThinkAnswerFormat"),
    "rewards.combine.compose": ("Gate", "Product", "Relative"),
    "rewards.combine.maps": ("Clip", "Discount", "Map", "Otherwise", "Scale"),
    "rewards.compute": ("ActiveParameters", "Flops", "TokenCount"),
    "rewards.diversity": ("DistinctN", "NgramNovelty", "SelfBLEU"),
    "rewards.combine.ensemble": ("EnsembleReward",),
    "rewards.fluency": ("Acceptability", "Fluency"),
    "rewards.language.spelling": ("Spelling",),
    "rewards.language.languagetool": ("LanguageTool",),
    "rewards.image_text": ("ImageTextReward",),
    "rewards.learned": ("LearnedReward",),
    "reward_modeling.linear.reward": ("LinearReward",),
    "reward_modeling.personal.reward": ("PersonalReward",),
    "rewards.process": ("StepReward", "TokenClassifierReward"),
    "rewards.reference": ("BLEU", "ChrF", "ExactMatch", "ROUGE", "TokenF1"),
    "rewards.remote": ("RemoteReward",),
    "rewards.rules": (
        "EndsWithSentence", "KeywordCoverage", "Language", "LengthWindow", "OnText", "PlainProse", "RegexMatch",
        "Repetition",
    ),
    "rewards.language.embeddings": ("EmbeddingDistance", "EmbeddingSimilarity"),
    "rewards.sentiment": ("SentimentClassifier", "Vader"),
    "rewards.shaping": ("KeywordProgress", "PrefixScore"),
    "rewards.combine.shared_ensemble": ("SharedBaseEnsemble",),
    "rewards.verifiable.short": ("ShortAnswer",),
    "rewards.verifiable.symbolic": ("MathAnswer",),
}  # fmt: skip
_OTHERS_OF = {
    "errors": ("RewardError", "RewardValueError"),
    "modeling.embedder": ("Embedder",),
    "modeling.calibration": ("LogisticCalibration",),
    "modeling.heads": ("RewardModelSettings",),
    "rewards.base": ("RewardFunction", "compute_rewards"),
    "rewards.contract.checks": ("reward_name",),
    "rewards.loading": ("load_reward", "load_rewards"),
    "rewards.process": ("StepModel",),
    "rewards.reference": ("corpus_bleu",),
    "rewards.contract.timed": ("TimedReward",),
    "rewards.weighted_sum": ("WeightSchedule", "WeightedSum"),
    "rewards.workbench.balance": ("Balance", "measure_balance"),
    "texts": ("as_text",),
}
_MODULE_OF = {name: module for group in (REWARDS_OF, _OTHERS_OF) for module, names in group.items() for name in names}
REWARDS = tuple(sorted(name for names in REWARDS_OF.values() for name in names))
__all__ = sorted(_MODULE_OF)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"rlhf_recipes.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
