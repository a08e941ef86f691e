import json

import numpy as np
import pytest
import torch

from rlhf_recipes.reward_modeling.linear.features import Keywords
from rlhf_recipes.reward_modeling.personal.measure import (
    flat,
    gains,
    learning_curve,
    of_each_user,
    plot_curve,
    separate_heads,
    user_metrics,
)
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.simulated import Ratings

# Two users by hand: of ann's three pairs two are in order, of bob's one pair none.
SCORES = [1.0, 2.0, 0.0, 5.0, 4.0]
RATINGS = [0.0, 2.0, 1.0, 1.0, 3.0]
USERS = ["ann", "ann", "ann", "bob", "bob"]


def test_each_user_is_measured_alone():
    accuracy, pearson = of_each_user(SCORES, RATINGS, USERS)
    assert accuracy == pytest.approx([2 / 3, 0.0])
    assert pearson == pytest.approx([0.5, -1.0])  # ann: centred (0, 1, -1) against (-1, 1, 0), so 1 / 2
    figures = user_metrics(SCORES, RATINGS, USERS)
    assert figures["pairwise_accuracy"] == pytest.approx(1 / 3)
    assert figures["pearson"] == pytest.approx(-0.25)
    assert figures["users"] == 2
    low, high = figures["pairwise_accuracy_ci95"]
    assert 0.0 < low < 1 / 3 < 2 / 3 < high


def test_users_who_say_nothing_are_left_out_of_the_figure():
    figures = user_metrics([*SCORES, 1.0], [*RATINGS, 1.0], [*USERS, "cid"])
    assert figures["pairwise_accuracy"] == pytest.approx(1 / 3)
    nobody = user_metrics([1.0, 1.0], [0.0, 3.0], ["ann", "bob"])
    assert nobody["pairwise_accuracy"] is None
    assert nobody["pearson"] is None
    assert nobody["pairwise_accuracy_ci95"] is None


def test_who_gains_and_who_loses():
    """Forty texts of three users: the personal scores are right for ann and the wrong way round for bob."""
    generator = np.random.default_rng(0)
    ratings = generator.uniform(-3, 3, 120)
    users = ["ann"] * 40 + ["bob"] * 40 + ["cid"] * 40
    shared = generator.uniform(-3, 3, 120)
    personal = np.concatenate([ratings[:40], -ratings[40:80], shared[80:]])
    found = gains(personal, shared, ratings, users)
    assert (found["win"], found["lose"], found["lower"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    _, theirs = of_each_user(shared, ratings, users)[0], of_each_user(shared, ratings, users)[0]
    assert found["gain"] == pytest.approx((1 - theirs[0] - theirs[1]) / 3)
    assert found["largest_loss"] == pytest.approx(theirs[1])
    assert found["gain_ci95"][0] < found["gain"] < found["gain_ci95"][1]


def test_nobody_can_be_compared():
    assert gains([1.0], [2.0], [3.0], ["ann"]) == {
        "gain": None, "gain_ci95": None, "lower": None, "lose": None, "win": None, "largest_loss": None, "users": 0,
    }  # fmt: skip


def test_heads_of_ones_own():
    x = np.linspace(-1, 1, 20)[:, None]
    said = separate_heads(
        np.concatenate([x, x, x[:1]]), [*(3 * x[:, 0]), *(-2 * x[:, 0]), 4.0], ["a"] * 20 + ["b"] * 20 + ["c"], x
    )
    assert np.corrcoef(said["a"], x[:, 0])[0, 1] == pytest.approx(1.0)
    assert np.corrcoef(said["b"], x[:, 0])[0, 1] == pytest.approx(-1.0)
    assert said["c"].tolist() == [4.0] * 20  # one rating: that everywhere


def test_columns_of_different_lengths():
    with pytest.raises(ValueError, match="2 scores, 1 ratings and 2 users"):
        user_metrics([1.0, 2.0], [1.0], ["ann", "bob"])
    with pytest.raises(ValueError, match="row 1"):
        user_metrics([1.0, float("nan")], [1.0, 2.0], ["ann", "bob"])


def test_a_curve_of_users_with_opposite_tastes(tmp_path):
    """Each text is a number; ann likes it large and bob small, so that a shared head can only guess."""
    texts = ["loud " * (row % 6) + "end" for row in range(60)]
    values = np.array([row % 6 - 2.5 for row in range(60)])
    model = PersonalRewardModel([Keywords(("loud",), "loud")], rank=2)
    matrix = model.learn_features([""] * 60, texts)
    assert isinstance(matrix, torch.Tensor)
    generator = np.random.default_rng(0)

    def ratings(rows):
        both = np.concatenate([values[rows], -values[rows]]) + 0.3 * generator.standard_normal(2 * len(rows))
        return Ratings(np.concatenate([rows, rows]), ["ann"] * len(rows) + ["bob"] * len(rows), both)

    train, test = ratings(np.arange(40)), ratings(np.arange(40, 60))
    truth = np.concatenate([values[40:], -values[40:]])
    fitted, curve = learning_curve(model, matrix, train, matrix, test, [10, 40], truth=truth, tastes=truth)
    assert fitted.users == ["ann", "bob"]
    assert [point["ratings_per_user"] for point in curve] == [10, 40]
    assert [point["train_rows"] for point in curve] == [20, 80]
    heads = curve[-1]["heads"]
    assert list(heads) == ["shared", "personal", "separate", "known_tastes", "oracle"]
    assert heads["personal"]["pairwise_accuracy"] > 0.95 > 0.6 > heads["shared"]["pairwise_accuracy"]
    assert curve[-1]["gains"]["win"] >= 0.5  # the shared head may be right for one of the two
    assert curve[-1]["gains"]["lose"] == 0.0
    assert json.loads(json.dumps(flat(curve[-1])))["personal_pairwise_accuracy"] > 0.95
    assert plot_curve(curve, tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
