import numpy as np
import pytest
import torch

from rlhf_recipes.reward_modeling.linear.features import FeatureSet, Length, Reading
from rlhf_recipes.reward_modeling.personal.features import HiddenFeatures, hidden_vectors
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.rewards.learned import LearnedReward
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

TEXTS = ["A film.", "It was bad, but the music was good and the ending was great.", "", "Nobody!"]


@pytest.fixture(scope="module", params=["bert", "llama"])
def folder(request, tmp_path_factory):
    tokenizer = tiny_tokenizer(request.param)
    model = tiny_classifier(tokenizer, kind=request.param)
    return str(save_tiny(tmp_path_factory.mktemp("reward") / request.param, model, tokenizer))


def test_the_head_of_the_vectors_is_the_score(folder):
    """Whatever the batch: `w.h + b` is what the reward model says."""
    reward = LearnedReward(folder, calibrate=False)
    vectors = hidden_vectors(reward, [Reading("", text, text) for text in TEXTS], batch_size=3)
    head = reward.model.classifier if hasattr(reward.model, "classifier") else reward.model.score
    said = torch.nn.functional.linear(vectors, head.weight, head.bias)[:, 0]
    assert said.detach().tolist() == pytest.approx(reward([""] * 4, TEXTS), abs=1e-5)


def test_they_are_a_group_of_features(folder, tmp_path):
    features = FeatureSet((HiddenFeatures(folder), Length())).fit([""] * 4, TEXTS)
    assert len(features.features) == 32 + 5
    assert features.features[0].name == "hidden[0]"
    again = FeatureSet.from_json(features.to_json(), trust=True)
    assert np.array_equal(again.matrix([""] * 4, TEXTS), features.matrix([""] * 4, TEXTS))


def test_a_personal_model_of_them_is_loaded_without_trust(folder, tmp_path):
    model = PersonalRewardModel([HiddenFeatures(folder)], rank=1, shared_penalty=1.0, taste_penalty=1.0)
    model.fit_ratings([""] * 4, TEXTS, [1.0, 2.0, 3.0, 0.0], ["ann", "ann", "bob", "bob"]).save(tmp_path)
    loaded = PersonalRewardModel.load(tmp_path)
    assert np.array_equal(loaded.scores([""] * 4, TEXTS, ["ann"] * 4), model.scores([""] * 4, TEXTS, ["ann"] * 4))


def test_a_model_without_a_known_head():
    class Headless:
        model = torch.nn.Sequential(torch.nn.Linear(2, 1))

    with pytest.raises(ValueError, match="no linear layer named score"):
        hidden_vectors(Headless(), [])
