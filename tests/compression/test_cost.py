"""Costs beside what torch counts in the models themselves."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from rlhf_recipes.compression.cost import cost_of, cost_table, priced
from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.families import FAMILIES
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.modeling.cost.flops import completion_flops, decode_flops, decoder_shape, prefill_flops
from tests.compression.models import DECODERS, even, texts, tiny, uneven

LENGTH = 24
WORDS = (*range(0, 400, 3),)


def counted(model, **inputs):
    """By torch, in the model itself."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = model(**inputs)
    return counter.get_total_flops(), output


def structures(model, kind):
    whole = Structure.whole(model)
    words = tuple(sorted({0, 1, 2, *WORDS}))
    return {
        "whole": (whole, False),
        "even": (even(model, FAMILIES[kind].prunes_heads), False),
        "words": (replace(whole, vocabulary=words), False),
        "uneven": (replace(uneven(model), vocabulary=words), True),
    }


KINDS = [(kind, head) for head in ("language", "classifier") for kind in FAMILIES]


@pytest.mark.parametrize(("kind", "head"), [pair for pair in KINDS if pair != ("granite", "classifier")])  # has none
def test_parameters_and_flops_are_those_of_the_cut_model(kind, head):
    model = tiny(kind, head, attn_implementation="eager")
    table = cost_table(model)
    for structure, is_uneven in structures(model, kind).values():
        cost = priced(table, structure, tokens=LENGTH)
        smaller = cut(model, structure, uneven=is_uneven)
        assert smaller.config._attn_implementation == "eager"
        assert cost.parameters == smaller.num_parameters()
        layers = smaller.base_model.get_submodule(FAMILIES[kind].layers)
        assert cost.non_embedding_parameters == sum(p.numel() for p in layers.parameters())
        ids = texts(vocabulary=100, rows=1, length=LENGTH)
        found, _ = counted(smaller, input_ids=ids)
        assert cost.prefill_flops == found


@pytest.mark.parametrize("kind", DECODERS)
def test_one_more_token_costs_what_torch_counts(kind):
    window = {"sliding_window": 8} if kind in ("gemma2", "gemma3_text", "mistral") else {}
    model = tiny(kind, attn_implementation="eager", **window)
    table = cost_table(model)
    ids = texts(vocabulary=100, rows=1, length=LENGTH)
    for structure, is_uneven in structures(model, kind).values():
        smaller = cut(model, structure, uneven=is_uneven)
        with torch.no_grad():
            cache = smaller(input_ids=ids[:, :-1], use_cache=True).past_key_values
        found, _ = counted(smaller, input_ids=ids[:, -1:], past_key_values=cache)
        assert priced(table, structure, tokens=LENGTH).decode_flops == found


@pytest.mark.parametrize("kind", DECODERS)
def test_the_shape_of_a_cut_is_that_of_its_config(kind):
    """So a reward that counts operations, given the folder of the cut model, counts the same."""
    model = tiny(kind)
    structure = even(model, FAMILIES[kind].prunes_heads)
    assert cost_table(model).shape(structure.shapes) == decoder_shape(cut(model, structure).config)


def test_the_cost_of_a_llama_by_hand():
    """32 wide, 4 query heads of 8 in 2 groups, 64 neurons, 4 layers, 400 words, an own head, no biases."""
    model = tiny("llama")
    whole = Structure.whole(model)
    one = replace(whole.layers[0], heads=(1,), neurons=tuple(range(10)), bits=4)
    structure = replace(whole, layers=(None, one, None, replace(one, bits=8)), vocabulary=tuple(range(100)))
    cost = cost_of(model, structure, tokens=6)
    attention = 32 * 16 + 2 * 32 * 8 + 16 * 32  # query, key and value, out, of one group
    mlp = 3 * 32 * 10
    assert cost.non_embedding_parameters == 2 * (attention + mlp + 2 * 32)
    assert cost.parameters == cost.non_embedding_parameters + 2 * 100 * 32 + 32
    scores = 4 * 16 * 6
    assert cost.non_embedding_decode_flops == 2 * (2 * (attention + mlp) + scores)
    assert cost.decode_flops == cost.non_embedding_decode_flops + 2 * 100 * 32
    assert cost.non_embedding_prefill_flops == 6 * cost.non_embedding_decode_flops
    assert cost.prefill_flops_per_token == cost.decode_flops
    in_4 = (attention + mlp) // 2 + 4 * (512 + 256 + 256 + 512 + 3 * 320) // 64
    in_8 = attention + mlp + 4 * (16 + 8 + 8 + 32 + 10 + 10 + 32)
    assert cost.bytes == in_4 + in_8 + 2 * (2 * 2 * 32 + 2 * 100 * 32 + 32)


def test_a_completion_is_its_prompt_and_its_tokens():
    model = tiny("llama")
    shape = cost_table(model).shape(Structure.whole(model).shapes)
    one_by_one = sum(decode_flops(shape, 5 + i) for i in range(1, 4))
    prompt = prefill_flops(replace(shape, head_weights=0), 5) + 2 * shape.head_weights
    assert completion_flops(shape, 5, 4) == prompt + one_by_one


def test_what_a_pass_must_have():
    shape = cost_table(tiny("llama")).shape([None] * 4)
    with pytest.raises(ValueError, match="tokens is 0"):
        prefill_flops(shape, 0)
    with pytest.raises(ValueError, match="context is 0"):
        decode_flops(shape, 0)


def test_adapters_are_not_counted():
    from peft import LoraConfig, get_peft_model

    with pytest.raises(ValueError, match="adapters"):
        cost_table(get_peft_model(tiny("llama"), LoraConfig(target_modules=["q_proj"])))
