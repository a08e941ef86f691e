"""Where a model keeps its layers, and in them attention heads and neurons, for each family that can be cut.

A general dependency graph, as torch-pruning builds it by tracing, finds coupled channels of any network. It is not
used here: it has to be told where the heads are, which is most of this table, and it does not know what a config can
say, and so which cut loads again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from rlhf_recipes.modeling.logprobs import base_of


@dataclass(frozen=True)
class Family:
    """Names of modules below one layer, and of what the config says of it."""

    name: str
    layers: str  # below the model's body
    attention: str  # takes hidden states, returns a tuple
    projections: tuple[str, ...]  # query, key and value; or one module that holds all three
    out: str
    mlp: str
    up: tuple[str, ...]
    down: str
    neurons: str  # in the config
    fused: str = ""  # "blocks": all queries, all keys, all values; "heads": the three of each head together
    prunes_heads: bool = False  # whether the config can say a number of heads that do not fill the hidden size


LLAMA = Family(
    "Llama-like", "layers", "self_attn", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attn.o_proj", "mlp", ("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size",
    prunes_heads=True,
)  # fmt: skip
GPT_NEOX = Family(
    "GPT-NeoX-like", "layers", "attention", ("attention.query_key_value",), "attention.dense", "mlp",
    ("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "intermediate_size", fused="heads",
)  # fmt: skip
GPT2 = Family(
    "GPT-2-like", "h", "attn", ("attn.c_attn",), "attn.c_proj", "mlp", ("mlp.c_fc",), "mlp.c_proj", "n_inner",
    fused="blocks",
)  # fmt: skip
BERT = Family(
    "BERT-like", "encoder.layer", "attention.self",
    ("attention.self.query", "attention.self.key", "attention.self.value"), "attention.output.dense", "intermediate",
    ("intermediate.dense",), "output.dense", "intermediate_size",
)  # fmt: skip
# By model_type. Each one is cut in the tests, in every way.
FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "qwen2", "qwen3", "smollm3"), LLAMA
    ),
    "gpt_neox": GPT_NEOX,
    "gpt2": GPT2,
    **dict.fromkeys(("bert", "camembert", "electra", "roberta", "xlm-roberta"), BERT),
}


@dataclass(frozen=True)
class Parts:
    """The layers of one model, and how many units each holds."""

    family: Family
    model: Any  # without adapters
    layers: nn.ModuleList
    heads: int  # key-value groups of a layer; each is a head and its query heads
    queries: int  # query heads of a group
    head_dim: int
    neurons: int

    @property
    def prefix(self) -> str:
        """How the names of what is in the layers begin, in the model."""
        return next(name for name, module in self.model.named_modules() if module is self.layers) + "."

    def slices(self, heads: Sequence[int], neurons: Sequence[int]) -> dict[str, tuple[int, Tensor]]:
        """What is kept of the tensors of a layer: by name, the dimension and the indices along it.

        Of a part that is left out (no heads, or no neurons) nothing is named: see [`left_out`].
        """
        kept: dict[str, tuple[int, Tensor]] = {}
        family = self.family
        if len(heads):
            query, key = _rows(heads, self.queries * self.head_dim), _rows(heads, self.head_dim)
            if family.fused == "blocks":
                width = self.heads * self.head_dim
                indices = [torch.cat([key, key + width, key + 2 * width])]
            elif family.fused == "heads":
                indices = [_rows(heads, 3 * self.head_dim)]
            else:
                indices = [query, key, key]
            for name, index in zip(family.projections, indices, strict=True):
                kept |= self._of_outputs(name, index)
            kept[f"{family.out}.weight"] = (_dimension(self.at(0, family.out), outputs=False), query)
        if len(neurons):
            index = torch.as_tensor(neurons)
            for name in family.up:
                kept |= self._of_outputs(name, index)
            kept[f"{family.down}.weight"] = (_dimension(self.at(0, family.down), outputs=False), index)
        return kept

    def left_out(self, heads: Sequence[int], neurons: Sequence[int], place: int) -> dict[str, nn.Module]:
        """Where no heads, or no neurons, are kept: modules of a layer that go, and what stands for them.

        Args:
            place (`int`): Of the layer in the model, and so in its cache.
        """
        family = self.family
        instead: dict[str, nn.Module] = {}
        for kept, part, last in ((heads, family.attention, family.out), (neurons, family.mlp, family.down)):
            if not len(kept):
                if not last.startswith(f"{part}."):
                    instead[last] = Nothing()
                instead[part] = NoAttention(place) if part == family.attention else Nothing()
        return instead

    def at(self, layer: int, name: str) -> Any:
        """A module of a layer, without the adapter around it."""
        module = self.layers[layer].get_submodule(name)
        return getattr(module, "base_layer", module)

    def _of_outputs(self, name: str, index: Tensor) -> dict[str, tuple[int, Tensor]]:
        module = self.at(0, name)
        kept = {f"{name}.weight": (_dimension(module, outputs=True), index)}
        return kept if module.bias is None else kept | {f"{name}.bias": (0, index)}


def parts_of(model: Any) -> Parts:
    """Find the layers of a model, their heads and their neurons.

    Args:
        model (`PreTrainedModel` or `PeftModel`): With weights that are numbers.

    Raises:
        `ValueError`: if its family is not known; if its weights are quantized; if its query heads do not divide into
            its key-value heads; if layers share weights, or differ from each other or from what the config says.
    """
    inner = base_of(model)
    config = inner.config
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ValueError(
            f"How a model of type {config.model_type!r} is cut is not known here. Known are {', '.join(FAMILIES)}."
        )
    if getattr(inner, "is_quantized", False) or any(not p.is_floating_point() for p in inner.parameters()):
        raise ValueError(
            "The weights of the model are quantized, and what stands for several weights cannot be cut. Load it "
            "without load_in_4bit and load_in_8bit; a structure says itself which layers are quantized afterwards."
        )
    if getattr(config, "add_cross_attention", False):
        raise ValueError("The model has cross-attention to another model, and cannot be cut here.")
    queries = config.num_attention_heads
    heads = (None if family.fused else getattr(config, "num_key_value_heads", None)) or queries
    if queries % heads:
        raise ValueError(
            f"The model has {queries} query heads for {heads} key-value heads: they do not divide into groups, and "
            "no group could be left out with its queries."
        )
    layers = inner.base_model.get_submodule(family.layers)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // queries
    parts = Parts(family, inner, layers, heads, queries // heads, head_dim, _width_of(layers, family))
    _check_alike(parts)
    return parts


class NoAttention(nn.Module):
    """Stands for attention that is left out: attends to nothing, but tells the cache how many tokens went by."""

    def __init__(self, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Zeros of the shape of the states `(B, L, H)`, and no attention weights."""
        count_in_cache(hidden_states, self.layer_idx, (*args, *kwargs.values()))
        return torch.zeros_like(hidden_states), None


class Nothing(nn.Module):
    """Stands for what is left out: adds nothing to what it is added to."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Zeros of the shape of the states."""
        return torch.zeros_like(hidden_states)


def count_in_cache(hidden_states: Tensor, layer_idx: int, given: Iterable[Any]) -> None:
    """Put one empty number for each token into a layer of the cache, if there is one among what a layer is given.

    Positions and masks are made from the length of the first layer's cache, whichever layers are left out.
    """
    for cache in given:
        if isinstance(cache, Cache):
            nothing = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[1], 1)
            cache.update(nothing, nothing, layer_idx)


def _rows(units: Sequence[int], size: int) -> Tensor:
    return (torch.as_tensor(units, dtype=torch.long)[:, None] * size + torch.arange(size)).reshape(-1)


def _dimension(module: Any, outputs: bool) -> int:
    """Which dimension of a weight its outputs are: the first, but of GPT-2's Conv1D the second."""
    return int(outputs != isinstance(module, nn.Linear))


def _width_of(layers: nn.ModuleList, family: Family) -> int:
    module: Any = layers[0].get_submodule(family.down)
    module = getattr(module, "base_layer", module)
    return int(module.weight.shape[_dimension(module, outputs=False)])


def _check_alike(parts: Parts) -> None:
    wanted = {parts.family.out: parts.heads * parts.queries * parts.head_dim, parts.family.down: parts.neurons}
    owners: dict[int, int] = {}
    for number, layer in enumerate(parts.layers):
        for name, width in wanted.items():
            try:
                module = parts.at(number, name)
                found = module.weight.shape[_dimension(module, outputs=False)]
            except AttributeError:
                found = 0
            if found != width:
                raise ValueError(
                    f"Layer {number} has {found} numbers before {name}, and {width} were expected: the model is cut "
                    "unevenly already. Cut the original, with what is kept of it in all."
                )
        for parameter in layer.parameters():
            owner = owners.setdefault(id(parameter), number)
            if owner != number:
                raise ValueError(
                    f"Layers {owner} and {number} share weights: what is cut of one would be gone of the other."
                )
