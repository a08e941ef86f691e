"""Losses that make of the score a rating: a distance, or the probability of a level."""

import logging
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.modeling.calibration import Calibration, LinearCalibration, OrdinalCalibration
from rlhf_recipes.reward_modeling.losses import maths as losses
from rlhf_recipes.reward_modeling.losses.base import (
    Batch,
    Columns,
    Objective,
    Targets,
    is_known,
    ordered,
    weight_column,
    weights_of,
)
from rlhf_recipes.statistics import is_missing

logger = logging.getLogger(__name__)
MOST_LEVELS = 20


@dataclass
class _Regression(Objective):
    """The score is a rating.

    The model learns ratings less their mean, divided by their standard deviation, because a new head says about 0; the
    way back is saved beside the model.
    """

    reads = ("ratings",)
    predicts_rating = True

    def __post_init__(self) -> None:
        self.shift, self.unit = 0.0, 1.0

    def fit(self, rows: Dataset) -> None:
        ratings = np.asarray(rows["score"], dtype=np.float64)
        self.shift, self.unit = float(ratings.mean()), float(ratings.std()) or 1.0

    def targets(self, rows: Dataset) -> Columns:
        ratings = (np.asarray(rows["score"], dtype=np.float64) - self.shift) / self.unit
        return {"score": ratings.tolist(), **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["score"])
        return (known * weights_of(targets, known)).sum()

    def total(self, batch: Batch) -> Tensor:
        targets = batch.targets["score"]
        return self._of_text(batch.scores, targets, weights_of(batch.targets, targets)).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return ordered(batch.scores, batch.targets["score"])

    def calibration(self) -> Calibration:
        return LinearCalibration(self.unit, self.shift)

    def _of_text(self, scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass
class MSE(_Regression):
    """[`losses.mse`]."""

    def _of_text(self, scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return losses.mse(scores, targets, weights, reduction="none")


@dataclass
class MAE(_Regression):
    """[`losses.mae`]."""

    def _of_text(self, scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return losses.mae(scores, targets, weights, reduction="none")


@dataclass
class Huber(_Regression):
    """[`losses.huber`].

    Args:
        delta (`float`): Distance from which on a rating pulls no harder, in standard deviations of the ratings.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.delta <= 0:
            raise ValueError(f"delta is {self.delta}; give more than 0.")

    def _of_text(self, scores: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return losses.huber(scores, targets, weights, self.delta, reduction="none")


@dataclass
class _Levels(Objective):
    """Ratings on a scale of levels: the votes where the rows have them, else the rating, which must be a level.

    Args:
        levels (`list[float]`, *optional*): The scale. Default: all votes, or ratings, in the training rows.
    """

    reads = ("ratings",)
    levels: list[float] | None = None

    def fit(self, rows: Dataset) -> None:
        if self.levels is None:
            self.levels = sorted({vote for votes in self._votes(rows) for vote in votes})
        if not 2 <= len(self.levels) <= MOST_LEVELS or list(self.levels) != sorted(set(self.levels)):
            raise ValueError(
                f"The ratings have {len(self.levels)} levels; this loss takes 2 to {MOST_LEVELS}, in rising order. "
                "Name them (loss_args: {levels: [1, 2, 3]}), or take mse or pairs_in_batch for ratings without levels."
            )

    def _votes(self, rows: Dataset) -> list[list[float]]:
        """The votes of each row, those that are missing left out; without votes its rating."""
        if "votes" not in rows.column_names:
            return [[float(score)] for score in rows["score"]]
        return [[float(vote) for vote in votes or [] if not is_missing(vote)] for votes in rows["votes"]]

    def targets(self, rows: Dataset) -> Columns:
        assert self.levels is not None, "fit comes first"
        place = {level: index for index, level in enumerate(self.levels)}
        shares = np.zeros((len(rows), len(self.levels)))
        for row, of_row in enumerate(self._votes(rows)):
            for vote in of_row:
                if vote not in place:
                    raise ValueError(
                        f"Row {row} has the rating {vote:g}, which is none of the levels "
                        f"{', '.join(f'{level:g}' for level in self.levels)}. Mean ratings need mse or pairs_in_batch."
                    )
                shares[row, place[vote]] += 1.0
        with np.errstate(invalid="ignore"):
            return {"shares": (shares / shares.sum(axis=1, keepdims=True)).tolist(), **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["shares"][:, 0])
        return (known * weights_of(targets, known)).sum()

    def total(self, batch: Batch) -> Tensor:
        shares = batch.targets["shares"].nan_to_num(0.0)
        of_row = self._of_row(batch, shares)
        return (of_row * weights_of(batch.targets, of_row)).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        levels = torch.tensor(self.levels, device=batch.logits.device)
        return ordered(self._expected(batch), (batch.targets["shares"] * levels).sum(dim=1))

    def _of_row(self, batch: Batch, shares: Tensor) -> Tensor:
        raise NotImplementedError

    def _expected(self, batch: Batch) -> Tensor:
        raise NotImplementedError


@dataclass
class Ordinal(_Levels):
    """[`losses.CumulativeLink`]: one score, and thresholds between the levels that are learned with it."""

    def fit(self, rows: Dataset) -> None:
        super().fit(rows)
        assert self.levels is not None
        self.link = losses.CumulativeLink(len(self.levels))

    def parameters(self) -> torch.nn.Module:
        return self.link

    def calibration(self) -> Calibration:
        assert self.levels is not None
        return OrdinalCalibration(tuple(self.link.thresholds().detach().cpu().tolist()), tuple(self.levels))

    def _of_row(self, batch: Batch, shares: Tensor) -> Tensor:
        return self.link(batch.scores, shares, reduction="none")

    def _expected(self, batch: Batch) -> Tensor:
        return batch.scores


@dataclass
class Classification(_Levels):
    """[`losses.classification`]: an output for each level; the score is the expected level."""

    @property
    def label_names(self) -> tuple[str, ...]:  # type: ignore[override]
        assert self.levels is not None, "fit comes first"
        return tuple(f"{level:g}" for level in self.levels)

    def score_labels(self) -> dict[str, float]:
        assert self.levels is not None
        return dict(zip(self.label_names, self.levels, strict=True))

    @property
    def score_probabilities(self) -> bool:
        return True

    def _of_row(self, batch: Batch, shares: Tensor) -> Tensor:
        return losses.classification(batch.logits, shares, reduction="none")

    def _expected(self, batch: Batch) -> Tensor:
        levels = torch.tensor(self.levels, device=batch.logits.device)
        return losses.expected_level(batch.logits.softmax(dim=-1), levels)
