"""The trunk: the lowest layers of a model, run once for each token, and the model run with what they have said."""

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.modeling.logprobs import Texts, base_of, forward_replaced, texts_of


class Trunk:
    """The lowest layers of a model.

    All above runs as it is: the model's own forward makes masks and positions and calls all of its layers, of which
    these hand on what they have said before.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The model, in evaluation mode while `read`.
        layers (`nn.ModuleList`): All of its layers.
        depth (`int`): How many of them are the trunk, at least 1.
    """

    def __init__(self, model: Any, layers: nn.ModuleList, depth: int) -> None:
        self.model = model
        self.layers = list(layers[:depth])
        self.returns = 0  # in how long a tuple a layer returns its states; 0 where it returns them alone

    @property
    def last(self) -> nn.Module:
        """The layer whose output is kept."""
        return self.layers[-1]

    @torch.no_grad()
    def read(self, tokens: Mapping[str, Tensor], trim: bool = True) -> Tensor:
        """What the trunk says at each column of `prompt_ids` and `completion_ids`: `(B, P + T, H)`, 0 at padding."""
        texts = texts_of(**tokens, trim=trim)

        def stop(module: nn.Module, args: Any, output: Any) -> None:
            self.returns = len(output) if isinstance(output, tuple) else 0
            raise _Reached(output[0] if isinstance(output, tuple) else output)

        hook = self.last.register_forward_hook(stop)
        try:
            base_of(self.model).base_model(**texts.inputs, use_cache=False)
        except _Reached as reached:
            states = reached.states
        finally:
            hook.remove()
        width = tokens["prompt_ids"].shape[1] + tokens["completion_ids"].shape[1]
        real = texts.inputs["attention_mask"].bool()
        rows, places = real.nonzero(as_tuple=True)
        columns = states.new_zeros(len(states), width, states.shape[-1])
        columns[rows, texts.sources[rows, places]] = states[rows, places]
        return columns

    def below(self, states: Tensor) -> Callable[[Texts], AbstractContextManager]:
        """For [`completion_logprobs`]: the model reads texts with these states `(B, P + T, H)` of the trunk."""
        return lambda texts: self.said(texts.arranged(states))

    @contextlib.contextmanager
    def said(self, states: Tensor) -> Any:
        """Inside, the trunk says `states` `(B, L, H)` of whatever it is given."""

        def as_layers_do(hidden_states: Tensor) -> Any:
            return (hidden_states, *[None] * (self.returns - 1)) if self.returns else hidden_states

        def hand_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            return as_layers_do(hidden_states)

        def hand_over(*args: Any, **kwargs: Any) -> Any:
            return as_layers_do(states)

        replaced: dict[nn.Module, Callable] = dict.fromkeys(self.layers[:-1], hand_on)
        with forward_replaced({**replaced, self.last: hand_over}):
            yield


class _Reached(Exception):
    """The trunk has said what it says, and nothing above it need run."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the end of the trunk")
        self.states = states
