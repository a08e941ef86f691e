"""What a model computes on the way to each token, kept while `generate` runs."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import LogitsProcessor


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
        self.head = model.get_output_embeddings()
        self.keeps_head = head
        self._logits: Tensor | None = None
        self.cache: Any = None  # as the model has left it after this step
        self._given: list[Any] = []  # by the layer, in this forward
        self._told = layer is not None
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
        hooks = [self.inner.register_forward_hook(self._see_logits if logits else self._see_forward)]
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
        self._see_forward(model, args, output)

    def _see_forward(self, model: nn.Module, args: Any, output: Any) -> None:
        self.cache = getattr(output, "past_key_values", None)
        # What runs twice in one forward (recurrent depth), or gives something else, is nothing to go on from.
        given, self._given = self._given, []
        if len(given) != 1 or not isinstance(given[0], Tensor) or given[0].dim() != 3:
            self._told = False
            return
        if self._pieces and given[0].shape[1] > self._pieces[-1].shape[1]:  # without a cache, all is computed again
            self._pieces.clear()
        self._pieces.append(given[0])

    def _see_layer(self, layer: nn.Module, args: Any, output: Any) -> None:
        self._given.append(output[0] if isinstance(output, tuple) else output)

    def _see_head(self, head: nn.Module, args: Any) -> Any:
        if not args:
            return None
        if self.keeps_head:
            self._head_input = args[0][:, -1]
        # Of a prompt the last position is cut out. From such a slice torch multiplies row by row: for 16 rows and
        # 49,152 tokens in 190 ms and not 32, in bfloat16 (with a copy of the weight for each row) in 6,500 and not 10.
        return (args[0].contiguous(), *args[1:])

    def logits(self) -> Tensor:
        """The model's logits `(B, V)` of this step."""
        assert self._logits is not None, "a step that is watched"
        return self._logits

    def trunk(self, width: int) -> Tensor | None:
        """The layer's output `(B, width, H)`; `None` if it did not give that, once in each forward."""
        if not self._told or sum(piece.shape[1] for piece in self._pieces) < width:
            return None
        return torch.cat(self._pieces, dim=1)[:, :width]  # a model may be asked once more than is needed

    def head_inputs(self, length: int) -> Tensor | None:
        """What the output layer was given `(B, length, H)` for each token; `None` if it was not called for each."""
        return torch.stack(self._head_inputs[:length], dim=1) if len(self._head_inputs) >= length else None
