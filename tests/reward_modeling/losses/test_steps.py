"""Steps of a solution, against numbers worked by hand."""

import math

import pytest
import torch

from rlhf_recipes.reward_modeling.losses import make_objective
from tests.reward_modeling.losses.batches import NAN, batch_of, log_sigmoid, softplus


def at_ends(scores, labels):
    """Solutions of which each token is the end of a step."""
    ends = torch.arange(len(scores[0])).expand(len(scores), -1).float()
    return batch_of(torch.tensor(scores)[..., None], {"labels": labels, "ends": ends})


def test_steps_count_alike_in_all_rows():
    batch = at_ends([[2.0, -1.0, 0.0], [1.0, 7.0, 7.0]], [[1.0, 0.0, 0.5], [0.0, NAN, NAN]])
    expected = {"bce": -log_sigmoid(2) - log_sigmoid(1) + math.log(2) - log_sigmoid(-1), "mse": 1 + 1 + 0.25 + 1}
    for kind, total in expected.items():
        objective = make_objective("process", {"kind": kind})
        assert objective.total(batch).item() == pytest.approx(total)
        assert objective.count(batch.targets).item() == 4


def test_a_step_that_was_cut_off_or_has_no_label_does_not_count():
    objective = make_objective("process")
    logits = torch.tensor([[[9.0], [1.0], [9.0], [2.0]], [[9.0], [9.0], [9.0], [3.0]]])
    targets = {"labels": [[1.0, 0.0, NAN], [1.0, 1.0, NAN]], "ends": [[1.0, 3.0, NAN], [-1.0, 3.0, NAN]]}
    batch = batch_of(logits, targets)
    assert objective.total(batch).item() == pytest.approx(softplus(-1.0) + softplus(2.0) + softplus(-3.0), abs=1e-5)
    assert objective.count(batch.targets).item() == 3
    assert [x.item() for x in objective.right(batch)] == [2, 3]


def test_weights_of_rows_count():
    targets = {"labels": [[1.0], [1.0]], "ends": [[0.0], [0.0]], "weight": [3.0, 0.0]}
    objective, batch = make_objective("process"), batch_of(torch.zeros(2, 1, 1), targets)
    assert objective.total(batch).item() == pytest.approx(3 * math.log(2.0))
    assert objective.count(batch.targets).item() == 3.0
