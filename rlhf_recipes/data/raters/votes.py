"""What raters' votes say of the truth: shares, soft labels, and a model of ratings.

Votes are a column of lists, one list for each text, of any lengths; `None` and NaN in a list are votes that were not
given. Where it is known who voted, `raters` is a column of the same shape with the raters' names; or the lists are the
rows of a matrix, and the position is the rater.
"""

import contextlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr

from rlhf_recipes.statistics import Floats, is_missing, numbers

Ints = NDArray[np.int64]
Votes = Sequence[Sequence[Any]] | Sequence[NDArray[Any]]  # of each text, those of all raters


def numeric_votes(votes: Votes) -> list[Floats]:
    """The votes that were given, as one array for each text; empty for a text without any. `None` and NaN are none.

    Raises:
        `ValueError`: if there are no texts, or a vote is a text or infinite; it names the row.
    """
    series = [
        numbers([vote for vote in _listed(of_text, row) if not is_missing(vote)], f"votes in row {row}")
        for row, of_text in enumerate(votes)
    ]
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


# --- soft labels -----------------------------------------------------------------------------------------


def beta_shares(wins: ArrayLike, losses: ArrayLike, ties: ArrayLike = 0, prior: float = 1.0) -> Floats:
    """The share of raters who prefer the first text, after few votes: the mean of a Beta posterior.

    `(w + prior) / (w + l + 2 prior)` with w = wins + ties / 2 and l = losses + ties / 2. Two votes of two make 0.75
    with the uniform prior 1 (Laplace's rule of succession), and 0.83 with Jeffreys' 0.5. Without votes it is 0.5.

    Raises:
        `ValueError`: if a number is negative or not finite, or there are neither votes nor a prior.
    """
    a, b = _tallies(wins, losses, ties, prior)
    if (a + b == 0).any():
        raise ValueError("A row has no votes at all, and prior is 0. Leave the row out, or give a prior above 0.")
    return a / (a + b)


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
    """

    mean: float  # of all texts
    between: float  # variance of the true ratings of texts
    within: float  # variance of one vote around the true rating

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

    @classmethod
    def of_pairs(cls, first: ArrayLike, second: ArrayLike) -> "RatingModel":
        """Fit to votes on pairs, a vote being 1 for the first side and 0 for the second; the mean is known to be 1/2.

        Which side comes first means nothing, so only distances from 1/2 count. With n_i votes, a share p_i for the
        first side, N pairs and n votes in all: `within = sum n_i p_i (1 - p_i) / (n - N)`, and `between = (sum n_i
        (p_i - 1/2)^2 / N - within) N / n`, at least 0 (the analysis of variance of [`fit`], with the mean given).

        Raises:
            `ValueError`: if a number is negative or not finite, or no pair has two votes.
        """
        a, b = _tallies(first, second, 0, 0)
        a, b = a[a + b > 0], b[a + b > 0]
        n = a + b
        if not len(n) or n.sum() <= len(n):
            raise ValueError(
                f"There are {len(n)} pairs with votes and {n.sum():g} votes. How far raters agree can be seen only "
                "where some pairs have two votes or more."
            )
        share = a / n
        within = float((n * share * (1 - share)).sum() / (n.sum() - len(n)))
        spread = float((n * (share - 0.5) ** 2).sum() / len(n))
        return cls(mean=0.5, between=max(0.0, (spread - within) * len(n) / float(n.sum())), within=within)

    def effective_votes(self, counts: ArrayLike) -> Floats:
        """How many independent votes n votes for one text are worth, `(N,)`: `n / (1 + (n - 1) rho)`.

        `rho` is [`reliability`] of one vote: where raters agree, a second vote says little that is new (the design
        effect of Kish 1965, section 5.4). It is proportional to `1 / (between + within / n)`, the weight of a text's
        mean where a model explains nothing of the texts yet, and between 1 for each text and n.
        """
        n = np.asarray(counts, dtype=np.float64)
        rho = self.reliability()
        return np.divide(n, 1 + (n - 1) * rho, out=np.zeros_like(n), where=n > 0)

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

    def weights(self, votes: Votes) -> Floats:
        """Inverse variances `n / within` of texts' mean votes, `(N,)`, 1 on average: weights for a squared loss.

        What no model can explain of a text, more votes do not mend: [`effective_votes`] stop growing there.

        Raises:
            `ValueError`: if no text has votes, or votes do not differ.
        """
        counts = np.array([len(of_text) for of_text in numeric_votes(votes)], dtype=np.float64)
        if not counts.any() or self.within <= 0:
            raise ValueError("Weights need at least one vote, and votes that differ.")
        return np.asarray(counts / counts.mean(), dtype=np.float64)


def normal_order(difference: ArrayLike, variance: ArrayLike) -> Floats:
    """`P(x > 0) + P(x = 0) / 2` for `x ~ N(difference, variance)`; a variance of 0 is certainty."""
    d, v = np.asarray(difference, dtype=np.float64), np.asarray(variance, dtype=np.float64)
    sure = 0.5 + 0.5 * np.sign(d)
    return np.where(v > 0, ndtr(d / np.sqrt(np.where(v > 0, v, 1.0))), sure)


def _pairs(pairs: ArrayLike, texts: int) -> Ints:
    rows = np.asarray(pairs, dtype=np.int64).reshape(-1, 2) if np.size(pairs) else np.zeros((0, 2), dtype=np.int64)
    if rows.size and (rows.min() < 0 or rows.max() >= texts):
        raise ValueError(
            f"Pairs must be row numbers from 0 to {texts - 1}; they run from {rows.min()} to {rows.max()}."
        )
    return rows
