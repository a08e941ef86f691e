import pytest

from rlhf_recipes.reward_modeling.evaluation.baselines import baseline_scores, beside_baselines, fit_baselines
from rlhf_recipes.reward_modeling.evaluation.figures import accuracy_by_margin


def test_baselines_beside_the_model():
    texts, ratings = ["awful", "a film", "a wonderful film"], [-2.0, 0.0, 3.0]
    beside = beside_baselines(
        lambda scores: accuracy_by_margin(scores, ratings, [0.5])[0]["accuracy"],
        [3.0, 2.0, 1.0],
        baseline_scores(texts),
    )
    assert beside == {"model": 0.0, "length": 1.0, "vader": 1.0, "constant": 0.5}


def test_a_text_that_vader_cannot_read_is_neutral():
    assert baseline_scores(["电影", ""]) == {"length": [2.0, 0.0], "vader": [0.0, 0.0], "constant": [0.0, 0.0]}


def test_fitted_baselines_are_least_squares_lines():
    # Lengths 1, 2, 3 and ratings 1, 2, 6: slope 2.5, through (2, 3). No sentiment: the mean.
    fitted = fit_baselines(["aaaa", ""], ["a", "aa", "aaa"], [1.0, 2.0, 6.0])
    assert fitted["length"] == pytest.approx([8.0, -2.0])
    assert fitted["vader"] == fitted["constant"] == [3.0, 3.0]
    with pytest.raises(ValueError, match="3 training texts for 2 rows"):
        fit_baselines(["a"], ["a", "b", "c"], [1.0, 2.0])
    with pytest.raises(ValueError, match="no training rows"):
        fit_baselines(["a"], [], [])
