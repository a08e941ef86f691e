"""The mask where it is more than the cut: gradients, adapters, what is put back, words, weights that are made."""

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.families import FAMILIES
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.structure import Merge, Structure
from tests.compression.models import even, logits, texts, tiny, uneven

IDS = texts()


def everything(model):
    """A structure with a merge, bits, heads, neurons and words in it."""
    whole = Structure.whole(model)
    layer = replace(whole.layers[0], heads=(1,), neurons=tuple(range(0, 64, 2)))
    layers = (replace(layer, bits=8), None, replace(layer, bits=4), replace(layer, heads=()))
    words = tuple(sorted({*range(3), *IDS.flatten().tolist()}))
    return replace(whole, layers=layers, merged=(Merge.average((0, 1)),), vocabulary=words)


# The weights that read what heads and neurons say, and in which dimension.
READERS = {
    "llama": ("self_attn.o_proj", "mlp.down_proj", 1),
    "gpt2": ("attn.c_proj", "mlp.c_proj", 0),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h", 1),
    "bert": ("attention.output.dense", "output.dense", 1),
}


@pytest.mark.parametrize("kind", READERS)
def test_heads_and_neurons_that_go_are_those_that_nobody_reads(kind):
    """By hand: 4 query heads of 8, in 2 groups in Llama; zeros where the last projection reads the others."""
    model, by_hand = tiny(kind), tiny(kind)
    layer = Structure.whole(model).layers[0]
    groups = len(layer.heads)
    kept = replace(layer, heads=(groups - 1,), neurons=(2, 63))
    out, down, dimension = READERS[kind]
    block = by_hand.base_model.get_submodule(FAMILIES[kind].layers)[1]
    with torch.no_grad():
        width = 32 // groups
        block.get_submodule(out).weight.narrow(dimension, 0, 32 - width).zero_()
        gone = torch.tensor([neuron for neuron in range(64) if neuron not in (2, 63)])
        block.get_submodule(down).weight.index_fill_(dimension, gone, 0)
    structure = replace(Structure.whole(model), layers=(layer, kept, layer, layer))
    with masked(model, structure):
        assert torch.allclose(logits(model, IDS), logits(by_hand, IDS), atol=1e-5)
    assert torch.allclose(logits(cut(model, structure, uneven=True), IDS), logits(by_hand, IDS), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_all_is_put_back_also_after_an_error(kind):
    model = tiny(kind)
    before = logits(model, IDS)
    weights = {name: (p.data_ptr(), p.clone()) for name, p in model.named_parameters()}
    structure = everything(model)

    def enter():
        with masked(model, structure):
            assert not torch.equal(logits(model, IDS), before)
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        enter()
    assert torch.equal(logits(model, IDS), before)
    for name, parameter in model.named_parameters():
        assert (parameter.data_ptr(), True) == (weights[name][0], torch.equal(parameter, weights[name][1]))
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "gpt_neox", "bert"])
def test_everything_at_once_is_what_the_cut_says(kind):
    model = tiny(kind)
    structure = replace(everything(model), merged=() if kind == "gemma3_text" else everything(model).merged)
    smaller = cut(model, structure, uneven=True)
    ids = torch.searchsorted(torch.tensor(structure.vocabulary), IDS)
    with masked(model, structure):
        wanted = logits(model, IDS)
    assert torch.allclose(logits(smaller, ids), wanted[..., list(structure.vocabulary)], atol=1e-5)


def test_words_that_are_left_out_have_no_probability_and_cannot_be_read():
    model = tiny("llama")
    structure = replace(Structure.whole(model), vocabulary=tuple(range(200)))
    whole = logits(model, texts(vocabulary=200))
    with masked(model, structure):
        found = logits(model, texts(vocabulary=200)).log_softmax(-1)
        with pytest.raises(ValueError, match=r"token (2|3)\d\d, which"):
            logits(model, torch.arange(150, 250)[None])
    assert torch.allclose(found[..., :200], whole[..., :200].log_softmax(-1), atol=1e-5)
    assert (found[..., 200:].exp() == 0).all()


@pytest.mark.parametrize("shapes", ["even", "uneven"])
def test_gradients_are_those_of_the_cut(shapes):
    model = tiny("llama")
    structure = even(model, True) if shapes == "even" else uneven(model)
    smaller = cut(model, structure, uneven=shapes == "uneven")
    with masked(model, structure):
        model(input_ids=IDS, labels=IDS).loss.backward()
    smaller(input_ids=IDS, labels=IDS).loss.backward()
    place = structure.kept.index(1)
    kept = list(structure.layers[1].neurons)
    mine, other = model.model.layers[1].mlp.up_proj.weight, smaller.model.layers[place].mlp.up_proj.weight
    assert torch.allclose(mine.grad[kept], other.grad, atol=1e-5)
    gone = [neuron for neuron in range(64) if neuron not in kept]
    assert (mine.grad[gone] == 0).all()
    wanted = smaller.get_input_embeddings().weight.grad
    assert torch.allclose(model.get_input_embeddings().weight.grad, wanted, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_model_with_adapters_is_masked_as_the_merged_one(kind):
    family = FAMILIES[kind]
    targets = [name.rpartition(".")[2] for name in (*family.projections, family.up[0])]
    model = get_peft_model(tiny(kind), LoraConfig(target_modules=targets, init_lora_weights=False)).eval()
    structure = uneven(model)
    with masked(model, structure):
        found = logits(model, IDS)
    with pytest.raises(ValueError, match="merge_and_unload"):
        cut(model, structure, uneven=True)
    with pytest.raises(ValueError, match="merge_and_unload"), masked(model, everything(model)):
        pass
    merged = model.merge_and_unload()
    with masked(merged, structure):
        assert torch.allclose(logits(merged, IDS), found, atol=1e-5)


def test_the_base_of_adapters_is_rounded():
    model = tiny("llama")
    whole = Structure.whole(model)
    structure = replace(whole, layers=tuple(replace(layer, bits=4) for layer in whole.layers))
    with masked(model, structure):
        wanted = logits(model, IDS)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "down_proj"]))  # which say nothing yet
    with masked(adapted, structure):
        assert torch.equal(logits(adapted, IDS), wanted)


def test_what_was_made_is_not_made_again():
    model = tiny("llama")
    structure = everything(model)
    structure = replace(structure, vocabulary=None)
    made = {}
    with masked(model, structure, made):
        wanted = logits(model, IDS)
    sizes, places = len(made), {tensor.data_ptr() for tensor in made.values()}
    assert sizes
    with masked(model, structure, made):
        assert torch.equal(logits(model, IDS), wanted)
    assert len(made) == sizes
    assert {tensor.data_ptr() for tensor in made.values()} == places


def test_masks_are_nested():
    """A choice within a choice: layers of one, and the neurons of the other."""
    model = tiny("llama")
    whole = Structure.whole(model)
    no_second = replace(whole, layers=(whole.layers[0], None, *whole.layers[2:]))
    few = replace(whole, layers=(replace(whole.layers[0], neurons=(1, 2)), *whole.layers[1:]))
    both = replace(whole, layers=(few.layers[0], None, *whole.layers[2:]))
    with masked(model, both):
        wanted = logits(model, IDS)
    with masked(model, no_second), masked(model, few):
        assert torch.equal(logits(model, IDS), wanted)
