"""How far raters agree, and how good a model trained and measured on their votes can look at best.

    python -m rlhf_recipes.data.raters.agreement starter/movie-ratings/train.jsonl

| key | meaning |
|---|---|
| `texts`, `votes` | how many there are; `votes_per_text_min`, `_mean`, `_max` |
| `alpha_nominal`, `alpha_ordinal`, `alpha_interval` | Krippendorff's alpha: of one vote; 1 agreement, 0 chance |
| `alpha_interval_ci95` | its 95% interval, were texts drawn anew |
| `icc_1`, `icc_k` | share of variance that is the texts': of one vote, and of the mean of a text's votes |
| `split_half` | correlation of the means of two halves of each text's votes |
| `split_half_reliability` | the same for the mean of all votes (Spearman and Brown) |
| `correlation_ceiling` | greatest correlation with the mean rating that can be expected of the truth itself |
| `pairwise_ceiling` | share of pairs that the truth would put in the order of the mean ratings |
| `single_rater_accuracy` | the same share for one rater against the mean of the others |
| `raters_for_<r>` | raters for a text that make the mean rating's reliability r |
| `cohen_kappa`, `rater_pairs` | mean over pairs of raters, and their number; only where raters have names |

Rules of thumb for alpha such as 0.8 and 0.667 (Krippendorff 2004, section 11.4) are for a single vote that decides. A
reward model learns from means of many, so reliability of the mean and the ceilings say more about it.
"""

import argparse
import json
import math
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.data.pairs import chunks, compare_all
from rlhf_recipes.data.raters.coefficients import alpha_interval, alpha_of, pairwise_kappas, value_counts
from rlhf_recipes.data.raters.votes import RatingModel, Votes, normal_order, numeric_votes
from rlhf_recipes.statistics import correlation, numbers

# --- reliability -----------------------------------------------------------------------------------------


def spearman_brown(reliability: float, factor: float) -> float:
    """Reliability of a mean of `factor` times as many votes: `f r / (1 + (f - 1) r)` (Spearman 1910, Brown 1910)."""
    return factor * reliability / (1 + (factor - 1) * reliability)


def raters_needed(reliability_of_one: float, wanted: float) -> int:
    """The least number of votes for a text whose mean has the reliability `wanted`: `w (1 - r) / (r (1 - w))`."""
    if not 0 < reliability_of_one < 1 or not 0 < wanted < 1:
        raise ValueError(
            f"The reliability of one vote is {reliability_of_one:g} and that wanted {wanted:g}; both must lie between "
            "0 and 1."
        )
    exact = wanted * (1 - reliability_of_one) / (reliability_of_one * (1 - wanted))
    return max(1, math.ceil(exact - 1e-9))


def split_half(votes: Votes, splits: int = 100, seed: int = 0) -> tuple[float, float]:
    """Correlation of the means of two random halves of each text's votes, and reliability of the mean of all.

    Each text with n votes gives `n // 2` to either half; of an odd number one sits out. Pearson's correlation is
    averaged over the splits, and stepped up from the half to all votes by [`spearman_brown`], with the mean number of
    votes over that of a half as the factor (2 where all numbers are even).

    Texts with fewer than two votes are left out.

    Raises:
        `ValueError`: if fewer than two texts have two votes, or the half means do not vary.
    """
    series = [of_text for of_text in numeric_votes(votes) if len(of_text) > 1]
    if len(series) < 2 or splits < 1:
        raise ValueError(f"{len(series)} texts have two votes or more, and splits is {splits}; give 2 texts, 1 split.")
    counts = np.array([len(of_text) for of_text in series])
    half = counts // 2
    padded = np.zeros((len(series), counts.max()))
    given = np.arange(counts.max()) < counts[:, None]
    padded[given] = np.concatenate(series)
    generator = np.random.default_rng(seed)
    correlations = []
    for _ in range(splits):
        order = np.argsort(np.where(given, generator.random(given.shape), 2.0), axis=1)
        sums = np.cumsum(np.take_along_axis(padded, order, axis=1), axis=1)
        rows = np.arange(len(series))
        first, both = sums[rows, half - 1], sums[rows, 2 * half - 1]
        a, b = first / half, (both - first) / half
        correlations.append(correlation(a, b))
    if np.isnan(correlations).all():
        raise ValueError("All texts have the same mean votes in every half, so halves cannot be correlated.")
    mean = float(np.nanmean(correlations))
    return mean, spearman_brown(mean, float(counts.mean() / half.mean()))


# --- ceilings --------------------------------------------------------------------------------------------


def correlation_ceiling(reliability: float) -> float:
    """The correlation of the truth with ratings of this reliability, `sqrt(r)` (Spearman 1904); 0 below 0.

    No model can be expected to correlate more with the mean rating. A measured correlation over the ceiling estimates
    the correlation with the truth.
    """
    return math.sqrt(max(0.0, reliability))


def pairwise_ceiling(votes: Votes, min_gap: float = 0.5, model: RatingModel | None = None) -> float:
    """Share of pairs, `min_gap` apart in mean rating, that the truth is expected to put in the same order.

    The mean over these pairs of `P(the higher rated is truly better | votes)` under [`RatingModel`]: what a perfect
    model would score on [`all_pairs_accuracy`], because the means by which it is judged err too. The model's normal
    votes make it a little too high: where it can be checked, on how often half of the votes of the movie ratings order
    the other half's pairs, it says 0.970 for 0.964.

    Raises:
        `ValueError`: as [`RatingModel.fit`], and if no pair is far enough apart.
    """
    fitted = model or RatingModel.fit(votes)
    given = [of_text for of_text in numeric_votes(votes) if len(of_text)]
    averages = np.array([of_text.mean() for of_text in given])
    means, variances = fitted.posterior(given)
    right = asked = 0.0
    for rows in chunks(len(given)):
        first, second = np.nonzero(averages[rows, None] - averages[None, :] >= max(min_gap, 1e-9) - 1e-10)
        first += rows.start
        right += normal_order(means[first] - means[second], variances[first] + variances[second]).sum()
        asked += len(first)
    if not asked:
        raise ValueError(f"No two of {len(given)} texts are {min_gap:g} or more apart, so no pair can be asked.")
    return float(right / asked)


# --- all of it -------------------------------------------------------------------------------------------


def agreement_metrics(
    votes: Votes,
    raters: Sequence[Sequence[Hashable]] | None = None,
    min_gap: float = 0.5,
    wanted: Sequence[float] = (0.8, 0.9),
    seed: int = 0,
) -> dict[str, Any]:
    """Measure the agreement of numeric votes: the keys of the table above.

    Args:
        votes (`Sequence[Sequence[float]]` of length N), raters (`Sequence[Sequence]`, *optional*):
            As in `rlhf_recipes.data.raters.votes`.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference in mean rating of the pairs asked.
        wanted (`Sequence[float]`, *optional*): Reliabilities for `raters_for_<r>`.
        seed (`int`, *optional*, defaults to 0): Of the halves of `split_half`.

    Raises:
        `ValueError`: if nothing can be measured: fewer than two texts, no text with two votes, all votes equal.
    """
    series = numeric_votes(votes)
    given = [of_text for of_text in series if len(of_text)]
    model = RatingModel.fit(series)
    lists = [of_text.tolist() for of_text in given]
    counts = [len(of_text) for of_text in given]
    table, values = value_counts(lists, "interval", None)
    half, reliability = split_half(given, seed=seed)
    metrics: dict[str, Any] = {
        "texts": len(given),
        "votes": sum(counts),
        "votes_per_text_min": min(counts),
        "votes_per_text_mean": sum(counts) / len(counts),
        "votes_per_text_max": max(counts),
        **{f"alpha_{level}": alpha_of(table, values, level) for level in ("nominal", "ordinal", "interval")},
        "alpha_interval_ci95": alpha_interval(table, np.array(values, dtype=np.float64)),
        "icc_1": model.reliability(),
        "icc_k": model.reliability(sum(counts) / len(counts)),
        "split_half": half,
        "split_half_reliability": reliability,
        "correlation_ceiling": correlation_ceiling(reliability),
        "pairwise_ceiling": pairwise_ceiling(given, min_gap, model),
        "single_rater_accuracy": single_rater_accuracy(lists, min_gap),
    }
    if 0 < model.reliability() < 1:
        metrics |= {f"raters_for_{share:g}": raters_needed(model.reliability(), share) for share in wanted}
    if raters is not None:
        kappas = pairwise_kappas(votes, raters, "quadratic")
        metrics |= {"cohen_kappa": float(np.mean([*kappas.values()])), "rater_pairs": len(kappas)}
    return metrics


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_recipes.data.raters.agreement", description="How far the raters of a file agree, as JSON."
    )
    parser.add_argument("file", type=Path, help="JSONL, a row for each text")
    parser.add_argument("--votes", default="votes", help="column with a list of numbers (default: votes)")
    parser.add_argument("--raters", help="column with a list of the raters' names (default: votes have no names)")
    parser.add_argument("--min_gap", type=float, default=0.5, help="of the pairs asked (default: 0.5)")
    parser.add_argument("--wanted", type=float, nargs="+", default=[0.8, 0.9], help="reliabilities to plan raters for")
    args = parser.parse_args(argv)
    try:
        rows = [json.loads(line) for line in args.file.read_text(encoding="utf-8").splitlines() if line.strip()]
        columns = [_column(rows, name) if name else None for name in (args.votes, args.raters)]
        metrics = agreement_metrics(columns[0] or [], columns[1], args.min_gap, args.wanted)
    except (OSError, ValueError, ImportError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(json.dumps(metrics, indent=2) + "\n")
    return 0


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    missing = [row for row, values in enumerate(rows) if name not in values]
    if missing:
        raise ValueError(f"Row {missing[0]} has no column {name!r}; it has {', '.join(rows[missing[0]])}.")
    return [values[name] for values in rows]


def all_pairs_accuracy(scores: ArrayLike, ratings: ArrayLike, min_gap: float = 0.5) -> tuple[float, int]:
    """Share of all pairs of texts, at least `min_gap` apart in rating, that the scores put in the same order.

    Equal scores of a pair count as half right, and equal ratings are never asked.

    Returns:
        `tuple[float, int]`: the share, and the number of pairs.

    Raises:
        `ValueError`: if lengths differ, a number is not finite, or no pair is far enough apart.
    """
    found = compare_all(scores, ratings, min_gap)
    if not found.pairs:
        raise ValueError(
            f"No two of the {len(found.asked)} ratings are {min_gap:g} or more apart, so no pair can be asked."
        )
    return found.share, int(found.pairs)


def all_pairs_interval(
    scores: ArrayLike, ratings: ArrayLike, min_gap: float = 0.5, units: Sequence[Hashable] | None = None
) -> list[float] | None:
    """95% interval of [`all_pairs_accuracy`], were texts drawn anew: each is in many pairs, which are no new texts.

    `units` say what texts hang together by, such as prompts. `None` where no pair is far enough apart.
    """
    return compare_all(scores, ratings, min_gap).interval(units)


def single_rater_accuracy(votes: Sequence[Sequence[float]], min_gap: float = 0.5) -> float:
    """How often one human rater puts a pair in the order in which the others, on average, have it.

    For `j = 0, 1, ...` the `j`-th vote of each text is taken for one rater's, and left out of that text's mean. Of all
    pairs whose remaining means are at least `min_gap` apart, those count as right in which the two votes differ in
    the same direction, and as half right in which they are equal. The pairs of all `j` are counted together.

    Votes that carry no rater's name need not come from one person at one position, so two votes are compared as of two
    people with the same scale. Texts with fewer votes than `j + 1` sit that round out; a single vote has no others.

    Raises:
        `ValueError`: if no pair of texts with two votes or more is far enough apart.
    """
    series = [numbers(of_text, "votes") for of_text in votes]
    right = total = 0.0
    for position in range(max(map(len, series), default=0)):
        voted = [of_text for of_text in series if len(of_text) > max(position, 1)]
        one = np.array([of_text[position] for of_text in voted])
        others = np.array([(of_text.sum() - of_text[position]) / (len(of_text) - 1) for of_text in voted])
        found = compare_all(one, others, min_gap)
        right, total = right + found.right.sum(), total + found.asked.sum()
    if total == 0:
        raise ValueError(
            f"No two of {len(series)} texts are {min_gap:g} or more apart in the mean of all votes but one, so one "
            "rater cannot be compared with the others. Two votes for a text are the least."
        )
    return float(right / total)


if __name__ == "__main__":
    sys.exit(main())
