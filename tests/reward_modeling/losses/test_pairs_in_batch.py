"""All pairs of a batch, against a loop over them."""

import itertools
import math

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.base import Batch
from tests.reward_modeling.losses.batches import NAN, batch_of, drawn, log_sigmoid, sigmoid, softplus, t


def mean_loss(scores, ratings, sizes=None, **settings):
    objective = make_objective("pairs_in_batch", settings)
    batch = batch_of(scores, {"score": ratings}, sizes)
    return (objective.total(batch) / objective.count(batch.targets).clamp(min=1e-9)).item()


def loop_over_pairs(scores, ratings, min_gap=0.5, scale=None, groups=None, texts_alike=False):
    pairs = []
    for i, j in itertools.combinations(range(len(scores)), 2):
        gap = ratings[i] - ratings[j]
        same_group = groups is None or groups[i] == groups[j]
        if math.isnan(gap) or not same_group or abs(gap) < min_gap - 1e-6 or (scale is None and gap == 0):
            continue
        p = sigmoid(gap / scale) if scale else float(gap > 0)
        d = scores[i] - scores[j]
        pairs.append((i, j, -(p * log_sigmoid(d) + (1 - p) * log_sigmoid(-d))))
    if not texts_alike:
        return sum(loss for *_, loss in pairs) / len(pairs)
    of_text = [[loss for *pair, loss in pairs if text in pair] for text in range(len(scores))]
    means = [sum(of) / len(of) for of in of_text if of]
    return sum(means) / len(means)


RATINGS = [1.8, 2.3, 2.3, 4.0, NAN, 1.0, 3.1]


@pytest.mark.parametrize("texts_alike", [False, True])
@pytest.mark.parametrize(("min_gap", "scale"), [(0.5, None), (0.0, None), (1.0, 0.7), (0.0, 0.7)])
def test_all_pairs_at_once_equal_the_loop(min_gap, scale, texts_alike):
    settings = {"min_gap": min_gap, "scale": scale, "texts_alike": texts_alike}
    scores = drawn(7)
    expected = loop_over_pairs(scores.tolist(), RATINGS, **settings)
    for dtype in (torch.float32, torch.float64):  # 2.3 - 1.8 is below 0.5 in both
        assert mean_loss(scores.to(dtype), RATINGS, **settings) == pytest.approx(expected, abs=1e-6)
    expected = loop_over_pairs(scores.tolist(), RATINGS, groups=[0, 0, 0, 0, 1, 1, 1], **settings)
    lists = t(RATINGS[:4], [*RATINGS[4:], NAN])
    assert mean_loss(scores, lists, [4, 3], within="prompt", **settings) == pytest.approx(expected, abs=1e-6)


def test_three_texts_by_hand():
    # Ratings 1, 2, 4 and min_gap 2: the pairs (4, 2) and (4, 1), with d = 1 and d = 3.
    found = mean_loss([0.0, 2.0, 3.0], [1.0, 2.0, 4.0], min_gap=2.0)
    assert found == pytest.approx(-(log_sigmoid(1) + log_sigmoid(3)) / 2)


def test_texts_that_count_alike_by_hand():
    # Differences of the pairs: 1-0 1, 2-0 2, 3-0 4, 3-1 3, 3-2 2; ratings 2 and 2.5 are too close.
    one, two, three, four = (-log_sigmoid(d) for d in (1, 2, 3, 4))
    of_texts = [(one + two + four) / 3, (one + three) / 2, (two + two) / 2, (four + three + two) / 3]
    loss = mean_loss([0.0, 1.0, 2.0, 4.0], [0.0, 2.0, 2.5, 4.5], min_gap=2.0, texts_alike=True)
    assert loss == pytest.approx(sum(of_texts) / 4)
    assert loss != pytest.approx((one + 2 * two + three + four) / 5, abs=1e-3)


@pytest.mark.parametrize("ratings", [(2.0, 2.0, 2.0), (NAN, 2.0, NAN), (2.0, 2.1, 2.2)])
def test_a_batch_without_a_pair_gives_0(ratings):
    scores = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    objective = make_objective("pairs_in_batch", {"texts_alike": True})
    total = objective.total(batch_of(scores, {"score": ratings}))
    total.backward()
    assert (total.item(), scores.grad.tolist()) == (0.0, [0.0, 0.0, 0.0])
    assert mean_loss([1.0], [1.0]) == 0.0


def test_each_pair_counts_once_whatever_the_order_of_the_texts():
    objective = make_objective("pairs_in_batch", min_gap=0.5)
    batch = batch_of([0.0, 1.0, 3.0], {"score": [2.0, 1.0, 1.2]})
    # Only 2.0 is half a point away from the others, and above both.
    assert objective.count(batch.targets).item() == 2
    assert objective.total(batch).item() == pytest.approx(softplus(1.0) + softplus(3.0), abs=1e-5)
    assert [x.item() for x in objective.right(batch)] == [0, 2]
    shuffled = Batch(batch.logits[[2, 0, 1]], torch.tensor([2, 0, 1]), batch.places, batch.targets)
    assert objective.total(shuffled).item() == pytest.approx(objective.total(batch).item(), abs=1e-5)


def test_pairs_within_a_column_compare_only_its_equal_rows():
    rows = Dataset.from_dict(
        {"prompt": ["p", "q", "p", "q", "r"], "completion": list("abcde"), "score": [1.0, 5.0, 3.0, 2.0, 4.0]}
    )
    objective = make_objective("pairs_in_batch", {"within": "prompt"})
    assert objective.texts(rows) == [[("p", "a"), ("p", "c")], [("q", "b"), ("q", "d")], [("r", "e")]]
    assert objective.targets(rows) == {"score": [[1.0, 3.0], [5.0, 2.0], [4.0]]}
    batch = batch_of([0.0, 1.0, 0.0, 2.0, 9.0], {"score": [[1.0, 3.0], [5.0, 2.0], [4.0, NAN]]}, sizes=[2, 2, 1])
    assert objective.count(batch.targets).item() == 2
    assert objective.total(batch).item() == pytest.approx(softplus(-1.0) + softplus(2.0), abs=1e-5)
    assert [x.item() for x in objective.right(batch)] == [1, 2]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"score": [0.1, 0.4]}, "differ by 0.3 at most and min_gap is 0.5"),
        ({"score": [0.0, 4.0], "weight": [1.0, 2.0]}, "does not use weights. Take mse"),
    ],
)
def test_ratings_of_which_pairs_would_learn_nothing_are_refused(columns, message):
    rows = Dataset.from_dict({"completion": ["a", "b"], **columns})
    with pytest.raises(ValueError, match=message):
        make_objective("pairs_in_batch").fit(rows)
