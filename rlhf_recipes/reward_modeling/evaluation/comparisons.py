"""What a reward model is worth on comparisons: pairs, votes on pairs, rankings, best and worst of a list.

The parts of `evaluation.json` are listed in `ratings.py`.
"""

import logging
from collections.abc import Sequence

import numpy as np

from rlhf_recipes.data.pairs import TOLERANCE
from rlhf_recipes.reward_modeling.evaluation.baselines import baseline_accuracies
from rlhf_recipes.reward_modeling.evaluation.figures import (
    accuracy_by_margin,
    pair_probabilities,
    pairwise_accuracy,
    rating_errors,
    win_rate_curve,
)
from rlhf_recipes.reward_modeling.evaluation.metrics import (
    entropy,
    log_loss,
    pair_metrics,
    vote_rater_accuracy,
)
from rlhf_recipes.reward_modeling.evaluation.ratings import Evaluation, started, worst
from rlhf_recipes.reward_modeling.evaluation.subsets import REWARD_BENCH_SECTIONS, subset_accuracy
from rlhf_recipes.reward_modeling.scored import Scored
from rlhf_recipes.statistics import Floats, Metrics, mean_with_interval, pair_units

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
    together = pair_units(scored.prompts, *texts)
    if len(clear):
        chosen, rejected = ([texts[int(turned[row]) ^ side][row] for row in clear] for side in (0, 1))
        units = [None if of_pair is None else [of_pair[row] for row in clear] for of_pair in together]
        result.flat |= pair_metrics(chosen, rejected, better.tolist(), worse.tolist(), *units)
    else:
        logger.warning("All %d pairs are ties: there is no order to be right about.", len(y))
    result.flat["log_loss"] = log_loss(first - second, y)
    units_of = dict(zip(("units", "other_units"), together, strict=True))
    result.calibrated("pairs", pair_probabilities(first, second), y, pairs=True, **units_of)
    if scored.kind == "votes":
        _add_voters(result, scored, y)
    result.accuracies()
    keys = scored.shared_prompts()
    prompts = None if keys is None else [keys[row] for row in clear]
    margin, names = _margins(scored, y)
    if names and len(clear):
        of_rows = [names[row] for row in clear]
        result.part("by_margin", lambda: _by_margin(margin, subset_accuracy(better, worse, of_rows, prompts)))
    if "subset" in scored.dataset.column_names and len(clear):
        given = list(scored.dataset["subset"])
        subsets = [str(given[row]) for row in clear]
        whole = {name: members for name, members in REWARD_BENCH_SECTIONS.items() if set(members) <= set(subsets)}
        result.part("subsets", lambda: subset_accuracy(better, worse, subsets, prompts, whole or None))
    missed = np.where(turned, first - second, second - first)
    result.nested["worst"] = worst(
        (missed[row], _pair_case(scored, row, int(turned[row]), float(max(y[row], 1 - y[row]))))
        for row in clear.tolist()
        if missed[row] > 0
    )
    return result


def _add_voters(result: Evaluation, scored: Scored, y: Floats) -> None:
    sides = scored.dataset["chosen_votes"], scored.dataset["rejected_votes"]
    alone = vote_rater_accuracy(*sides)
    if alone is not None:
        result.flat["single_rater_accuracy"] = alone
    result.nested["ceiling"] = {"votes_per_text": float(np.mean(np.add(*sides))), "log_loss": entropy(y)}


def _margins(scored: Scored, y: Floats) -> tuple[str, list[str]]:
    """Of what the margin is, and the bucket of each row: of the majority's share, or of a column `margin`."""
    columns = scored.dataset.column_names
    if scored.kind == "votes" or "target" in columns:
        return "share of the majority", _bucket_names(np.maximum(y, 1 - y), VOTE_EDGES)
    if "margin" in columns:
        margins = np.array(scored.dataset["margin"], dtype=np.float64)
        return "margin", _bucket_names(margins, np.unique(np.quantile(margins, [0, 0.25, 0.5, 0.75])).tolist())
    return "", []


def _by_margin(what: str, found: Metrics) -> Metrics:
    order = sorted(found["subsets"], key=lambda name: float(name.split()[0]))
    return {"margin": what, "model": [{"name": name, **found["subsets"][name]} for name in order]}


def _bucket_names(values: Floats, edges: Sequence[float]) -> list[str]:
    of_bucket = np.searchsorted(np.asarray(edges) - TOLERANCE, values, side="right") - 1
    ends = [f"{a:.3g} to {b:.3g}" for a, b in zip(edges, edges[1:], strict=False)] + [f"{edges[-1]:.3g} and more"]
    if edges[-1] == 1.0:
        ends[-1] = "1"
    return [ends[max(bucket, 0)] for bucket in of_bucket]


def _pair_case(scored: Scored, row: int, better: int, share: float = 1.0, worse: int | None = None) -> Metrics:
    """A pair of one row, the better text first."""
    places = {"better": better, "worse": 1 - better if worse is None else worse}
    texts = {side: scored.completions[row][place] for side, place in places.items()}
    scores = {f"{side}_score": scored.scores[row][place] for side, place in places.items()}
    return {"prompt": scored.prompts[row], **texts, **scores} | ({"share": share} if share < 1 else {})


# --- Lists -----------------------------------------------------------------------------------------------


def list_evaluation(scored: Scored, quality: Sequence[Sequence[float]]) -> Evaluation:
    """Lists of completions that people have put in order, wholly (rankings) or at both ends (best and worst).

    Args:
        scored ([`Scored`]): A score for each completion of each list.
        quality (`Sequence[Sequence[float]]`): Higher is better; equal ones are never compared.
    """
    result = started(scored)
    s, y, rows, texts = scored.flat(quality)
    result.flat |= pairwise_accuracy(s, y, 0, rows) | baseline_accuracies(texts, y, 0, rows)
    both = [*zip(scored.scores, quality, strict=True)]
    tops = np.array([_hit(own, wanted) for own, wanted in both])  # (N, 2)
    figures = {"lists": len(tops), **_mean("top1_accuracy", tops[:, 0]), "top1_chance": float(tops[:, 1].mean())}
    if scored.kind == "best_worst":
        lowest = [_hit([-score for score in own], [-value for value in wanted])[0] for own, wanted in both]
        figures |= _mean("worst_accuracy", lowest)
    else:
        result.part("kendall", lambda: figures.update(_kendall(scored.scores, quality)))
        edges = [1.0, 2.0, 3.0][: max(1, min(3, max(map(len, quality)) - 1))]
        result.part(
            "by_margin",
            lambda: {"margin": "difference of the ranks", "model": accuracy_by_margin(s, y, edges, rows)},
        )
    result.flat |= {key: value for key, value in figures.items() if not key.endswith("_ci95") and key != "lists"}
    result.accuracies()
    result.nested["lists"] = figures
    result.part("win_rate", lambda: win_rate_curve(s, y, rows))
    turned = [(*_most_turned(own, wanted), row) for row, (own, wanted) in enumerate(both)]
    result.nested["worst"] = worst(
        (missed, _pair_case(scored, row, a, worse=b)) for missed, a, b, row in turned if missed > 0
    )
    return result


def best_worst_quality(count: int, best: int, worst: int) -> list[float]:
    """1 for the best of a list, -1 for the worst, 0 for all between, of which nothing is known."""
    quality = [0.0] * count
    quality[best], quality[worst] = 1.0, -1.0
    return quality


def _mean(name: str, values: Sequence[float] | Floats, low: float = 0.0) -> Metrics:
    mean, interval = mean_with_interval(values, ends=(low, 1.0))
    return {name: mean, f"{name}_ci95": interval}


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
    return _mean("kendall", found, low=-1.0)


def _most_turned(scores: Sequence[float], quality: Sequence[float]) -> tuple[float, int, int]:
    """The pair of a list with the largest difference of scores in the wrong order: by how much, better, worse."""
    places = range(len(scores))
    return max((scores[b] - scores[a], a, b) for a in places for b in places if quality[a] > quality[b])
