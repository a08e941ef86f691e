"""What a loss is to the trainer: which texts a row has, what is known of them, and how logits become a score.

What holds for all losses:

- A higher score is a better text. Differences are taken before exponentials: losses and gradients are finite for
  scores of any size that float32 can square.
- A target that is missing (NaN) does not count, nor does a list of one completion, which compares nothing. A score
  that is NaN is not hidden.
- Losses that compare (pairs, lists, best and worst) do not change if a number is added to all scores of a comparison,
  unless they are centered; those of ratings, levels, labels and steps fix where 0 is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from datasets import Dataset
from torch import Tensor

from rlhf_recipes.data.columns import prompts_of
from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.modeling.calibration import Calibration
from rlhf_recipes.texts import Text

WEIGHT = "weight"  # a column of the rows, wherever it is there: how much each counts
Item: TypeAlias = tuple[Text, Text]  # a prompt and a completion
Targets: TypeAlias = dict[str, Tensor]
Columns: TypeAlias = dict[str, list[Any]]


@dataclass(frozen=True)
class Batch:
    """One batch as a loss sees it: R rows with K texts at most, N texts in all.

    Args:
        logits (`(N, outputs)`, or `(N, L, outputs)` of a token classifier): What the model says.
        rows (`(N,)`), places (`(N,)`): Which row each text belongs to, and its place in it.
        targets (`dict`): `(R,)`, or `(R, K)` with NaN where there is nothing.
    """

    logits: Tensor
    rows: Tensor
    places: Tensor
    targets: Targets

    @property
    def scores(self) -> Tensor:
        """`(N,)`"""
        return self.logits[..., 0]

    def lists(self) -> tuple[Tensor, Tensor]:
        """Scores as `(R, K)` with 0 on padding, and where they are real."""
        shape = int(self.rows.max()) + 1, int(self.places.max()) + 1
        mask = torch.zeros(shape, dtype=torch.bool, device=self.rows.device)
        mask[self.rows, self.places] = True
        return self.scores.new_zeros(shape).index_put((self.rows, self.places), self.scores), mask


class Objective:
    """One loss with its settings, and what it has learned from the training rows before training.

    `fit` looks at the training rows once. `texts` and `targets` read rows of any split. A loss of your own defines
    `reads`, `targets`, `known`, `losses` and `right`; `docs/adding.md` shows one.
    """

    reads: ClassVar[tuple[Kind, ...]]
    text_columns: ClassVar[tuple[str, ...]] = ("completion",)
    fixes_level: ClassVar[bool] = True  # False where a loss compares scores and leaves their level free
    predicts_rating: ClassVar[bool] = False  # True where the score is a rating, and the target "score" too
    compares_rows: bool = False  # True where a batch of one row would teach nothing
    step_token: str | None = None  # the mark behind each step, where the model is a token classifier
    label_names: tuple[str, ...] = ("reward",)

    def fit(self, rows: Dataset) -> None:
        """Learn from the training rows what the loss has to know: levels, names, scale."""

    def texts(self, rows: Dataset) -> list[list[Item]]:
        """The texts of each row, each a prompt and a completion."""
        columns = [rows[name] for name in self.text_columns]
        return with_prompts(rows, [list(texts) for texts in zip(*columns, strict=True)])

    def targets(self, rows: Dataset) -> Columns:
        """What is known of each row; a number, or a list of them. How much a row counts is no part of it."""
        raise NotImplementedError

    def weighed_targets(self, rows: Dataset) -> Columns:
        """The same, and how much each row counts, where the rows say it."""
        weights = {WEIGHT: [float(value) for value in rows[WEIGHT]]} if WEIGHT in rows.column_names else {}
        return {**self.targets(rows), **weights}

    def parameters(self) -> torch.nn.Module | None:
        """What the loss itself learns, if it learns anything."""
        return None

    def known(self, targets: Targets) -> Tensor:
        """1 where there is something to learn, of the shape of [`losses`]: rows, pairs, objectives or steps."""
        raise NotImplementedError

    def losses(self, batch: Batch) -> Tensor:
        """The loss of each row, pair, objective or step; any finite number where `known` is 0."""
        raise NotImplementedError

    def count(self, targets: Targets) -> Tensor:
        """How much the mean of a batch is over: `total / count` is its loss. Both are sums, so that the mean over
        several batches and processes is that of all their rows."""
        return self._weights(targets).sum()

    def total(self, batch: Batch) -> Tensor:
        """The sum of the losses of a batch, each times its weight."""
        return (self.losses(batch) * self._weights(batch.targets)).sum()

    def right(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """How much of a batch is in the order, or on the side, that people say, and of how much; for the log."""
        raise NotImplementedError

    def calibration(self) -> Calibration | None:
        """From the score to the unit of the feedback, where the loss itself says it."""
        return None

    def score_labels(self) -> dict[str, float] | None:
        """What each output of the model counts in the score, where it has several."""
        return None

    @property
    def score_probabilities(self) -> bool:
        """Whether outputs become probabilities before they are weighed."""
        return False

    def _weights(self, targets: Targets) -> Tensor:
        known = self.known(targets).to(torch.float32)
        if WEIGHT not in targets:
            return known
        return known * targets[WEIGHT].to(torch.float32).reshape(-1, *[1] * (known.ndim - 1))


def with_prompts(rows: Dataset, completions: Sequence[Sequence[Any]]) -> list[list[Item]]:
    """Put the prompt of each row before each of its completions; where there is none, an empty one that fits them."""
    prompts = prompts_of(rows, [of_row[0] for of_row in completions])
    pairs = zip(prompts, completions, strict=True)
    return [[(prompt, completion) for completion in of_row] for prompt, of_row in pairs]


def check_range(name: str, value: float, low: float, high: float | None = None) -> None:
    """Raise `ValueError` where a setting is out of its range."""
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value}; give {low:g} {'or more' if high is None else f'to {high:g}'}.")


def check_positive(name: str, value: float) -> None:
    """Raise `ValueError` where a setting is not above 0."""
    if value <= 0:
        raise ValueError(f"{name} is {value}; give more than 0.")
