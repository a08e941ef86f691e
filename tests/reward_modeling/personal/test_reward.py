import logging
import pickle

import numpy as np
import pytest

from rlhf_recipes.reward_modeling.linear.features import Keywords
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.reward import PersonalReward
from rlhf_recipes.rewards.weighted_sum import WeightedSum

TEXTS = ["loud good", "good", "loud loud", "red", "good good", "loud red"]


@pytest.fixture(scope="module")
def model():
    """Ann likes what is loud, bob does not, and both like what is good."""
    texts, users = TEXTS * 2, ["ann"] * 6 + ["bob"] * 6
    ratings = [
        t.split().count("good") + (1 if u == "ann" else -1) * t.split().count("loud")
        for t, u in zip(texts, users, strict=True)
    ]
    groups = [Keywords((word,), word) for word in ("loud", "good", "red")]
    fitted = PersonalRewardModel(groups, rank=2, shared_penalty=0.1, taste_penalty=0.1)
    return fitted.fit_ratings([""] * 12, texts, ratings, users)


def test_the_user_of_the_row_decides(model):
    reward = PersonalReward(model)
    said = reward(
        prompts=[""] * 4, completions=["loud"] * 4, completion_ids=[[1]] * 4, user=["ann", "bob", "eve", None]
    )
    assert said[0] > said[2] > said[1]
    assert said[2] == said[3]
    assert said == pytest.approx(model.scores([""] * 4, ["loud"] * 4, ["ann", "bob", None, None]).tolist())
    assert reward([], [], user=[]) == []


def test_the_column_may_have_another_name(model):
    reward = PersonalReward(model, user_column="reader")
    said = reward(prompts=["", ""], completions=["loud", "loud"], reader=["ann", "bob"], user=["bob", "ann"])
    assert said[0] > said[1]


def test_without_the_column_all_get_the_shared_score_and_it_is_said_once(model, caplog):
    reward = PersonalReward(model, user_column="reader")
    with caplog.at_level(logging.WARNING):
        said = reward(prompts=["", ""], completions=["loud", "good"], user=["ann", "bob"])
        reward(prompts=[""], completions=["loud"])
    assert said == model.scores(["", ""], ["loud", "good"]).tolist()
    assert [record.getMessage() for record in caplog.records] == [
        "Personal reward 'PersonalReward': 2 of 2 rows get the shared score, because the dataset has no column "
        "'reader'. This is said once; the attribute `shared` counts on."
    ]
    assert reward.shared == 3


def test_users_who_are_not_known_are_counted(model, caplog):
    reward = PersonalReward(model)
    with caplog.at_level(logging.WARNING):
        reward([""] * 3, ["loud"] * 3, user=["ann", "eve", None])
    assert "2 of 3 rows get the shared score, because their user is not known" in caplog.text


def test_a_folder_is_loaded_and_a_pickle_says_the_same(model, tmp_path):
    model.save(tmp_path / "mine")
    reward = PersonalReward(tmp_path / "mine")
    assert reward.__name__ == "mine"
    again = pickle.loads(pickle.dumps(reward))
    for one in (reward, again):
        assert np.array_equal(
            one(["", ""], ["loud", "red"], user=["ann", "bob"]),
            model.scores(["", ""], ["loud", "red"], ["ann", "bob"]),
        )
    assert "users=2" in repr(reward)


def test_it_is_a_reward_like_any_other(model):
    total = WeightedSum([PersonalReward(model)], weights=[2.0])
    assert total(prompts=[""], completions=["loud"], completion_ids=[[1]], user=["ann"]) == pytest.approx(
        2 * model.scores([""], ["loud"], ["ann"])
    )


def test_mistakes(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="personal_reward.json"):
        PersonalReward(tmp_path)
    with pytest.raises(ValueError, match="has not been fitted"):
        PersonalReward(PersonalRewardModel())
    with pytest.raises(ValueError, match="1 values of 'user'"):
        PersonalReward(model)(["", ""], ["loud", "red"], user=["ann"])
    with pytest.raises(ValueError, match="whole number"):
        PersonalReward(model)([""], ["loud"], user=[["ann"]])
