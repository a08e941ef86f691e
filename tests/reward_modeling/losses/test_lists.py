"""Lists: rankings, the best, the best and the worst, against numbers worked by hand or by enumeration."""

import itertools
import math

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.lists import best_worst, info_nce, plackett_luce
from rlhf_recipes.reward_modeling.losses.pairs import bradley_terry
from tests.reward_modeling.losses.batches import NAN, batch_of, drawn, log_sigmoid, softplus, t

RANKS = torch.tensor([[1, 2, 2, 4], [3, 1, 4, 2], [2, 2, 2, 1]])
BEST, WORST = torch.tensor([0, 1, 3]), torch.tensor([3, 2, 1])
LISTS = {
    "ties": lambda s, m=None, ranks=RANKS, best=BEST, worst=WORST: plackett_luce(s, ranks, m),
    "top": lambda s, m=None, ranks=RANKS, best=BEST, worst=WORST: plackett_luce(s, ranks, m, top=2),
    "info_nce": lambda s, m=None, ranks=RANKS, best=BEST, worst=WORST: info_nce(s, best, m, temperature=0.7),
    "maxdiff": lambda s, m=None, ranks=RANKS, best=BEST, worst=WORST: best_worst(s, best, worst, m),
}


def ranking_probability(scores, order):
    """Choosing one after the other, each time from those left, as Luce has it."""
    probability, left = 1.0, list(order)
    for item in order:
        probability *= math.exp(scores[item]) / sum(math.exp(scores[other]) for other in left)
        left.remove(item)
    return probability


# --- Rankings ------------------------------------------------------------------------------------


def test_a_ranking_by_hand():
    # Weights 2, 3, 5: first the third (5/10), then the first (2/5), then what is left.
    scores = t([math.log(2), math.log(3), math.log(5)])
    loss = plackett_luce(scores, torch.tensor([[2, 3, 1]]))
    assert loss.item() == pytest.approx(-math.log(5 / 10 * 2 / 5))
    assert plackett_luce(scores, torch.tensor([[20.0, 30.5, -1.0]])).item() == loss.item()  # their order alone


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_the_probabilities_of_all_orders_sum_to_1(size):
    scores = drawn(1, size, seed=size)
    orders = list(itertools.permutations(range(size)))
    ranks = torch.tensor(orders).argsort(dim=1)
    probabilities = (-plackett_luce(scores.expand(len(orders), -1), ranks)).exp()
    assert probabilities.sum().item() == pytest.approx(1.0)
    assert probabilities.tolist() == pytest.approx([ranking_probability(scores[0].tolist(), o) for o in orders])


def test_two_completions_are_bradley_terry():
    scores = drawn(5, 2)
    expected = bradley_terry(scores[:, 0], scores[:, 1])
    torch.testing.assert_close(plackett_luce(scores, torch.tensor([[1, 2]] * 5)), expected)
    torch.testing.assert_close(info_nce(scores, torch.zeros(5).long()), expected)


@pytest.mark.parametrize("top", [1, 2, 3])
def test_the_best_few_are_the_sum_over_all_orders_of_the_others(top):
    scores = drawn(1, 4, seed=3)
    first = (2, 0, 3, 1)[:top]
    full = [order for order in itertools.permutations(range(4)) if order[:top] == first]
    expected = sum(ranking_probability(scores[0].tolist(), order) for order in full)
    ranks = torch.full((1, 4), 9)
    for place, item in enumerate(first):
        ranks[0, item] = place
    for given in (top, torch.tensor([top])):
        assert plackett_luce(scores, ranks, top=given).item() == pytest.approx(-math.log(expected))


@pytest.mark.parametrize("scores", [(0.0, 0.0, 0.0), (1.0, 1.0, -0.5), (0.4, 0.1, -1.0), (0.2, -0.1, 0.3)])
def test_ties_are_near_the_mean_over_their_orders(scores):
    """Items 0 and 1 are tied before item 2: exactly that mean where their scores are equal."""
    a, b, c = (math.exp(score) for score in scores)
    efron = a * b / ((a + b + c) * ((a + b) / 2 + c))
    assert plackett_luce(t(scores), torch.tensor([[1, 1, 2]])).item() == pytest.approx(-math.log(efron))
    mean = (ranking_probability(scores, (0, 1, 2)) + ranking_probability(scores, (1, 0, 2))) / 2
    assert efron == pytest.approx(mean, abs=1e-12 if scores[0] == scores[1] else 0.02)


def test_four_with_a_tie_of_three():
    # Weights 2 first, then 3, 3, 4 tied: 2/12 * 3/10 * 3/(10 * 2/3) * 4/(10 * 1/3).
    scores = t([math.log(3), math.log(2), math.log(4), math.log(3)])
    loss = plackett_luce(scores, torch.tensor([[2, 1, 2, 2]]))
    assert loss.item() == pytest.approx(-math.log(2 / 12 * 3 / 10 * 3 / (10 * 2 / 3) * 4 / (10 / 3)))


def test_a_tie_costs_least_where_its_scores_are_equal():
    ranks = torch.ones(1, 3).long()
    equal = plackett_luce(t([2.0, 2.0, 2.0]), ranks)
    assert equal.item() == pytest.approx(math.log(6))  # log g!
    for seed in range(5):
        assert plackett_luce(drawn(1, 3, seed=seed), ranks) > equal


def test_a_tie_across_the_boundary_counts_whole():
    scores, ranks = drawn(1, 4), torch.tensor([[1, 2, 2, 5]])
    whole = plackett_luce(scores, ranks, top=3)
    assert plackett_luce(scores, ranks, top=2).item() == whole.item()
    assert plackett_luce(scores, ranks, top=1).item() < whole.item()


# --- One best of many; best and worst ---------------------------------------------------------------


def test_info_nce_by_hand():
    scores = t([math.log(2), math.log(3), math.log(5)])
    assert info_nce(scores, torch.tensor([1])).item() == pytest.approx(-math.log(3 / 10))
    # At temperature 1/2 the weights are squared: 4, 9, 25.
    assert info_nce(scores, torch.tensor([1]), temperature=0.5).item() == pytest.approx(-math.log(9 / 38))
    first = plackett_luce(scores, torch.tensor([[2, 1, 3]]), top=1)
    torch.testing.assert_close(info_nce(scores, torch.tensor([1])), first)


def test_best_and_worst_by_hand():
    # Weights 1, 2, 4. Ratios best / worst: 1/2, 1/4, 2, 1/2, 4, 2 sum to 9.25.
    scores = t([0.0, math.log(2), math.log(4)])
    loss = best_worst(scores, torch.tensor([2]), torch.tensor([0]))
    assert loss.item() == pytest.approx(-math.log(4 / 9.25))
    # Of two completions it is twice as sure as Bradley-Terry.
    loss = best_worst(t([0.3, -0.4]), torch.tensor([0]), torch.tensor([1]))
    assert loss.item() == pytest.approx(-log_sigmoid(2 * 0.7))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_the_probabilities_of_all_best_and_worst_sum_to_1(size):
    pairs = torch.tensor(list(itertools.permutations(range(size), 2)))
    losses = best_worst(drawn(1, size).expand(len(pairs), -1), pairs[:, 0], pairs[:, 1])
    assert (-losses).exp().sum().item() == pytest.approx(1.0)
    equal = best_worst(torch.ones(1, size), pairs[:1, 0], pairs[:1, 1])
    assert equal.item() == pytest.approx(math.log(size * (size - 1)))


# --- What holds for all --------------------------------------------------------------------------


def test_differences_of_large_scores_keep_their_digits():
    # In float32 1e4 has a spacing of 1e-3: log(exp(1e4) + exp(1e4)) - 1e4 would not give log 2 to six digits.
    scores = torch.tensor([[1e4, 1e4, -1e4]])
    assert plackett_luce(scores, torch.tensor([[1, 2, 3]])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert info_nce(scores, torch.tensor([0])).item() == pytest.approx(math.log(2), abs=1e-6)
    assert best_worst(scores, torch.tensor([0]), torch.tensor([2])).item() == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.parametrize("name", LISTS)
def test_comparisons_do_not_change_when_all_scores_rise(name):
    scores = drawn(3, 4)
    torch.testing.assert_close(LISTS[name](scores + t(3.0, -2.0, 70.0)[:, None]), LISTS[name](scores))


@pytest.mark.parametrize("name", LISTS)
def test_padding_changes_nothing(name):
    """Every row loses one completion that it is not about: by a mask over it, or by not being there."""
    drop = torch.tensor([2, 0, 2])
    mask = torch.ones(3, 4).scatter(1, drop[:, None], 0)
    full = drawn(3, 4)
    scores = torch.where(mask.bool(), full, NAN).requires_grad_()
    padded = LISTS[name](scores, mask)
    padded.sum().backward()
    for row in range(3):
        keep = [column for column in range(4) if column != drop[row]]
        best, worst = (torch.tensor([keep.index(index[row].item())]) for index in (BEST, WORST))
        short = full[row : row + 1, keep].clone().requires_grad_()
        alone = LISTS[name](short, None, RANKS[row : row + 1, keep], best, worst)
        alone.sum().backward()
        torch.testing.assert_close(padded[row], alone[0])
        torch.testing.assert_close(scores.grad[row, keep], short.grad[0])
        assert scores.grad[row, drop[row]] == 0


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_one_gives_0(name):
    scores = drawn(3, 4).requires_grad_()
    rows = LISTS[name](scores, torch.tensor([[1, 1, 1, 1], [0, 1, 0, 0], [0, 0, 0, 0]]))
    assert rows[1:].tolist() == [0.0, 0.0]
    rows.sum().backward()
    assert scores.grad.isfinite().all()
    assert scores.grad[1:].abs().sum() == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plackett_luce(torch.zeros(3), torch.zeros(3)), "a list for each row"),
        (lambda: plackett_luce(torch.zeros(3, 4), torch.zeros(3, 2)), "ranks"),
        (lambda: plackett_luce(torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(2, 4)), "mask"),
    ],
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- Of rows -------------------------------------------------------------------------------------


def test_rankings_weigh_rows_and_leave_out_lists_of_one():
    rows = Dataset.from_dict({"completions": [["a", "b"], ["c"]], "ranks": [[2.0, 1.0], [1.0]], "weight": [2.0, 5.0]})
    objective = make_objective("plackett_luce")
    assert objective.weighed_targets(rows) == {"ranks": [[2.0, 1.0], [1.0]], "size": [2.0, 1.0], "weight": [2.0, 5.0]}
    targets = {"ranks": [[2.0, 1.0], [1.0, NAN]], "size": [2.0, 1.0], "weight": [2.0, 5.0]}
    batch = batch_of([1.0, 0.0, 7.0], targets, sizes=[2, 1])
    assert objective.total(batch).item() == pytest.approx(2 * softplus(1.0), abs=1e-6)
    assert objective.count(batch.targets).item() == 2.0
    assert [x.item() for x in objective.right(batch)] == [1, 2]


@pytest.mark.parametrize("loss", ["info_nce", "best_worst"])
def test_the_best_of_a_list(loss):
    objective = make_objective(loss)
    rows = Dataset.from_dict({"completions": [["a", "b", "c"]], "best": [2], "worst": [0]})
    batch = batch_of([0.0, 0.0, math.log(2.0)], objective.targets(rows), sizes=[3])
    # Weights 1, 1, 2: 2 of 4; and of the ratios 1, 1/2, 1, 1/2, 2, 2 the fifth.
    assert objective.total(batch).item() == pytest.approx(math.log(2 if loss == "info_nce" else 7 / 2), abs=1e-6)
    assert objective.count(batch.targets).item() == 1.0
    assert [x.item() for x in objective.right(batch)] == [1, 1]


def test_the_best_of_a_ranking_is_its_first():
    objective = make_objective("info_nce", {"temperature": 0.5})
    batch = batch_of([0.0, 1.0], {"ranks": [[1.0, 2.0]], "size": [2.0]}, sizes=[2])
    assert objective.total(batch).item() == pytest.approx(softplus(2.0), abs=1e-6)


def test_several_texts_that_share_the_first_rank_are_each_the_best_as_often():
    objective = make_objective("info_nce", {"temperature": 0.5})
    batch = batch_of([0.0, 1.0, 0.0], {"ranks": [[1.0, 1.0, 2.0]], "size": [3.0]}, sizes=[3])
    # log(e^0 + e^2 + e^0) less the mean of 0 and 2.
    assert objective.total(batch).item() == pytest.approx(math.log(2 + math.exp(2.0)) - 1.0, abs=1e-6)
