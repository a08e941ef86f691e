"""What matters to a linear model, shuffled and drawn."""

import numpy as np
import pytest
from matplotlib.image import imread
from sklearn.linear_model import LinearRegression

from rlhf_recipes.reward_modeling.linear.explanation import (
    importance,
    importance_for_pairs,
    plot_coefficients,
    plot_importance,
    r2,
)
from rlhf_recipes.reward_modeling.linear.features import BagOfWords, Keywords, Length
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from tests.reward_modeling.linear.rated_words import COUNTS, VALUES, pairs, rated


def test_what_does_not_count_is_not_important():
    prompts, texts, ratings = rated(300)
    groups = [Keywords(("great", "good"), "praise"), Keywords(("awful", "bad"), "blame"), Keywords(("film",), "film")]
    model = LinearRewardModel(groups, LinearRegression()).fit_ratings(prompts, texts, ratings)
    found = {one.name: one for one in importance(model, *rated(100, seed=1))}
    assert set(found) == {"praise", "blame", "film"}
    assert found["praise"].mean > 0.1
    assert found["blame"].mean > 0.1
    assert abs(found["film"].mean) < 0.02
    assert found["praise"].std > 0


def test_importance_of_all_there_is_takes_all_away():
    # Of a model that is right with one feature, shuffling leaves half of the pairs right.
    prompts, texts = [""] * 200, ["good"] * 100 + ["film"] * 100
    ratings = np.repeat([1.0, 0.0], 100)
    model = LinearRewardModel([Keywords(("good",), "good")], LinearRegression()).fit_ratings(prompts, texts, ratings)
    (one,) = importance(model, prompts, texts, ratings, repeats=50)
    assert one.mean == pytest.approx(0.5, abs=0.05)


def test_a_bag_of_words_is_shuffled_as_a_whole():
    model = LinearRewardModel([Length(), BagOfWords()]).fit_ratings(*rated(300))
    found = {one.name: one.mean for one in importance(model, *rated(100, seed=1))}
    bag = f"BagOfWords ({len(VALUES)} numbers)"
    assert set(found) == {"characters", "words", "sentences", "word_length", "sentence_length", bag}
    assert found[bag] > 0.3
    pairwise = {one.name: one.mean for one in importance_for_pairs(model, *pairs(100, seed=1))}
    assert pairwise[bag] > 0.3


def test_r2():
    assert r2([1, 2, 3], [1, 2, 3]) == 1
    assert r2([2, 2, 2], [1, 2, 3]) == 0
    assert r2([3, 2, 1], [1, 2, 3]) == -3
    with pytest.raises(ValueError, match="no variance"):
        r2([1, 2], [1, 1])


def test_pictures_show_something(tmp_path):
    model = LinearRewardModel([COUNTS]).fit_ratings(*rated(noise=1.0))
    model.bootstrap(samples=20)
    for path in (
        plot_coefficients(model.table(), tmp_path / "coefficients.png"),
        plot_importance(importance(model, *rated(100, seed=1), repeats=3), tmp_path / "importance.png"),
    ):
        pixels = imread(path)[..., :3]
        assert pixels.shape[1] > pixels.shape[0] > 200
        blue = (pixels[..., 2] - pixels[..., 0]) > 0.2
        assert blue.mean() > 0.01
