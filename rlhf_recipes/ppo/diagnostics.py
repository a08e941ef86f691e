"""Figures of a rollout by which a person, or [`~rlhf_recipes.ppo.monitor`], sees what the rewards do to the policy."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


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
