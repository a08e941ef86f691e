"""Losses that compare two texts: pairs that people have put in order, and all pairs of a batch of ratings."""

import json
import logging
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses import maths as losses
from rlhf_recipes.reward_modeling.losses.base import (
    WEIGHT,
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    check_range,
    is_known,
    weight_column,
    weights_of,
)

logger = logging.getLogger(__name__)


@dataclass
class _Pairs(Objective):
    reads = ("pairs", "votes")
    text_columns = ("chosen", "rejected")
    fixes_level = False

    def targets(self, rows: Dataset) -> Columns:
        columns: Columns = {"margin": [0.0] * len(rows), **weight_column(rows)}
        if "margin" in rows.column_names:
            columns["margin"] = [0.0 if value is None else float(value) for value in rows["margin"]]
        if "chosen_votes" in rows.column_names:
            votes = np.array([rows["chosen_votes"], rows["rejected_votes"]], dtype=np.float64)
            columns["target"] = (votes[0] / votes.sum(axis=0)).tolist()
        elif "target" in rows.column_names:
            columns["target"] = [float("nan") if value is None else float(value) for value in rows["target"]]
        return columns

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["target"]) if "target" in targets else torch.ones_like(targets["margin"])
        return (known * weights_of(targets, known)).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        chosen, rejected = self._sides(batch)
        sign = torch.sign(batch.targets["target"] - 0.5) if "target" in batch.targets else torch.ones_like(chosen)
        asked = (sign != 0) & ~sign.isnan()
        return (((chosen - rejected) * sign > 0) & asked).sum(), asked.sum()

    def _sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, _ = batch.lists()
        return scores[:, 0], scores[:, 1]


@dataclass
class BradleyTerry(_Pairs):
    """[`losses.bradley_terry`]: a margin and soft labels where the rows have them.

    Args:
        label_smoothing (`float`): The share of labels that are wrong by chance.
        center (`float`): How much the sum of both scores is drawn to 0.
    """

    label_smoothing: float = 0.0
    center: float = 0.0

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0.0, 0.5)
        check_range("center", self.center, 0.0)

    def total(self, batch: Batch) -> Tensor:
        chosen, rejected = self._sides(batch)
        target = batch.targets.get("target", 1.0)
        of_row = losses.bradley_terry(
            chosen, rejected, batch.targets["margin"], target, self.label_smoothing, self.center, reduction="none"
        )
        return (of_row * weights_of(batch.targets, of_row)).sum()


@dataclass
class Hinge(_Pairs):
    """[`losses.hinge`]: pairs that are clear already pull no more.

    Args:
        margin (`float`): By how much the chosen text should win; a column `margin` is added to it.
    """

    margin: float = 1.0

    def __post_init__(self) -> None:
        check_range("margin", self.margin, 0.0)

    def targets(self, rows: Dataset) -> Columns:
        columns = super().targets(rows)
        if "target" in columns:
            raise ValueError("hinge takes a side and no soft labels. Take bradley_terry for votes or a target.")
        return columns

    def total(self, batch: Batch) -> Tensor:
        of_row = losses.hinge(*self._sides(batch), self.margin + batch.targets["margin"], reduction="none")
        return (of_row * weights_of(batch.targets, of_row)).sum()


@dataclass
class PairsInBatch(Objective):
    """[`losses.pairs_in_batch`]: every text of a batch against all others, each encoded once.

    Args:
        min_gap (`float`): Least difference of two ratings that are compared.
        scale (`float`, *optional*): The difference at which the preference is 0.73; without, the higher one wins.
        texts_alike (`bool`): Whether a text counts once, in however many pairs it is.
        within (`str`, *optional*): Compare only rows that are equal in this column, such as `prompt` or a rater; then
            `per_device_train_batch_size` counts these groups.
    """

    reads = ("ratings",)
    fixes_level = False

    min_gap: float = 0.5
    scale: float | None = None
    texts_alike: bool = False
    within: str | None = None

    def __post_init__(self) -> None:
        check_range("min_gap", self.min_gap, 0.0)
        if self.scale is not None and self.scale <= 0:
            raise ValueError(f"scale is {self.scale}; give more than 0, or leave it out.")

    @property
    def compares_rows(self) -> bool:  # type: ignore[override]
        return self.within is None

    def fit(self, rows: Dataset) -> None:
        if WEIGHT in rows.column_names:
            raise ValueError(
                "pairs_in_batch compares texts and does not use weights. Take mse, mae or huber, or remove the column "
                f"{WEIGHT}."
            )
        spread = float(np.ptp(np.asarray(rows["score"], dtype=np.float64)))
        if spread < self.min_gap - losses.TOLERANCE:
            raise ValueError(
                f"The ratings differ by {spread:g} at most and min_gap is {self.min_gap:g}, so no two texts would be "
                "compared. Give a smaller --min_gap."
            )

    def texts(self, rows: Dataset) -> list[list[Item]]:
        texts = super().texts(rows)
        return [[texts[row][0] for row in group] for group in self._groups(rows)]

    def targets(self, rows: Dataset) -> Columns:
        ratings = [float(value) for value in rows["score"]]
        if self.within is None:
            return {"score": ratings}
        return {"score": [[ratings[row] for row in group] for group in self._groups(rows)]}

    def _groups(self, rows: Dataset) -> list[list[int]]:
        if self.within is None:
            return [[row] for row in range(len(rows))]
        if self.within not in rows.column_names:
            raise ValueError(f"within is {self.within!r}, but the columns are {', '.join(rows.column_names)}.")
        groups: dict[str, list[int]] = {}
        for row, key in enumerate(rows[self.within]):
            groups.setdefault(json.dumps(key), []).append(row)
        alone = sum(len(group) == 1 for group in groups.values())
        if alone:
            logger.warning("%d of %d rows have no other row with the same %s.", alone, len(rows), self.within)
        return list(groups.values())

    def count(self, targets: Targets) -> Tensor:
        return self._asked(targets).sum()

    def total(self, batch: Batch) -> Tensor:
        asked = self._asked(batch.targets)
        if self.within is None:
            order = batch.rows.argsort()
            scores, ratings, groups = batch.scores[order], batch.targets["score"], None
        else:
            lists, mask = batch.lists()
            scores, ratings = lists[mask], batch.targets["score"][mask]
            groups = mask.nonzero()[:, 0]
        mean = losses.pairs_in_batch(scores, ratings, self.min_gap, self.scale, groups, self.texts_alike)
        return mean * asked.sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, _ = batch.lists()
        ratings = batch.targets["score"]
        if self.within is None:
            scores, ratings = scores.T, ratings[None]
        order = torch.sign(scores[:, :, None] - scores[:, None, :])
        asked = self._asked(batch.targets) & (ratings[:, :, None] != ratings[:, None, :])
        return (asked & (order == torch.sign(ratings[:, :, None] - ratings[:, None, :]))).sum(), asked.sum()

    def _asked(self, targets: Targets) -> Tensor:
        """The pairs that are compared, each once: `(1 or R, K, K)`"""
        ratings = targets["score"][None] if self.within is None else targets["score"]
        least = max(self.min_gap - losses.TOLERANCE, losses.TOLERANCE if self.scale is None else 0.0)
        gap = (ratings[:, :, None] - ratings[:, None, :]).abs()
        return (gap >= least) & torch.ones_like(gap, dtype=torch.bool).triu(1)
