"""Losses over a list of completions: rankings, the best of many, the best and the worst."""

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses import maths as losses
from rlhf_recipes.reward_modeling.losses.base import (
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    weight_column,
    weights_of,
    with_prompts,
)

logger = logging.getLogger(__name__)


@dataclass
class _Lists(Objective):
    fixes_level = False

    def texts(self, rows: Dataset) -> list[list[Item]]:
        return with_prompts(rows, rows["completions"])

    def targets(self, rows: Dataset) -> Columns:
        names = ("ranks",) if "ranks" in rows.column_names else ("best", "worst")
        sizes = {"size": [float(len(completions)) for completions in rows["completions"]]}
        return {**{name: list(rows[name]) for name in names}, **sizes, **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        compared = (targets["size"] > 1).to(torch.float32)
        return (compared * weights_of(targets, compared)).sum()

    def total(self, batch: Batch) -> Tensor:
        scores, mask = batch.lists()
        of_row = self._of_row(scores, mask, batch.targets)
        return (of_row * weights_of(batch.targets, of_row)).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How often the best is on top."""
        scores, mask = batch.lists()
        top = scores.masked_fill(~mask, -torch.inf).argmax(dim=1)
        return (top == self._best(batch.targets)).sum(), torch.tensor(len(top), device=top.device)

    def _best(self, targets: Targets) -> Tensor:
        if "best" in targets:
            return targets["best"].long()
        return targets["ranks"].nan_to_num(torch.inf).argmin(dim=1)

    def _of_row(self, scores: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        raise NotImplementedError


@dataclass
class PlackettLuce(_Lists):
    """[`losses.plackett_luce`].

    Args:
        top (`int`, *optional*): Only the best so many were put in order.
        ties (`str`): `"efron"` or `"breslow"`.
    """

    reads = ("rankings",)
    top: int | None = None
    ties: Literal["efron", "breslow"] = "efron"

    def __post_init__(self) -> None:
        if self.ties not in ("efron", "breslow") or (self.top is not None and self.top < 1):
            raise ValueError(f"ties is {self.ties!r} and top {self.top}; give efron or breslow, and 1 or more.")

    def _of_row(self, scores: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        ranks = targets["ranks"].nan_to_num(torch.inf)
        return losses.plackett_luce(scores, ranks, mask, self.top, self.ties, reduction="none")


@dataclass
class InfoNCE(_Lists):
    """[`losses.info_nce`]: the best of each list against the others.

    Args:
        temperature (`float`): Lower looks harder at the strongest of the others.
    """

    reads = ("rankings", "best_worst")
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; give more than 0.")

    def _of_row(self, scores: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        best = self._best(targets)
        of_row = losses.info_nce(scores, best, mask, self.temperature, reduction="none")
        if "ranks" not in targets:
            return of_row
        # Of several that share the first rank each is the best as often: the mean of their losses.
        ranks = targets["ranks"].nan_to_num(torch.inf)
        first = mask & (ranks == ranks.amin(dim=1, keepdim=True))
        mean = (scores * first).sum(dim=1) / first.sum(dim=1)
        chosen = scores.gather(1, best[:, None])[:, 0]
        return of_row + torch.where(mask.sum(dim=1) > 1, (chosen - mean) / self.temperature, 0.0)


@dataclass
class BestWorst(_Lists):
    """[`losses.best_worst`].

    Args:
        sequential (`bool`): Whether the best was picked first, then the worst of the others.
    """

    reads = ("best_worst",)
    sequential: bool = False

    def _of_row(self, scores: Tensor, mask: Tensor, targets: Targets) -> Tensor:
        best, worst = targets["best"].long(), targets["worst"].long()
        return losses.best_worst(scores, best, worst, mask, self.sequential, reduction="none")
