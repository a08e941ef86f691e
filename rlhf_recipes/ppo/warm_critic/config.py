"""Settings of the training of a critic before PPO begins."""

from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from rlhf_recipes.starting.launch import refuse_strangers
from rlhf_recipes.starting.options import option

# Options of the Trainer that have no effect on a critic. What would be ignored is refused.
NOT_USED = {"label_smoothing_factor": 0.0, "neftune_noise_alpha": None, "prediction_loss_only": False,
            "push_to_hub": False, "torch_compile": False, "use_liger_kernel": False}  # fmt: skip


@dataclass
class CriticConfig(TrainingArguments):
    """Settings of a [`~rlhf_recipes.ppo.warm_critic.trainer.CriticTrainer`], on those of `TrainingArguments`.

    Raises:
        `ValueError`: if a number is out of range, there is nothing to learn, or an option would have no effect.
    """

    help_title = "Critic"

    output_dir: str | None = option(None, "Folder of this run; the critic is written into critic/ in it.")
    rollouts: str | None = option(None, "The folder of a PPO run that was given save_rollouts.")
    take: str = option(
        "first",
        "first: for a policy that begins where that run began; last: for the policy that it left.",
        choices=["first", "last"],
    )
    num_rollouts: int = option(8, "So many of the rollouts that it kept.")
    held_out: float = option(0.2, "Measure on the episodes of this share of the prompts, and learn from the others.")
    gamma: float | None = option(None, "Discount of later rewards. Default: that of the run.")
    critic: str = option("head", "head, policy, or a model's folder or id, as in PPO.")
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")

    # Options of the Trainer, with other defaults.
    learning_rate: float | None = option(  # type: ignore[assignment]  # None is another answer: look at the critic
        None,
        "Peak learning rate. Default: 0.64 / width for a layer on the policy, 1e-4 with adapters, 1e-5 else.",
    )
    num_train_epochs: float = option(10, "Passes over the episodes.")
    per_device_train_batch_size: int = option(16, "Episodes on each device at a time.")
    per_device_eval_batch_size: int = option(16, "The same while measuring.")
    bf16: bool | None = option(  # type: ignore[assignment]  # as in PPO
        None, "bfloat16 mixed precision. Default: yes on a GPU that has it, no on a CPU."
    )
    eval_strategy: str = option("epoch", "When the explained variance on the held-out prompts is measured.")
    logging_strategy: str = option("epoch", "When figures are logged.")
    save_strategy: str = option("no", "When checkpoints are saved.")
    report_to: None | str | list[str] = option(
        "none", "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."
    )
    remove_unused_columns: bool = option(False, "Must stay off: the episodes are no columns of a dataset.")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        if not self.rollouts:
            raise ValueError("rollouts is missing: name the folder of a PPO run that was given save_rollouts.")
        if self.num_rollouts < 1 or not 0 < self.held_out < 1:
            raise ValueError(
                f"num_rollouts is {self.num_rollouts} and held_out {self.held_out}; give 1 or more, and a number "
                "between 0 and 1."
            )
        if self.take not in ("first", "last") or (self.gamma is not None and not 0 <= self.gamma <= 1):
            raise ValueError(f"take is {self.take!r} and gamma {self.gamma}; give first or last, and 0 to 1.")
        if self.critic in ("none", "reward_model"):
            also = " To begin with a reward model, name its folder or id." if self.critic == "reward_model" else ""
            raise ValueError(f"critic is {self.critic!r}, which leaves nothing to train here.{also}")
        for name, default in NOT_USED.items():
            if getattr(self, name) not in (default, None):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but it has no effect here. Leave it out.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: the episodes are no columns of a dataset.")
        if self.deepspeed:
            raise ValueError("A critic is trained ahead without DeepSpeed. Leave deepspeed out.")
        refuse_strangers(self)
