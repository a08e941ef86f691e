"""From choices to structures, and what they cost, beside models that are really cut."""

import random

import pytest

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.importance import Importance, importance_of
from rlhf_recipes.compression.search.space import DROP, KEEP, MERGE, Gate, costs_of, space_of
from rlhf_recipes.compression.structure import Layer, Merge, Structure, check_structure, is_even
from tests.compression.toys import FAMILIES, deep_model

PARAMETERS = {"parameters": 1.0}


def a_space(name="llama", **options):
    model = deep_model(name)
    return model, space_of(model, importance_of(model, "magnitude"), costs_of(model), PARAMETERS, **options)


def choices(space, count=12):
    generator = random.Random(0)
    return [tuple(generator.randrange(size) for size in space.sizes) for _ in range(count)]


def test_gates_of_even_shapes():
    _, space = a_space(heads=(1, 0.5), neurons=(1, 0.5, 0.1))
    assert space.gates == (
        *(Gate("layer", number, (KEEP, DROP)) for number in (1, 2, 3)),
        Gate("heads", None, (2, 1)),
        Gate("neurons", None, (64, 32, 8)),
    )
    assert space.described((0, 1, 0, 1, 2)) == {"layer.1": 1, "layer.2": 0, "layer.3": 1, "heads": 1, "neurons": 8}


def test_the_most_important_units_are_kept():
    model = deep_model("llama")
    scores = Importance(((0.1, 0.2),) * 3 + ((0.5, 0.4),), (tuple(float((7 * n) % 64) for n in range(64)),) * 4)
    space = space_of(model, scores, costs_of(model), PARAMETERS, heads=(1, 0.5), neurons=(1, 0.125))
    structure = space.structure((0, 1, 0, 1, 1))
    best = tuple(sorted(range(64), key=lambda n: -((7 * n) % 64))[:8])
    kept = Layer((1,), tuple(sorted(best)))
    assert structure == Structure((kept, kept, None, Layer((0,), kept.neurons)))


def test_layers_are_merged_into_the_one_below_if_that_is_kept():
    _, space = a_space(merge=True, heads=(1,), neurons=(1,), kept_layers=(3,))
    assert [gate.options for gate in space.gates] == [(KEEP, DROP), (KEEP, MERGE, DROP), (KEEP, MERGE, DROP)]
    whole = space.whole.layers[0]
    assert space.structure((0, 1, 1)) == Structure((whole, None, None, whole), (Merge.collapse((0, 1, 2)),))
    assert space.structure((0, 2, 1)) == Structure((whole, None, None, whole))
    assert space.structure((1, 1, 0)) == Structure((None, None, whole, whole))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_choice_of_an_even_space_is_a_model_that_saves_and_costs_what_it_says(name):
    model, space = a_space(name, merge=True)
    for choice in choices(space):
        structure = space.structure(choice)
        small = cut(model, structure)
        assert is_even(structure)
        expected = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
        assert space.cost(choice) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_choice_of_an_uneven_space_is_a_structure_that_costs_what_it_says(name):
    model, space = a_space(name, even=False, heads=(1, 0.5, 0), neurons=(1, 0.25, 0), bits=(16, 8))
    for choice in choices(space):
        structure = space.structure(choice)
        check_structure(structure, parts_of(model))
        small = cut(model, structure, uneven=True)
        expected = sum(p.numel() for p in small.parameters()) / sum(p.numel() for p in model.parameters())
        assert space.cost(choice) == pytest.approx(expected, rel=1e-12)


def test_costs_are_weighed():
    model = deep_model("llama")
    weights = {"bytes": 1.0, "non_embedding_prefill_flops": 3.0}
    space = space_of(model, importance_of(model, "random"), costs_of(model), weights, bits=(16, 4))
    choice = tuple(size - 1 for size in space.sizes)
    costs, whole = space.costs(space.structure(choice)), space.costs(space.whole)
    shares = [costs[name] / whole[name] for name in weights]
    assert space.cost(choice) == pytest.approx((shares[0] + 3 * shares[1]) / 4)
    assert space.cost((0,) * len(space.sizes)) == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kept_layers": ()}, "one or more of the layers 0 to 3"),
        ({"kept_layers": (4,)}, "one or more of the layers 0 to 3"),
        ({"bits": (8, 4)}, "begins with 16"),
        ({"bits": (16, 12)}, "begins with 16"),
        ({"heads": (0.5, 1)}, "begin with 1 and fall"),
        ({"neurons": (1, 0)}, "may be 0 where layers may"),
        ({"drop": False, "heads": (1,), "neurons": (1,)}, "nothing to decide"),
    ],
)
def test_errors_say_what_is_wrong(options, said):
    with pytest.raises(ValueError, match=said):
        a_space(**options)


def test_costs_that_are_all_zero_are_refused():
    model = deep_model("llama")
    with pytest.raises(ValueError, match="leave this cost out"):
        space_of(model, importance_of(model, "random"), lambda structure: {"seconds": 0.0}, {"seconds": 1.0})
