"""Credit: how much better than expected was every token? From the scores of a rollout to its advantages.

The order, each step a function of `functional.py`: scores (scaled, clipped) -> rewards of the tokens (KL penalty,
score on the last token, what is paid per token) -> whitening of rewards -> shaping -> advantages and returns ->
whitening of advantages. It is given the rollout of all processes, so that every statistic is over all of them.

Numbers that a run carries from rollout to rollout: the KL coefficient, and the moments of the scores seen so far.

Both are fed what all processes have together, so that they are the same everywhere, and both go into the checkpoint.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.metrics import completion_figures
from rlhf_recipes.ppo.rollout import Rollout

logger = logging.getLogger(__name__)
RECENT_EPISODES = 256  # in which a negative KL is looked for


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
        self.reward_moments: dict[str, RunningMoments] = {}  # by reward, with normalize_rewards
        self.kl_coef = args.kl_coef  # of the rollout in work; `kl` is already at that of the next one
        self.recent_kl = torch.zeros(0, dtype=torch.float64)
        self.told_of_negative_kl = False

    def state_dict(self) -> dict[str, Any]:
        of_rewards = {name: moments.state_dict() for name, moments in self.reward_moments.items()}
        own = {"kl": self.kl.state_dict(), "kl_coef": self.kl_coef, "moments": self.moments.state_dict()}
        return own | {"reward_moments": of_rewards}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.kl.load_state_dict(state["kl"])
        self.kl_coef = state["kl_coef"]
        self.moments.load_state_dict(state["moments"])
        self.reward_moments = {}
        for name, moments in state.get("reward_moments", {}).items():
            self.reward_moments[name] = RunningMoments()
            self.reward_moments[name].load_state_dict(moments)

    def learn_rewards(self, parts_of_processes: Sequence[Mapping[str, Sequence[Any]]]) -> None:
        """Take in the rewards of a rollout, of all processes; those that pay per token are left alone."""
        for name in parts_of_processes[0]:
            values = [value for parts in parts_of_processes for value in parts[name] if value is not None]
            if values and not isinstance(values[0], list):
                self.reward_moments.setdefault(name, RunningMoments()).update(values)

    def reward_scale(self, name: str) -> float:
        """The standard deviation of a reward so far; 1 where there is none."""
        return self.reward_moments[name].std if name in self.reward_moments else 1.0

    def reward_mean(self, name: str) -> float:
        """The mean of a reward so far; 0 where there is none."""
        return self.reward_moments[name].mean if name in self.reward_moments else 0.0

    def normalized_rewards(self, parts: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
        """Each reward less its mean so far, over its standard deviation so far."""
        means = {name: moments.mean for name, moments in self.reward_moments.items()}
        return {
            name: [
                value if value is None or name not in means else (value - means[name]) / self.reward_scale(name)
                for value in values
            ]
            for name, values in parts.items()
        }

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
        figures = self._figures(rollout, kl, kl_coef, returns)
        if args.whiten_advantages:
            advantages = F.masked_whiten(advantages, loss_mask)
        if learn:
            self.kl_coef = kl_coef
            self._diagnose(rollout)
            self.kl.update(figures["objective/kl"], len(rollout))
        return replace(rollout, advantages=advantages, returns=returns, loss_mask=loss_mask), figures

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

    def _figures(self, rollout: Rollout, kl: Tensor, kl_coef: float, returns: Tensor) -> dict[str, float]:
        assert rollout.scores is not None
        mask, count = rollout.mask, len(rollout)
        scores = rollout.scores
        if rollout.token_rewards is not None:
            scores = scores + torch.where(mask.bool(), rollout.token_rewards, 0.0).sum(dim=1)
        nats = float(F.masked_sum(kl, mask) / count)
        figures = {
            "objective/scores": float(scores.mean()),
            "objective/scores_std": float(scores.std(correction=0)),
            "objective/kl": nats,
            "objective/kl_coef": kl_coef,
            "objective/non_score_reward": -kl_coef * nats,
            "objective/rlhf_reward": float(scores.mean()) - kl_coef * nats,
            "objective/entropy": float(F.masked_sum(-rollout.logprobs, mask) / count),
            "rollout/completion_length": float(mask.sum() / count),
            "rollout/finished": float(rollout.finished.float().mean()),
            "rollout/num_eos_tokens": float(rollout.finished.sum()),
            **completion_figures(rollout.completion_ids, mask, scores),
        }
        if self.has_critic:
            figures["value/explained_variance"] = float(F.explained_variance(rollout.values, returns, mask))
            figures["value/mean"] = float(F.masked_mean(rollout.values, mask))
        return figures

    def _diagnose(self, rollout: Rollout) -> None:
        """Say what a KL means that is negative by more than chance."""
        log_ratio = rollout.logprobs - rollout.ref_logprobs  # k1: the other estimators are never negative
        per_episode = torch.where(rollout.mask.bool(), log_ratio, 0.0).sum(dim=1).double().cpu()
        self.recent_kl = torch.cat([self.recent_kl, per_episode])[-max(RECENT_EPISODES, len(rollout)) :]
        count = len(self.recent_kl)
        if self.told_of_negative_kl or count < 4:
            return
        mean, error = float(self.recent_kl.mean()), float(self.recent_kl.std()) / math.sqrt(count)
        # Student's t with count - 1 degrees of freedom is further down once in a million (the first terms of its
        # expansion around the normal quantile 4.75): this is asked after every rollout, and chance must never say yes.
        bound = 4.75 + 28 / (count - 1) + 144 / (count - 1) ** 2
        if mean < -bound * error and mean < -0.01:
            self.told_of_negative_kl = True
            logger.warning(
                "The KL to the reference is estimated as %.3g nats, negative by more than chance (standard error "
                "%.2g, last %d completions). A KL is never negative; its estimate log pi - log pi_ref is, where "
                "completions do not come from pi: sampling options that change the distribution (top_k, top_p, "
                "min_new_tokens, penalties), a Generator with other weights or another temperature, or a model that "
                "computes other log-probabilities in training than in sampling. The penalty then rewards such "
                "completions. This is said once.",
                *(mean, error, count),
            )


MAX_KL_ERROR = 0.2  # Ziegler et al. clip the relative error to this, so that one odd rollout moves the value little


class KLController:
    """The KL coefficient: fixed, or steered towards a target (Ziegler et al., arXiv 1909.08593, section 2.2).

    `error = clip(kl / target - 1, -0.2, 0.2)` and `value *= 1 + error * episodes / horizon`.

    Args:
        kl_coef (`float`): the coefficient, or where it starts.
        target (`float`, *optional*): the KL to be held, in nats for each completion; positive. `None` holds `value`.
        horizon (`float`, *optional*, defaults to 10000): episodes. With an error of 0.2 throughout, this many change
            the value by about a fifth; more make it slower.

    Raises:
        `ValueError`: if target or horizon is not positive.
    """

    def __init__(self, kl_coef: float, target: float | None = None, horizon: float = 10000) -> None:
        for name, given in (("target", target), ("horizon", horizon)):
            if given is not None and not given > 0:
                raise ValueError(f"The {name} of the KL controller is {given}, but must be greater than 0.")
        self.value = kl_coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Take in the mean KL of one rollout (nats for each completion) and its number of completions."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1.0, -MAX_KL_ERROR), MAX_KL_ERROR)
        self.value *= 1.0 + error * episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from a checkpoint. A fixed coefficient stays what the arguments say."""
        if self.target is not None:
            self.value = state["value"]


class RunningMoments:
    """Mean and standard deviation of all scores so far, batch after batch, in float64.

    Batches are merged by Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances" (1979), eq. 2.1: no sum of squares is kept, so that a mean far from 0 costs no precision.

    Attributes:
        count (`int`): scores seen.
        mean (`float`): their mean; 0.0 before the first.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0  # sum of squared distances from the mean

    def update(self, scores: Sequence[float] | Tensor) -> None:
        """Take in a batch of scores, of any shape. An empty one changes nothing."""
        batch = torch.as_tensor(scores, dtype=torch.float64).detach().flatten().cpu()
        if not len(batch):
            return
        added, mean = len(batch), float(batch.mean())
        total, delta = self.count + added, mean - self.mean
        self._squares += float(((batch - mean) ** 2).sum()) + delta**2 * self.count * added / total
        self.mean += delta * added / total
        self.count = total

    @property
    def std(self) -> float:
        """Unbiased standard deviation, or 1.0 where there is none to divide by: before two scores, or if all agree."""
        if self.count < 2:
            return 1.0
        std = math.sqrt(self._squares / (self.count - 1))
        # Equal scores may leave the rounding of their mean behind, and that is no spread.
        return std if std > 1e-12 * abs(self.mean) else 1.0

    def normalized(self, scores: Sequence[float] | Tensor, use_norm: bool) -> Tensor:
        """`(scores - mean) / std`, or `scores / std` without `use_norm`. Scores are not taken in; call `update` first.

        Returns:
            `Tensor`: of the scores' shape and, for a tensor of floats, of its dtype.
        """
        scores = torch.as_tensor(scores)
        # In float64: with a mean far from 0 a float32 score would lose its digits in the difference.
        wide = scores.double()
        wide = (wide - self.mean) / self.std if use_norm else wide / self.std
        return wide.to(scores.dtype if scores.is_floating_point() else torch.get_default_dtype())

    def state_dict(self) -> dict[str, float]:
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.count, self.mean, self._squares = int(state["count"]), float(state["mean"]), float(state["squares"])
