"""Accuracy on subsets that have names, and on sections of them, as RewardBench has them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.statistics import Keys, Metrics, Spread, Units, check_length, combined, float_columns, rows_by_key

# RewardBench's sections and the weight of each subset in them: its number of rows, but for math-prm, whose 447 rows
# weigh as much as the 984 of code (Lambert et al., arXiv 2403.13787, and the constants of its code).
REWARD_BENCH_SECTIONS: dict[str, dict[str, float]] = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **{f"hep-{code}": 164 for code in ("cpp", "go", "java", "js", "python", "rust")}},
}


def subset_accuracy(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    subsets: Keys,
    prompts: Keys | None = None,
    sections: Mapping[str, Mapping[str, float] | Sequence[str]] | None = None,
    section_weights: Mapping[str, float] | None = None,
) -> Metrics:
    """Accuracy on rows of prompt, chosen, rejected and subset, such as RewardBench's; equal scores count half.

    Intervals are over rows, or prompts, within each subset, because the subsets and their sizes are given.

    Args:
        chosen_scores, rejected_scores (`ArrayLike` of shape `(N,)`): What is measured.
        subsets (`Sequence` of length N): The name of each row's subset.
        prompts (`Sequence` of length N, *optional*): What each row's texts answer, where a prompt has several rows.
        sections (`Mapping`, *optional*):
            The subsets of each section: a list (each subset weighs as much as it has rows), or a mapping from subset
            to weight, such as `REWARD_BENCH_SECTIONS`. A subset in no section counts for none.
        section_weights (`Mapping[str, float]`, *optional*):
            Weight of each section in `score`. Default: the same for all.

    Returns:
        `dict`: `pairwise_accuracy` of all rows and `pairs`; `subsets`, for each name its `accuracy` and `pairs`; with
        sections also `sections` (weighted means) and `score`, their weighted mean. All with intervals.

    Raises:
        `ValueError`: if lengths differ, a number is not finite, or a section names a subset that no row has.
    """
    chosen, rejected = float_columns(chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    credit = 0.5 + 0.5 * np.sign(chosen - rejected)
    keys = range(len(credit)) if prompts is None else prompts
    check_length(keys, len(credit), "prompts")
    found: dict[Any, _Subset] = {}
    for name, rows in zip(dict.fromkeys(subsets), rows_by_key(subsets, len(credit), "subsets"), strict=True):
        units = Units.of(len(rows), [keys[row] for row in rows])
        accuracy, influences = units.mean(credit[rows])
        found[name] = _Subset(accuracy, len(rows), units.spread(influences))
    whole, interval = _weighted(found, {name: of.rows / len(credit) for name, of in found.items()})
    metrics: Metrics = {
        "pairwise_accuracy": whole,
        "pairwise_accuracy_ci95": interval,
        "pairs": len(credit),
        "subsets": {
            name: {"accuracy": of.accuracy, "accuracy_ci95": of.spread.bounded(of.accuracy), "pairs": of.rows}
            for name, of in found.items()
        },
    }
    if sections is not None:
        metrics |= _sections(found, sections, section_weights or {})
    return metrics


class _Subset(NamedTuple):
    accuracy: float
    rows: int
    spread: Spread


def _weighted(found: Mapping[Any, _Subset], weights: Mapping[Any, float]) -> tuple[float, list[float] | None]:
    """The weighted sum of the accuracies of subsets, and its interval."""
    value = float(sum(weight * found[name].accuracy for name, weight in weights.items()))
    return value, combined([(weight, found[name].spread) for name, weight in weights.items() if weight]).bounded(value)


def _sections(
    found: Mapping[Any, _Subset],
    sections: Mapping[str, Mapping[str, float] | Sequence[str]],
    section_weights: Mapping[str, float],
) -> Metrics:
    strangers = section_weights.keys() - sections.keys()
    if strangers:
        raise ValueError(f"section_weights names {sorted(strangers)}, which is none of {sorted(sections)}.")
    figures: Metrics = {}
    weights: dict[Any, float] = dict.fromkeys(found, 0.0)  # of each subset in the score
    whole = sum(float(section_weights.get(name, 1.0)) for name in sections)
    for name, members in sections.items():
        missing = [subset for subset in members if subset not in found]
        if missing or not members:
            raise ValueError(
                f"The section {name!r} has subsets without rows: {missing or 'none are named'}. There are rows of "
                f"{sorted(map(str, found))}. Leave them out of the section, or score their rows too."
            )
        weight = {s: float(members[s] if isinstance(members, Mapping) else found[s].rows) for s in members}
        share = {s: weight[s] / sum(weight.values()) for s in members}
        value, interval = _weighted(found, share)
        figures[name] = {"accuracy": value, "accuracy_ci95": interval}
        part = float(section_weights.get(name, 1.0)) / whole
        weights |= {s: weights[s] + part * share[s] for s in members}
    score, interval = _weighted(found, weights)
    return {"sections": figures, "score": score, "score_ci95": interval}
