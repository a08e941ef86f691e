"""What a structure costs, from a table that is made once for a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf_recipes.compression.families import BERT, Parts, parts_of
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.modeling.cost.flops import window_of
from rlhf_recipes.modeling.cost.units import Cost, LayerCost, Matrix, ModelCost, PartCost


def cost_table(model: Any) -> ModelCost:
    """What each part of a model costs (see [`parts_of`] for the errors).

    Args:
        model (`PreTrainedModel`): The original, without adapters.
    """
    parts = parts_of(model)
    if parts.model is not model:
        raise ValueError("The model has adapters. Make the table before they are put in, or merge them.")
    inner = parts.model
    of_layers = {id(parameter) for parameter in parts.layers.parameters()}
    head, embeddings = inner.get_output_embeddings(), inner.get_input_embeddings()
    by_word = {id(embeddings.weight): embeddings.weight}
    for name in ("weight", "bias"):
        tensor = getattr(head, name, None)
        by_word |= {} if tensor is None else {id(tensor): tensor}
    words = len(embeddings.weight)
    outside = {id(p): p.numel() for p in inner.parameters() if id(p) not in of_layers and id(p) not in by_word}
    per_token, per_text = 0, 0
    for name, module in inner.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) in outside:
            if _reads_texts(parts, name):
                per_text += module.weight.numel()
            else:
                per_token += module.weight.numel()
    return ModelCost(
        tuple(_layer_cost(parts, number) for number in range(len(parts.layers))),
        words,
        sum(tensor.numel() for tensor in by_word.values()) // words,
        sum(outside.values()),
        0 if head is None else head.weight.shape[1],
        per_token,
        per_text,
    )


def cost_of(model: Any, structure: Structure, tokens: int = 128, itemsize: int = 2) -> Cost:
    """What a structure of a model costs. For many structures make the [`cost_table`] once, and call [`priced`].

    Args:
        model (`PreTrainedModel`): The original.
        tokens (`int`): Of a text that is read, and that one more token looks at.
        itemsize (`int`): Bytes of a number that is not quantized.
    """
    return priced(cost_table(model), structure, tokens, itemsize)


def priced(table: ModelCost, structure: Structure, tokens: int = 128, itemsize: int = 2) -> Cost:
    """[`cost_of`] with a table that is there already."""
    words = None if structure.vocabulary is None else len(structure.vocabulary)
    return table.cost(structure.shapes, words, tokens, itemsize)


def _reads_texts(parts: Parts, name: str) -> bool:
    """Whether a module outside of the layers reads one token of each text, and not all."""
    if parts.family is not BERT:
        return False
    names = name.split(".")
    return "pooler" in names or ("classifier" in names and "SequenceClassification" in type(parts.model).__name__)


def _layer_cost(parts: Parts, number: int) -> LayerCost:
    attention = _part_cost(parts, number, range(parts.heads), ())
    mlp = _part_cost(parts, number, (), range(parts.neurons))
    all_of_it = sum(parameter.numel() for parameter in parts.layers[number].parameters())
    fixed = all_of_it - attention.parameters(parts.heads) - mlp.parameters(parts.neurons)
    width = parts.queries * parts.head_dim
    return LayerCost(attention, mlp, fixed, width, window_of(parts.model.config, number))


def _part_cost(parts: Parts, number: int, heads: Sequence[int], neurons: Sequence[int]) -> PartCost:
    """Of the part of which units are named, which are all that it has."""
    units, layer = len(heads) + len(neurons), parts.layers[number]
    matrices, biases = [], 0
    for name, (dimension, index) in parts.slices(heads, neurons).items():
        size = len(index) // units
        if name.endswith(".bias"):
            biases += size
            continue
        module = parts.at(number, name.removesuffix(".weight"))
        outputs_grow = dimension == (0 if isinstance(module, nn.Linear) else 1)
        other = int(module.weight.shape[1 - dimension])
        matrices.append(Matrix(size, other, True) if outputs_grow else Matrix(other, size, False))
    gone = parts.left_out(neurons, heads, number)  # the other way round: this part is what would go
    inside = {id(p): p.numel() for name in gone for p in layer.get_submodule(name).parameters()}
    part = PartCost(tuple(matrices), biases, 0)
    return replace(part, fixed=sum(inside.values()) - part.parameters(units))
