"""`PPOConfig`: the settings of PPO. `batches.py` works out its batch sizes, `renamed.py` takes its old spellings."""

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments

from rlhf_recipes.ppo.batches import BatchSizes, divide
from rlhf_recipes.ppo.functional import KL_ESTIMATORS
from rlhf_recipes.ppo.renamed import TRL_1_12, accept_old_names
from rlhf_recipes.starting.launch import refuse_fp16_on_cpu, refuse_strangers
from rlhf_recipes.starting.options import option

# Options of the Trainer that the PPO loop would ignore. What would be ignored is refused.
NOT_USED = {
    "auto_find_batch_size": False,
    "dataloader_drop_last": False,
    "dataloader_num_workers": 0,
    "eval_accumulation_steps": None,
    "group_by_length": False,
    "label_smoothing_factor": 0.0,
    "max_steps": -1,
    "neftune_noise_alpha": None,
    "prediction_loss_only": False,
    "save_only_model": False,
    "torch_compile": False,
    "use_liger_kernel": False,
}

# Options of generation that are fields, and so have no place in generation_kwargs.
SAMPLING_OPTIONS = (
    "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "stop_token", "stop_token_id", "stop_strings",
)  # fmt: skip
GENERATORS = ("local", "vllm")
CRITICS = ("head", "adapter", "policy", "reward_model", "none")


@accept_old_names
@dataclass
class PPOConfig(TrainingArguments):
    """Settings of [`PPOTrainer`]: those of TRL 1.12 under their names, on those of `transformers.TrainingArguments`.

    One rollout is `per_device_train_batch_size * gradient_accumulation_steps` episodes on each process, as in TRL.
    `logging_steps`, `save_steps` and `eval_steps` count rollouts; `global_step` and the learning-rate schedule count
    optimizer steps, of which a rollout has `num_ppo_epochs * num_mini_batches`. docs/migrating_from_trl.md sets TRL's
    meaning beside this one.

    Each option says in a line what it is for (`--help`), and docs/ppo_options.md when to take it. Beyond that:

    Args:
        temperature (`float`, *optional*, defaults to 0.7):
            Of sampling, and of every log-probability: the policy that is trained is the one that is sampled.
        top_k, top_p, min_p, repetition_penalty, min_new_tokens, generation_kwargs:
            They make the sampled distribution another one than the policy's; a warning says what that does to the KL.
        stop_token (`str`, *optional*), stop_token_id (`list[int]`), stop_strings (`list[str]`):
            `stop_token="none"` takes away the end-of-sequence tokens of tokenizer and model; every completion then
            has its full length unless something else is named. The others are added to them.
        normalize_rewards (`bool`, *optional*, defaults to `False`):
            Take the mean of each reward so far away and divide by its standard deviation so far, before its weight:
            then weights compare rewards of any unit. Rewards that pay per token stay as they are.
        use_kl_loss (`bool`, *optional*, defaults to `False`), kl_estimator (`str`, *optional*, defaults to `"k1"`):
            In the rewards `"k1"` has the gradient of the KL, `"k2"` and `"k3"` do not. In the loss `"k2"` has it,
            `"k3"` that of the other direction, and `"k1"` none at all, so that it is refused there.
        kl_target (`float`, *optional*), kl_horizon (`int`, *optional*, defaults to 10000):
            After every rollout `kl_coef` is moved so that the KL approaches `kl_target` nats per completion, with a
            time constant of `kl_horizon` episodes (arXiv 1909.08593, §2.2).
        lam_length_alpha (`float`, *optional*): From arXiv 2504.05118.
        dual_clip (`float`, *optional*): Bound `dual_clip * |A|` on the loss of a token with negative advantage A
            (arXiv 1912.09729); above 1.
        critic (`str`, *optional*, defaults to `"head"`):
            `"head"`, one layer on the policy's body; `"adapter"`, an adapter and a layer of its own on the policy's
            base; `"policy"` or `"reward_model"`, a copy of it with a head; `"none"`; or the folder or id of a model.
            A `value_model` given to the trainer comes first.
        allow_stochastic_policy (`bool`, *optional*, defaults to `False`):
            By default a run stops, with the cause, where log-probabilities of a rollout differ before the first
            update: a mean |log ratio| above 1e-4 in float32, or 0.02 in less. With it, this is said once.

    Raises:
        `ValueError`: if sizes do not divide, a number is out of range, or an option is given that PPO does not use.
    """

    help_title = "PPO"
    counted_in_batches = ("episodes", "a rollout")
    old_names: ClassVar[tuple[str, ...]] = tuple(TRL_1_12)

    output_dir: str | None = option(None, "Folder of the run: the model, its checkpoints and figures.")
    # Batches.
    total_episodes: int | None = option(
        None, "Episodes of the whole run. Default: num_train_epochs passes over the prompts."
    )
    num_ppo_epochs: int = option(4, "How often each rollout is gone over.")
    num_mini_batches: int = option(1, "Optimizer steps for each pass over a rollout.")
    num_generations: int = option(1, "Completions of each prompt in a rollout.")
    rollout_forward_batch_size: int = option(
        64, "Episodes sampled and scored at a time on each device; bounds memory."
    )
    logits_chunk_size: int | None = option(
        None, "Tokens whose logits exist at a time; bounds memory. Default: 128 on a CPU, 512 on a GPU."
    )
    max_tokens_per_batch: int | None = option(
        None, "Tokens of a forward and backward pass at most: a micro-batch with more goes in parts. Default: any."
    )
    reuse_trunk: bool = option(True, "Run the layers below all that is trained once for each token.")
    trunk_memory_gb: float = option(2.0, "Keep what they say for the update where it takes no more than this.")
    # Prompts and sampling.
    max_prompt_length: int = option(512, "Longer prompts are cut on the left, or dropped.")
    overlong_prompts: str = option("cut", "What happens to prompts that are too long.", choices=["cut", "drop"])
    max_completion_length: int = option(53, "Most new tokens in a completion.")
    temperature: float = option(0.7, "Temperature of sampling and of log-probabilities.")
    top_k: int | None = option(None, "Sample from the K likeliest tokens only. Default: from all.")
    top_p: float = option(1.0, "Sample from the likeliest tokens that have this much probability together.")
    min_p: float | None = option(None, "Leave out tokens below this share of the likeliest one's probability.")
    repetition_penalty: float = option(1.0, "Above 1, tokens that were there before become less likely.")
    min_new_tokens: int | None = option(
        None, "No end-of-sequence token before that many new tokens. Default: any length."
    )
    stop_token: str | None = option(
        None,
        "none: the end-of-sequence token ends nothing. Default, and eos: it ends a completion.",
        choices=["eos", "none"],
    )
    stop_token_id: list[int] | None = option(None, "Further token ids that end a completion.")
    stop_strings: list[str] | None = option(None, "Texts that end a completion, and stay in it.")
    generation_kwargs: dict | None = option(None, "Any other option of transformers' GenerationConfig, as a mapping.")
    generator: str = option(
        "local", "Who writes completions: local, the policy itself, or vllm, a vLLM server.", choices=list(GENERATORS)
    )
    vllm_server_base_url: str | None = option(
        None, "Where the vLLM server is. Default: http://localhost:8000 (docs/vllm.md)."
    )
    vllm_request_timeout: float = option(600, "Seconds that the vLLM server has for one answer.")
    model_init_kwargs: dict | None = option(None, "For from_pretrained, where the model is given by its name.")
    rollout_dtype: str | None = option(
        None,
        "Sample with a copy in bfloat16, float16 or float32. Default: with the policy itself.",
        choices=["bfloat16", "float16", "float32"],
    )
    packed_decoding: str = option(
        "all",
        "Layers with a copy of their weights that decodes faster on a CPU; 'output' takes less memory for it.",
        choices=["all", "output", "none"],
    )
    importance_cap: float = option(
        2.0, "Most that a token counts where another precision or engine has drawn it than the policy."
    )
    # Scores and KL.
    missing_eos_penalty: float | None = option(
        None, "Subtracted from the score of a completion that did not end by itself."
    )
    mask_truncated_completions: bool = option(False, "Leave truncated completions out of the losses.")
    normalize_rewards: bool = option(False, "Put each reward into units of its own spread so far, before its weight.")
    hacking_monitor: str = option("warn", "Where rewards are exploited: warn, stop (and save), or off.")
    use_score_scaling: bool = option(False, "Divide scores by the standard deviation of all scores so far.")
    use_score_norm: bool = option(False, "With use_score_scaling: subtract the mean of all scores so far, too.")
    score_clip: float | None = option(None, "Clip scores to this distance from 0, after scaling. Default: no clip.")
    kl_coef: float = option(0.05, "Weight of the KL penalty against the reference.")
    kl_estimator: str = option("k1", "How KL is estimated from samples.", choices=list(KL_ESTIMATORS))
    use_kl_loss: bool = option(False, "Put the KL penalty into the loss (k2, k3) and not into the rewards.")
    kl_target: float | None = option(None, "Adapt kl_coef towards this KL, in nats. Default: kl_coef stays.")
    kl_horizon: int = option(10_000, "Episodes that the adaptation of kl_coef takes.")
    # Credit.
    gamma: float = option(1.0, "Discount of later rewards.")
    lam: float = option(0.95, "Lambda of generalized advantage estimation.")
    lam_value: float | None = option(None, "Lambda of the critic's targets. Default: lam.")
    lam_length_alpha: float | None = option(
        None, "Take 1 - 1/(alpha * length) as lambda of the advantages. Default: lam."
    )
    whiten_rewards: bool = option(False, "Scale a rollout's rewards to unit variance.")
    whiten_advantages: bool = option(True, "Scale a rollout's advantages to mean 0 and unit variance.")
    # Critic and update.
    critic: str = option("head", "head, adapter, policy, reward_model, none, or a model's folder or id.")
    critic_warmup: int = option(0, "Rollouts at the beginning in which only the critic learns.")
    vf_coef: float = option(0.1, "Weight of the value loss.")
    cliprange_value: float | None = option(0.2, "How far a value may move in one rollout; none for any distance.")
    cliprange: float | None = option(0.2, "How far a probability ratio may move from 1; none for any distance.")
    cliprange_high: float | None = option(None, "The same upwards. Default: cliprange.")
    dual_clip: float | None = option(None, "Bound on the ratio where the advantage is negative. Default: none.")
    entropy_coef: float = option(0.0, "Weight of the entropy bonus.")
    target_kl: float | None = option(None, "Stop the updates on a rollout above this approximate KL. Default: never.")
    allow_stochastic_policy: bool = option(
        False, "Go on with a policy that says something else in the update than in the rollout, unchanged."
    )
    imitation_coef: float = option(0.0, "Weight of the supervised loss on demonstrations.")
    imitation_dataset_name: str | None = option(
        None, "Demonstrations: a folder, file or id with prompt and completion, messages, or text."
    )
    ref_model_name_or_path: str | None = option(None, "The reference. Default: the policy as it was at the start.")
    # What the run leaves to look at, and to go on with.
    num_sample_generations: int = option(10, "Tables of completions in the run, where eval_strategy is no.")
    num_completions_to_print: int = option(5, "Rows of such a table on the screen; 0 for none.")
    save_rollouts: int = option(
        0, "Keep so many rollouts of the run's beginning and of its end in rollouts/, for recipes/critic.py."
    )
    save_merged: bool = option(False, "Save and push the policy with its adapters merged in; not in checkpoints.")
    # Names of TRL 1.12.
    response_length: int | None = option(None, "Old name of max_completion_length.")
    local_rollout_forward_batch_size: int | None = option(None, "Old name of rollout_forward_batch_size.")
    dataset_num_proc: int | None = option(None, "For a script's own preprocessing; the trainer tokenizes by itself.")
    sft_model_path: str = option("EleutherAI/pythia-160m", "For scripts that load the policy from it.")
    reward_model_path: str = option("EleutherAI/pythia-160m", "For scripts that load the reward model from it.")
    model_adapter_name: str | None = option(None, "Name of the adapter that is trained. Default: default.")
    ref_adapter_name: str | None = option(None, "Name of the adapter that is the reference. Default: none.")
    ds3_gather_for_generation: bool = option(True, "ZeRO-3: gather the weights while completions are sampled.")

    # Options of the Trainer, with other defaults or another unit.
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")
    learning_rate: float = option(3e-6, "Peak learning rate of AdamW.")
    logging_steps: float = option(1, "Log after every that many rollouts.")
    save_steps: float = option(50, "Save after every that many rollouts.")
    eval_steps: float | None = option(None, "Evaluate after every that many rollouts.")
    per_device_eval_batch_size: int = option(64, "Prompts on each device at a time while evaluating.")
    bf16: bool | None = option(  # type: ignore[assignment]  # None is a third answer: look at the machine
        None, "bfloat16 mixed precision. Default: yes on a GPU that has it, no on a CPU."
    )
    report_to: None | str | list[str] = option(
        "none", "Where logs go besides the screen: none, tensorboard, wandb, trackio, ..."
    )
    remove_unused_columns: bool = option(False, "Must stay off: rewards are given all columns of the dataset.")

    def __post_init__(self) -> None:
        if self.bf16 is None:
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and not self.fp16
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # or processes would not find each other
        if self.logits_chunk_size is None:  # on a CPU they stay in its cache
            self.logits_chunk_size = 128 if self.use_cpu else 512
        if isinstance(self.stop_token_id, int):
            self.stop_token_id = [self.stop_token_id]
        if self.metric_for_best_model is None and (self.load_best_model_at_end or self.save_strategy == "best"):
            self.metric_for_best_model = "objective/scores"  # the Trainer's own choice, the loss, is not measured
        super().__post_init__()
        self._check_ranges()
        self._check_kl()
        for name, default in NOT_USED.items():
            if getattr(self, name, default) not in (default, None):
                raise ValueError(f"{name} is {getattr(self, name)!r}, but PPO makes no use of it. Leave it out.")
        if self.remove_unused_columns:
            raise ValueError("remove_unused_columns must stay off: rewards are given all columns of the dataset.")
        if self.hub_strategy in ("checkpoint", "all_checkpoints"):
            raise ValueError(
                f"hub_strategy is {str(self.hub_strategy)!r}, but checkpoints with their rollouts and optimizer are "
                "not pushed. Give 'every_save' to push the model at every save, or 'end'."
            )
        trained = self.model_adapter_name or "default"
        own = ["critic"] * (self.critic == "adapter") + [name for name in (self.ref_adapter_name,) if name]
        if trained in own or len(set(own)) < len(own):
            raise ValueError(
                f"Two roles would be one adapter: the policy is {trained!r} (model_adapter_name), the reference "
                f"{self.ref_adapter_name!r} (ref_adapter_name), the critic {self.critic!r}, whose adapter is named "
                "'critic'. Give each role a name of its own."
            )
        if self.target_kl is not None and self.fp16:
            raise ValueError("target_kl does not work with fp16, whose loss scaling must see every step. Use bf16.")
        if self.rollout_dtype is not None:
            from rlhf_recipes.modeling.generation.copies import PRECISIONS, check_precision  # models come with it

            if self.rollout_dtype not in PRECISIONS:
                raise ValueError(f"rollout_dtype is {self.rollout_dtype!r}; give bfloat16, float16 or float32.")
            device = "cpu" if self.use_cpu else torch.accelerator.current_accelerator()
            check_precision(PRECISIONS[self.rollout_dtype], torch.device(device or "cpu"))
        if self.packed_decoding not in ("all", "output", "none"):
            raise ValueError(f"packed_decoding is {self.packed_decoding!r}; give all, output or none.")
        refuse_strangers(self)
        refuse_fp16_on_cpu(self)
        self.batch_sizes()  # refuses what does not divide before a model is loaded

    def _check_ranges(self) -> None:
        def check(names: str, fits: Any, wanted: str) -> None:
            for name in names.split():
                value = getattr(self, name)
                if value is not None and not fits(value):
                    raise ValueError(f"{name} is {value!r}; give {wanted}.")

        counts = (
            "per_device_train_batch_size gradient_accumulation_steps num_ppo_epochs num_mini_batches num_generations "
            "rollout_forward_batch_size logits_chunk_size max_prompt_length max_completion_length kl_horizon "
            "total_episodes per_device_eval_batch_size max_tokens_per_batch importance_cap"
        )
        check(counts, lambda x: x >= 1, "1 or more")
        check("gamma lam lam_value", lambda x: 0 <= x <= 1, "a number from 0 to 1")
        check(
            "kl_coef vf_coef entropy_coef imitation_coef critic_warmup trunk_memory_gb", lambda x: x >= 0, "0 or more"
        )
        counts = "top_k min_new_tokens num_sample_generations num_completions_to_print save_rollouts"
        check(counts, lambda x: x >= 0, "0 or more")
        above_zero = (
            "temperature cliprange cliprange_high cliprange_value kl_target target_kl score_clip lam_length_alpha "
            "repetition_penalty vllm_request_timeout"
        )
        check(above_zero, lambda x: x > 0, "a number above 0")
        check("dual_clip", lambda x: x > 1, "a number above 1")
        check("top_p", lambda x: 0 < x <= 1, "a number above 0, and at most 1")
        check("min_p", lambda x: 0 <= x <= 1, "a number from 0 to 1")
        check("missing_eos_penalty", lambda x: x >= 0, "0 or more: it is subtracted")
        check("overlong_prompts", lambda x: x in ("cut", "drop"), "'cut' or 'drop'")
        check("stop_token", lambda x: x in ("eos", "none"), "'eos' or 'none'")
        check("hacking_monitor", lambda x: x in ("warn", "stop", "off"), "warn, stop or off")
        check("generator", lambda x: x in GENERATORS, " or ".join(GENERATORS))
        check(
            "vllm_server_base_url",
            lambda x: x.startswith(("http://", "https://")),
            "an address with http:// or https://",
        )
        if self.generator != "vllm" and self.vllm_server_base_url is not None:
            raise ValueError("vllm_server_base_url is given, but generator is 'local', which asks no server.")
        check("kl_estimator", lambda x: x in KL_ESTIMATORS, " or ".join(KL_ESTIMATORS))
        if self.min_new_tokens and self.min_new_tokens > self.max_completion_length:
            raise ValueError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_completion_length "
                f"{self.max_completion_length}."
            )
        for name in self.generation_kwargs or {}:
            from rlhf_recipes.modeling.generation import DECIDED  # it brings models, for which --help does not wait

            if name in DECIDED:
                raise ValueError(f"generation_kwargs has {name!r}, which the trainer decides: {DECIDED[name]}.")
            if name in SAMPLING_OPTIONS:
                raise ValueError(f"generation_kwargs has {name!r}, which is an option of its own: give {name} itself.")
        if self.cliprange is None and self.cliprange_high is not None:
            raise ValueError("cliprange_high bounds what cliprange None leaves open. Give both, or neither.")
        if self.use_score_norm and not self.use_score_scaling:
            raise ValueError("use_score_norm needs use_score_scaling: scores are centred and scaled by one history.")

    def _check_kl(self) -> None:
        if self.use_kl_loss and self.kl_estimator == "k1":
            raise ValueError(
                "kl_estimator 'k1' in the loss has no gradient in expectation, so it would not hold the policy near "
                "its reference. Give kl_estimator 'k2', whose gradient is that of the KL, or leave use_kl_loss out."
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target adapts kl_coef by factors, so kl_coef cannot start at 0.")

    def batch_sizes(self, num_prompts: int | None = None, world_size: int | None = None) -> BatchSizes:
        """Work out the batch sizes.

        Args:
            num_prompts (`int`, *optional*): Prompts in the dataset; needed where `total_episodes` is not given.
            world_size (`int`, *optional*): Processes; taken from the launcher when left out.

        Raises:
            `ValueError`: if sizes do not divide (see [`~rlhf_recipes.ppo.batches.divide`]).
        """
        return divide(
            per_device=self.per_device_train_batch_size,
            accumulation=self.gradient_accumulation_steps,
            num_mini_batches=self.num_mini_batches,
            num_ppo_epochs=self.num_ppo_epochs,
            num_generations=self.num_generations,
            episodes=self.total_episodes,
            passes=self.num_train_epochs,
            num_prompts=num_prompts,
            world=world_size or self.world_size,
        )

    # What TRL worked out and stored.
    batch_size = property(lambda self: self.batch_sizes().rollout)
    local_batch_size = property(lambda self: self.batch_sizes().local_rollout)
    mini_batch_size = property(lambda self: self.batch_sizes().mini)
    local_mini_batch_size = property(lambda self: self.batch_sizes().mini // self.batch_sizes().world)
    micro_batch_size = property(lambda self: self.per_device_train_batch_size * self.world_size)

    def for_trainer(self, sizes: BatchSizes) -> "PPOConfig":
        """A copy in the units of `transformers.Trainer`, which counts optimizer steps; this object stays as it is."""
        args = copy.copy(self)
        args.per_device_train_batch_size = sizes.micro
        args.gradient_accumulation_steps = sizes.accumulation
        args.max_steps = sizes.iterations * sizes.updates
        if self.eval_strategy == "steps":
            args.eval_delay = self.eval_delay * sizes.updates
        for name in ("logging_steps", "save_steps", "eval_steps"):
            count = getattr(self, name)
            if count is not None:  # a share of the run, below 1, needs no change of unit
                setattr(args, name, count if 0 < count < 1 else int(count) * sizes.updates)
        if args.deepspeed:  # read before the units were changed; accelerate launch's is read later
            from accelerate.utils import DeepSpeedPlugin
            from transformers.integrations import HfTrainerDeepSpeedConfig

            args.hf_deepspeed_config = HfTrainerDeepSpeedConfig(args.deepspeed)
            args.hf_deepspeed_config.trainer_config_process(args)
            args.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=args.hf_deepspeed_config)
        # It would write loss 0.0 in the log while the weights turn into NaN; the trainer stops at NaN instead.
        args.logging_nan_inf_filter = False
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every pass uses all of policy and critic
        return args
