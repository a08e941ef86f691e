"""Healing: the cut model learns to say what the original says, on the data that it is for.

The loss is `(1 - a) own + a distance + b hidden`: its own loss on the data (next tokens, or the labels of feedback),
the distance of what it says to what the original says, and of hidden states. Each is a mean over an optimizer step.
"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Trainer, TrainerCallback

from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.importance import real_tokens
from rlhf_recipes.compression.material import Material
from rlhf_recipes.compression.quantize import round_layers
from rlhf_recipes.modeling.loading import ModelArguments, add_adapters, disable_dropout

logger = logging.getLogger(__name__)


def token_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(p || q)` of each token, p the original's distribution and q the cut model's, both of logits over T
    (Hinton et al. 2015, arXiv 1503.02531, section 2; T^2 keeps gradients of one size for all T). `(N, V) -> (N,)`"""
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    said = functional.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(said, target, reduction="none", log_target=True).sum(dim=-1)


def score_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`1/2 |z - v|^2` of the outputs of each text, which is what distillation comes to at high temperature (arXiv
    1503.02531, section 2.1, equation 4). `(N, outputs) -> (N,)`"""
    return 0.5 * (student.float() - teacher.float()).square().sum(dim=-1)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], kept: Sequence[int], real: Tensor) -> Tensor:
    """`|h - g|^2 / |g|^2` of each token that is no padding, a mean over layers. `(N,)`

    h is what enters a layer of the cut model, and g what entered the same layer of the original; last, what leaves
    the last layers. (TinyBERT, Jiao et al. 2019, arXiv 1909.10351, equation 8; here widths agree, so that no map is
    learned, and each layer counts alike.)

    Args:
        student, teacher: `hidden_states` of both, `(B, L, H)` each: embeddings, and what leaves each layer.
        kept (`Sequence[int]`): Which layer of the original each layer of the cut model was.
        real (`(B, L)`): What is no padding.
    """
    pairs = [(student[place], teacher[number]) for place, number in enumerate(kept) if place] + [
        (student[-1], teacher[-1])
    ]
    far = [(h[real].float() - g[real].float()).square().sum(-1) / g[real].float().square().sum(-1) for h, g in pairs]
    return torch.stack(far).mean(dim=0)


class HealTrainer(Trainer):
    """Trains a cut model, beside the original.

    Args:
        model (`PreTrainedModel` or `PeftModel`): What is trained.
        teacher (`PreTrainedModel`): The original.
        material ([`~rlhf_recipes.compression.material.Material`]): The data, and the own loss.
        args ([`~rlhf_recipes.compression.config.CompressConfig`]): The settings.
        kept (`Sequence[int]`): As for [`hidden_distance`].
        each_epoch (callable, *optional*): Figures of the model, for the log.
    """

    loss_is_scaled_for_ga = True  # by the counts of the whole step

    def __init__(
        self,
        model: Any,
        teacher: Any,
        material: Material,
        args: CompressConfig,
        kept: Sequence[int],
        each_epoch: Callable[[Any], Mapping[str, float]] | None = None,
    ) -> None:
        self.teacher = teacher.eval().requires_grad_(False)
        self.material = material
        self.kept = kept
        self.counts: Tensor | None = None  # of an optimizer step: what the own loss and the distance are means over
        callbacks: list[TrainerCallback] = [] if each_epoch is None else [_EachEpoch(self, each_epoch)]
        super().__init__(
            model=model, args=args, data_collator=material.collate, train_dataset=material.train, callbacks=callbacks
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """The batches of one optimizer step, and over how much its loss is a mean."""
        samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not samples:
            return samples, None
        self.counts = torch.stack([self.material.counts(batch) for batch in samples]).sum(dim=0).to(device)
        return samples, self.counts[1]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The share of a batch in the mean loss of its optimizer step."""
        args: Any = self.args
        hidden = args.hidden_weight > 0
        texts = {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in inputs}
        outputs = model(**texts, output_hidden_states=hidden)
        with torch.no_grad():
            target = self.teacher(**texts, output_hidden_states=hidden)
        counts = (self.counts if self.counts is not None else self.material.counts(inputs)).clamp(min=1)
        own = self.material.loss(outputs.logits, inputs)
        far = self._distance(outputs.logits, target.logits, inputs)
        loss = (1 - args.distill_weight) * own / counts[0] + args.distill_weight * far / counts[1]
        if hidden:
            real = real_tokens(inputs)
            between = hidden_distance(outputs.hidden_states, target.hidden_states, self.kept, real)
            share = self.material.counts(inputs)[1].to(loss.device) / counts[1]  # of this batch in the step
            loss = loss + args.hidden_weight * share * between.mean()
        return (loss, outputs) if return_outputs else loss

    def _distance(self, said: Tensor, target: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """To what the original says, as a sum: over tokens that are foretold, or over texts that are scored."""
        if self.material.kind != "language":
            return score_distance(said, target).sum()
        real = real_tokens(batch)[:, 1:]
        args: Any = self.args
        return token_distance(said[:, :-1][real], target[:, :-1][real], args.distill_temperature).sum()


def heal(
    model: Any,
    teacher: Any,
    material: Material,
    args: CompressConfig,
    model_args: ModelArguments,
    kept: Sequence[int],
    bits: Sequence[int] = (),
    resume: str | None = None,
    each_epoch: Callable[[Any], Mapping[str, float]] | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
    """Train a cut model, with LoRA where `use_peft` says so, and merge that.

    Args:
        model (`PreTrainedModel`): The cut model, which is changed.
        teacher (`PreTrainedModel`): The original, which is not.
        material ([`~rlhf_recipes.compression.material.Material`]): The data, and the own loss.
        args ([`~rlhf_recipes.compression.config.CompressConfig`]): The settings; checkpoints go to its `output_dir`.
        model_args ([`~rlhf_recipes.modeling.loading.ModelArguments`]): Which adapters.
        kept, each_epoch: As for [`HealTrainer`].
        bits (`Sequence[int]`, *optional*): Of each layer of the cut model: its weights are rounded again at the end.
        resume (`str`, *optional*): A checkpoint to go on from.

    Returns:
        `tuple`: the healed model without adapters, in evaluation mode, and what was logged.
    """
    torch.manual_seed(args.seed)  # adapters are drawn at random
    uses_cache = getattr(model.config, "use_cache", None)
    disable_dropout(model)
    if model_args.use_peft:
        task = model_args.lora_task_type if material.kind == "language" else "SEQ_CLS"
        targets = model_args.lora_target_modules or ["all-linear"]
        plain = dataclasses.replace(
            model_args, model_name_or_path=None, lora_target_modules=targets, lora_task_type=task
        )
        trained: Any = add_adapters(model, plain)
    else:
        trained = model.requires_grad_(True)
    trained.config.use_cache = False
    trainer = HealTrainer(trained, teacher, material, args, kept, each_epoch)
    with warnings.catch_warnings():  # the base of these adapters is the cut model, which lies in no folder
        warnings.filterwarnings("ignore", message="Could not find a config file in None")
        trainer.train(resume_from_checkpoint=resume)
    healed = trained.merge_and_unload() if model_args.use_peft else trained
    healed.config.use_cache = uses_cache
    if any(count < 16 for count in bits):
        round_layers(healed, bits)
    return healed.eval(), trainer.state.log_history


class _EachEpoch(TrainerCallback):
    """Logs figures of the model at the end of each epoch."""

    def __init__(self, trainer: Trainer, figures: Callable[[Any], Mapping[str, float]]) -> None:
        self.trainer = trainer
        self.figures = figures

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.eval()
        found = self.figures(model)
        model.train()
        self.trainer.log(dict(found))
