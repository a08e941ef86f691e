import numpy as np
import pytest
from datasets import Dataset

from rlhf_recipes.reward_modeling.examples import in_share
from rlhf_recipes.reward_modeling.personal.simulated import (
    TASTES,
    Ratings,
    SimulatedRaters,
    named,
    simulate,
    take_share,
)
from rlhf_recipes.reward_modeling.scored import Texts

COMPLETIONS = [
    "A funny film!",
    "A dull war.",
    "I love it",
    "Good",
    "A long and quiet story of two people.",
    "Bad! Bad!",
]
TEXTS = Texts([""] * 6, COMPLETIONS)
VOTES = [[1, 2, 3], [-1, -2, 0], [2, 2, 1], [1, 0, 1], [0, 1, -1], [-3, -2, -4]]
MEANS = [2.0, -1.0, 5 / 3, 2 / 3, 0.0, -3.0]


def raters(count=50, **settings):
    return SimulatedRaters.draw(count, TEXTS, VOTES, **settings)


def test_features_are_what_the_texts_say_with_mean_0_and_variance_1():
    features = raters().features(TEXTS.prompts, TEXTS.completions)
    assert features.shape == (6, 6)
    assert features.mean(axis=0) == pytest.approx(0.0, abs=1e-12)
    assert features.std(axis=0) == pytest.approx(1.0)  # none is beyond 3
    columns = dict(zip(TASTES, features.T, strict=True))
    assert columns["words"].argmax() == 4
    assert columns["comedy"].argmax() == 0
    assert columns["action"].argmax() == 1
    assert columns["romance"].argmax() == 2
    assert columns["exclamation"].argmax() == 5
    assert columns["vader_compound"].argmin() == 5


def test_an_opinion_is_taste_times_features_and_leniency_by_hand():
    two = SimulatedRaters(np.array([[1.0, 0, 0, 0, 0, 0], [0, -2.0, 0, 0, 0, 0]]), np.array([0.5, 0.0]), 0.0,
                          np.zeros(6), np.ones(6))  # fmt: skip
    features = np.array([[1.0, 1, 0, 0, 0, 0], [2.0, 3, 0, 0, 0, 0]])
    assert two.opinions(features).tolist() == [[1.5, 2.5], [-2.0, -6.0]]
    rated = two.rate(features, [10.0, 20.0], each=2)
    found = {(user, text): rating for user, text, rating in zip(rated.users, rated.texts, rated.ratings, strict=True)}
    assert found[("simulated-0", 0)] == 11.5
    assert found[("simulated-1", 1)] == 14.0


def test_the_noise_is_that_of_a_real_vote():
    # Within the six texts the squares sum to 2, 2, 2/3, 2/3, 2, 2, over 18 - 6 degrees of freedom.
    assert raters().noise ** 2 == pytest.approx((2 + 2 + 2 / 3 + 2 / 3 + 2 + 2) / 12)


def test_tastes_and_leniency_have_the_size_asked_for():
    many = raters(4000, taste=0.5, leniency=0.25)
    assert many.tastes.std(axis=0) == pytest.approx(0.5, rel=0.05)
    assert many.leniency.std() == pytest.approx(0.25, rel=0.05)
    assert np.array_equal(raters(3).tastes, raters(3).tastes)
    assert not np.array_equal(raters(3).tastes, raters(3, seed=1).tastes)


def test_nobody_rates_a_text_twice():
    rated = raters().rate(raters().features(TEXTS.prompts, TEXTS.completions), MEANS, each=4)
    assert len(set(zip(rated.users, rated.texts.tolist(), strict=True))) == 200


def test_the_truth_is_the_ratings_without_their_noise():
    people = raters(200)
    train, test, truth, tastes = simulate(people, TEXTS, MEANS, TEXTS, MEANS, each=5, test_each=100)
    assert len(train.users) == 1000
    assert len(test.users) == 1200  # there are six texts
    noise = test.ratings - truth
    assert noise.mean() == pytest.approx(0.0, abs=0.1)
    assert noise.std() == pytest.approx(people.noise, rel=0.1)
    assert (truth - tastes) == pytest.approx(np.array(MEANS)[test.texts])


def test_the_first_ratings_of_each_user():
    ratings = Ratings(np.arange(6), ["b", "a", "b", None, "b", None], np.zeros(6))
    assert ratings.first(1).tolist() == [0, 1, 3, 5]  # of whom nothing is known, all are kept
    assert ratings.first(2).tolist() == [0, 1, 2, 3, 5]
    assert ratings.of_known().users == ["b", "a", "b", "b"]
    assert ratings.of_known().texts.tolist() == [0, 1, 2, 4]


def test_ratings_of_real_users():
    ratings = named([7.0, "ann", None], [1, 2, 3])
    assert ratings.users == ["7", "ann", None]
    with pytest.raises(ValueError, match="1 users and 2 ratings"):
        named(["ann"], [1, 2])


def test_a_share_is_that_of_the_reward_model():
    rows = Dataset.from_dict({"completion": [f"text {row}" for row in range(50)]})
    kept = take_share(rows, "0.6:1")["completion"]
    assert list(kept) == [text for text in rows["completion"] if in_share(text, 0.6, 1.0)]
    prompted = Dataset.from_dict({"prompt": ["same"] * 4, "completion": list("abcd")})
    share = "0:0.5" if in_share("same", 0, 0.5) else "0.5:1"
    assert len(take_share(prompted, share)) == 4
    other = "0.5:1" if share == "0:0.5" else "0:0.5"
    with pytest.raises(ValueError, match=f"None of the 4 rows is in the share {other}"):
        take_share(prompted, other)


def test_mistakes():
    with pytest.raises(ValueError, match="2 raters or more"):
        raters(1)
    with pytest.raises(ValueError, match="sizes of 0 or more"):
        raters(5, taste=-1.0)
    with pytest.raises(ValueError, match="two votes or more"):
        SimulatedRaters.draw(5, TEXTS, [[1]] * 6)
    with pytest.raises(ValueError, match="7 texts, and there are 6"):
        raters().rate(np.zeros((6, 6)), MEANS, each=7)
