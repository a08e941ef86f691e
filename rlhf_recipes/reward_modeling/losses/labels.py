"""Losses of labels: thumbs, several objectives, the steps of a solution."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.modeling.heads import GATE_OF
from rlhf_recipes.reward_modeling.losses import maths as losses
from rlhf_recipes.reward_modeling.losses.base import (
    Batch,
    Columns,
    Item,
    Objective,
    Targets,
    is_known,
    ordered,
    weight_column,
    weights_of,
    with_prompts,
)

logger = logging.getLogger(__name__)


@dataclass
class BinaryCrossEntropy(Objective):
    """[`losses.binary_cross_entropy`]: the score is the logit of "good".

    Args:
        balanced (`bool`): Whether both labels count alike in all, however rare one is.
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
        if self.balanced:
            self.pos_weight = losses.balanced_pos_weight(torch.tensor(rows["label"], dtype=torch.float64))

    def targets(self, rows: Dataset) -> Columns:
        return {"label": [float(label) for label in rows["label"]], **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["label"])
        return (known * weights_of(targets, known)).sum()

    def total(self, batch: Batch) -> Tensor:
        labels = batch.targets["label"]
        noise = float(self.noise[0]), float(self.noise[1])
        weights = weights_of(batch.targets, labels)
        return losses.binary_cross_entropy(batch.scores, labels, weights, self.pos_weight, noise, "none").sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch.targets["label"]
        asked = ~labels.isnan() & (labels != 0.5)
        return (asked & ((batch.scores > 0) == (labels > 0.5))).sum(), asked.sum()


@dataclass
class MultiObjective(Objective):
    """[`losses.multi_objective`]: an output for each objective, and one score of them.

    Each objective is learned less its mean, divided by its standard deviation, so that none counts more for its scale.
    The score is the weighted mean of the outputs.

    Args:
        kind (`str`): `"mse"`, `"mae"`, `"huber"`, or `"bce"` for scores from 0 to 1, which stay as they are.
        weights (`dict`, *optional*): What each objective counts in the score, and its size in the loss. Default: 1. A
            negative one is a cost.
        gate (`str`, *optional*): Instead of weights, one of the objectives that is the overall judgement, of which
            every row has a score. The model then says for each text how much the other objectives count in it
            ([`losses.gate`]), and the score is their weighted mean, trained on that judgement.
    """

    reads = ("objectives",)
    kind: Literal["mse", "mae", "huber", "bce"] = "mse"
    weights: Mapping[str, float] | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in losses.KINDS:
            raise ValueError(f"kind is {self.kind!r}; give one of {', '.join(losses.KINDS)}.")
        for name, weight in (self.weights or {}).items():
            if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                raise ValueError(f"The weight of {name!r} is {weight!r}; give a number.")
        if self.weights is not None and not any(self.weights.values()):
            raise ValueError(f"weights are {dict(self.weights)}; give one at least that is not 0, or leave them out.")
        if self.gate is not None and (self.weights or self.kind == "bce"):
            raise ValueError("A gate takes the place of weights, and learns distances: leave out weights and bce.")
        self.names: tuple[str, ...] = ()
        self.shifts: dict[str, float] = {}
        self.units: dict[str, float] = {}

    def fit(self, rows: Dataset) -> None:
        self.names = tuple(dict.fromkeys(name for scores in rows["scores"] for name in scores))
        unknown = [name for name in [*(self.weights or {}), self.gate] if name not in (None, *self.names)]
        if unknown:
            raise ValueError(f"weights or gate name {unknown[0]!r}; the objectives are {', '.join(self.names)}.")
        if self.gate is not None:
            self.names = (*(name for name in self.names if name != self.gate), self.gate)  # the last one
            missing = [row for row, scores in enumerate(rows["scores"]) if scores.get(self.gate) is None]
            if missing or len(self.names) < 3:
                raise ValueError(
                    f"A gate needs two objectives besides {self.gate!r}, and {self.gate!r} of each row; there are "
                    f"{len(self.names) - 1}, and {len(missing)} rows are without it."
                )
        for name in self.names:
            values = [scores[name] for scores in rows["scores"] if scores.get(name) is not None]
            if not values:
                raise ValueError(f"No row has a score for the objective {name!r}. Leave it out of the data.")
            keeps = self.kind == "bce"
            if keeps and not 0 <= min(values) <= max(values) <= 1:
                raise ValueError(
                    f"kind bce learns scores from 0 to 1, and {name!r} has {min(values):g} to {max(values):g}. Take "
                    "mse, or bring the scores onto that scale."
                )
            self.shifts[name] = 0.0 if keeps else float(np.mean(values))
            self.units[name] = 1.0 if keeps else float(np.std(values)) or 1.0

    @property
    def label_names(self) -> tuple[str, ...]:  # type: ignore[override]
        if self.gate is None:
            return self.names
        return (*self.names[:-1], *(f"{GATE_OF}{name}" for name in self.names[:-1]))

    def targets(self, rows: Dataset) -> Columns:
        def target(scores: Mapping[str, float | None], name: str) -> float:
            value = scores.get(name)
            return float("nan") if value is None else (float(value) - self.shifts[name]) / self.units[name]

        table = [[target(scores, name) for name in self.names] for scores in rows["scores"]]
        return {"scores": table, **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["scores"]) * self._sizes(targets["scores"])
        return (known * weights_of(targets, known[:, 0])[:, None]).sum()

    def total(self, batch: Batch) -> Tensor:
        targets = batch.targets["scores"]
        sizes = self._sizes(targets)
        of_text = losses.multi_objective(self._outputs(batch), targets, self.kind, sizes, reduction="none")
        return (of_text * weights_of(batch.targets, of_text[:, 0])[:, None]).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(batch)
        counted = [ordered(outputs[:, place], batch.targets["scores"][:, place]) for place in range(len(self.names))]
        return torch.stack([right for right, _ in counted]).sum(), torch.stack([asked for _, asked in counted]).sum()

    def score_labels(self) -> dict[str, float] | None:
        if self.gate is not None:
            return None  # the names of the outputs say it, see LabelScore
        of = {name: float((self.weights or {}).get(name, 0.0 if self.weights else 1.0)) for name in self.names}
        total = sum(abs(weight) for weight in of.values())
        return {name: weight / total for name, weight in of.items()}

    def _outputs(self, batch: Batch) -> Tensor:
        """A prediction for each objective; with a gate the last is the overall one. `(N, O)`"""
        if self.gate is None:
            return batch.logits
        scores, gates = batch.logits.chunk(2, dim=-1)
        return torch.cat([scores, losses.gate(scores, gates)[:, None]], dim=-1)

    def _sizes(self, like: Tensor) -> Tensor:
        sizes = [abs(float((self.weights or {}).get(name, 1.0))) for name in self.names]
        return torch.tensor(sizes, device=like.device, dtype=torch.float32)


@dataclass
class Process(Objective):
    """[`losses.process`]: a label for each step, read at the mark behind it.

    The model is a token classifier, which `rlhf_recipes.rewards.process.StepModel` reads.

    Args:
        kind (`str`): `"bce"` for labels from 0 to 1, or `"mse"`, `"mae"`, `"huber"`.
        step_token (`str`): The mark behind each step; a tokenizer that drops line breaks takes its separator instead.
    """

    reads = ("steps",)
    kind: Literal["bce", "mse", "mae", "huber"] = "bce"
    step_token: str | None = "\n"

    def __post_init__(self) -> None:
        if self.kind not in losses.KINDS:
            raise ValueError(f"kind is {self.kind!r}; give one of {', '.join(losses.KINDS)}.")
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
        return {"labels": labels, **weight_column(rows)}

    def count(self, targets: Targets) -> Tensor:
        known = is_known(targets["labels"]) * (targets["ends"] >= 0)
        return (known * weights_of(targets, known[:, 0])[:, None]).sum()

    def total(self, batch: Batch) -> Tensor:
        scores, labels = self._steps(batch)
        of_step = losses.process(scores, labels, ~labels.isnan(), self.kind, reduction="none")
        return (of_step * weights_of(batch.targets, of_step[:, 0])[:, None]).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        scores, labels = self._steps(batch)
        asked = ~labels.isnan() & (labels != 0.5)
        threshold = 0.0 if self.kind == "bce" else 0.5
        return (asked & ((scores > threshold) == (labels > 0.5))).sum(), asked.sum()

    def _steps(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Scores and labels `(R, S)`; the label of a step that was cut off is NaN."""
        ends, labels = batch.targets["ends"].nan_to_num(-1.0).long(), batch.targets["labels"]
        scores = batch.scores.gather(1, ends.clamp(min=0))
        return scores, torch.where(ends >= 0, labels, torch.nan)
