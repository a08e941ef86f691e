"""Layers in 8 and 4 bit: what rounding does to their weights, and how they are loaded in that precision.

Weights are rounded as bitsandbytes rounds them, so what is scored is what is loaded later. It holds a whole model in 8
bit or in 4, and single layers out of it; for 8 and 4 bit in one model torchao's TorchAoConfig would serve, whose
folders need torchao to load. The project keeps to the library that it loads models with.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from rlhf_recipes.compression.families import Parts, parts_of
from rlhf_recipes.compression.structure import Layer
from rlhf_recipes.imports import optional
from rlhf_recipes.modeling.cost.storage import BLOCK


def rounded(weight: Tensor, bits: int, is_linear: bool = True) -> Tensor:
    """What is left of a weight that was held in a few bits.

    In 4 bit 64 weights share a scale, and each is one of 16 values (NF4, arXiv 2305.14314, section 3), by
    bitsandbytes itself; in 8 bit the weights of an output do, which in float16 are rounded to multiples of a 127th of
    the largest (arXiv 2208.07339, section 2). That bitsandbytes rounds what goes in to 8
    bit too is left out. Rounding twice changes nothing more.

    Args:
        weight (`(outputs, inputs)`): As of `nn.Linear`; of GPT-2's Conv1D `(inputs, outputs)`.
        bits (`int`): 16 (nothing is rounded), 8 or 4.
    """
    if bits == 16:
        return weight
    plain = weight.detach().float()
    plain = (plain if is_linear else plain.t()).contiguous()
    if bits == 4:
        functional = optional("bitsandbytes", "A layer of 4 bits", extra="quantization").functional
        # As one row: of rows that are no multiple of a block, its code for CPUs takes scales from the wrong places.
        packed, state = functional.quantize_4bit(plain.reshape(-1), blocksize=BLOCK, quant_type="nf4")
        plain = functional.dequantize_4bit(packed, state).reshape(plain.shape)
    else:
        plain = plain.half().float()
        scale = plain.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny) / 127
        plain = (plain / scale).round() * scale
    return (plain if is_linear else plain.t()).to(weight.dtype).contiguous()


def rounded_among(parts: Parts, weight: Tensor, module: Any, name: str, layer: Layer) -> Tensor:
    """A weight with what is kept of it rounded as the cut one will be; what is not kept stays."""
    plain = name.replace(".base_layer.", ".")
    kept = parts.slices(layer.heads, layer.neurons).get(plain)
    if kept is None:
        return weight
    dimension, index = kept
    index = index.to(weight.device)
    small = rounded(weight.index_select(dimension, index), layer.bits, is_linear=isinstance(module, nn.Linear))
    return weight.index_copy(dimension, index, small)


def projections(parts: Parts, number: int) -> Iterator[tuple[str, Any]]:
    """The weights of a layer that are quantized, by name, and the modules that they are in."""
    family = parts.family
    for name in (*family.projections, family.out, *family.up, family.down):
        try:
            wrapped: Any = parts.layers[number].get_submodule(name)
        except AttributeError:  # in a part that is left out
            continue
        inside = hasattr(wrapped, "base_layer")
        if hasattr(parts.at(number, name), "weight"):
            yield f"{name}.base_layer.weight" if inside else f"{name}.weight", parts.at(number, name)


@torch.no_grad()
def round_layers(model: Any, bits: Sequence[int]) -> None:
    """Round the weights of each layer of a cut model in place, as before they were trained on.

    Args:
        bits (`Sequence[int]`): One number for each of its layers.
    """
    parts = parts_of(model)
    if len(bits) != len(parts.layers):
        raise ValueError(f"The model has {len(parts.layers)} layers, and bits are given for {len(bits)}.")
    for number, count in enumerate(bits):
        for _, module in projections(parts, number):
            module.weight.copy_(rounded(module.weight, count, isinstance(module, nn.Linear)))


def loading_config(model: Any, bits: Sequence[int]) -> Any:
    """The `quantization_config` with which `from_pretrained` holds a cut model in the bits of its structure.

    Its weights are then those of [`rounded`]. What they are multiplied with is rounded by bitsandbytes too: in 8 bit
    to 8 bit, in 4 bit on a CPU to bfloat16.

    Args:
        model (`PreTrainedModel`): The cut model.
        bits (`Sequence[int]`): One number for each of its layers.

    Returns:
        `BitsAndBytesConfig` or `None` where all layers have 16 bits.

    Raises:
        `ValueError`: if there are layers of 4 and of 8 bits: bitsandbytes holds a model in one of them; if there is
            no GPU, and a matrix of a layer in 4 bit has inputs in no multiple of 64, or outputs in none of 32.
    """
    from transformers import BitsAndBytesConfig

    few = sorted({count for count in bits if count < 16})
    if len(few) > 1:
        raise ValueError(
            "Some layers have 4 bits and some 8, and bitsandbytes holds a model in one of them. Choose 16 and 4, or "
            "16 and 8, for a model that is to be loaded so."
        )
    if not few:
        return None
    parts = parts_of(model)
    if few == [4] and not torch.cuda.is_available():
        _check_blocks(parts, bits)
    quantized = tuple(f"{parts.prefix}{number}." for number, count in enumerate(bits) if count < 16)
    skipped = [
        name
        for name, module in parts.model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not name.startswith(quantized)
    ]
    return BitsAndBytesConfig(
        load_in_4bit=few == [4], load_in_8bit=few == [8], bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=parts.model.dtype, llm_int8_skip_modules=skipped,
        llm_int8_threshold=0.0,  # outliers set apart would make a token depend on all others in the batch
    )  # fmt: skip


def _check_blocks(parts: Parts, bits: Sequence[int]) -> None:
    """bitsandbytes' code for CPUs goes by blocks of a matrix, and others come out wrong, or not at all."""
    for number, count in enumerate(bits):
        for name, module in projections(parts, number) if count == 4 else ():
            outputs, inputs = module.weight.shape if isinstance(module, nn.Linear) else module.weight.t().shape
            if inputs % BLOCK or outputs % 32:
                raise ValueError(
                    f"Layer {number} is to have 4 bits, and {name.removesuffix('.weight')} has {inputs} inputs and "
                    f"{outputs} outputs. Without a GPU, bitsandbytes wants multiples of {BLOCK} and of 32: keep other "
                    "numbers of heads and neurons, or 8 bits."
                )
