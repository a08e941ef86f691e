"""Losses of pairs that people have put in order."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.base import Batch, Columns, Objective, Targets, check_range
from rlhf_recipes.reward_modeling.losses.maths import as_float, same_shape


@dataclass
class Pairs(Objective):
    """What losses of pairs share: columns `chosen, rejected`, perhaps with `margin`, and votes or a target."""

    reads = ("pairs", "votes")
    text_columns = ("chosen", "rejected")
    fixes_level = False

    def targets(self, rows: Dataset) -> Columns:
        columns: Columns = {"margin": [0.0] * len(rows)}
        if "margin" in rows.column_names:
            columns["margin"] = [0.0 if value is None else float(value) for value in rows["margin"]]
        if "chosen_votes" in rows.column_names:
            votes = np.array([rows["chosen_votes"], rows["rejected_votes"]], dtype=np.float64)
            columns["target"] = (votes[0] / votes.sum(axis=0)).tolist()
        elif "target" in rows.column_names:
            columns["target"] = [float("nan") if value is None else float(value) for value in rows["target"]]
        return columns

    def known(self, targets: Targets) -> Tensor:
        return ~targets.get("target", targets["margin"]).isnan()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        chosen, rejected = self.sides(batch)
        sign = torch.sign(batch.targets["target"] - 0.5) if "target" in batch.targets else torch.ones_like(chosen)
        asked = (sign != 0) & ~sign.isnan()
        return (((chosen - rejected) * sign > 0) & asked).sum(), asked.sum()

    def sides(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores of the chosen and of the rejected texts, `(R,)` each."""
        scores, _ = batch.lists()
        return scores[:, 0], scores[:, 1]


def bradley_terry(
    chosen: Tensor,
    rejected: Tensor,
    margin: float | Tensor = 0.0,
    target: float | Tensor = 1.0,
    label_smoothing: float = 0.0,
    center: float = 0.0,
) -> Tensor:
    """`-[p log sigma(d - m) + (1 - p) log sigma(m - d)] + center * (r_c + r_r)²`, with `d = r_c - r_r`.

    Bradley and Terry 1952; the margin m is that of Llama 2 (arXiv 2307.09288, eq. 2), the centering term that of arXiv
    2312.09244, eq. 2. With target 1 and no smoothing this is the loss of TRL's `RewardTrainer`, `center` being its
    `center_rewards_coefficient`. Without a margin it is least at `d = log(p / (1 - p))`. Equal scores give log 2
    (m = 0), whatever p, and a gradient towards the side that p favours.

    Args:
        chosen, rejected (`(B,)`): scores.
        margin (`float` or `(B,)`): by how much the chosen text should win, in units of the score.
        target (`float` or `(B,)`): p, the share of votes for the chosen text, in [0, 1].
        label_smoothing: the share e of labels that are wrong by chance, in [0, 0.5]: p becomes
            `(1 - e) * p + e * (1 - p)` (conservative DPO, Mitchell 2023).
        center: weight of the term that keeps scores near 0; 0 or more.

    Returns:
        `Tensor`: `(B,)`, 0 or more.
    """
    same_shape(chosen=chosen, rejected=rejected)
    chosen, rejected = as_float(chosen), as_float(rejected)
    difference = chosen - rejected - margin
    p = (1.0 - label_smoothing) * target + label_smoothing * (1.0 - target)
    p = torch.as_tensor(p, dtype=chosen.dtype, device=chosen.device).expand_as(difference)
    return F.binary_cross_entropy_with_logits(difference, p, reduction="none") + center * (chosen + rejected) ** 2


@dataclass
class BradleyTerry(Pairs):
    """[`bradley_terry`], with a margin and soft labels where the rows have them.

    Args:
        label_smoothing (`float`): The share of labels that are wrong by chance.
        center (`float`): How much the sum of both scores is drawn to 0.
    """

    label_smoothing: float = 0.0
    center: float = 0.0

    def __post_init__(self) -> None:
        check_range("label_smoothing", self.label_smoothing, 0.0, 0.5)
        check_range("center", self.center, 0.0)

    def losses(self, batch: Batch) -> Tensor:
        target = batch.targets["target"].nan_to_num(0.5) if "target" in batch.targets else 1.0
        return bradley_terry(*self.sides(batch), batch.targets["margin"], target, self.label_smoothing, self.center)


@dataclass
class Hinge(Pairs):
    """`max(0, m - (r_c - r_r))`: nothing to gain once the chosen text wins by the margin (Joachims 2002, ranking SVM).

    Equal scores give m; exactly at the margin the gradient is 0. With m = 0 equal scores are perfect, and so is a
    model that says the same of every text: keep m above 0.

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

    def losses(self, batch: Batch) -> Tensor:
        chosen, rejected = self.sides(batch)
        return F.relu(self.margin + batch.targets["margin"] - (chosen - rejected))
