import json
from dataclasses import replace

import pytest
import torch

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.structure import Layer, Merge, Structure, evened, is_even
from tests.compression.models import even, logits, texts, tiny, uneven

IDS = texts()


def merged(model, merge):
    whole = Structure.whole(model)
    gone = merge.layers[1:]
    layers = tuple(None if number in gone else layer for number, layer in enumerate(whole.layers))
    return replace(whole, layers=layers, merged=(merge,))


def test_the_whole_of_a_model():
    whole = Structure.whole(tiny("qwen2"))
    assert whole == Structure((Layer((0, 1), tuple(range(64))),) * 4)
    assert whole.kept == (0, 1, 2, 3)
    assert Structure.whole(tiny("gpt2")).layers[0].heads == (0, 1, 2, 3)


def test_a_structure_goes_through_json():
    model = tiny("llama")
    structure = replace(
        merged(model, Merge.collapse((1, 2))), vocabulary=(0, 1, 7), layers=(None, Layer((), (3,), 4), None, None)
    )
    again = Structure.from_dict(json.loads(json.dumps(structure.to_dict())))
    assert again == structure
    assert hash(again) == hash(structure)
    with pytest.raises(ValueError, match="'layers'"):
        Structure.from_dict({"layer": []})


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_merged_layer_has_the_sum_of_the_weights(kind):
    """Against a model whose layers were changed by hand."""
    model, by_hand = tiny(kind), tiny(kind)
    structure = merged(model, Merge((1, 2), (0.25, 0.75)))
    stack = by_hand.base_model.get_submodule({"llama": "layers", "gpt2": "h", "bert": "encoder.layer"}[kind])
    one, two = stack[1].state_dict(), stack[2].state_dict()
    stack[1].load_state_dict({name: 0.25 * one[name] + 0.75 * two[name] for name in one})
    del stack[2]
    by_hand.config.num_hidden_layers = 3
    wanted = logits(by_hand, IDS, **({} if kind == "bert" else {"use_cache": False}))
    with masked(model, structure):
        assert torch.allclose(logits(model, IDS), wanted, atol=1e-5)
    assert torch.allclose(logits(cut(model, structure), IDS), wanted, atol=1e-5)


def test_two_layers_collapse_to_the_second_and_three_to_the_sum_of_differences():
    assert Merge.collapse((1, 2)).weights == (0, 1)
    assert Merge.collapse((1, 2, 3)).weights == (-1, 1, 1)
    assert Merge.average((1, 2, 3, 4)).weights == (0.25,) * 4


KEPT = Layer((0,), (0,))
BAD = [
    ({"layers": (KEPT,) * 3}, "of 3 layers, and the model has 4"),
    ({"layers": (None,) * 4}, "keeps nothing"),
    ({"layers": (Layer((), ()), None, None, None)}, "keeps nothing"),
    (
        {"layers": (KEPT, KEPT, Layer((0, 2), (0,)), KEPT)},
        "heads of layer 2 have index 2; .* 2 key-value heads, 0 to 1",
    ),
    ({"layers": (Layer((0,), (-1,)), None, None, None)}, "neurons of layer 0 have index -1"),
    ({"layers": (Layer((0, 0), (1,)), None, None, None)}, "heads of layer 0 have index 0 twice"),
    ({"layers": (Layer((0,), (5, 1, 5)), None, None, None)}, "index 5 twice"),
    ({"layers": (Layer((0,), (1,), 3), None, None, None)}, "3 bits; 16, 8 or 4"),
    ({"vocabulary": ()}, "one at least"),
    ({"vocabulary": (2, 1)}, "ascending"),
    ({"vocabulary": (0, 400)}, "index 400; the model has 400 embeddings"),
    ({"merged": (Merge((0, 2), (0.5, 0.5)),)}, "one after the other"),
    ({"merged": (Merge((0,), (1.0,)),)}, "two or more"),
    ({"merged": (Merge((), ()),)}, "two or more"),
    ({"merged": (Merge((3, 4), (0.5, 0.5)),)}, "index 4"),
    ({"merged": (Merge((0, 1), (1.0,)),)}, "2 layers .* 1 weights"),
    ({"merged": (Merge((0, 1), (0.5, 0.5)),)}, "others must be None"),
    ({"layers": (KEPT, None, None, KEPT), "merged": (Merge((0, 1), (1, 0)), Merge((1, 2), (1, 0)))}, "merged twice"),
    ({"layers": (None, None, KEPT, KEPT), "merged": (Merge((0, 1), (1, 0)),)}, "the first says what is kept"),
]


@pytest.mark.parametrize(("changes", "message"), BAD)
def test_a_structure_of_no_model_is_refused_before_any_work(changes, message):
    model = tiny("llama")
    structure = replace(Structure.whole(model), **changes)
    with pytest.raises(ValueError, match=message):
        cut(model, structure, uneven=True)
    with pytest.raises(ValueError, match=message), masked(model, structure):
        pass


def test_layers_that_attend_differently_are_not_merged():
    model = tiny("gemma2", layer_types=["sliding_attention", "full_attention"] * 2)
    with pytest.raises(ValueError, match="attend differently"):
        cut(model, merged(model, Merge.average((1, 2))))


# ---- even shapes


def test_the_nearest_even_structure():
    model = tiny("llama")
    near = evened(uneven(model), model)
    assert is_even(near)
    assert not is_even(uneven(model))
    # Heads 0, 1 and 2, on average 1; neurons 64, 3 and 0, on average 22.
    assert near.layers[0] == Layer((0,), tuple(range(22)))
    assert near.layers[1] == Layer((1,), (*range(21), 40))  # its own three, and the first
    assert near.layers[2] == Layer((0,), tuple(range(22)))
    assert near.layers[3] is None
    cut(model, near)


def test_importance_says_which_units_go_and_come():
    model = tiny("llama")
    whole = Structure.whole(model)
    structure = replace(whole, layers=(Layer((0, 1), (1, 2, 3)), Layer((), (4,)), Layer((), ()), None))
    importance = [((1.0, 2.0), [float(neuron) for neuron in range(64)])] * 4
    near = evened(structure, model, heads=1, neurons=2, importance=importance)
    assert near.layers == (Layer((1,), (2, 3)), Layer((1,), (4, 63)), None, None)


def test_where_heads_cannot_be_fewer_all_come_back():
    model = tiny("bert")
    near = evened(uneven(model), model, neurons=5)
    assert near.shapes == [(4, 5, 16)] * 3 + [None]
    cut(model, near)
    for heads, neurons in ((3, 65), (5, 2)):
        with pytest.raises(ValueError, match="4 and 64"):
            evened(uneven(model), model, heads=heads, neurons=neurons)


def test_what_is_even_stays():
    model = tiny("llama")
    assert evened(even(model, True), model) == even(model, True)
