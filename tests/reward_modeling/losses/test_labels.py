"""Labels of single texts, against numbers worked by hand and torch's cross-entropy."""

import math

import pytest
import torch
from datasets import Dataset
from torch.autograd import gradcheck

from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.labels import log_seen
from tests.reward_modeling.losses.batches import NAN, batch_of, drawn, log_sigmoid, softplus, t


def test_binary_cross_entropy_is_that_of_torch():
    scores, labels, weights = drawn(8), t(0, 1, 1, 0, 0.3, 1, 0, 1), drawn(8, seed=1).abs()
    objective = make_objective("binary_cross_entropy")
    objective.pos_weight = 3.0
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        scores, labels, weights, pos_weight=t(3.0), reduction="sum"
    )
    assert objective.total(batch_of(scores, {"label": labels, "weight": weights})).item() == pytest.approx(
        expected.item(), rel=1e-6
    )


def test_a_label_that_is_missing_does_not_count():
    objective = make_objective("binary_cross_entropy")
    batch = batch_of([2.0, 9.0], {"label": [1.0, NAN]})
    assert objective.total(batch).item() == pytest.approx(-log_sigmoid(2.0), abs=1e-6)
    assert objective.count(batch.targets).item() == 1.0
    assert [x.item() for x in objective.right(batch)] == [1, 1]


def test_noise_by_hand():
    # sigma = 3/4. Seen as 1: 0.8 * 3/4 + 0.1 * 1/4 = 0.625.
    seen_1, seen_0 = log_seen(t(math.log(3)), (0.1, 0.2))
    assert (seen_1.item(), seen_0.item()) == pytest.approx((math.log(0.625), math.log(0.375)))


@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.3, 0.0), (0.0, 0.4), (0.1, 0.2)])
def test_with_the_rates_known_the_true_share_is_learned(noise):
    # Seven of ten are truly 1. The best score for what is seen of them is still log(7 / 3).
    e0, e1 = noise
    seen = 0.7 * (1 - e1) + 0.3 * e0
    score = t(math.log(7 / 3)).requires_grad_()
    objective = make_objective("binary_cross_entropy", {"noise": noise})
    objective.total(batch_of(score, {"label": t(seen)})).backward()
    assert score.grad.item() == pytest.approx(0.0, abs=1e-7)
    assert gradcheck(lambda s: log_seen(s, noise), (drawn(5).requires_grad_(),))


def test_a_wrong_label_costs_no_more_than_its_rate_says():
    seen_1, seen_0 = log_seen(t(-1e4, 1e4), (0.1, 0.2))
    assert (seen_1[0].item(), seen_0[1].item()) == pytest.approx((math.log(0.1), math.log(0.2)))


def test_labels_may_be_balanced():
    rows = Dataset.from_dict({"completion": list("abcd"), "label": [1.0, 0.0, 0.0, 0.0]})
    objective = make_objective("binary_cross_entropy", {"balanced": True})
    objective.fit(rows)
    batch = batch_of([2.0, 2.0, 2.0], {"label": [1.0, 0.0, NAN]})
    assert objective.total(batch).item() == pytest.approx(3 * softplus(-2.0) + softplus(2.0), abs=1e-5)
    assert objective.count(batch.targets).item() == 2.0
    for one_class in ([1.0, 1.0], [0.0, NAN], [NAN, NAN]):
        with pytest.raises(ValueError, match="both are needed"):
            objective.fit(Dataset.from_dict({"completion": list("ab"), "label": one_class}))
