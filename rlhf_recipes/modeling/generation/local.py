"""Completions from a model in this process."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rlhf_recipes.modeling.generation.config import WARPERS, changed_options, warpers
from rlhf_recipes.modeling.generation.draw import KeyedDraw
from rlhf_recipes.modeling.generation.ends import StopAtString, Thinning, listed
from rlhf_recipes.modeling.generation.packed import packed
from rlhf_recipes.modeling.generation.watch import Watch
from rlhf_recipes.modeling.generation.written import Generated
from rlhf_recipes.modeling.zero import is_divided


class LocalGenerator:
    """Completions from a model in this process, by its own `generate`, with keyed draws (see [`Generator`]).

    Each time a quarter of the rows has ended, `generate` stops and goes on with the others alone, where nothing but
    the cache goes from one step to the next.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Who writes.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed where the sampling stops at strings.
        watch (`nn.Module`, *optional*): A layer of the model, of which [`Generated`] then has `trunk`.
        keep_head_inputs (`bool`): Whether [`Generated`] has `head_inputs`.
        thin (`bool`): Whether to go on without rows that have ended.
        pack (`str`): Which layers are laid out for decoding on a CPU; see [`packed`].
        kwargs (*optional*): For `generate`, such as `synced_gpus`; with any, all rows stay to the end.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        watch: nn.Module | None = None,
        keep_head_inputs: bool = False,
        thin: bool = True,
        pack: str = "all",
        **kwargs: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.watch = watch
        self.keep_head_inputs = keep_head_inputs
        self.thin = thin
        self.pack = pack
        self.kwargs = kwargs

    @torch.no_grad()
    def generate(
        self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]
    ) -> Generated:
        rows = torch.arange(len(prompt_ids), device=prompt_ids.device)
        known = self.model.get_input_embeddings().weight.shape[0]
        pad = config.pad_token_id if config.pad_token_id < known else 0  # added to the tokenizer, but not to the model
        texts, segments, cache = prompt_ids.masked_fill(mask == 0, pad), [], None
        with packed(self.model, len(prompt_ids), self.pack):
            while True:
                keys = [row_keys[row] for row in rows.tolist()]
                segment, ended, cache = self._segment(texts, mask, config, keys, pad, prompt_ids.shape[1], cache)
                segments.append((rows, segment))
                texts = torch.cat([texts, segment.completion_ids], dim=1)
                if ended is None or bool(ended.all()) or texts.shape[1] - prompt_ids.shape[1] >= config.max_new_tokens:
                    break
                mask = torch.cat([mask, torch.ones_like(segment.completion_ids)], dim=1)
                going_on = (~ended).nonzero().squeeze(1)
                rows, texts, mask = rows[going_on], texts[going_on], mask[going_on]
                cache.batch_select_indices(going_on)
        return _joined(segments, len(prompt_ids), prompt_ids.shape[1], pad)

    def _segment(
        self,
        texts: Tensor,
        mask: Tensor,
        config: GenerationConfig,
        keys: Sequence[int],
        pad: int,
        prompt_width: int,
        cache: Any,
    ) -> tuple[Generated, Tensor | None, Any]:
        """What comes after texts `(B, N)`; which rows have ended, if others are to go on without them; the cache."""
        width = texts.shape[1]
        watch = Watch(self.model, self.watch, self.keep_head_inputs)
        # Beyond warpers, `generate` itself has a hand in the scores, before they reach the draw.
        changed = not WARPERS.keys() >= changed_options(config).keys()
        draw = KeyedDraw(
            keys,
            prompt_width,
            float(config.temperature),
            warpers(config, texts.device),
            own_logits=watch.logits if changed else None,
        )
        # `generate` would leave out temperature without do_sample, and draw from the global generator with it.
        greedy = {
            **config.to_dict(),
            "max_new_tokens": config.max_new_tokens - (width - prompt_width),
            "pad_token_id": pad,
            **dict.fromkeys(["temperature", *WARPERS]),
            "do_sample": False,
            "stop_strings": None,
        }
        stopping: list[StoppingCriteria] = []
        if config.stop_strings:
            assert self.tokenizer is not None, "stop strings without a tokenizer"
            stopping.append(StopAtString(listed(config.stop_strings), self.tokenizer, prompt_width))
        thinning = None
        may_thin = self.thin and not changed and not config.max_time and not self.kwargs
        # Of divided weights (ZeRO-3) all processes must ask for each layer the same number of times.
        if may_thin and not learns_a_prompt(self.model) and not is_divided(self.model):
            thinning = Thinning(config.eos_token_id, stopping, lambda: can_lose_rows(watch.cache))
            stopping = [thinning]
        with without_defaults(self.model), watch.watching(logits=changed):
            output = self.model.generate(
                input_ids=texts,
                attention_mask=mask,
                generation_config=GenerationConfig(**greedy),
                logits_processor=LogitsProcessorList([watch, draw]),
                stopping_criteria=StoppingCriteriaList(stopping),
                **({} if cache is None else {"past_key_values": cache}),
                **self.kwargs,
            )
        length = output.shape[1] - width
        read = output.shape[1] - 1 if cache is None else length  # all but the last token, and the first segment's
        logprobs = torch.stack(draw.logprobs[:length], dim=1)
        generated = Generated(output[:, width:], logprobs, watch.trunk(read), watch.head_inputs(length))
        return generated, None if thinning is None else thinning.stopped, watch.cache


def learns_a_prompt(model: Any) -> bool:
    """Whether it has a prompt that is learned (prompt tuning), which stands in its cache before all tokens."""
    return isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning


def can_lose_rows(cache: Any) -> bool:
    """Whether keys and values are all that is kept of each row: nothing recurrent, and no form of a fixed size."""
    kinds = (DynamicLayer, DynamicSlidingWindowLayer)
    return type(cache) is DynamicCache and not cache.offloading and all(type(layer) in kinds for layer in cache.layers)


def _joined(segments: list[tuple[Tensor, Generated]], rows: int, prompt_width: int, pad: int) -> Generated:
    """Segments one after another, each with those rows that it went on with; zeros where a row had ended."""
    length = sum(segment.completion_ids.shape[1] for _, segment in segments)

    def joined(name: str, width: int, fill: int = 0) -> Tensor | None:
        parts: list[Any] = [getattr(segment, name) for _, segment in segments]
        if any(part is None for part in parts):
            return None
        first, whole = 0, parts[0].new_full((rows, width, *parts[0].shape[2:]), fill)
        for (at, _), part in zip(segments, parts, strict=True):
            whole[at, first : first + part.shape[1]] = part
            first += part.shape[1]
        return whole

    completion_ids = joined("completion_ids", length, pad)
    assert completion_ids is not None
    return Generated(
        completion_ids,
        joined("logprobs", length),
        joined("trunk", prompt_width + length),
        joined("head_inputs", length),
    )


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
