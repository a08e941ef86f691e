"""Below which layer nothing is trained."""

import pytest
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.trunk.split import split_of
from tests.architectures import tiny_model


def llama(**options):
    return tiny_model("llama", num_hidden_layers=4, **options).requires_grad_(False)


def test_it_lies_below_the_lowest_trained_layer():
    model = llama()
    model.model.layers[2].mlp.up_proj.weight.requires_grad_(True)
    model.model.norm.weight.requires_grad_(True)
    assert split_of(model).depth == 2
    model.model.layers[1].input_layernorm.weight.requires_grad_(True)
    assert split_of(model).depth == 1


def test_with_nothing_but_the_output_layer_trained_it_is_the_whole_body():
    model = llama(tie_word_embeddings=False)
    model.lm_head.weight.requires_grad_(True)
    assert split_of(model).depth == 4


def test_trained_embeddings_leave_none_also_where_they_are_the_output_layer():
    model = llama()
    model.get_input_embeddings().weight.requires_grad_(True)
    assert (split_of(model).depth, split_of(model).reason) == (
        0, "model.embed_tokens.weight is trained, which comes before its layers",
    )  # fmt: skip
    tied = llama(tie_word_embeddings=True)
    tied.lm_head.weight.requires_grad_(True)
    assert split_of(tied).depth == 0


def test_full_training_leaves_none():
    assert split_of(llama().requires_grad_(True)).depth == 0


@pytest.mark.parametrize(("layers", "depth"), [([2, 3], 2), ([0, 3], 0), (None, 0)])
def test_of_adapters_the_lowest_counts(layers, depth):
    model = get_peft_model(llama(), LoraConfig(r=2, layers_to_transform=layers, task_type="CAUSAL_LM"))
    assert split_of(model).depth == depth
