"""The loss that compares every rated text of a batch with all others."""

import json
import logging
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.base import (
    WEIGHT,
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    check_positive,
    check_range,
)
from rlhf_recipes.reward_modeling.losses.maths import TOLERANCE

logger = logging.getLogger(__name__)


@dataclass
class PairsInBatch(Objective):
    """Bradley-Terry on all pairs of a batch of rated texts at once: each text is encoded once, not once a pair.

    `mean over pairs with |y_i - y_j| >= min_gap of -[p log sigma(d) + (1 - p) log sigma(-d)]`, `d = s_i - s_j`, after
    InstructGPT, which takes all pairs of one prompt as one batch element (arXiv 2203.02155, section 3.5). p is 1 for
    the higher rating; with `scale` it is `sigma((y_i - y_j) / scale)`, so that a small gap says little. Equal ratings
    are no pair, except with `scale` and `min_gap=0`: there their target is 1/2. A batch without a pair gives 0.

    The texts of a batch are in many pairs, those with extreme ratings in most. With `texts_alike` the loss is the mean
    over texts of the mean over a text's pairs, that is, a pair weighs `1 / n_i + 1 / n_j`.

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
        check_positive("scale", 1.0 if self.scale is None else self.scale)

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
        if spread < self.min_gap - TOLERANCE:
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

    def known(self, targets: Targets) -> Tensor:
        """The pairs that are compared, each once: `(1 or R, K, K)`, the whole batch being one list without `within`"""
        gap = self._gaps(targets).abs()
        least = max(self.min_gap - TOLERANCE, TOLERANCE if self.scale is None else 0.0)
        return (gap >= least) & torch.ones_like(gap, dtype=torch.bool).triu(1)

    def losses(self, batch: Batch) -> Tensor:
        gap = self._gaps(batch.targets).nan_to_num(0.0)
        target = (gap > 0) if self.scale is None else torch.sigmoid(gap / self.scale)
        differences = self._differences(batch)
        losses = F.binary_cross_entropy_with_logits(differences, target.to(differences.dtype), reduction="none")
        return losses * self._share(batch.targets) if self.texts_alike else losses

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        gap = self._gaps(batch.targets)
        asked = self.known(batch.targets) & (gap != 0)
        return (asked & (torch.sign(self._differences(batch)) == torch.sign(gap))).sum(), asked.sum()

    def _gaps(self, targets: Targets) -> Tensor:
        ratings = targets["score"][None] if self.within is None else targets["score"]
        return ratings[:, :, None] - ratings[:, None, :]

    def _differences(self, batch: Batch) -> Tensor:
        scores, _ = batch.lists()
        scores = scores.T if self.within is None else scores
        return scores[:, :, None] - scores[:, None, :]

    def _share(self, targets: Targets) -> Tensor:
        """What a pair weighs where texts count alike; 1 on average over the pairs of the batch."""
        asked = self.known(targets)
        pairs = (asked | asked.transpose(1, 2)).sum(dim=2)  # of each text
        one_over = 1.0 / pairs.clamp(min=1)
        return (one_over[:, :, None] + one_over[:, None, :]) * asked.sum() / (pairs > 0).sum().clamp(min=1)
