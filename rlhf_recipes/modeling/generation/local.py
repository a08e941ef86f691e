"""Completions from a model in this process."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
    StoppingCriteriaList,
)

from rlhf_recipes.modeling.generation.config import WARPERS, changed_options, warpers
from rlhf_recipes.modeling.generation.draw import KeyedDraw
from rlhf_recipes.modeling.generation.ends import StopAtString, listed
from rlhf_recipes.modeling.generation.written import Generated


class Watch(LogitsProcessor):
    """Keeps what a model computes on the way to each token: a processor that leaves the scores as they are.

    Args:
        model (`nn.Module`): A causal language model, adapters included.
        layer (`nn.Module`, *optional*): One whose output is kept for every position.
        head (`bool`): Whether what the output layer reads is kept.
    """

    def __init__(self, model: Any, layer: nn.Module | None, head: bool) -> None:
        self.inner = model.get_base_model() if isinstance(model, PeftModel) else model
        self.layer = layer
        self.head = model.get_output_embeddings() if head else None
        self._logits: Tensor | None = None
        self._pieces: list[Tensor] = []  # of the layer's output, (B, N, H)
        self._head_input: Tensor | None = None
        self._head_inputs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self._head_input is not None:
            self._head_inputs.append(self._head_input)
        return scores

    @contextlib.contextmanager
    def watching(self, logits: bool) -> Iterator[None]:
        """Keep what is computed in here; the logits of the step only where they are asked for."""
        hooks = [self.inner.register_forward_hook(self._see_logits)] if logits else []
        if self.layer is not None:
            hooks.append(self.layer.register_forward_hook(self._see_layer))
        if self.head is not None:
            hooks.append(self.head.register_forward_pre_hook(self._see_head))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _see_logits(self, model: nn.Module, args: Any, output: Any) -> None:
        self._logits = output.logits[:, -1]

    def _see_layer(self, layer: nn.Module, args: Any, output: Any) -> None:
        piece = output if isinstance(output, Tensor) else output[0]
        if self._pieces and piece.shape[1] > self._pieces[-1].shape[1]:  # without a cache, all is computed again
            self._pieces.clear()
        self._pieces.append(piece)

    def _see_head(self, head: nn.Module, args: Any) -> None:
        self._head_input = args[0][:, -1]

    def logits(self) -> Tensor:
        """The model's logits `(B, V)` of this step."""
        assert self._logits is not None, "a step that is watched"
        return self._logits

    def trunk(self, width: int) -> Tensor | None:
        """The layer's output `(B, width, H)`, the last position zeros; `None` if the layer did not tell all of it."""
        if sum(piece.shape[1] for piece in self._pieces) < width - 1:
            return None
        # A model may be asked once more than the completions needed.
        whole = torch.cat(self._pieces, dim=1)[:, : width - 1]
        return nn.functional.pad(whole, (0, 0, 0, 1))

    def head_inputs(self, length: int) -> Tensor | None:
        """What the output layer was given `(B, length, H)` for each token; `None` if it was not called for each."""
        return torch.stack(self._head_inputs[:length], dim=1) if len(self._head_inputs) >= length else None


class LocalGenerator:
    """Completions from a model in this process, by its own `generate`, with keyed draws (see [`Generator`]).

    Args:
        model (`PreTrainedModel` or `PeftModel`): Who writes.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed where the sampling stops at strings.
        watch (`nn.Module`, *optional*): A layer of the model, of which [`Generated`] then has `trunk`.
        keep_head_inputs (`bool`): Whether [`Generated`] has `head_inputs`.
        kwargs (*optional*): For `generate`, such as `synced_gpus`.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase | None = None,
        watch: nn.Module | None = None,
        keep_head_inputs: bool = False,
        **kwargs: Any,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.watch = watch
        self.keep_head_inputs = keep_head_inputs
        self.kwargs = kwargs

    @torch.no_grad()
    def generate(
        self, prompt_ids: Tensor, mask: Tensor, config: GenerationConfig, row_keys: Sequence[int]
    ) -> Generated:
        width = prompt_ids.shape[1]
        watch = Watch(self.model, self.watch, self.keep_head_inputs)
        # Beyond warpers, `generate` itself has a hand in the scores, before they reach the draw.
        changed = not WARPERS.keys() >= changed_options(config).keys()
        draw = KeyedDraw(
            row_keys,
            width,
            float(config.temperature),
            warpers(config, prompt_ids.device),
            own_logits=watch.logits if changed else None,
        )
        known = self.model.get_input_embeddings().weight.shape[0]
        pad = config.pad_token_id if config.pad_token_id < known else 0  # added to the tokenizer, but not to the model
        # `generate` would leave out temperature without do_sample, and draw from the global generator with it.
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
            stopping.append(StopAtString(listed(config.stop_strings), self.tokenizer, width))
        with without_defaults(self.model), watch.watching(logits=changed):
            output = self.model.generate(
                input_ids=prompt_ids.masked_fill(mask == 0, pad),
                attention_mask=mask,
                generation_config=GenerationConfig(**greedy),
                logits_processor=LogitsProcessorList([watch, draw]),
                stopping_criteria=stopping,
                **self.kwargs,
            )
        length = output.shape[1] - width
        logprobs = torch.stack(draw.logprobs[:length], dim=1)
        return Generated(output[:, width:], logprobs, watch.trunk(output.shape[1]), watch.head_inputs(length))


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
