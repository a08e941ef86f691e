"""From ratings to pairs, and how well scores put pairs in order: numpy alone, exact, and the same on every machine.

Which of two texts is better is asked of every two texts whose mean ratings are at least `min_gap` apart. A random
sample of pairs would be noisier, and an interval that treats pairs as independent would be too narrow, since one text
is in many of them: the bootstrap here draws texts.
"""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

logger = logging.getLogger(__name__)

# 2.3 - 1.8 is 0.4999999999999998: a gap that equals `min_gap` on paper must count.
TOLERANCE = 1e-9
CHUNK = 1024  # rows of the n x n comparison that are in memory at a time
REPAIR_ROUNDS = 100


def draw_pairs(
    texts: Sequence[str], ratings: ArrayLike, passes: int = 1, min_gap: float = 0.5, seed: int = 0
) -> NDArray[np.int64]:
    """Draw pairs of texts such that each pass uses every text once.

    A pass shuffles the texts and takes them two by two. Where two are closer than `min_gap`, partners are exchanged
    with other pairs until no exchange helps. What is left out of a pass is the odd text, and texts for which no
    partner is far enough; the latter are logged. The order of the rows does not matter: the same texts and ratings
    give the same pairs for one seed.

    Args:
        texts (`Sequence[str]` of length N): What identifies each row.
        ratings (`ArrayLike` of shape `(N,)`): Mean rating of each, higher is better.
        passes (`int`, *optional*, defaults to 1): How often each text is used, each time with a new partner.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two ratings. Ties are never paired.
        seed (`int`, *optional*, defaults to 0): Of the shuffle.

    Returns:
        `numpy.ndarray` of shape `(M, 2)`: row numbers of the chosen (higher rated) and of the rejected text. `M` is at
        most `passes * (N // 2)`, and pass comes after pass.

    Raises:
        `ValueError`: if `passes` is below 1 or `min_gap` below 0, ratings do not match the texts or are not finite, or
            no two ratings are far enough apart.
    """
    y = _finite(ratings, "ratings")
    if len(texts) != len(y):
        raise ValueError(f"There are {len(texts)} texts and {len(y)} ratings; give one of each for every row.")
    if passes < 1 or min_gap < 0:
        raise ValueError(f"passes is {passes} and min_gap {min_gap}; give at least 1 pass and a gap of 0 or more.")
    if not len(y) or not _far_enough(y.max() - y.min(), min_gap):
        spread = f"all ratings lie between {y.min():g} and {y.max():g}" if len(y) else "there are no rows"
        raise ValueError(
            f"No pairs can be drawn: {spread}, so no two of {len(y)} texts are {min_gap:g} or more apart. "
            "Lower min_gap, or look at the ratings (ties say nothing about which text is better)."
        )
    generator = np.random.default_rng(seed)
    canonical = np.array(sorted(range(len(y)), key=lambda row: (texts[row], y[row])))
    drawn = [_draw_pass(y, canonical[generator.permutation(len(y))], min_gap, generator) for _ in range(passes)]
    pairs = np.concatenate(drawn)
    without_partner = passes * (len(y) // 2) - len(pairs)
    if without_partner:
        logger.warning(
            "%d of %d pairs could not be drawn: too few texts are %g or more apart.",
            *(without_partner, passes * (len(y) // 2), min_gap),
        )
    return pairs


def preferences(
    rows: Mapping[str, Sequence[Any]], passes: int = 1, min_gap: float = 0.5, seed: int = 0
) -> dict[str, list[Any]]:
    """Turn ratings into rows that compare two completions of one prompt, for losses such as DPO's.

    Pairs are drawn as [`draw_pairs`] draws them, for each prompt by itself. Without prompts every two texts may meet,
    and the prompt of each pair is empty: which of two whole texts is better.

    Args:
        rows (`Mapping[str, Sequence]`):
            N ratings: the columns `completion` and `score`, and perhaps `prompt`. Text, or messages.
        passes, min_gap, seed: As in [`draw_pairs`].

    Returns:
        `dict[str, list]`: columns `prompt`, `chosen` and `rejected`, of M rows each.

    Raises:
        `ValueError`: as [`draw_pairs`], and if no prompt has two completions that are far enough apart.
    """
    completions, y = rows["completion"], _finite(rows["score"], "ratings")
    prompts = rows.get("prompt", [""] * len(y))
    rows_of: dict[str, list[int]] = {}
    for row, prompt in enumerate(prompts):
        rows_of.setdefault(json.dumps(prompt), []).append(row)
    groups = [np.array(of_prompt) for of_prompt in rows_of.values()]
    usable = [group for group in groups if _far_enough(np.ptp(y[group]), min_gap)]
    if not usable and len(groups) > 1:
        raise ValueError(
            f"No pairs can be drawn: none of {len(groups)} prompts has two completions that are {min_gap:g} or more "
            "apart. Lower min_gap, or give two completions or more for each prompt."
        )
    if len(usable) < len(groups):
        logger.info("%d of %d prompts have no two ratings far enough apart.", len(groups) - len(usable), len(groups))
    keys = [json.dumps(completion) for completion in completions]
    pairs = [
        (group[chosen], group[rejected])
        for group in usable or groups  # of a single group, `draw_pairs` says what is wrong with it
        for chosen, rejected in draw_pairs([keys[row] for row in group], y[group], passes, min_gap, seed)
    ]
    return {
        "prompt": [prompts[chosen] for chosen, _ in pairs],
        "chosen": [completions[chosen] for chosen, _ in pairs],
        "rejected": [completions[rejected] for _, rejected in pairs],
    }


def _draw_pass(
    ratings: NDArray[np.float64], order: NDArray[np.int64], min_gap: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    pairs = order[: len(order) // 2 * 2].reshape(-1, 2).copy()

    def usable(candidates: NDArray[np.int64]) -> NDArray[np.bool_]:
        return _far_enough(np.abs(ratings[candidates[:, 0]] - ratings[candidates[:, 1]]), min_gap)

    for _ in range(REPAIR_ROUNDS):
        if usable(pairs).all():
            break
        # Couple the pairs at random, and let couples exchange partners where that leaves fewer that are too close.
        shuffled = generator.permutation(len(pairs))[: len(pairs) // 2 * 2].reshape(-1, 2)
        first, second = pairs[shuffled[:, 0]], pairs[shuffled[:, 1]]
        new_first = np.stack([first[:, 0], second[:, 1]], axis=1)
        new_second = np.stack([second[:, 0], first[:, 1]], axis=1)
        gain = usable(new_first).astype(int) + usable(new_second) - usable(first) - usable(second)
        better = gain > 0
        pairs[shuffled[better, 0]], pairs[shuffled[better, 1]] = new_first[better], new_second[better]
    pairs = pairs[usable(pairs)]
    swap = ratings[pairs[:, 0]] < ratings[pairs[:, 1]]
    pairs[swap] = pairs[swap, ::-1]
    return pairs


def all_pairs_accuracy(scores: ArrayLike, ratings: ArrayLike, min_gap: float = 0.5) -> tuple[float, int]:
    """Share of all pairs of texts, at least `min_gap` apart in rating, that the scores put in the same order.

    Args:
        scores (`ArrayLike` of shape `(N,)`): Of each text; equal scores of a pair count as half right.
        ratings (`ArrayLike` of shape `(N,)`): What people say.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two ratings; equal ratings are never asked.

    Returns:
        `tuple[float, int]`: the share, and the number of pairs.

    Raises:
        `ValueError`: if lengths differ, a number is not finite, or no pair is far enough apart.
    """
    s, y = _matching(scores, ratings)
    right, total = _count_right(s, y, min_gap, np.ones((1, len(y))))
    if total[0] == 0:
        raise ValueError(f"No two of the {len(y)} ratings are {min_gap:g} or more apart, so no pair can be asked.")
    return float(right[0] / total[0]), int(total[0])


def all_pairs_interval(
    scores: ArrayLike, ratings: ArrayLike, min_gap: float = 0.5, samples: int = 1000, seed: int = 0
) -> list[float]:
    """Interval of [`all_pairs_accuracy`] that holds 95 of 100 bootstrap samples of the texts.

    Texts are drawn with replacement and all pairs of the drawn texts compared (percentile bootstrap, Efron 1979). The
    cost grows with `samples * N * N`: about a second for 1,000 texts.

    Returns:
        `list[float]`: the 2.5th and the 97.5th percentile.
    """
    s, y = _matching(scores, ratings)
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(y), np.full(len(y), 1 / len(y)), size=samples)
    right, total = _count_right(s, y, min_gap, weights)
    return percentile_interval(right[total > 0] / total[total > 0])


def percentile_interval(values: ArrayLike) -> list[float]:
    """The 2.5th and the 97.5th percentile of bootstrap values."""
    return [float(bound) for bound in np.percentile(np.asarray(values, dtype=np.float64), [2.5, 97.5])]


def single_rater_accuracy(votes: Sequence[Sequence[float]], min_gap: float = 0.5) -> float:
    """How often one human rater puts a pair in the order in which the others, on average, have it.

    For `j = 0, 1, ...` the `j`-th vote of each text is taken for one rater's, and left out of that text's mean. Of all
    pairs whose remaining means are at least `min_gap` apart, those count as right in which the two votes differ in
    the same direction, and as half right in which they are equal. The pairs of all `j` are counted together.

    Votes that carry no rater's name need not come from one person at one position, so two votes are compared as of two
    people with the same scale. Texts with fewer votes than `j + 1` sit that round out; a single vote has no others.

    Args:
        votes (`Sequence[Sequence[float]]` of length N): The votes of each text, in the order in which they came.
        min_gap (`float`, *optional*, defaults to 0.5): As in [`all_pairs_accuracy`].

    Raises:
        `ValueError`: if no pair of texts with two votes or more is far enough apart.
    """
    series = [_finite(of_text, "votes") for of_text in votes]
    right = total = 0.0
    for position in range(max(map(len, series), default=0)):
        voted = [of_text for of_text in series if len(of_text) > max(position, 1)]
        one = np.array([of_text[position] for of_text in voted])
        others = np.array([(of_text.sum() - of_text[position]) / (len(of_text) - 1) for of_text in voted])
        counts = _count_right(one, others, min_gap, np.ones((1, len(voted))))
        right, total = right + counts[0][0], total + counts[1][0]
    if total == 0:
        raise ValueError(
            f"No two of {len(series)} texts are {min_gap:g} or more apart in the mean of all votes but one, so one "
            "rater cannot be compared with the others. Two votes for a text are the least."
        )
    return float(right / total)


def _count_right(
    scores: NDArray[np.float64], ratings: NDArray[np.float64], min_gap: float, weights: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Pairs in the right order and pairs in all, each `(S,)`; in sample `s`, text `i` stands `weights[s, i]` times."""
    copies = weights.astype(np.float32)  # (S, N)
    right, total = np.zeros(len(copies)), np.zeros(len(copies))
    for rows in _chunks(len(ratings)):
        # A pair is met once: in the row of its better text.
        asked = _far_enough(ratings[rows, None] - ratings[None, :], min_gap).astype(np.float32)  # (c, N)
        credit = asked * (0.5 + 0.5 * np.sign(scores[rows, None] - scores[None, :])).astype(np.float32)
        right += ((copies @ credit.T) * copies[:, rows]).sum(axis=1, dtype=np.float64)
        total += ((copies @ asked.T) * copies[:, rows]).sum(axis=1, dtype=np.float64)
    return right, total


def _chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, CHUNK):
        yield slice(start, min(start + CHUNK, length))


def _far_enough(gap: ArrayLike, min_gap: float) -> NDArray[np.bool_]:
    return np.asarray(gap) >= max(min_gap - TOLERANCE, TOLERANCE)


def _matching(scores: ArrayLike, ratings: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    s, y = _finite(scores, "scores"), _finite(ratings, "ratings")
    if s.shape != y.shape:
        raise ValueError(f"There are {len(s)} scores and {len(y)} ratings; give one of each for every text.")
    return s, y


def _finite(values: ArrayLike, what: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"The {what} must be a list of finite numbers; among them is one that is missing or not.")
    return array
