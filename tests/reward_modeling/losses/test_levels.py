"""Levels: the probability of each, against numbers worked by hand."""

import itertools
import math

import pytest
import torch
from datasets import Dataset
from torch.autograd import gradcheck

from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.levels import CumulativeLink
from tests.reward_modeling.losses.batches import batch_of, drawn, sigmoid, t


def with_thresholds(*thetas):
    link = CumulativeLink(len(thetas) + 1).double()
    gaps = [math.log(math.expm1(high - low)) for low, high in itertools.pairwise(thetas)]
    with torch.no_grad():
        link.raw.copy_(t(thetas[0], *gaps))
    return link


def test_cumulative_link_by_hand():
    # P(y <= 0) = sigma(-1 - 0.5), P(y <= 1) = sigma(2 - 0.5).
    link = with_thresholds(-1.0, 2.0)
    low, middle = sigmoid(-1.5), sigmoid(1.5)
    assert link.thresholds().tolist() == pytest.approx([-1.0, 2.0])
    assert link(t(0.5)).exp()[0].tolist() == pytest.approx([low, middle - low, 1 - middle])


@pytest.mark.parametrize("levels", [2, 3, 5, 10])
def test_probabilities_of_levels(levels):
    link = CumulativeLink(levels)
    assert link(torch.zeros(1)).exp()[0].tolist() == pytest.approx([1 / levels] * levels, abs=1e-6)
    probabilities = link(torch.linspace(-8, 8, 33)).exp()
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(33))
    assert (link.thresholds().diff() > 0).all()
    # A better text is less likely at or below any level but the last.
    assert (probabilities.cumsum(dim=1)[:, :-1].diff(dim=0) < 0).all()


def test_two_levels_are_binary_cross_entropy():
    scores, labels = drawn(6).float(), torch.tensor([0, 1, 1, 0, 1, 0])
    expected = torch.nn.functional.binary_cross_entropy_with_logits(scores, labels.float(), reduction="none")
    torch.testing.assert_close(-CumulativeLink(2)(scores)[torch.arange(6), labels], expected)


def test_thresholds_stay_in_order_and_finite_wherever_they_are_pushed():
    link = CumulativeLink(4)
    with torch.no_grad():
        link.raw.copy_(torch.tensor([5.0, -1e4, 1e4]))
    (-link(torch.tensor([1e4, 1e4, -1e4, -1e4])).diagonal()).sum().backward()
    assert link.thresholds().diff().ge(0).all()
    assert link.raw.grad.isfinite().all()


def test_gradients_of_thresholds():
    link = CumulativeLink(4).double()
    raw = link.raw.detach().clone().requires_grad_()
    assert gradcheck(lambda raw: torch.func.functional_call(link, {"raw": raw}, (drawn(3),)), (raw,))


def test_thresholds_are_learned():
    # Levels 0, 1, 2 with shares 0.6, 0.3, 0.1 and one score for all texts: the best thresholds say these shares.
    objective = make_objective("ordinal")
    objective.fit(Dataset.from_dict({"completion": list("abc"), "score": [0.0, 1.0, 2.0]}))
    optimizer = torch.optim.LBFGS(objective.parameters().parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = objective.total(batch_of([0.0], {"shares": [[0.6, 0.3, 0.1]]}))
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective.link(torch.zeros(1)).exp()[0].tolist() == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    # The expected level is that of the calibration.
    assert objective.calibration()(0.0) == pytest.approx(0.3 + 2 * 0.1, abs=1e-3)


def test_levels_are_those_of_the_votes():
    rows = Dataset.from_dict({"completion": list("ab"), "score": [1.5, 3.0], "votes": [[1, 1, 2, 2], [3, 3, 3, 1]]})
    objective = make_objective("classification")
    objective.fit(rows)
    assert objective.label_names == ("1", "2", "3")
    targets = objective.targets(rows)
    assert targets["shares"] == [[0.5, 0.5, 0.0], [0.25, 0.0, 0.75]]
    batch = batch_of([[0.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0)]], targets)
    second = 0.25 * math.log(4.0) + 0.75 * math.log(2.0)  # probabilities 1/4 1/4 1/2
    assert objective.total(batch).item() == pytest.approx(math.log(3.0) + second, abs=1e-6)
    assert objective.count(batch.targets).item() == 2.0
    assert objective.expected(batch, torch.tensor([1.0, 2.0, 3.0])).tolist() == pytest.approx([2.0, 2.25])


@pytest.mark.parametrize("loss", ["ordinal", "classification"])
def test_a_row_without_votes_does_not_count(loss):
    objective = make_objective(loss, {"levels": [1.0, 2.0]})
    rows = Dataset.from_dict({"completion": list("ab"), "score": [1.0, 2.0], "votes": [[1.0], [None]]})
    objective.fit(rows)
    batch = batch_of([[0.0] * len(objective.label_names)] * 2, objective.targets(rows))
    assert objective.total(batch).item() == pytest.approx(math.log(2))
    assert objective.count(batch.targets).item() == 1.0


def test_a_vote_that_is_missing_is_left_out():
    objective = make_objective("ordinal")
    rows = Dataset.from_dict({"completion": list("ab"), "score": [1.0, 2.0], "votes": [[1.0, None], [2.0, 2.0]]})
    objective.fit(rows)
    assert objective.levels == [1.0, 2.0]
    assert objective.targets(rows)["shares"] == [[1.0, 0.0], [0.0, 1.0]]


def test_a_mean_rating_is_no_level():
    objective = make_objective("ordinal", {"levels": [1.0, 2.0]})
    rows = Dataset.from_dict({"completion": ["a"], "score": [1.5]})
    objective.fit(rows)
    with pytest.raises(ValueError, match="Row 0 has the rating 1.5, which is none of the levels 1, 2"):
        objective.targets(rows)
    with pytest.raises(ValueError, match="The ratings have 21 levels"):
        make_objective("ordinal").fit(Dataset.from_dict({"completion": ["a"] * 21, "score": list(range(21))}))
