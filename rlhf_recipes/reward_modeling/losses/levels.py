"""Losses of ratings on levels, such as stars, grades and Likert scales: the probability of each level."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor, nn

from rlhf_recipes.modeling.calibration import Calibration, OrdinalCalibration
from rlhf_recipes.reward_modeling.losses.base import Batch, Columns, Objective, Targets
from rlhf_recipes.reward_modeling.losses.maths import as_float, ordered
from rlhf_recipes.statistics import is_missing

MOST_LEVELS = 20


@dataclass
class Levels(Objective):
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

    @property
    def scale(self) -> list[float]:
        """The levels, once they are known."""
        assert self.levels is not None, "fit comes first"
        return self.levels

    def targets(self, rows: Dataset) -> Columns:
        place = {level: index for index, level in enumerate(self.scale)}
        shares = np.zeros((len(rows), len(place)))
        for row, of_row in enumerate(self._votes(rows)):
            for vote in of_row:
                if vote not in place:
                    raise ValueError(
                        f"Row {row} has the rating {vote:g}, which is none of the levels "
                        f"{', '.join(f'{level:g}' for level in place)}. Mean ratings need mse or pairs_in_batch."
                    )
                shares[row, place[vote]] += 1.0
        with np.errstate(invalid="ignore"):
            return {"shares": (shares / shares.sum(axis=1, keepdims=True)).tolist()}

    def known(self, targets: Targets) -> Tensor:
        return ~targets["shares"][:, 0].isnan()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        levels = torch.tensor(self.scale, device=batch.logits.device)
        return ordered(self.expected(batch, levels), (batch.targets["shares"] * levels).sum(dim=1))

    def expected(self, batch: Batch, levels: Tensor) -> Tensor:
        """What rises with the rating that the model expects. `(N,)`"""
        raise NotImplementedError


class CumulativeLink(nn.Module):
    """Proportional odds (McCullagh 1980): `P(y <= k) = sigma(theta_k - score)`, for levels 0 to K - 1 in their order.

    The thresholds are learned with the model. They stay in order, since each is the one before plus a softplus:
    `theta_0 = a_0`, `theta_k = theta_{k-1} + softplus(a_k)`. They begin where a score of 0 gives each level 1 / K.
    Distances between levels are learned, not assumed equal as in [`MSE`].

    A level between others has `P = sigma(theta_k - s) * sigma(s - theta_{k-1}) * sigma(a_k)` exactly, so that its
    logarithm is finite for any score and any thresholds.

    Args:
        num_levels (`int`): K, 2 or more. With 2 this is binary cross-entropy with a free intercept.
    """

    def __init__(self, num_levels: int) -> None:
        super().__init__()
        start = torch.logit(torch.arange(1, num_levels, dtype=torch.float64) / num_levels)
        raw = torch.cat([start[:1], torch.log(torch.expm1(start.diff()))])
        self.raw = nn.Parameter(raw.float())  # (K - 1,): a_0 to a_{K-2}

    def thresholds(self) -> Tensor:
        """theta, `(K - 1,)`, rising."""
        raw = as_float(self.raw)
        return torch.cat([raw[:1], F.softplus(raw[1:])]).cumsum(0)

    def forward(self, scores: Tensor) -> Tensor:
        """Log-probability of each level: `(B,)` scores give `(B, K)`."""
        distance = self.thresholds() - as_float(scores)[:, None]  # (B, K - 1)
        not_above, above_the_last = F.pad(F.logsigmoid(distance), (0, 1)), F.pad(F.logsigmoid(-distance), (1, 0))
        return not_above + above_the_last + F.pad(F.logsigmoid(as_float(self.raw)[1:]), (1, 1))


@dataclass
class Ordinal(Levels):
    """`-sum_k q_k log P(y = k)` by [`CumulativeLink`], q being the shares of the votes: one score, and thresholds
    between the levels that are learned with it."""

    def fit(self, rows: Dataset) -> None:
        super().fit(rows)
        self.link = CumulativeLink(len(self.scale))

    def parameters(self) -> torch.nn.Module:
        return self.link

    def losses(self, batch: Batch) -> Tensor:
        return -(batch.targets["shares"].nan_to_num(0.0) * self.link(batch.scores)).sum(dim=1)

    def expected(self, batch: Batch, levels: Tensor) -> Tensor:
        return batch.scores

    def calibration(self) -> Calibration:
        return OrdinalCalibration(tuple(self.link.thresholds().detach().cpu().tolist()), tuple(self.scale))


@dataclass
class Classification(Levels):
    """Cross-entropy over levels that are not in any order to the model, `-sum_k q_k log softmax(logits)_k`.

    An output for each level; the score is the expected level, `sum_k P(y = k) * level_k`.
    """

    @property
    def label_names(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"{level:g}" for level in self.scale)

    def losses(self, batch: Batch) -> Tensor:
        return F.cross_entropy(batch.logits, batch.targets["shares"].nan_to_num(0.0), reduction="none")

    def expected(self, batch: Batch, levels: Tensor) -> Tensor:
        return batch.logits.softmax(dim=-1) @ levels

    def score_labels(self) -> dict[str, float]:
        return dict(zip(self.label_names, self.scale, strict=True))

    @property
    def score_probabilities(self) -> bool:
        return True
