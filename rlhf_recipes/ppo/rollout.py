"""Rollouts: what a policy wrote, and what policy, reference and critic said of every token."""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase
from transformers.generation import TemperatureLogitsWarper

from rlhf_recipes.modeling.roles import ActorCritic


@dataclass(frozen=True)
class Rollout:
    """Episodes as tensors. `rollout[rows]` is a mini-batch of them.

    ```
    completion   a    b    c   EOS   .    .
    mask         1    1    1    1    0    0        1 = a real token that counts
    logprobs     l0   l1   l2   l3                 l_t scores token t given all before it
    values       v0   v1   v2   v3                 v_t is read before token t is chosen
    rewards     -k0  -k1  -k2  -k3+score           the score lands on the last 1 of the mask
    ```
    """

    prompt_ids: Tensor  # (B, P)  padded on the left
    prompt_mask: Tensor  # (B, P)
    completion_ids: Tensor  # (B, T)  padded on the right, end-of-sequence token kept
    mask: Tensor  # (B, T)
    logprobs: Tensor  # (B, T)  log pi_old(a_t | s_t)
    ref_logprobs: Tensor  # (B, T)  log pi_ref(a_t | s_t)
    values: Tensor  # (B, T)  V(s_t)
    finished: Tensor  # (B,)  True where the completion ended by itself
    scores: Tensor | None = None  # (B,)
    advantages: Tensor | None = None  # (B, T)
    returns: Tensor | None = None  # (B, T)

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def __getitem__(self, rows: Tensor) -> dict[str, Tensor]:
        return {name: tensor[rows] for name, tensor in self.tensors().items()}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def map(self, function: Any) -> "Rollout":
        """A rollout with `function(name, tensor)` in place of each tensor."""
        return replace(self, **{name: function(name, tensor) for name, tensor in self.tensors().items()})


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
        return scores.float() - noise.log()  # -log of an exponential variable is a Gumbel one


class LocalGenerator:
    """Completions from a model in this process, by its own `generate`, with keyed noise (see [`Generator`])."""

    def __init__(self, model: Any) -> None:
        self.model = model

    @torch.no_grad()
    def generate(self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]) -> Tensor:
        # `generate` would leave out temperature without do_sample, and draw from the global generator with it.
        processors = LogitsProcessorList([TemperatureLogitsWarper(float(config.temperature))])
        processors.append(KeyedGumbel(row_keys, prompt_ids.device))
        greedy = GenerationConfig(**{**config.to_dict(), "do_sample": False, "temperature": None})
        with without_defaults(self.model):
            output = self.model.generate(
                input_ids=prompt_ids, attention_mask=mask, generation_config=greedy, logits_processor=processors
            )
        return output[:, prompt_ids.shape[1] :]


@contextlib.contextmanager
def without_defaults(model: Any) -> Iterator[None]:
    """Put aside the generation defaults that a model brings along.

    `generate` fills every option that a config leaves open from these (suppressed tokens, biases, penalties), and then
    completions would come from another distribution than the one that log-probabilities are taken of.
    """
    # A PeftModel has defaults of its own, and hands them to the model below at every call.
    holders = [model, model.get_base_model()] if isinstance(model, PeftModel) else [model]
    own = [holder.generation_config for holder in holders]
    for holder in holders:
        holder.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for holder, config in zip(holders, own, strict=True):
            holder.generation_config = config


def sampling_config(tokenizer: PreTrainedTokenizerBase, model: Any, max_new_tokens: int, temperature: float) -> Any:
    """Sample from the policy's own distribution: temperature alone, whatever defaults the model brings along."""
    own = getattr(model, "generation_config", None)
    eos = getattr(own, "eos_token_id", None)
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        num_beams=1,
        use_cache=True,
    )


def completion_mask(completion_ids: Tensor, eos_token_id: int | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Which tokens count: all up to and with the first end-of-sequence token.

    Returns:
        `tuple[Tensor, Tensor]`: the mask `(B, T)`, and `(B,)` whether there is such a token.
    """
    ends = torch.isin(completion_ids, torch.as_tensor(eos_token_id, device=completion_ids.device))
    after_end = ends.cumsum(dim=1) - ends.long()
    return (after_end == 0).long(), ends.any(dim=1)


def pad_left(rows: Sequence[Sequence[int]], pad_token_id: int, length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, `(B, length)`, the padding on the left."""
    ids = [[pad_token_id] * (length - len(row)) + list(row) for row in rows]
    mask = [[0] * (length - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids), torch.tensor(mask)


def sample(
    actor_critic: ActorCritic,
    generator: Generator,
    prompts: Sequence[Sequence[int]],
    row_keys: Sequence[int],
    config: GenerationConfig,
    device: torch.device,
    chunk: int = 64,
) -> Rollout:
    """Write one completion for each prompt, and read off what policy, reference and critic say of it.

    At most `chunk` rows are in work at a time, so that logits exist for no more than these. The result has
    T = `max_new_tokens`.
    """
    width, length = max(len(prompt) for prompt in prompts), int(config.max_new_tokens)
    pad = int(config.pad_token_id)
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(prompts), chunk):
        prompt_ids, prompt_mask = pad_left(prompts[start : start + chunk], pad, width)
        prompt_ids, prompt_mask = prompt_ids.to(device), prompt_mask.to(device)
        written = generator.generate(prompt_ids, prompt_mask, config, row_keys[start : start + chunk])
        completion_ids = torch.nn.functional.pad(written, (0, length - written.shape[1]), value=pad)
        mask, finished = completion_mask(completion_ids, config.eos_token_id)
        mask[:, written.shape[1] :] = 0
        completion_ids = completion_ids.masked_fill(mask == 0, pad)
        tokens = {"prompt_ids": prompt_ids, "prompt_mask": prompt_mask, "completion_ids": completion_ids, "mask": mask}
        with torch.no_grad():
            said = actor_critic(**tokens, temperature=config.temperature)
        reference = actor_critic.reference_logprobs(**tokens, temperature=config.temperature)
        parts.append(
            tokens
            | {"logprobs": said["logprobs"], "values": said["values"], "ref_logprobs": reference}
            | {"finished": finished}
        )
    return Rollout(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})


def token_lists(rollout: Rollout) -> list[list[int]]:
    """The completions as lists of token ids without padding, the end-of-sequence token kept."""
    lengths = rollout.mask.sum(dim=1).tolist()
    return [row[:length] for row, length in zip(rollout.completion_ids.tolist(), lengths, strict=True)]
