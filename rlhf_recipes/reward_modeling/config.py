"""Settings of a reward-model run. How feedback is read stands in `rlhf_recipes.data.feedback`."""

import dataclasses
import logging
from dataclasses import dataclass

import torch
import trl
from transformers.utils import is_torch_bf16_gpu_available

from rlhf_recipes.modeling.cost.threads import cpu_has_bfloat16
from rlhf_recipes.modeling.loading import ModelArguments
from rlhf_recipes.reward_modeling.debias import COVARIATES
from rlhf_recipes.reward_modeling.examples import parse_share
from rlhf_recipes.reward_modeling.losses import AUTO, LOSSES
from rlhf_recipes.starting.options import check_choice, option

logger = logging.getLogger(__name__)


@dataclass
class RewardConfig(trl.RewardConfig):
    """TRL's [`~trl.RewardConfig`] with defaults that fit the machine, and which loss makes scores of feedback.

    Differences from TRL's defaults: `bf16` where the GPU, or the CPU, has it (TRL's `True` raises on a CPU);
    `gradient_checkpointing=False`; `train_sampling_strategy="group_by_length"` and therefore
    `remove_unused_columns=False` (the length is a column); `report_to="none"`. A text longer than `max_length` loses
    its beginning, where TRL leaves out the row.

    Raises:
        `ValueError`: if one of these is out of range, or `remove_unused_columns` would take away the lengths.
    """

    help_title = "Reward model"

    max_length: int | None = option(
        1024, "Tokens of a text that are read; a longer one loses its beginning. null: all that fit."
    )
    loss: str = option(AUTO, "The loss. auto: the first that fits the feedback.", choices=[AUTO, *LOSSES])
    loss_args: dict | None = option(None, "Settings of the loss, such as {label_smoothing: 0.1}.")
    passes: int = option(1, "Ratings under bradley_terry: use each text so often in an epoch, always against another.")
    min_gap: float = option(0.5, "Ratings: compare texts at least this far apart, in training and in measuring.")
    train_share: str = option(
        "0:1", "Train on rows whose hash lies in LOW:HIGH. 0:0.6 and 0.6:1 have no row in common."
    )
    validation_split: str | None = option(
        "validation",
        "Split that calibrates scores to ratings, and that eval_strategy evaluates on. Without it scores "
        "stay as they are, and the evaluation is on the test split.",
    )
    debias: list[str] | None = option(
        None, "Take out of the scores of each batch what these explain: length, format, repetition."
    )
    balance_length: str | None = option(
        None,
        "Pairs: drop or weigh rows until the chosen text is as often the longer one, at every margin.",
        choices=["drop", "weigh"],
    )
    group_column: str | None = option(None, "A column that tells groups, to which the model should be fair.")
    group_penalty: float = option(
        0.0,
        "Ratings under mse, mae, huber: cost of scores that are further above the ratings for one group "
        "than for others. Where the ratings are skewed themselves it can make things worse.",
    )
    num_frozen_layers: int = option(
        0,
        "Leave the embeddings and the lowest N layers as they are: faster, less memory. For adapters "
        "there is lora_num_layers.",
    )
    rating_low: float | None = option(
        None, "Lower end of the rating scale. Default: the lowest vote, or mean rating, trained on."
    )
    rating_high: float | None = option(None, "Upper end of the rating scale. Default: the highest of them.")
    card: bool = option(True, "Measure what scores lean on, and write report.html and README.md.")
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")
    bf16: bool | None = option(  # type: ignore[assignment]  # TRL's own annotation
        None, "Train in bfloat16 mixed precision. Default: yes where the GPU or CPU has it."
    )
    # None, because transformers warns of a new name even where it is False.
    gradient_checkpointing: bool | None = option(  # type: ignore[assignment]
        None, "Compute activations a second time instead of keeping them: less memory."
    )
    report_to: None | str | list[str] = option(
        "none", "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."
    )
    train_sampling_strategy: str = option(
        "group_by_length",
        "Order of the rows: group_by_length wastes the least padding.",
        choices=["random", "sequential", "group_by_length"],
    )
    remove_unused_columns: bool = option(
        False, "Drop columns the model does not take, such as the length to group by."
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            has_gpu = torch.accelerator.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and (is_torch_bf16_gpu_available() if has_gpu else cpu_has_bfloat16())
        # Transformers takes bf16 on a CPU, and several processes there find each other, only if it is told so.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        parse_share(self.train_share)
        check_choice("loss", self.loss, (AUTO, *LOSSES))
        unknown = [name for name in self.debias or [] if name not in COVARIATES]
        if unknown or self.group_penalty < 0 or (self.group_penalty > 0 and self.group_column is None):
            raise ValueError(
                f"debias is {self.debias}, group_column {self.group_column} and group_penalty {self.group_penalty}; "
                f"give names out of {', '.join(COVARIATES)}, and a penalty of 0 or more together with its column."
            )
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
