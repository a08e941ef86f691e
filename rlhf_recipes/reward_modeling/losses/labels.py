"""The loss of single texts that were judged good or bad."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.base import Batch, Columns, Objective, Targets


def log_seen(scores: Tensor, noise: Sequence[float] = (0.0, 0.0)) -> tuple[Tensor, Tensor]:
    """Log-probabilities that a label is seen as 1 and as 0, where labels are wrong at rates that differ by class.

    Implicit signals (a click, a copied answer, no complaint) are wrong so: `noise = (e0, e1)` with `e0 = P(seen 1 |
    truly 0)` and `e1 = P(seen 0 | truly 1)` (the model of Natarajan et al. 2013). Then `P(seen 1) = (1 - e1) sigma(s)
    + e0 sigma(-s)`: the forward correction of arXiv 1609.03683, theorem 2, by which sigma(s) still learns the true
    label. The rates must be known, from rows that people have labelled too. A label of 1 then costs at most `-log e0`,
    one of 0 `-log e1`, and the gradient vanishes where a score contradicts its label for good. (The correction of
    Natarajan et al. itself, lemma 1, is unbiased but not bounded below; it is not here.)
    """
    e0, e1 = noise
    true_1, true_0 = F.logsigmoid(scores), F.logsigmoid(-scores)
    seen_1 = torch.logaddexp(true_1 + math.log(1.0 - e1), true_0 + (math.log(e0) if e0 else -math.inf))
    seen_0 = torch.logaddexp(true_0 + math.log(1.0 - e0), true_1 + (math.log(e1) if e1 else -math.inf))
    return seen_1, seen_0


@dataclass
class BinaryCrossEntropy(Objective):
    """`-[pos_weight * y log p + (1 - y) log(1 - p)]`, p being the probability that the label is seen as 1, and the
    score the logit of "good": without noise `p = sigma(s)`, with it see [`log_seen`]. A score of 0 gives log 2 then.

    Args:
        balanced (`bool`):
            Whether both labels count alike in all, however rare one is: `pos_weight` is the number of 0s for each 1
            in the training rows, else 1. The mean is over rows all the same, as in torch. It shifts what sigma(s)
            means, by `log pos_weight` in the score.
        noise (`list[float]`): How often a bad text is labelled good, and a good one bad.
    """

    reads = ("unpaired",)
    balanced: bool = False
    noise: Sequence[float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        self.pos_weight = 1.0
        self.noise = tuple(self.noise)
        if len(self.noise) != 2 or min(self.noise) < 0 or sum(self.noise) >= 1:
            raise ValueError(f"noise is {list(self.noise)}; give two rates of 0 or more that sum to less than 1.")

    def fit(self, rows: Dataset) -> None:
        if not self.balanced:
            return
        labels = np.array(rows["label"], dtype=np.float64)
        known = labels[~np.isnan(labels)]
        ones, zeros = known.sum(), (1.0 - known).sum()
        if ones <= 0.0 or zeros <= 0.0:
            raise ValueError(
                f"Of {len(known)} labels {ones:g} are 1 and {zeros:g} are 0; both are needed to balance them."
            )
        self.pos_weight = float(zeros / ones)

    def targets(self, rows: Dataset) -> Columns:
        return {"label": [float(label) for label in rows["label"]]}

    def known(self, targets: Targets) -> Tensor:
        return ~targets["label"].isnan()

    def losses(self, batch: Batch) -> Tensor:
        labels = batch.targets["label"].nan_to_num(0.0)
        seen_1, seen_0 = log_seen(batch.scores, self.noise)
        return -(self.pos_weight * labels * seen_1 + (1.0 - labels) * seen_0)

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.targets["label"]
        asked = ~labels.isnan() & (labels != 0.5)
        return (asked & ((batch.scores > 0) == (labels > 0.5))).sum(), asked.sum()
