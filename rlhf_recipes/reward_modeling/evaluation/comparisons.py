"""What a reward model is worth on comparisons: pairs, votes on pairs, rankings, best and worst of a list.

The parts of `evaluation.json` are listed in `ratings.py`.
"""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.data.pairs import TOLERANCE
from rlhf_recipes.reward_modeling.evaluation.figures import (
    REWARD_BENCH_SECTIONS,
    accuracy_by_margin,
    baseline_scores,
    calibration,
    pair_probabilities,
    rating_errors,
    subset_accuracy,
    win_rate_curve,
)
from rlhf_recipes.reward_modeling.evaluation.metrics import (
    Metrics,
    entropy,
    log_loss,
    pair_metrics,
    vote_rater_accuracy,
)
from rlhf_recipes.reward_modeling.evaluation.ratings import BINS, WORST, Evaluation, started
from rlhf_recipes.reward_modeling.scored import Scored
from rlhf_recipes.statistics import pair_units, ratio_interval

logger = logging.getLogger(__name__)
VOTE_EDGES = (0.5, 0.6, 0.8, 1.0)  # share of the majority


# --- Pairs and votes -------------------------------------------------------------------------------------


def pair_evaluation(scored: Scored, shares: Sequence[float] | None = None) -> Evaluation:
    """Pairs: which text is better, or what share of people say so.

    Accuracy is asked of pairs with a majority, against it; log loss and calibration of all, with
    `p = sigmoid(s_chosen - s_rejected)` as Bradley and Terry have it.

    Args:
        scored ([`Scored`]): Scores of chosen and rejected.
        shares (`Sequence[float]` of length N, *optional*): Share of people for chosen. Default: 1 for all.
    """
    result = started(scored)
    first, second = np.array(scored.column(0)), np.array(scored.column(1))
    y = np.ones(len(first)) if shares is None else np.asarray(shares, dtype=np.float64)
    clear, turned = np.flatnonzero(y != 0.5), y < 0.5
    better, worse = np.where(turned, second, first)[clear], np.where(turned, first, second)[clear]
    texts = [scored.texts(0), scored.texts(1)]
    chosen, rejected = ([texts[int(turned[row]) ^ side][row] for row in clear] for side in (0, 1))
    keys = scored.shared_prompts()
    prompts = None if keys is None else [keys[row] for row in clear]
    together = pair_units(scored.prompts, *texts)
    if len(clear):
        units = [None if of_pair is None else [of_pair[row] for row in clear] for of_pair in together]
        result.flat |= pair_metrics(chosen, rejected, better.tolist(), worse.tolist(), *units)
    else:
        logger.warning("All %d pairs are ties: there is no order to be right about.", len(y))
        result.flat |= {"pairwise_accuracy": None, "pairwise_accuracy_ci95": None, "pairs": 0}
    result.flat["log_loss"] = log_loss(first - second, y)
    result.part("calibration", lambda: _pair_calibration(first, second, y, together))
    if "calibration" in result.nested:
        result.flat["ece"] = result.nested["calibration"]["ece"]
    if scored.kind == "votes":
        _add_voters(result, scored, y)
    result.accuracies()
    margins = _pair_margins(scored, y)
    if margins is not None and len(clear):
        what, names = margins
        result.part("by_margin", lambda: _by_name(what, better, worse, [names[row] for row in clear], prompts))
    if "subset" in scored.dataset.column_names and len(clear):
        subsets = [str(scored.dataset["subset"][row]) for row in clear]
        result.part("subsets", lambda: _subsets(better, worse, subsets, prompts))
    result.nested["worst"] = _worst_pairs(scored, first, second, y)
    return result


def _pair_calibration(
    first: NDArray[np.float64], second: NDArray[np.float64], y: NDArray[np.float64], units: Sequence[Any]
) -> Metrics:
    probabilities = pair_probabilities(first, second)
    return {"of": "pairs"} | calibration(probabilities, y, BINS, True, *units)


def _add_voters(result: Evaluation, scored: Scored, y: NDArray[np.float64]) -> None:
    sides = scored.dataset["chosen_votes"], scored.dataset["rejected_votes"]
    alone = vote_rater_accuracy(*sides)
    if alone is not None:
        result.flat["single_rater_accuracy"] = alone
    result.nested["ceiling"] = {"votes_per_text": float(np.mean(np.add(*sides))), "log_loss": entropy(y)}


def _pair_margins(scored: Scored, y: NDArray[np.float64]) -> tuple[str, list[str]] | None:
    """Of what the margin is, and the bucket of each row: of the majority's share, or of a column `margin`."""
    if scored.kind == "votes" or "target" in scored.dataset.column_names:
        return "share of the majority", _bucket_names(np.maximum(y, 1 - y), VOTE_EDGES)
    if "margin" in scored.dataset.column_names:
        margins = np.array(scored.dataset["margin"], dtype=np.float64)
        edges = np.unique(np.quantile(margins, [0, 0.25, 0.5, 0.75]))
        return "margin", _bucket_names(margins, edges.tolist())
    return None


def _bucket_names(values: NDArray[np.float64], edges: Sequence[float]) -> list[str]:
    of_bucket = np.searchsorted(np.asarray(edges) - TOLERANCE, values, side="right") - 1
    ends = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)] + [f"{edges[-1]:.3g} and more"]
    if edges[-1] == 1.0:
        ends[-1] = "1"
    return [ends[max(bucket, 0)] for bucket in of_bucket]


def _by_name(
    what: str,
    better: NDArray[np.float64],
    worse: NDArray[np.float64],
    names: Sequence[str],
    prompts: Sequence[str] | None,
) -> Metrics:
    found = subset_accuracy(better, worse, names, prompts)["subsets"]
    order = sorted(found, key=lambda name: float(name.split()[0]))
    return {"margin": what, "model": [{"name": name, **found[name]} for name in order]}


def _subsets(
    better: NDArray[np.float64], worse: NDArray[np.float64], subsets: Sequence[str], prompts: Sequence[str] | None
) -> Metrics:
    """Every subset, and those sections of RewardBench of which all subsets are there."""
    there = set(subsets)
    whole = {name: members for name, members in REWARD_BENCH_SECTIONS.items() if set(members) <= there}
    return subset_accuracy(better, worse, subsets, prompts, whole or None)


def _worst_pairs(
    scored: Scored, first: NDArray[np.float64], second: NDArray[np.float64], y: NDArray[np.float64]
) -> list[Metrics]:
    """Pairs turned with the largest difference of scores, the better text first."""
    missed = np.where(y < 0.5, first - second, second - first)
    order = [row for row in np.argsort(-missed, kind="stable") if missed[row] > 0 and y[row] != 0.5][:WORST]
    cases = []
    for row in order:
        better = int(y[row] < 0.5)
        share = float(max(y[row], 1 - y[row]))
        cases.append(_pair_case(scored, row, better, 1 - better) | ({"share": share} if share < 1 else {}))
    return cases


def _pair_case(scored: Scored, row: int, better: int, worse: int) -> Metrics:
    return {
        "prompt": scored.prompts[row],
        "better": scored.completions[row][better],
        "worse": scored.completions[row][worse],
        "better_score": scored.scores[row][better],
        "worse_score": scored.scores[row][worse],
    }


# --- Lists -----------------------------------------------------------------------------------------------


def list_evaluation(scored: Scored, quality: Sequence[Sequence[float]]) -> Evaluation:
    """Lists of completions that people have put in order, wholly (rankings) or at both ends (best and worst).

    Args:
        scored ([`Scored`]): A score for each completion of each list.
        quality (`Sequence[Sequence[float]]`): Higher is better; equal ones are never compared.
    """
    result = started(scored)
    s, y, rows, texts = scored.flat(quality)
    columns = baseline_scores(texts)
    bucket = accuracy_by_margin(s, y, [0], rows)[0]
    result.flat |= {
        "pairwise_accuracy": bucket["accuracy"],
        "pairwise_accuracy_ci95": bucket["accuracy_ci95"],
        "pairs": bucket["pairs"],
        "vader_accuracy": accuracy_by_margin(columns["vader"], y, [0], rows)[0]["accuracy"],
        "length_accuracy": accuracy_by_margin(columns["length"], y, [0], rows)[0]["accuracy"],
    }
    tops = np.array([_hit(own, wanted) for own, wanted in zip(scored.scores, quality, strict=True)])  # (N, 2)
    figures: Metrics = {
        "lists": len(tops),
        "top1_accuracy": float(tops[:, 0].mean()),
        "top1_accuracy_ci95": ratio_interval(tops[:, 0], np.ones(len(tops))),
        "top1_chance": float(tops[:, 1].mean()),
    }
    if scored.kind == "best_worst":
        lowest = [
            _hit([-score for score in own], [-value for value in wanted])[0]
            for own, wanted in zip(scored.scores, quality, strict=True)
        ]
        figures |= {
            "worst_accuracy": float(np.mean(lowest)),
            "worst_accuracy_ci95": ratio_interval(lowest, np.ones(len(lowest))),
        }
    else:
        result.part("kendall", lambda: figures.update(_kendall(scored.scores, quality)))
        steps = sorted({len(own) for own in quality})
        edges = [1.0, 2.0, 3.0][: max(1, min(3, steps[-1] - 1))]
        result.part(
            "by_margin",
            lambda: {"margin": "difference of the ranks", "model": accuracy_by_margin(s, y, edges, rows)},
        )
    result.flat |= {key: value for key, value in figures.items() if not key.endswith("_ci95") and key != "lists"}
    result.accuracies()
    result.nested["lists"] = figures
    result.part("win_rate", lambda: win_rate_curve(s, y, rows))
    result.nested["worst"] = _worst_of_lists(scored, quality)
    return result


def best_worst_quality(count: int, best: int, worst: int) -> list[float]:
    """1 for the best of a list, -1 for the worst, 0 for all between, of which nothing is known."""
    quality = [0.0] * count
    quality[best], quality[worst] = 1.0, -1.0
    return quality


def _hit(scores: Sequence[float], quality: Sequence[float]) -> tuple[float, float]:
    """Whether the highest score is that of a best text (ties share), and the chance of a random text to be one."""
    s, y = np.asarray(scores), np.asarray(quality)
    best = y == y.max()
    return float(best[s == s.max()].mean()), float(best.mean())


def _kendall(scores: Sequence[Sequence[float]], quality: Sequence[Sequence[float]]) -> Metrics:
    """Mean over lists of tau-b; a list of equal scores counts 0, because it tells nothing of the order."""
    found = [
        rating_errors(own, wanted, intervals=False)["kendall"] or 0.0
        for own, wanted in zip(scores, quality, strict=True)
        if len(set(wanted)) > 1
    ]
    return {"kendall": float(np.mean(found)), "kendall_ci95": ratio_interval(found, np.ones(len(found)), -1, 1)}


def _worst_of_lists(scored: Scored, quality: Sequence[Sequence[float]]) -> list[Metrics]:
    """Of each list the turned pair with the largest difference of scores, and of all lists the largest of these."""
    cases = []
    for row, (own, wanted) in enumerate(zip(scored.scores, quality, strict=True)):
        turned = [(own[b] - own[a], a, b) for a in range(len(own)) for b in range(len(own)) if wanted[a] > wanted[b]]
        missed, better, worse = max(turned)
        if missed > 0:
            cases.append((missed, _pair_case(scored, row, better, worse)))
    return [case for _, case in sorted(cases, key=lambda case: -case[0])[:WORST]]
