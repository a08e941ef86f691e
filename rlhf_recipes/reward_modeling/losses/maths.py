"""Tensors that the losses share: shapes, padding, order. Nothing but torch."""

import math

import torch
from torch import Tensor

# 2.3 - 1.8 in float32 is a little below 0.5: a gap that equals `min_gap` on paper must count.
TOLERANCE = 1e-5


def as_float(x: Tensor) -> Tensor:
    """In float32, unless it is float64: scores may be bfloat16, in which differences lose their digits."""
    return x if x.dtype == torch.float64 else x.float()


def same_shape(**tensors: Tensor) -> None:
    """Raise `ValueError` where shapes differ: `(B,)` against `(B, 1)` would be B x B differences."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1:
        said = " and ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"The shapes differ: {said}. Give tensors of the same shape.")


def real_scores(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores with 0 on padding, and where they are real. A NaN left there would make the gradient NaN."""
    scores = as_float(scores)
    if mask is None:
        return scores, torch.ones_like(scores, dtype=torch.bool)
    same_shape(scores=scores, mask=mask)
    real = mask.bool()
    return torch.where(real, scores, 0.0), real


def real_lists(scores: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """[`real_scores`] of lists, `(B, K)`."""
    if scores.ndim != 2:
        raise ValueError(f"scores has shape {tuple(scores.shape)}; give a list for each row, (B, K).")
    return real_scores(scores, mask)


def log_sum_exp(x: Tensor, which: Tensor) -> Tensor:
    """Over the last dimension, of those that are meant; of all where none is, because of an empty sum's gradient."""
    which = which | ~which.any(dim=-1, keepdim=True)
    return torch.where(which, x, -math.inf).logsumexp(dim=-1)


def ordered(scores: Tensor, ratings: Tensor) -> tuple[Tensor, Tensor]:
    """How many pairs of a batch are in the order of their ratings, and how many there are. `(N,), (N,)`"""
    difference = ratings[:, None] - ratings[None, :]
    asked = ~difference.isnan() & (difference > TOLERANCE)
    return (asked & (scores[:, None] > scores[None, :])).sum(), asked.sum()
