"""What raters' votes say of the truth: shares, soft labels, and models of raters who err.

Votes are a column of lists, one list for each text, of any lengths; `None` and NaN in a list are votes that were not
given. Where it is known who voted, `raters` is a column of the same shape with the raters' names; or the lists are the
rows of a matrix, and the position is the rater.

Everything is numpy, but for two functions of scipy (the extra `feedback`).
"""

import contextlib
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.rewards.optional import optional

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Votes = Sequence[Sequence[Any]] | Sequence[NDArray[Any]]  # of each text, those of all raters

# How strongly a rater's variance is pulled to the median, in votes: a rater of three votes must not look infallible.
PRIOR_VOTES = 2.0


# --- reading ---------------------------------------------------------------------------------------------


def is_missing(value: Any) -> bool:
    """Whether a vote was not given: `None` or NaN."""
    return value is None or (isinstance(value, float | np.floating) and math.isnan(value))


def numbers(values: Any, what: str) -> Floats:
    """Finite numbers as an array `(N,)`; `ValueError` with the first row that is none."""
    if not isinstance(values, np.ndarray):
        values = list(values)
        for row, value in enumerate(values):
            if isinstance(value, str | bytes):
                raise ValueError(f"The {what} must be numbers, and row {row} is the text {value!r}.")
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"The {what} must be one number for each row: {error}.") from error
    if array.ndim != 1:
        raise ValueError(f"The {what} must be one number for each row; they have the shape {array.shape}.")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise ValueError(
            f"The {what} of {len(bad)} of {len(array)} rows are missing or not finite, row {bad[0]} the first of "
            "them. Leave these rows out."
        )
    return array


def numeric_votes(votes: Votes, low: float | None = None, high: float | None = None) -> list[Floats]:
    """The votes that were given, as one array for each text; empty for a text without any.

    Args:
        votes (`Sequence[Sequence]` of length N): Numbers; `None` and NaN are left out.
        low (`float`, *optional*), high (`float`, *optional*): Ends of the scale.

    Raises:
        `ValueError`: if there are no texts, or a vote is a text, infinite or outside of the scale; it names the row.
    """
    series = []
    for row, of_text in enumerate(votes):
        given = numbers([vote for vote in _listed(of_text, row) if not is_missing(vote)], f"votes in row {row}")
        for vote in given:
            if (low is not None and vote < low) or (high is not None and vote > high):
                raise ValueError(
                    f"Row {row} has the vote {vote:g}, outside of the scale from {low} to {high}. Correct the vote, "
                    "or the ends of the scale."
                )
        series.append(given)
    if not series:
        raise ValueError("There are no texts: the column of votes is empty.")
    return series


@dataclass(frozen=True)
class NamedVotes:
    """Votes one below the other: vote v was given to text `rows[v]` by `raters[of[v]]`."""

    rows: Ints  # (V,)
    of: Ints  # (V,)
    votes: list[Any]  # V
    raters: list[Hashable]
    texts: int


def named_votes(votes: Votes, raters: Sequence[Sequence[Hashable]] | None = None) -> NamedVotes:
    """Join votes and raters; without `raters` the votes must be a matrix with a column for each rater.

    Raises:
        `ValueError`: if the shapes of the two differ, rows have different lengths and no raters, a vote has no rater,
            or no vote was given.
    """
    lists = [_listed(of_text, row) for row, of_text in enumerate(votes)]
    if raters is None:
        lengths = {len(of_text) for of_text in lists}
        if len(lengths) > 1:
            raise ValueError(
                f"Rows have from {min(lengths)} to {max(lengths)} votes and it is not said whose they are. Give a "
                "column `raters` of the same shape, or a matrix with None where a rater did not vote."
            )
        names: list[list[Hashable]] = [list(range(len(of_text))) for of_text in lists]
    else:
        names = [list(of_text) for of_text in raters]
        differing = [row for row, (a, b) in enumerate(zip(lists, names, strict=False)) if len(a) != len(b)]
        if len(names) != len(lists) or differing:
            where = f"in row {differing[0]}" if differing else f"{len(lists)} rows against {len(names)}"
            raise ValueError(f"Votes and raters differ in number: {where}. Give one rater for each vote.")
    index: dict[Hashable, int] = {}
    rows, of, given = [], [], []
    for row, (of_text, its_raters) in enumerate(zip(lists, names, strict=True)):
        for vote, rater in zip(of_text, its_raters, strict=True):
            if is_missing(vote):
                continue
            if is_missing(rater):
                raise ValueError(f"A vote in row {row} has no rater. Name all raters, or leave the vote out.")
            rows.append(row)
            of.append(index.setdefault(rater, len(index)))
            given.append(vote)
    if not given:
        raise ValueError(f"None of {len(lists)} texts has a vote.")
    found = list(index)
    with contextlib.suppress(TypeError):  # names of several kinds stay in the order in which they come
        found = sorted(index)  # type: ignore[type-var]
    place = {index[rater]: position for position, rater in enumerate(found)}
    return NamedVotes(np.array(rows), np.array([place[rater] for rater in of]), given, found, len(lists))


def _listed(of_text: Any, row: int) -> list[Any]:
    if isinstance(of_text, str | bytes) or not hasattr(of_text, "__iter__"):
        raise ValueError(f"Row {row} of the votes must be a list of votes, and is {of_text!r}.")
    return list(of_text)


# --- soft labels -----------------------------------------------------------------------------------------


def vote_shares(votes: Votes, pairs: ArrayLike) -> Floats:
    """For each pair of texts, how often a vote for the first is above a vote for the second; ties count half.

    `share = (#{(a, b): a > b} + #{(a, b): a = b} / 2) / (n m)` over all n m pairs of their votes: the chance that two
    raters, drawn from those of each text, put the texts in this order (Mann and Whitney's U over n m).

    Args:
        votes (`Sequence[Sequence[float]]` of length N): Votes of each text.
        pairs (`ArrayLike` of shape `(M, 2)`): Row numbers.

    Returns:
        `numpy.ndarray` of shape `(M,)`, from 0 to 1.

    Raises:
        `ValueError`: as [`numeric_votes`], and if a text of a pair has no vote.
    """
    series = [np.sort(of_text) for of_text in numeric_votes(votes)]
    shares = []
    for first, second in _pairs(pairs, len(series)):
        a, b = series[first], series[second]
        if not len(a) or not len(b):
            raise ValueError(f"Row {first if not len(a) else second} has no vote, so it cannot be compared.")
        below, up_to = np.searchsorted(b, a, side="left"), np.searchsorted(b, a, side="right")
        shares.append((below.sum() + up_to.sum()) / (2 * len(a) * len(b)))
    return np.array(shares)


def beta_shares(wins: ArrayLike, losses: ArrayLike, ties: ArrayLike = 0, prior: float = 1.0) -> Floats:
    """The share of raters who prefer the first text, after few votes: the mean of a Beta posterior.

    `(w + prior) / (w + l + 2 prior)` with w = wins + ties / 2 and l = losses + ties / 2. Two votes of two make 0.75
    with the uniform prior 1 (Laplace's rule of succession), and 0.83 with Jeffreys' 0.5. Without votes it is 0.5.

    Args:
        wins (`ArrayLike` of shape `(N,)`), losses (`ArrayLike` of shape `(N,)`), ties (`ArrayLike`, *optional*):
            Numbers of votes.
        prior (`float`, *optional*, defaults to 1.0):
            Votes for each side that are taken for given; 0 is the plain share.

    Raises:
        `ValueError`: if a number is negative or not finite, or there are neither votes nor a prior.
    """
    a, b = _tallies(wins, losses, ties, prior)
    if (a + b == 0).any():
        raise ValueError("A row has no votes at all, and prior is 0. Leave the row out, or give a prior above 0.")
    return a / (a + b)


def beta_preference(wins: ArrayLike, losses: ArrayLike, ties: ArrayLike = 0, prior: float = 1.0) -> Floats:
    """How sure votes make us that most raters prefer the first text: P(p > 1/2) under the posterior of `beta_shares`.

    It is `1 - I_{1/2}(w + prior, l + prior)`, with I the regularized incomplete Beta function. Two votes of two make
    0.875 with the uniform prior. Where `beta_shares` is for soft labels (what would the next rater say), this is for
    choosing which pairs need more votes.

    Raises:
        `ValueError`: as [`beta_shares`], and for a prior of 0.
    """
    if not prior > 0:
        raise ValueError(f"prior is {prior}; it must be above 0.")
    a, b = _tallies(wins, losses, ties, prior)
    special = optional("scipy.special", "beta_preference", "scipy", extra="feedback")
    return np.asarray(1.0 - special.betainc(a, b, 0.5), dtype=np.float64)


def _tallies(wins: ArrayLike, losses: ArrayLike, ties: ArrayLike, prior: float) -> tuple[Floats, Floats]:
    won, lost, tied = (np.asarray(tally, dtype=np.float64) for tally in (wins, losses, ties))
    if not all(np.isfinite(tally).all() and (tally >= 0).all() for tally in (won, lost, tied, np.asarray(prior))):
        raise ValueError("Numbers of votes and the prior must be finite, and 0 or more.")
    return won + tied / 2 + prior, lost + tied / 2 + prior


# --- ratings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RatingModel:
    """`vote = mean + t_i + e`, with `t_i ~ N(0, between)` of the text and `e ~ N(0, within)` of the vote.

    The one-way random model (Shrout and Fleiss 1979, case 1). It needs no raters' names: leniency of a rater is part
    of `within`. One variance for all texts is a simplification; texts that divide people have a larger one.

    Args:
        mean (`float`): Of all texts.
        between (`float`): Variance of the true ratings of texts.
        within (`float`): Variance of one vote around the true rating.
    """

    mean: float
    between: float
    within: float

    @classmethod
    def fit(cls, votes: Votes) -> "RatingModel":
        """Fit by analysis of variance, for any numbers of votes (Searle 1971, section 10.2).

        `within = MSW` and `between = (MSB - MSW) / k0`, at least 0, with `k0 = (n - sum n_i^2 / n) / (N - 1)`.

        Raises:
            `ValueError`: if there are fewer than two texts with votes, no text has two votes, or all votes are equal.
        """
        series = [of_text for of_text in numeric_votes(votes) if len(of_text)]
        counts = np.array([len(of_text) for of_text in series])
        if len(series) < 2 or counts.max() < 2:
            most = counts.max() if len(counts) else 0
            raise ValueError(
                f"There are {len(series)} texts with votes, at most {most} for one. How far raters agree can be seen "
                "only with two texts or more, and two votes or more for some of them."
            )
        means = np.array([of_text.mean() for of_text in series])
        mean, n = float(np.concatenate(series).mean()), counts.sum()
        msw = sum(((of_text - m) ** 2).sum() for of_text, m in zip(series, means, strict=True)) / (n - len(series))
        msb = (counts * (means - mean) ** 2).sum() / (len(series) - 1)
        if msb == 0 and msw == 0:
            raise ValueError(f"All {n} votes are {mean:g}, so there is nothing on which raters could agree or differ.")
        k0 = (n - (counts**2).sum() / n) / (len(series) - 1)
        return cls(mean=mean, between=max(0.0, float((msb - msw) / k0)), within=float(msw))

    def reliability(self, raters: float = 1.0) -> float:
        """Share of the variance of the mean of `raters` votes that is the texts': ICC(1, k)."""
        return self.between / (self.between + self.within / raters)

    def posterior(self, votes: Votes) -> tuple[Floats, Floats]:
        """Mean and variance of each text's true rating given its votes, each `(N,)`: pulled towards `mean`.

        `b = between / (between + within / n)`; the mean is `mean + b (average - mean)`, the variance
        `between (1 - b)`. A text without votes has `mean` and `between`.
        """
        series = numeric_votes(votes)
        counts = np.array([len(of_text) for of_text in series], dtype=np.float64)
        averages = np.array([of_text.mean() if len(of_text) else self.mean for of_text in series])
        total = counts * self.between + self.within
        pull = np.divide(counts * self.between, total, out=np.zeros_like(total), where=total > 0)
        return self.mean + pull * (averages - self.mean), self.between * (1 - pull)

    def preference(self, votes: Votes, pairs: ArrayLike) -> Floats:
        """P(the first text of each pair is truly better | all votes), `(M,)`: `Phi((m_1 - m_2) / sqrt(v_1 + v_2))`.

        Soft labels for a pair made of two ratings: 0.5 for texts that the votes cannot tell apart.
        """
        means, variances = self.posterior(votes)
        rows = _pairs(pairs, len(means))
        return normal_order(means[rows[:, 0]] - means[rows[:, 1]], variances[rows[:, 0]] + variances[rows[:, 1]])

    def weights(self, votes: Votes, unexplained: float = 0.0) -> Floats:
        """Weights of texts in a squared loss on their mean votes, `(N,)`, 1 on average: inverse variances.

        `w_i = 1 / (within / n_i + unexplained)`; a text without votes has 0.

        Args:
            votes (`Sequence[Sequence[float]]` of length N): Of each text.
            unexplained (`float`, *optional*, defaults to 0.0):
                Variance of true ratings around what the trained model can say of a text, which more votes do not
                mend; with 0 a text of 100 votes counts ten times one of 10. The model's mean squared error on texts of
                many votes is an estimate.

        Raises:
            `ValueError`: if no text has votes, or there is no variance at all.
        """
        counts = np.array([len(of_text) for of_text in numeric_votes(votes)], dtype=np.float64)
        if not counts.any() or unexplained < 0 or self.within + unexplained <= 0:
            raise ValueError(
                "Weights need at least one vote, unexplained of 0 or more, and votes that differ (or unexplained > 0)."
            )
        weights = counts / (self.within + counts * unexplained)
        return np.asarray(weights / weights.mean(), dtype=np.float64)


def normal_order(difference: ArrayLike, variance: ArrayLike) -> Floats:
    """`P(x > 0) + P(x = 0) / 2` for `x ~ N(difference, variance)`; a variance of 0 is certainty."""
    d, v = np.asarray(difference, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    special = optional("scipy.special", "normal_order", "scipy", extra="feedback")
    sure = 0.5 + 0.5 * np.sign(d)
    return np.where(v > 0, special.ndtr(d / np.sqrt(np.where(v > 0, v, 1.0))), sure)


def _pairs(pairs: ArrayLike, texts: int) -> Ints:
    rows = np.asarray(pairs, dtype=np.int64).reshape(-1, 2) if np.size(pairs) else np.zeros((0, 2), dtype=np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= texts):
        raise ValueError(
            f"Pairs must be row numbers from 0 to {texts - 1}; they run from {rows.min()} to {rows.max()}."
        )
    return rows


# --- raters ----------------------------------------------------------------------------------------------


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
        labels (`Sequence[Sequence]` of length N):
            Labels of each text, numbers or texts; `None` where none was given. A rater may label a text repeatedly.
        raters (`Sequence[Sequence]`, *optional*):
            Who gave each label. Default: the position in the row.
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


def class_list(labels: Sequence[Any], classes: Sequence[Any] | None = None) -> list[Any]:
    """The classes of labels, sorted where they can be; `ValueError` for a label that is none of `classes`."""
    found = set(labels)
    if classes is None:
        try:
            return sorted(found)
        except TypeError as error:  # numbers among texts
            kinds = sorted({type(label).__name__ for label in found})
            raise ValueError(f"Labels are of {' and '.join(kinds)}; make them all of one kind.") from error
    strangers = [label for label in found if label not in set(classes)]
    if strangers:
        raise ValueError(f"The label {strangers[0]!r} is none of the classes {list(classes)}.")
    return list(classes)


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
        highest = joint.max(axis=1, keepdims=True)
        evidence = highest[:, 0] + np.log(np.exp(joint - highest).sum(axis=1))
        posterior = np.exp(joint - evidence[:, None])
        likelihood = float(evidence[labelled].sum())
        # With smoothing it is this sum that rises with every step, not the likelihood alone.
        rising = likelihood + smoothing * (_log(prior).sum() + _log(confusion).sum())
        settled, before = rising - before < tolerance * named.texts, rising
    return DawidSkene(classes, named.raters, prior, confusion, posterior, likelihood, step)


def _log(probabilities: Floats) -> Floats:
    return np.log(np.maximum(probabilities, 1e-300))  # 0 times the logarithm of 0 is 0
