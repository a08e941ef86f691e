"""Candidates on states that are kept, beside the plain way."""

import random

import pytest
import torch
from torch import nn

from rlhf_recipes.compression.candidates import Candidates
from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.importance import importance_of
from rlhf_recipes.compression.quality import Quality, accuracy, likelihood
from rlhf_recipes.compression.search.space import costs_of, space_of
from rlhf_recipes.compression.structure import Structure
from tests.compression.toys import FAMILIES, deep_model, token_batches
from tests.tiny import tiny_classifier, tiny_tokenizer

EVEN = {"heads": (1, 0.5), "neurons": (1, 0.5), "merge": True, "bits": (16, 8)}
UNEVEN = {"heads": (1, 0.5, 0), "neurons": (1, 0.5, 0), "even": False}


def structures(model, count=12, **options):
    """The whole model, and some that differ from it, and from each other, in few gates."""
    space = space_of(model, importance_of(model, "random"), costs_of(model), {"parameters": 1.0}, **options)
    generator = random.Random(0)
    for number in range(count):
        change = [number > 0 and generator.random() < 0.3 for _ in space.sizes]
        yield space.structure(
            tuple(generator.randrange(size) if c else 0 for c, size in zip(change, space.sizes, strict=True))
        )


@pytest.mark.parametrize("options", [EVEN, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("name", [*FAMILIES, "qwen3", "gpt_neox"])
def test_kept_states_change_no_quality(name, options):
    model, batches = deep_model(name), token_batches()
    candidates = Candidates(model, batches, likelihood())
    for structure in structures(model, **options):
        plain = likelihood().of(cut(model, structure, uneven=True), batches)
        assert candidates(structure) == pytest.approx(plain, rel=1e-5)  # as far as mask and cut agree
        assert candidates(structure) == pytest.approx(candidates.plain(structure), rel=1e-6)
    assert candidates.reuse
    assert candidates.spared > 0


def test_a_classifier_keeps_states_too():
    model = tiny_classifier(tiny_tokenizer("bert"), num_layers=4)
    batches = [{**batch, "input_ids": batch["input_ids"] % 200} for batch in token_batches(rows=4)]
    for batch in batches:
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    candidates = Candidates(model, batches, accuracy())
    for structure in structures(model, heads=(1,), neurons=(1, 0.5)):
        assert candidates(structure) == candidates.plain(structure)
    assert candidates.spared > 0


def runs_of(model, candidates, structure):
    """Which layers run, how often."""
    counts = [0] * 4
    hooks = []
    for number, layer in enumerate(candidates.layers):

        def count(module, args, number=number):
            counts[number] += 1

        hooks.append(layer.mlp.register_forward_pre_hook(count))
    candidates(structure)
    for hook in hooks:
        hook.remove()
    return counts


def test_a_candidate_runs_from_its_lowest_new_layer_up():
    model = deep_model("llama")
    candidates = Candidates(model, token_batches(1), likelihood())
    whole = Structure.whole(model)

    def dropped(*numbers):
        return Structure(tuple(None if n in numbers else layer for n, layer in enumerate(whole.layers)))

    assert runs_of(model, candidates, whole) == [1, 1, 1, 1]
    candidates(dropped(3))  # checked against the plain way
    assert runs_of(model, candidates, dropped(2)) == [0, 0, 0, 1]
    assert runs_of(model, candidates, dropped(1)) == [0, 0, 1, 1]
    assert runs_of(model, candidates, dropped(1, 3)) == [0, 0, 0, 0]  # layers 0 to 2 as in the one before
    assert runs_of(model, candidates, dropped(0)) == [0, 1, 1, 1]
    candidates.forget()
    assert runs_of(model, candidates, whole) == [1, 1, 1, 1]


def test_no_more_is_kept_than_there_is_room_for():
    model, batches = deep_model("llama"), token_batches()
    a_state = 2 * 2 * 9 * 32 * 4  # batches, rows, tokens, numbers, bytes
    candidates = Candidates(model, batches, likelihood(), room=5 * a_state)
    for structure in structures(model, **EVEN):
        assert candidates(structure) == pytest.approx(candidates.plain(structure), rel=1e-6)
        assert candidates.states.used <= 5 * a_state
    assert len(candidates.states.pinned) == 3  # of the whole model, between 4 layers
    assert candidates.spared > 0
    nothing = Candidates(model, batches, likelihood(), room=0)
    for structure in structures(model, 3, **EVEN):
        nothing(structure)
    assert nothing.states.used == nothing.spared == 0


class Reading(nn.Module):
    """An MLP that also reads what the first layer has left behind."""

    def __init__(self, mlp, left):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn, self.left = mlp.act_fn, left

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) + self.left["said"] * x


def test_a_model_whose_layers_read_more_than_states_is_scored_the_plain_way(caplog):
    model, left, calls = deep_model("llama"), {}, [0]

    def leave(module, args, output):
        calls[0] += 1
        left["said"] = 0.1 * calls[0]

    model.model.layers[0].mlp.register_forward_hook(leave)
    model.model.layers[3].mlp = Reading(model.model.layers[3].mlp, left)
    candidates = Candidates(model, token_batches(1), likelihood())
    whole = Structure.whole(model)
    candidates(whole)
    candidates(Structure((*whole.layers[:2], None, whole.layers[3])))
    assert "none are kept from here on" in caplog.text
    assert not candidates.reuse
    assert candidates.states.used == 0


def test_a_quality_of_several_passes_keeps_nothing():
    model = deep_model("llama")
    quality = Quality("made up", lambda model, batch: (torch.tensor(1.0), 2), one_pass=False)
    candidates = Candidates(model, token_batches(), quality)
    assert candidates(Structure.whole(model)) == 0.5
    assert candidates.states.used == 0


def test_a_single_row_is_refused():
    with pytest.raises(ValueError, match="has 1 rows"):
        Candidates(deep_model("llama"), [{"input_ids": torch.ones(1, 4, dtype=torch.long)}], likelihood())
