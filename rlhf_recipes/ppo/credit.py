"""Credit: how much better than expected was every token? From the scores of a rollout to its advantages.

The order, each step a function of `functional.py`: scores (scaled, clipped) -> rewards of the tokens (KL penalty,
score on the last token, what is paid per token) -> whitening of rewards -> shaping -> advantages and returns ->
whitening of advantages. It is given the rollout of all processes, so that every statistic is over all of them.

What a run carries from rollout to rollout (the KL coefficient, the moments of the scores) is in `running.py`.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.metrics import critic_figures, rollout_figures, sampling_figures
from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.ppo.running import KLController, NegativeKL, RewardMoments, RunningMoments


class Credit:
    """Assigns credit, and remembers what goes on from rollout to rollout: the KL coefficient and the scores' moments.

    Args:
        args ([`PPOConfig`]): The settings.
        has_critic (`bool`): Without a critic, the baseline is the mean of all rewards-to-go of the rollout.
    """

    def __init__(self, args: PPOConfig, has_critic: bool = True) -> None:
        self.args = args
        self.has_critic = has_critic
        self.reset()

    def reset(self) -> None:
        """Forget all rollouts so far."""
        args = self.args
        self.kl = KLController(args.kl_coef, args.kl_target, args.kl_horizon)
        self.moments = RunningMoments()
        self.rewards = RewardMoments()  # with normalize_rewards
        self.kl_coef = args.kl_coef  # of the rollout in work; `kl` is already at that of the next one
        self.negative_kl = NegativeKL()

    def state_dict(self) -> dict[str, Any]:
        own = {"kl": self.kl.state_dict(), "kl_coef": self.kl_coef, "moments": self.moments.state_dict()}
        return own | {"reward_moments": self.rewards.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl.load_state_dict(state["kl"])
        self.kl_coef = state["kl_coef"]
        self.moments.load_state_dict(state["moments"])
        self.rewards.load_state_dict(state.get("reward_moments", {}))

    def assign(self, rollout: Rollout, learn: bool = True) -> tuple[Rollout, dict[str, float]]:
        """Advantages and returns of a rollout, and the figures that describe it.

        Args:
            learn (`bool`): whether this rollout moves the KL coefficient and the moments; not while evaluating.
        """
        args, mask = self.args, rollout.mask
        assert rollout.scores is not None, "score before credit"
        loss_mask = mask * rollout.finished[:, None] if args.mask_truncated_completions else mask
        kl = F.kl_per_token(rollout.logprobs, rollout.ref_logprobs, args.kl_estimator)
        kl_coef = self.kl.value
        penalty = 0.0 if args.use_kl_loss else kl_coef
        scores = self._scaled(rollout.scores, learn)
        rewards = F.rewards_per_token(scores, kl, mask, penalty, rollout.token_rewards)
        if args.whiten_rewards:
            rewards = F.masked_whiten(rewards, loss_mask, center=False)
        if rollout.potentials is not None:  # after whitening, or the shaping would no longer cancel over an episode
            rewards = rewards + F.shaping_rewards(rollout.potentials, mask, args.gamma)
        advantages, returns = self._advantages(rewards, rollout.values, mask, loss_mask)
        figures = rollout_figures(rollout, kl, kl_coef)
        if self.has_critic:
            figures |= critic_figures(rollout, returns)
        if args.whiten_advantages:
            advantages = F.masked_whiten(advantages, loss_mask)
        if rollout.sampled_logprobs is not None:
            weights = F.truncated_weights(rollout.logprobs, rollout.sampled_logprobs, args.importance_cap)
            figures |= sampling_figures(rollout, weights, args.importance_cap)
            rollout = replace(rollout, weights=weights)
        if learn:
            self.kl_coef = kl_coef
            self.negative_kl.look(rollout.logprobs - rollout.ref_logprobs, mask)
            self.kl.update(figures["objective/kl"], len(rollout))
        assigned = {"rewards": rewards, "advantages": advantages, "returns": returns, "loss_mask": loss_mask}
        return replace(rollout, **assigned), figures

    def _scaled(self, scores: Tensor, learn: bool) -> Tensor:
        if self.args.use_score_scaling:
            if learn:
                self.moments.update(scores)
            scores = self.moments.normalized(scores, self.args.use_score_norm)
        clip = self.args.score_clip
        return scores if clip is None else scores.clamp(-clip, clip)

    def _advantages(self, rewards: Tensor, values: Tensor, mask: Tensor, loss_mask: Tensor) -> tuple[Tensor, Tensor]:
        args = self.args
        if not self.has_critic:
            returns = F.rewards_to_go(rewards, mask, args.gamma)
            baseline = F.masked_mean(returns, loss_mask) if loss_mask.any() else 0.0
            return torch.where(mask.bool(), returns - baseline, 0.0), returns
        lam: Any = args.lam
        if args.lam_length_alpha is not None:
            lam = F.length_adaptive_lam(mask, args.lam_length_alpha)
        advantages, returns = F.generalized_advantages(rewards, values, mask, args.gamma, lam)
        lam_value = args.lam if args.lam_value is None else args.lam_value
        if args.lam_length_alpha is not None or lam_value != args.lam:
            _, returns = F.generalized_advantages(rewards, values, mask, args.gamma, lam_value)
        return advantages, returns
