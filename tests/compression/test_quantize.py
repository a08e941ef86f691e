from dataclasses import replace

import pytest
import torch
from scipy.stats import norm

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.quantize import loading_config, round_layers, rounded
from rlhf_recipes.compression.structure import Structure
from tests.compression.models import logits, texts, tiny

IDS = texts()


def in_bits(model, *bits):
    whole = Structure.whole(model)
    layers = tuple(replace(layer, bits=count) for layer, count in zip(whole.layers, bits, strict=True))
    return replace(whole, layers=layers)


def test_8_bit_by_hand():
    weight = torch.tensor([[127.0, 1.4, -2.6, 0.0], [1.4 / 64, 1.6 / 64, -127 / 64, 0.4 / 64]])
    wanted = torch.tensor([[127.0, 1, -3, 0], [1 / 64, 2 / 64, -127 / 64, 0]])
    assert torch.allclose(rounded(weight, 8), wanted, atol=1e-6)
    assert torch.equal(rounded(torch.zeros(2, 3), 8), torch.zeros(2, 3))
    assert torch.equal(rounded(weight.t().contiguous(), 8, is_linear=False), rounded(weight, 8).t())


def nf4_values():
    """QLoRA's values: quantiles of the normal distribution, 8 below and 9 above 0, from -1 to 1 (appendix E)."""
    offset = 1 - 0.5 * (1 / 32 + 1 / 30)
    above = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].double())
    below = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].double())
    values = torch.tensor([*above, 0.0, *below])
    return (values / values.max()).float().sort().values


def test_4_bit_is_the_nearest_of_16_values_in_blocks_of_64():
    pytest.importorskip("bitsandbytes")
    weight = torch.randn(6, 96, generator=torch.Generator().manual_seed(0))
    blocks = weight.reshape(-1, 64)
    scale = blocks.abs().amax(1, keepdim=True)
    values = nf4_values()
    nearest = values[((blocks / scale)[..., None] - values).abs().argmin(-1)] * scale
    assert torch.allclose(rounded(weight, 4), nearest.reshape(6, 96), atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_twice_is_rounding_once(bits):
    weight = torch.randn(32, 64)
    once = rounded(weight, bits)
    assert not torch.allclose(once, weight, atol=1e-4)
    assert torch.allclose(rounded(once, bits), once, atol=1e-6)
    assert rounded(weight, 16) is weight
    assert rounded(weight.bfloat16(), bits).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "bert"])
def test_mask_and_cut_round_alike(kind):
    model = tiny(kind)
    whole = in_bits(model, 16, 4, 8, 4)
    few = tuple(replace(layer, neurons=(1, 5, *range(30, 50))) for layer in whole.layers)
    for structure in (whole, replace(whole, layers=few)):
        with masked(model, structure):
            wanted = logits(model, IDS)
        smaller = cut(model, structure)
        assert torch.allclose(logits(smaller, IDS), wanted, atol=1e-5)
        round_layers(smaller, (16, 4, 8, 4))
        assert torch.allclose(logits(smaller, IDS), wanted, atol=1e-5)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", ["qwen2", "bert"])
def test_what_is_loaded_in_few_bits_has_these_weights(kind, bits, tmp_path):
    functional = pytest.importorskip("bitsandbytes").functional
    model = tiny(kind, hidden_size=64, intermediate_size=128)
    smaller = cut(model, in_bits(model, 16, bits, 16, bits))
    smaller.save_pretrained(tmp_path)
    settings = loading_config(smaller, (16, bits, 16, bits))
    loaded = type(model).from_pretrained(tmp_path, quantization_config=settings, device_map="cpu")
    plain = dict(smaller.named_parameters())
    packed = 0
    for name, parameter in loaded.named_parameters():
        if parameter.is_floating_point():
            assert torch.equal(parameter.float(), plain[name])
            continue
        packed += 1
        number = int(name.partition("layers." if kind == "qwen2" else "layer.")[2].split(".")[0])
        assert number in (1, 3)
        state = getattr(parameter, "quant_state", None)
        if bits == 4:
            values = functional.dequantize_4bit(parameter.data, state)
        else:
            values = parameter.data.float() * parameter.SCB[:, None] / 127
        assert torch.allclose(values.float(), plain[name], atol=1e-5)
    assert packed == 2 * (7 if kind == "qwen2" else 6)


def test_what_one_loading_cannot_hold(monkeypatch):
    model = tiny("llama")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"Layer 1 .*q_proj has 32 inputs and 32 outputs.* multiples of 64 and of 32"):
        loading_config(model, (16, 4, 16, 16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert loading_config(model, (16, 4, 16, 16)).load_in_4bit
    assert loading_config(model, (16,) * 4) is None
    with pytest.raises(ValueError, match="in one of them"):
        loading_config(model, (4, 8, 16, 16))
    with pytest.raises(ValueError, match="4 layers, and bits are given for 2"):
        round_layers(model, (4, 8))
