"""From ratings to pairs, and how well scores put pairs in order: numpy alone, exact, and the same on every machine.

Which of two texts is better is asked of every two texts whose mean ratings are at least `min_gap` apart. A random
sample of pairs would be noisier, and an interval that treats pairs as independent would be too narrow, since one text
is in many of them: intervals here are over texts.
"""

import json
import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.statistics import Floats, Units, numbers, same_length

logger = logging.getLogger(__name__)

# 2.3 - 1.8 is 0.4999999999999998: a gap that equals `min_gap` on paper must count.
TOLERANCE = 1e-9
ROWS_AT_ONCE = 1024  # rows of the n x n comparison that are in memory at a time
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
    y = numbers(ratings, "ratings")
    same_length(texts=texts, ratings=y)
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

    Raises:
        `ValueError`: as [`draw_pairs`], and if no prompt has two completions that are far enough apart.
    """
    completions, y = rows["completion"], numbers(rows["score"], "ratings")
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
    ratings: Floats, order: NDArray[np.int64], min_gap: float, generator: np.random.Generator
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


@dataclass(frozen=True)
class Comparison:
    """All pairs of N texts that are far enough apart, by what they have to do with each text."""

    right: Floats  # (N,)  of the pairs with this text, how many the scores put in order; equal scores count half
    asked: Floats  # (N,)  how many pairs there are with it
    squares: float  # sum over pairs of the squared credit (1, 1/4 or 0)

    def __sub__(self, other: "Comparison") -> "Comparison":
        """Without the pairs that another one has, too."""
        return Comparison(self.right - other.right, self.asked - other.asked, self.squares - other.squares)

    @property
    def pairs(self) -> float:
        return float(self.asked.sum()) / 2

    @property
    def share(self) -> float:
        """Of the pairs that are in order."""
        return float(self.right.sum()) / 2 / self.pairs

    @property
    def influences(self) -> Floats:
        """How far each text moves the share, `(N,)`."""
        return (self.right - self.share * self.asked) / self.pairs

    def interval(self, units: Sequence[Hashable] | None = None) -> list[float] | None:
        """95% interval of the share; `None` without pairs. `units` say which texts hang together."""
        if not self.pairs:
            return None
        own = (self.squares - self.share**2 * self.pairs) / self.pairs**2
        together = Units.of(len(self.asked), units)
        return together.spread_of_pairs(self.influences, self.asked, own).bounded(self.share)


def compare_all(scores: ArrayLike, ratings: ArrayLike, min_gap: float) -> Comparison:
    """Every two texts at least `min_gap` apart in rating, and whether the scores put them in the same order.

    Raises:
        `ValueError`: if lengths differ or a number is not finite.
    """
    s, y = numbers(scores, "scores"), numbers(ratings, "ratings")
    same_length(scores=s, ratings=y)
    right, asked, squares = np.zeros(len(y)), np.zeros(len(y)), 0.0
    for rows in chunks(len(y)):
        # A pair is met once: in the row of its better text.
        apart = _far_enough(y[rows, None] - y[None, :], min_gap)  # (c, N)
        credit = apart * (0.5 + 0.5 * np.sign(s[rows, None] - s[None, :]))
        right[rows] += credit.sum(axis=1)
        asked[rows] += apart.sum(axis=1)
        right += credit.sum(axis=0)
        asked += apart.sum(axis=0)
        squares += float((credit**2).sum())
    return Comparison(right, asked, squares)


def _far_enough(gap: ArrayLike, min_gap: float) -> NDArray[np.bool_]:
    return np.asarray(gap) >= max(min_gap - TOLERANCE, TOLERANCE)


def chunks(length: int) -> Iterator[slice]:
    for start in range(0, length, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, length))
