"""Whether members of an ensemble that disagree are wrong: accuracy, error and calibration by disagreement.

Everything here takes scores of K members for U texts, `(K, U)`, and pairs of these texts of which people say which is
better. Intervals are 95% intervals over texts, or over rows where texts come in pairs or lists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.reward_modeling.evaluation.comparisons import best_worst_quality
from rlhf_recipes.reward_modeling.evaluation.figures import calibration, pair_probabilities, rating_errors
from rlhf_recipes.reward_modeling.evaluation.metrics import log_loss
from rlhf_recipes.reward_modeling.scored import Scored, score_rows
from rlhf_recipes.statistics import Units
from rlhf_recipes.texts import Text, one_text

Floats = NDArray[np.float64]
Metrics = dict[str, Any]
MOST_TEXTS = 2000  # of which all pairs are made
PAIRS_FOR_ECE = 5000
BLOCK = 100_000  # pairs


@dataclass(frozen=True)
class Read:
    """The texts of one split, each once, and what the members say of them."""

    scored: Scored  # the rows, with places of texts instead of scores
    prompts: list[Text]  # (U,)
    completions: list[Text]  # (U,)
    raw: Floats  # (K, U)  scores as the models give them

    @property
    def places(self) -> list[list[int]]:
        """For each row the places of its texts."""
        return [[int(place) for place in row] for row in self.scored.scores]

    def texts(self) -> list[str]:
        """As plain text. `(U,)`"""
        return list(map(one_text, self.prompts, self.completions))

    def by_row(self, values: Floats) -> Floats:
        """Of rows with one text, the value of each, out of `(U,)`."""
        return np.array([values[row[0]] for row in self.places])

    def with_scores(self, scores: Floats) -> Scored:
        """The rows with scores out of `(U,)`."""
        own = [[float(scores[place]) for place in row] for row in self.places]
        known = self.scored
        return Scored(known.kind, known.dataset, own, known.prompts, known.completions, {}, known.unscored)


def read_rows(members: Any, rows: Dataset, kind: Kind) -> Read:
    """Score every text of feedback (not steps) once; `members` go from prompts and completions to `(K, U)`."""
    asked: list[tuple[list[Text], list[Text]]] = []

    def places(prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        asked.append((list(prompts), list(completions)))
        return [float(place) for place in range(len(prompts))]

    scored = score_rows(places, rows, kind)
    prompts, completions = asked[0]
    return Read(scored, prompts, completions, np.asarray(members(prompts, completions), dtype=np.float64))


@dataclass(frozen=True)
class Comparisons:
    """P pairs of texts of which people say which is better."""

    better: NDArray[np.int64]  # (P,)  places of the texts
    worse: NDArray[np.int64]  # (P,)
    units: NDArray[np.int64]  # (U,)  what intervals are over: the text itself, or the row that it is in

    def right(self, scores: Floats) -> Floats:
        """1 where the better text has the higher score, 0.5 where both have the same. `(U,) -> (P,)`"""
        return 0.5 + 0.5 * np.sign(scores[self.better] - scores[self.worse])

    def mean(
        self, values: Floats, low: float = 0.0, rows: NDArray[np.bool_] | None = None
    ) -> tuple[float | None, list[float] | None]:
        """Mean of values of pairs, or of those `rows` of the pairs, from `low` to 1, with its interval; `None` without
        a pair."""
        if not len(values):
            return None, None
        sides = np.stack([self.units[self.better], self.units[self.worse]])
        pairs = Units(sides if rows is None else sides[:, rows], np.ones(len(values)))
        mean, influences = pairs.mean(values)
        return mean, pairs.spread(influences).bounded(mean, low)


def comparisons(read: Read, min_gap: float = 0.5) -> Comparisons | None:
    """Which texts people have put in order; `None` for feedback that does not say it.

    Of ratings all pairs at least `min_gap` apart (of 2,000 texts at most, drawn at random), of labels all with
    different labels, of votes the majority's side, of lists all that differ in rank within the list.
    """
    rows, kind, places = read.scored.dataset, read.scored.kind, read.places
    if kind in ("ratings", "unpaired"):
        quality = np.array(rows["score" if kind == "ratings" else "label"], dtype=np.float64)
        gap = max(min_gap if kind == "ratings" else 0.0, 1e-9) - 1e-9
        kept = np.arange(len(quality))
        if len(kept) > MOST_TEXTS:
            kept = np.sort(np.random.default_rng(0).choice(kept, size=MOST_TEXTS, replace=False))
        better, worse = np.nonzero(quality[kept][:, None] - quality[kept][None, :] > gap)
        of_text = np.array([row[0] for row in places])[kept]
        return Comparisons(of_text[better], of_text[worse], np.arange(len(read.prompts))) if len(better) else None
    if kind == "pairs":
        shares = rows["target"] if "target" in rows.column_names else [1.0] * len(rows)
        quality_of = [[0.0, 0.0] if share is None else [share, 1.0 - share] for share in shares]
    elif kind == "votes":
        quality_of = [list(votes) for votes in zip(rows["chosen_votes"], rows["rejected_votes"], strict=True)]
    elif kind == "rankings":
        quality_of = [[-rank for rank in ranks] for ranks in rows["ranks"]]
    elif kind == "best_worst":
        ends = zip(places, rows["best"], rows["worst"], strict=True)
        quality_of = [best_worst_quality(len(row), best, worst) for row, best, worst in ends]
    else:
        return None
    pairs = [
        (row[a], row[b], number)
        for number, (row, own) in enumerate(zip(places, quality_of, strict=True))
        for a in range(len(row))
        for b in range(len(row))
        if own[a] > own[b]
    ]
    if not pairs:
        return None
    table = np.array(pairs)
    units = np.zeros(len(read.prompts), dtype=np.int64)  # a text in several rows belongs to the last
    units[table[:, 0]], units[table[:, 1]] = table[:, 2], table[:, 2]
    return Comparisons(table[:, 0], table[:, 1], units)


def by_disagreement(asked: Comparisons, z: Floats, parts: int = 3) -> Metrics:
    """Accuracy of the mean over pairs, from those on which the members agree most to those where least.

    The disagreement over a pair is the standard deviation, over the members, of the difference of its two standardized
    scores `z` `(K, U)`. The level of a member cancels out. There are `parts` of equally many pairs.

    Returns:
        `dict`: `parts`, a list of `from`, `to` (disagreement), `accuracy`, `accuracy_ci95`, `pairs`; `unanimous` and
        `divided`: pairs that all members put in one order, and the others, with the accuracy of the mean; and
        `closest`: as many pairs as are divided, those of which the mean says least, to see what is told by
        disagreement alone.
    """
    spread = np.concatenate(
        [
            (z[:, asked.better[start : start + BLOCK]] - z[:, asked.worse[start : start + BLOCK]]).std(axis=0)
            for start in range(0, len(asked.better), BLOCK)
        ]
    )
    edges = np.quantile(spread, np.linspace(0, 1, parts + 1))
    part = np.clip(np.searchsorted(edges, spread, side="right") - 1, 0, parts - 1)
    votes = np.mean([asked.right(own) for own in z], axis=0)
    agree = (votes == 0) | (votes == 1)
    mean = z.mean(axis=0)
    order = np.argsort(np.abs(mean[asked.better] - mean[asked.worse]), kind="stable")
    closest = np.zeros(len(order), dtype=np.bool_)
    closest[order[: int((~agree).sum())]] = True
    groups = {str(index): part == index for index in range(parts)}
    groups |= {"unanimous": agree, "divided": ~agree, "closest": closest}
    right = asked.right(mean)
    tables = {}
    for name, group in groups.items():
        accuracy, ends = asked.mean(right[group], rows=group)
        tables[name] = {"accuracy": accuracy, "accuracy_ci95": ends, "pairs": int(group.sum())}
    return {
        "parts": [
            {"from": float(edges[index]), "to": float(edges[index + 1]), **tables[str(index)]}
            for index in range(parts)
        ],
        "unanimous": tables["unanimous"],
        "divided": tables["divided"],
        "closest": tables["closest"],
    }


def pair_calibration(asked: Comparisons, raw: Floats, most: int = PAIRS_FOR_ECE, seed: int = 0) -> Metrics:
    """How far P(better) is from what happens: `sigma(r_k - r_k')` of each member (Bradley and Terry 1952), and for the
    ensemble the mean of these probabilities, on the same pairs.

    Of more than `most` pairs, that many are drawn. `raw` `(K, U)` are scores as the models give them, as logits.

    Returns:
        `dict`: for `adapter_0`, ... and `ensemble` `ece`, `ece_ci95`, `brier`, `log_loss`; for `mean_of_members` the
        means of them.
    """
    generator = np.random.default_rng(seed)
    rows = np.arange(len(asked.better))
    if len(rows) > most:
        rows = np.sort(generator.choice(len(rows), size=most, replace=False))
    better, worse = asked.better[rows], asked.worse[rows]
    alone = np.stack([pair_probabilities(own[better], own[worse]) for own in raw])  # (K, P)
    units = {"units": asked.units[better].tolist(), "other_units": asked.units[worse].tolist()}
    if (asked.units[better] == asked.units[worse]).all():
        units.pop("other_units")
    result: Metrics = {"pairs": len(rows)}
    named = {**{f"adapter_{index}": own for index, own in enumerate(alone)}, "ensemble": alone.mean(axis=0)}
    for name, p in named.items():
        found = calibration(p, np.ones(len(p)), pairs=True, **units)
        inner = np.clip(p, 1e-12, 1 - 1e-12)
        result[name] = {key: found[key] for key in ("ece", "ece_ci95", "brier")}
        result[name]["log_loss"] = log_loss(np.log(inner) - np.log1p(-inner), np.ones(len(p)))
    members = [result[f"adapter_{index}"] for index in range(len(raw))]
    result["mean_of_members"] = {
        key: float(np.mean([member[key] for member in members])) for key in ("ece", "brier", "log_loss")
    }
    return result


def error_by_disagreement(spread: Floats, error: Floats, parts: int = 10) -> Metrics:
    """Whether texts on which members disagree are those that the ensemble gets wrong.

    Returns:
        `dict`: `spearman` and `pearson` of the standard deviation of the members and the distance of the ensemble from
        the truth `(N,)`, with intervals, and of `parts` of equally many texts, from little to much disagreement, the
        means `disagreement` and `error`, and `texts`.
    """
    found = rating_errors(spread, error)
    order = np.array_split(np.argsort(spread, kind="stable"), min(parts, len(spread)))
    return {key: found[key] for key in ("spearman", "spearman_ci95", "pearson", "pearson_ci95")} | {
        "parts": [
            {"disagreement": float(spread[rows].mean()), "error": float(error[rows].mean()), "texts": len(rows)}
            for rows in order
        ]
    }
