"""Baselines beside brute force."""

import itertools
import math

import numpy as np
import pytest

from rlhf_recipes.compression.importance import importance_of
from rlhf_recipes.compression.search.evaluated import Ledger
from rlhf_recipes.compression.search.objective import Delta, Objective
from rlhf_recipes.compression.search.solvers import (
    block_scores,
    even_choice,
    greedy_choice,
    integer_choice,
    knapsack,
    prior_around,
    random_choice,
    similarity_choice,
)
from rlhf_recipes.compression.search.space import costs_of, space_of
from tests.compression.toys import deep_model

FLAT = Objective(Delta("power", 1.0), nonnegative=True)


@pytest.fixture(scope="module")
def model():
    return deep_model("llama", layers=6)


def a_space(model, **options):
    weights = {"non_embedding_prefill_flops": 1.0}
    options = {"heads": (1, 0.5), "neurons": (1, 0.75, 0.5), **options}
    return space_of(model, importance_of(model, "random"), costs_of(model), weights, **options)


def everything(space):
    return itertools.product(*map(range, space.sizes))


@pytest.mark.parametrize("seed", range(5))
def test_knapsack_is_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    sizes = [2, 4, 3, 2, 5]
    values = [generator.normal(size=n) for n in sizes]
    costs = [generator.uniform(size=n) for n in sizes]

    def total(table, choice):
        return sum(row[o] for row, o in zip(table, choice, strict=True))

    for budget in (1.0, 2.0, 3.0):
        within = [c for c in itertools.product(*map(range, sizes)) if total(costs, c) <= budget]
        expected = max(within, key=lambda c: total(values, c), default=None)
        assert knapsack(values, costs, budget) == expected
    assert knapsack(values, costs, -0.1) is None


@pytest.mark.parametrize("even", [True, False])
def test_integer_programming_is_the_best_of_all_structures(model, even):
    options = {"kept_layers": (0,)} if even else {"kept_layers": (0, 1, 2), "heads": (1,), "neurons": (1, 0.5)}
    space = a_space(model, even=even, **options)
    generator = np.random.default_rng(3)
    scores = [[0.0, *-np.cumsum(generator.uniform(size=n - 1))] for n in space.sizes]
    for budget in (0.9, 0.7, 0.45):
        within = [c for c in everything(space) if space.cost(c) <= budget * (1 + 1e-9)]
        expected = max(sum(s[o] for s, o in zip(scores, c, strict=True)) for c in within)
        found = integer_choice(space, budget, scores)
        assert space.cost(found) <= budget * (1 + 1e-9)
        assert sum(s[o] for s, o in zip(scores, found, strict=True)) == pytest.approx(expected)


def test_block_scores_are_logs_of_ratios_and_pay_each_option_once(model):
    space = a_space(model)
    calls = []

    def quality(choice):
        calls.append(choice)
        return math.exp(-sum((k + 1) * o for k, o in enumerate(choice)) / 10)

    scores = block_scores(space, Ledger(quality, space.cost, FLAT))
    expected = [[-(k + 1) * o / 10 for o in range(n)] for k, n in enumerate(space.sizes)]
    for row, by_hand in zip(scores, expected, strict=True):
        assert row == pytest.approx(by_hand)
    assert len(calls) == len(set(calls)) == 1 + sum(n - 1 for n in space.sizes)


def test_similarity_drops_the_layers_of_least_influence(model):
    space = a_space(model)
    influence = [0.0, 0.5, 0.1, 0.4, 0.2, 0.9]  # the first is never dropped
    assert [g.layer for g in space.gates[:5]] == [1, 2, 3, 4, 5]
    assert similarity_choice(space, 1.0, influence) == (0, 0, 0, 0, 0, 0, 0)
    assert similarity_choice(space, 0.7, influence) == (0, 1, 0, 1, 0, 0, 0)
    with pytest.raises(ValueError, match="smallest structure of the space costs 0.16"):
        similarity_choice(space, 0.1, influence)


def test_even_and_random_choices_just_hold_the_budget(model):
    for space in (a_space(model), a_space(model, even=False)):
        for budget in (1.0, 0.8, 0.5, 0.3):
            found = [even_choice(space, budget), *(random_choice(space, budget, seed) for seed in range(3))]
            assert all(space.cost(choice) <= budget for choice in found)
        assert random_choice(space, 0.5, 1) == random_choice(space, 0.5, 1)
        assert len({random_choice(space, 0.5, seed) for seed in range(5)}) > 1
    # Heads keep a half, then neurons go: to three quarters, to a half; only then layers, from above.
    assert even_choice(a_space(model), 0.8)[:5] == (0,) * 5
    assert even_choice(a_space(model), 0.45) == (0, 0, 0, 0, 1, 1, 2)


def test_greedy_takes_the_step_that_costs_least_quality_for_what_it_saves(model):
    space = a_space(model)
    harm = [0.9, 0.2, 0.8, 0.1, 0.7, 3.0, 3.0]
    calls = []

    def quality(choice):
        calls.append(choice)
        return math.exp(-sum(h * o for h, o in zip(harm, choice, strict=True)))

    ledger = Ledger(quality, space.cost, FLAT)
    assert greedy_choice(space, 0.7, ledger, evaluations=100) == (0, 1, 0, 1, 0, 0, 0)
    assert len(calls) == 1 + 7 + 6  # the whole, each gate, and each gate behind the first step
    few = Ledger(quality, space.cost, FLAT)
    assert greedy_choice(space, 0.7, few, evaluations=8) == (0, 1, 0, 1, 0, 0, 0)
    assert few.paid == 8


def test_a_budget_out_of_reach_is_refused_by_all(model):
    space, ledger = a_space(model), Ledger(lambda choice: pytest.fail("measured"), lambda choice: 1.0, FLAT)
    for solve in (random_choice, even_choice, lambda s, b: integer_choice(s, b, [[0.0] * n for n in s.sizes]),
                  lambda s, b: greedy_choice(s, b, ledger, 5)):  # fmt: skip
        with pytest.raises(ValueError, match="smallest structure of the space costs"):
            solve(space, 0.01)


def test_a_prior_around_a_choice_changes_as_many_gates_as_asked():
    prior = prior_around((2, 4, 1, 3), (1, 0, 0, 2), changes=1.5)
    assert prior == [[0.5, 0.5], [0.5, *[pytest.approx(1 / 6)] * 3], [1.0], [0.25, 0.25, 0.5]]
    with pytest.raises(ValueError, match="less than 3"):
        prior_around((2, 4, 1, 3), (0, 0, 0, 0), changes=3)
