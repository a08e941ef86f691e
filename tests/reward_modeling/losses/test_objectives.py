"""Several objectives, against numbers worked by hand."""

import math

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.losses import make_objective
from tests.reward_modeling.losses.batches import NAN, batch_of

GATED = [{"good": 1.0, "long": 2.0, "overall": 1.0}, {"good": 3.0, "long": 0.0, "overall": 3.0}]


def rows_of(*scores):
    return Dataset.from_list([{"completion": "a", "scores": of_row} for of_row in scores])


def fitted(settings, *scores):
    objective = make_objective("multi_objective", settings)
    objective.fit(rows_of(*scores))
    return objective


@pytest.mark.parametrize(
    ("settings", "total", "count"),
    [
        ({}, 1 + 4 + 9, 3),
        ({"weights": {"x": 1.0, "y": -3.0}}, 1 + 9 + 3 * 4, 5),
        ({"kind": "mae"}, 1 + 2 + 3, 3),
        ({"kind": "huber"}, 0.5 + 1.5 + 2.5, 3),
    ],
)
def test_objectives_that_are_missing_do_not_count(settings, total, count):
    objective = fitted(settings, {"x": 1.0, "y": 2.0})
    batch = batch_of([[1.0, 2.0], [0.0, 5.0], [9.0, 9.0]], {"scores": [[2.0, 4.0], [3.0, NAN], [NAN, NAN]]})
    assert objective.total(batch).item() == pytest.approx(total)
    assert objective.count(batch.targets).item() == count


def test_scores_from_0_to_1_are_learned_as_they_are():
    objective = fitted({"kind": "bce"}, {"x": 0.5})
    assert objective.targets(rows_of({"x": 0.5}))["scores"] == [[0.5]]
    assert objective.total(batch_of([[0.0]], {"scores": [[0.5]]})).item() == pytest.approx(math.log(2))
    with pytest.raises(ValueError, match="kind bce learns scores from 0 to 1, and 'x' has 0 to 3"):
        fitted({"kind": "bce"}, {"x": 0.0}, {"x": 3.0})


def test_objectives_are_learned_alike_and_weighed_in_the_score():
    scores = [{"good": 1.0, "long": 100.0}, {"good": 3.0, "long": None}, {"good": 2.0, "long": 300.0}]
    objective = fitted({"weights": {"good": 2.0, "long": -1.0}}, *scores)
    assert objective.label_names == ("good", "long")
    assert objective.score_labels() == {"good": pytest.approx(2 / 3), "long": pytest.approx(-1 / 3)}
    targets = objective.targets(rows_of(*scores))["scores"]
    unit = (2 / 3) ** 0.5
    assert targets[0] == pytest.approx([-1 / unit, -1.0])
    assert targets[1][0] == pytest.approx(1 / unit)
    assert math.isnan(targets[1][1])
    batch = batch_of([[0.0, 0.0]] * 3, {"scores": targets})
    assert objective.total(batch).item() == pytest.approx(2 * 2 / unit**2 + 1 * 2, abs=1e-5)
    assert objective.count(batch.targets).item() == 2 * 3 + 1 * 2


def test_weights_of_rows_count():
    objective = fitted(None, {"x": 1.0}, {"x": 3.0})
    batch = batch_of([[0.0], [9.0]], {"scores": [[-1.0], [1.0]], "weight": [2.0, 0.0]})
    assert objective.total(batch).item() == pytest.approx(2.0)
    assert objective.count(batch.targets).item() == 2.0


def test_weights_of_objectives_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="weights or gate name 'helpful'; the objectives are good"):
        fitted({"weights": {"helpful": 1.0}}, {"good": 1.0})


def test_a_gate_weighs_the_objectives_of_each_text():
    objective = fitted({"gate": "overall"}, *GATED)
    assert objective.label_names == ("good", "long", "gate of good", "gate of long")
    targets = objective.targets(rows_of(GATED[0]))
    assert targets["scores"] == [[-1.0, 1.0, -1.0]]
    # Gates of log 3 and 0 are shares of 3/4 and 1/4: the overall score is 3/4 * 2 + 1/4 * 6 = 3.
    logits = torch.tensor([[2.0, 6.0, math.log(3.0), 0.0]], requires_grad=True)
    batch = batch_of(logits, targets)
    assert objective.total(batch).item() == pytest.approx(3.0**2 + 5.0**2 + 4.0**2, abs=1e-4)
    objective.losses(batch)[0, -1].backward()  # a better objective never lowers the overall score
    assert logits.grad[0, :2].tolist() == pytest.approx([2 * 4.0 * 3 / 4, 2 * 4.0 / 4])


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        (GATED, {"gate": "helpful"}, "name 'helpful'"),
        ([{"good": 1.0, "overall": 1.0}], {"gate": "overall"}, "needs two objectives besides 'overall'"),
        ([*GATED, {"good": 1.0, "long": 1.0}], {"gate": "overall"}, "1 rows are without it"),
    ],
)
def test_a_gate_needs_objectives_and_a_judgement(rows, settings, message):
    with pytest.raises(ValueError, match=message):
        fitted(settings, *rows)
