"""PPO for language models on `transformers.Trainer`.

Differences from textbook PPO (arXiv 1707.06347), in the order in which they are met:

1. An episode is one completion, an action one token; the score comes once, with the last token, unless a reward pays
   per token.
2. A penalty for moving away from a reference model is part of the reward of every token (arXiv 1909.08593).
3. The critic is a linear layer on the policy's own hidden states, unless another is asked for.
4. Advantages are whitened over the whole rollout of all processes, not over a mini-batch.
5. The losses are means over the tokens of an optimizer step, so micro-batches and processes do not change them.

What is longer than elsewhere is one file all the same, to be read from top to bottom.

`Trainer` does the rest (checkpoints, schedules, clipping, logging, callbacks, launchers). It asks for the
micro-batches of one optimizer step at a time, in `get_batch_samples`; there, every `num_ppo_epochs * num_mini_batches`
steps, a new rollout is collected. Which prompts are taken, how mini-batches are shuffled and which noise draws the
tokens are functions of (seed, episode) alone, so that `global_step` is the only cursor and a resumed run goes on as if
it had never stopped.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback, set_seed

from rlhf_recipes.checkpoints import check_best_metric
from rlhf_recipes.compat import CheckpointOfRoles
from rlhf_recipes.modeling.generation import Generator, Written, stable_key, write
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.tokenizers.padding import fit_model
from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.batches import like_lengths, split_by_tokens
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.credit import Credit
from rlhf_recipes.ppo.first_update import FirstUpdate
from rlhf_recipes.ppo.metrics import Meter, figures_of_rewards, log_figures
from rlhf_recipes.ppo.rollout import Rollout, gathered, permutation, read
from rlhf_recipes.ppo.run import checkpoint, held_out, saving
from rlhf_recipes.ppo.run.callbacks import AfterEachStep, SaveOnInterrupt
from rlhf_recipes.ppo.run.demonstrations import demonstrations_of_step, imitation_loss
from rlhf_recipes.ppo.run.inputs import (
    check_arguments,
    check_siblings,
    resolve_policy,
    resolve_reference,
    resolve_reward,
    resolve_roles,
    resolve_tokenizer,
)
from rlhf_recipes.ppo.run.launching import place_models, policy_for_sampling
from rlhf_recipes.ppo.run.monitor import HackingMonitor
from rlhf_recipes.ppo.run.prompts import prepare_data
from rlhf_recipes.ppo.run.sampling import local_generator
from rlhf_recipes.ppo.scoring import Scoring
from rlhf_recipes.ppo.vllm.generator import resolve_generator
from rlhf_recipes.rewards import RewardFunction, WeightedSum


class PPOTrainer(CheckpointOfRoles):
    """Tune a causal language model so that its completions score high, and stay near a reference.

    The first twelve arguments are those of TRL 1.12's `PPOTrainer`, in its order. `reward_funcs`, `reward_weights` and
    `reward_processing_classes` are those of its `GRPOTrainer`.

    Args:
        args ([`PPOConfig`]): The settings. The object itself is not changed.
        processing_class (`PreTrainedTokenizerBase`): The policy's tokenizer. Default: that of `model`'s folder.
        model (`str`, `PreTrainedModel` or `PeftModel`): The policy, or its folder or id.
        ref_model (`str` or `PreTrainedModel`, *optional*): The reference; see [`ActorCritic`] for what it is without.
        reward_model (`PreTrainedModel`, `str` or callable, *optional*):
            A decoder with a scalar head that shares the policy's tokenizer; or the folder or id of any reward model.
        train_dataset (`Dataset`):
            A column `prompt` (text or messages), or `input_ids`. All other columns go to the rewards.
        value_model (`PreTrainedModel` or `str`, *optional*): The critic; by default what `args.critic` says.
        data_collator (callable, *optional*): See [`~rlhf_recipes.data.prompts.encode_prompts`].
        eval_dataset (`Dataset` or `dict[str, Dataset]`, *optional*): The same as `train_dataset`, for `evaluate`.
        optimizers, callbacks: As in `transformers.Trainer`.
        peft_config (`PeftConfig`, *optional*): Adapters for the policy, and for a critic of its own.
        reward_funcs (`WeightedSum`, a reward or a list of them): See `rlhf_recipes.rewards.base`; a model, folder, id
            or mapping is loaded.
        reward_weights (`list[float]`, *optional*): One for each reward; 1 for all by default.
        reward_processing_classes (*optional*): Tokenizers of those `reward_funcs` that are models.
        imitation_dataset (`Dataset`, *optional*): Demonstrations for `args.imitation_coef`.
        generator ([`~rlhf_recipes.modeling.generation.Generator`], *optional*): Who writes completions; by default
            what `args.generator` says.

    Raises:
        `ValueError`: if the dataset is too small for one rollout or has no prompts, prompt and completion together are
            longer than the policy's context, nothing is rewarded, or parts do not fit together.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the tokens of the whole optimizer step
    model: Any  # an ActorCritic, or what a launcher wraps around it; Trainer allows more than is checked here
    processing_class: Any
    keeps_trunk = False  # whether what the frozen layers say of a rollout is kept for its update

    def __init__(
        self,
        args: PPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        model: str | PreTrainedModel | PeftModel | None = None,
        ref_model: str | PreTrainedModel | None = None,
        reward_model: Any = None,
        train_dataset: Dataset | None = None,
        value_model: nn.Module | str | None = None,
        data_collator: Any = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: PeftConfig | None = None,
        *,
        reward_funcs: WeightedSum | RewardFunction | Sequence[Any] | None = None,
        reward_weights: Sequence[float] | None = None,
        reward_processing_classes: Any = None,
        imitation_dataset: Dataset | None = None,
        generator: Generator | None = None,
    ) -> None:
        args = self.settings = PPOConfig(output_dir="ppo") if args is None else args
        check_arguments(args, model, ref_model, reward_model, value_model, train_dataset)
        check_best_metric(args, eval_dataset)
        set_seed(args.seed)  # Trainer does the same, but after adapters and heads are drawn
        tokenizer = resolve_tokenizer(processing_class, model)
        self.generator = generator or resolve_generator(args, tokenizer)
        policy = resolve_policy(model, args, peft_config)
        reference = resolve_reference(ref_model, args)
        for role in (policy, reference, reward_model, value_model):
            fit_model(role, tokenizer, may_grow=not isinstance(role, PeftModel))
        self.reward = resolve_reward(reward_model, reward_funcs, reward_weights, reward_processing_classes, tokenizer)
        check_siblings(self.reward, args.num_generations, evaluates=eval_dataset is not None)
        data = prepare_data(args, tokenizer, policy, train_dataset, eval_dataset, imitation_dataset, data_collator)
        self.prompts, self.sizes, self.demonstrations = data.prompts, data.sizes, data.demonstrations
        self.encoded, self.sampling = data.encoded, data.sampling
        roles = resolve_roles(value_model, args, policy, reference, reward_model, tokenizer, peft_config)
        self.credit = Credit(args, has_critic=roles.critic is not None)
        self.sampling_copy: Any = None  # with rollout_dtype
        self.rollout: Rollout | None = None
        self.last_rows: list[dict[str, Any]] = []  # of this process: the last rollout's, or of held-out prompts
        self.episodes_before = 0  # of the run that this one goes on from
        self.stopped = False  # whether target_kl ended the updates on this rollout
        self.tokens_of_step = 1  # over all processes, those to imitate included
        self.update_start = self.start = time.perf_counter()
        self.meter, self.eval_meter, self.step_meter = Meter(), Meter(), Meter()
        self.interrupt = SaveOnInterrupt(self)
        self.first_update = FirstUpdate(self)
        monitor = HackingMonitor.of_rewards(self.reward, action=args.hacking_monitor)
        super().__init__(
            model=roles,
            args=args.for_trainer(self.sizes),
            train_dataset=self.prompts["train"].dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=[AfterEachStep(self), self.interrupt, monitor, *(callbacks or [])],
            optimizers=optimizers,
        )
        place_models(self, reward_model)

    @property
    def roles(self) -> ActorCritic:
        """Policy, critic and reference, without what a launcher wraps around them."""
        return self.accelerator.unwrap_model(self.model)

    # ---- one rollout: sample, score, credit

    def collect(self, iteration: int) -> Rollout:
        """The rollout of one iteration, of all processes, ready for the update."""
        start = time.perf_counter()
        sizes, rank = self.sizes, self.args.process_index
        mine = slice(rank * sizes.local_rollout, (rank + 1) * sizes.local_rollout)
        rows = self.rows_of(iteration)[mine]
        episodes = range(iteration * sizes.rollout, (iteration + 1) * sizes.rollout)[mine]
        meter = Meter()  # handed over at the end, so that an interrupted rollout leaves no trace
        self.interrupt.collecting = True
        if self.interrupt.asked and sizes.world == 1:  # while something else was going on
            raise KeyboardInterrupt
        scoring = Scoring(self, "train", rows, meter)
        keys = [stable_key(self.args.seed, "train", episode) for episode in episodes]
        rollout = self.sample("train", rows, keys, when_written=scoring.start)
        sampled = time.perf_counter()
        moments = copy.deepcopy(self.credit.rewards)
        try:
            rollout, self.last_rows = scoring.finish(rollout)
            rollout = gathered(rollout, self.processing_class.pad_token_id, sizes.world)
        except BaseException:
            self.credit.rewards = moments  # the rollout is collected anew on resume, and learned from then
            raise
        self.interrupt.collecting = False
        for of_reward, count in figures_of_rewards(self, rollout):
            meter.add(of_reward, weight=count)
        rollout, figures = self.credit.assign(replace(rollout, reward_parts=None))
        meter.add(figures | {"time/sample": sampled - start, "time/score": time.perf_counter() - sampled})
        self.meter.merge(meter.state())
        return rollout

    def rows_of(self, iteration: int) -> list[int]:
        """Rows of the dataset that an iteration takes, each `num_generations` times in a row.

        Each pass goes over all prompts in an order of its own.
        """
        count, taken = len(self.prompts["train"]), self.sizes.prompts
        number, index = divmod(iteration, count // taken)
        order = permutation(count, self.args.seed, "prompts", number)
        return order[index * taken : (index + 1) * taken].repeat_interleave(self.sizes.siblings).tolist()

    def sample(
        self,
        split: str,
        rows: Sequence[int],
        keys: Sequence[int],
        chunk: int | None = None,
        when_written: Callable[[Written], None] = lambda written: None,
    ) -> Rollout:
        """One completion for each row, with the log-probabilities and values of its tokens.

        Args:
            when_written (callable, *optional*): Is given the completions before any model reads them.
        """
        was_training = self.model.training
        self.model.eval()
        sync = getattr(self.generator, "sync", None)
        if sync is not None:  # it holds weights of its own
            sync(self.roles.policy)
            self.accelerator.wait_for_everyone()
        prompts = [self.prompts[split].ids[row] for row in rows]
        chunk = chunk or self.settings.rollout_forward_batch_size
        with policy_for_sampling(self) as roles, self.accelerator.autocast():
            generator = self.generator or local_generator(self, roles, keep=split == "train")
            written = write(generator, prompts, keys, self.sampling, self.args.device, chunk, self.processing_class)
            when_written(written)
            self.first_update.prepare(roles, written)
            rollout = read(roles, written, self.sampling.temperature, chunk, split == "train" and self.keeps_trunk)
        self.model.train(was_training)
        return rollout

    # ---- the update, one optimizer step at a time

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """The micro-batches of the next optimizer step, and how many tokens all processes have in it."""
        for _ in range(num_batches):
            next(epoch_iterator)  # the clock, see get_train_dataloader
        if self.state.global_step >= self.args.max_steps:
            return [], 1  # resumed from the last checkpoint: Trainer looks at the end only after a step
        sizes = self.sizes
        iteration, update = divmod(self.state.global_step, sizes.updates)
        if update == 0:
            self.rollout, self.stopped = self.collect(iteration), False
            self.update_start = time.perf_counter()
        assert self.rollout is not None, "a rollout, collected or restored"
        if self.first_update.causes is None:  # going on in the middle of a rollout
            self.model.eval()
            with policy_for_sampling(self) as roles, self.accelerator.autocast():
                self.first_update.prepare(roles, self.rollout)
            self.model.train()
        if self.stopped:
            return [{"left_out": torch.ones(1)}] * num_batches, 1
        epoch, mini = divmod(update, self.settings.num_mini_batches)
        order = permutation(sizes.rollout, self.args.seed, "mini-batches", iteration, epoch)
        rows = order[mini * sizes.mini : (mini + 1) * sizes.mini]
        device = self.rollout.mask.device
        assert self.rollout.loss_mask is not None
        tokens = int(self.rollout.loss_mask[rows.to(device)].sum())
        mine = like_lengths(self.rollout, rows[self.args.process_index :: sizes.world].to(device))
        batches = [self.rollout[part] for part in mine.split(sizes.micro)]
        if update == 0:
            self.first_update.begin(sum(len(split_by_tokens(b, self.settings.max_tokens_per_batch)) for b in batches))
        self.tokens_of_step = tokens
        if self.settings.imitation_coef:
            self.tokens_of_step += demonstrations_of_step(self, batches)
        return batches, max(tokens, 1)

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """One micro-batch, forward and backward, in parts of at most `max_tokens_per_batch` tokens."""
        *parts, last = split_by_tokens(inputs, self.settings.max_tokens_per_batch)
        loss: Any = 0.0
        for part in parts:
            with self.accelerator.no_sync(model):  # processes may have more or fewer parts
                loss = loss + super().training_step(model, part, num_items_in_batch)
        loss = loss + super().training_step(model, last, num_items_in_batch)
        if "left_out" not in inputs:
            self.step_meter.add({"loss": loss * self.sizes.accumulation})  # a step is the sum of its micro-batches
        return loss

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Clipped policy loss plus `vf_coef` times clipped value loss: a mean over tokens of the optimizer step.

        On top come, where asked for, a KL term, an entropy bonus and an imitation term.
        """
        if "left_out" in inputs:  # no gradient reaches any weight, and the optimizer leaves them all alone
            return torch.zeros((), device=self.args.device, requires_grad=True)
        args, mask = self.settings, inputs["loss_mask"]
        critic_alone = self.state.global_step < args.critic_warmup * self.sizes.updates
        tokens = {name: inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask")}
        demonstrations = (inputs["demo_ids"], inputs["demo_mask"]) if "demo_ids" in inputs else None
        out = model(
            **tokens,
            temperature=args.temperature,
            entropy_grad=args.entropy_coef > 0,
            critic_alone=critic_alone,
            demonstrations=demonstrations,
            states=inputs.get("trunk"),
        )
        # Padding gets ratio 1 and error 0, so that what the models say of it can neither overflow nor count.
        real = mask.bool()
        logprobs = torch.where(real, out["logprobs"], inputs["logprobs"])
        policy, ratio, clipped = F.policy_loss(
            logprobs, inputs["logprobs"], inputs["advantages"], args.cliprange, args.cliprange_high, args.dual_clip
        )
        policy = policy * inputs.get("weights", 1.0)
        values = torch.where(real, out["values"], inputs["values"])
        value, value_clipped = F.value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        terms = {"loss/policy_avg": policy}
        of_policy = policy - args.entropy_coef * out["entropy"]
        if args.use_kl_loss:
            terms["loss/kl_avg"] = F.kl_loss(logprobs, inputs["ref_logprobs"], ratio, args.kl_estimator)
            of_policy = of_policy + self.credit.kl_coef * terms["loss/kl_avg"]
        if self.credit.has_critic:
            terms |= {"loss/value_avg": value, "value/clipfrac_avg": value_clipped}
        per_token = (0.0 if critic_alone else 1.0) * of_policy
        per_token = per_token + args.vf_coef * value if self.credit.has_critic else per_token
        loss = F.masked_sum(per_token, mask) / num_items_in_batch
        if demonstrations is not None:
            imitation, figures, count = imitation_loss(out["demonstration_logprobs"], inputs, args.imitation_coef)
            self.step_meter.add(figures, weight=count)
            loss = loss + (0.0 if critic_alone else 1.0) * imitation
        loss = loss * self.sizes.world  # launchers take the mean over processes
        saving.stop_at_nan(self, loss, inputs)
        self.first_update.see(logprobs - inputs["logprobs"], mask)
        with torch.no_grad():
            terms |= {
                "policy/approxkl_avg": 0.5 * (logprobs - inputs["logprobs"]) ** 2,
                "policy/clipfrac_avg": clipped,
                "policy/entropy_avg": out["entropy"],
                "policy/ratio": ratio,
            }
            self._measure({name: x.detach() for name, x in terms.items()}, mask)
        return (loss, out) if return_outputs else loss

    def _measure(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        count = float(mask.sum())
        if count:
            means = {name: F.masked_mean(x, mask) for name, x in per_token.items()}
            squares = F.masked_mean((per_token["policy/ratio"] - 1) ** 2, mask)
            self.step_meter.add(means | {"policy/ratio_var": squares}, weight=count)  # of the distance from 1

    # ---- what Trainer asks for around it; the rest is in `run/`

    def get_train_dataloader(self) -> DataLoader:
        """A clock: one tick for each micro-batch of a pass over the prompts. The data itself comes from `collect`.

        It is not prepared by accelerate, which would fetch one batch ahead and so collect a rollout too early.
        """
        rollouts = len(self.prompts["train"]) // self.sizes.prompts
        ticks = rollouts * self.sizes.updates * self.sizes.accumulation
        return DataLoader(range(ticks), batch_size=1)  # type: ignore[arg-type]  # a range is all that a clock needs

    def after_step(self) -> None:
        """What an optimizer step tells: its figures, and whether the next one on this rollout takes place."""
        self.meter.add({"policy/updates_made": float(not self.stopped)})
        if self.state.global_step % self.sizes.updates == 0:
            self.meter.add({"time/update": time.perf_counter() - self.update_start})
        if self.stopped:
            return
        if self.settings.target_kl is not None:
            self.step_meter.join(self.sizes.world)  # all processes must come to the same answer
            self.stopped = self.step_meter.mean("policy/approxkl_avg") > self.settings.target_kl
        self.meter.merge(self.step_meter.state())
        self.step_meter.read()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | log_figures(self)
        super().log(logs, start_time)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the beginning or on from a checkpoint (`True`: from the last whole one in `output_dir`).

        Raises:
            `FileNotFoundError`: if there is no checkpoint to go on from.
            `ValueError`: if the checkpoint belongs to a run with other settings; each one is named.
            `FloatingPointError`: if the loss becomes NaN or infinite.
            `KeyboardInterrupt`: after Ctrl-C or SIGTERM, when the checkpoint is written.
        """
        folder = checkpoint.begin(self, resume_from_checkpoint)
        with self.interrupt.saving():
            return super().train(folder, *args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights, optimizer and schedule. Every process must call it."""
        return checkpoint.state_of(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        checkpoint.restore(self, state)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one completion for each held-out prompt; log the same figures with the prefix `eval_`."""
        return held_out.evaluate(self, eval_dataset, metric_key_prefix)

    def generate_completions(self, sampling: bool = False) -> list[dict[str, Any]]:
        """Write, score and show completions of held-out prompts, as TRL's does; see [`held_out`]."""
        return held_out.generate_completions(self, sampling)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy (or its adapters) and the tokenizer at the root, the critic in `critic/`."""
        saving.save_model(self, Path(output_dir or str(self.args.output_dir)), in_checkpoint=_internal_call)

    def push_checkpoint(self, folder: str) -> None:
        """Push the model of a checkpoint; a push that fails is told, and training goes on."""
        saving.push_checkpoint(self, folder)

    def create_model_card(self, *args: Any, **known: Any) -> None:
        """Write the README.md of the run's folder; see [`saving.create_model_card`]."""
        saving.create_model_card(self, *args, **known)

    def push_to_hub(self, *args: Any, **kwargs: Any) -> Any:
        """Push policy, critic, tokenizer and card, and nothing else; see [`saving.push_to_hub`]."""
        return saving.push_to_hub(self, *args, **kwargs)
