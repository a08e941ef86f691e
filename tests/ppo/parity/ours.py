"""Run this project's PPOTrainer on a case of cases.py, with the completions and the orders that TRL took."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from rlhf_recipes.ppo import PPOConfig, PPOTrainer
from rlhf_recipes.ppo import trainer as trainer_module
from tests.ppo.parity import cases


class Recorded:
    """A generator whose completions are known beforehand, one for each prompt."""

    def __init__(self, completions: dict[tuple[int, ...], list[int]]) -> None:
        self.completions = completions

    def generate(self, prompt_ids: Tensor, mask: Tensor, config: Any, row_keys: Sequence[int]) -> Tensor:
        rows = [tuple(ids[real.bool()].tolist()) for ids, real in zip(prompt_ids, mask, strict=True)]
        return torch.tensor([self.completions.get(row, [11] * cases.LENGTH) for row in rows])


class Watched(PPOTrainer):
    """Keeps what each rollout and each micro-batch was."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.rollouts: list[dict[str, Tensor]] = []
        self.steps: list[dict[str, Tensor]] = []
        self.events: list[str] = []
        super().__init__(*args, **kwargs)
        plain = self.credit._advantages

        def noting_rewards(rewards: Tensor, *rest: Any) -> Any:
            self.rewards = rewards.clone()
            return plain(rewards, *rest)

        self.credit._advantages = noting_rewards

    def collect(self, iteration: int) -> Any:
        rollout = super().collect(iteration)
        self.rollouts.append({name: t.clone() for name, t in rollout.tensors().items()} | {"rewards": self.rewards})
        self.events.append("rollout")
        return rollout

    def _measure(self, per_token: dict[str, Tensor], mask: Tensor) -> None:
        self.steps.append({name: t.clone() for name, t in per_token.items()} | {"mask": mask})
        self.events.append("backward")
        super()._measure(per_token, mask)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        self.steps_before = len(self.steps)
        loss = super().training_step(*args, **kwargs)
        (step,) = self.steps[self.steps_before :]
        step["whole"] = loss
        return loss

    def after_step(self) -> None:
        self.events.append("step")
        super().after_step()


def orders_of(trl: dict[str, Any], case: cases.Case) -> Any:
    """TRL's orders of prompts and of mini-batches, in the place of those that a seed gives."""
    numbers = {tuple(prompt): row for row, prompt in enumerate(cases.prompts(case))}
    taken = []
    for rollout in trl["rollouts"]:
        rows = zip(rollout["queries"].tolist(), (rollout["queries"] != rollout["pad"]).tolist(), strict=True)
        taken += [numbers[tuple(t for t, real in zip(*row, strict=True) if real)] for row in rows]

    def permutation(count: int, seed: int, kind: str, *place: int) -> Tensor:
        if kind == "prompts":
            return torch.tensor(taken[place[0] * count :][:count])
        iteration, epoch = place
        return trl["rollouts"][iteration]["orders"][epoch]

    return permutation


def run(folder: Path, case: cases.Case, trl: dict[str, Any]) -> dict[str, Any]:
    """The same as `run` of run_trl.py gives, under this project's names."""
    parts = cases.load(folder, case)
    completions = cases.completions(case, parts["processing_class"].eos_token_id)
    args = PPOConfig(output_dir=str(folder / "ours"), **case.config() | case.ours)
    # Side by side as in TRL: rows in the order of the mini-batch, so that micro-batches are the same.
    in_order = mock.patch.object(trainer_module, "like_lengths", lambda rollout, rows: rows)
    with in_order, mock.patch.object(trainer_module, "permutation", orders_of(trl, case)):
        trainer = Watched(args, **parts, generator=Recorded(completions))
        before = {name: tensor.clone() for name, tensor in trainer.roles.policy.state_dict().items()}
        trainer.train()
    return {
        "rollouts": trainer.rollouts,
        "steps": trainer.steps,
        "events": trainer.events,
        "logs": trainer.state.log_history,
        "global_step": trainer.state.global_step,
        "before": before,
        "policy": trainer.roles.policy.state_dict(),
        "critic": trainer.roles.critic.model.state_dict(),
    }
