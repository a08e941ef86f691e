"""A LoRA that is trained while structures are searched."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.compression.candidates import Candidates
from rlhf_recipes.compression.importance import importance_of
from rlhf_recipes.compression.quality import Quality, likelihood
from rlhf_recipes.compression.search.adapting import Adapting
from rlhf_recipes.compression.search.evaluated import Ledger
from rlhf_recipes.compression.search.gates import StructurePolicy
from rlhf_recipes.compression.search.loop import Search
from rlhf_recipes.compression.search.objective import Delta, Objective
from rlhf_recipes.compression.search.space import costs_of, space_of
from tests.compression.toys import deep_model, token_batches


@pytest.fixture
def parts():
    base, batches = deep_model("llama"), token_batches()
    space = space_of(base, importance_of(base, "random"), costs_of(base), {"parameters": 1.0})
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")).eval()
    candidates = Candidates(model, batches, likelihood())
    return space, candidates, Adapting(candidates, space.structure, batches, learning_rate=1e-2)


def test_the_adapter_learns_on_structures_and_the_base_stays(parts):
    space, candidates, adapting = parts
    base = {n: p.clone() for n, p in candidates.model.named_parameters() if not p.requires_grad}
    choice = (0, 1, 0, 1, 2)
    before = candidates(space.structure(choice))
    losses = [adapting([choice] * 2)["adapter_loss"] for _ in range(15)]
    after = candidates(space.structure(choice))
    assert losses[-1] < 0.9 * losses[0]
    assert after > before
    assert after == pytest.approx(candidates.plain(space.structure(choice)), rel=1e-6)  # nothing stale was kept
    assert all(torch.equal(p, base[n]) for n, p in candidates.model.named_parameters() if n in base)


def test_it_goes_on_to_the_bit(parts):
    space, candidates, adapting = parts
    adapting([(0, 1, 0, 1, 2)])
    state = copy.deepcopy(adapting.state_dict())
    expected = adapting([(1, 0, 0, 0, 1)]), candidates(space.whole)
    adapting([(0, 0, 1, 0, 0)])
    adapting.load_state_dict(state)
    assert (adapting([(1, 0, 0, 0, 1)]), candidates(space.whole)) == expected


def test_a_search_with_weights_that_adapt(parts):
    space, candidates, adapting = parts
    ledger = Ledger(
        lambda choice: candidates(space.structure(choice)), space.cost,
        Objective(Delta("hinge", 20.0, 0.8), nonnegative=True),
    )  # fmt: skip
    rows = []
    best = Search(StructurePolicy(space.sizes), ledger, evaluations=12, budget=0.8, adapt=adapting).run(rows.append)
    assert best.cost <= 0.8
    assert all("adapter_loss" in row for row in rows[:-1])


def test_what_cannot_be_trained_is_refused(parts):
    space, candidates, _ = parts
    with pytest.raises(ValueError, match="no adapter to train"):
        Adapting(Candidates(deep_model("llama"), token_batches(), likelihood()), space.structure, [])
    silent = Quality("made up", lambda model, batch: (torch.tensor(1.0), 1))
    with pytest.raises(ValueError, match="'made up' has no loss"):
        Adapting(Candidates(candidates.model, token_batches(), silent), space.structure, [])
