"""How a token is drawn: one uniform number for each row and step, and the inverse of the cumulative distribution."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

# The name of this draw. Checkpoints hold it, since another one would go on with other completions.
DRAW = "inverse CDF"

BLOCK = 256  # about the root of a vocabulary's size: then both searches are over a few hundred numbers


def uniform(row_keys: Tensor, position: int) -> Tensor:
    """For each key `(B,)` a number in [0, 1), float64, that depends on the key and the position alone.

    These are counters under a hash (SplitMix64: Steele, Lea and Flood 2014, with the finalizer of its reference code),
    so there is no state to keep, and every device gives the same numbers. Signed integers overflow as unsigned would.
    """
    bits = _mixed(_mixed(row_keys) + _signed((position + 1) * 0x9E3779B97F4A7C15))
    return _shifted(bits, 11).double() * 2.0**-53


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # `>>` alone would copy the sign into the empty places


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def inverse_cdf(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """For each row the first token at which the sum of `probabilities` `(B, V)` so far exceeds its share of the whole.

    The share is `numbers` `(B,)`, in [0, 1). A token of probability 0 adds nothing, so the sum first exceeds nothing
    at it, and it is never drawn. Sums over blocks come first: two short searches take the place of a sum of V terms.
    What runs on is in float64. A block's own sum is in float32: its share errs by no more than the softmax does.
    """
    whole = probabilities.shape[1] // BLOCK * BLOCK
    blocks = probabilities[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=-1)
    rest = probabilities[:, whole:].sum(dim=-1, keepdim=True)
    blocks = torch.cat([blocks, rest], dim=1).double()
    sums = blocks.cumsum(dim=1)
    wanted = _below(numbers[:, None] * sums[:, -1:], sums[:, -1:])
    # The bounds are for rows that are no distribution (NaN), whose search ends beyond the last entry.
    block = torch.searchsorted(sums, wanted, right=True).clamp(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    tokens = block * BLOCK + torch.arange(BLOCK, device=block.device)
    beyond = tokens >= probabilities.shape[1]
    inside = probabilities.gather(1, tokens.masked_fill(beyond, 0)).double().masked_fill(beyond, 0.0).cumsum(dim=1)
    # Added up again, the block comes to a little more or less: a share of the one sum is a share of the other.
    share = (wanted - before) / blocks.gather(1, block)
    place = torch.searchsorted(inside, _below(share * inside[:, -1:], inside[:, -1:]), right=True)
    return (block * BLOCK + place).squeeze(1).clamp(max=probabilities.shape[1] - 1)


def _below(numbers: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(numbers, bound.nextafter(torch.zeros_like(bound)))


class KeyedDraw(LogitsProcessor):
    """Makes the most likely token the drawn one, so that a `generate` that does not sample writes a sample.

    Each row has numbers of its own, so that neither the split into batches nor the number of processes changes a
    completion, as a global generator would. For each step `logprobs` has the log-probabilities `(B,)` of the drawn
    tokens under the model's own distribution at the temperature, whatever the warpers make of it.

    Args:
        row_keys (`Sequence[int]`): One for each row.
        prompt_width (`int`): Tokens before the first one that is drawn; the others count from there.
        temperature (`float`): Logits are divided by it.
        warpers (`Sequence[LogitsProcessor]`): What may remove tokens, or change their logits, after the temperature.
        own_logits (callable, *optional*): Gives the model's logits `(B, V)` of this step where they reach this object
            changed already.
    """

    def __init__(
        self,
        row_keys: Sequence[int],
        prompt_width: int,
        temperature: float = 1.0,
        warpers: Sequence[LogitsProcessor] = (),
        own_logits: Callable[[], Tensor] | None = None,
    ) -> None:
        self.row_keys = torch.tensor([_signed(key) for key in row_keys])
        self.prompt_width = prompt_width
        self.temperature = temperature
        self.warpers = warpers
        self.own_logits = own_logits
        self.logprobs: list[Tensor] = []
        # Of the shape (B, V), kept from step to step: fresh memory takes longer than what is computed in it. Among
        # bytes the largest one is found soonest.
        self._scaled, self._probabilities = torch.empty(0), torch.empty(0)
        self._chosen = torch.empty(0, dtype=torch.uint8)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._chosen.shape != scores.shape:
            self._scaled, self._probabilities = (scores.new_empty(scores.shape, dtype=torch.float32) for _ in "ab")
            self._chosen = scores.new_empty(scores.shape, dtype=torch.uint8)
            self.row_keys = self.row_keys.to(scores.device)
        scores = own = torch.div(scores.float(), self.temperature, out=self._scaled)
        for warper in self.warpers:
            scores = warper(input_ids, scores)
        probabilities = torch.softmax(scores, dim=-1, out=self._probabilities)
        position = input_ids.shape[1] - self.prompt_width
        drawn = inverse_cdf(probabilities, uniform(self.row_keys, position))[:, None]
        if self.own_logits is not None:
            own = self.own_logits().float() / self.temperature
        if own is scores:
            logprobs = probabilities.gather(1, drawn).log()
        else:
            logprobs = own.gather(1, drawn) - own.logsumexp(dim=-1, keepdim=True)
        self.logprobs.append(logprobs.squeeze(1))
        return self._chosen.zero_().scatter_(1, drawn, 1)
