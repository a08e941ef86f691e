"""Whether the policy that is updated is the one that was sampled, asked before anything is learned from the answer."""

import logging
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.modeling.checks.randomness import switch_off_randomness
from rlhf_recipes.modeling.checks.shortcuts import check_shortcuts, few_rows, in_full_precision
from rlhf_recipes.modeling.checks.trunk import check_trunk, check_written
from rlhf_recipes.modeling.generation import Written
from rlhf_recipes.ppo.rollout import TOKENS, Rollout

logger = logging.getLogger(__name__)

# Mean |log pi_new - log pi_old| over tokens, before a weight has changed. Rounding alone is far below.
LIMIT, LIMIT_IN_HALF_PRECISION = 1e-4, 0.02


class StochasticPolicyError(ValueError):
    """The policy gives the completions of a rollout other log-probabilities than when it was collected."""


class FirstUpdate:
    """Compares the log-probabilities of each rollout with those of its first optimizer step.

    They are the same policy's, so that every ratio must be 1. Where it is not, PPO would learn from a difference that
    no update has made.

    Args:
        trainer ([`~rlhf_recipes.ppo.trainer.PPOTrainer`]): Whose settings and processes these are.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.causes: list[str] | None = None  # until the first batch is there
        self.seen_written = False
        self.told = False
        self.waits_for = 0
        self.sums = torch.zeros(2)

    def prepare(self, roles: Any, written: Written | Rollout) -> None:
        """Put aside the shortcuts that are not the model, and switch off what draws at random: by the first batch.

        Every process must call it, with all models in evaluation mode.
        """
        tokens = few_rows({name: getattr(written, name) for name in TOKENS})
        temperature = self.trainer.settings.temperature
        if self.causes is None:
            check_shortcuts(roles, tokens, temperature)
            self.causes = switch_off_randomness(roles, tokens, temperature)
            if "trimming" in roles.put_aside["policy"]:
                self.causes.append("what the policy says of a text depends on the padding before it")
            check_trunk(roles, tokens, temperature)
        elif roles.divide_again():  # layers were frozen or freed since
            check_trunk(roles, tokens, temperature)
        if isinstance(written, Written) and not self.seen_written:
            check_written(roles, written, temperature)
            self.seen_written = True

    def begin(self, micro_batches: int) -> None:
        """A rollout is there; its first optimizer step has so many micro-batches."""
        self.waits_for = micro_batches
        self.sums = torch.zeros(2, dtype=torch.float64)

    def see(self, log_ratio: Tensor, mask: Tensor) -> None:
        """Add a micro-batch of the first step, and judge after the last one: on all processes, before weights change.

        Args:
            log_ratio (`(B, T)`): log pi_new - log pi_old, mask (`(B, T)`): 1 for tokens that count.

        Raises:
            `StochasticPolicyError`: if the mean of its absolute value is above the limit.
        """
        if not self.waits_for:
            return
        self.waits_for -= 1
        distance = torch.where(mask.bool(), log_ratio.detach().abs(), 0.0)
        self.sums = self.sums.to(distance.device) + torch.stack([distance.sum(), mask.sum()]).float()
        if self.waits_for:
            return
        sums = self.sums.float()
        if self.trainer.sizes.world > 1:
            sums = self.trainer.accelerator.reduce(sums, reduction="sum")
        total, count = sums.tolist()
        full = in_full_precision(self.trainer.roles.policy, distance.device) and not self._mixes_precision()
        limit = LIMIT if full else LIMIT_IN_HALF_PRECISION
        if count and total / count > limit:
            self._stop_or_tell(total / count, int(count), limit, "float32" if full else "less than float32")

    def _mixes_precision(self) -> bool:
        return self.trainer.accelerator.mixed_precision != "no"

    def _stop_or_tell(self, mean: float, count: int, limit: float, precision: str) -> None:
        causes = self.causes or [
            "none was found in the first batch, so that something has changed the policy since (a callback, a hook, "
            "weights moved by hand), or it depends on how texts are put together into batches"
        ]
        said = (
            f"In the first update of a rollout the policy gives its {count} tokens other log-probabilities than when "
            f"the rollout was collected, though no weight has changed: mean |log ratio| is {mean:.2g}, and at most "
            f"{limit:g} is rounding in {precision}. Cause: {'; '.join(causes)}."
        )
        if not self.trainer.settings.allow_stochastic_policy:
            raise StochasticPolicyError(
                f"{said} PPO would learn from this difference. Load a policy that is steady (its dropout, noise and "
                "routing off), or go on all the same with allow_stochastic_policy."
            )
        if not self.told and self.trainer.is_world_process_zero():
            logger.warning("%s Training goes on, because allow_stochastic_policy is set. This is said once.", said)
        self.told = True
