"""What `Trainer` asks for around PPO: a clock, logs, exact checkpoints, evaluation, saving and pushing.

Nothing here decides what is learned; that is in `trainer.py`.
"""

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.data import DataLoader
from trl.models import prepare_deepspeed, unwrap_model_for_generation

from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.compat import CheckpointOfRoles
from rlhf_recipes.errors import PushError
from rlhf_recipes.hub import license_of, push_run
from rlhf_recipes.modeling.cost.memory import memory_line
from rlhf_recipes.modeling.generation import stable_key
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.saving import refuse_two_forms
from rlhf_recipes.modeling.zero import gathered, is_divided, match_precision, whole_state_dict
from rlhf_recipes.ppo.metrics import GLOSSARY, Meter
from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.ppo.run import held_out
from rlhf_recipes.ppo.run import tables as completions
from rlhf_recipes.ppo.run.checkpoint import (
    STATE_FILE,
    decisive_settings,
    load_state,
    refuse_other_settings,
    save_state,
)
from rlhf_recipes.report.policy_card import Reward, Sample, config_of, facts_of_run, write_model_card
from rlhf_recipes.texts import is_conversational

logger = logging.getLogger(__name__)
SAMPLES = 5  # completions on the model card


class PPOPlumbing(CheckpointOfRoles):
    """The part of [`PPOTrainer`] that is about runs and not about PPO."""

    # Set by PPOTrainer. Those of Trainer are narrower here than what it allows, and checked.
    model: Any
    processing_class: Any
    train_dataset: Any
    eval_dataset: Any
    settings: Any
    sizes: Any
    prompts: Any
    demonstrations: list
    reward: Any
    credit: Any
    rollout: Any
    interrupt: Any
    meter: Meter
    step_meter: Meter
    stopped: bool
    episodes_before: int
    generator: Any
    start: float
    update_start: float
    last_rows: list[dict[str, Any]]  # of this process: completions of the last rollout, or of held-out prompts

    @property
    def roles(self) -> ActorCritic:
        """Policy, critic and reference, without what a launcher wraps around them."""
        return self.accelerator.unwrap_model(self.model)

    def memory(self) -> str:
        """One line: what policy, critic, reference and reward models take, in weights, gradients and optimizer."""
        rewards = {
            f"reward {name}": getattr(getattr(func, "reward", func), "model", None)
            for name, func in zip(self.reward.names, self.reward.reward_funcs, strict=True)
        }
        models = {name: model for name, model in rewards.items() if isinstance(model, nn.Module)}
        roles = {"policy": self.roles.policy, "reference": self.roles.ref_model, "critic": self.roles.critic}
        rows = max(self.sizes.micro, min(self.sizes.local_rollout, self.settings.rollout_forward_batch_size))
        tokens = min(rows * self.settings.max_completion_length, self.settings.logits_chunk_size)
        return memory_line(roles | models, self.args, logits_tokens=tokens)

    def _check_launch(self) -> None:
        if self.args.n_gpu > 1:
            raise ValueError(
                "Several GPUs are visible to one process. Start with `accelerate launch`, or make one visible with "
                "CUDA_VISIBLE_DEVICES."
            )
        # Now, and not when the training that it would spoil is over.
        as_adapter = isinstance(self.roles.policy, PeftModel) and not self.settings.save_merged
        refuse_two_forms(Path(str(self.args.output_dir)), as_adapter)
        if self.is_fsdp_enabled:
            raise ValueError("PPO does not know FSDP. Divide a large model with accelerate_configs/zero3.yaml.")
        if is_divided(self.roles) and hasattr(self.generator, "sync"):
            raise ValueError("A generator that is given the weights does not work with ZeRO-3. Take zero2.yaml.")
        for name in ("target_kl", "critic_warmup"):
            if self.is_deepspeed_enabled and getattr(self.settings, name):
                raise ValueError(
                    f"{name} keeps weights still in some optimizer steps, which DeepSpeed does not allow: its step "
                    "follows the backward pass at once. Leave it out."
                )

    def _place_reference(self) -> None:
        match_precision(self.roles)
        if self.roles.ref_model is None:
            return
        if self.is_deepspeed_enabled:  # in shares under ZeRO-3, and in any case in the precision of the policy
            self.roles.replace_reference(prepare_deepspeed(self.roles.ref_model, self.accelerator))
        else:
            self.roles.ref_model.to(self.args.device)

    @contextlib.contextmanager
    def _policy_for_sampling(self) -> Iterator[ActorCritic]:
        """The roles, the policy's weights whole under ZeRO-3 (`ds3_gather_for_generation`)."""
        if not is_divided(self.roles):
            yield self.roles
            return
        if self.model_wrapped is self.model:  # not training yet: nothing else would put the weights together
            with gathered(self.roles.parameters()):
                yield self.roles
            return
        gather = self.settings.ds3_gather_for_generation
        with unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=gather
        ) as roles:
            yield roles

    def get_train_dataloader(self) -> DataLoader:
        """A clock: one tick for each micro-batch of a pass over the prompts. The data itself comes from `collect`.

        It is not prepared by accelerate, which would fetch one batch ahead and so collect a rollout too early.
        """
        rollouts = len(self.prompts["train"]) // self.sizes.prompts
        ticks = rollouts * self.sizes.updates * self.sizes.accumulation
        return DataLoader(range(ticks), batch_size=1)  # type: ignore[arg-type]  # a range is all that a clock needs

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from the beginning or on from a checkpoint (`True`: from the last whole one in `output_dir`).

        Raises:
            `FileNotFoundError`: if there is no checkpoint to go on from.
            `ValueError`: if the checkpoint belongs to a run with other settings; each one is named.
            `FloatingPointError`: if the loss becomes NaN or infinite.
            `KeyboardInterrupt`: after Ctrl-C or SIGTERM, when the checkpoint is written.
        """
        if resume_from_checkpoint is True:
            folder = str(self.args.output_dir)
            resume_from_checkpoint = find_checkpoint(folder, "auto", required=[STATE_FILE])
            if resume_from_checkpoint is None:
                raise FileNotFoundError(f"There is no checkpoint in {folder!r} to go on from.")
        if resume_from_checkpoint:
            state = load_state(resume_from_checkpoint)
            refuse_other_settings(resume_from_checkpoint, state["settings"], self._decisive_settings())
            self.load_state_dict(state)
            self.episodes_before = state["episodes"]
        else:  # a second call begins anew
            self.credit.reset()
            self.episodes_before = 0
        self.start = self.update_start = time.perf_counter()
        try:
            result = super().train(resume_from_checkpoint or None, *args, **kwargs)
            if self.interrupt.asked and self.state.global_step < self.state.max_steps:
                raise KeyboardInterrupt  # saved by now; a script must not go on as if the run were complete
            return result
        except KeyboardInterrupt:
            if self.interrupt.collecting:  # no weight has changed since the last step
                self.interrupt.collecting = False
                self.save_checkpoint_now()
            raise
        finally:
            self.interrupt.restore()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides weights, optimizer and schedule. Every process must call it."""
        between = self.state.global_step % self.sizes.updates == 0
        return {
            "settings": self._decisive_settings(),
            "credit": self.credit.state_dict(),
            "meters": gather_object([self.meter.state()]) if self.sizes.world > 1 else [self.meter.state()],
            "stopped": self.stopped,
            "episodes": self.state.global_step // self.sizes.updates * self.sizes.rollout,
            # Elsewhere a new rollout comes anyway.
            "rollout": None if between or self.rollout is None else self.rollout.tensors(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.credit.load_state_dict(state["credit"])
        self.stopped = state["stopped"]
        tensors = state["rollout"]
        self.rollout = None if tensors is None else Rollout(**tensors).map(lambda _, t: t.to(self.args.device))
        self.meter.read()
        for number, of_process in enumerate(state["meters"]):
            if number % self.sizes.world == self.args.process_index:  # also where there are fewer processes now
                self.meter.merge(of_process)

    def _decisive_settings(self) -> dict[str, Any]:
        ids = self.prompts["train"].ids
        counts = {
            "prompts": f"{len(ids)} ({stable_key(ids):x})",
            "demonstrations": f"{len(self.demonstrations)} ({stable_key(self.demonstrations):x})",
        }
        return decisive_settings(self.settings, self.sizes, repr(self.reward), counts)

    def _stop_at_nan(self, loss: Tensor, inputs: dict[str, Tensor]) -> None:
        """Stop all processes before the weights are changed, and leave behind what is needed to understand it."""
        finite = torch.isfinite(loss.detach()).float()
        if self.sizes.world > 1:
            finite = self.accelerator.reduce(finite.reshape(1), reduction="sum") / self.sizes.world
        if finite == 1.0:
            return
        step = self.state.global_step
        folder = Path(str(self.args.output_dir)) / f"nan-step-{step}"
        self.save_model(str(folder), _internal_call=True)
        batch = folder / f"batch-of-process-{self.args.process_index}.pt"
        torch.save({name: tensor.detach().cpu() for name, tensor in inputs.items()}, batch)
        scores = inputs["scores"]
        said = loss.item() if not loss.isfinite() else "not finite on another process"
        raise FloatingPointError(
            f"The loss is {said} at step {step}. The weights are as they were before this step; they and the "
            f"batch are saved in {folder} (scores of the batch from {scores.min():.4g} to {scores.max():.4g}). Lower "
            "learning_rate, or look at the rewards of this rollout."
        )

    def after_step(self) -> None:
        """What an optimizer step tells: its figures, and whether the next one on this rollout still takes place."""
        self.meter.add({"policy/updates_made": float(not self.stopped)})
        if self.state.global_step % self.sizes.updates == 0:
            self.meter.add({"time/update": time.perf_counter() - self.update_start})
        if self.stopped:
            return
        if self.settings.target_kl is not None:
            self._join_processes(self.step_meter)  # all processes must come to the same answer
            self.stopped = self.step_meter.mean("policy/approxkl_avg") > self.settings.target_kl
        self.meter.merge(self.step_meter.state())
        self.step_meter.read()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            self._join_processes(self.meter)
            rollouts = -(-self.state.global_step // self.sizes.updates)  # the one in work is counted
            figures = self.meter.read()
            if "policy/ratio" in figures:  # so far it is the mean squared distance from 1
                distance = (figures["policy/ratio"] - 1) ** 2
                figures["policy/ratio_var"] = max(figures["policy/ratio_var"] - distance, 0.0)
            done = rollouts * self.sizes.rollout - self.episodes_before
            figures["time/episodes_per_second"] = done / (time.perf_counter() - self.start)
            logs = {**logs, "episode": rollouts * self.sizes.rollout, **figures}
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
        """Sample one completion for each held-out prompt; log the same figures with the prefix `eval_`."""
        metrics = held_out.evaluate(self, eval_dataset, metric_key_prefix)
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def generate_completions(self, sampling: bool = False) -> list[dict[str, Any]]:
        """Write, score and show completions of held-out prompts, as TRL's does; see [`held_out`]."""
        return held_out.generate_completions(self, sampling)

    # ---- saving and pushing

    def save_roles(self, folder: Path, merge: bool = False) -> None:
        """Policy (or its adapters) and tokenizer at the root of the folder, the critic in `critic/`."""
        whole = whole_state_dict(self.roles, self.args.should_save) if is_divided(self.roles) else None
        if self.args.should_save:
            self.roles.save_pretrained(folder, whole, merge=merge)
            self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy (or its adapters) and the tokenizer at the root, the critic in `critic/`."""
        folder = Path(output_dir or str(self.args.output_dir))
        self.save_roles(folder, merge=self.settings.save_merged and not _internal_call)
        if _internal_call:  # within a checkpoint, before trainer_state.json says that it is whole
            state = self.state_dict()
            if self.args.should_save:
                save_state(folder, state)

    def push_checkpoint(self, folder: str) -> None:
        """Push the model of a checkpoint; a push that fails is told, and training goes on."""
        message = f"Training in progress, step {self.state.global_step}"
        try:  # README.md of a checkpoint is an empty form of peft's
            push_run(folder, str(self.hub_model_id), self.args.hub_token, commit_message=message, ignore=["README.md"],
                     revision=self.args.hub_revision)  # fmt: skip
        except PushError as error:
            logger.warning("%s Training goes on.", error)

    def create_model_card(  # type: ignore[override]
        self, dataset_name: str | None = None, model_name: str | None = None, **known: Any
    ) -> None:
        """Write the README.md of the run's folder: figures, curves, rewards and settings of this run.

        Args:
            known: What the caller knows better; fields of [`~rlhf_recipes.report.policy_card.RunFacts`], such as
                `config`, the run's own YAML.
        """
        if not self.is_world_process_zero():
            return
        policy = self.roles.policy
        adapter = isinstance(policy, PeftModel) and not self.settings.save_merged
        base = getattr(policy, "active_peft_config", policy.config)
        base = getattr(base, "base_model_name_or_path", None) or policy.config.name_or_path
        facts = {
            "base_model": base or "an unnamed model",
            "dataset_name": dataset_name or "an unnamed dataset",
            "num_examples": len(self.prompts["train"]),
            "repo_id": self.hub_model_id,
            "rewards": [Reward(name, weight) for name, weight in self.reward.weights_at(1.0).items()],
            "samples": [
                Sample(completions.readable(row["prompt"]), row["completion"], row["score"])
                for row in completions.spread(self.last_rows, SAMPLES)
            ],
            "conversational": is_conversational(self.prompts["train"].dataset[0]["prompt"]),
            "license": license_of(str(base)),
        }
        config = known.pop("config", None) or config_of(self.settings)
        history = self.state.log_history
        write_model_card(
            str(self.args.output_dir),
            facts_of_run(config, history, adapter=adapter, glossary=GLOSSARY, **(facts | known)),
        )

    def push_to_hub(  # type: ignore[override]
        self,
        commit_message: str = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **known: Any,
    ) -> Any:
        """Push policy, critic, tokenizer and card, and nothing else of the run's folder.

        Args:
            known: For [`create_model_card`].

        Raises:
            `PushError`: if it fails, with what to do; the local files stay as they are.
        """
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        folder = Path(str(self.args.output_dir))
        self.save_roles(folder, merge=self.settings.save_merged)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**known)
        return push_run(folder, str(self.hub_model_id), token, private=private, commit_message=commit_message,
                        revision=revision or self.args.hub_revision)  # fmt: skip
