"""Raters who err: how far each can be trusted, and what is true given all that they said.

Votes and raters are those of `rlhf_recipes.data.raters.votes`.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import logsumexp

from rlhf_recipes.data.raters.votes import Ints, NamedVotes, Votes, class_list, named_votes
from rlhf_recipes.statistics import Floats, numbers

# How strongly a rater's variance is pulled to the median, in votes: a rater of three votes must not look infallible.
PRIOR_VOTES = 2.0


@dataclass(frozen=True)
class RaterWeights:
    """How far each rater's numbers can be trusted, and ratings that use it; what [`rater_weights`] returns."""

    raters: list[Hashable]
    weights: Floats  # (R,)  1 / variance, 1 on average
    bias: Floats  # (R,)  how much higher this rater votes than the others for the same texts
    variance: Floats  # (R,)  of a vote around the truth, after the bias
    ratings: Floats  # (N,)  weighted mean of the votes less bias; NaN for a text without votes


def rater_weights(
    votes: Votes,
    raters: Sequence[Sequence[Hashable]] | None = None,
    max_steps: int = 200,
    tolerance: float = 1e-9,
) -> RaterWeights:
    """Inverse-variance weights of raters, by iteratively reweighted means.

    `vote = t_i + bias_r + e` with `Var(e) = variance_r`. In turn: t is the mean of the votes less bias, weighted with
    1 / variance; the bias is the rater's mean residual; the variance is the sum of squared residuals over the sum of
    `1 - h`, where h is the rater's share of the text's weight (so that a rater's own pull on t is not taken for
    accuracy). Two votes' worth of the median variance is added to each, or the iteration could end with one rater who
    is always right; the variance of the best of few raters is a little overestimated by it.

    Raises:
        `ValueError`: as [`named_votes`] and [`numbers`]; if there is one rater alone, no text has two votes, or all
            votes agree perfectly.
    """
    named = named_votes(votes, raters)
    y, rows, of = numbers(named.votes, "votes"), named.rows, named.of
    per_text, per_rater = np.bincount(rows, minlength=named.texts), np.bincount(of)
    if len(named.raters) < 2 or per_text.max() < 2:
        raise ValueError(
            f"{len(named.raters)} raters and at most {per_text.max()} votes for a text: raters can be weighted only "
            "against others who rated the same texts."
        )

    def text_sums(values: Floats) -> Floats:
        return np.asarray(np.bincount(rows, values, minlength=named.texts), dtype=np.float64)

    bias, variance = np.zeros(len(named.raters)), np.ones(len(named.raters))
    for step in range(max_steps):
        w = 1.0 / variance[of]
        total = text_sums(w)
        ratings = np.divide(text_sums(w * (y - bias[of])), total, out=np.full(named.texts, np.nan), where=total > 0)
        residual = y - ratings[rows]
        # A text with a single vote says nothing of its rater: there the residual is the bias itself.
        compared = per_text[rows] > 1
        votes_of = np.maximum(np.bincount(of, compared), 1)
        new_bias = np.bincount(of, residual * compared, minlength=len(bias)) / votes_of
        new_bias -= np.average(new_bias, weights=per_rater)
        squares = ((residual - new_bias[of]) * compared) ** 2
        freedom = (1.0 - w / total[rows]) * compared
        if squares.sum() < 1e-12 * len(y):
            raise ValueError("After their biases all raters agree on every text; weights would not change anything.")
        typical = np.median(variance) if step else squares.sum() / freedom.sum()
        new_variance = (np.bincount(of, squares) + PRIOR_VOTES * typical) / (np.bincount(of, freedom) + PRIOR_VOTES)
        change = max(np.abs(new_bias - bias).max(), np.abs(new_variance - variance).max())
        bias, variance = new_bias, new_variance
        if change < tolerance:
            break
    weights = 1.0 / variance
    return RaterWeights(named.raters, weights / weights.mean(), bias, variance, ratings)


@dataclass(frozen=True)
class DawidSkene:
    """Labels and raters after EM; what [`dawid_skene`] returns."""

    classes: list[Any]  # K
    raters: list[Hashable]  # R
    prior: Floats  # (K,)  share of each class
    confusion: Floats  # (R, K, K)  [r, c, l]: how often rater r says l of what is c
    posterior: Floats  # (N, K)  of each text; the soft labels
    log_likelihood: float
    steps: int

    @property
    def labels(self) -> list[Any]:
        """The most probable class of each text."""
        return [self.classes[row] for row in self.posterior.argmax(axis=1)]

    @property
    def accuracy(self) -> Floats:
        """How often each rater is right, `(R,)`: the diagonal of `confusion`, weighted with `prior`."""
        return np.einsum("rcc,c->r", self.confusion, self.prior)


def dawid_skene(
    labels: Votes,
    raters: Sequence[Sequence[Hashable]] | None = None,
    classes: Sequence[Any] | None = None,
    smoothing: float = 0.01,
    max_steps: int = 1000,
    tolerance: float = 1e-9,
) -> DawidSkene:
    """True labels and raters' errors together, by EM (Dawid and Skene 1979, equations 2.3 to 2.5).

    E step: `P(c | labels of a text)` is proportional to `prior_c` times the product over its labels of
    `confusion[r, c, l]`. M step: `prior` and `confusion` are averages under these probabilities. It starts at the
    share of each label among a text's votes. It assumes that raters err independently given the class.

    Args:
        labels (`Sequence[Sequence]` of length N), raters (`Sequence[Sequence]`, *optional*):
            Numbers or texts. A rater may label a text repeatedly.
        classes (`Sequence`, *optional*):
            All classes. Default: those that occur, sorted where they can be.
        smoothing (`float`, *optional*, defaults to 0.01):
            Added to each count of the M step, so that a rater of few labels is not taken for infallible; 0 is the
            paper's maximum likelihood.
        max_steps (`int`, *optional*, defaults to 1000), tolerance (`float`, *optional*, defaults to 1e-9):
            EM ends when the log-likelihood gains less than `tolerance` for each text.

    Returns:
        [`DawidSkene`]. A text without labels has the prior as its posterior.

    Raises:
        `ValueError`: as [`named_votes`]; if there is one rater alone, one class alone, no text has two labels, or a
            label is none of `classes`.
    """
    named = named_votes(labels, raters)
    found = class_list(named.votes, classes)
    if len(named.raters) < 2 or len(found) < 2 or np.bincount(named.rows).max() < 2:
        raise ValueError(
            f"There are {len(named.raters)} raters and {len(found)} classes, and at most "
            f"{np.bincount(named.rows).max()} labels for a text; raters' errors can be told from the truth only with "
            "two or more of each."
        )
    if smoothing < 0 or max_steps < 1:
        raise ValueError(f"smoothing is {smoothing} and max_steps {max_steps}; give 0 or more, and 1 or more.")
    index = {label: k for k, label in enumerate(found)}
    label_of = np.array([index[label] for label in named.votes])
    return _expectation_maximization(named, label_of, found, smoothing, max_steps, tolerance)


def _expectation_maximization(
    named: NamedVotes, label_of: Ints, classes: list[Any], smoothing: float, max_steps: int, tolerance: float
) -> DawidSkene:
    n_raters, k = len(named.raters), len(classes)
    counts = np.zeros((named.texts, k))
    np.add.at(counts, (named.rows, label_of), 1.0)
    of_text = counts.sum(axis=1, keepdims=True)
    posterior = np.divide(counts, of_text, out=np.full_like(counts, 1.0 / k), where=of_text > 0)
    labelled = of_text[:, 0] > 0
    before, step, settled = -np.inf, 0, False
    while not settled and step < max_steps:
        step += 1
        prior = posterior[labelled].sum(axis=0) + smoothing
        prior /= prior.sum()
        said = np.zeros((n_raters, k, k))  # [r, l, c]
        np.add.at(said, (named.of, label_of), posterior[named.rows])
        confusion = said.transpose(0, 2, 1) + smoothing
        # A rater who never met a class is taken to guess.
        totals = confusion.sum(axis=2, keepdims=True)
        confusion = np.divide(confusion, totals, out=np.full_like(confusion, 1.0 / k), where=totals > 0)
        joint = np.tile(_log(prior), (named.texts, 1))
        np.add.at(joint, named.rows, _log(confusion)[named.of, :, label_of])
        evidence = logsumexp(joint, axis=1)
        posterior = np.exp(joint - evidence[:, None])
        likelihood = float(evidence[labelled].sum())
        # With smoothing it is this sum that rises with every step, not the likelihood alone.
        rising = likelihood + smoothing * (_log(prior).sum() + _log(confusion).sum())
        settled, before = rising - before < tolerance * named.texts, rising
    return DawidSkene(classes, named.raters, prior, confusion, posterior, likelihood, step)


def _log(probabilities: Floats) -> Floats:
    return np.log(np.maximum(probabilities, 1e-300))  # 0 times the logarithm of 0 is 0
