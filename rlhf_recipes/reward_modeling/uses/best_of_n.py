"""Best of n: what it brings to let a reward choose among n candidates, for every n that the candidates allow.

N candidates of a prompt are scored once. What the best of n of them is worth, on average over all C(N, n) subsets,
follows exactly from the order of the scores, so no subset is drawn and no candidate wasted. Of the same choices, what
another judge says of them shows whether the reward is over-optimized (Gao, Schulman and Hilton, arXiv 2210.10760): the
reward that chooses goes up with n whatever it measures, and the judge comes down where that is no longer quality.

Candidates come from `rlhf_recipes.reward_modeling.uses.candidates`. The arithmetic here is numpy alone.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.statistics import Floats, mean_with_interval, numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHOOSES = "score"  # the name of the reward that chooses, in curves, tables and pictures


# --- the choice ------------------------------------------------------------------------------------------


def choice_probabilities(scores: ArrayLike, sizes: Sequence[int]) -> Floats:
    """How likely each of N candidates is the best of n that are drawn without replacement, `(len(sizes), N)`.

    A candidate with `b` candidates strictly below it, of `e` that share its score (itself among them), is chosen with

        P(chosen) = (C(b + e, n) - C(b, n)) / (e C(N, n))

    since the best score of a subset is that of the group with the chance that all n are up to it, less the chance that
    all are below it, and those that share it are chosen alike. With distinct scores it is `C(b, n - 1) / C(N, n)`.

    Raises:
        `ValueError`: if a score is missing or not finite, or a size is not from 1 to N.
    """
    s = numbers(scores, "scores")
    count = len(s)
    wrong = [n for n in sizes if not 1 <= n <= count]
    if wrong or not count:
        raise ValueError(f"There are {count} candidates, so the best of {wrong or list(sizes)} cannot be chosen.")
    ordered = np.sort(s)
    below, up_to = (np.searchsorted(ordered, s, side=side) for side in ("left", "right"))
    rows = []
    for n in sizes:
        # Of whole numbers, so that the quotient is exact to the last bit however large they are.
        share = np.array([math.comb(k, n) / math.comb(count, n) for k in range(count + 1)])
        rows.append((share[up_to] - share[below]) / (up_to - below))
    return np.stack(rows) if rows else np.zeros((0, count))


def expected_best(scores: ArrayLike, sizes: Sequence[int], values: ArrayLike | None = None) -> Floats:
    """Mean value of the best of n by score over all subsets of the N candidates, `(len(sizes),)`.

    It is the unbiased estimator of what the best of n fresh candidates is worth, and has the least variance of those
    that look at the candidates without regard to their order (WebGPT, arXiv 2112.09332, uses it for best-of-n curves).
    `values` is what the choice is worth, by default its score.

    Raises:
        `ValueError`: as [`choice_probabilities`], and if lengths differ.

    Example:
        >>> expected_best([0.0, 1.0, 5.0], [1, 2, 3]).tolist()
        [2.0, 3.6666666666666665, 5.0]
    """
    worth = numbers(scores if values is None else values, "values")
    chances = choice_probabilities(scores, sizes)
    if chances.shape[1] != len(worth):
        raise ValueError(f"There are {chances.shape[1]} scores and {len(worth)} values; give one for each candidate.")
    return chances @ worth


def powers_of_two(most: int) -> list[int]:
    """1, 2, 4, ... and `most` itself.

    Example:
        >>> powers_of_two(12)
        [1, 2, 4, 8, 12]
    """
    if most < 1:
        raise ValueError(f"The largest n is {most}; it must be 1 or more.")
    return [*(2**power for power in range(most.bit_length()) if 2**power < most), most]


# --- how far from the policy -----------------------------------------------------------------------------


def kl_bound(n: int) -> float:
    """Most that best-of-n can be away from the policy it samples, `log n - (n - 1) / n` in nats.

    Stiennon et al. (arXiv 2009.01325) and Gao et al. (arXiv 2210.10760) take it for the KL itself. It is where no two
    candidates of a prompt can be the same; else it is an upper bound (Beirami et al., arXiv 2401.01879, Theorem 3.1),
    and a loose one where few answers are likely: a policy with two answers of 1/2 each is never more than log 2 away.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be 1 or more.")
    return math.log(n) - (n - 1) / n


def kl_of_choice(n: int, logprob: ArrayLike) -> Floats:
    """KL in nats of best-of-n, where the best answer has the log-probability given and all others are unlikely.

    With `q` the probability of the best answer and `r = 1 - q`, that answer is chosen with `1 - r^n`, and the others
    share the rest as the largest of n uniform numbers below `r` does:

        KL = (1 - r^n) log((1 - r^n) / q)  +  r^n (log n + (n - 1) log r - (n - 1) / n)

    It is exact in that case and, since answers that are put together are told apart no better, an upper bound in every
    other one. It is never above [`kl_bound`], and equals it as `q` goes to 0. Taken at the answer that was chosen, as
    Beirami et al. do in section 4 (arXiv 2401.01879), it is an estimate and no longer a bound, because what was chosen
    need not be the best answer there is. `logprob` is `log q`, of the answer's tokens at the temperature of the
    sampling.
    """
    bound = kl_bound(n)
    log_q = np.minimum(np.asarray(logprob, dtype=np.float64), 0.0)
    q = np.exp(log_q)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_r = np.log1p(-q)  # -inf for the only answer there is
        rest = np.exp(n * log_r)
        taken = -np.expm1(n * log_r)
        # For the least likely answers q is 0 in floating point, and (1 - r^n) / q its limit, n.
        ratio = np.where(q > 0, np.log(taken) - log_q, math.log(n))
        others = np.where(rest > 0, rest * (math.log(n) + (n - 1) * log_r - (n - 1) / n), 0.0)
    return np.minimum(taken * ratio + others, bound)  # above it by rounding alone


# --- the curve -------------------------------------------------------------------------------------------


def best_of_n_curve(
    scores: Sequence[ArrayLike],
    judges: Mapping[str, Sequence[ArrayLike]] | None = None,
    logprobs: Sequence[ArrayLike] | None = None,
    sizes: Sequence[int] | None = None,
    sampled: bool = True,
) -> list[dict[str, Any]]:
    """What the choice is worth for each n, averaged over prompts, to the reward itself and to each judge.

    Args:
        scores (`Sequence` of length B):
            For each prompt the scores of its candidates, which choose.
        judges (`Mapping[str, Sequence]`, *optional*):
            By name, in the same shape, what else is known of the candidates: another reward, people's ratings.
        logprobs (`Sequence`, *optional*):
            In the same shape, log-probabilities of the candidates under the policy, for `kl`.
        sizes (`Sequence[int]`, *optional*):
            The n. Prompts with fewer candidates than the largest are left out at every n, so that all n have the same
            prompts. Default: [`powers_of_two`] up to the least number of candidates of a prompt that has two or more.
        sampled (`bool`, *optional*, defaults to `True`):
            Whether the candidates of a prompt are independent samples of one policy. Others, such as search results,
            have no KL.

    Returns:
        `list[dict]`: for each n `n`, `prompts`, of samples `kl_bound` and, of every series (`score` and the judges)
        `<name>`, `<name>_ci95`, the difference from n = 1 as `<name>_gain`, `<name>_gain_ci95` of the same prompts,
        and `<name>_ceiling`, what the judge's own choice would be worth to it. With `logprobs` also `kl`, the mean of
        [`kl_of_choice`]. Intervals are over prompts, and `None` for a single one.

    Raises:
        `ValueError`: if shapes differ, a number is not finite, or no prompt has enough candidates.
    """
    series = {CHOOSES: scores, **(judges or {})}
    lists = {name: [numbers(values, f"{name} values") for values in of_all] for name, of_all in series.items()}
    if judges and CHOOSES in judges:
        raise ValueError(f"A judge is named {CHOOSES!r}, like what chooses. Give it another name.")
    counts = [len(values) for values in lists[CHOOSES]]
    for name, of_all in lists.items():
        if [len(values) for values in of_all] != counts:
            raise ValueError(f"{name} does not have one value for each candidate that has a score.")
    several = [count for count in counts if count > 1]
    if sizes is None:
        sizes = powers_of_two(min(several, default=1))
    most = max(sizes, default=0)
    used = [prompt for prompt, count in enumerate(counts) if count >= max(most, 2)]
    if not used:
        raise ValueError(
            f"No prompt has {max(most, 2)} candidates or more (the most are {max(counts, default=0)}), so there is no "
            "curve over n. Give several candidates for each prompt, or smaller sizes."
        )
    worth, ceilings = _worth(lists, used, sizes)
    kl = None if logprobs is None else _mean_kl(lists[CHOOSES], logprobs, used, sizes)
    rows = _rows(sizes, worth, ceilings)
    bounds = [{"kl_bound": kl_bound(n)} if sampled else {} for n in sizes]
    finer = [{} if kl is None else {"kl": value} for value in kl or [0.0] * len(rows)]
    return [row | bound | of_row for row, bound, of_row in zip(rows, bounds, finer, strict=True)]


def _worth(
    lists: Mapping[str, Sequence[Floats]], used: Sequence[int], sizes: Sequence[int]
) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Of every series what the choice is worth `(B, 1 + n)`, n = 1 first, and the mean of what its own would be."""
    worth, ceilings = {}, {}
    for name, of_all in lists.items():
        of_score = [expected_best(lists[CHOOSES][prompt], [1, *sizes], of_all[prompt]) for prompt in used]
        worth[name] = np.stack(of_score)
        ceilings[name] = np.mean([expected_best(of_all[prompt], sizes) for prompt in used], axis=0)
    return worth, ceilings


def _mean_kl(
    scores: Sequence[Floats], logprobs: Sequence[ArrayLike], used: Sequence[int], sizes: Sequence[int]
) -> list[float]:
    def of_prompt(n: int, prompt: int) -> float:
        return float(choice_probabilities(scores[prompt], [n])[0] @ kl_of_choice(n, logprobs[prompt]))

    return [float(np.mean([of_prompt(n, prompt) for prompt in used])) for n in sizes]


def _rows(
    sizes: Sequence[int],
    worth: Mapping[str, Floats],
    ceilings: Mapping[str, Floats],
) -> list[dict[str, Any]]:
    rows = []
    for place, n in enumerate(sizes, start=1):
        row: dict[str, Any] = {"n": n, "prompts": len(worth[CHOOSES])}
        for name, values in worth.items():
            for key, column in ((name, values[:, place]), (f"{name}_gain", values[:, place] - values[:, 0])):
                row[key], row[f"{key}_ci95"] = mean_with_interval(column)
            if name != CHOOSES:
                row[f"{name}_ceiling"] = float(ceilings[name][place - 1])
        rows.append(row)
    return rows


# --- to be read ------------------------------------------------------------------------------------------


def curve_table(curve: Sequence[Mapping[str, Any]]) -> str:
    """The curve as lines of text: n, KL and, of every series, its value with the interval of its gain over n = 1."""
    names, sampled = series_of(curve), "kl_bound" in curve[0]
    heads = ["n", *(["KL <="] if sampled else []), *names]
    lines = [
        [f"{row['n']}", *([f"{row['kl_bound']:.2f}"] if sampled else []), *(_cell(row, name) for name in names)]
        for row in curve
    ]
    widths = [max(len(line[column]) for line in [heads, *lines]) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in [heads, *lines]
    )


def _cell(row: Mapping[str, Any], name: str) -> str:
    interval = row[f"{name}_gain_ci95"]
    gain = "" if interval is None or row["n"] == 1 else f" (gain {interval[0]:+.2f} to {interval[1]:+.2f})"
    return f"{row[name]:.3f}{gain}"


def series_of(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of what a curve shows: `score`, then the judges."""
    return [key.removesuffix("_gain") for key in curve[0] if key.endswith("_gain")]


def over_optimized(curve: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """The n at which a judge's mean is highest, where that is not the last one; `None` where it still rises.

    It is what the means say. A fall that is small beside the intervals may be chance.
    """
    values = [row[name] for row in curve]
    best = max(range(len(values)), key=lambda place: (values[place], place))
    return None if best == len(values) - 1 else int(curve[best]["n"])


def remarks(curve: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the curve says of over-optimization, one sentence for each judge."""
    said = []
    for name in series_of(curve)[1:]:
        best, last = over_optimized(curve, name), curve[-1]
        if best is None:
            interval = last[f"{name}_gain_ci95"]
            sure = "" if interval is not None and interval[0] > 0 else ", a gain that may be chance"
            said.append(f"{name} is highest at the largest n, {last['n']}{sure}.")
        else:
            said.append(
                f"{name} is highest at n = {best}: more candidates serve the score alone, so far as means tell."
            )
    return said


def curve_metrics(curve: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Flat figures of a curve: its last row, and what a single sample is worth as `<name>_of_one`."""
    last = {("curve_prompts" if key == "prompts" else key): value for key, value in curve[-1].items()}
    return last | {f"{name}_of_one": last[name] - last[f"{name}_gain"] for name in series_of(curve)}


def draw_curve(curve: Sequence[Mapping[str, Any]], path: str | Path, titles: Mapping[str, str] | None = None) -> Path:
    """Draw every series over n, side by side and each on its own scale, with 95% intervals, as PNG.

    Above each panel stands the name of the series, or the title that it is given.
    """
    from matplotlib.ticker import MaxNLocator

    from rlhf_recipes.figures import COLORS, MUTED, SERIES, draw_png

    names, sampled = series_of(curve), "kl_bound" in curve[0]
    sizes = [row["n"] for row in curve]

    def paint_one(axes: "Axes", name: str) -> None:
        color = COLORS[SERIES[0 if name == CHOOSES else 1]]
        if all(row[f"{name}_ci95"] for row in curve):
            low, high = zip(*(row[f"{name}_ci95"] for row in curve), strict=True)
            axes.fill_between(sizes, low, high, color=color, alpha=0.18, linewidth=0)
        axes.plot(sizes, [row[name] for row in curve], color=color, marker="o", markersize=4.5)
        if f"{name}_ceiling" in curve[0]:
            ceiling = [row[f"{name}_ceiling"] for row in curve]
            axes.plot(sizes, ceiling, color=COLORS[MUTED], linestyle=(0, (3, 2)), linewidth=1.2)
            said = "if it chose itself"
            axes.annotate(said, (sizes[-1], ceiling[-1]), (-4, 4), textcoords="offset points", ha="right",
                          fontsize=8.5, color=COLORS[MUTED])  # fmt: skip
        axes.set_title((titles or {}).get(name, name), loc="left", fontsize=10.5, fontweight="bold")
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [f"{row['n']}\n{row['kl_bound']:.2f}" if sampled else f"{row['n']}" for row in curve])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("n, and the most nats of KL" if sampled else "n")

    def paint(canvas: "Figure") -> None:
        panels = canvas.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(panels, names, strict=True):
            paint_one(axes, name)

    return draw_png(path, (max(4.4, 3.7 * len(names)), 3.2), paint)
