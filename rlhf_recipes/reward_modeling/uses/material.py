"""The data of a compression (`recipes/compress.py`), for reward models and classifiers of good and bad.

It has the parts of [`~rlhf_recipes.compression.material.Material`], and knows nothing of compression.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_recipes.data.collators import FeedbackCollator, padded
from rlhf_recipes.data.columns import prompts_of
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.pairs import draw_pairs
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.reward_modeling.evaluation.measure import load_validation, measure
from rlhf_recipes.reward_modeling.examples import example_rows, load_feedback, tokenize
from rlhf_recipes.reward_modeling.losses import choose_loss, make_objective
from rlhf_recipes.reward_modeling.losses.base import Batch
from rlhf_recipes.reward_modeling.scored import Texts, kind_of
from rlhf_recipes.texts import Text, one_text

PASSES = 8  # pairs that each text of the test rows has a part in, where they are drawn
Item = tuple[Text, Text]


class FeedbackMaterial:
    """Feedback for a sequence classifier with one output.

    Args:
        data ([`~rlhf_recipes.data.loading.DataArguments`]): Pairs, votes, ratings, rankings, best_worst, labels.
        args: Settings as in [`~rlhf_recipes.compression.config.CompressConfig`]: `loss`, `loss_args`, `min_gap`,
            `max_length`, `calibration_rows`, `per_device_eval_batch_size`, `samples`, `seed`.
        tokenizer (`PreTrainedTokenizerBase`): The model's.
        folder (`str` or `Path`): That of the model, whose `reward_config.json` says how texts are read.
        device (`torch.device`): Of the calibration data.

    Raises:
        `ValueError`: if the feedback has another kind, the loss does not read it, or there are fewer than two rows.
    """

    def __init__(
        self, data: DataArguments, args: Any, tokenizer: Any, folder: str | Path, device: torch.device
    ) -> None:
        self.args = args
        self.tokenizer = tokenizer
        self.device = device
        self.settings = RewardModelSettings.load(folder)
        train = load_feedback(data, data.dataset_train_split, data.max_train_samples)
        test = load_feedback(data, data.dataset_test_split, data.max_eval_samples)
        self.feedback = kind_of(train)
        if self.feedback not in ("pairs", "votes", "ratings", "rankings", "best_worst", "unpaired"):
            raise ValueError(
                f"The rows are {self.feedback}, which a compression is not measured on. Take pairs, votes, ratings, "
                "rankings, best_worst or labels (unpaired), or convert them (docs/feedback_formats.md)."
            )
        if len(train) < 2 or len(test) < 2:
            raise ValueError(
                f"There are {len(train)} training rows and {len(test)} test rows, and what a structure is worth "
                "cannot hang on a single row: give 2 or more, and better 32 or more."
            )
        self.kind = "labels" if self.feedback == "unpaired" else "pairs"
        loss = choose_loss(args.loss, self.feedback)
        if loss == "bradley_terry" and self.feedback == "ratings":
            raise ValueError("loss is bradley_terry, and ratings are no pairs. Take pairs_in_batch or mse.")
        self.objective = make_objective(loss, args.loss_args, min_gap=args.min_gap)
        self.objective.fit(train)
        if len(self.objective.label_names) != 1 or self.objective.parameters() is not None:
            raise ValueError(f"The loss {loss} is not for a model with one output. Take another that reads the rows.")
        self.data, self.rows = data, (train, test)
        self.train: Dataset = example_rows(train, self.objective, tokenizer, self.settings)
        self.collate = FeedbackCollator(tokenizer)
        first = train.shuffle(args.seed).select(range(min(args.calibration_rows, len(train))))
        self.test = self._known(test, PASSES)
        self.calibration = self._batches(*self._known(first, 1))

    def counts(self, batch: Mapping[str, Any]) -> Tensor:
        """`(2,)`: of how much the own loss is a mean, and how many texts there are."""
        own = self.objective.count(batch["targets"]).float()
        return torch.stack([own, torch.tensor(float(len(batch["input_ids"])), device=own.device)])

    def loss(self, said: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The sum of the losses on the labels, of outputs `(N, 1)`."""
        return self.objective.total(Batch(said.float(), batch["rows"], batch["places"], batch["targets"]))

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, Any]:
        """Accuracy and mean log-probability of the test rows: of the preference in pairs, or of labels."""
        items, pairs, labels = self.test
        scores = self._scores(model, items)
        if self.kind == "labels":
            signed = scores * (2 * torch.tensor(labels) - 1)
            units = None
        else:
            signed = torch.stack([scores[a] - scores[b] for a, b in pairs])
            units = [[one_text(*items[place]) for place in side] for side in zip(*pairs, strict=True)]
        right = ((signed.sign() + 1) / 2).tolist()
        nll = (-torch.nn.functional.logsigmoid(signed)).tolist()
        name = "accuracy" if self.kind == "labels" else "pairwise_accuracy"
        ones = [1.0] * len(right)
        columns = {name: (right, ones), "log_loss": (nll, ones)}
        return {"columns": columns, "exponentials": [], "shares": [name], "units": units}

    def samples(self, model: Any) -> list[dict[str, Any]]:
        """Scores of a few test rows."""
        items = self.test[0][: self.args.samples]
        with torch.no_grad():
            scores = self._scores(model, items)
        return [
            {"prompt": "", "completion": one_text(*item), "scores": {"score": round(float(score), 4)}}
            for item, score in zip(items, scores, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Write tokenizer and settings beside a model, without what made ratings of the original's scores."""
        self.tokenizer.save_pretrained(folder)
        dataclasses.replace(self.settings, calibration=None).save(folder)

    def evaluate(self, folder: Path) -> dict[str, Any]:
        """Calibrate the model that lies in a folder, and measure it as `recipes/reward.py` does."""
        train, test = self.rows
        return measure(folder, train, load_validation(self.data, self.args), test, self.args, self.feedback)

    def _known(self, rows: Dataset, passes: int) -> tuple[list[Item], list[tuple[int, int]], list[float]]:
        """Texts, which of two is better, and labels."""
        kind = self.feedback
        if kind in ("pairs", "votes"):
            chosen, rejected = list(rows["chosen"]), list(rows["rejected"])
            prompts = prompts_of(rows, chosen)
            items = [item for p, c, r in zip(prompts, chosen, rejected, strict=True) for item in ((p, c), (p, r))]
            pairs = [(2 * row, 2 * row + 1) for row in range(len(chosen))]
            if kind == "votes":
                ahead = [a >= b for a, b in zip(rows["chosen_votes"], rows["rejected_votes"], strict=True)]
                pairs = [(a, b) if first else (b, a) for (a, b), first in zip(pairs, ahead, strict=True)]
            return items, pairs, []
        if kind in ("rankings", "best_worst"):
            return *_of_lists(rows, kind), []
        completions = list(rows["completion"])
        items = list(zip(prompts_of(rows, completions), completions, strict=True))
        if kind == "unpaired":
            return items, [], [float(label) for label in rows["label"]]
        keys = [repr(item) for item in items]
        drawn = draw_pairs(keys, rows["score"], passes, self.args.min_gap)  # the same ones for all seeds
        return items, [(int(a), int(b)) for a, b in drawn], []

    def _batches(self, items: list[Item], pairs: list[tuple[int, int]], labels: list[float]) -> list[dict[str, Any]]:
        ids = self._ids(items)
        size = self.args.per_device_eval_batch_size
        if labels:
            starts = range(0, len(ids), size)
            return [self._padded(ids[s : s + size]) | {"labels": torch.tensor(labels[s : s + size]).to(self.device)}
                    for s in starts]  # fmt: skip
        half = max(1, size // 2)
        parts = [pairs[s : s + half] for s in range(0, len(pairs), half)]
        return [self._padded([ids[place] for pair in part for place in pair]) for part in parts]

    def _ids(self, items: Sequence[Item]) -> list[list[int]]:
        return tokenize(Texts([p for p, _ in items], [c for _, c in items]), self.tokenizer, self.settings)

    def _padded(self, ids: Sequence[Sequence[int]]) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in padded(ids, self.tokenizer.pad_token_id).items()}

    def _scores(self, model: Any, items: Sequence[Item]) -> Tensor:
        """Of each text, on the CPU in float64. `(N,)`"""
        ids, size = self._ids(items), self.args.per_device_eval_batch_size
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        scores = torch.empty(len(ids), dtype=torch.float64)
        parts = [order[start : start + size] for start in range(0, len(order), size)]
        for part in tqdm(parts, desc="Measuring", unit="batch", leave=False, disable=self.args.disable_tqdm):
            logits = model(**self._padded([ids[place] for place in part])).logits
            scores[part] = logits[:, 0].double().cpu()
        return scores


def _of_lists(rows: Dataset, kind: str) -> tuple[list[Item], list[tuple[int, int]]]:
    """The best of each list against the worst."""
    items: list[Item] = []
    pairs: list[tuple[int, int]] = []
    lists = list(rows["completions"])
    for row, (prompt, own) in enumerate(
        zip(prompts_of(rows, [text for of in lists for text in of]), lists, strict=True)
    ):
        if kind == "best_worst":
            best, worst = rows["best"][row], rows["worst"][row]
        else:
            ranks = rows["ranks"][row]
            best, worst = (ranks.index(end(ranks)) for end in (min, max))
        if best != worst:
            pairs.append((len(items) + best, len(items) + worst))
        items += [(prompt, text) for text in own]
    return items, pairs
