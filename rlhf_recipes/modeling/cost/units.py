"""What a model costs that keeps some of its layers, heads, neurons and words: whole numbers, by addition alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlhf_recipes.modeling.cost.flops import DecoderShape, LayerShape, decode_flops, prefill_flops
from rlhf_recipes.modeling.cost.storage import stored_bytes

# Of a layer: how many heads (key-value groups) and neurons it keeps, and in how many bits. None: it is dropped.
Kept = tuple[int, int, int] | None


@dataclass(frozen=True)
class Cost:
    """What a model costs. Non-embedding is what happens in its layers: no embeddings, no head."""

    parameters: int
    non_embedding_parameters: int
    bytes: int  # of its weights, scales of quantized ones included
    prefill_flops: int  # of a pass over a text of `tokens` tokens
    non_embedding_prefill_flops: int
    decode_flops: int  # of one more token behind a cache, which looks at `tokens` tokens, itself included
    non_embedding_decode_flops: int
    tokens: int

    @property
    def prefill_flops_per_token(self) -> float:
        """On average over the text."""
        return self.prefill_flops / self.tokens

    @property
    def non_embedding_prefill_flops_per_token(self) -> float:
        """On average over the text."""
        return self.non_embedding_prefill_flops / self.tokens


@dataclass(frozen=True)
class Matrix:
    """A weight matrix that grows with the units of its part, at one unit."""

    outputs: int
    inputs: int
    outputs_grow: bool

    def at(self, units: int) -> tuple[int, int]:
        """Outputs and inputs."""
        return (units * self.outputs, self.inputs) if self.outputs_grow else (self.outputs, units * self.inputs)


@dataclass(frozen=True)
class PartCost:
    """Attention or the MLP of a layer."""

    matrices: tuple[Matrix, ...]
    biases: int  # of one unit
    fixed: int  # parameters that are there as long as one unit is

    def parameters(self, units: int) -> int:
        """All of them at a number of units; none where the part is left out."""
        return units * (self.weights + self.biases) + (self.fixed if units else 0)

    @property
    def weights(self) -> int:
        """Of the matrices, for one unit."""
        return sum(matrix.outputs * matrix.inputs for matrix in self.matrices)

    def bytes(self, units: int, bits: int, itemsize: int) -> int:
        """Matrices in those bits; biases and what else there is in the precision of the model."""
        if not units:
            return 0
        others = units * self.biases + self.fixed
        return others * itemsize + sum(stored_bytes(*m.at(units), bits, itemsize) for m in self.matrices)


@dataclass(frozen=True)
class LayerCost:
    """A layer of the original."""

    attention: PartCost
    mlp: PartCost
    fixed: int  # parameters that stay whatever units are left out: norms
    head_width: int  # numbers of the queries of one key-value group
    window: int | None


@dataclass(frozen=True)
class ModelCost:
    """A model, as the sum of what can be left out of it."""

    layers: tuple[LayerCost, ...]
    words: int
    word_parameters: int  # of one word: its row of the embeddings, of the head where that is another, its bias
    fixed: int  # parameters outside of layers that no word takes with it
    word_head_weights: int  # that a token is multiplied with for one word
    head_weights: int  # and for what else comes after the layers, or before
    text_weights: int  # that one token of a text is multiplied with

    def shape(self, kept: Sequence[Kept], words: int | None = None) -> DecoderShape:
        """For [`completion_flops`] and its relatives."""
        pairs = [(layer, of) for layer, of in zip(self.layers, kept, strict=True) if of is not None]
        words = self.words if words is None else words
        return DecoderShape(
            sum(heads * layer.attention.weights + neurons * layer.mlp.weights for layer, (heads, neurons, _) in pairs),
            words * self.word_head_weights + self.head_weights,
            tuple(LayerShape(heads * layer.head_width, layer.window) for layer, (heads, _, _) in pairs if heads),
            self.text_weights,
        )

    def cost(self, kept: Sequence[Kept], words: int | None = None, tokens: int = 128, itemsize: int = 2) -> Cost:
        """What is left costs.

        Args:
            kept (`Sequence`): For each layer of the original, what is kept of it.
            words (`int`, *optional*): How many words are kept. Default: all.
            tokens (`int`): Of a text that is read, and that one more token looks at.
            itemsize (`int`): Bytes of a number that is not quantized.
        """
        pairs = [(layer, of) for layer, of in zip(self.layers, kept, strict=True) if of is not None]
        words = self.words if words is None else words
        inside = sum(
            layer.fixed + layer.attention.parameters(heads) + layer.mlp.parameters(neurons)
            for layer, (heads, neurons, _) in pairs
        )
        outside = words * self.word_parameters + self.fixed
        held = sum(
            layer.fixed * itemsize
            + layer.attention.bytes(heads, bits, itemsize)
            + layer.mlp.bytes(neurons, bits, itemsize)
            for layer, (heads, neurons, bits) in pairs
        )
        shape = self.shape(kept, words)
        layers = replace(shape, head_weights=0, text_weights=0)
        return Cost(
            inside + outside, inside, held + outside * itemsize,
            prefill_flops(shape, tokens), prefill_flops(layers, tokens),
            decode_flops(shape, tokens), decode_flops(layers, tokens), tokens,
        )  # fmt: skip
