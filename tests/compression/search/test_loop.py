"""The search on spaces of which every reward is known."""

import itertools
import math

import numpy as np
import pytest

from rlhf_recipes.compression.search.evaluated import Ledger
from rlhf_recipes.compression.search.gates import PolicySettings, StructurePolicy
from rlhf_recipes.compression.search.loop import Search
from rlhf_recipes.compression.search.objective import Delta, Objective

FLAT = Objective(Delta("power", 1.0), nonnegative=True)


def toy(sizes, seed, interaction=0.5):
    """Rewards of all choices: a sigmoid of main effects, and of effects of every pair of gates, half as large each."""
    generator = np.random.default_rng(seed)
    mains = [generator.normal(size=n) for n in sizes]
    pairs = {
        (i, j): interaction * generator.normal(size=(sizes[i], sizes[j])) for i in range(len(sizes)) for j in range(i)
    }
    scale = math.sqrt(len(sizes))

    def effect(choice):
        apart = sum(main[o] for main, o in zip(mains, choice, strict=True))
        return apart + sum(table[choice[i], choice[j]] for (i, j), table in pairs.items()) / scale

    return {c: 1 / (1 + math.exp(-effect(c) / 2)) for c in itertools.product(*map(range, sizes))}


def best_of_main_effects(of):
    """What one finds who takes the best option of each gate by its mean."""
    sizes = [max(column) + 1 for column in zip(*of, strict=True)]
    means = [[np.mean([r for c, r in of.items() if c[k] == o]) for o in range(n)] for k, n in enumerate(sizes)]
    return tuple(int(np.argmax(row)) for row in means)


def searched(of, seed, evaluations, **settings):
    calls = []

    def quality(choice):
        calls.append(choice)
        return of[choice]

    sizes = [max(column) + 1 for column in zip(*of, strict=True)]
    ledger = Ledger(quality, lambda choice: 1.0, FLAT)
    search = Search(StructurePolicy(sizes, PolicySettings(**settings), seed=seed), ledger, evaluations)
    return search.run(), calls


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_of_625_structures_with_a_quarter_of_them_paid(seed):
    of = toy((5, 5, 5, 5), seed)
    best, calls = searched(of, seed, evaluations=len(of) // 4)
    assert best.choice == max(of, key=of.get)
    assert len(calls) == len(set(calls)) <= len(of) // 4


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_best_of_1024_structures_of_bernoulli_gates(seed):
    of = toy((2,) * 10, seed)
    best, calls = searched(of, seed, evaluations=len(of) // 4)
    assert best.choice == max(of, key=of.get)
    assert len(calls) == len(set(calls)) <= len(of) // 4


def test_the_toys_are_not_separable():
    spaces = [toy(sizes, seed) for sizes in ((5, 5, 5, 5), (2,) * 10) for seed in range(5)]
    assert sum(best_of_main_effects(of) != max(of, key=of.get) for of in spaces) >= 5


def test_it_learns_and_does_not_only_draw():
    """With pairs as strong as single gates; a policy that learns nothing finds the best one time in four."""
    spaces = [toy((3,) * 6, seed, interaction=1.0) for seed in range(6)]

    def found(**settings):
        each = (searched(of, seed, len(of) // 4, **settings)[0].choice for seed, of in enumerate(spaces))
        return sum(choice == max(of, key=of.get) for choice, of in zip(each, spaces, strict=True))

    assert found(learning_rate=1e-9) <= 3
    assert found() >= 5


def test_what_costs_too_much_is_never_measured_and_the_best_is_within_the_budget():
    of = toy((5, 5, 5, 5), 3)
    measured = []

    def cost(choice):
        return 1 - sum(choice) / 20

    def quality(choice):
        measured.append(choice)
        return of[choice]

    ledger = Ledger(quality, cost, Objective(Delta("hinge", 20.0, 0.5), nonnegative=True))
    search = Search(StructurePolicy((5, 5, 5, 5), seed=0), ledger, evaluations=120, budget=0.5)
    best = search.run()
    within = {choice: reward for choice, reward in of.items() if cost(choice) <= 0.5}
    assert best.choice == max(within, key=within.get)
    assert best.cost <= 0.5
    assert all(cost(choice) < 0.525 + 1e-9 for choice in measured if choice != (0, 0, 0, 0))


def test_what_others_have_found_out_is_not_paid_again():
    of = toy((5, 5, 5, 5), 1)
    calls = []
    ledger = Ledger(lambda choice: calls.append(choice) or of[choice], lambda choice: 1.0, FLAT)
    ledger((1, 2, 3, 4))
    search = Search(StructurePolicy((5, 5, 5, 5)), ledger, evaluations=20, first=[(1, 2, 3, 4), (2, 2, 2, 2)])
    search.run()
    assert calls[:4] == [(1, 2, 3, 4), (0, 0, 0, 0), (4, 4, 4, 4), (2, 2, 2, 2)]
    assert len(calls) == len(set(calls)) == 20


def test_it_goes_on_to_the_bit():
    of = toy((5, 5, 5, 5), 2)

    def search(seed):
        ledger = Ledger(of.__getitem__, lambda choice: 1.0, FLAT)
        return Search(StructurePolicy((5, 5, 5, 5), seed=seed), ledger, evaluations=60)

    whole, rows = search(7), []
    whole.run(rows.append)
    first, again = search(7), []
    for _ in range(6):
        again.append(first.step())
    second = search(8)
    second.load_state_dict(first.state_dict())
    second.run(again.append)
    assert list(map(repr, again)) == list(map(repr, rows))
    assert whole.ledger.state_dict() == second.ledger.state_dict()
    assert whole.policy.logits.equal(second.policy.logits)


def test_it_ends_where_all_is_known_or_nothing_more_would_be_measured(caplog):
    of = toy((2, 2), 0)
    best, calls = searched(of, 0, evaluations=50)
    assert best.choice == max(of, key=of.get)
    assert len(calls) == 4
    # Of 4^6 structures only the smallest is below the hinge.
    ledger = Ledger(sum, lambda choice: 1 - sum(choice) / 36, Objective(Delta("hinge", 1e9, 0.5), nonnegative=True))
    search = Search(StructurePolicy((4,) * 6), ledger, evaluations=9, budget=0.5)
    assert search.run().choice == (3,) * 6
    assert "The search ends after 2 of 9 evaluations" in caplog.text


def test_weights_may_adapt_between_steps():
    of = toy((3, 3, 3), 0)
    given = []

    def adapt(choices):
        given.append(choices)
        return {"adapter_loss": 1.0}

    ledger = Ledger(of.__getitem__, lambda choice: 1.0, FLAT)
    row = Search(StructurePolicy((3, 3, 3)), ledger, evaluations=10, adapt=adapt).step()
    assert row["adapter_loss"] == 1.0
    assert len(given[0]) == 4


def never(choice):
    raise AssertionError("measured")


def a_search(quality=never, cost=lambda choice: 0.7, **options):
    return Search(StructurePolicy((2, 2)), Ledger(quality, cost, FLAT), **{"evaluations": 9, **options})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"budget": 0.5}, "the smallest structure of the space costs 0.7"),
        ({"budget": 0.0}, "greater than 0"),
        ({"evaluations": 1}, "need 2"),
        ({"first": [(0, 5)]}, "is no choice"),
    ],
)
def test_errors_come_before_anything_is_measured(options, said):
    with pytest.raises(ValueError, match=said):
        a_search(**options)


def test_a_constant_quality_is_refused_after_two_measurements():
    measured = []
    search = a_search(quality=lambda choice: measured.append(choice) or 0.25)
    with pytest.raises(ValueError, match="constant cannot guide"):
        search.run()
    assert len(measured) == 2
