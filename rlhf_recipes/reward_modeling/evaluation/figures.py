"""How good scores of texts are, seen from every side: margins, distances, probabilities, best of n, subsets.

Each function takes columns of numbers and returns figures that JSON can hold. A key `<figure>_ci95` beside a figure is
its 95% interval (`rlhf_recipes.statistics`), were texts drawn anew, or prompts where rows belong to prompts, and not
pairs: one text is in many pairs, so pairs are not independent, and an interval over them is too narrow.

`None` stands for a figure that does not exist: a correlation where one side does not vary, a bucket without pairs, an
interval over a single text or prompt. A number that is missing, NaN or infinite is an error that names its row.

Baselines that cost nothing belong beside every figure: [`baseline_scores`] and [`beside_baselines`]. The ceiling that
people's disagreement sets is in `rlhf_recipes.data.raters.agreement`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.pairs import Comparison, compare_all
from rlhf_recipes.rewards.sentiment import Vader
from rlhf_recipes.statistics import (
    NORMAL_QUANTILE,
    Floats,
    Keys,
    Metrics,
    Spread,
    Units,
    check_length,
    combined,
    correlation,
    float_columns,
    numbers,
    ratio_interval,
    rows_by_key,
    spread_of,
)
from rlhf_recipes.words import is_blank

CORRELATIONS = ("pearson", "spearman", "kendall")
GROUPS = 200  # of texts that are left out in turn, where a figure has no formula for what each text brings

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
        scores (`ArrayLike` of shape `(N,)`): What is measured.
        ratings (`ArrayLike` of shape `(N,)`): What people say.
        edges (`Sequence[float]`, *optional*, defaults to `(0.5, 1.0, 2.0)`):
            Where buckets of the rating gap begin: 0.5 to 1, 1 to 2, 2 and more. A gap on an edge is in the upper one.
        prompts (`Sequence` of length N, *optional*):
            What each text answers. Only texts of one prompt are compared then, and intervals are over prompts.
        units (`Sequence` of length N, *optional*):
            Where all texts are compared, what they are drawn with, such as their prompts. Default: each by itself.

    Returns:
        `list[dict]`: `from`, `to` (`None` for the last), `accuracy`, `accuracy_ci95` and `pairs` of each bucket.

    Raises:
        `ValueError`: if lengths differ, a number is not finite, or edges are negative or do not rise.
    """
    s, y = float_columns(scores=scores, ratings=ratings)
    starts = [float(edge) for edge in edges]
    if not starts or starts[0] < 0 or any(a >= b for a, b in zip(starts, starts[1:], strict=False)):
        raise ValueError(f"edges is {list(edges)}; give one or more, 0 or above, each larger than the one before.")
    groups = [slice(None)] if prompts is None else rows_by_key(prompts, len(y))
    nothing = [Comparison(np.zeros(1), np.zeros(1), 0.0)] * len(groups)
    from_edge = [[compare_all(s[rows], y[rows], edge) for rows in groups] for edge in starts] + [nothing]
    buckets = []
    for place, edge in enumerate(starts):
        found = [lower - upper for lower, upper in zip(from_edge[place], from_edge[place + 1], strict=True)]
        right, pairs = (np.array([float(column.sum()) / 2 for column in columns])
                        for columns in ([one.right for one in found], [one.asked for one in found]))  # fmt: skip
        buckets.append(
            {
                "from": edge,
                "to": starts[place + 1] if place + 1 < len(starts) else None,
                "accuracy": float(right.sum() / pairs.sum()) if pairs.any() else None,
                "accuracy_ci95": found[0].interval(units) if prompts is None else ratio_interval(right, pairs),
                "pairs": int(pairs.sum()),
            }
        )
    return buckets


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
        chosen_scores (`ArrayLike` of shape `(N,)`), rejected_scores (`ArrayLike` of shape `(N,)`):
            What is measured.
        subsets (`Sequence` of length N):
            The name of each row's subset.
        prompts (`Sequence` of length N, *optional*):
            What each row's texts answer, where a prompt has several rows.
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
    whole = {name: of.rows / len(credit) for name, of in found.items()}
    metrics: Metrics = {
        "pairwise_accuracy": float(credit.mean()),
        "pairwise_accuracy_ci95": combined([(share, found[name].spread) for name, share in whole.items()]).bounded(
            float(credit.mean())
        ),
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
        value = float(sum(share[s] * found[s].accuracy for s in members))
        spread = combined([(share[s], found[s].spread) for s in members])
        figures[name] = {"accuracy": value, "accuracy_ci95": spread.bounded(value)}
        part = float(section_weights.get(name, 1.0)) / whole
        weights |= {s: weights[s] + part * share[s] for s in members}
    score = sum(weight * found[s].accuracy for s, weight in weights.items())
    spread = combined([(weight, found[s].spread) for s, weight in weights.items() if weight])
    return {"sections": figures, "score": float(score), "score_ci95": spread.bounded(score)}


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
        scores (`ArrayLike` of shape `(N,)`): What is measured; calibrated, for the first three.
        ratings (`ArrayLike` of shape `(N,)`): What people say.
        prompts (`Sequence` of length N, *optional*): What intervals are over. Default: the rows.
        intervals (`bool`, *optional*, defaults to `True`):
            Whether there are any: they take as long as the figures of 200 such sets of rows.

    Returns:
        `dict`: the keys above, each with its interval, and `texts`. `r2` is `None` where all ratings are equal, and
        the correlations where all ratings or all scores are.

    Raises:
        `ValueError`: if lengths differ, there are no rows, or a number is not finite.
    """
    s, y = float_columns(scores=scores, ratings=ratings)
    check_length(range(len(y)) if prompts is None else prompts, len(y), "prompts")
    figures = _errors(s, y)
    ends: dict[str, list[float] | None] = {}
    if intervals:
        units = Units.of(len(y), prompts)
        ends = _distance_intervals(s, y, units) | _correlation_intervals(s, y, units, figures)
    metrics: Metrics = {}
    for key, value in figures.items():
        metrics[key] = value
        metrics[f"{key}_ci95"] = None if value is None else ends.get(key)
    return {**metrics, "texts": len(y)}


def _distance_intervals(s: Floats, y: Floats, units: Units) -> dict[str, list[float] | None]:
    """Of `mae`, of `rmse` as the root of that of the squares, and of `r2` as that of a ratio of squares."""
    ends: dict[str, list[float] | None] = {}
    for key, values in (("mae", np.abs(s - y)), ("rmse", (s - y) ** 2)):
        mean, influences = units.mean(values)
        ends[key] = _above_zero(units.spread(influences).interval(mean))
    if ends["rmse"] is not None:
        ends["rmse"] = [float(np.sqrt(end)) for end in ends["rmse"]]
    squares, deviations = (s - y) ** 2, (y - y.mean()) ** 2
    if deviations.any():
        left = squares.sum() / deviations.sum()
        found = units.spread((squares - left * deviations) / deviations.sum()).interval(float(left))
        ends["r2"] = None if found is None else [min(1.0 - end, 1.0) for end in reversed(found)]
    return ends


def _correlation_intervals(
    s: Floats, y: Floats, units: Units, figures: Mapping[str, float | None]
) -> dict[str, list[float] | None]:
    """By leaving out one text, prompt, or group of them after another (jackknife, Efron 1982)."""
    count = int(units.columns.max()) + 1
    order = np.random.default_rng(0).permutation(count) % min(count, GROUPS)  # the group of each unit
    group = order[units.columns[0]]
    left = [_correlations(s[group != out], y[group != out]) for out in range(order.max() + 1 if count > 1 else 0)]
    ends: dict[str, list[float] | None] = {}
    for key in CORRELATIONS:
        value, known = figures[key], np.array([one[key] for one in left if one[key] is not None], dtype=np.float64)
        if value is None or len(known) < 2:
            continue
        influences = (known.mean() - known) * (len(known) - 1) / len(known)
        spread = spread_of(influences, np.ones(len(known)), len(known))
        ends[key] = replace(spread, equal=units.spread(np.zeros(len(y))).equal).bounded(value, -1, 1, unseen=0.25)
    return ends


def _above_zero(ends: list[float] | None) -> list[float] | None:
    return None if ends is None else [max(end, 0.0) for end in ends]


def _errors(s: Floats, y: Floats) -> dict[str, float | None]:
    squares, spread = float(((s - y) ** 2).sum()), float(((y - y.mean()) ** 2).sum())
    return {
        "mae": float(np.abs(s - y).mean()),
        "rmse": float(np.sqrt(squares / len(y))),
        "r2": 1.0 - squares / spread if np.ptp(y) > 0 else None,
        **_correlations(s, y),
    }


def _correlations(s: Floats, y: Floats) -> dict[str, float | None]:
    if not (np.ptp(y) > 0 and np.ptp(s) > 0):
        return dict.fromkeys(CORRELATIONS)
    from scipy import stats  # takes most of a second

    return {
        "pearson": correlation(s, y),
        "spearman": correlation(stats.rankdata(s), stats.rankdata(y)),
        "kendall": float(stats.kendalltau(s, y).statistic),
    }


# --- probability -----------------------------------------------------------------------------------------


def pair_probabilities(first_scores: ArrayLike, second_scores: ArrayLike) -> Floats:
    """P(the first text is preferred) of Bradley and Terry (1952): `sigma(s_1 - s_2)`, `(N,)`. Scores are logits."""
    first, second = float_columns(first_scores=first_scores, second_scores=second_scores)
    return 0.5 * (1.0 + np.tanh(0.5 * (first - second)))  # the sigmoid, and no exponential that overflows


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
        probabilities (`ArrayLike` of shape `(N,)`):
            From 0 to 1.
        outcomes (`ArrayLike` of shape `(N,)`):
            0 or 1, or the share of votes; `brier` is then the distance from the share, 0 at best.
        bins (`int`, *optional*, defaults to 10):
            Rows of equal probability are never put apart, so there may be fewer.
        pairs (`bool`, *optional*, defaults to `False`):
            Whether rows are pairs, whose order means nothing. Each is then turned so that the probability is that of
            the text which the model prefers, from 0.5 to 1; at 0.5 the outcome counts half. Without this, pairs with
            the chosen text first would all have the outcome 1, and any doubt would look like an error.
        units (`Sequence` of length N, *optional*), other_units (`Sequence` of length N, *optional*):
            What intervals are over: the prompt of each row; or the two texts of each pair. Default: the rows.

    Returns:
        `dict`: `ece`, `brier`, their intervals, `rows`, and `bins`, a list of `from`, `to`, `rows`, `probability`,
        `outcome`.

    Raises:
        `ValueError`: if lengths differ, a number is not from 0 to 1, or outcomes are of one class only (without
            `pairs`).
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
    of_bin, edges = equal_mass_bins(p, bins)
    members = np.eye(len(edges) - 1)[of_bin]  # (N, B)
    gaps = members * (p - y)[:, None]
    independent = Units.of(len(p), units, other_units)
    brier, influences = independent.mean(squares)
    return {
        "ece": float(np.abs(gaps.sum(axis=0)).sum() / len(p)),
        "ece_ci95": _ece_interval(gaps / len(p), independent),
        "brier": brier,
        "brier_ci95": _above_zero(independent.spread(influences).interval(brier)),
        "rows": len(p),
        "bins": _reliability_table(p, y, of_bin, edges),
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
    found = units.spread(gaps @ np.sign(of_bins) - ece / len(gaps)).interval(2 * ece - float(expected.sum()))
    if found is None:
        return None
    low = 0.0 if ece <= by_chance + NORMAL_QUANTILE * np.sqrt(variance) else max(found[0], 0.0)
    return [low, max(found[1], ece)]


def _reliability_table(p: Floats, y: Floats, of_bin: NDArray[np.int64], edges: Floats) -> list[Metrics]:
    return [
        {
            "from": float(edges[b]),
            "to": float(edges[b + 1]),
            "rows": int((of_bin == b).sum()),
            "probability": float(p[of_bin == b].mean()),
            "outcome": float(y[of_bin == b].mean()),
        }
        for b in range(len(edges) - 1)
    ]


def equal_mass_bins(values: Floats, bins: int) -> tuple[NDArray[np.int64], Floats]:
    """The bin of each value `(N,)`, and the values where bins begin, with the largest at the end `(B + 1,)`."""
    ordered = np.sort(values)
    positions = np.arange(bins) * len(values) // bins
    starts = np.unique(ordered[positions])  # equal values begin together
    return np.searchsorted(starts, values, side="right") - 1, np.append(starts, ordered[-1])


# --- best of n -------------------------------------------------------------------------------------------


def win_rate_curve(
    scores: ArrayLike,
    quality: ArrayLike,
    prompts: Keys | None = None,
    max_n: int | None = None,
) -> list[Metrics]:
    """How often the text that the score chooses among n beats a random one, for n = 1, 2, ...: best of n on paper.

    n texts are drawn without replacement from the m of a prompt (or from all), and the one with the highest score is
    compared in quality with one of the other m - 1 at random. Both are averaged exactly:
    `P(chosen = i) = C(below_i, n - 1) / C(m, n)` for distinct scores, equal scores share their chance, and i wins
    `(worse + equal / 2) / (m - 1)` of its comparisons. At n = 1 it is 0.5. (The estimator of Nakano et al., arXiv
    2112.09332, for a win rate.)

    Args:
        scores (`ArrayLike` of shape `(N,)`): What chooses.
        quality (`ArrayLike` of shape `(N,)`): What people say, or a judge.
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
        `ValueError`: if lengths differ, a number is not finite, or no prompt has `max_n` texts, and two.
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
    spreads = _win_spreads(s, y, most) if prompts is None else [
        Units.of(len(pools)).spread((rates[:, n] - rates[:, n].mean()) / len(pools)) for n in range(most)
    ]  # fmt: skip
    return [
        {
            "n": n + 1,
            "win_rate": float(rates[:, n].mean()),
            "win_rate_ci95": spreads[n].bounded(float(rates[:, n].mean())),
            "ceiling": float(ceiling[n]),
            "prompts": len(pools),
        }
        for n in range(most)
    ]


def _win_spreads(s: Floats, y: Floats, most: int) -> list[Spread]:
    """Of a pool of texts, by leaving out one text, or group of texts, after another."""
    group = np.random.default_rng(0).permutation(len(y)) % min(len(y), GROUPS)
    # Of a pool that is smaller without them, the best of all is the best of n.
    least = min(most, len(y) - int(np.bincount(group).max()))
    left = np.array([_win_rates(s[group != out], y[group != out], least) for out in range(group.max() + 1)])
    left = np.pad(left, ((0, 0), (0, most - least)), mode="edge")  # (G, n)
    influences = (left.mean(axis=0) - left) * (len(left) - 1) / len(left)
    return [
        replace(spread_of(column, np.ones(len(left)), len(left)), equal=len(y), alone=False) for column in influences.T
    ]


def _win_rates(scores: Floats, quality: Floats, most: int) -> Floats:
    """Of one pool, for n = 1 to `most`."""
    m = len(scores)
    by_quality, by_score = np.sort(quality), np.sort(scores)
    worse, up_to = (np.searchsorted(by_quality, quality, side=side) for side in ("left", "right"))
    wins = (worse + (up_to - worse - 1) / 2) / (m - 1)
    below, with_ties = (np.searchsorted(by_score, scores, side=side) for side in ("left", "right"))
    # P(all n are among the k lowest) = C(k, n) / C(m, n), for k of n - 1 from that of n - 2.
    lower, upper = np.ones(m), np.ones(m)
    rates = np.empty(most)
    for n in range(most):
        lower, upper = lower * np.maximum(below - n, 0) / (m - n), upper * np.maximum(with_ties - n, 0) / (m - n)
        rates[n] = ((upper - lower) / (with_ties - below) * wins).sum()
    return rates


# --- baselines -------------------------------------------------------------------------------------------


def baseline_scores(texts: Sequence[str]) -> dict[str, list[float]]:
    """Scores that cost nothing: the text's length in characters, VADER's sentiment (English), and a constant.

    A text that VADER cannot read counts as neutral, because a baseline has to say something of every text.
    """
    return {
        "length": [float(len(text)) for text in texts],
        "vader": vader_scores(texts),
        "constant": [0.0] * len(texts),
    }


def fit_baselines(
    texts: Sequence[str], train_texts: Sequence[str], train_ratings: ArrayLike
) -> dict[str, list[float]]:
    """[`baseline_scores`] in units of the rating, by a least-squares line through the training rows: for distances.

    The constant is the mean training rating.
    """
    y = numbers(train_ratings, "ratings")
    check_length(train_texts, len(y), "training texts")
    if not len(y):
        raise ValueError("There are no training rows to fit baselines to.")
    given, wanted = baseline_scores(train_texts), baseline_scores(texts)
    fitted = {}
    for name, column in given.items():
        x = np.array(column)
        spread = float(((x - x.mean()) ** 2).sum())
        slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
        fitted[name] = [float(y.mean() + slope * (value - x.mean())) for value in wanted[name]]
    return fitted


def beside_baselines(
    measure: Callable[[Sequence[float]], Any], scores: Sequence[float], baselines: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """`measure(scores)` of the model under `"model"`, and of each baseline under its name.

    ```python
    beside_baselines(lambda s: accuracy_by_margin(s, ratings), scores, baseline_scores(texts))
    ```
    """
    return {"model": measure(scores), **{name: measure(column) for name, column in baselines.items()}}


def vader_scores(texts: Sequence[str]) -> list[float]:
    """What VADER thinks of each text; of a blank one it is neutral, as of words that it does not know."""
    said = Vader()([""] * len(texts), texts)
    return [0.0 if is_blank(text) else float(score or 0.0) for text, score in zip(texts, said, strict=True)]
