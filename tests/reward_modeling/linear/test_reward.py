import pickle
import subprocess
import sys

import pytest

from rlhf_recipes.reward_modeling.linear.features import NAMED, BagOfWords, FeatureSet, Keywords
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from rlhf_recipes.rewards import WeightedSum
from rlhf_recipes.rewards.loading import load_reward

GOOD = Keywords(("good",), "good")
TEXTS = ["film", "good film", "good good film"]
PROMPTS = ["The film is", "A good", "", "Nobody"]
COMPLETIONS = [" good.", " plot and a good cast", "静かな good 映画 😀", " could save it"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """0 for no "good", 1 for one and 2 for two of them: least squares, as a folder."""
    model = LinearRewardModel([GOOD], "sklearn.linear_model:LinearRegression")
    model.fit_ratings([""] * 3, TEXTS, [0.0, 1.0, 2.0])
    return model.save(tmp_path_factory.mktemp("models") / "goodness")


def test_the_reward_is_the_regression_s_score(folder):
    reward = LinearReward(folder)
    assert reward(prompts=PROMPTS, completions=COMPLETIONS) == pytest.approx([1.0, 2.0, 1.0, 0.0])
    assert reward.__name__ == "goodness"
    assert LinearReward(folder, name="why").__name__ == "why"


def test_its_folder_is_a_reward_by_itself(folder):
    assert type(load_reward(str(folder))) is LinearReward


def test_a_row_is_explained(folder):
    ((feature, value, contribution),) = LinearReward(folder).explain("A good", " film")
    assert (feature, value) == ("good", 1.0)
    assert contribution == pytest.approx(0.0)  # as many as in the mean of the training texts
    assert LinearReward(folder).explain("", "film")[0].contribution == pytest.approx(-1.0)


def test_scores_become_ratings_where_there_is_a_calibration(folder):
    model = LinearRewardModel.load(folder)
    model.calibrate([""] * 4, ["film", "good film", "good good", "good good"], [-1.0, 0.0, 1.0, 1.0], -2.0, 2.0)
    low, middle, high = LinearReward(model)([""] * 3, TEXTS)
    assert -2 < low < middle < high < 2
    assert middle == pytest.approx(0.0, abs=0.1)
    assert LinearReward(model, calibrate=False)([""] * 3, TEXTS) == pytest.approx([0.0, 1.0, 2.0])


def test_a_text_with_nothing_to_see_has_no_score(folder):
    reward = LinearReward(folder)
    assert reward(["", "", " \n", ""], ["", "\u200b", "", "..."]) == [None, None, None, pytest.approx(0.0)]
    assert reward(["good"], [""]) == pytest.approx([1.0])
    assert reward([], []) == []


def test_of_the_completion_alone():
    model = LinearRewardModel(FeatureSet((GOOD,), completion_only=True), "sklearn.linear_model:LinearRegression")
    reward = LinearReward(model.fit_ratings([""] * 3, TEXTS, [0.0, 1.0, 2.0]))
    assert reward(["good good", "good"], [" film", ""]) == [pytest.approx(0.0), None]


def test_messages_and_extremes(folder):
    reward = LinearReward(folder)
    prompt, completion = [{"role": "user", "content": "good?"}], [{"role": "assistant", "content": "good"}]
    assert reward([prompt], [completion]) == pytest.approx([2.0])
    # 10,000 words count no further than training went.
    assert reward([""] * 3, ["good " * 10_000, "👍🏽 ЖЁЛТЫЙ 静か", "?!"]) == pytest.approx([2.0, 0.0, 0.0])


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    model = LinearRewardModel([*NAMED, BagOfWords(min_texts=1)])
    texts = [f"{text}{end}" for text in TEXTS for end in (".", "!", " 3 times", " and more?")]
    model.fit_ratings([""] * 12, texts, [text.count("good") + 0.1 * len(text) for text in texts])
    return model.save(tmp_path_factory.mktemp("models") / "rich")


def test_a_value_is_that_of_its_own_row(rich):
    reward = LinearReward(rich)
    together = reward(PROMPTS, COMPLETIONS)
    assert len(set(together)) == 4
    for prompt, completion, value in zip(PROMPTS, COMPLETIONS, together, strict=True):
        assert reward([prompt], [completion]) == pytest.approx([value], abs=1e-9)


def test_a_pickle_gives_equal_values(rich):
    reward = LinearReward(rich, name="why", calibrate=False)
    again = pickle.loads(pickle.dumps(reward))
    assert again.__name__ == "why"
    assert again(PROMPTS, COMPLETIONS) == reward(PROMPTS, COMPLETIONS)
    held = LinearReward(LinearRewardModel.load(rich))
    assert pickle.loads(pickle.dumps(held))(PROMPTS, COMPLETIONS) == held(PROMPTS, COMPLETIONS)


def test_it_is_a_reward_of_a_weighted_sum(folder):
    total = WeightedSum([LinearReward(folder)], [0.5])
    batch = {"prompts": PROMPTS, "completions": COMPLETIONS, "completion_ids": [[1]] * 4}
    assert total(**batch) == pytest.approx([0.5, 1.0, 0.5, 0.0])


def test_a_pickled_regressor_needs_trust(tmp_path):
    model = LinearRewardModel([GOOD], "sklearn.tree:DecisionTreeRegressor")
    folder = model.fit_ratings([""] * 3, TEXTS, [0.0, 1.0, 2.0]).save(tmp_path / "tree")
    with pytest.raises(ValueError, match="trust=True"):
        LinearReward(folder)
    reward = LinearReward(folder, trust=True)
    assert reward([""] * 3, TEXTS) == [0.0, 1.0, 2.0]
    assert pickle.loads(pickle.dumps(reward))([""] * 3, TEXTS) == [0.0, 1.0, 2.0]


def test_mistakes_are_told_when_it_is_made(tmp_path):
    with pytest.raises(FileNotFoundError, match="linear_reward.json"):
        LinearReward(tmp_path)
    with pytest.raises(ValueError, match="not been fitted"):
        LinearReward(LinearRewardModel([GOOD]))


def test_judging_does_not_wait_for_torch_nor_without_words_for_scikit_learn(folder, rich):
    for model, said in ((folder, "False False"), (rich, "False True")):
        code = (
            "import sys; from rlhf_recipes.reward_modeling.linear.reward import LinearReward\n"
            f"LinearReward({str(model)!r})([''], ['good']); print('torch' in sys.modules, 'sklearn' in sys.modules)"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == f"{said}\n"
