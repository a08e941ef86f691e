"""Surgery: from a model and a structure to an ordinary, smaller model of the same class.

What a config can say decides which shapes load again without code of one's own. transformers 5.23 takes a
`per_layer_config` (its pull request 45333), but none of the families here builds its layers from it yet (45332):
another width in a layer is refused when the model is made, and `skip` is passed over without a word. So all layers
need the same number of heads and of neurons. Heads can be fewer where the config has a `head_dim` (Llama-like); in
GPT-2, GPT-NeoX and BERT it follows from the hidden size, and all heads stay.
"""

import copy
import functools
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.compression.families import Parts, parts_of
from rlhf_recipes.compression.quantize import projections, rounded
from rlhf_recipes.compression.structure import Layer, Structure, check_structure, is_even, merged_tensor

PER_LAYER = ("layer_types", "no_rope_layers")  # lists in configs with an entry for each layer
PADDED = ("camembert", "roberta", "xlm-roberta")  # positions begin after the id of the padding token
TOKEN_IDS = (
    "bos_token_id", "cls_token_id", "decoder_start_token_id", "eos_token_id", "forced_bos_token_id",
    "forced_eos_token_id", "mask_token_id", "pad_token_id", "sep_token_id",
)  # fmt: skip


@torch.no_grad()
def cut(model: Any, structure: Structure, uneven: bool = False) -> Any:
    """Make the model that a structure describes. The original stays as it is.

    Weights of layers in 8 and 4 bit are rounded as they will be when they are loaded so ([`loading_config`]), and are
    held in the precision of the model: they can be trained.

    Args:
        model (`PreTrainedModel`): Without adapters, and not quantized.
        structure ([`Structure`]): What is kept of it.
        uneven (`bool`):
            Whether layers may differ in heads and neurons, and attention or MLP be left out of some. Such a model
            computes, generates and trains, but no config can describe it: it refuses to be saved.

    Returns:
        `PreTrainedModel`: of the same class, on the same device and in the same precision.

    Raises:
        `ValueError`: as [`parts_of`] and for a structure of another model; for adapters that are not merged; for
            uneven shapes, and for fewer heads where the config cannot say so. The message says what is possible.
    """
    if hasattr(model, "peft_config"):
        raise ValueError(
            "The model has adapters, which would be lost: call merge_and_unload on it, and cut what that returns."
        )
    parts = parts_of(model)
    check_structure(structure, parts)
    if not uneven:
        check_saves(structure, parts)
    config, writing = _config(parts, structure), _generation_config(parts, structure)
    state = _state(parts, structure)
    layers = [layer for layer in structure.layers if layer is not None]
    saves = why_not_saved(structure, parts) is None
    if saves:
        _say_widths(config, parts, layers[0])
        for place, layer in enumerate(layers):
            _narrow(state, parts, layer, f"{parts.prefix}{place}.")
    result = _built(parts.model, config, state)
    if writing is not None:
        result.generation_config = writing
    now = replace(parts, model=result, layers=result.base_model.get_submodule(parts.family.layers))
    if not saves:
        for place, layer in enumerate(layers):
            _narrow_in_place(now.layers[place], parts, place, layer)
        result.save_pretrained = functools.partial(_refuse_to_save, why_not_saved(structure, parts))
    for place, layer in enumerate(layers):
        for _, module in projections(now, place):
            module.weight.copy_(rounded(module.weight, layer.bits, isinstance(module, nn.Linear)))
    return result


def why_not_saved(structure: Structure, parts: Parts) -> str | None:
    """Why no config describes what is left; `None` where one does."""
    if not is_even(structure):
        shapes = sorted({shape[:2] for shape in structure.shapes if shape is not None})
        shown = ", ".join(f"{heads} and {neurons}" for heads, neurons in shapes[:4]) + (", ..." if shapes[4:] else "")
        return f"layers keep different numbers of heads and neurons, or none ({shown})"
    kept = next(len(layer.heads) for layer in structure.layers if layer is not None)
    if kept < parts.heads and not parts.family.prunes_heads:
        return f"{kept} of {parts.heads} heads are kept, and its config takes the size of a head from their number"
    return None


def check_saves(structure: Structure, parts: Parts) -> None:
    """Raise `ValueError` where no config describes what is left, and say what would be possible."""
    why = why_not_saved(structure, parts)
    if why is not None:
        heads = ", as many heads in each" if parts.family.prunes_heads else ""
        raise ValueError(
            f"What is left of the {parts.family.name} model could not be loaded without code of one's own: {why}. "
            f"Possible are: layers dropped or merged, as many neurons in each that is left{heads}, fewer words. "
            "`evened` makes the nearest structure that loads; with uneven=True the model works, but cannot be saved."
        )


def _state(parts: Parts, structure: Structure) -> dict[str, Tensor]:
    """The weights of layers and words that are kept, under the names that they will have; all heads and neurons."""
    model, words = parts.model, structure.vocabulary
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(parts.prefix)}
    if words is not None:
        head = model.get_output_embeddings()
        by_word = [model.get_input_embeddings().weight, getattr(head, "weight", None), getattr(head, "bias", None)]
        places = {tensor.data_ptr() for tensor in by_word if tensor is not None}
        for name, tensor in state.items():
            if tensor.data_ptr() in places:
                state[name] = tensor[list(words)]
    merges = {merge.layers[0]: merge for merge in structure.merged}
    for place, number in enumerate(structure.kept):
        for name, tensor in parts.layers[number].state_dict().items():
            made = merged_tensor(parts, merges[number], name) if number in merges else tensor
            state[f"{parts.prefix}{place}.{name}"] = _at_place(parts, name, made, number, place)
    return state


def _at_place(parts: Parts, name: str, tensor: Tensor, number: int, place: int) -> Tensor:
    """GPT-2 can divide scores by the number of the layer, which has become another: queries make up for it."""
    scaled = getattr(parts.model.config, "scale_attn_by_inverse_layer_idx", False)
    if not scaled or name.rpartition(".")[0] not in parts.family.projections:
        return tensor
    tensor = tensor.clone()
    tensor[..., : parts.heads * parts.head_dim] *= (place + 1) / (number + 1)
    return tensor


def _config(parts: Parts, structure: Structure) -> Any:
    config = copy.deepcopy(parts.model.config)
    for name in PER_LAYER:
        given = getattr(config, name, None)
        if given is not None:
            setattr(config, name, [given[number] for number in structure.kept])
    config.num_hidden_layers = len(structure.kept)
    if structure.vocabulary is not None:
        config.vocab_size = len(structure.vocabulary)
        _renumber(config, parts.model.config.vocab_size, structure.vocabulary)
        if config.model_type in PADDED and config.pad_token_id != parts.model.config.pad_token_id:
            raise ValueError(
                f"A {config.model_type} counts positions from the id of its padding token, which would become "
                f"{config.pad_token_id}: keep all of the {parts.model.config.pad_token_id} tokens before it."
            )
    return config


def _generation_config(parts: Parts, structure: Structure) -> Any:
    if not parts.model.can_generate():
        return None
    config = copy.deepcopy(parts.model.generation_config)
    if structure.vocabulary is not None:
        _renumber(config, parts.model.config.vocab_size, structure.vocabulary)
    return config


def _renumber(config: Any, total: int, vocabulary: tuple[int, ...]) -> None:
    """Give special tokens the ids that they have among fewer. One beyond all `total`, as defaults are, is none."""
    places = {word: place for place, word in enumerate(vocabulary)}
    for name in TOKEN_IDS:
        given = getattr(config, name, None)
        ids = given if isinstance(given, list) else [] if given is None else [given]
        gone = [word for word in ids if word < total and word not in places]
        if gone:
            raise ValueError(f"The vocabulary leaves out token {gone[0]}, which is the model's {name}. Keep it.")
        if ids:
            kept = [places[word] for word in ids if word in places]
            setattr(config, name, kept if isinstance(given, list) else next(iter(kept), None))


def _say_widths(config: Any, parts: Parts, layer: Layer) -> None:
    setattr(config, parts.family.neurons, len(layer.neurons))
    if parts.family.prunes_heads:
        config.head_dim = parts.head_dim
        config.num_attention_heads = len(layer.heads) * parts.queries
        config.num_key_value_heads = len(layer.heads)


def _narrow(state: dict[str, Tensor], parts: Parts, layer: Layer, prefix: str) -> None:
    for name, (dimension, index) in parts.slices(layer.heads, layer.neurons).items():
        tensor = state[prefix + name]
        state[prefix + name] = tensor.index_select(dimension, index.to(tensor.device))


def _narrow_in_place(block: nn.Module, parts: Parts, place: int, layer: Layer) -> None:
    for name, (dimension, index) in parts.slices(layer.heads, layer.neurons).items():
        where, _, kind = name.rpartition(".")
        module: Any = block.get_submodule(where)
        tensor = getattr(module, kind)
        setattr(module, kind, nn.Parameter(tensor.index_select(dimension, index.to(tensor.device))))
        if isinstance(module, nn.Linear):
            module.out_features, module.in_features = module.weight.shape
        else:
            module.nx, module.nf = module.weight.shape
    for name, module in parts.left_out(layer.heads, layer.neurons, place).items():
        block.set_submodule(name, module)
    attention: Any = block.get_submodule(parts.family.attention)
    if parts.family.fused == "blocks":
        attention.split_size = len(layer.heads) * parts.head_dim


def _built(model: Any, config: Any, state: dict[str, Tensor]) -> Any:
    """A model of the same class with these weights."""
    mine = {parameter.data_ptr() for parameter in model.parameters()}  # which from_pretrained would go on sharing
    state = {name: tensor.clone() if tensor.data_ptr() in mine else tensor for name, tensor in state.items()}
    dtypes = {parameter.dtype for parameter in model.parameters()}
    result, info = type(model).from_pretrained(
        None, config=config, state_dict=state, dtype=max(dtypes, key=lambda dtype: dtype.itemsize),
        output_loading_info=True,
    )  # fmt: skip
    left = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[kind]]
    assert not left, f"weights that are not where they belong: {left[:3]}"
    for name, parameter in result.named_parameters() if len(dtypes) > 1 else ():
        parameter.data = parameter.data.to(state[name].dtype)
    return result.to(model.device).train(model.training)


def _refuse_to_save(why: str | None, *args: Any, **kwargs: Any) -> None:
    raise ValueError(
        f"This model cannot be saved so that others load it: {why}. Cut the original with a structure that `evened` "
        "has made even, and save that."
    )
