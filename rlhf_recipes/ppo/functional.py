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

    The variance is the unbiased one (divided by n - 1), as in TRL. A single token has variance 0, and no token at all
    gives zeros: neither makes a NaN.
    """
    mean = masked_mean(x, mask)
    variance = masked_sum((x - mean) ** 2, mask) / (mask.sum() - 1).clamp(min=1)
    whitened = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask.bool(), whitened if center else whitened + mean, 0.0)


def kl_per_token(logprobs: Tensor, ref_logprobs: Tensor, estimator: str = "k1") -> Tensor:
    """Estimate KL(policy || reference) from the tokens that the policy drew, in nats for each token.

    With `d = logprobs - ref_logprobs` (Schulman, "Approximating KL Divergence", 2020):

    - k1 = d. E[k1] = KL. It may be negative.
    - k2 = d²/2. E[k2] is not KL, but near it while the two are close. Never negative, of low variance.
    - k3 = exp(-d) - 1 + d. E[k3] = KL. Never negative.

    E is over the policy's own samples: there k1 and k3 are unbiased as values. As a reward they are not alike. The
    expected policy gradient of the reward -k1 is the gradient of -KL(policy || reference). That of -k2 and of -k3 is
    another one, so that with them the policy is not pulled along the gradient of KL: -k3, for one, gives the gradient
    of KL(reference || policy) - KL(policy || reference). For a KL term in the loss see [`kl_loss`].

    Raises:
        `ValueError`: if the estimator is none of k1, k2 and k3.
    """
    log_ratio = logprobs - ref_logprobs
    if estimator == "k1":
        return log_ratio
    if estimator == "k2":
        return 0.5 * log_ratio**2
    if estimator == "k3":
        return torch.expm1(-log_ratio) + log_ratio
    raise ValueError(f"kl_estimator is {estimator!r}; it can be {', '.join(KL_ESTIMATORS)}.")


def kl_loss(logprobs: Tensor, ref_logprobs: Tensor, ratio: Tensor, estimator: str) -> Tensor:
    """A KL term for the loss: its gradient goes through `logprobs`, where [`kl_per_token`] in a reward has none.

    With `d = logprobs - ref_logprobs`, and expectations over tokens drawn from the policy of the rollout:

    - k2: `ratio * d²/2`. Its expected gradient is that of KL(policy || reference), because E[d ∇log p] = ∇KL.
    - k3: `ratio * (exp(-d) - 1 + d)`. Its expected gradient is that of KL(reference || policy), because
      E[(1 - q/p) ∇log p] = -Σ q ∇log p.
    - k1 is refused: E[∇log p] = 0, so that it would add noise and nothing else.

    Both hold for each token given the tokens before it, which count as they were drawn. What a token does to the KL of
    later ones is in no such term; k1 in the reward has it.

    Args:
        logprobs, ref_logprobs (`(B, T)`): of the policy and of the reference; no gradient goes to the reference. Both
            must be finite on padding too (set them equal there), else its gradient is NaN even after masking.
        ratio (`(B, T)`): policy / policy of the rollout, for the tokens drawn; a weight without gradient.

    Returns:
        `Tensor`: `(B, T)`, in nats.

    Raises:
        `ValueError`: if the estimator is neither k2 nor k3.
    """
    if estimator == "k1":
        raise ValueError(
            "kl_estimator 'k1' cannot be used in the loss: its expected gradient is 0. Use 'k2' for the gradient of "
            "KL(policy || reference), 'k3' for that of KL(reference || policy), or put k1 into the reward."
        )
    return ratio.detach() * kl_per_token(logprobs, ref_logprobs.detach(), estimator)


def last_token(mask: Tensor) -> Tensor:
    """Index of the last token that counts in each row, `(B,)`. Every row must have one."""
    return mask.long().sum(dim=1) - 1


def rewards_per_token(
    scores: Tensor, kl: Tensor, mask: Tensor, kl_coef: float, token_rewards: Tensor | None = None
) -> Tensor:
    """`-kl_coef * kl` for every token, and the score on top for the last one (arXiv 1909.08593, eq. 2).

    Args:
        scores (`(B,)`): one for each completion.
        kl (`(B, T)`): as from [`kl_per_token`].
        token_rewards (`(B, T)`, *optional*): rewards of single tokens, added where they stand.

    Returns:
        `Tensor`: `(B, T)`, 0 on padding.
    """
    rewards = -kl_coef * kl if token_rewards is None else token_rewards - kl_coef * kl
    rewards = torch.where(mask.bool(), rewards, 0.0)
    rewards[torch.arange(len(rewards), device=rewards.device), last_token(mask)] += scores
    return rewards


def shaping_rewards(potentials: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Potential-based shaping, `F_t = gamma * Phi(s_{t+1}) - Phi(s_t)` (Ng, Harada and Russell 1999, theorem 1).

    Phi is 0 after the last real token, whatever ended the episode. So the discounted sum of a row is `-Phi(s_0)`,
    which no action changes: the best policy stays the best. With a Phi left over at the end it need not.

    Args:
        potentials (`(B, T)`): Phi(s_t) at t, s_t being the state before token t is chosen; s_0 is the prompt alone.

    Returns:
        `Tensor`: `(B, T)`, 0 on padding.
    """
    potentials = torch.where(mask.bool(), potentials, 0.0)
    following = torch.cat([potentials[:, 1:], torch.zeros_like(potentials[:, :1])], dim=1)
    return gamma * following - potentials


def rewards_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """`G_t = r_t + gamma * G_{t+1}`: what a row still earns from token t on. `(B, T)`, 0 on padding."""
    return generalized_advantages(rewards, torch.zeros_like(rewards), mask, gamma, lam=1.0)[0]


def length_adaptive_lam(mask: Tensor, alpha: float) -> Tensor:
    """A lambda for each row, `1 - 1 / (alpha * length)`, within [0, 1] (VAPO, arXiv 2504.05118, length-adaptive GAE).

    The weights `lam^k` of GAE then add up to `1 / (1 - lam) = alpha * length`: longer completions look further ahead.

    Args:
        mask (`(B, T)`): its ones are counted for the length of a row.
        alpha: positive; rows of at most `1 / alpha` tokens get lambda 0. The paper takes 0.05.

    Returns:
        `Tensor`: `(B,)`.
    """
    return (1.0 - 1.0 / (alpha * mask.sum(dim=1).float())).clamp(0.0, 1.0)


def generalized_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (arXiv 1506.02438, eq. 16), for episodes that end with their last token.

    `delta_t = r_t + gamma * V_{t+1} - V_t` and `A_t = delta_t + gamma * lam * A_{t+1}`; V and A are 0 after the end.

    Args:
        rewards, values (`(B, T)`): padding may hold anything.
        lam (`float` or `(B,)`): one lambda for all rows, or one for each.

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
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    cliprange: float | None,
    cliprange_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Clipped surrogate (arXiv 1707.06347, eq. 7), negated: `max(-A·ratio, -A·clip(ratio))`.

    Args:
        logprobs, old_logprobs, advantages (`(B, T)`): of the policy, of the policy of the rollout, and A.
        cliprange (`float`, *optional*): the ratio is clipped to [1 - cliprange, 1 + cliprange]; `None` clips nothing.
        cliprange_high (`float`, *optional*): the upper end is 1 + cliprange_high instead (DAPO, arXiv 2503.14476).
        dual_clip (`float`, *optional*): greater than 1. Where A < 0 the loss is at most `dual_clip * |A|`, however
            likely the token has become (arXiv 1912.09729, eq. 5).

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: the loss, the ratio without gradient, and 1 where clipping of either kind
        decided the loss; each `(B, T)`.

    Raises:
        `ValueError`: if cliprange_high is given without cliprange.
    """
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped = loss = -advantages * ratio
    decided = torch.zeros_like(advantages, dtype=torch.bool)
    if cliprange is not None:
        high = cliprange if cliprange_high is None else cliprange_high
        clipped = -advantages * ratio.clamp(1.0 - cliprange, 1.0 + high)
        loss, decided = torch.max(unclipped, clipped), clipped > unclipped
    elif cliprange_high is not None:
        raise ValueError(
            f"cliprange_high is {cliprange_high}, but cliprange is None, which means no clipping. Give both or "
            "neither."
        )
    if dual_clip is not None:
        bound = -advantages * dual_clip
        bounded = (advantages < 0) & (loss > bound)
        loss, decided = torch.where(bounded, bound, loss), decided | bounded
    return loss, ratio.detach(), decided.float()


def truncated_weights(logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """Weights `min(pi(a) / q(a), cap)` of tokens that q drew in place of the policy pi: truncated importance sampling.

    Args:
        logprobs, sampled_logprobs (`(B, T)`): log pi and log q of each token.
        cap (`float`): the largest weight (Ionides 2008: it bounds the variance, at the price of a bias).
    """
    return torch.exp(logprobs - sampled_logprobs).clamp(max=cap)


def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, cliprange_value: float | None
) -> tuple[Tensor, Tensor]:
    """Half the squared error, with the values kept within `cliprange_value` of the old ones (arXiv 2005.12729, §3).

    `cliprange_value=None` clips nothing.

    Returns:
        `tuple[Tensor, Tensor]`: the loss, and 1 where clipping decided it; each `(B, T)`.
    """
    unclipped = (values - returns) ** 2
    if cliprange_value is None:
        return 0.5 * unclipped, torch.zeros_like(unclipped)
    clipped_values = torch.clamp(values, old_values - cliprange_value, old_values + cliprange_value)
    clipped = (clipped_values - returns) ** 2
    return 0.5 * torch.max(unclipped, clipped), (clipped > unclipped).float()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """`1 - Var(returns - values) / Var(returns)`: 1 for a perfect critic, 0 for one that knows only the mean."""
    error = returns - values
    residual = masked_mean((error - masked_mean(error, mask)) ** 2, mask)
    total = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
    return 1.0 - residual / (total + 1e-8)
