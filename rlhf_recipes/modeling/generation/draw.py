"""How a token is drawn: by noise that belongs to its row alone."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor


class KeyedGumbel(LogitsProcessor):
    """Turns the most likely token into a sampled one: argmax(logits + Gumbel noise) is a draw from softmax(logits).

    Each row has a noise stream of its own, so that neither the split into batches nor the number of processes changes
    a completion, as a global generator would.
    """

    def __init__(self, row_keys: Sequence[int], device: torch.device) -> None:
        self.streams = [torch.Generator(device).manual_seed(key) for key in row_keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, stream in zip(noise, self.streams, strict=True):
            row.exponential_(generator=stream)
        noise.clamp_(min=torch.finfo(torch.float32).tiny)  # its logarithm must be finite
        return scores.float() - noise.log()  # -log of an exponential variable is a Gumbel one
