"""What is kept of a model: layers, heads, neurons, bits, and words. Plain data, which a JSON file holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.compression.families import Parts, parts_of

BITS = (16, 8, 4)


@dataclass(frozen=True)
class Layer:
    """What is kept of one layer of the original, by index."""

    heads: tuple[int, ...]  # key-value groups, and their query heads with them; () leaves attention out
    neurons: tuple[int, ...]  # of the MLP; () leaves it out
    bits: int = 16  # of the weights of its projections: 16, 8 or 4


@dataclass(frozen=True)
class Merge:
    """Neighbouring layers that become one, in the place of the first: its weights are a sum of theirs.

    Plain averages of whole layers are what most people try first, and in published comparisons they lose to leaving
    layers out; the sum of differences to the first layer (LaCo, arXiv 2402.11187, equation 1: of layers l to l + m it
    is `theta_l + sum_k (theta_{l+k} - theta_l)`) does better for m > 1, and for m = 1 is the second layer itself. Both
    are sums with weights that add up to 1, so the weights are the choice.
    """

    layers: tuple[int, ...]  # at least two, one after the other
    weights: tuple[float, ...]

    @classmethod
    def average(cls, layers: Sequence[int]) -> "Merge":
        """The mean of all."""
        return cls(tuple(layers), (1 / len(layers),) * len(layers))

    @classmethod
    def collapse(cls, layers: Sequence[int]) -> "Merge":
        """The first, and the differences of the others to it (LaCo)."""
        return cls(tuple(layers), (2.0 - len(layers), *(1.0,) * (len(layers) - 1)))


@dataclass(frozen=True)
class Structure:
    """What is kept of a model.

    Of layers that are merged the first holds the heads and neurons that are kept of the sum, and the others are None.
    """

    layers: tuple[Layer | None, ...]  # one for each layer of the original; None where it is dropped
    merged: tuple[Merge, ...] = ()
    vocabulary: tuple[int, ...] | None = None  # ids that are kept, ascending; None is all

    @classmethod
    def whole(cls, model: Any) -> "Structure":
        """All of a model (see [`parts_of`] for the errors)."""
        parts = parts_of(model)
        layer = Layer(tuple(range(parts.heads)), tuple(range(parts.neurons)))
        return cls((layer,) * len(parts.layers))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "layers": [
                layer and {"heads": list(layer.heads), "neurons": list(layer.neurons), "bits": layer.bits}
                for layer in self.layers
            ],
            "merged": [{"layers": list(merge.layers), "weights": list(merge.weights)} for merge in self.merged],
            "vocabulary": None if self.vocabulary is None else list(self.vocabulary),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Structure":
        """Out of what [`to_dict`] gave."""
        strangers = set(given) - {"layers", "merged", "vocabulary"}
        if strangers or "layers" not in given:
            raise ValueError(
                f"A structure has 'layers', and may have 'merged' and 'vocabulary'; this has {', '.join(given)}."
            )
        words = given.get("vocabulary")
        return cls(
            tuple(
                layer and Layer(tuple(layer["heads"]), tuple(layer["neurons"]), layer.get("bits", 16))
                for layer in given["layers"]
            ),
            tuple(Merge(tuple(merge["layers"]), tuple(merge["weights"])) for merge in given.get("merged", ())),
            None if words is None else tuple(words),
        )

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers of the original that are there afterwards."""
        return tuple(number for number, layer in enumerate(self.layers) if layer is not None)

    @property
    def shapes(self) -> list[tuple[int, int, int] | None]:
        """For each layer of the original how many heads and neurons are kept, and in how many bits."""
        return [None if layer is None else (len(layer.heads), len(layer.neurons), layer.bits) for layer in self.layers]


def check_structure(structure: Structure, parts: Parts) -> None:
    """Raise `ValueError` where a structure is not one of this model."""
    if len(structure.layers) != len(parts.layers):
        raise ValueError(f"The structure is of {len(structure.layers)} layers, and the model has {len(parts.layers)}.")
    if not any(layer is not None and (layer.heads or layer.neurons) for layer in structure.layers):
        raise ValueError("The structure keeps nothing of any layer. Keep the heads or the neurons of one at least.")
    for number, layer in enumerate(structure.layers):
        if layer is None:
            continue
        check_indices(layer.heads, parts.heads, f"heads of layer {number}", "key-value heads")
        check_indices(layer.neurons, parts.neurons, f"neurons of layer {number}", "neurons")
        if layer.bits not in BITS:
            raise ValueError(f"Layer {number} is to have {layer.bits} bits; 16, 8 or 4 are possible.")
    _check_merged(structure, parts)
    if structure.vocabulary is not None:
        rows = parts.model.get_input_embeddings().weight.shape[0]
        check_indices(structure.vocabulary, rows, "vocabulary", "embeddings")
        if not structure.vocabulary or list(structure.vocabulary) != sorted(structure.vocabulary):
            raise ValueError("The vocabulary of a structure is a list of token ids, ascending, of one at least.")


def check_indices(given: Sequence[int], total: int, what: str, of: str) -> None:
    """Raise `ValueError` where indices are out of range, or there twice."""
    beyond = [index for index in given if not 0 <= index < total]
    if beyond:
        raise ValueError(f"The {what} have index {beyond[0]}; the model has {total} {of}, 0 to {total - 1}.")
    if len(set(given)) != len(given):
        twice = next(index for index in given if list(given).count(index) > 1)
        raise ValueError(f"The {what} have index {twice} twice.")


def _check_merged(structure: Structure, parts: Parts) -> None:
    seen: set[int] = set()
    kinds = getattr(parts.model.config, "layer_types", None)
    for merge in structure.merged:
        first, *others = merge.layers or (0,)
        check_indices(merge.layers, len(parts.layers), "merged layers", "layers")
        if not others or list(merge.layers) != list(range(first, first + len(merge.layers))):
            raise ValueError(f"Layers {list(merge.layers)} are to be merged: give two or more, one after the other.")
        if len(merge.weights) != len(merge.layers):
            raise ValueError(f"{len(merge.layers)} layers are to be merged with {len(merge.weights)} weights.")
        if seen & set(merge.layers):
            raise ValueError(f"Layer {min(seen & set(merge.layers))} is to be merged twice.")
        if structure.layers[first] is None or any(structure.layers[other] is not None for other in others):
            raise ValueError(
                f"Of layers {list(merge.layers)}, which are to be merged, the first says what is kept, and the others "
                "must be None."
            )
        if kinds and len({kinds[number] for number in merge.layers}) > 1:
            raise ValueError(
                f"Layers {list(merge.layers)} are to be merged, but attend differently "
                f"({', '.join(kinds[number] for number in merge.layers)})."
            )
        seen |= set(merge.layers)


def is_even(structure: Structure) -> bool:
    """Whether all layers that are kept have as many heads, and as many neurons, and some of each."""
    shapes = {(len(layer.heads), len(layer.neurons)) for layer in structure.layers if layer is not None}
    return len(shapes) == 1 and all(map(all, shapes))


def evened(
    structure: Structure,
    model: Any,
    heads: int | None = None,
    neurons: int | None = None,
    importance: Sequence[tuple[Sequence[float], Sequence[float]]] | None = None,
) -> Structure:
    """A structure of even shapes near to another: layers with more units than that lose some, the others get some.

    Layers that keep neither heads nor neurons are dropped.

    Args:
        model (`PreTrainedModel`): The original.
        heads (`int`, *optional*): Of each layer. Default: as many as are kept on average, at least 1; all where the
            family cannot do with fewer.
        neurons (`int`, *optional*): Of each layer. Default: as many as are kept on average, at least 1.
        importance (`Sequence`, *optional*):
            For each layer of the original, a number for each head and one for each neuron: the lowest go first, the
            highest come back first. Default: the last go first, the first come back first.
    """
    parts = parts_of(model)
    check_structure(structure, parts)
    kept = [layer for layer in structure.layers if layer is not None and (layer.heads or layer.neurons)]
    if not parts.family.prunes_heads:
        heads = heads or parts.heads
    heads = heads or max(1, round(sum(len(layer.heads) for layer in kept) / len(kept)))
    neurons = neurons or max(1, round(sum(len(layer.neurons) for layer in kept) / len(kept)))
    if not (1 <= heads <= parts.heads and 1 <= neurons <= parts.neurons):
        raise ValueError(
            f"Each layer is to keep {heads} heads and {neurons} neurons; the model has {parts.heads} and "
            f"{parts.neurons}, and one of each must be left."
        )

    def even(number: int, layer: Layer | None) -> Layer | None:
        if layer is None or not (layer.heads or layer.neurons):
            return None
        of_heads, of_neurons = importance[number] if importance is not None else ((), ())
        return replace(
            layer,
            heads=_nearest(layer.heads, parts.heads, heads, of_heads),
            neurons=_nearest(layer.neurons, parts.neurons, neurons, of_neurons),
        )

    layers = tuple(even(number, layer) for number, layer in enumerate(structure.layers))
    merged = tuple(merge for merge in structure.merged if layers[merge.layers[0]] is not None)
    return replace(structure, layers=layers, merged=merged)


def _nearest(kept: Sequence[int], total: int, count: int, importance: Sequence[float]) -> tuple[int, ...]:
    worth = list(importance) or list(range(total, 0, -1))
    mine = set(kept)
    ranked = sorted(range(total), key=lambda unit: (unit not in mine, -worth[unit], unit))
    return tuple(sorted(ranked[:count]))


def merged_tensor(parts: Parts, merge: Merge, name: str) -> Tensor:
    """The sum of one tensor of layers that are merged, with their weights."""
    tensors = [parts.layers[number].get_parameter(name).data for number in merge.layers]
    total = torch.zeros_like(tensors[0], dtype=torch.float32)
    for weight, tensor in zip(merge.weights, tensors, strict=True):
        total += weight * tensor.float()
    return total.to(tensors[0].dtype)
