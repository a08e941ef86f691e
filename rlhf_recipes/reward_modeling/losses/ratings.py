"""Losses by which the score becomes a rating: a distance to it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.modeling.calibration import Calibration, LinearCalibration
from rlhf_recipes.reward_modeling.losses.base import Batch, Columns, Objective, Targets, check_positive
from rlhf_recipes.reward_modeling.losses.maths import ordered

# Of a score and what it should be; "bce" for targets from 0 to 1, the score being their logit.
DISTANCES: dict[str, Callable[..., Tensor]] = {
    "mse": F.mse_loss,
    "mae": F.l1_loss,
    "huber": F.huber_loss,
    "bce": F.binary_cross_entropy_with_logits,
}


@dataclass
class MSE(Objective):
    """`(s - y)²`: the score becomes the mean rating, on the rating's own scale.

    The model learns ratings less their mean, divided by their standard deviation, because a new head says about 0; the
    way back is saved beside the model. The `weight` of a mean of n votes is n, or one over its variance (weighted
    least squares, Aitken 1935).
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
        return {"score": ratings.tolist()}

    def known(self, targets: Targets) -> Tensor:
        return ~targets["score"].isnan()

    def losses(self, batch: Batch) -> Tensor:
        return self.distance(batch.scores, batch.targets["score"].nan_to_num(0.0))

    def distance(self, scores: Tensor, ratings: Tensor) -> Tensor:
        return F.mse_loss(scores, ratings, reduction="none")

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return ordered(batch.scores, batch.targets["score"])

    def calibration(self) -> Calibration:
        return LinearCalibration(self.unit, self.shift)


@dataclass
class MAE(MSE):
    """`|s - y|`: the score becomes the median rating, and one odd rating pulls no harder than another.

    The gradient is the sign of the distance, and 0 where there is none. Otherwise as [`MSE`].
    """

    def distance(self, scores: Tensor, ratings: Tensor) -> Tensor:
        return F.l1_loss(scores, ratings, reduction="none")


@dataclass
class Huber(MSE):
    """`d² / 2` up to a distance `|d| <= delta`, `delta * (|d| - delta / 2)` beyond it (Huber 1964).

    The gradient is at most `delta`. Otherwise as [`MSE`].

    Args:
        delta (`float`): Distance from which on a rating pulls no harder, in standard deviations of the ratings.
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("delta", self.delta)

    def distance(self, scores: Tensor, ratings: Tensor) -> Tensor:
        return F.huber_loss(scores, ratings, delta=self.delta, reduction="none")
