"""Batches as the trainer hands them to a loss, made of plain lists."""

import math

import torch

from rlhf_recipes.reward_modeling.losses.base import Batch

NAN = math.nan


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def batch_of(scores, targets, sizes=None):
    """Rows with as many texts as `sizes` says, one each by default."""
    logits = torch.as_tensor(scores) if isinstance(scores, torch.Tensor) else torch.tensor(scores, dtype=torch.float32)
    logits = logits[:, None] if logits.ndim == 1 else logits
    sizes = sizes or [1] * len(logits)
    rows = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    places = torch.cat([torch.arange(size) for size in sizes])
    tensors = {name: torch.as_tensor(value) for name, value in targets.items()}
    floats = {name: value.to(logits.dtype) for name, value in tensors.items() if value.is_floating_point()}
    return Batch(logits, rows, places, tensors | floats)


def softplus(x):
    return math.log1p(math.exp(x))


def log_sigmoid(x):
    return -softplus(-x)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))
