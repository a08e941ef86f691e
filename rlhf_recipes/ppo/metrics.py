"""The glossary of what PPO logs: one definition for each name, and a meter that refuses any other.

Means over tokens are over real tokens, means over episodes over all episodes of a rollout, on all processes. Names
under `reward/` and `time/` are open: one for each reward and each stage.

Figures of a rollout by which a person, or [`~rlhf_recipes.ppo.run.monitor`], sees what the rewards do to the policy.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import torch
from accelerate.utils import gather_object
from torch import Tensor

from rlhf_recipes.ppo import functional as F
from rlhf_recipes.rewards.weighted_sum import progress_of

GLOSSARY: dict[str, str] = {
    "episode": "Episodes collected so far, by all processes.",
    "objective/scores": "Weighted sum of the rewards, with the penalty for a missing end; mean over episodes.",
    "objective/scores_std": "Standard deviation of the scores over the episodes of a rollout.",
    "objective/kl": "Sum over tokens of the KL estimate against the reference, in nats; mean over episodes.",
    "objective/kl_coef": "Weight of the KL penalty in this rollout.",
    "objective/non_score_reward": "Sum over tokens of -kl_coef * KL; mean over episodes.",
    "objective/rlhf_reward": "objective/scores + objective/non_score_reward: what PPO maximizes.",
    "objective/entropy": "Sum over tokens of -log pi(token), in nats; mean over episodes.",
    "policy/entropy_avg": "Entropy of the policy's next-token distribution during the update, nats; mean over tokens.",
    "policy/approxkl_avg": "(log pi_new - log pi_old)^2 / 2 during the update; mean over tokens.",
    "policy/clipfrac_avg": "Share of tokens where clipping decided the policy loss.",
    "policy/ratio_var": "Variance of pi_new / pi_old during the update; over tokens.",
    "policy/ratio": "pi_new / pi_old during the update; mean over tokens. Near 1 if steps are small.",
    "loss/policy_avg": "Clipped policy loss; mean over tokens.",
    "policy/updates_made": "Share of the planned optimizer steps that were made; below 1 where target_kl ended them.",
    "loss/kl_avg": "KL term of the loss, before kl_coef; mean over tokens. Only with use_kl_loss.",
    "loss/imitation_avg": "Negative log-probability of demonstrations; mean over tokens. Only with imitation_coef.",
    "loss/value_avg": "Clipped value loss, half a squared error, before vf_coef; mean over tokens.",
    "value/clipfrac_avg": "Share of tokens where clipping decided the value loss.",
    "value/explained_variance": "1 - Var(returns - values) / Var(returns) on the rollout; 1 is a perfect critic.",
    "value/mean": "Value that the critic gave; mean over tokens.",
    "rollout/completion_length": "Real tokens in a completion, its end included; mean over episodes.",
    "rollout/finished": "Share of completions that ended by themselves.",
    "rollout/num_eos_tokens": "Completions of a rollout that ended by themselves.",
    "rollout/repetition": "Share of token pairs that were there before in the same completion; mean over episodes.",
    "rollout/length_slope": "Score for one more token: least-squares slope over the episodes of a rollout.",
    "rollout/length_correlation": "Correlation of score and completion length over the episodes of a rollout.",
    "rollout/importance": "pi / q of the tokens that q drew in place of the policy pi, truncated; mean over tokens.",
    "rollout/importance_capped": "Share of tokens where importance_cap decided that weight.",
    "rollout/sampling_kl": "log q - log pi of these tokens: KL(q || pi) for each token, in nats; mean over tokens.",
    "rollout/distinct_1": "Different words divided by all words, over all completions. Only while evaluating.",
    "rollout/distinct_2": "Different word pairs divided by all of them, over all completions. Only while evaluating.",
    "loss": "What is minimized: policy, value, KL, entropy and imitation terms; mean over optimizer steps.",
}
OPEN_PREFIXES = ("reward/", "time/")


class Meter:
    """Collects numbers between two logs: sums with weights, read out as weighted means.

    Raises:
        `KeyError`: on a name that the glossary does not define.
    """

    def __init__(self) -> None:
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)

    def add(self, values: Mapping[str, SupportsFloat], weight: float = 1.0) -> None:
        """Add values, each with that weight."""
        for name, value in values.items():
            if name not in GLOSSARY and not name.startswith(OPEN_PREFIXES):
                raise KeyError(f"No metric {name!r} in the glossary of rlhf_recipes/ppo/metrics.py: define it there.")
            self.sums[name] += float(value) * weight
            self.weights[name] += weight

    def state(self) -> dict[str, tuple[float, float]]:
        """Sum and weight of each name, as [`Meter.merge`] takes them."""
        return {name: (self.sums[name], self.weights[name]) for name in self.sums}

    def merge(self, state: Mapping[str, tuple[float, float]]) -> None:
        """Add what another meter has collected."""
        for name, (total, weight) in state.items():
            self.sums[name] += total
            self.weights[name] += weight

    def join(self, world: int) -> None:
        """Add up what all `world` processes have measured. A reward that applied to no row of one is missing there."""
        if world > 1:
            everyone = gather_object([self.state()])
            self.read()
            for state in everyone:
                self.merge(state)

    def mean(self, name: str) -> float:
        """The mean of one name so far; 0 where nothing was added."""
        return self.sums[name] / self.weights[name] if self.weights.get(name) else 0.0

    def read(self) -> dict[str, float]:
        """The means since the last reading; the meter is empty afterwards."""
        means = {name: self.sums[name] / self.weights[name] for name in self.sums if self.weights[name]}
        self.sums.clear()
        self.weights.clear()
        return means


def log_figures(trainer: Any) -> dict[str, float]:
    """What the meter of a [`~rlhf_recipes.ppo.trainer.PPOTrainer`] has gathered since the last log, and progress."""
    sizes = trainer.sizes
    trainer.meter.join(sizes.world)
    rollouts = -(-trainer.state.global_step // sizes.updates)  # the one in work is counted
    figures = trainer.meter.read()
    if "policy/ratio" in figures:  # so far it is the mean squared distance from 1
        distance = (figures["policy/ratio"] - 1) ** 2
        figures["policy/ratio_var"] = max(figures["policy/ratio_var"] - distance, 0.0)
    done = rollouts * sizes.rollout - trainer.episodes_before
    figures["time/episodes_per_second"] = done / (time.perf_counter() - trainer.start)
    return {"episode": rollouts * sizes.rollout, **figures}


def as_markdown() -> str:
    """docs/metrics.md: the glossary as tables, one for each part of the algorithm."""
    titles = {
        "objective": "What is maximized",
        "policy": "The policy's update",
        "value": "The critic",
        "loss": "The terms of the loss",
        "rollout": "The completions",
    }
    text = (
        "# What PPO logs\n\n"
        "This page is made from the glossary in `rlhf_recipes/ppo/metrics.py` by `python -m rlhf_recipes.ppo.metrics`."
        "\nLogging a name that is not defined there is an error. Means over tokens are over real tokens, means over "
        "episodes over\nall episodes of a rollout, on all processes. While evaluating the same names come with the "
        "prefix `eval_`.\n"
    )
    for prefix, title in titles.items():
        names = [name for name in GLOSSARY if name.split("/")[0] == prefix]
        rows = "".join(f"| `{name}` | {GLOSSARY[name]} |\n" for name in names)
        text += f"\n## {title}\n\n| name | definition |\n|---|---|\n{rows}"
    return text + (
        "\n## The rest\n\n| name | definition |\n|---|---|\n"
        f"| `episode` | {GLOSSARY['episode']} |\n"
        "| `reward/<name>` | What that reward gave, before its weight; mean over the episodes that it applies to. |\n"
        "| `reward/<name>/std` | Its standard deviation over these episodes. |\n"
        "| `reward/<name>/share` | cov(weight * reward, sum) / var(sum): how much of what tells one completion from "
        "another it decides. Shares add up to 1. |\n"
        "| `time/reward/<name>` | Seconds that a rollout waited for that reward. Rewards that run side by side share "
        "their wait: the first of a list shows it. |\n"
        "| `time/sample`, `time/score` | Seconds of a rollout: completions and log-probabilities; rewards. |\n"
        "| `time/update` | Seconds of the updates on a rollout. |\n"
        "| `time/episodes_per_second` | Since the run began or went on. |\n"
        "| `learning_rate`, `grad_norm`, `epoch`, `step` | The Trainer's own: of the last optimizer step, the norm "
        "before it is clipped. |\n"
    )


def reward_figures(
    parts: Tensor, names: Sequence[str], weights: Mapping[str, float], means: Tensor | None = None
) -> list[tuple[dict[str, float], int]]:
    """Mean, standard deviation and share of each reward, over the episodes of all processes.

    The share of reward k is `cov(w_k r_k, s) / var(s)` with `s = sum_j w_j r_j`: how much of what tells one completion
    from another comes from it. Shares add up to 1. One is negative where the reward pulls against the sum, and 0
    where it is the same for all. They are left out where all sums are equal.

    Args:
        parts (`(B, K)`): one column for each name, NaN where a reward does not apply to an episode.
        weights (`Mapping`): by name, what each is multiplied with.

    Returns:
        `list`: for each reward that applied to some episode its figures, and to how many it applied.
    """
    parts = parts.double()
    applies = ~parts.isnan()
    paid = parts if means is None else parts - means
    weighted = torch.where(applies, paid, 0.0) * torch.tensor([weights[name] for name in names], dtype=parts.dtype)
    total = weighted.sum(dim=1)
    centered = total - total.mean()
    variance = float((centered**2).mean())
    told_apart = variance > 1e-18 * max(float(total.abs().max()), 1e-6) ** 2
    figures = []
    for column, name in enumerate(names):
        values = parts[applies[:, column], column]
        if not len(values):
            continue
        own = {f"reward/{name}": float(values.mean()), f"reward/{name}/std": float(values.std(correction=0))}
        if told_apart:
            own[f"reward/{name}/share"] = float((weighted[:, column] * centered).mean()) / variance
        figures.append((own, len(values)))
    return figures


def rollout_figures(rollout: Any, kl: Tensor, kl_coef: float) -> dict[str, float]:
    """Scores, KL, entropy and lengths of a [`~rlhf_recipes.ppo.rollout.Rollout`] of all processes.

    Args:
        kl (`(B, T)`): As from [`~rlhf_recipes.ppo.functional.kl_per_token`].
        kl_coef (`float`): Its weight in this rollout.
    """
    mask, count, scores = rollout.mask, len(rollout), rollout.scores
    if rollout.token_rewards is not None:
        scores = scores + torch.where(mask.bool(), rollout.token_rewards, 0.0).sum(dim=1)
    nats = float(F.masked_sum(kl, mask) / count)
    return {
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


def critic_figures(rollout: Any, returns: Tensor) -> dict[str, float]:
    """How well the critic's values met the returns of a rollout, and their mean."""
    return {
        "value/explained_variance": float(F.explained_variance(rollout.values, returns, rollout.mask)),
        "value/mean": float(F.masked_mean(rollout.values, rollout.mask)),
    }


def sampling_figures(rollout: Any, weights: Tensor, cap: float) -> dict[str, float]:
    """How far the policy is from who drew the tokens of a rollout, in another precision or another engine."""
    return {
        "rollout/importance": float(F.masked_mean(weights, rollout.mask)),
        "rollout/importance_capped": float(F.masked_mean((weights >= cap).float(), rollout.mask)),
        "rollout/sampling_kl": float(F.masked_mean(rollout.sampled_logprobs - rollout.logprobs, rollout.mask)),
    }


def figures_of_rewards(trainer: Any, rollout: Any) -> list[tuple[dict[str, float], int]]:
    """Mean, spread and share of each reward over a rollout, see [`reward_figures`]."""
    if rollout.reward_parts is None:
        return []
    reward, credit = trainer.reward, trainer.credit
    names = [name for name in reward.names if name not in reward.potential_names]
    weights, means = reward.weights_at(progress_of(trainer.state)), None
    if trainer.settings.normalize_rewards:
        means = torch.tensor([credit.rewards.mean(name) for name in names])
        weights = {name: weight / credit.rewards.std(name) for name, weight in weights.items()}
    return reward_figures(rollout.reward_parts.cpu(), names, weights, means)


def completion_figures(completion_ids: Tensor, mask: Tensor, scores: Tensor) -> dict[str, float]:
    """What completions of a rollout have in common: repetition, and how the score goes with the length.

    Args:
        completion_ids (`(B, T)`), mask (`(B, T)`), scores (`(B,)`): of all processes.

    Returns:
        `dict`: `rollout/repetition`; and, where both lengths and scores differ, `rollout/length_slope` (score for one
        more token, least squares) and `rollout/length_correlation` (Pearson).
    """
    figures = {"rollout/repetition": repetition(completion_ids, mask)}
    lengths = mask.sum(dim=1).double()
    centered = lengths - lengths.mean()
    scores = scores.double() - scores.double().mean()
    if bool((centered != 0).any()) and float(scores.abs().max()) > 1e-9:
        together = float((centered * scores).sum())
        figures["rollout/length_slope"] = together / float((centered**2).sum())
        figures["rollout/length_correlation"] = together / float(centered.norm() * scores.norm())
    return figures


def repetition(completion_ids: Tensor, mask: Tensor) -> float:
    """Share of pairs of neighbouring tokens that were there before in the same completion; mean over completions.

    It is `1 - distinct_2` (arXiv 1510.03055) of each completion, on tokens, so that it means the same in every
    language. A completion of fewer than two tokens repeats nothing.
    """
    shares = []
    for row, length in zip(completion_ids.tolist(), mask.sum(dim=1).tolist(), strict=True):
        pairs = list(zip(row[: length - 1], row[1:length], strict=True)) if length > 1 else []
        shares.append(1 - len(set(pairs)) / len(pairs) if pairs else 0.0)
    return sum(shares) / len(shares)


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
