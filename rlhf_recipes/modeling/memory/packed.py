"""Weights of 4 and 8 bit as bitsandbytes keeps them, told by their shapes."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.quantizers.quantizers_utils import should_convert_module

from rlhf_recipes.modeling.cost.storage import BLOCK, OUTER_BLOCK
from rlhf_recipes.modeling.loading import NOT_IN_4_BIT


def pack(model: nn.Module, bits: int, nested: bool) -> None:
    """Put tensors of the size that bitsandbytes keeps in the place of the frozen weights of a model's linear layers.

    In 4 bit (NF4, arXiv 2305.14314, section 3) two weights are one byte, and 64 of them share a scale of 4 bytes: 4.5
    bits for a weight. `nested` puts the scales into 8 bit in turn, 256 of which share a scale: 4.127 bits. In 8 bit
    (arXiv 2208.07339) each output has one scale of 4 bytes.
    """
    for name, module in model.named_modules():
        plain = name.removeprefix("base_model.model.").removesuffix(".base_layer")
        is_frozen = isinstance(module, nn.Linear) and not module.weight.requires_grad
        if is_frozen and "lora_" not in name and should_convert_module(plain, list(NOT_IN_4_BIT)):
            module.weight = _packed(module.weight, bits, nested)


def _packed(weight: Any, bits: int, nested: bool) -> nn.Parameter:
    if bits == 8:
        packed: Any = nn.Parameter(weight.new_empty(weight.shape, dtype=torch.int8), requires_grad=False)
        packed.SCB = weight.new_empty(weight.shape[0], dtype=torch.float32)
        return packed
    packed = nn.Parameter(weight.new_empty(-(-weight.numel() // 2), 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = _state(weight, -(-weight.numel() // BLOCK), nested)
    return packed


def _state(weight: Tensor, scales: int, nested: bool) -> SimpleNamespace:
    def floats(*shape: int) -> Tensor:
        return weight.new_empty(shape, dtype=torch.float32)

    state = SimpleNamespace(code=floats(16), state2=None)
    if not nested:
        state.absmax = floats(scales)
        return state
    state.absmax = weight.new_empty(scales, dtype=torch.uint8)
    state.offset = floats()
    state.state2 = SimpleNamespace(code=floats(256), absmax=floats(-(-scales // OUTER_BLOCK)), state2=None)
    return state


def unpacked_at_a_time(model: nn.Module, itemsize: int) -> int:
    """Bytes of the largest weight of a linear layer, which 4 bit turns back into numbers to multiply with it."""
    return max((m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear)), default=0) * itemsize
