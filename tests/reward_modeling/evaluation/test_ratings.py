"""Ratings and objectives, with numbers worked out by hand or by scipy and scikit-learn."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import r2_score

from rlhf_recipes.modeling.calibration import LinearCalibration
from rlhf_recipes.reward_modeling.evaluation.ratings import (
    Evaluation,
    objective_evaluation,
    rating_evaluation,
    reliability,
)
from rlhf_recipes.reward_modeling.scored import Scored
from tests.reward_modeling.feedback_rows import scored

RATINGS = [-3.0, -1.0, 0.0, 3.0]
LOGITS = [-1.0, 0.5, 0.0, 2.0]
DOUBLE = LinearCalibration(scale=2.0, offset=0.0)


def rated(**columns):
    texts = ["awful", "a dull film", "a film", "a wonderful film indeed"]
    return scored("ratings", [[s] for s in LOGITS], completion=texts, score=RATINGS, **columns)


def test_ratings_by_hand():
    result = rating_evaluation(rated(), RATINGS, DOUBLE, votes=[[-3, -3, None], [-1, -1], [0, 0], [3, 3]])
    assert result.flat["pairwise_accuracy"] == pytest.approx(5 / 6)
    assert result.flat["mae"] == pytest.approx((1 + 2 + 0 + 1) / 4)
    assert result.flat["single_rater_accuracy"] == 1.0
    errors = result.nested["errors"]
    assert errors["r2"] == pytest.approx(r2_score(RATINGS, [-2, 1, 0, 4]))
    assert errors["kendall"] == pytest.approx(stats.kendalltau(LOGITS, RATINGS).statistic)
    assert result.nested["ceiling"]["reliability"] == 1.0  # all raters agree
    assert result.nested["worst"][0]["text"] == "a dull film"
    assert (result.nested["worst"][0]["human"], result.nested["worst"][0]["score"]) == (-1.0, 1.0)


def test_without_a_curve_distances_are_not_measured():
    result = rating_evaluation(rated(), RATINGS)
    assert "mae" not in result.flat
    assert not {"mae", "rmse", "r2", "mae_ci95"} & set(result.nested["errors"])
    assert "reliability" not in result.nested
    assert result.nested["errors"]["spearman"] == pytest.approx(stats.spearmanr(LOGITS, RATINGS).statistic)


def test_ratings_too_close_to_ask():
    result = rating_evaluation(rated(), [1.0, 1.1, 1.2, 1.3], min_gap=0.5)
    assert result.flat["pairwise_accuracy"] is None
    assert result.flat["pairs"] == 0
    assert "errors" in result.nested


def test_margins_count_each_pair_once():
    found = rating_evaluation(rated(), RATINGS).nested["by_margin"]
    # Gaps: 2 3 6 1 4 3. From 0.5: none; from 1: one (-1 and 0, turned); from 2: five, all right.
    assert [(b["pairs"], b["accuracy"]) for b in found["model"]] == [(0, None), (1, 0.0), (5, 1.0)]
    assert [b["pairs"] for b in found["vader"]] == [0, 1, 5]


def test_prompts_with_several_texts_are_looked_at_one_by_one():
    result = rating_evaluation(rated(prompt=["p", "p", "q", "q"]), RATINGS)
    within = result.nested["within_prompts"]
    assert (within["pairs"], within["accuracy"]) == (2, 1.0)
    assert [point["win_rate"] for point in result.nested["win_rate"]] == [0.5, 1.0]


def test_baselines_are_fitted_to_the_training_rows():
    train = ["x", "xx", "xxx"], [1.0, 2.0, 3.0]
    found = rating_evaluation(rated(), RATINGS, DOUBLE, train=train).nested["baseline_errors"]
    # The constant is 2: distances 5, 3, 2, 1. Length is its own rating: 5, 11, 6, 23 letters.
    assert found["constant"]["mae"] == pytest.approx(11 / 4)
    assert found["length"]["mae"] == pytest.approx((8 + 12 + 6 + 20) / 4)


def test_reliability_by_hand():
    table = reliability([1, 2, 3, 4], [0, 2, 1, 5], bins=2)
    assert [(row["score"], row["rating"], row["texts"]) for row in table] == [(1.5, 1.0, 2), (3.5, 3.0, 2)]
    assert table[0]["error"] == pytest.approx(np.std([0, 2], ddof=1) / np.sqrt(2))
    assert reliability([1.0], [2.0])[0]["error"] is None


def test_a_part_that_needs_a_library_says_so(monkeypatch):
    def no_library(*args):
        raise ImportError("Run pip install rlhf-recipes[feedback].")

    monkeypatch.setattr("rlhf_recipes.reward_modeling.evaluation.ratings.pairwise_ceiling", no_library)
    result = rating_evaluation(rated(), RATINGS, DOUBLE, votes=[[rating, rating + 1] for rating in RATINGS])
    assert result.flat["pairwise_accuracy"] == pytest.approx(5 / 6)
    assert "pip install" in result.nested["missing"]["ceiling"]


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(KeyError):
        Evaluation().part("broken", lambda: {}["not there"])


def objectives(outputs, table):
    texts = [f"text {row}" for row in range(len(table))]
    names = ("kind", "true")
    rows = scored("ratings", [[0.0]] * len(table), completion=texts, score=[0.0] * len(table)).dataset
    scores = [[0.75 * k + 0.25 * t] for k, t in zip(*(outputs[name] for name in names), strict=True)]
    return Scored("objectives", rows, scores, [""] * len(texts), [[text] for text in texts], outputs)


def test_objectives_by_hand():
    table = [{"kind": 1.0, "true": 5.0}, {"kind": 2.0, "true": None}, {"kind": 3.0, "true": 1.0}]
    outputs = {"kind": [0.0, 1.0, 2.0], "true": [1.0, 9.0, 0.0]}
    weights, scales = {"kind": 0.75, "true": 0.25}, {"kind": (2.0, 1.0), "true": (3.0, 2.0)}
    curves = {"kind": lambda values: [value + 1 for value in values]}
    result = objective_evaluation(objectives(outputs, table), table, weights, scales, curves)
    # Totals: 0.75 * -1 + 0.25 * 1 = -0.5 and 0.75 * 1 - 0.25 * 1 = 0.5; scores 0.25 and 1.5. The middle row has none.
    assert (result.flat["pairwise_accuracy"], result.flat["pairs"]) == (1.0, 1)
    assert result.nested["rows_with_total"] == 2
    assert result.nested["objectives"]["kind"]["mae"] == 0.0  # 0 1 2 and one more
    assert result.nested["objectives"]["kind"]["pairs"] == 3
    assert "mae" not in result.nested["objectives"]["true"]
    assert result.nested["objectives"]["true"]["texts"] == 2
    assert result.nested["objectives"]["true"]["pearson"] == pytest.approx(1.0)


def test_objectives_without_an_output_are_named():
    table = [{"kind": 1.0, "wise": 2.0}, {"kind": 2.0, "wise": 1.0}]
    rows = objectives({"kind": [0.0, 1.0], "true": [0.0, 0.0]}, table)
    result = objective_evaluation(rows, table, {"kind": 1.0})
    assert "wise" in result.nested["missing"]["objectives"]
    assert set(result.nested["objectives"]) == {"kind"}
    nothing = objective_evaluation(rows, [{"kind": None, "wise": 1.0}] * 2, {"kind": 1.0})
    assert "No row" in nothing.nested["missing"]["total"]
