"""Distances to a rating, against numbers worked by hand."""

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.losses import make_objective
from tests.reward_modeling.losses.batches import NAN, batch_of


@pytest.mark.parametrize(
    ("loss", "of_distance"),
    [("mse", lambda d: d * d), ("mae", abs), ("huber", lambda d: d * d / 2 if abs(d) <= 1 else abs(d) - 0.5)],
)
def test_ratings_are_learned_in_standard_deviations(loss, of_distance):
    rows = Dataset.from_dict({"completion": list("abc"), "score": [1.0, 3.0, 5.0], "weight": [1.0, 0.0, 2.0]})
    objective = make_objective(loss)
    objective.fit(rows)
    unit = (8 / 3) ** 0.5
    targets = objective.weighed_targets(rows)
    assert targets["score"] == pytest.approx([-2 / unit, 0.0, 2 / unit])
    batch = batch_of([0.0, 9.0, 3.0], targets)
    expected = of_distance(2 / unit) + 2 * of_distance(3 - 2 / unit)
    assert objective.total(batch).item() == pytest.approx(expected, rel=1e-5)
    assert objective.count(batch.targets).item() == 3.0
    assert objective.calibration()(torch.tensor([0.0, 1.0]).numpy()) == pytest.approx([3.0, 3.0 + unit])


def test_distances_by_hand():
    scores, targets = [1.0, 2.0, 0.0], {"score": [1.5, 5.0, NAN]}
    # Of huber 0.5² / 2, and 2 * (3 - 2 / 2) beyond delta = 2.
    for loss, args, expected in (
        ("mse", None, [0.25, 9.0]), ("mae", None, [0.5, 3.0]), ("huber", {"delta": 2.0}, [0.125, 4.0])
    ):  # fmt: skip
        objective, batch = make_objective(loss, args), batch_of(scores, targets)
        assert objective.losses(batch)[:2].tolist() == expected
        assert objective.total(batch).item() == sum(expected)
        assert objective.count(batch.targets).item() == 2


def test_the_best_constant_is_the_mean_or_the_median():
    for loss, best in (("mse", 4.0), ("mae", 2.0)):
        objective = make_objective(loss)
        at = [objective.total(batch_of([tenth / 10] * 3, {"score": [1.0, 2.0, 9.0]})).item() for tenth in range(100)]
        assert at.index(min(at)) == best * 10
