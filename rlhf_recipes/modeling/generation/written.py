"""Who produces completions, and what they are once written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_recipes.modeling.generation.ends import completion_mask


class Generator(Protocol):
    """Who produces completions."""

    def generate(self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]) -> Tensor:
        """Completions `(B, T)`, padded on the right, for prompts `(B, P)`, padded on the left.

        Row i depends on its prompt and on `row_keys[i]` alone, never on the other rows.
        """


def stable_key(*parts: Any) -> int:
    """A number of 63 bits that depends on the parts alone: the same in every process and on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Written:
    """Completions as they are written, before any model has read them."""

    prompt_ids: Tensor  # (B, P)  padded on the left
    prompt_mask: Tensor  # (B, P)
    completion_ids: Tensor  # (B, T)  padded on the right, end-of-sequence token kept
    mask: Tensor  # (B, T)
    finished: Tensor  # (B,)


class Tokens(Protocol):
    """What is read of completions in a batch: [`Written`] has it, and a rollout."""

    @property
    def completion_ids(self) -> Tensor: ...  # (B, T)

    @property
    def mask(self) -> Tensor: ...  # (B, T)


def token_lists(written: Tokens) -> list[list[int]]:
    """The completions as lists of token ids without padding, the end-of-sequence token kept."""
    lengths = written.mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(written.completion_ids.tolist(), lengths, strict=True)]


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, `(B, length)`, the padding on the left."""
    ids = [[pad_token_id] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def pad_right(rows: Sequence[Sequence[Any]], fill: Any, length: int, **kwargs: Any) -> Tensor:
    """A tensor `(B, length)` of rows, the padding on the right."""
    return torch.tensor([[*row, *[fill] * (length - len(row))] for row in rows], **kwargs)


def write(
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    row_keys: Sequence[int],
    config: GenerationConfig,
    device: torch.device,
    chunk: int = 64,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Written:
    """One completion for each prompt, at most `chunk` at a time. T = `max_new_tokens`.

    The tokenizer is needed where completions stop at strings.
    """
    width, length = max(len(prompt) for prompt in prompts), int(config.max_new_tokens)
    pad = int(config.pad_token_id)
    parts: list[Written] = []
    for start in range(0, len(prompts), chunk):
        prompt_ids, prompt_mask = pad_left(prompts[start : start + chunk], pad, width)
        prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
        written = generator.generate(prompt_ids, prompt_mask, config, row_keys[start : start + chunk])
        completion_ids = torch.nn.functional.pad(written, (0, length - written.shape[1]), value=pad)
        mask, finished = completion_mask(completion_ids, config.eos_token_id, config.stop_strings, tokenizer)
        mask[:, written.shape[1] :] = 0
        completion_ids = completion_ids.masked_fill(mask == 0, pad)
        parts.append(Written(prompt_ids, prompt_mask, completion_ids, mask, finished))
    return Written(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Written)))
