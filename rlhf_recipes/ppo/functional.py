"""The arithmetic of PPO on tensors of shape `(B, T)`: B completions of at most T tokens. Nothing but torch.

One polarity throughout: `mask` is 1 where a token counts and 0 on padding, and the ones of a row come first.
`logprobs[:, t]` scores token t given everything before it; `values[:, t]` is read before token t is chosen; the score
of a completion is paid with its last token.
"""

import torch
from torch import Tensor

KL_ESTIMATORS = ("k1", "k2", "k3")


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Sum over the tokens that count. Padding may hold anything, NaN included."""
    return torch.where(mask.bool(), x, 0.0).sum()


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that count, of all rows together."""
    return masked_sum(x, mask) / mask.sum()


def masked_whiten(x: Tensor, mask: Tensor, center: bool = True) -> Tensor:
    """Scale to unit variance, and to mean 0 if `center`, over the tokens that count; padding becomes 0.

    The variance is the unbiased one (divided by n - 1), as in TRL.
    """
    mean = masked_mean(x, mask)
    variance = masked_sum((x - mean) ** 2, mask) / (mask.sum() - 1).clamp(min=1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask.bool(), whitened if center else whitened + mean, 0.0)


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from, at a temperature.

    Args:
        logits (`(B, T, V)`): the logits that token t was drawn from stand at t.
        token_ids (`(B, T)`): the tokens.

    Returns:
        `tuple[Tensor, Tensor]`: log-probabilities and entropies in nats, both `(B, T)`. No gradient goes through the
        entropies.
    """
    logits = logits.float() / temperature
    log_norm = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - log_norm
    with torch.no_grad():
        # Of normalized logits: log Z - E[logit] would lose the entropy in the rounding of large logits.
        normalized = logits - log_norm.unsqueeze(-1)
        entropy = -(torch.exp(normalized) * normalized).sum(-1)
    return logprobs, entropy


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) from the tokens that the policy drew, in nats for each token.

    With `d = logprobs - ref_logprobs`: k1 = d, unbiased, and may be negative; k2 = d²/2, biased, of low variance;
    k3 = exp(-d) - 1 + d, unbiased and never negative (Schulman, "Approximating KL Divergence", 2020).
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl_estimator is {estimator!r}; it can be {', '.join(KL_ESTIMATORS)}.")


def last_token(mask: Tensor) -> Tensor:
    """Index of the last token that counts in each row, `(B,)`. Every row must have one."""
    return mask.long().sum(dim=1) - 1


def rewards_per_token(scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """`-kl_coef * kl` for every token, and the score on top for the last one (arXiv 1909.08593, eq. 2).

    Args:
        scores (`(B,)`): one for each completion.
        kl (`(B, T)`): as from [`kl_per_token`].

    Returns:
        `Tensor`: `(B, T)`, 0 on padding.
    """
    rewards = torch.where(mask.bool(), -kl_coef * kl, 0.0)
    rewards[torch.arange(len(rewards), device=rewards.device), last_token(mask)] += scores
    return rewards


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16), for episodes that end with their last token.

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`; V and A are 0 after the end.

    Returns:
        `tuple[Tensor, Tensor]`: advantages, and returns `A_t + V_t` as targets of the critic; `(B, T)`, 0 on padding.
    """
    real = mask.bool()
    rewards, values = torch.where(real, rewards, 0.0), torch.where(real, values, 0.0)
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        # On padding delta is 0, and so is everything carried, so that each row begins at its own last token.
        next_advantage = advantages[:, t] = delta + gamma * lam * next_advantage
        next_value = values[:, t]
    return advantages, advantages + values


def policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, cliprange: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate (arXiv 1707.06347, eq. 7), negated: `max(-A·ratio, -A·clip(ratio, 1 ± cliprange))`.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: the loss, the ratio, and 1 where clipping decided the loss; each `(B, T)`.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + cliprange)
    return torch.max(unclipped, clipped), ratio.detach(), (clipped > unclipped).float()


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float) -> tuple[Tensor, Tensor]:
    """Half the squared error, with the values kept within `cliprange_value` of the old ones (arXiv 2005.12729, §3).

    Returns:
        `tuple[Tensor, Tensor]`: the loss, and 1 where clipping decided it; each `(B, T)`.
    """
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    unclipped, clipped = (values - returns) ** 2, (clipped_values - returns) ** 2
    return 0.5 * torch.max(unclipped, clipped), (clipped > unclipped).float()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """`1 - Var(returns - values) / Var(returns)`: 1 for a perfect critic, 0 for one that knows only the mean."""
    error = returns - values
    residual = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
    total = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1.0 - residual / (total + 1e-8)
