"""Models that cannot be cut, and why."""

from types import SimpleNamespace

import pytest
import torch

from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.structure import Structure
from tests.architectures import tiny_model
from tests.compression.models import tiny


def test_heads_and_neurons_of_each_family():
    for kind, heads, queries in (("qwen3", 2, 2), ("gemma", 2, 2), ("gpt2", 4, 1), ("gpt_neox", 4, 1), ("bert", 4, 1)):
        parts = parts_of(tiny(kind))
        assert (parts.heads, parts.queries, parts.head_dim, parts.neurons) == (heads, queries, 8, 64)


@pytest.mark.parametrize("kind", ["bart", "mixtral", "mamba"])
def test_an_unknown_family_is_refused(kind):
    with pytest.raises(ValueError, match=f"type '{kind}' is cut is not known here. Known are .*llama"):
        Structure.whole(tiny_model(kind))


def test_a_quantized_model_is_refused():
    model = tiny("llama")
    model.is_quantized = True
    with pytest.raises(ValueError, match="load_in_4bit"):
        Structure.whole(model)
    model = tiny("llama")
    weight = model.model.layers[0].mlp.up_proj
    weight.weight = torch.nn.Parameter(torch.zeros(64 * 16, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ValueError, match="load_in_4bit"):
        Structure.whole(model)


def test_heads_that_do_not_divide_are_refused():
    model = tiny("llama")
    model.config.num_attention_heads = 5
    with pytest.raises(ValueError, match="5 query heads for 2"):
        Structure.whole(model)


def test_layers_that_share_weights_are_refused():
    model = tiny("llama")
    model.model.layers[2].mlp.up_proj.weight = model.model.layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match="Layers 0 and 2 share weights"):
        Structure.whole(model)
    model = tiny("llama")
    model.model.layers[3] = model.model.layers[1]
    with pytest.raises(ValueError, match="Layers 1 and 3 share weights"):
        Structure.whole(model)


def test_a_model_that_is_uneven_already_is_refused():
    from rlhf_recipes.compression.cut import cut
    from tests.compression.models import uneven

    model = tiny("llama")
    with pytest.raises(ValueError, match="Layer 0 has 0 numbers before self_attn.o_proj, and 32"):
        Structure.whole(cut(model, uneven(model), uneven=True))


def test_cross_attention_is_refused():
    model = tiny("gpt2", add_cross_attention=True)
    with pytest.raises(ValueError, match="cross-attention"):
        Structure.whole(model)


def test_adapters_are_looked_through():
    wrapped = SimpleNamespace(get_base_model=lambda: tiny("llama"))
    assert parts_of(wrapped).heads == 2
