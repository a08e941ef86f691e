"""Pairs, against numbers worked by hand and TRL's loss."""

import math

import pytest
import torch
from datasets import Dataset

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.losses.pairs import bradley_terry
from tests.reward_modeling.losses.batches import NAN, batch_of, log_sigmoid, softplus, t
from tests.reward_modeling.pair_trainer import trainer_of
from tests.tiny import tiny_classifier, tiny_tokenizer


def test_bradley_terry_by_hand():
    # Odds of 3 to 1: d = log 3, so sigma(d) = 3/4.
    chosen, rejected = t(math.log(3), 0.0), t(0.0, math.log(3))
    assert bradley_terry(chosen, rejected).tolist() == pytest.approx([-math.log(3 / 4), math.log(4)])


def test_a_margin_asks_for_more():
    chosen, rejected = t(math.log(6), math.log(6)), t(0.0, 0.0)
    # log 6 - log 2 = log 3; log 6 - log 6 = 0.
    losses = bradley_terry(chosen, rejected, margin=t(math.log(2), math.log(6)))
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])
    assert bradley_terry(chosen, rejected, margin=math.log(2)).tolist() == pytest.approx([math.log(4 / 3)] * 2)


def test_a_soft_target_is_the_share_of_votes():
    # Three votes of four for what has probability 3/4.
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert bradley_terry(t(math.log(3)), t(0.0), target=t(0.75)).item() == pytest.approx(expected)
    # It is least where the model says what the votes say.
    difference = t(math.log(3)).requires_grad_()
    bradley_terry(difference, t(0.0), target=0.75).sum().backward()
    assert difference.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_label_smoothing_takes_that_share_of_labels_for_wrong():
    chosen, rejected = t(1.0), t(0.2)
    expected = -(0.9 * log_sigmoid(0.8) + 0.1 * log_sigmoid(-0.8))
    assert bradley_terry(chosen, rejected, label_smoothing=0.1).item() == pytest.approx(expected)
    # 0.9 * 0.75 + 0.1 * 0.25 = 0.7
    smoothed = bradley_terry(chosen, rejected, target=0.75, label_smoothing=0.1)
    assert smoothed.item() == pytest.approx(-(0.7 * log_sigmoid(0.8) + 0.3 * log_sigmoid(-0.8)))


def test_centering_adds_the_square_of_the_sum():
    # (2 + 1)² = 9 and (1 - 1)² = 0.
    losses = bradley_terry(t(2.0, 1.0), t(1.0, -1.0), center=0.1)
    assert losses.tolist() == pytest.approx([-log_sigmoid(1.0) + 0.9, -log_sigmoid(2.0)])


@pytest.mark.parametrize("center", [None, 0.05])
@pytest.mark.parametrize("margins", [None, (0.5, 0.0, 1.5)])
def test_it_is_the_loss_of_trl(center, margins, tmp_path):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    rows = [{"chosen_ids": [11, 12, 13 + i], "rejected_ids": [40 + i], "length": 3} for i in range(3)]
    for row, margin in zip(rows, margins or (), strict=False):
        row["margin"] = margin
    options = {"center_rewards_coefficient": center, "bf16": False}
    trainer = trainer_of(tmp_path, model, tokenizer, rows=rows, **options)
    batch = PairCollator(tokenizer)(rows)
    with torch.no_grad():
        chosen, rejected = model(**{k: v for k, v in batch.items() if k != "margin"}).logits[:, 0].chunk(2)
        expected = trainer.compute_loss(model, dict(batch))
    ours = bradley_terry(chosen, rejected, margin=batch.get("margin", 0.0), center=center or 0.0)
    torch.testing.assert_close(ours.mean(), expected)


def test_columns_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"chosen \(3,\) and rejected \(3, 1\)"):
        bradley_terry(torch.zeros(3), torch.zeros(3, 1))


def test_pairs_with_margins_votes_and_weights():
    rows = Dataset.from_dict(
        {"chosen": ["a", "b"], "rejected": ["c", "d"], "chosen_votes": [3.0, 1.0], "rejected_votes": [1.0, 1.0],
         "weight": [2.0, 1.0]}
    )  # fmt: skip
    objective = make_objective("bradley_terry")
    targets = objective.weighed_targets(rows)
    assert targets == {"margin": [0.0, 0.0], "weight": [2.0, 1.0], "target": [0.75, 0.5]}
    assert objective.texts(rows) == [[("", "a"), ("", "c")], [("", "b"), ("", "d")]]
    # Texts come row by row: chosen, rejected, chosen, rejected.
    batch = batch_of([1.0, 0.0, 0.0, 2.0], targets, sizes=[2, 2])
    first = 0.75 * softplus(-1.0) + 0.25 * softplus(1.0)
    second = 0.5 * softplus(2.0) + 0.5 * softplus(-2.0)
    assert objective.total(batch).item() == pytest.approx(2 * first + second, abs=1e-6)
    assert objective.count(batch.targets).item() == 3.0
    assert [x.item() for x in objective.right(batch)] == [1, 1]  # the second is a tie, which nobody can get right


def test_a_pair_on_which_nobody_voted_does_not_count():
    objective = make_objective("bradley_terry", {"center": 0.1})
    scores = torch.tensor([2.0, 1.0, 5.0, 0.0], requires_grad=True)
    batch = batch_of(scores, {"margin": [0.0, 0.0], "target": [1.0, NAN]}, sizes=[2, 2])
    assert objective.total(batch).item() == pytest.approx(-log_sigmoid(1.0) + 0.9)
    assert objective.count(batch.targets).item() == 1.0
    objective.total(batch).backward()
    assert scores.grad[2:].tolist() == [0.0, 0.0]


def test_pairs_are_read_with_their_prompt():
    rows = Dataset.from_dict({"prompt": ["p", None], "chosen": ["a", "b"], "rejected": ["c", "d"]})
    assert make_objective("hinge").texts(rows) == [[("p", "a"), ("p", "c")], [("", "b"), ("", "d")]]


def test_hinge_stops_at_the_margin():
    objective = make_objective("hinge", {"margin": 0.5})
    targets = objective.targets(Dataset.from_dict({"chosen": ["a"] * 2, "rejected": ["b"] * 2, "margin": [0.0, 1.0]}))
    scores = torch.tensor([1.0, 0.0, 1.0, 0.0], requires_grad=True)
    total = objective.total(batch_of(scores, targets, sizes=[2, 2]))
    assert total.item() == pytest.approx(0.0 + 0.5)
    total.backward()
    assert scores.grad.tolist() == [0.0, 0.0, -1.0, 1.0]
    with pytest.raises(ValueError, match="hinge takes a side"):
        objective.targets(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "target": [0.3]}))
