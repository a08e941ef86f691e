"""PPO for language models on `transformers.Trainer`.

Differences from textbook PPO (arXiv 1707.06347), in the order in which they are met:

1. An episode is one completion, an action one token; the score comes once, with the last token.
2. A penalty for moving away from a reference model is part of the reward of every token (arXiv 1909.08593).
3. The critic is a linear layer on the policy's own hidden states.
4. Advantages are whitened over the whole rollout of all processes, not over a mini-batch.
5. The losses are means over the tokens of an optimizer step, so micro-batches and processes do not change them.

`Trainer` does the rest (checkpoints, schedules, clipping, logging, callbacks, launchers). It asks for the
micro-batches of one optimizer step at a time, in `get_batch_samples`; there, every `num_ppo_epochs * num_mini_batches`
steps, a new rollout is collected. Which prompts are taken, how mini-batches are shuffled and which noise draws the
tokens are functions of (seed, episode) alone, so that `global_step` is the only cursor and a resumed run goes on as if
it had never stopped.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather, gather_object
from datasets import Dataset
from peft import PeftModel
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlhf_recipes.compat import ROLLOUT_FILE, CheckpointOfRoles
from rlhf_recipes.data.formats import is_conversational, require_columns
from rlhf_recipes.data.prompts import check_prompts, tokenize_prompts
from rlhf_recipes.modeling.loading import disable_dropout
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.metrics import Meter
from rlhf_recipes.ppo.progress import RolloutProgress
from rlhf_recipes.ppo.rollout import (
    LocalGenerator,
    Rollout,
    sample,
    sampling_config,
    stable_key,
    token_lists,
)
from rlhf_recipes.rewards import RewardFunction, WeightedSum


class PPOTrainer(CheckpointOfRoles):
    """Tune a causal language model so that its completions score high, and stay near a reference.

    Args:
        args ([`PPOConfig`]): The settings. The object itself is not changed.
        processing_class (`PreTrainedTokenizerBase`): The policy's tokenizer; its pad token must not be its EOS.
        model (`PreTrainedModel` or `PeftModel`): The policy.
        ref_model (`PreTrainedModel`, *optional*): The reference; see [`ActorCritic`] for what it is without one.
        reward_funcs (`WeightedSum`, a reward or a list of them): see `rlhf_recipes.rewards.base`.
        reward_weights (`list[float]`, *optional*): One for each reward of a list; 1 for all by default.
        train_dataset (`Dataset`): A column `prompt`, text or messages. All other columns go to the rewards.
        eval_dataset (`Dataset`, *optional*): The same, for `evaluate`.

    Raises:
        `ValueError`: if the pad token is the EOS token, the dataset is too small for one rollout or has no `prompt`,
            or prompt and completion together are longer than the policy's context.
    """

    # Narrower than what Trainer allows, and checked in __init__.
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any

    loss_is_scaled_for_ga = True  # the loss is divided by the tokens of the whole optimizer step

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: PreTrainedModel | PeftModel,
        *,
        ref_model: PreTrainedModel | None = None,
        reward_funcs: WeightedSum | RewardFunction | Sequence[RewardFunction],
        reward_weights: Sequence[float] | None = None,
        train_dataset: Dataset,
        eval_dataset: Dataset | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        if processing_class.pad_token_id is None or processing_class.pad_token_id == processing_class.eos_token_id:
            raise ValueError(
                f"The tokenizer pads with {processing_class.pad_token!r}, its end-of-sequence token, so the end of a "
                "completion could not be told from padding. Load it with rlhf_recipes.modeling.loading.load_tokenizer."
            )
        self.reward = _one_reward(reward_funcs, reward_weights)
        self.sizes = args.batch_sizes(num_prompts=len(train_dataset))
        self.prompts = {"train": self._prompt_ids(train_dataset, processing_class, model, args)}
        if eval_dataset is not None:
            self.prompts["eval"] = self._prompt_ids(eval_dataset, processing_class, model, args)
        if len(train_dataset) < self.sizes.rollout:
            raise ValueError(
                f"The dataset has {len(train_dataset)} prompts, but one rollout takes {self.sizes.rollout} "
                f"({self.sizes.local_rollout} on each of {self.sizes.world} processes). Give more prompts or a "
                "smaller per_device_train_batch_size or gradient_accumulation_steps."
            )
        disable_dropout(model)
        self.settings = args
        self.sampling = sampling_config(processing_class, model, args.max_completion_length, args.temperature)
        if self.sampling.eos_token_id is None:
            raise ValueError("Neither tokenizer nor model names an end-of-sequence token: no completion could end.")
        self.rollout: Rollout | None = None
        self.update_start = time.perf_counter()
        self.meter, self.eval_meter = Meter(), Meter()
        super().__init__(
            model=ActorCritic(model, ref_model),
            args=args.for_trainer(self.sizes),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[SaveRollout(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        if self.args.n_gpu > 1:
            raise ValueError(
                "Several GPUs are visible to one process. Start with `accelerate launch`, or make one visible with "
                "CUDA_VISIBLE_DEVICES."
            )
        if self.roles.ref_model is not None:
            self.roles.ref_model.to(self.args.device)
        self.remove_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback):
            self.add_callback(RolloutProgress(self.sizes))

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
        rollout = self.sample("train", rows, [stable_key(self.args.seed, "train", e) for e in episodes])
        sampled = time.perf_counter()
        rollout = self.gather(self.score("train", rows, rollout, self.meter))
        rollout = self.credit(rollout, self.meter)
        self.meter.add({"time/sample": sampled - start, "time/score": time.perf_counter() - sampled})
        return rollout

    def rows_of(self, iteration: int) -> list[int]:
        """Rows of the dataset that an iteration takes: each pass goes over all prompts in an order of its own."""
        per_pass = len(self.train_dataset) // self.sizes.rollout
        number, index = divmod(iteration, per_pass)
        order = _permutation(len(self.train_dataset), self.args.seed, "prompts", number)
        return order[index * self.sizes.rollout : (index + 1) * self.sizes.rollout].tolist()

    def sample(self, split: str, rows: Sequence[int], keys: Sequence[int]) -> Rollout:
        """One completion for each row, with the log-probabilities and values of its tokens."""
        was_training = self.model.training
        self.model.eval()
        prompts = [self.prompts[split][row] for row in rows]
        chunk, device = self.settings.rollout_forward_batch_size, self.args.device
        with self.compute_loss_context_manager():
            generator = LocalGenerator(self.roles.policy)
            rollout = sample(self.roles, generator, prompts, keys, self.sampling, device, chunk)
        self.model.train(was_training)
        return rollout

    def score(self, split: str, rows: Sequence[int], rollout: Rollout, meter: Meter) -> Rollout:
        """Add the score of each completion: the weighted rewards, less the penalty for a missing end."""
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        columns = dataset[list(rows)]
        prompts = columns.pop("prompt")
        completion_ids = token_lists(rollout)
        completions: list[Any] = self.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
        if is_conversational(prompts[0]):
            completions = [[{"role": "assistant", "content": text}] for text in completions]

        def log_metric(name: str, value: float) -> None:
            meter.add({f"reward/{name}": value})

        columns |= {"trainer_state": self.state, "log_metric": log_metric}
        parts = self.reward.parts(prompts, completions, completion_ids, **columns)
        for name, values in parts.items():
            applying = [value for value in values if value is not None]
            if applying:
                meter.add({f"reward/{name}": sum(applying) / len(applying)}, weight=len(applying))
        scores = torch.tensor(self.reward.combine(parts), device=rollout.mask.device)
        if self.settings.missing_eos_penalty is not None:
            scores = scores - self.settings.missing_eos_penalty * (~rollout.finished)
        return replace(rollout, scores=scores)

    def gather(self, rollout: Rollout) -> Rollout:
        """The rollouts of all processes as one, so that everything after it is over all of them."""
        if self.sizes.world == 1:
            return rollout
        widths = gather(torch.tensor([rollout.prompt_ids.shape[1]], device=rollout.mask.device))
        missing = int(widths.max()) - rollout.prompt_ids.shape[1]

        def joined(name: str, tensor: Tensor) -> Tensor:
            if name in ("prompt_ids", "prompt_mask"):
                fill = self.processing_class.pad_token_id if name == "prompt_ids" else 0
                tensor = torch.nn.functional.pad(tensor, (missing, 0), value=fill)
            return gather(tensor.contiguous())

        return rollout.map(joined)

    def credit(self, rollout: Rollout, meter: Meter) -> Rollout:
        """Say of every token how much better it was than expected: KL penalty, score, advantages."""
        args, mask, scores = self.settings, rollout.mask, rollout.scores
        assert scores is not None, "score before credit"
        kl = F.kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
        rewards = F.rewards_per_token(scores, kl, mask, args.kl_coef)
        if args.whiten_rewards:
            rewards = F.masked_whiten(rewards, mask, center=False)
        advantages, returns = F.generalized_advantages(rewards, rollout.values, mask, args.gamma, args.lam)
        self._log_rollout(rollout, scores, kl, returns, meter)
        return replace(rollout, advantages=F.masked_whiten(advantages, mask), returns=returns)

    def _log_rollout(self, rollout: Rollout, scores: Tensor, kl: Tensor, returns: Tensor, meter: Meter) -> None:
        mask, count = rollout.mask, len(rollout)
        kl_sum = float(F.masked_sum(kl, mask) / count)
        score = float(scores.mean())
        penalty = -self.settings.kl_coef * kl_sum
        meter.add(
            {
                "objective/scores": score,
                "objective/scores_std": float(scores.std(correction=0)),
                "objective/kl": kl_sum,
                "objective/non_score_reward": penalty,
                "objective/rlhf_reward": score + penalty,
                "objective/entropy": float(F.masked_sum(-rollout.logprobs, mask) / count),
                "value/explained_variance": float(F.explained_variance(rollout.values, returns, mask)),
                "value/mean": float(F.masked_mean(rollout.values, mask)),
                "rollout/completion_length": float(mask.sum() / count),
                "rollout/finished": float(rollout.finished.float().mean()),
                "rollout/num_eos_tokens": float(rollout.finished.sum()),
            }
        )

    # ---- the update, one optimizer step at a time

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """The micro-batches of the next optimizer step, and how many tokens all processes have in it."""
        for _ in range(num_batches):
            next(epoch_iterator)  # the clock, see get_train_dataloader
        sizes = self.sizes
        iteration, update = divmod(self.state.global_step, sizes.updates)
        if update == 0:
            self.rollout = self.collect(iteration)
            self.update_start = time.perf_counter()
        elif self.rollout is None:
            raise FileNotFoundError(
                f"The checkpoint of step {self.state.global_step} lies between two updates on one rollout, but has no "
                f"{ROLLOUT_FILE}: saving it was interrupted. Resume from an earlier one."
            )
        epoch, mini = divmod(update, self.settings.num_mini_batches)
        order = _permutation(sizes.rollout, self.args.seed, "mini-batches", iteration, epoch)
        rows = order[mini * sizes.mini : (mini + 1) * sizes.mini]
        tokens = int(self.rollout.mask[rows.to(self.rollout.mask.device)].sum())
        mine = rows[self.args.process_index :: sizes.world]
        return [self.rollout[part] for part in mine.to(self.rollout.mask.device).split(sizes.micro)], tokens

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Clipped policy loss plus `vf_coef` times clipped value loss: a mean over tokens of the optimizer step."""
        args, mask = self.settings, inputs["mask"]
        tokens = {name: inputs[name] for name in ("prompt_ids", "prompt_mask", "completion_ids", "mask")}
        out = model(**tokens, temperature=args.temperature)
        # Padding gets ratio 1 and error 0, so that what the models say of it can neither overflow nor count.
        logprobs = torch.where(mask.bool(), out["logprobs"], inputs["logprobs"])
        policy, ratio, clipped = F.policy_loss(logprobs, inputs["logprobs"], inputs["advantages"], args.cliprange)
        values = torch.where(mask.bool(), out["values"], inputs["values"])
        value, value_clipped = F.value_loss(values, inputs["values"], inputs["returns"], args.cliprange_value)
        loss = F.masked_sum(policy + args.vf_coef * value, mask) * self.sizes.world / num_items_in_batch
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}. The weights are as they were before "
                "this step. Lower learning_rate, or look at the rewards of this rollout."
            )
        with torch.no_grad():
            per_token = {
                "loss/policy_avg": policy,
                "loss/value_avg": value,
                "policy/approxkl_avg": 0.5 * (logprobs - inputs["logprobs"]) ** 2,
                "policy/clipfrac_avg": clipped,
                "policy/entropy_avg": out["entropy"],
                "policy/ratio": ratio,
                "value/clipfrac_avg": value_clipped,
            }
            self.meter.add({name: F.masked_mean(x, mask) for name, x in per_token.items()}, weight=float(mask.sum()))
        return (loss, out) if return_outputs else loss

    # ---- what Trainer asks for

    def get_train_dataloader(self) -> DataLoader:
        """A clock: one tick for each micro-batch of a pass over the prompts. The data itself comes from `collect`.

        It is not prepared by accelerate, which would fetch one batch ahead and so collect a rollout too early.
        """
        rollouts = len(self.train_dataset) // self.sizes.rollout
        ticks = rollouts * self.sizes.updates * self.sizes.accumulation
        return DataLoader(range(ticks), batch_size=1)  # type: ignore[arg-type]  # a range is all that a clock needs

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self.meter.add({"time/update": time.perf_counter() - self.update_start})
            self._join_processes(self.meter)
            rollouts = -(-self.state.global_step // self.sizes.updates)  # the one in work is counted
            logs = {**logs, "episode": rollouts * self.sizes.rollout, **self.meter.read()}
        super().log(logs, start_time)

    def _join_processes(self, meter: Meter) -> None:
        """Add up what the processes have measured. A reward that applied to no row of one is missing there."""
        if self.sizes.world > 1:
            everyone = gather_object([meter.state()])
            meter.read()
            for state in everyone:
                meter.merge(state)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one completion for each prompt of `eval_dataset`; log the same figures with the prefix `eval_`."""
        if eval_dataset is not None:
            self.eval_dataset = eval_dataset
            self.prompts["eval"] = self._prompt_ids(
                eval_dataset, self.processing_class, self.roles.policy, self.settings
            )
        if "eval" not in self.prompts:
            raise ValueError("There is nothing to evaluate on: give eval_dataset, here or to the trainer.")
        count = len(self.prompts["eval"])
        rows = list(range(count))[self.args.process_index :: self.sizes.world]
        # Every process needs as many rows as the others; those added at the end are counted twice.
        rows += [0] * (-(-count // self.sizes.world) - len(rows))
        rollout = self.sample("eval", rows, [stable_key(self.args.seed, "eval", row) for row in rows])
        rollout = self.gather(self.score("eval", rows, rollout, self.eval_meter))
        self.credit(rollout, self.eval_meter)
        self._join_processes(self.eval_meter)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.eval_meter.read().items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy (or its adapters) and the tokenizer at the root, the critic in `critic/`."""
        folder = Path(output_dir or str(self.args.output_dir))
        if self.args.should_save:
            self.roles.save_pretrained(folder)
            self.processing_class.save_pretrained(folder)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def restore_rollout(self, saved: Any) -> None:
        self.rollout = None if saved is None else saved["rollout"]
        self.meter.read()
        for number, state in enumerate([] if saved is None else saved["meters"]):
            if number % self.sizes.world == self.args.process_index:  # also where there are fewer processes now
                self.meter.merge(state)

    @staticmethod
    def _prompt_ids(
        dataset: Dataset, tokenizer: PreTrainedTokenizerBase, model: Any, args: PPOConfig
    ) -> list[list[int]]:
        if not len(dataset):
            raise ValueError("The dataset is empty: PPO needs prompts.")
        require_columns(dataset, ["prompt"], "PPO")
        ids = tokenize_prompts(dataset["prompt"], tokenizer, args.max_prompt_length)
        check_prompts(ids, model, args.max_completion_length)
        return ids


class SaveRollout(TrainerCallback):
    """Puts the rollout into a checkpoint that falls between two updates on it; elsewhere a new one comes anyway."""

    def __init__(self, trainer: PPOTrainer) -> None:
        self.trainer = trainer

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.trainer.sizes.updates:
            meters = gather_object([self.trainer.meter.state()])
            if state.is_world_process_zero:
                folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
                torch.save({"rollout": self.trainer.rollout, "meters": meters}, folder / ROLLOUT_FILE)


def _permutation(count: int, *key: Any) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(stable_key(*key)))


def _one_reward(reward_funcs: Any, weights: Sequence[float] | None) -> WeightedSum:
    if isinstance(reward_funcs, WeightedSum):
        if weights is not None:
            raise ValueError("reward_weights were given, but reward_funcs is a WeightedSum, which has its own.")
        return reward_funcs
    return WeightedSum(reward_funcs if isinstance(reward_funcs, list | tuple) else [reward_funcs], weights)
