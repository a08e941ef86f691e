"""A model that computes as if it were cut, without being: for candidates that are scored one after the other."""

import contextlib
import functools
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.compression.families import Parts, count_in_cache, parts_of
from rlhf_recipes.compression.quantize import projections, rounded_among
from rlhf_recipes.compression.structure import Layer, Structure, check_structure, merged_tensor
from rlhf_recipes.modeling.logprobs import forward_replaced

# Weights that were made for a layer, by what they were made of.
Made = MutableMapping[tuple[Any, ...], Tensor]


@contextlib.contextmanager
def masked(model: Any, structure: Structure, made: Made | None = None) -> Iterator[Any]:
    """Inside, the model says what [`cut`] would make it say; afterwards it is as before, to the bit.

    Layers and parts that are left out are not computed. Of heads and neurons that are not kept, the output is set to
    zero where it enters the last projection of their part. Words that are not kept have no probability: their logits
    are the lowest number of the dtype, at the places that they have in the original; a text with such a word is an
    error. Weights of merged and of quantized layers are made once and put in the place of the others.

    Nothing is copied for layers, heads, neurons and words, and gradients flow. Generation works, as does a model with
    adapters, but for merged layers.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The whole one.
        structure ([`Structure`]): What is kept of it.
        made (`MutableMapping`, *optional*):
            Kept between calls, it spares merging and rounding the same layer again. Empty it when weights change.

    Raises:
        `ValueError`: as [`parts_of`] and for a structure of another model; if layers are to be merged that have
            adapters.
    """
    parts = parts_of(model)
    check_structure(structure, parts)
    if structure.merged and parts.model is not model:
        raise ValueError("Layers are to be merged whose adapters are not: call merge_and_unload on the model first.")
    made = {} if made is None else made
    instead: dict[nn.Module, Callable[..., Any]] = {}
    with contextlib.ExitStack() as stack:
        for number, layer in enumerate(structure.layers):
            if layer is None:
                instead[parts.layers[number]] = _handed_on(number)
            else:
                for name, module in parts.left_out(layer.heads, layer.neurons, number).items():
                    instead[parts.layers[number].get_submodule(name)] = module.forward
                for hook in _units_hidden(parts, number, layer):
                    stack.callback(hook.remove)
        stack.enter_context(forward_replaced(instead))
        for hook in _words_hidden(parts.model, structure.vocabulary):
            stack.callback(hook.remove)
        for parameter, data in _weights(parts, structure, made):
            stack.callback(setattr, parameter, "data", parameter.data)
            parameter.data = data
        yield model


def _handed_on(number: int) -> Callable[..., Tensor]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        count_in_cache(hidden_states, number, (*args, *kwargs.values()))
        return hidden_states

    return forward


def _units_hidden(parts: Parts, number: int, layer: Layer) -> Iterator[Any]:
    slices = parts.slices(layer.heads, layer.neurons)
    for name, kept, total in (
        (parts.family.out, layer.heads, parts.heads),
        (parts.family.down, layer.neurons, parts.neurons),
    ):
        if 0 < len(kept) < total:
            module = parts.layers[number].get_submodule(name)
            dimension, index = slices[f"{name}.weight"]
            mask = torch.zeros(parts.at(number, name).weight.shape[dimension]).index_fill(0, index, 1)
            yield module.register_forward_pre_hook(_multiplied_by(mask))


def _multiplied_by(mask: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        nonlocal mask
        mask = mask.to(args[0])
        return (args[0] * mask, *args[1:])

    return hook


def _words_hidden(model: Any, vocabulary: tuple[int, ...] | None) -> Iterator[Any]:
    if vocabulary is None:
        return
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    gone = torch.ones(len(embeddings.weight), dtype=torch.bool, device=embeddings.weight.device)
    gone[list(vocabulary)] = False

    def read(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found = args[0][gone[args[0]]]
        if len(found):
            raise ValueError(f"A text has token {int(found[0])}, which the structure's vocabulary leaves out.")

    def said(module: nn.Module, args: Any, logits: Tensor) -> Tensor:
        return logits.masked_fill(gone[: logits.shape[-1]], torch.finfo(logits.dtype).min)

    yield embeddings.register_forward_pre_hook(read)
    if head is not None:
        yield head.register_forward_hook(said)


def _weights(parts: Parts, structure: Structure, made: Made) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """Parameters that hold something else inside, and what."""
    merges = {merge.layers[0]: merge for merge in structure.merged}
    for number, layer in enumerate(structure.layers):
        merge = merges.get(number)
        if layer is None or (merge is None and layer.bits == 16):
            continue
        own = dict(parts.layers[number].named_parameters())
        now = {name: parameter.data for name, parameter in own.items()}
        if merge is not None:
            for name in now:
                now[name] = _made(made, (merge, name), functools.partial(merged_tensor, parts, merge, name))
        if layer.bits < 16:
            for name, module in projections(parts, number):
                # A scale belongs to the weights of all units that are kept, so those decide what is rounded.
                key = (merge or number, name, layer)
                make = functools.partial(rounded_among, parts, now[name], module, name, layer)
                now[name] = _made(made, key, make)
        yield from ((own[name], tensor) for name, tensor in now.items() if tensor is not own[name].data)


def _made(made: Made, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
    if key not in made:
        made[key] = make()
    return made[key]
