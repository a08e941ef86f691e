"""Settings of a reward-model run, and what stands around TRL's `RewardTrainer`: threads before, saving after.

The training itself is `trl.RewardTrainer`: the Bradley-Terry loss `-log sigmoid(r_chosen - r_rejected - margin)`.
"""

import dataclasses
import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import trl
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_torch_bf16_gpu_available
from trl import RewardTrainer

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model
from rlhf_recipes.modeling.threads import best_thread_count, cpu_has_bfloat16
from rlhf_recipes.reward_modeling.data import parse_share

logger = logging.getLogger(__name__)

ADAPTER_FOLDER = "adapter"


@dataclass
class RewardConfig(trl.RewardConfig):
    """TRL's [`~trl.RewardConfig`] with defaults that fit the machine, and how ratings become pairs.

    Differences from TRL's defaults: `bf16` where the GPU, or the CPU, has it (TRL's `True` raises on a CPU);
    `gradient_checkpointing=False`; `train_sampling_strategy="group_by_length"` and therefore
    `remove_unused_columns=False` (the length is a column); `report_to="none"`. A text longer than `max_length` loses
    its beginning, where TRL leaves out the row.

    Args:
        passes (`int`, *optional*, defaults to 1):
            Of ratings: how often each text is used, each time against another one. An epoch goes over all of them.
        min_gap (`float`, *optional*, defaults to 0.5):
            Of ratings: least difference of two texts that are compared, in training and in measuring.
        train_share (`str`, *optional*, defaults to `"0:1"`):
            Train on a share of the rows, by a hash of the text: `0:0.6` and `0.6:1` have no row in common.
        validation_split (`str`, *optional*, defaults to `"validation"`):
            Split on which scores are calibrated to ratings, and on which `eval_strategy` evaluates. Where there is
            none, scores stay as they are, and evaluation is on the test split.
        num_frozen_layers (`int`, *optional*, defaults to 0):
            Leave the embeddings and the lowest layers of the model as they are, and compute no gradient for them. For
            adapters there is `lora_num_layers`.
        rating_low (`float`, *optional*), rating_high (`float`, *optional*):
            Ends of the rating scale, for the calibration. Default: the lowest and the highest vote in the training
            rows, or the lowest and highest mean rating where there are no votes.
        overwrite_output_dir (`bool`, *optional*, defaults to `False`):
            Write into `output_dir` even if it holds something other than an earlier run. Nothing is deleted.

    Raises:
        `ValueError`: if one of these is out of range, or `remove_unused_columns` would take away the lengths.
    """

    help_title = "Reward model"

    passes: int = field(
        default=1, metadata={"help": "Ratings: use each text that often, each time against another one."}
    )
    min_gap: float = field(
        default=0.5, metadata={"help": "Ratings: compare texts that are at least this far apart, in rating units."}
    )
    train_share: str = field(
        default="0:1",
        metadata={"help": "Train on rows whose hash lies in LOW:HIGH. 0:0.6 and 0.6:1 have no row in common."},
    )
    validation_split: str | None = field(
        default="validation",
        metadata={"help": "Split that calibrates scores to ratings, and that eval_strategy evaluates on."},
    )
    num_frozen_layers: int = field(
        default=0, metadata={"help": "Leave the embeddings and the lowest N layers as they are: faster, less memory."}
    )
    rating_low: float | None = field(
        default=None,
        metadata={"help": "Lower end of the rating scale. Default: the lowest vote in the training rows."},
    )
    rating_high: float | None = field(
        default=None, metadata={"help": "Upper end of the rating scale. Default: the highest vote."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that holds other things. Nothing is deleted."}
    )
    bf16: bool | None = field(  # type: ignore[assignment]  # TRL's own annotation
        default=None, metadata={"help": "Train in bfloat16 mixed precision. Default: yes where the GPU or CPU has it."}
    )
    # None, because transformers warns of a new name even where it is False.
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Compute activations a second time instead of keeping them: less memory."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."}
    )
    train_sampling_strategy: str = field(
        default="group_by_length",
        metadata={
            "help": "Order of the rows: group_by_length wastes the least padding.",
            "choices": ["random", "sequential", "group_by_length"],
        },
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Drop columns the model does not take, such as the length to group by."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            has_gpu = torch.accelerator.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and (is_torch_bf16_gpu_available() if has_gpu else cpu_has_bfloat16())
        if self.bf16 and not torch.accelerator.is_available():
            self.use_cpu = True  # transformers takes bf16 on a CPU only if it is told that a CPU is meant
        super().__post_init__()
        parse_share(self.train_share)
        if self.passes < 1 or self.min_gap < 0:
            raise ValueError(f"passes is {self.passes} and min_gap {self.min_gap}; give 1 or more, and 0 or more.")
        if self.max_length is not None and self.max_length < 1:
            raise ValueError(
                f"max_length is {self.max_length}; give 1 or more tokens, or null for the model's own limit."
            )
        if self.remove_unused_columns and self.train_sampling_strategy == "group_by_length":
            raise ValueError(
                "remove_unused_columns would remove the lengths that train_sampling_strategy group_by_length needs. "
                "Leave out one of the two."
            )


def fit_precision(args: RewardConfig, model_args: ModelArguments) -> RewardConfig:
    """Return arguments under which a quantized model can be trained: TRL keeps its adapters in bfloat16, which float32
    activations do not fit, so that mixed precision is needed on every machine."""
    if not (model_args.load_in_4bit or model_args.load_in_8bit) or args.bf16:
        return args
    logger.warning("A quantized model is trained in bf16, because its adapters are kept in bfloat16.")
    return dataclasses.replace(args, bf16=True, fp16=False)


def freeze_lower_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze the embeddings and the lowest `count` layers; nothing if `count` is 0.

    Raises:
        `ValueError`: if the model has fewer layers, has adapters (which freeze the base anyway), or has no list of
            layers to be found.
    """
    if count == 0:
        return
    if isinstance(model, PeftModel):
        raise ValueError(
            f"num_frozen_layers is {count}, but with adapters the whole base is frozen already. To adapt the upper "
            "layers alone, give lora_num_layers."
        )
    total = model.config.get_text_config().num_hidden_layers
    if not 0 < count <= total:
        raise ValueError(f"num_frozen_layers is {count}, but the model has {total} layers: give 0 to {total}.")
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == total
    ]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of {total} layers, so none can be frozen by its number.")
    frozen = tuple(f"{stacks[0]}.{layer}." for layer in range(count))
    # Parameters come in the order in which a model was put together: those before the first layer are embeddings.
    below = True
    for name, parameter in model.named_parameters():
        below = below and not name.startswith(f"{stacks[0]}.")
        if below or name.startswith(frozen):
            parameter.requires_grad_(False)


def choose_threads(trainer: RewardTrainer) -> int:
    """Find the number of threads that is fastest for this model, on one of its own batches of middle length."""
    model: Any = trainer.model
    rows = cast(Dataset, trainer.train_dataset)
    order = np.argsort(rows["length"], kind="stable")
    size = min(trainer.args.per_device_train_batch_size, len(rows))
    middle = order[(len(rows) - size) // 2 :][:size]
    batch = PairCollator(cast(PreTrainedTokenizerBase, trainer.processing_class))([rows[int(row)] for row in middle])
    inputs = {name: batch[name].to(trainer.args.device) for name in ("input_ids", "attention_mask")}

    def step() -> None:
        with trainer.accelerator.autocast():
            loss = model(**inputs).logits.mean()
        loss.backward()
        model.zero_grad()

    return best_thread_count(step)


def save_reward_model(trainer: RewardTrainer, model_args: ModelArguments) -> None:
    """Save model, head and tokenizer so that any Hugging Face code can load them and gets the same scores.

    `AutoModelForSequenceClassification.from_pretrained(output_dir)` needs no PEFT: adapters are merged into the model
    that lies there, and saved once more on their own in `output_dir/adapter`, for whoever has the base in memory
    already. Adapters on a quantized base are merged into the base as it is on disk, in `model_args.dtype`: its scores
    differ a little from those of the quantized model, and what is measured afterwards is the merged one.
    """
    if isinstance(trainer.model, PeftModel):
        folder = Path(str(trainer.args.output_dir)) / ADAPTER_FOLDER
        if trainer.args.should_save:
            trainer.model.save_pretrained(str(folder))
        trainer.accelerator.wait_for_everyone()
        trainer.model = _merged(trainer.model, folder, model_args, trainer.processing_class)
    trainer.save_model()


def _merged(model: PeftModel, adapter: Path, model_args: ModelArguments, tokenizer: Any) -> PreTrainedModel:
    if not getattr(model, "is_loaded_in_4bit", False) and not getattr(model, "is_loaded_in_8bit", False):
        return model.merge_and_unload()
    plain = dataclasses.replace(model_args, load_in_4bit=False, load_in_8bit=False)
    base = load_reward_model(plain, tokenizer, is_trainable=False)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
