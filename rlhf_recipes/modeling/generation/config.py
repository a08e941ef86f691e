"""From which distribution completions are sampled: the options of `generate`, and which of them change it."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase
from transformers.generation import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    MinPLogitsWarper,
    TopHLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from rlhf_recipes.modeling.tokenizers.padding import ends_of

logger = logging.getLogger(__name__)

# Options that cut off a part of the distribution, with the value at which they do nothing. `generate` applies them
# only where it samples itself; here they go before the draw.
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


def changed_options(config: GenerationConfig) -> dict[str, Any]:
    """The options, with their values, that make the sampled distribution another one than the policy's."""
    changed = {}
    for name, value in config.to_dict().items():
        nothing = WARPERS[name][1] if name in WARPERS else NEUTRAL.get(name)
        if name not in HARMLESS and value not in (None, nothing, [], {}) and not name.startswith(("_", "output_")):
            changed[name] = value
    return changed


def distortions(config: GenerationConfig) -> list[str]:
    """The same options, as `"top_k 50"`."""
    return [f"{name} {value}" for name, value in changed_options(config).items()]


def warpers(config: GenerationConfig, device: torch.device) -> list[LogitsProcessor]:
    """What cuts off a part of the distribution, in the order in which `generate` would apply it."""
    found = []
    for name, (warper, nothing) in WARPERS.items():
        value = getattr(config, name, None)
        if value is not None and value != nothing:
            found.append(warper(value, **({"device": device} if name == "eta_cutoff" else {})))
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
