"""The loss of several objectives that are rated apart: an output for each, and one score of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.modeling.heads import GATE_OF
from rlhf_recipes.reward_modeling.losses.base import Batch, Columns, Objective, Targets
from rlhf_recipes.reward_modeling.losses.maths import ordered
from rlhf_recipes.reward_modeling.losses.ratings import DISTANCES
from rlhf_recipes.starting.options import check_choice


@dataclass
class MultiObjective(Objective):
    """`sum w_o * l(s_bo, y_bo) / sum w_o` over the targets that are there: an output for each objective.

    Rows need not be rated on every objective (the first stage of ArmoRM, arXiv 2406.12845). The mean is over all
    targets of the batch, so that an objective with few ratings counts little unless its weight is raised. Each
    objective is learned less its mean, divided by its standard deviation, so that none counts more for its scale. The
    score is the weighted mean of the outputs.

    Args:
        kind (`str`): `"mse"`, `"mae"`, `"huber"`, or `"bce"` for scores from 0 to 1, which stay as they are.
        weights (`dict`, *optional*): What each objective counts in the score, and its size in the loss. Default: 1. A
            negative one is a cost.
        gate (`str`, *optional*): Instead of weights, one of the objectives that is the overall judgement, of which
            every row has a score. The model then says for each text how much the other objectives count in it, and
            the score is their weighted mean, trained on that judgement: `sum_o softmax(gates)_o * s_o` (the gate of
            ArmoRM). So a better objective never lowers the score, which stays between the lowest and the highest.
    """

    reads = ("objectives",)
    kind: Literal["mse", "mae", "huber", "bce"] = "mse"
    weights: Mapping[str, float] | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, DISTANCES)
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
        return {"scores": table}

    def known(self, targets: Targets) -> Tensor:
        """Times the size of each objective in the loss. `(R, O)`"""
        known = ~targets["scores"].isnan()
        sizes = [abs(float((self.weights or {}).get(name, 1.0))) for name in self.names]
        return known * torch.tensor(sizes, device=known.device)

    def losses(self, batch: Batch) -> Tensor:
        targets = batch.targets["scores"].nan_to_num(0.0)
        return DISTANCES[self.kind](self._outputs(batch), targets, reduction="none")

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
        return torch.cat([scores, (gates.softmax(dim=-1) * scores).sum(dim=-1, keepdim=True)], dim=-1)
