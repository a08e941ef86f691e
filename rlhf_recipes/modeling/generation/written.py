"""Who produces completions, and what they are once written."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from rlhf_recipes.modeling.generation.ends import completion_mask


@dataclass(frozen=True)
class Generated:
    """Completions, and what was computed on the way to them; `None` where a generator does not tell."""

    completion_ids: Tensor  # (B, T)
    logprobs: Tensor | None = None  # (B, T)  of each token when it was drawn, at the temperature, before any warper
    trunk: Tensor | None = None  # (B, P + T, H)  what the watched layer gave; zeros where the last token stands
    head_inputs: Tensor | None = None  # (B, T, H)  what the output layer was given when it chose token t


class Generator(Protocol):
    """Who produces completions."""

    def generate(
        self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]
    ) -> Tensor | Generated:
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
    # What the generator told of its way, as in [`Generated`]; zeros at padding and wherever nothing was read.
    logprobs: Tensor | None = None  # (B, T)
    trunk: Tensor | None = None  # (B, P + T, H)
    head_inputs: Tensor | None = None  # (B, T, H)

    def __getitem__(self, rows: slice) -> "Written":
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        parts: dict[str, Any] = {n: None if column is None else column[rows] for n, column in columns.items()}
        return Written(**parts)


class Tokens(Protocol):
    """What is read of completions in a batch: [`Written`] has it, and a rollout."""

    @property
    def prompt_ids(self) -> Tensor: ...  # (B, P)

    @property
    def prompt_mask(self) -> Tensor: ...  # (B, P)

    @property
    def completion_ids(self) -> Tensor: ...  # (B, T)

    @property
    def mask(self) -> Tensor: ...  # (B, T)


def token_lists(written: Tokens) -> list[list[int]]:
    """The completions as lists of token ids without padding, the end-of-sequence token kept."""
    return unpadded(written.completion_ids, written.mask)


def unpadded(values: Tensor, mask: Tensor) -> list[list[Any]]:
    """The rows of values `(B, T)` as lists, without what the mask `(B, T)` leaves out at their ends."""
    return [row[:length] for row, length in zip(values.tolist(), mask.sum(dim=1).tolist(), strict=True)]


def prompt_lists(written: Tokens) -> list[list[int]]:
    """The prompts as lists of token ids without padding."""
    lengths = written.prompt_mask.sum(dim=1).tolist()
    return [row[len(row) - n :] for row, n in zip(written.prompt_ids.tolist(), lengths, strict=True)]


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
        got = generator.generate(prompt_ids, prompt_mask, config, row_keys[start : start + chunk])
        got = got if isinstance(got, Generated) else Generated(got)
        missing = length - got.completion_ids.shape[1]
        completion_ids = torch.nn.functional.pad(got.completion_ids, (0, missing), value=pad)
        mask, finished = completion_mask(completion_ids, config.eos_token_id, config.stop_strings, tokenizer)
        mask[:, length - missing :] = 0
        completion_ids = completion_ids.masked_fill(mask == 0, pad)
        # A token is read only to choose the next one.
        read = torch.cat([prompt_mask, mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        told = (_lengthened(got.logprobs, mask), _lengthened(got.trunk, read), _lengthened(got.head_inputs, mask))
        parts.append(Written(prompt_ids, prompt_mask, completion_ids, mask, finished, *told))
    columns: dict[str, Any] = {}
    for field in fields(Written):
        told_of = [getattr(part, field.name) for part in parts]
        columns[field.name] = None if any(part is None for part in told_of) else torch.cat(told_of)
    return Written(**columns)


def _lengthened(told: Tensor | None, mask: Tensor) -> Tensor | None:
    """What stands where the mask `(B, N)` is 1, in a tensor of its length, with zeros elsewhere."""
    if told is None:
        return None
    mask = mask.bool().unflatten(1, (-1, *[1] * (told.dim() - 2)))
    missing = mask.shape[1] - told.shape[1]
    return torch.nn.functional.pad(told, (0, 0) * (told.dim() - 2) + (0, missing)).masked_fill(~mask, 0)
