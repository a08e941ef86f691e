"""Who produces completions, from which distribution, and where a completion ends."""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rlhf_recipes.modeling.tokenizers.padding import ends_of

logger = logging.getLogger(__name__)

# Options that cut off a part of the distribution, with the value at which they do nothing. `generate` applies them
# only where it samples itself; here they go before the noise.
WARPERS: dict[str, tuple[Any, Any]] = {
    "top_h": (TopHLogitsWarper, None),
    "top_k": (TopKLogitsWarper, 0),
    "top_p": (TopPLogitsWarper, 1.0),
    "min_p": (MinPLogitsWarper, 0.0),
    "typical_p": (TypicalLogitsWarper, 1.0),
    "epsilon_cutoff": (EpsilonLogitsWarper, 0.0),
    "eta_cutoff": (EtaLogitsWarper, 0.0),
}

# Options that leave the distribution of the next token as it is, and those that the trainer decides.
HARMLESS = {
    "max_new_tokens", "max_length", "temperature", "eos_token_id", "pad_token_id", "bos_token_id", "stop_strings",
    "use_cache", "cache_implementation", "cache_config", "do_sample", "num_beams", "num_return_sequences",
    "transformers_version", "disable_compile", "compile_config", "max_time",
}  # fmt: skip
NEUTRAL = {
    "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0, "min_new_tokens": 0, "min_length": 0, "length_penalty": 1.0,
    "renormalize_logits": False, "remove_invalid_values": False, "num_beam_groups": 1, "diversity_penalty": 0.0,
}  # fmt: skip
DECIDED = {
    "do_sample": "completions are sampled",
    "return_dict_in_generate": "token ids are all that is read",
    "num_beams": "completions are sampled, one beam each",
    "num_return_sequences": "give num_generations",
    "max_new_tokens": "give max_completion_length",
    "max_length": "give max_completion_length",
    "temperature": "give temperature itself, because log-probabilities are taken at it too",
    "eos_token_id": "give stop_token_id",
    "pad_token_id": "it is the tokenizer's",
}


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
        noise.clamp_(min=torch.finfo(torch.float32).tiny)  # its logarithm must be finite
        return scores.float() - noise.log()  # -log of an exponential variable is a Gumbel one


class StopAtString(StoppingCriteria):
    """Ends a row as soon as its completion has one of the strings, seen as [`completion_mask`] will see it.

    `generate` has a criterion of its own, which also looks at the prompt. A string that begins there and ends with
    the completion would end the row, and no mask over the completion could tell its end from padding.
    """

    def __init__(self, strings: Sequence[str], tokenizer: PreTrainedTokenizerBase, prompt_width: int) -> None:
        self.strings = strings
        self.tokenizer = tokenizer
        self.prompt_width = prompt_width
        # A token is a byte or more, and a character at most four. The rest is room for the decoder's manners at the
        # beginning of a text.
        self.window = 4 * max(len(string) for string in strings) + 8

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        rows = input_ids[:, self.prompt_width :].tolist()
        ended = [
            _has_string(ids[-self.window :], self.strings, self.tokenizer)
            and _has_string(ids, self.strings, self.tokenizer)
            for ids in rows
        ]
        return torch.tensor(ended, device=input_ids.device)


class LocalGenerator:
    """Completions from a model in this process, by its own `generate`, with keyed noise (see [`Generator`]).

    The tokenizer is needed where the sampling stops at strings; `kwargs` are for `generate`, such as `synced_gpus`.
    """

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.kwargs = kwargs

    @torch.no_grad()
    def generate(self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]) -> Tensor:
        # `generate` would leave out temperature without do_sample, and draw from the global generator with it.
        processors = LogitsProcessorList([TemperatureLogitsWarper(float(config.temperature))])
        for name, (warper, nothing) in WARPERS.items():
            value = getattr(config, name, None)
            if value is not None and value != nothing:
                extra = {"device": prompt_ids.device} if name == "eta_cutoff" else {}
                processors.append(warper(value, **extra))
        processors.append(KeyedGumbel(row_keys, prompt_ids.device))
        known = self.model.get_input_embeddings().weight.shape[0]
        pad = config.pad_token_id if config.pad_token_id < known else 0  # added to the tokenizer, but not to the model
        greedy = {
            **config.to_dict(),
            "pad_token_id": pad,
            **dict.fromkeys(["temperature", *WARPERS]),
            "do_sample": False,
            "stop_strings": None,
        }
        stopping = StoppingCriteriaList()
        if config.stop_strings:
            assert self.tokenizer is not None, "stop strings without a tokenizer"
            stopping.append(StopAtString(_listed(config.stop_strings), self.tokenizer, prompt_ids.shape[1]))
        with without_defaults(self.model):
            output = self.model.generate(
                input_ids=prompt_ids.masked_fill(mask == 0, pad),
                attention_mask=mask,
                generation_config=GenerationConfig(**greedy),
                logits_processor=processors,
                stopping_criteria=stopping,
                **self.kwargs,
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


def sampling_config(
    tokenizer: PreTrainedTokenizerBase,
    model: Any,
    max_new_tokens: int,
    temperature: float,
    stop_token: str | None = None,
    stop_token_id: Sequence[int] | None = None,
    **options: Any,
) -> GenerationConfig:
    """Sample from the policy's own distribution, whatever defaults the model brings along, unless `options` change it.

    `stop_token="none"` takes away the end-of-sequence tokens of tokenizer and model; `stop_token_id` are further ones
    that end a completion. An option of `GenerationConfig` that is `None` stays at what does nothing.

    Raises:
        `ValueError`: for an option that the trainer decides or that does not exist, with what to give instead.
    """
    for name in options:
        if name in DECIDED:
            raise ValueError(f"generation_kwargs has {name!r}, which the trainer decides: {DECIDED[name]}.")
    known = GenerationConfig().to_dict()
    strangers = [name for name in options if name not in known or name.startswith("_")]
    if strangers:
        raise ValueError(f"GenerationConfig has no option {strangers[0]!r}, which generation_kwargs gives.")
    ends: set[int] = set(stop_token_id or ())
    if stop_token != "none":
        ends |= ends_of(getattr(model, "generation_config", None), tokenizer)
    if tokenizer.pad_token_id in ends:
        raise ValueError(
            f"Token {tokenizer.pad_token_id} ({tokenizer.pad_token!r}) pads and ends completions, so an end could not "
            "be told from padding. Load the tokenizer with rlhf_recipes.modeling.loading.load_tokenizer."
        )
    return GenerationConfig(
        **{
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "use_cache": True,
            **{name: value for name, value in options.items() if value is not None},
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "eos_token_id": sorted(ends) or None,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )


def distortions(config: GenerationConfig) -> list[str]:
    """The options that make the sampled distribution another one than the policy's, as `"top_k 50"`."""
    found = []
    for name, value in config.to_dict().items():
        nothing = WARPERS[name][1] if name in WARPERS else NEUTRAL.get(name)
        if name not in HARMLESS and value not in (None, nothing, [], {}) and not name.startswith(("_", "output_")):
            found.append(f"{name} {value}")
    return found


def warn_of_distortions(config: GenerationConfig) -> None:
    """Say what a distribution that is not the policy's does to the figures."""
    found = distortions(config)
    if found:
        logger.warning(
            "Completions are sampled with %s, which is not the policy's own distribution: tokens that the policy "
            "would take are never or more rarely drawn. objective/kl is then no estimate of the KL and may be "
            "negative, and the update counts every token as if the policy had drawn it. Leave these options out "
            "unless you need them.",
            ", ".join(found),
        )


def completion_mask(
    completion_ids: Tensor,
    eos_token_id: int | Sequence[int] | None,
    stop_strings: str | Sequence[str] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> tuple[Tensor, Tensor]:
    """Which tokens count: all up to and with the first end, be it a token or the last token of a stop string.

    Returns:
        `tuple[Tensor, Tensor]`: the mask `(B, T)`, and `(B,)` whether there is such an end.
    """
    ends_at = torch.as_tensor([] if eos_token_id is None else eos_token_id, device=completion_ids.device)
    ends = torch.isin(completion_ids, ends_at)
    if stop_strings:
        assert tokenizer is not None, "stop strings without a tokenizer"
        for row, position in enumerate(_string_ends(completion_ids, stop_strings, tokenizer)):
            if position is not None:
                ends[row, position] = True
    after_end = ends.cumsum(dim=1) - ends.long()
    return (after_end == 0).long(), ends.any(dim=1)


def _string_ends(
    completion_ids: Tensor, stop_strings: str | Sequence[str], tokenizer: PreTrainedTokenizerBase
) -> list[int | None]:
    """For each row, the position of the token with which the first stop string is complete."""
    strings = _listed(stop_strings)
    positions: list[int | None] = []
    for ids in completion_ids.tolist():
        if not _has_string(ids, strings, tokenizer):
            positions.append(None)
            continue
        low, high = 0, len(ids) - 1  # the shortest prefix that has one ends at `low`
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _has_string(ids[: middle + 1], strings, tokenizer) else (middle + 1, high)
        positions.append(low)
    return positions


def _has_string(ids: list[int], strings: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> bool:
    text = str(tokenizer.decode(ids, skip_special_tokens=False))
    return any(string in text for string in strings)


def _listed(strings: str | Sequence[str]) -> list[str]:
    return [strings] if isinstance(strings, str) else list(strings)


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
