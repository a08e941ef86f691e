import pickle

import pytest

from rlhf_recipes.rewards import Vader

# The examples of VADER's own README.
SMART = "VADER is smart, handsome, and funny."
NOT_SMART = "VADER is not smart, handsome, nor funny."


def test_vader_gives_the_compound_score_of_its_readme():
    rewards = Vader()(prompts=["", ""], completions=[SMART, NOT_SMART])
    assert rewards == pytest.approx([0.8316, -0.7424], abs=1e-4)


def test_the_prompt_counts_unless_told_otherwise():
    split = {"prompts": ["VADER is smart,"], "completions": [" handsome, and funny."]}
    assert Vader()(**split) == pytest.approx([0.8316], abs=1e-4)
    assert Vader(completion_only=True)(prompts=[SMART], completions=[" It is."]) == [0.0]


def test_an_empty_text_is_neutral():
    assert Vader()(prompts=["", " "], completions=["", "\n"]) == [0.0, 0.0]


def test_vader_reads_messages():
    prompt, completion = [{"role": "user", "content": "Well?"}], [{"role": "assistant", "content": SMART}]
    assert Vader(completion_only=True)(prompts=[prompt], completions=[completion]) == pytest.approx([0.8316], abs=1e-4)
    assert Vader()(prompts=[prompt], completions=[completion])[0] > 0.8


def test_vader_has_a_name_and_survives_pickling():
    reward = pickle.loads(pickle.dumps(Vader(name="lexicon")))
    assert reward == Vader(name="lexicon")
    assert reward.__name__ == "lexicon"
