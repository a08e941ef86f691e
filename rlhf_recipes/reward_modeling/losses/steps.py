"""The loss of the steps of a solution, each of which has a label."""

from dataclasses import dataclass
from typing import Literal

from datasets import Dataset
from torch import Tensor

from rlhf_recipes.reward_modeling.losses.base import (
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    with_prompts,
)
from rlhf_recipes.reward_modeling.losses.ratings import DISTANCES
from rlhf_recipes.starting.options import check_choice


@dataclass
class Process(Objective):
    """A label for each step, read at the mark behind it, averaged over the steps of all rows together.

    So a step counts alike in a short and in a long solution (arXiv 2305.20050 labels steps by hand; arXiv 2312.08935
    by the share of continuations that end right, a soft label). The model is a token classifier, which
    `rlhf_recipes.rewards.process.StepModel` reads.

    Args:
        kind (`str`): `"bce"` for labels from 0 to 1, or `"mse"`, `"mae"`, `"huber"`.
        step_token (`str`): The mark behind each step; a tokenizer that drops line breaks takes its separator instead.
    """

    reads = ("steps",)
    kind: Literal["bce", "mse", "mae", "huber"] = "bce"
    step_token: str | None = "\n"

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, DISTANCES)
        if not self.step_token:
            raise ValueError("step_token is empty; give the mark behind each step, such as a line break.")

    @property
    def score_probabilities(self) -> bool:
        return self.kind == "bce"

    def texts(self, rows: Dataset) -> list[list[Item]]:
        """The steps of each solution; they are read as one text."""
        return with_prompts(rows, rows["completions"])

    def targets(self, rows: Dataset) -> Columns:
        missing = float("nan")
        labels = [[missing if label is None else float(label) for label in row] for row in rows["labels"]]
        return {"labels": labels}

    def known(self, targets: Targets) -> Tensor:
        """Not a step that was cut off, or without a label. `(R, S)`"""
        return ~targets["labels"].isnan() & (targets["ends"] >= 0)

    def losses(self, batch: Batch) -> Tensor:
        labels = batch.targets["labels"].nan_to_num(0.0)
        return DISTANCES[self.kind](self._scores(batch), labels, reduction="none")

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.targets["labels"]
        asked = self.known(batch.targets) & (labels != 0.5)
        threshold = 0.0 if self.kind == "bce" else 0.5
        return (asked & ((self._scores(batch) > threshold) == (labels > 0.5))).sum(), asked.sum()

    def _scores(self, batch: Batch) -> Tensor:
        """At the end of each step, `(R, S)`."""
        ends = batch.targets["ends"].nan_to_num(0.0).clamp(min=0).long()
        return batch.scores.gather(1, ends)
