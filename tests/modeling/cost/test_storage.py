"""Bytes of matrices, beside the tensors that bitsandbytes makes."""

import pytest
import torch

from rlhf_recipes.modeling.cost.storage import stored_bytes
from rlhf_recipes.modeling.memory.packed import pack

functional = pytest.importorskip("bitsandbytes").functional
SHAPES = [(64, 64), (10, 32), (3, 7), (1, 1), (33, 65)]


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_4_bit(outputs, inputs):
    packed, state = functional.quantize_4bit(torch.randn(outputs, inputs), blocksize=64, quant_type="nf4")
    assert stored_bytes(outputs, inputs, 4) == packed.numel() + state.absmax.numel() * state.absmax.element_size()


@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_8_bit(outputs, inputs):
    packed, scales, _ = functional.int8_vectorwise_quant(torch.randn(outputs, inputs).half())
    assert stored_bytes(outputs, inputs, 8) == packed.numel() + scales.numel() * scales.element_size()


def test_16_bit():
    assert stored_bytes(10, 32, 16) == 640
    assert stored_bytes(10, 32, 16, itemsize=4) == 1280


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs"), SHAPES)
def test_the_memory_estimator_counts_the_same(outputs, inputs, bits):
    model = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False, device="meta").requires_grad_(False))
    pack(model, bits, nested=False)
    weight = model[0].weight
    scales = weight.SCB if bits == 8 else weight.quant_state.absmax
    held = weight.numel() * weight.element_size() + scales.numel() * scales.element_size()
    assert stored_bytes(outputs, inputs, bits) == held
