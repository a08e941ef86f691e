"""What a reward model is worth, beside what costs nothing: flat figures for `metrics.json`, one definition each.

| key | meaning |
|---|---|
| `pairwise_accuracy` | share of the test pairs that the model puts in people's order; equal scores count half |
| `pairwise_accuracy_ci95` | its 95% bootstrap interval, over texts (ratings) or over pairs (pairs) |
| `pairs` | number of those pairs |
| `pearson` | correlation of scores (calibrated, if there is a calibration) and mean ratings |
| `mae` | mean distance of calibrated score and mean rating, in units of the rating |
| `single_rater_accuracy` | the same share for one human rater against the mean of the others |
| `vader_accuracy`, `length_accuracy` | the same share for a sentiment lexicon, and for "the longer text is better" |
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.data.pairs import (
    all_pairs_accuracy,
    all_pairs_interval,
    percentile_interval,
    single_rater_accuracy,
)
from rlhf_recipes.rewards.sentiment import Vader

Metrics = dict[str, Any]


def rating_metrics(
    texts: Sequence[str],
    ratings: Sequence[float],
    logits: Sequence[float],
    scores: Sequence[float] | None = None,
    votes: Sequence[Sequence[float]] | None = None,
    min_gap: float = 0.5,
) -> Metrics:
    """Measure a model on texts with ratings, over all pairs at least `min_gap` apart.

    Args:
        texts (`Sequence[str]` of length N): The texts, for the baselines.
        ratings (`Sequence[float]` of length N): Mean human rating of each.
        logits (`Sequence[float]` of length N): What the model says.
        scores (`Sequence[float]` of length N, *optional*): The same after calibration, in units of the rating.
        votes (`Sequence[Sequence[float]]` of length N, *optional*): Every rater's vote.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two ratings.

    Returns:
        `dict`: the keys of the table above; `mae` needs `scores`, `single_rater_accuracy` needs `votes`, and each is
        left out without.
    """
    accuracy, pairs = all_pairs_accuracy(logits, ratings, min_gap)
    metrics: Metrics = {
        "pairwise_accuracy": accuracy,
        "pairwise_accuracy_ci95": all_pairs_interval(logits, ratings, min_gap),
        "pairs": pairs,
        "pearson": pearson(logits if scores is None else scores, ratings),
        "vader_accuracy": all_pairs_accuracy(_vader(texts), ratings, min_gap)[0],
        "length_accuracy": all_pairs_accuracy([len(text) for text in texts], ratings, min_gap)[0],
    }
    if scores is not None:
        metrics["mae"] = mean_absolute_error(scores, ratings)
    if votes is not None:
        metrics["single_rater_accuracy"] = single_rater_accuracy(votes, min_gap)
    return metrics


def pair_metrics(
    chosen: Sequence[str],
    rejected: Sequence[str],
    chosen_scores: Sequence[float],
    rejected_scores: Sequence[float],
    samples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """Measure a model on pairs that people have put in order. The bootstrap draws pairs.

    Args:
        chosen (`Sequence[str]` of length N), rejected (`Sequence[str]` of length N):
            The texts, for the baselines.
        chosen_scores (`Sequence[float]` of length N), rejected_scores (`Sequence[float]` of length N):
            What the model says.
        samples (`int`, *optional*, defaults to 1000), seed (`int`, *optional*, defaults to 0):
            Number of bootstrap samples, and the seed of their draw.

    Returns:
        `dict`: `pairwise_accuracy`, its interval, `pairs`, `vader_accuracy` and `length_accuracy`.
    """
    credit = _order_credit(chosen_scores, rejected_scores)
    # How many of the drawn pairs are right, tied and wrong is all that counts.
    kinds = np.array([1.0, 0.5, 0.0])
    shares = [np.mean(credit == kind) for kind in kinds]
    draws = np.random.default_rng(seed).multinomial(len(credit), shares, size=samples)  # (S, 3)
    return {
        "pairwise_accuracy": float(credit.mean()),
        "pairwise_accuracy_ci95": percentile_interval(draws @ kinds / len(credit)),
        "pairs": len(credit),
        "vader_accuracy": float(_order_credit(_vader(chosen), _vader(rejected)).mean()),
        "length_accuracy": float(_order_credit([*map(len, chosen)], [*map(len, rejected)]).mean()),
    }


def _vader(texts: Sequence[str]) -> list[float]:
    # A text that VADER cannot read counts as neutral: a baseline has to say something of every text.
    return [score or 0.0 for score in Vader()([""] * len(texts), texts)]


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; 0 where one of the two does not vary, because then it tells nothing of the other."""
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    a, b = a - a.mean(), b - b.mean()
    scale = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / scale) if scale > 0 else 0.0


def mean_absolute_error(scores: ArrayLike, ratings: ArrayLike) -> float:
    """Mean of `|score - rating|`, in units of the rating."""
    return float(np.abs(np.asarray(scores, dtype=np.float64) - np.asarray(ratings, dtype=np.float64)).mean())


def _order_credit(chosen: ArrayLike, rejected: ArrayLike) -> np.ndarray:
    """1 for a pair in the right order, 0.5 for equal scores, 0 for the wrong order. `(N,)`"""
    return 0.5 + 0.5 * np.sign(np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64))
