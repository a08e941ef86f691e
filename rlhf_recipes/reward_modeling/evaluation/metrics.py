"""What a reward model is worth, beside what costs nothing: flat figures for `metrics.json`, one definition each.

| key | meaning |
|---|---|
| `pairwise_accuracy` | share of the test pairs that the model puts in people's order; equal scores count half |
| `pairwise_accuracy_ci95` | its 95% interval, were what is rated drawn anew: texts, pairs, or lists |
| `pairs` | number of those pairs |
| `pearson` | correlation of scores (calibrated, if there is a calibration) and mean ratings |
| `mae` | mean distance of calibrated score and mean rating, in units of the rating |
| `single_rater_accuracy` | the same share for one human rater against the mean, or the majority, of the others |
| `vader_accuracy`, `length_accuracy` | the same share for a sentiment lexicon, and for "the longer text is better" |
| `log_loss` | mean of `-log p` of what people said, in nats; of pairs p is `sigmoid(s_chosen - s_rejected)` |
| `ece` | expected calibration error of that p: how far it is from the share that came true, from 0 to 1 |
| `base_rate`, `base_log_loss` | mean label, and the log loss of saying just that of every text |
| `kendall` | rank correlation (tau-b) of score and rank within a list, mean over lists |
| `top1_accuracy`, `top1_chance` | share of lists whose best text gets the highest score; the same for a random text |
| `worst_accuracy` | share of lists whose worst text gets the lowest score (best and worst) |
| `step_accuracy`, `step_accuracy_ci95` | share of labelled steps that are told right from wrong: a p of 0.5 is right |
| `step_base_accuracy` | the same for saying of every step what is more frequent |
| `step_f1` | F1 of finding wrong steps: `2 TP / (2 TP + FP + FN)` |
| `first_error_rate` | share of answers with a wrong step of which the first flagged step is the first wrong one |
| `steps` | number of labelled steps |

Pairs of ratings are all those at least `min_gap` apart; of labels, clicks and seconds all that differ, so that the
share is the area under the ROC curve; of lists all within a list. A key is there where the feedback has what it needs.
What is nested (intervals of all of them, tables, curves) is in `evaluation.json`, see
`rlhf_recipes.reward_modeling.evaluation.ratings`.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr, log_expit

from rlhf_recipes.data.raters.agreement import single_rater_accuracy
from rlhf_recipes.reward_modeling.evaluation.baselines import baseline_accuracies, vader_scores
from rlhf_recipes.reward_modeling.evaluation.figures import pairwise_accuracy
from rlhf_recipes.statistics import Floats, Keys, Metrics, correlation, mean_with_interval


def rating_metrics(
    texts: Sequence[str],
    ratings: Sequence[float],
    logits: Sequence[float],
    scores: Sequence[float] | None = None,
    votes: Sequence[Sequence[float]] | None = None,
    min_gap: float = 0.5,
    units: Keys | None = None,
) -> Metrics:
    """Measure a model on texts with ratings, over all pairs at least `min_gap` apart.

    Args:
        texts (`Sequence[str]` of length N), ratings (`Sequence[float]` of length N): The texts, for the baselines, and
            the mean human rating of each.
        logits, scores (`Sequence[float]` of length N): What the model says, and the same after calibration, in units
            of the rating; without `scores` there is no `mae`.
        votes (`Sequence[Sequence[float]]` of length N, *optional*): Every rater's; for `single_rater_accuracy`.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two ratings.
        units (`Sequence` of length N, *optional*): What the interval is over, such as prompts. Default: the texts.
    """
    metrics = pairwise_accuracy(logits, ratings, min_gap, units=units)
    if not metrics["pairs"]:
        raise ValueError(f"No two of the {len(ratings)} ratings are {min_gap:g} or more apart: no pair can be asked.")
    metrics["pearson"] = pearson(logits if scores is None else scores, ratings)
    metrics |= baseline_accuracies(texts, ratings, min_gap)
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
    units: Keys | None = None,
    other_units: Keys | None = None,
) -> Metrics:
    """Measure a model on pairs that people have put in order.

    Args:
        chosen, rejected (`Sequence[str]` of length N): The texts, for the baselines.
        chosen_scores, rejected_scores (`Sequence[float]` of length N): What the model says.
        units, other_units (`Sequence` of length N, *optional*):
            What the interval is over: the prompt of each pair, or both of its texts. Default: the pairs.
    """
    credit = _order_credit(chosen_scores, rejected_scores)
    accuracy, interval = mean_with_interval(credit, units, other_units, (0.0, 1.0))
    return {
        "pairwise_accuracy": accuracy,
        "pairwise_accuracy_ci95": interval,
        "pairs": len(credit),
        "vader_accuracy": float(_order_credit(vader_scores(chosen), vader_scores(rejected)).mean()),
        "length_accuracy": float(_order_credit([*map(len, chosen)], [*map(len, rejected)]).mean()),
    }


def log_loss(logits: ArrayLike, shares: ArrayLike) -> float:
    """Mean of `-(y log p + (1 - y) log(1 - p))` with `p = sigmoid(logit)`, in nats, of labels or shares y in [0, 1].

    Of pairs the logit is the difference of the two scores (Bradley and Terry 1952), and y the share of votes for the
    first. It is least, the entropy of y, where p is y.
    """
    return float(log_losses(logits, shares).mean())


def log_losses(logits: ArrayLike, shares: ArrayLike) -> Floats:
    """The [`log_loss`] of each row, `(N,)`."""
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    return np.asarray(-y * log_expit(x) - (1 - y) * log_expit(-x))


def entropy(shares: ArrayLike) -> float:
    """Mean of `-(y log y + (1 - y) log(1 - y))` in nats: the [`log_loss`] that no model can go below."""
    y = np.asarray(shares, dtype=np.float64)
    return float((entr(y) + entr(1 - y)).mean())


def vote_rater_accuracy(first: ArrayLike, second: ArrayLike) -> float | None:
    """How often one voter of a pair says what the majority of the other voters says; an even split counts half.

    Args:
        first (`(N,)`), second (`(N,)`): Votes for the one text and for the other. All voters of all pairs count alike.

    Returns:
        `float`, or `None` where no pair has two votes.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    a, b = a[a + b >= 2], b[a + b >= 2]
    if not len(a):
        return None
    right = a * _order_credit(a - 1, b) + b * _order_credit(b - 1, a)
    return float(right.sum() / (a + b).sum())


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation; 0 where one of the two does not vary, because then it tells nothing of the other."""
    found = correlation(x, y)
    return 0.0 if math.isnan(found) else found


def mean_absolute_error(scores: ArrayLike, ratings: ArrayLike) -> float:
    """Mean of `|score - rating|`, in units of the rating."""
    return float(np.abs(np.asarray(scores, dtype=np.float64) - np.asarray(ratings, dtype=np.float64)).mean())


def _order_credit(chosen: ArrayLike, rejected: ArrayLike) -> Floats:
    """1 for a pair in the right order, 0.5 for equal scores, 0 for the wrong order. `(N,)`"""
    return 0.5 + 0.5 * np.sign(np.asarray(chosen, dtype=np.float64) - np.asarray(rejected, dtype=np.float64))
