"""On a GPU the models say what they say on a CPU, in float32 to rounding and in bfloat16 near it."""

import importlib.util

import pytest
import torch

from tests.gpu.readings import distance, said_on

ROLES = [
    {"critic": "head"},
    {"critic": "head", "lora": True},
    {"critic": "head", "lora": True, "trunk": True},
    {"critic": "policy"},
    {"critic": "policy", "lora": True},
]
HALF = 0.1  # of the largest number, of 8 bits of precision through two layers


@pytest.fixture(autouse=True)
def full_precision():
    """Products of float32 in float32, and not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.gpu
@pytest.mark.parametrize("roles", ROLES, ids=lambda roles: "-".join(map(str, roles.values())))
def test_float32_is_that_of_the_cpu_gradients_included(roles):
    for mine, its in zip(said_on("cpu", **roles), said_on("cuda", **roles), strict=True):
        assert distance(mine, its) < 1e-4


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2"])
@pytest.mark.parametrize("roles", ROLES[:3], ids=lambda roles: "-".join(map(str, roles.values())))
def test_bfloat16_is_near_float32_of_the_cpu(roles, attention):
    if attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        pytest.skip("flash_attn is not installed; sdpa takes torch's own flash attention")
    for mine, its in zip(said_on("cpu", **roles), said_on("cuda", torch.bfloat16, attention, **roles), strict=True):
        assert distance(mine, its) < HALF


# ---- what of it needs no GPU


@pytest.mark.parametrize("roles", ROLES, ids=lambda roles: "-".join(map(str, roles.values())))
def test_the_comparison_itself_holds_on_the_cpu_between_two_ways(roles):
    """All logits at once and by the plain attention, against chunks and sdpa; and it sees what is changed."""
    plain = said_on("cpu", attention="eager", chunk=None, **roles)
    for mine, its in zip(plain, said_on("cpu", **roles), strict=True):
        assert distance(mine, its) < 1e-4
    assert plain[1], "gradients are compared"
    others = said_on("cpu", torch.bfloat16, **roles)
    assert 1e-4 < distance(plain[0], others[0]) < HALF
    assert 1e-4 < distance(plain[1], others[1]) < HALF
