"""Settings of a compression: which structures are looked for and how, and how the cut model is healed."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.utils import is_torch_bf16_gpu_available

from rlhf_recipes.modeling.cost.threads import cpu_has_bfloat16
from rlhf_recipes.modeling.cost.units import Cost
from rlhf_recipes.starting.launch import refuse_strangers
from rlhf_recipes.starting.options import check_choice, option

METHODS = ("search", "random", "magnitude", "wanda", "shortgpt", "greedy", "ilp")
COSTS = tuple(name for name in Cost.__annotations__ if name != "tokens")
QUALITIES = ("likelihood", "accuracy", "reward")
# Options of the Trainer that have no effect here. What would be ignored is refused.
NOT_USED = {
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "prediction_loss_only": False,
    "push_to_hub": False,
    "load_best_model_at_end": False,
    "deepspeed": None,
    "eval_strategy": "no",
}


@dataclass
class CompressConfig(TrainingArguments):
    """Settings of `recipes/compress.py`, on those of `TrainingArguments`, which are about the healing.

    Raises:
        `ValueError`: if a number is out of range, a name is not known, or an option would have no effect.
    """

    help_title = "Compression"

    output_dir: str | None = option(None, "Folder of this run; the model of the first method and budget lies in it.")
    methods: list[str] = option(
        ["search", "magnitude", "shortgpt"],
        f"How structures are chosen, the first for the model: {', '.join(METHODS)}.",
    )
    budgets: list[float] = option(
        [0.75], "What a structure may cost, as shares of the original; the first is for the model."
    )
    cost: str | dict = option("non_embedding_prefill_flops", f"A cost, or weights of several, of {', '.join(COSTS)}.")
    cost_tokens: int = option(128, "Tokens of a text whose cost is counted and whose time is measured.")
    quality: str = option(
        "likelihood",
        "P: likelihood (of texts, preferences or labels), accuracy, or reward, the mean of reward_funcs.",
        choices=list(QUALITIES),
    )
    quality_map: str | dict | None = option(
        None, "From a quality that may be negative to P: exp, sigmoid, or {rescale: [low, high]}."
    )
    delta: str = option("hinge", "The factor that falls with cost.", choices=["hinge", "power", "exponential"])
    delta_strength: float = option(20.0, "How steeply; of hinge, from the budget on.")
    reward_funcs: list[str | dict] | None = option(None, "For quality reward: as in recipes/ppo.py.")
    reward_weights: list[float] | None = option(None, "One weight for each reward. Default: 1 for all.")
    max_completion_length: int = option(32, "For quality reward: most tokens of a completion.")

    evaluations: int = option(256, "How many structures search and greedy may each measure.")
    calibration_rows: int = option(64, "Rows of the training data that structures are measured on.")
    drop_layers: bool = option(True, "Whether layers may be dropped.")
    merge_layers: bool = option(False, "Whether layers may be merged into the one below.")
    head_shares: list[float] = option([1.0], "Shares of the attention heads (key-value groups) that can be kept.")
    neuron_shares: list[float] = option(
        [1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5], "Shares of the neurons that can be kept."
    )
    bits: list[int] = option([16], "In which weights of a layer can be held: 16, 8, 4.")
    importance: str = option(
        "wanda",
        "What says which heads and neurons stay; the methods magnitude and wanda bring their own.",
        choices=["wanda", "magnitude", "random"],
    )

    heal: bool = option(True, "Whether the cut model is trained.")
    distill_weight: float = option(
        0.5, "Of the distance to the original in the loss; the rest is the loss on the data."
    )
    distill_temperature: float = option(2.0, "Of language models: at which distributions are compared.")
    hidden_weight: float = option(0.0, "Of the distance of hidden states to those of the original, beside the loss.")

    max_length: int = option(128, "Tokens of a text that are read.")
    loss: str = option("auto", "Of reward models, the loss on the labels. auto: the first that fits the feedback.")
    loss_args: dict | None = option(None, "Settings of that loss.")
    min_gap: float = option(0.5, "Ratings: compare texts at least this far apart.")
    validation_split: str | None = option("validation", "Of reward models: the split that calibrates scores.")
    rating_low: float | None = option(None, "Lower end of the rating scale. Default: as in recipes/reward.py.")
    rating_high: float | None = option(None, "Upper end of the rating scale.")
    latency_seconds: float = option(3.0, "How long each model is timed beside the original.")
    latency_rows: int = option(1, "How many texts of cost_tokens tokens are read at a time then.")
    samples: int = option(8, "Texts of the test split that the page shows before and after.")
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")

    # Options of the Trainer, with other defaults.
    learning_rate: float = option(5e-4, "Peak learning rate.")
    num_train_epochs: float = option(1, "Passes over the training data.")
    per_device_train_batch_size: int = option(16, "Rows on each device at a time.")
    per_device_eval_batch_size: int = option(32, "The same while measuring.")
    warmup_steps: float = option(0.1, "Steps, or a share of all, until the peak learning rate.")
    logging_steps: float = option(10, "Log after so many steps.")
    save_strategy: str = option("epoch", "When checkpoints of the healing are saved.")
    save_total_limit: int | None = option(1, "How many are kept.")
    bf16: bool | None = option(  # type: ignore[assignment]  # as in recipes/reward.py
        None, "Heal in bfloat16 mixed precision. Default: yes where the GPU or CPU has it."
    )
    report_to: None | str | list[str] = option(
        "none", "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."
    )
    train_sampling_strategy: str = option(
        "group_by_length",
        "Order of the rows: group_by_length wastes the least padding.",
        choices=["random", "sequential", "group_by_length"],
    )
    remove_unused_columns: bool = option(False, "Must stay off: columns of the data are for the loss.")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            has_gpu = torch.accelerator.is_available() and not self.use_cpu
            self.bf16 = not self.fp16 and (is_torch_bf16_gpu_available() if has_gpu else cpu_has_bfloat16())
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        for name in self.methods:
            check_choice("methods", name, METHODS)
        if not self.methods or not self.budgets or len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods is {self.methods} and budgets {self.budgets}; give one of each, none twice.")
        if any(not 0 < budget <= 1 for budget in self.budgets) or len(set(self.budgets)) < len(self.budgets):
            raise ValueError(
                f"budgets is {self.budgets}; give shares of the original, above 0, at most 1, none twice."
            )
        for name in self.weights:
            check_choice("cost", name, COSTS)
        if (self.quality == "reward") != bool(self.reward_funcs):
            raise ValueError(f"quality is {self.quality!r} and reward_funcs {self.reward_funcs}; one needs the other.")
        if self.quality == "reward" and self.quality_map is None:
            raise ValueError(
                "A reward may be negative, and R = P * delta(C) would then pay for cost: give quality_map exp, "
                "sigmoid or {rescale: [low, high]}."
            )
        if not 0 <= self.distill_weight <= 1 or not self.distill_temperature > 0 or self.hidden_weight < 0:
            raise ValueError(
                f"distill_weight is {self.distill_weight}, distill_temperature {self.distill_temperature} and "
                f"hidden_weight {self.hidden_weight}; give 0 to 1, more than 0, and 0 or more."
            )
        if self.calibration_rows < 2:
            raise ValueError(
                f"calibration_rows is {self.calibration_rows}, and what a structure is worth cannot hang on a single "
                "text: give 2 or more, and better 32 or more."
            )
        for name in ("cost_tokens", "max_length", "max_completion_length", "evaluations"):
            if getattr(self, name) < 2:
                raise ValueError(f"{name} is {getattr(self, name)}; give 2 or more.")
        for name, default in NOT_USED.items():
            if str(getattr(self, name)) not in (str(default), "None", "IntervalStrategy.NO"):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it has no effect here. Leave it out.")
        if self.resume_from_checkpoint not in (None, "auto"):
            raise ValueError(
                f"resume_from_checkpoint is {self.resume_from_checkpoint!r}; a compression has several parts, which "
                "`auto` goes on with, each where it was."
            )
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: columns of the data are for the loss.")
        if self.world_size > 1:
            raise ValueError(f"{self.world_size} processes were started; a compression runs in one, on one device.")
        refuse_strangers(self)

    @property
    def weights(self) -> dict[str, float]:
        """Of the costs that count."""
        return {self.cost: 1.0} if isinstance(self.cost, str) else {str(k): float(v) for k, v in self.cost.items()}

    @property
    def space(self) -> dict[str, Any]:
        """For [`~rlhf_recipes.compression.space.space_of`]: even shapes alone, which can be saved."""
        return {"drop": self.drop_layers, "merge": self.merge_layers, "heads": self.head_shares,
                "neurons": self.neuron_shares, "bits": self.bits}  # fmt: skip
