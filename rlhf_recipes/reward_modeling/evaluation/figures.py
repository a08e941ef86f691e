"""How good scores of texts are, seen from every side: margins, distances, probabilities, best of n.

Each function takes columns of numbers, `(N,)`, and returns figures that JSON can hold. A key `<figure>_ci95` beside a
figure is its 95% interval (`rlhf_recipes.statistics`), were texts drawn anew, or prompts where rows belong to prompts,
and not pairs: one text is in many pairs, so pairs are not independent, and an interval over them is too narrow.

`None` stands for a figure that does not exist: a correlation where one side does not vary, a bucket without pairs, an
interval over a single text or prompt. Columns of different lengths, and numbers that are missing, NaN or infinite, are
a `ValueError` that names the row.

What costs nothing belongs beside every figure, see `baselines.py`. The ceiling that people's disagreement sets is in
`rlhf_recipes.data.raters.agreement`.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from rlhf_recipes.data.pairs import Comparison, compare_all
from rlhf_recipes.statistics import (
    NORMAL_QUANTILE,
    Floats,
    Ints,
    Keys,
    Metrics,
    Units,
    check_length,
    float_columns,
    jackknife,
    ratio_interval,
    rows_by_key,
    strata_of,
)

CORRELATIONS = ("pearson", "spearman", "kendall")

# --- order -----------------------------------------------------------------------------------------------


def accuracy_by_margin(
    scores: ArrayLike,
    ratings: ArrayLike,
    edges: Sequence[float] = (0.5, 1.0, 2.0),
    prompts: Keys | None = None,
    units: Keys | None = None,
) -> list[Metrics]:
    """Share of pairs in people's order, for pairs that are close in rating and for those that are far apart.

    All pairs of texts are asked, or all of each prompt. Equal scores count half; equal ratings are never asked. With
    a single edge it is [`~rlhf_recipes.data.raters.agreement.all_pairs_accuracy`] and its interval.

    Args:
        scores, ratings: What is measured, and what people say.
        edges (`Sequence[float]`, *optional*, defaults to `(0.5, 1.0, 2.0)`):
            Where buckets of the rating gap begin: 0.5 to 1, 1 to 2, 2 and more. A gap on an edge is in the upper one.
        prompts (`Sequence` of length N, *optional*):
            What each text answers. Only texts of one prompt are compared then, and intervals are over prompts.
        units (`Sequence` of length N, *optional*):
            Where all texts are compared, what they are drawn with, such as their prompts. Default: each by itself.

    Returns:
        `list[dict]`: `from`, `to` (`None` for the last), `accuracy`, `accuracy_ci95` and `pairs` of each bucket.

    Raises:
        `ValueError`: if edges are negative or do not rise.
    """
    s, y = float_columns(scores=scores, ratings=ratings)
    starts = [float(edge) for edge in edges]
    if not starts or starts[0] < 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"edges is {list(edges)}; give one or more, 0 or above, each larger than the one before.")
    groups = [slice(None)] if prompts is None else rows_by_key(prompts, len(y))
    above = [[compare_all(s[rows], y[rows], edge) for rows in groups] for edge in starts]
    found = [[a - b for a, b in zip(*both, strict=True)] for both in zip(above, above[1:], strict=False)]
    places = zip(starts, [*starts[1:], None], [*found, above[-1]], strict=True)
    return [{"from": start, "to": end} | _share(of, prompts is None, units) for start, end, of in places]


def _share(found: Sequence[Comparison], of_all: bool, units: Keys | None) -> Metrics:
    right, pairs = np.array([one.right.sum() / 2 for one in found]), np.array([one.pairs for one in found])
    return {
        "accuracy": float(right.sum() / pairs.sum()) if pairs.any() else None,
        "accuracy_ci95": found[0].interval(units) if of_all else ratio_interval(right, pairs),
        "pairs": int(pairs.sum()),
    }


def pairwise_accuracy(
    scores: ArrayLike, ratings: ArrayLike, min_gap: float, prompts: Keys | None = None, units: Keys | None = None
) -> Metrics:
    """The one bucket of all pairs that are `min_gap` apart, as `pairwise_accuracy`, its interval, and `pairs`."""
    bucket = accuracy_by_margin(scores, ratings, [min_gap], prompts, units)[0]
    accuracy = {"pairwise_accuracy": bucket["accuracy"], "pairwise_accuracy_ci95": bucket["accuracy_ci95"]}
    return accuracy | {"pairs": bucket["pairs"]}


# --- distance --------------------------------------------------------------------------------------------


def rating_errors(
    scores: ArrayLike, ratings: ArrayLike, prompts: Keys | None = None, intervals: bool = True
) -> Metrics:
    """How far scores lie from ratings, and how well the two go together.

    | key | formula |
    |---|---|
    | `mae`, `rmse` | mean of `|s - y|`; root of the mean of `(s - y)^2`: for scores in units of the rating |
    | `r2` | `1 - sum (s - y)^2 / sum (y - mean y)^2`; below 0 where the mean rating would be nearer |
    | `pearson`, `spearman` | correlation of the numbers; of their ranks, ties with the mean of their ranks |
    | `kendall` | tau-b: `(C - D) / sqrt((pairs untied in s) (pairs untied in y))` (Kendall 1945) |

    Args:
        scores, ratings: What is measured (calibrated, for the first three), and what people say.
        prompts (`Sequence` of length N, *optional*): What intervals are over. Default: the rows.
        intervals (`bool`, *optional*, defaults to `True`):
            Whether there are any: they take as long as the figures of 200 such sets of rows.

    Returns:
        `dict`: the keys above, each with its interval, and `texts`. `r2` is `None` where all ratings are equal, and
        the correlations where all ratings or all scores are.
    """
    s, y = float_columns(scores=scores, ratings=ratings)
    check_length(range(len(y)) if prompts is None else prompts, len(y), "prompts")
    squares, deviations = (s - y) ** 2, (y - y.mean()) ** 2
    figures = {
        "mae": float(np.abs(s - y).mean()),
        "rmse": float(np.sqrt(squares.mean())),
        "r2": float(1 - squares.sum() / deviations.sum()) if np.ptp(y) > 0 else None,
        **{
            name: float(r) if np.isfinite(r) else None
            for name, r in zip(CORRELATIONS, _correlations(s, y), strict=True)
        },
    }
    ends: dict[str, list[float] | None] = {}
    if intervals:
        units = Units.of(len(y), prompts)
        ends = _distance_intervals(np.abs(s - y), squares, deviations, units)
        spreads = jackknife(lambda rows: _correlations(s[rows], y[rows]), units)
        for name, spread in zip(CORRELATIONS, spreads, strict=False):
            value = figures[name]
            ends[name] = None if spread is None or value is None else spread.bounded(value, -1, 1, unseen=0.25)
    metrics: Metrics = {}
    for key, value in figures.items():
        metrics |= {key: value, f"{key}_ci95": None if value is None else ends.get(key)}
    return {**metrics, "texts": len(y)}


def _distance_intervals(
    distances: Floats, squares: Floats, deviations: Floats, units: Units
) -> dict[str, list[float] | None]:
    """Of `mae`, of `rmse` as the root of that of the squares, and of `r2` as that of a ratio of squares."""
    mae, mse = (units.interval(*units.mean(values)) for values in (distances, squares))
    if mae is None or mse is None:
        return {}
    ends: dict[str, list[float] | None] = {"mae": _above_zero(mae), "rmse": [max(end, 0.0) ** 0.5 for end in mse]}
    if deviations.any():
        left = float(squares.sum() / deviations.sum())
        found = units.interval(left, (squares - left * deviations) / deviations.sum())
        ends["r2"] = found and [min(1.0 - end, 1.0) for end in reversed(found)]
    return ends


def _above_zero(ends: list[float] | None) -> list[float] | None:
    return ends and [max(end, 0.0) for end in ends]


def _correlations(s: Floats, y: Floats) -> Floats:
    """Pearson's, Spearman's and Kendall's `(3,)`; NaN where one of the two does not vary."""
    if not (len(y) and np.ptp(y) > 0 and np.ptp(s) > 0):
        return np.full(len(CORRELATIONS), np.nan)
    from scipy import stats  # takes most of a second

    # No p-values are asked for: those of scipy take longer than the figures, of which there are 200 for an interval.
    ranks = stats.rankdata(s), stats.rankdata(y)
    return np.array([_pearson(s, y), _pearson(*ranks), stats.kendalltau(s, y).statistic])


def _pearson(s: Floats, y: Floats) -> float:
    one, other = (values - values.mean() for values in (s, y))
    one, other = (values / np.abs(values).max() for values in (one, other))  # squares of tiny numbers would be 0
    return float(np.clip(one @ other / np.sqrt(one @ one * (other @ other)), -1.0, 1.0))


# --- probability -----------------------------------------------------------------------------------------


def pair_probabilities(first_scores: ArrayLike, second_scores: ArrayLike) -> Floats:
    """P(the first text is preferred) of Bradley and Terry (1952): `sigma(s_1 - s_2)`, `(N,)`. Scores are logits."""
    first, second = float_columns(first_scores=first_scores, second_scores=second_scores)
    # The same of both sides to the last bit, or pairs that are as sure would part.
    less = expit(-np.abs(first - second))
    return np.where(first > second, 1.0 - less, less)


def calibration(
    probabilities: ArrayLike,
    outcomes: ArrayLike,
    bins: int = 10,
    pairs: bool = False,
    units: Keys | None = None,
    other_units: Keys | None = None,
) -> Metrics:
    """Whether what is said to be 80% sure happens 8 times of 10: ECE, Brier score, and the table behind them.

    `ece = sum_b n_b / N |mean probability - mean outcome|` over bins of equally many rows (Naeini et al. 2015, with
    equal mass); `brier = mean (p - y)^2` (Brier 1950). The ECE of a perfect model is above 0 by chance, the more so
    the fewer rows a bin has: compare models on the same rows and bins. Its interval has this taken off (the mean of
    `|x|` of a normal x of the bin's own error), and begins at 0 where chance alone could make as much.

    Args:
        probabilities: From 0 to 1.
        outcomes: 0 or 1, or the share of votes; `brier` is then the distance from the share, 0 at best.
        bins (`int`, *optional*, defaults to 10):
            Rows of equal probability are never put apart, so there may be fewer.
        pairs (`bool`, *optional*, defaults to `False`):
            Whether rows are pairs, whose order means nothing. Each is then turned so that the probability is that of
            the text which the model prefers, from 0.5 to 1; at 0.5 the outcome counts half. Without this, pairs with
            the chosen text first would all have the outcome 1, and any doubt would look like an error.
        units (`Sequence` of length N, *optional*), other_units (`Sequence` of length N, *optional*):
            What intervals are over: the prompt of each row; or the two texts of each pair. Default: the rows.

    Returns:
        `dict`: `ece`, `brier`, their intervals, `rows`, and `bins`: `from`, `to`, `rows`, `probability`, `outcome`.

    Raises:
        `ValueError`: if a number is not from 0 to 1, or outcomes are of one class only (without `pairs`).
    """
    p, y = float_columns(probabilities=probabilities, outcomes=outcomes)
    for name, column in (("probabilities", p), ("outcomes", y)):
        if column.min() < 0 or column.max() > 1:
            raise ValueError(f"The {name} run from {column.min():g} to {column.max():g}; they must be from 0 to 1.")
    if bins < 1:
        raise ValueError(f"bins is {bins}; give 1 or more.")
    if not pairs and (y.min() == 1 or y.max() == 0):
        raise ValueError(
            f"All {len(y)} outcomes are {y[0]:g}; of one class alone calibration cannot be seen. For pairs with the "
            "chosen text first, set pairs=True."
        )
    squares = (p - y) ** 2
    if pairs:
        y = np.where(p > 0.5, y, np.where(p < 0.5, 1 - y, 0.5))
        p = np.maximum(p, 1 - p)
    of_bin = strata_of(p, bins, len(p))
    gaps = np.eye(of_bin.max() + 1)[of_bin] * (p - y)[:, None] / len(p)  # (N, B)
    independent = Units.of(len(p), units, other_units)
    brier, influences = independent.mean(squares)
    return {
        "ece": float(np.abs(gaps.sum(axis=0)).sum()),
        "ece_ci95": _ece_interval(gaps, independent),
        "brier": brier,
        "brier_ci95": _above_zero(independent.interval(brier, influences)),
        "rows": len(p),
        "bins": _reliability_table(p, y, of_bin),
    }


def _ece_interval(gaps: Floats, units: Units) -> list[float] | None:
    """Of `sum_b |sum_n gaps[n, b]|`, `(N, B)`; see [`calibration`] for what is done to its lower end."""
    from scipy.special import erf

    of_bins = gaps.sum(axis=0)
    ece = float(np.abs(of_bins).sum())
    errors = np.array([units.spread(gap - gap.mean()).variance ** 0.5 for gap in gaps.T])
    by_chance, variance = np.sqrt(2 / np.pi) * errors.sum(), (1 - 2 / np.pi) * (errors**2).sum()
    size = np.where(errors > 0, of_bins / np.where(errors > 0, errors, 1.0), np.inf)
    expected = np.sqrt(2 / np.pi) * errors * np.exp(-(size**2) / 2) + np.abs(of_bins) * erf(np.abs(size) / np.sqrt(2))
    found = units.interval(2 * ece - float(expected.sum()), gaps @ np.sign(of_bins) - ece / len(gaps))
    if found is None:
        return None
    low = 0.0 if ece <= by_chance + NORMAL_QUANTILE * np.sqrt(variance) else max(found[0], 0.0)
    return [low, max(found[1], ece)]


def _reliability_table(p: Floats, y: Floats, of_bin: Ints) -> list[Metrics]:
    members = [of_bin == b for b in range(of_bin.max() + 1)]
    edges = [float(p[rows].min()) for rows in members] + [float(p.max())]
    return [
        {
            "from": edges[b],
            "to": edges[b + 1],
            "rows": int(rows.sum()),
            "probability": float(p[rows].mean()),
            "outcome": float(y[rows].mean()),
        }
        for b, rows in enumerate(members)
    ]


# --- best of n -------------------------------------------------------------------------------------------


def win_rate_curve(
    scores: ArrayLike, quality: ArrayLike, prompts: Keys | None = None, max_n: int | None = None
) -> list[Metrics]:
    """How often the text that the score chooses among n beats a random one, for n = 1, 2, ...: best of n on paper.

    n texts are drawn without replacement from the m of a prompt (or from all), and the one with the highest score is
    compared in quality with one of the other m - 1 at random. Both are averaged exactly:
    `P(chosen = i) = C(below_i, n - 1) / C(m, n)` for distinct scores, equal scores share their chance, and i wins
    `(worse + equal / 2) / (m - 1)` of its comparisons. At n = 1 it is 0.5. (The estimator of Nakano et al., arXiv
    2112.09332, for a win rate.)

    Args:
        scores, quality: What chooses, and what people say, or a judge.
        prompts (`Sequence` of length N, *optional*):
            What each text answers; win rates are averaged over prompts, and intervals are over them, too. Without,
            all texts are one pool, and intervals are over texts.
        max_n (`int`, *optional*):
            Largest n. Prompts with fewer texts are left out at every n, so that all n have the same prompts. Default:
            the least number of texts of a prompt that has two or more; 16 at most without prompts.

    Returns:
        `list[dict]`: for each n `n`, `win_rate`, `win_rate_ci95`, `ceiling` (the same where quality itself chooses)
        and `prompts` (how many were averaged).

    Raises:
        `ValueError`: if no prompt has `max_n` texts, and two.
    """
    s, y = float_columns(scores=scores, quality=quality)
    pools = rows_by_key([0] * len(y) if prompts is None else prompts, len(y))
    sizes = [len(pool) for pool in pools if len(pool) > 1]
    default = min(16, len(y)) if prompts is None else min(sizes, default=0)
    most = default if max_n is None else max_n
    pools = [pool for pool in pools if len(pool) >= max(most, 2)]
    if not pools or most < 1:
        raise ValueError(
            f"No prompt has {max(most, 2)} texts (the most are {max(sizes, default=1)}), so the best of n cannot be "
            "compared. Give several completions for each prompt, or a smaller max_n of 1 or more."
        )
    rates = np.array([_win_rates(s[pool], y[pool], most) for pool in pools])  # (G, n)
    ceiling = np.array([_win_rates(y[pool], y[pool], most) for pool in pools]).mean(axis=0)
    means = rates.mean(axis=0)
    units = Units.of(len(pools) if prompts is not None else len(y))
    if prompts is None:
        spreads = jackknife(lambda rows: _win_rates(s[rows], y[rows], most), units)
    else:
        spreads = [units.spread(column) for column in ((rates - means) / len(pools)).T]
    return [
        {
            "n": n + 1,
            "win_rate": float(means[n]),
            "win_rate_ci95": spread and spread.bounded(float(means[n])),
            "ceiling": float(ceiling[n]),
            "prompts": len(pools),
        }
        for n, spread in enumerate(spreads)
    ]


def _win_rates(scores: Floats, quality: Floats, most: int) -> Floats:
    """Of one pool, for n = 1 to `most`; of a pool with fewer texts, the best of all is the best of n."""
    m = len(scores)
    if m < 2:
        return np.full(most, np.nan)
    by_quality, by_score = np.sort(quality), np.sort(scores)
    worse, up_to = (np.searchsorted(by_quality, quality, side=side) for side in ("left", "right"))
    wins = (worse + (up_to - worse - 1) / 2) / (m - 1)
    below, with_ties = (np.searchsorted(by_score, scores, side=side) for side in ("left", "right"))
    # P(all n are among the k lowest) = C(k, n) / C(m, n), for k of n - 1 from that of n - 2.
    lower, upper = np.ones(m), np.ones(m)
    rates = np.empty(min(most, m))
    for n in range(len(rates)):
        lower, upper = lower * np.maximum(below - n, 0) / (m - n), upper * np.maximum(with_ties - n, 0) / (m - n)
        rates[n] = ((upper - lower) / (with_ties - below) * wins).sum()
    return np.pad(rates, (0, most - len(rates)), mode="edge")
