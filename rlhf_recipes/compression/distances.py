"""How far what a cut model says is from what the original says."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def token_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`T^2 KL(p || q)` of each token, p the original's distribution and q the cut model's, both of logits over T
    (Hinton et al. 2015, arXiv 1503.02531, section 2; T^2 keeps gradients of one size for all T). `(N, V) -> (N,)`"""
    target = functional.log_softmax(teacher.float() / temperature, dim=-1)
    said = functional.log_softmax(student.float() / temperature, dim=-1)
    return temperature**2 * functional.kl_div(said, target, reduction="none", log_target=True).sum(dim=-1)


def score_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """`1/2 |z - v|^2` of the outputs of each text, which is what distillation comes to at high temperature (arXiv
    1503.02531, section 2.1, equation 4). `(N, outputs) -> (N,)`"""
    return 0.5 * (student.float() - teacher.float()).square().sum(dim=-1)


def hidden_distance(student: Sequence[Tensor], teacher: Sequence[Tensor], kept: Sequence[int], real: Tensor) -> Tensor:
    """`|h - g|^2 / |g|^2` of each token that is no padding, a mean over layers. `(N,)`

    h is what enters a layer of the cut model, and g what entered the same layer of the original; last, what leaves
    the last layers. (TinyBERT, Jiao et al. 2019, arXiv 1909.10351, equation 8; here widths agree, so that no map is
    learned, and each layer counts alike.)

    Args:
        student, teacher: `hidden_states` of both, `(B, L, H)` each: embeddings, and what leaves each layer.
        kept (`Sequence[int]`): Which layer of the original each layer of the cut model was.
        real (`(B, L)`): What is no padding.
    """
    pairs = [(student[place], teacher[number]) for place, number in enumerate(kept) if place] + [(student[-1], teacher[-1])]
    far = [(h[real].float() - g[real].float()).square().sum(-1) / g[real].float().square().sum(-1) for h, g in pairs]
    return torch.stack(far).mean(dim=0)
