"""`PPOConfig`: the settings of PPO, and the one place where batch sizes are worked out."""

import copy
import math
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from rlhf_recipes.ppo.functional import KL_ESTIMATORS

# Options of the Trainer that the PPO loop would ignore. What would be ignored is refused.
NOT_USED = {
    "auto_find_batch_size": False,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "group_by_length": False,
    "label_smoothing_factor": 0.0,
    "max_steps": -1,
    "neftune_noise_alpha": None,
    "per_device_eval_batch_size": 8,
    "save_only_model": False,
    "torch_compile": False,
}


@dataclass(frozen=True)
class BatchSizes:
    """How the episodes of one rollout are divided. All counts but `world` and `iterations` are of episodes.

    rollout -> num_mini_batches mini-batches, one optimizer step each -> micro-batches on every process.
    """

    world: int  # processes
    rollout: int  # episodes collected by all processes before an update
    local_rollout: int  # episodes collected by one process
    mini: int  # episodes of one optimizer step, over all processes
    micro: int  # episodes of one forward and backward pass of one process
    accumulation: int  # micro-batches of one process in one optimizer step
    updates: int  # optimizer steps for each rollout
    iterations: int  # rollouts of the whole run


@dataclass
class PPOConfig(TrainingArguments):
    """Settings of [`PPOTrainer`]: those of TRL 1.12 under their names, on those of `transformers.TrainingArguments`.

    One rollout is `per_device_train_batch_size * gradient_accumulation_steps` episodes on each process, as in TRL.
    `logging_steps`, `save_steps` and `eval_steps` count rollouts; `global_step` and the learning-rate schedule count
    optimizer steps, of which a rollout has `num_ppo_epochs * num_mini_batches`.

    Args:
        total_episodes (`int`, *optional*):
            Episodes of the whole run, rounded up to whole rollouts. Default: `num_train_epochs` passes over the
            prompts.
        num_ppo_epochs (`int`, *optional*, defaults to 4):
            How often each rollout is gone over.
        num_mini_batches (`int`, *optional*, defaults to 1):
            Optimizer steps for each pass over a rollout.
        rollout_forward_batch_size (`int`, *optional*, defaults to 64):
            Episodes of one process that are sampled and scored at a time; it bounds memory and changes no result.
        max_prompt_length (`int`, *optional*, defaults to 512):
            Longer prompts lose their beginning; how many is logged.
        max_completion_length (`int`, *optional*, defaults to 53):
            Most new tokens. A completion that reaches it without an end is cut there.
        temperature (`float`, *optional*, defaults to 0.7):
            Of sampling, and of every log-probability: the policy that is trained is the one that is sampled.
        missing_eos_penalty (`float`, *optional*):
            Subtracted from the score of a completion that did not end by itself.
        kl_coef (`float`, *optional*, defaults to 0.05):
            Weight of the KL penalty in the rewards, against the reference.
        kl_estimator (`str`, *optional*, defaults to `"k1"`):
            `"k1"`, or `"k3"`; see [`~rlhf_recipes.ppo.functional.kl_per_token`].
        cliprange (`float`, *optional*, defaults to 0.2), cliprange_value (`float`, *optional*, defaults to 0.2):
            How far the probability ratio, and a value, may move away from the rollout's.
        vf_coef (`float`, *optional*, defaults to 0.1):
            Weight of the value loss.
        gamma (`float`, *optional*, defaults to 1.0), lam (`float`, *optional*, defaults to 0.95):
            Discount, and the lambda of generalized advantage estimation.
        whiten_rewards (`bool`, *optional*, defaults to `False`):
            Scale the rewards of a rollout to unit variance, over all processes.

    Raises:
        `ValueError`: if sizes do not divide, a number is out of range, or an option is given that PPO does not use.
    """

    help_title = "PPO"

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run: the model, its checkpoints and figures."}
    )
    total_episodes: int | None = field(
        default=None,
        metadata={"help": "Episodes of the whole run. Default: num_train_epochs passes over the prompts."},
    )
    num_ppo_epochs: int = field(default=4, metadata={"help": "How often each rollout is gone over."})
    num_mini_batches: int = field(default=1, metadata={"help": "Optimizer steps for each pass over a rollout."})
    rollout_forward_batch_size: int = field(
        default=64, metadata={"help": "Episodes sampled and scored at a time on each device; bounds memory."}
    )
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts lose their beginning."})
    max_completion_length: int = field(default=53, metadata={"help": "Most new tokens in a completion."})
    temperature: float = field(default=0.7, metadata={"help": "Temperature of sampling and of log-probabilities."})
    missing_eos_penalty: float | None = field(
        default=None, metadata={"help": "Subtracted from the score of a completion that did not end by itself."}
    )
    kl_coef: float = field(default=0.05, metadata={"help": "Weight of the KL penalty against the reference."})
    kl_estimator: str = field(
        default="k1", metadata={"help": "How KL is estimated from samples.", "choices": ["k1", "k3"]}
    )
    cliprange: float = field(default=0.2, metadata={"help": "How far a probability ratio may move from 1."})
    cliprange_value: float = field(default=0.2, metadata={"help": "How far a value may move in one rollout."})
    vf_coef: float = field(default=0.1, metadata={"help": "Weight of the value loss."})
    gamma: float = field(default=1.0, metadata={"help": "Discount of later rewards."})
    lam: float = field(default=0.95, metadata={"help": "Lambda of generalized advantage estimation."})
    whiten_rewards: bool = field(default=False, metadata={"help": "Scale a rollout's rewards to unit variance."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that holds other things. Nothing is deleted."}
    )
    learning_rate: float = field(default=3e-6, metadata={"help": "Peak learning rate of AdamW."})
    logging_steps: float = field(default=1, metadata={"help": "Log after every that many rollouts."})
    save_steps: float = field(default=50, metadata={"help": "Save after every that many rollouts."})
    eval_steps: float | None = field(default=None, metadata={"help": "Evaluate after every that many rollouts."})
    bf16: bool | None = field(  # type: ignore[assignment]  # None is a third answer: look at the machine
        default=None, metadata={"help": "bfloat16 mixed precision. Default: yes on a GPU that has it, no on a CPU."}
    )
    report_to: None | str | list[str] = field(
        default="none", metadata={"help": "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "Must stay off: rewards are given all columns of the dataset."}
    )

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        super().__post_init__()
        self._check_ranges()
        for name, default in NOT_USED.items():
            if getattr(self, name, default) not in (default, None):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but PPO makes no use of it. Leave it out.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: rewards are given all columns of the dataset.")
        self.batch_sizes()  # refuses what does not divide before a model is loaded

    def _check_ranges(self) -> None:
        at_least_one = (
            "per_device_train_batch_size",
            "gradient_accumulation_steps",
            "num_ppo_epochs",
            "num_mini_batches",
            "rollout_forward_batch_size",
            "max_prompt_length",
            "max_completion_length",
        )
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more.")
        if self.total_episodes is not None and self.total_episodes < 1:
            raise ValueError(f"total_episodes is {self.total_episodes}; give 1 or more, or leave it out.")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; sampling needs one above 0.")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number from 0 to 1.")
        for name in ("kl_coef", "vf_coef"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more.")
        for name in ("cliprange", "cliprange_value"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0.")
        if self.kl_estimator not in KL_ESTIMATORS or self.kl_estimator == "k2":
            raise ValueError(
                f"kl_estimator is {self.kl_estimator!r}; in the rewards it can be k1 or k3. (k2 is a biased estimate "
                "of the KL.)"
            )

    def batch_sizes(self, num_prompts: int | None = None, world_size: int | None = None) -> BatchSizes:
        """Work out the batch sizes.

        Args:
            num_prompts (`int`, *optional*): Prompts in the dataset; needed where `total_episodes` is not given.
            world_size (`int`, *optional*): Processes; taken from the launcher when left out.

        Raises:
            `ValueError`: if a rollout does not divide into mini-batches, or these into micro-batches, with both
                numbers and what would fit.
        """
        world = world_size or self.world_size
        local = self.per_device_train_batch_size * self.gradient_accumulation_steps
        if local % self.num_mini_batches:
            raise ValueError(
                f"A rollout has {local} episodes on each process (per_device_train_batch_size "
                f"{self.per_device_train_batch_size} x gradient_accumulation_steps {self.gradient_accumulation_steps})"
                f", which num_mini_batches {self.num_mini_batches} does not divide. Change one of them, for example "
                f"to num_mini_batches {math.gcd(local, self.num_mini_batches)}."
            )
        local_mini = local // self.num_mini_batches
        micro = min(self.per_device_train_batch_size, local_mini)
        if local_mini % micro:
            raise ValueError(
                f"A mini-batch has {local_mini} episodes on each process ({local} / num_mini_batches "
                f"{self.num_mini_batches}), which per_device_train_batch_size {micro} does not divide. Change one of "
                f"them, for example to per_device_train_batch_size {math.gcd(local_mini, micro)}."
            )
        rollout = local * world
        episodes = self.total_episodes
        if episodes is None:
            episodes = math.ceil(self.num_train_epochs * (num_prompts or rollout))
        return BatchSizes(
            world=world,
            rollout=rollout,
            local_rollout=local,
            mini=local_mini * world,
            micro=micro,
            accumulation=local_mini // micro,
            updates=self.num_ppo_epochs * self.num_mini_batches,
            iterations=math.ceil(episodes / rollout),
        )

    def for_trainer(self, sizes: BatchSizes) -> "PPOConfig":
        """A copy in the units of `transformers.Trainer`, which counts optimizer steps; this object stays as it is."""
        args = copy.copy(self)
        args.per_device_train_batch_size = sizes.micro
        args.gradient_accumulation_steps = sizes.accumulation
        args.max_steps = sizes.iterations * sizes.updates
        for name in ("logging_steps", "save_steps", "eval_steps"):
            count = getattr(self, name)
            if count is not None:  # a share of the run, below 1, needs no change of unit
                setattr(args, name, count if 0 < count < 1 else int(count) * sizes.updates)
        # It would write loss 0.0 in the log while the weights turn into NaN; the trainer stops at NaN instead.
        args.logging_nan_inf_filter = False
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every pass uses all of policy and critic
        return args
