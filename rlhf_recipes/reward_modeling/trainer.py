"""Training on feedback that is no plain pair, with the habits of TRL's `RewardTrainer`.

Plain pairs go through `trl.RewardTrainer` itself. All other feedback goes through [`FeedbackTrainer`], which differs
in one thing: a row may have any number of texts, and the loss is one of `losses/`. Of plain pairs both make the same
weights.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import RewardTrainer

from rlhf_recipes.checkpoints import check_best_metric
from rlhf_recipes.data.collators import FeedbackCollator, PairCollator
from rlhf_recipes.modeling.cost.threads import best_thread_count
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import disable_dropout
from rlhf_recipes.modeling.tokenizers.text_ends import ending_tokenizer
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.debias import group_penalty, residual_scores
from rlhf_recipes.reward_modeling.examples import example_rows, pair_rows, rendered_by_template
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.base import WEIGHT, Batch, Objective

logger = logging.getLogger(__name__)
OBJECTIVE_FILE = "objective.safetensors"


class FeedbackTrainer(Trainer):
    """Train a reward model on any feedback, by one of the losses of `rlhf_recipes.reward_modeling.losses`.

    The mean of the loss is over all rows of an optimizer step, so that micro-batches, accumulation and processes
    change nothing (a loss that compares the texts of a batch, `pairs_in_batch`, sees those of one micro-batch). As
    `RewardTrainer` does, it logs `accuracy` (in the order, or on the side, that people say), `min_reward`,
    `mean_reward`, `max_reward` and `num_tokens`, and turns dropout off unless `disable_dropout` is `False`.

    What a loss learns itself (the thresholds of `ordinal`) is trained beside the model, and lies in
    `objective.safetensors` of each checkpoint.

    Args:
        model (`PreTrainedModel` or `PeftModel`): With as many outputs as the objective has labels.
        args ([`RewardConfig`]): The settings.
        objective ([`~rlhf_recipes.reward_modeling.losses.base.Objective`]): The loss, fitted to the training rows.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]): The model's tokenizer.
        train_dataset, eval_dataset ([`~datasets.Dataset`]): As `example_rows` makes them.
        data_collator (`Callable`, *optional*): Default: [`~rlhf_recipes.data.collators.FeedbackCollator`]. Tensors
            that are none of its own (pixels, say) go to the model.

    Raises:
        `ValueError`: if the model has another number of outputs, or the loss has thresholds to learn and ZeRO-3 would
            cut them up.
    """

    _tag_names = ["trl", "reward-trainer"]
    loss_is_scaled_for_ga = True  # by the count of the whole step, see compute_loss

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        args: RewardConfig,
        objective: Objective,
        processing_class: PreTrainedTokenizerBase,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | None = None,
        data_collator: Callable[..., Any] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        **kwargs: Any,
    ) -> None:
        check_best_metric(args, eval_dataset)
        outputs = len(objective.label_names)
        if model.config.num_labels != outputs:
            raise ValueError(f"The model has {model.config.num_labels} outputs, but the loss needs {outputs}.")
        self.objective: Objective = objective
        self.group_weight = args.group_penalty
        if args.group_penalty and not objective.predicts_rating:
            raise ValueError("group_penalty compares scores with ratings. Take the loss mse, mae or huber with it.")
        if objective.compares_rows and args.per_device_train_batch_size < 2:
            raise ValueError(
                "This loss compares the texts of a batch, and per_device_train_batch_size is 1. Give 2 or more, or "
                "better dozens: accumulation does not bring the texts together."
            )
        if args.debias and (outputs > 1 or objective.step_token is not None):
            raise ValueError("debias is for one score of a text. Leave it out with several outputs, and with steps.")
        if args.center_rewards_coefficient is not None and not hasattr(objective, "center"):
            raise ValueError("center_rewards_coefficient is for bradley_terry on pairs. Leave it out with this loss.")
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # else thresholds, which are no part of forward, count twice
        own = objective.parameters()
        if own is not None:
            if args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3:
                raise ValueError("This loss has thresholds of its own, which ZeRO-3 would cut up. Take ZeRO-2 or DDP.")
            # A part of the model while it is trained: so it is on its device, in its optimizer, and synchronized.
            model.objective = own
        if args.disable_dropout:
            disable_dropout(model)
        model.config.use_cache = False
        multiple = cast(int | None, args.pad_to_multiple_of)
        super().__init__(
            model=cast(PreTrainedModel, model),
            args=args,
            data_collator=data_collator or FeedbackCollator(processing_class, multiple),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[_KeepObjective(own), *(callbacks or [])],
            **kwargs,
        )
        # In evaluation Trainer asks compute_loss only of a model that can return a loss without labels.
        self.can_return_loss = True
        self.label_names = []
        self._sums: dict[str, dict[str, list[float]]] = {"train": defaultdict(list), "eval": defaultdict(list)}
        self._tokens = 0
        if isinstance(model, PreTrainedModel):
            model.add_model_tags(self._tag_names)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train; from a checkpoint, with the thresholds that it has."""
        own = self.objective.parameters()
        if own is not None and isinstance(resume_from_checkpoint, str):
            own.load_state_dict(load_file(Path(resume_from_checkpoint) / OBJECTIVE_FILE))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; into a checkpoint, the thresholds too, before trainer_state.json says that it is whole."""
        super().save_model(output_dir, _internal_call)
        own = self.objective.parameters()
        if _internal_call and own is not None and self.is_world_process_zero():
            tensors = {name: tensor.contiguous() for name, tensor in own.state_dict().items()}
            save_file(tensors, Path(str(output_dir)) / OBJECTIVE_FILE)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """The batches of one optimizer step, and over how many rows, texts or pairs of all processes its mean is."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        counts = [self.objective.count(_on(batch["targets"], device)).float() for batch in samples]
        return samples, self.accelerator.gather(torch.stack(counts).sum().reshape(1)).sum()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The share of a batch in the mean loss of its optimizer step; in evaluation, its own mean."""
        known = {name: inputs[name] for name in ("rows", "places", "targets", "covariates") if name in inputs}
        outputs = model(**{name: value for name, value in inputs.items() if name not in known})
        batch = Batch(outputs.logits.float(), known["rows"], known["places"], known["targets"])
        batch = self._without_bias(batch, known.get("covariates"))
        total = self.objective.total(batch)
        if self.group_weight and model.training:
            total = total + self._unfairness(batch)
        if num_items_in_batch is None:
            loss = total / self.objective.count(batch.targets).clamp(min=1e-9)
        else:
            # Processes average their gradients, where the sum over all of them is wanted.
            loss = total * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1e-9)
        self._note("train" if model.training else "eval", batch, inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        mode = "train" if cast(Any, self.model).training else "eval"
        prefix = "" if mode == "train" else "eval_"
        sums = self._sums[mode]
        if sums:
            logs[f"{prefix}accuracy"] = sum(sums["right"]) / max(sum(sums["asked"]), 1.0)
            for name in ("min_reward", "max_reward"):  # as in TRL, the mean over batches
                logs[prefix + name] = sum(sums[name]) / len(sums[name])
            logs[f"{prefix}mean_reward"] = sum(sums["score"]) / sum(sums["scores"])
            logs[f"{prefix}num_tokens"] = self._tokens
        super().log(logs, start_time)
        sums.clear()

    def _without_bias(self, batch: Batch, covariates: torch.Tensor | None) -> Batch:
        if covariates is None:
            return batch
        scores = residual_scores(batch.scores, covariates, keep_mean=self.objective.fixes_level)
        return Batch(scores[:, None], batch.rows, batch.places, batch.targets)

    def _unfairness(self, batch: Batch) -> torch.Tensor:
        """The penalty of a micro-batch, as a sum over its rows: a mean over the step is taken of it as of the loss."""
        groups = batch.targets["group"].nan_to_num(-1.0).long()
        penalty = group_penalty(batch.scores, batch.targets["score"], groups)
        return self.group_weight * penalty * self.objective.count(batch.targets)

    @torch.no_grad()
    def _note(self, mode: str, batch: Batch, mask: torch.Tensor) -> None:
        scores = batch.logits.detach()
        right, asked = self.objective.right(batch)
        mine = torch.stack(
            [right, asked, scores.sum(), torch.tensor(scores.numel(), device=scores.device), mask.sum()]
        )
        sums = self.accelerator.gather(mine.double().reshape(1, -1)).sum(dim=0).tolist()
        ends = self.accelerator.gather(torch.stack([scores.min(), -scores.max()]).reshape(1, -1)).amin(dim=0)
        found = {"right": sums[0], "asked": sums[1], "score": sums[2], "scores": sums[3]}
        found |= {"min_reward": ends[0].item(), "max_reward": -ends[1].item()}
        for name, value in found.items():
            self._sums[mode][name].append(value)
        if mode == "train":
            self._tokens += int(sums[4])


class _KeepObjective(TrainerCallback):
    """Takes what a loss had learned by the best checkpoint."""

    def __init__(self, own: torch.nn.Module | None) -> None:
        self.own = own

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # Trainer has taken the best model by now; its thresholds belong to it.
        if self.own is not None and args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.own.load_state_dict(load_file(Path(state.best_model_checkpoint) / OBJECTIVE_FILE))


def _on(targets: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    return {name: tensor.to(device) for name, tensor in targets.items()}


def is_plain_pairs(loss: str, rows: Dataset, args: RewardConfig) -> bool:
    """Whether the training is that of TRL's `RewardTrainer`: Bradley-Terry on pairs that are right or wrong.

    Raises:
        `ValueError`: if pairs are to be drawn of ratings with options that need the texts of a batch together.
    """
    options = bool(args.loss_args) or bool(args.debias)
    if loss == "bradley_terry" and "score" in rows.column_names:
        options = options or WEIGHT in rows.column_names
        if options:
            raise ValueError(
                "bradley_terry on ratings draws pairs and takes neither loss_args nor debias nor weights. Take loss: "
                "pairs_in_batch or mse, or make pairs of the ratings first (convert_to: pairs)."
            )
        return True
    own = {"chosen_votes", "target", WEIGHT} & set(rows.column_names)
    return loss == "bradley_terry" and not options and not own


def fitted_objective(loss: str, rows: Dataset, args: RewardConfig) -> Objective:
    """The loss of a run, with its settings, and with what it has learned from the training rows.

    Args:
        loss (`str`): Its name, as `choose_loss` gives it.
        rows ([`~datasets.Dataset`]): The training rows.
        args ([`RewardConfig`]): `loss_args`, `min_gap` and `center_rewards_coefficient` are used.

    Raises:
        `ValueError`: as `make_objective`, and where the rows do not suit the loss.
    """
    center = args.center_rewards_coefficient or 0.0
    objective = make_objective(loss, args.loss_args, min_gap=args.min_gap, center=center)
    objective.fit(rows)
    return objective


def make_trainer(
    model: Any,
    loss: str,
    objective: Objective,
    train: Dataset,
    held_out: Dataset | None,
    tokenizer: PreTrainedTokenizerBase,
    settings: RewardModelSettings,
    args: RewardConfig,
) -> Trainer:
    """TRL's trainer for plain pairs, ours for all else, with the rows that it takes.

    Args:
        model (`PreTrainedModel` or `PeftModel`): What is trained.
        loss (`str`), objective ([`~rlhf_recipes.reward_modeling.losses.base.Objective`]): The loss, fitted.
        train ([`~datasets.Dataset`]): Feedback.
        held_out ([`~datasets.Dataset`], *optional*): Rows for `eval_strategy`; not read where that is `no`.
        tokenizer, settings: As in [`~rlhf_recipes.reward_modeling.examples.tokenize`].
        args ([`RewardConfig`]): The settings.
    """
    held_out = held_out if args.eval_strategy != "no" else None
    common = {"model": model, "args": args, "processing_class": tokenizer}
    if objective.step_token is None:
        # What is saved, with each checkpoint too, reads texts by itself as they are read here.
        common["processing_class"] = ending_tokenizer(
            *(tokenizer, model.config, settings.max_length, settings.append_eos),
            rendered=rendered_by_template(train, tokenizer),
        )
    if is_plain_pairs(loss, train, args):
        pairing: dict[str, Any] = {"min_gap": args.min_gap, "seed": args.seed}
        return RewardTrainer(
            train_dataset=pair_rows(train, tokenizer, settings, passes=args.passes, **pairing),
            eval_dataset=held_out and pair_rows(held_out, tokenizer, settings, **pairing),
            data_collator=PairCollator(tokenizer, cast(int | None, args.pad_to_multiple_of)),
            **common,
        )
    debias = args.debias or ()
    groups = list(train[args.group_column]) if args.group_column and args.group_penalty else None
    return FeedbackTrainer(
        objective=objective,
        train_dataset=example_rows(train, objective, tokenizer, settings, debias, groups),
        eval_dataset=held_out and example_rows(held_out, objective, tokenizer, settings, debias),
        **common,
    )


def choose_threads(trainer: Trainer) -> int:
    """Find the number of threads that is fastest for this model, on one of its own batches of middle length."""
    model: Any = trainer.model
    rows = cast(Dataset, trainer.train_dataset)
    order = np.argsort(rows["length"], kind="stable")
    size = min(trainer.args.per_device_train_batch_size, len(rows))
    middle = order[(len(rows) - size) // 2 :][:size]
    batch = cast(Any, trainer.data_collator)([rows[int(row)] for row in middle])
    inputs = {name: batch[name].to(trainer.args.device) for name in ("input_ids", "attention_mask")}

    def step() -> None:
        with trainer.accelerator.autocast():
            loss = model(**inputs).logits.mean()
        loss.backward()
        model.zero_grad()

    return best_thread_count(step)
