"""Feedback of any format as one thing to measure on: texts, ratings if there are any, and pairs in people's order."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from datasets import Dataset

from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.data.feedback.labels import clicks_to_unpaired
from rlhf_recipes.data.pairs import TOLERANCE
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.statistics import Floats, Ints, rows_by_key
from rlhf_recipes.texts import Text

RATED = {"ratings": "score", "unpaired": "label", "dwell": "dwell_seconds"}
LISTS = ("rankings", "best_worst")
PAIRS = ("pairs", "votes")
MOST_PAIRS = 5000  # pairs of rated texts that are looked at: drawn from all, more would only take longer


@dataclass(frozen=True)
class Material:
    """Feedback of any kind as texts, and pairs of them of which people prefer the first.

    Args:
        prompts, completions (`list` of length N): The texts.
        ratings (`numpy.ndarray` of shape `(N,)`, *optional*): What people say of each; of lists, minus the rank.
        pairs (`numpy.ndarray` of shape `(M, 2)`): Row numbers: the better text, the other.
        gaps (`numpy.ndarray` of shape `(M,)`, *optional*): By how much it is better.
        units (`list` of length N): What is independent: texts, prompts or lists.
        within (`bool`): Whether ratings compare texts of one unit only.
        places (`numpy.ndarray` of shape `(N,)`, *optional*): Where each text stood in its list, from 0.
        votes (`list`, *optional*): All votes for each text.
        groups (`list` of length N, *optional*): The group of each text.
    """

    prompts: list[Text]
    completions: list[Text]
    ratings: Floats | None
    pairs: Ints
    gaps: Floats | None
    units: list[Hashable]
    within: bool = False
    places: Floats | None = None
    votes: list[Any] | None = None
    groups: list[Hashable] | None = None

    @classmethod
    def of(
        cls, dataset: Dataset, kind: Kind, group_column: str | None = None, min_gap: float = 0.5, seed: int = 0
    ) -> "Material":
        """Rows of a format, clean as [`~rlhf_recipes.data.feedback.read.normalize`] gives them.

        Raises:
            `ValueError`: if the kind cannot be measured, there is no such group column, or no pair can be made.
        """
        if group_column is not None and group_column not in dataset.column_names:
            columns = ", ".join(dataset.column_names)
            raise ValueError(f"There is no column {group_column!r} to tell groups. The columns are {columns}.")
        if kind == "clicks":
            dataset, kind = clicks_to_unpaired(dataset), "unpaired"
        groups = None if group_column is None else list(dataset[group_column])
        if kind in PAIRS:
            return cls._of_pairs(dataset, kind, groups)
        if kind in LISTS:
            return cls._of_lists(dataset, kind, groups, seed)
        if kind in RATED:
            return cls._of_ratings(dataset, kind, groups, min_gap, seed)
        raise ValueError(
            f"Bias cannot be measured on {kind}. It can on {', '.join((*PAIRS, *RATED, 'clicks', *LISTS))}; "
            "`rlhf_recipes.data.feedback.convert` makes ratings of objectives and of steps."
        )

    @classmethod
    def _of_pairs(cls, dataset: Dataset, kind: Kind, groups: list[Hashable] | None) -> "Material":
        chosen, rejected = Texts.of(dataset, "chosen"), Texts.of(dataset, "rejected")
        n = len(dataset)
        if kind == "votes":
            votes = np.array([dataset["chosen_votes"], dataset["rejected_votes"]], dtype=np.float64)
            share = votes[0] / votes.sum(axis=0)
        else:
            share = _column(dataset, "target", n, missing=1.0)
        gaps = _column(dataset, "margin", n) if "margin" in dataset.column_names else np.abs(2 * share - 1)
        # Without a margin for some of the pairs all are taken for alike.
        known = bool(np.isfinite(gaps).all()) and np.ptp(gaps) > 0
        said = share != 0.5
        if not said.any():
            raise ValueError(f"People are divided evenly on all {n} pairs, so nothing can be measured on them.")
        pairs = np.stack([np.arange(n), n + np.arange(n)], axis=1)
        pairs[share < 0.5] = pairs[share < 0.5, ::-1]
        prompts = [str(prompt) for prompt in chosen.prompts]
        units: list[Hashable] = [*prompts] if "prompt" in dataset.column_names else [*range(n)]
        return cls(
            [*chosen.prompts, *rejected.prompts],
            [*chosen.completions, *rejected.completions],
            None,
            pairs[said],
            gaps[said] if known else None,
            units * 2,
            groups=groups and groups * 2,
        )

    @classmethod
    def _of_ratings(
        cls, dataset: Dataset, kind: Kind, groups: list[Hashable] | None, min_gap: float, seed: int
    ) -> "Material":
        texts = Texts.of(dataset, "completion")
        ratings = np.array(dataset[RATED[kind]], dtype=np.float64)
        prompts = [str(prompt) for prompt in texts.prompts]
        # Answers to different prompts are compared only where no prompt has two.
        several = "prompt" in dataset.column_names and 1 < len(set(prompts)) < len(prompts)
        units: list[Hashable] = [*prompts] if several else [*range(len(prompts))]
        pools = rows_by_key(units, len(units)) if several else [np.arange(len(units))]
        # The scale of the other kinds is not that of ratings.
        pairs, gaps = _draw_pairs(ratings, pools, min_gap if kind == "ratings" else 0.0, seed)
        votes = list(dataset["votes"]) if kind == "ratings" and "votes" in dataset.column_names else None
        return cls(texts.prompts, texts.completions, ratings, pairs, gaps, units, votes=votes, groups=groups)

    @classmethod
    def _of_lists(cls, dataset: Dataset, kind: Kind, groups: list[Hashable] | None, seed: int) -> "Material":
        lists: list[list[Text]] = list(dataset["completions"])
        if kind == "rankings":
            ratings = -np.array([rank for ranks in dataset["ranks"] for rank in ranks], dtype=np.float64)
        else:
            ratings = np.zeros(sum(map(len, lists)))
            first = np.cumsum([0, *map(len, lists[:-1])])
            ratings[first + np.array(dataset["best"])] = 1.0
            ratings[first + np.array(dataset["worst"])] = -1.0
        units = [number for number, own in enumerate(lists) for _ in own]
        given = list(dataset["prompt"]) if "prompt" in dataset.column_names else [None] * len(lists)
        prompts = [given[unit] or ("" if isinstance(lists[unit][0], str) else []) for unit in units]
        pairs, gaps = _draw_pairs(ratings, rows_by_key(units, len(units)), 0.0, seed)
        places = np.array([float(place) for own in lists for place in range(len(own))])
        of_texts = groups and [groups[unit] for unit in units]
        texts, keys = [text for own in lists for text in own], list[Hashable](units)
        return cls(prompts, texts, ratings, pairs, gaps, keys, True, places, None, of_texts)

    def select(self, rows: Sequence[int]) -> "Material":
        """Some of the texts, and the pairs of which both are among them."""
        place = np.full(len(self.completions), -1)
        place[list(rows)] = np.arange(len(rows))
        kept = (place[self.pairs] >= 0).all(axis=1)
        of_texts: dict[str, Any] = {}
        for name in ("prompts", "completions", "ratings", "units", "places", "votes", "groups"):
            column = getattr(self, name)
            if column is not None:
                some = [column[row] for row in rows]
                of_texts[name] = np.array(some) if isinstance(column, np.ndarray) else some
        gaps = None if self.gaps is None else self.gaps[kept]
        return replace(self, pairs=place[self.pairs[kept]], gaps=gaps, **of_texts)


def _column(dataset: Dataset, name: str, rows: int, missing: float = np.nan) -> Floats:
    values = np.array(list(dataset[name]) if name in dataset.column_names else [None] * rows, dtype=np.float64)
    return np.where(np.isnan(values), missing, values)


def _draw_pairs(ratings: Floats, pools: Sequence[Ints], min_gap: float, seed: int) -> tuple[Ints, Floats]:
    """Pairs of texts of one pool that are far enough apart, the better one first: all, or `MOST_PAIRS` at random.

    Returns:
        `tuple`: row numbers `(M, 2)`, and by how much the first is better `(M,)`.
    """
    generator = np.random.default_rng(seed)
    found = []
    for pool in pools:
        if len(pool) > 2000:  # all pairs of these would not fit into memory
            drawn = generator.integers(len(pool), size=(40 * MOST_PAIRS, 2))
            both = np.unique(np.sort(drawn[drawn[:, 0] != drawn[:, 1]], axis=1), axis=0)
        else:
            both = np.stack(np.triu_indices(len(pool), 1), axis=1)
        both = pool[both]
        gap = np.abs(ratings[both[:, 0]] - ratings[both[:, 1]])
        found.append(both[gap >= max(min_gap - TOLERANCE, TOLERANCE)])
    pairs = np.concatenate(found)
    if not len(pairs):
        raise ValueError(
            f"No two of {len(ratings)} texts that can be compared are {min_gap:g} or more apart in rating. Lower "
            "min_gap, or give several completions for each prompt."
        )
    if len(pairs) > MOST_PAIRS:
        pairs = pairs[np.sort(generator.permutation(len(pairs))[:MOST_PAIRS])]
    swap = ratings[pairs[:, 0]] < ratings[pairs[:, 1]]
    pairs = np.where(swap[:, None], pairs[:, ::-1], pairs)
    return pairs, ratings[pairs[:, 0]] - ratings[pairs[:, 1]]
