"""Completions from a model in this process."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, PreTrainedTokenizerBase, StoppingCriteriaList
from transformers.generation import TemperatureLogitsWarper

from rlhf_recipes.modeling.generation.config import WARPERS
from rlhf_recipes.modeling.generation.draw import KeyedGumbel
from rlhf_recipes.modeling.generation.ends import StopAtString, listed


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
            stopping.append(StopAtString(listed(config.stop_strings), self.tokenizer, prompt_ids.shape[1]))
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
