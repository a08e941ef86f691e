"""Rows of feedback with the scores that a reward gives to their completions: each text goes through the model once.

```
pairs, votes                  two scores a row, of chosen and rejected
rankings, best_worst          one for each completion of the list
steps                         one for each step (see `score_steps`)
all others                    one
```
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from rlhf_recipes.data.chat import KWARGS, kwargs_of
from rlhf_recipes.data.columns import prompts_of
from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.modeling.reading import check_finite, model_outputs
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.process import STEP_BREAK, StepModel
from rlhf_recipes.statistics import shared
from rlhf_recipes.texts import Text, as_text, one_text, prompt_and_completion

logger = logging.getLogger(__name__)
Floats = NDArray[np.float64]
Scorer = Callable[..., Sequence[float | None]]


@dataclass(frozen=True)
class Scored:
    """Rows of one split, and what a reward says of each of their completions.

    `outputs` has for each name of an output of the model its value for each row, where the model has several and rows
    have one completion.
    """

    kind: Kind
    dataset: Dataset  # the rows that have a score
    scores: list[list[float]]  # of the completions of each row, in the order of the columns
    prompts: list[str]  # as plain text, up to where a completion begins
    completions: list[list[str]]
    outputs: dict[str, list[float]]
    unscored: int = 0  # rows that were left out, because the reward says nothing of one of their completions

    def column(self, place: int) -> list[float]:
        """One score of each row: that of its completion, or with `place` 1 that of the rejected one. `(N,)`"""
        return [of_row[place] for of_row in self.scores]

    def texts(self, place: int = 0) -> list[str]:
        """Prompt and completion as one plain text, as baselines read them. `(N,)`"""
        return [prompt + texts[place] for prompt, texts in zip(self.prompts, self.completions, strict=True)]

    def flat(self, values: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[int], list[str]]:
        """Lists laid end to end: scores, `values` beside them, the row of each, and its plain text. `(M,)` each"""
        rows = [row for row, of_row in enumerate(self.scores) for _ in of_row]
        texts = [self.prompts[row] + text for row, own in enumerate(self.completions) for text in own]
        return [s for own in self.scores for s in own], [v for own in values for v in own], rows, texts

    def shared_prompts(self) -> list[str] | None:
        """The prompt of each row, where one of them has several rows; else `None`, and rows are all there is."""
        return None if shared(self.prompts) is None else self.prompts


def kind_of(dataset: Dataset, kind: Kind | None = None) -> Kind:
    """The format of feedback, from the columns where it is not given."""
    return recognize(dataset).kind if kind is None else kind


def score_rows(reward: Scorer, dataset: Dataset, kind: Kind | None = None) -> Scored:
    """Score all completions of some rows of feedback.

    The same completion of the same prompt is scored once, in however many rows it stands. A row with a completion that
    the reward says nothing of (`None`) is left out and counted.

    Args:
        reward (callable):
            `f(prompts, completions) -> list[float | None]`. Of a [`~rlhf_recipes.rewards.learned.LearnedReward`]
            without calibration all outputs are kept, where it has several.
        dataset ([`~datasets.Dataset`]): Rows as `rlhf_recipes.data.feedback.read.normalize` makes them.
        kind (`str`, *optional*): Their format. Default: what the columns say.

    Raises:
        `ValueError`: if no row has a score, or the rows are steps, which [`score_steps`] scores.
    """
    kind = kind_of(dataset, kind)
    if kind == "steps":
        raise ValueError("Rows of the format 'steps' have a score for each step; call score_steps.")
    plain = dataset.with_format(None)
    lists = _completions(plain, kind)
    prompts = prompts_of(plain, [text for own in lists for text in own])
    places: dict[str, int] = {}
    asked: list[tuple[Text, Text, dict[str, Any]]] = []
    index: list[list[int]] = []
    for prompt, own, kwargs in zip(prompts, lists, kwargs_of(plain), strict=True):
        keys = [json.dumps([prompt, text, kwargs]) for text in own]
        for key, text in zip(keys, own, strict=True):
            if key not in places:
                places[key] = len(asked)
                asked.append((prompt, text, kwargs))
        index.append([places[key] for key in keys])
    values, outputs = _scores_of(reward, [item[:2] for item in asked], [kwargs for *_, kwargs in asked])
    kept = [row for row, own in enumerate(index) if all(values[place] is not None for place in own)]
    if not kept:
        raise ValueError(f"The reward says nothing (None) of all {len(index)} rows of {kind}, so nothing is measured.")
    if len(kept) < len(index):
        logger.warning("Left out %d of %d rows without a score.", len(index) - len(kept), len(index))
    single = all(len(own) == 1 for own in index)
    return Scored(
        kind,
        plain if len(kept) == len(index) else plain.select(kept),
        [[float(values[place] or 0.0) for place in index[row]] for row in kept],
        [prompt_and_completion(prompts[row], "")[0] for row in kept],
        [[as_text(text) for text in lists[row]] for row in kept],
        {name: [column[index[row][0]] for row in kept] for name, column in outputs.items()} if single else {},
        len(index) - len(kept),
    )


def score_steps(model: StepModel, dataset: Dataset) -> Scored:
    """Score every step of some rows of steps with a process reward model.

    A row of which a step was cut off, because it is too long for the model, is left out and counted.

    Args:
        model ([`~rlhf_recipes.rewards.process.StepModel`]): Its scores are probabilities that a step is right.
        dataset ([`~datasets.Dataset`]): Rows with `completions` (the steps) and `labels`.
    """
    plain = dataset.with_format(None)
    lists: list[list[Text]] = list(plain["completions"])
    prompts = prompts_of(plain, [text for own in lists for text in own])
    texts = [[as_text(step) for step in steps] for steps in lists]
    spans = []
    for steps in texts:
        starts = np.cumsum([0, *(len(step) + len(STEP_BREAK) for step in steps[:-1])])
        spans.append([(int(start), int(start) + len(step)) for start, step in zip(starts, steps, strict=True)])
    read = model.scores(prompts, [STEP_BREAK.join(steps) for steps in texts], spans, "the process reward model")
    scores = [[score for score in own if score is not None] for own in read]
    kept = [row for row, own in enumerate(scores) if len(own) == len(texts[row])]
    if not kept:
        raise ValueError(f"All {len(texts)} rows are too long for the model to read; raise max_length.")
    check_finite(scores, "process", prompts, [STEP_BREAK.join(steps) for steps in texts])
    return Scored(
        "steps",
        plain if len(kept) == len(texts) else plain.select(kept),
        [scores[row] for row in kept],
        [prompt_and_completion(prompts[row], "")[0] for row in kept],
        [texts[row] for row in kept],
        {},
        len(texts) - len(kept),
    )


def _completions(dataset: Dataset, kind: Kind) -> list[list[Text]]:
    if kind in ("pairs", "votes"):
        return [list(both) for both in zip(dataset["chosen"], dataset["rejected"], strict=True)]
    if kind in ("rankings", "best_worst"):
        return list(dataset["completions"])
    return [[text] for text in dataset["completion"]]


def _scores_of(
    reward: Scorer, asked: Sequence[tuple[Text, Text]], template_kwargs: Sequence[dict[str, Any]]
) -> tuple[Sequence[float | None], dict[str, list[float]]]:
    """The scores of prompts and completions, and each output of a model that has several, out of the same pass."""
    prompts, completions = [prompt for prompt, _ in asked], [text for _, text in asked]
    if not isinstance(reward, LearnedReward) or reward.model.config.num_labels == 1 or reward.calibration is not None:
        given: dict[str, Any] = {KWARGS: template_kwargs} if any(template_kwargs) else {}
        return reward(prompts, completions, **given), {}
    names = [str(reward.model.config.id2label[place]) for place in range(reward.model.config.num_labels)]
    encoded = reward.encode(prompts, completions, template_kwargs)
    logits = torch.empty(len(encoded), len(names))
    for rows, output in model_outputs(reward.model, encoded, reward.batch_size, reward.tokenizer.pad_token_id):
        logits[rows] = output.logits.float().cpu()
    scores = reward.head(logits).tolist()
    check_finite(scores, reward.__name__, prompts, completions)
    return scores, {name: logits[:, place].tolist() for place, name in enumerate(names)}


@dataclass(frozen=True)
class Texts:
    """Prompts and completions, side by side, as a reward takes them, and what chat templates are given for each."""

    prompts: list[Text]
    completions: list[Text]
    template_kwargs: list[dict[str, Any]] | None = None

    @classmethod
    def of(cls, dataset: Dataset, column: str) -> "Texts":
        """One column of completions with the prompts of the rows; with none, of text or messages as fits."""
        completions = list(dataset[column])
        return cls(prompts_of(dataset, completions), completions, kwargs_of(dataset))

    def plain(self) -> list[str]:
        """Prompt and completion as one plain text, for whatever does not read messages."""
        return list(map(one_text, self.prompts, self.completions))
