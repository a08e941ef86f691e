import pickle

import pytest

from rlhf_recipes.rewards import EndsWithSentence, LearnedReward, RegexMatch, Vader, load_reward, load_rewards
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

REWARDS_FILE = """
from dataclasses import dataclass

HALF = 0.5

def brevity(completion_ids, limit=4, **kwargs):
    return [HALF * max(0, limit - len(ids)) for ids in completion_ids]

def exact(completions, answer, **kwargs):
    return [float(a == b) for a, b in zip(completions, answer)]

@dataclass
class Contains:
    word: str
    def __call__(self, completions, **kwargs):
        return [float(self.word in text) for text in completions]
"""
ROWS = {"prompts": ["It is", "It is"], "completions": [" good.", " so"], "completion_ids": [[1, 2, 3], [4]]}


@pytest.fixture
def my_rewards(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(REWARDS_FILE)
    return path


def test_a_list_as_in_a_yaml_file(my_rewards):
    reward = load_rewards(
        [
            "EndsWithSentence",
            {"func": f"{my_rewards}:brevity", "name": "short", "weight": 0.5, "args": {"limit": 5}},
            {"func": "RegexMatch", "name": "praise", "args": {"pattern": "good"}, "weight": 2},
        ]
    )
    assert reward.weights == (1.0, 0.5, 2.0)
    assert reward.parts(**ROWS) == {"EndsWithSentence": [1.0, 0.0], "short": [1.0, 2.0], "praise": [1.0, 0.0]}
    assert reward(**ROWS) == [3.5, 1.0]


def test_weights_may_come_as_a_list():
    assert load_rewards(["EndsWithSentence", "Vader"], weights=[0.5, 2]).weights == (0.5, 2.0)
    with pytest.raises(ValueError, match=r"1 weights were given for 2 rewards \(EndsWithSentence, Vader\): \[3\]"):
        load_rewards(["EndsWithSentence", "Vader"], weights=[3])


def test_names_of_this_library_give_plain_objects():
    rewards = load_rewards(["EndsWithSentence", {"func": "RegexMatch", "name": "praise", "args": {"pattern": "good"}}])
    assert rewards.reward_funcs == (EndsWithSentence(), RegexMatch("good", name="praise"))


@pytest.mark.parametrize("func", ["rlhf_recipes.rewards.sentiment.Vader", "rlhf_recipes.rewards:Vader", "Vader"])
def test_an_import_path_with_dots_or_a_colon(func):
    assert load_reward(func) == Vader()
    assert load_reward(func, args={"completion_only": True}) == Vader(completion_only=True)


def test_a_model_folder_is_a_learned_reward(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer("bert")
    model = tiny_classifier(tokenizer)
    folder = save_tiny(tmp_path / "judge", model, tokenizer)
    expected = LearnedReward(model, tokenizer)(**ROWS)
    reward = load_reward(str(folder), args={"batch_size": 1})
    assert (type(reward), reward.__name__, reward.batch_size) == (LearnedReward, "judge", 1)
    assert reward(**ROWS) == pytest.approx(expected, abs=1e-5)
    assert load_reward(str(folder), name="rm").__name__ == "rm"
    monkeypatch.chdir(tmp_path)
    assert load_reward("judge").__name__ == "judge"
    with pytest.raises(ValueError, match=r"'LearnedReward' has no argument 'batchsize'; did you mean 'batch_size'\?"):
        load_reward("judge", args={"batchsize": 1})


def test_a_function_is_taken_as_it_is_unless_it_gets_settings():
    def brevity(completion_ids, limit, **kwargs):
        return [float(limit - len(ids)) for ids in completion_ids]

    assert load_reward(brevity) is brevity
    reward = load_reward(brevity, name="short", args={"limit": 3})
    assert reward.__name__ == "short"
    assert reward(**ROWS, limit=["a", "column"]) == [0.0, 2.0]


def test_a_class_in_a_file(my_rewards):
    reward = load_reward(f"{my_rewards}:Contains", args={"word": "so"})
    assert reward.__name__ == "Contains"
    assert reward(**ROWS) == [0.0, 1.0]


def test_columns_reach_a_reward_from_a_file(my_rewards):
    assert load_reward(f"{my_rewards}:exact")(**ROWS, answer=[" good.", ""]) == [1.0, 0.0]


def test_rewards_from_files_and_with_settings_survive_pickling(my_rewards):
    specs = [f"{my_rewards}:brevity", {"func": f"{my_rewards}:Contains", "args": {"word": "so"}, "weight": 3}]
    reward = pickle.loads(pickle.dumps(load_rewards(specs)))
    assert reward.names == ("brevity", "Contains")
    assert reward(**ROWS) == [0.5, 4.5]


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("nowhere.py:brevity", FileNotFoundError, "no file 'nowhere.py' with rewards (looked for /"),
        ("FILE:brevty", ValueError, "no 'brevty' in FILE; did you mean 'brevity'? It holds brevity, exact, Contains"),
        ("FILE", ValueError, "FILE needs a name. It holds brevity, exact, Contains. Write FILE:name."),
        ("nowhere.rewards.brevity", ValueError, "no module 'nowhere.rewards' to take the reward 'brevity' from"),
        ("rlhf_recipes.rewards.rules.Regex", ValueError, "no 'Regex' in rlhf_recipes.rewards.rules; did you mean"),
        ("EndWithSentence", ValueError, "no reward 'EndWithSentence'; did you mean 'EndsWithSentence'?"),
        ("load_rewards", ValueError, "A reward is a name of rlhf_recipes.rewards (Acceptability, ActiveParameters"),
        ("./nowhere", FileNotFoundError, "No model at './nowhere'"),
        ({"func": "Vader", "wieght": 1}, ValueError, "no key 'wieght'; did you mean 'weight'? Known: func, name"),
        ({"name": "x"}, ValueError, "says no func"),
        ({"func": "Vader", "args": [1]}, ValueError, "args of reward 'Vader' must map names to values, but are [1]"),
        (
            {"func": "Vader", "weight": "1e-1"},
            ValueError,
            "'Vader' is '1e-1', of type str, but must be a number. (YAML",
        ),
        ({"func": "Vader", "weight": True}, ValueError, "'Vader' is True, of type bool"),
        ({"func": "Vader", "args": {"only": 1}}, ValueError, "'Vader' has no argument 'only'"),
        (
            {"func": "EndsWithSentence", "args": {"n": 1}},
            ValueError,
            "no argument 'n'. It takes name.",
        ),
        ({"func": "RegexMatch"}, ValueError, "'RegexMatch' needs pattern: give it under args"),
        ({"func": "FILE:brevity", "args": {"limt": 3}}, ValueError, "no argument 'limt'; did you mean 'limit'?"),
        (3, TypeError, "but 3 was given"),
    ],
)
def test_what_cannot_be_a_reward_is_refused(spec, error, words, my_rewards):
    def fill(value):
        return value.replace("FILE", str(my_rewards)) if isinstance(value, str) else value

    spec = {key: fill(value) for key, value in spec.items()} if isinstance(spec, dict) else fill(spec)
    with pytest.raises(error) as caught:
        load_rewards([spec])
    assert fill(words) in str(caught.value)


def test_a_weight_is_given_once():
    with pytest.raises(ValueError, match=r"weight of Vader is given with the reward, and weights .* \(\[1, 2\]\)"):
        load_rewards([{"func": "Vader", "weight": 0.5}, "EndsWithSentence"], weights=[1, 2])


def test_rewards_come_as_a_list():
    with pytest.raises(TypeError, match="come as a list, but 'Vader' was given"):
        load_rewards("Vader")


def test_the_same_reward_twice_needs_names():
    with pytest.raises(ValueError, match="Two rewards are named 'Vader'"):
        load_rewards(["Vader", {"func": "Vader", "args": {"completion_only": True}}])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("def broken(:\n    pass\n", r"my_rewards.py.*: SyntaxError: .*line 1"),
        ("import math\n\nmath.nothing\n", r"my_rewards.py, line 3: AttributeError: .*'nothing'"),
    ],
)
def test_a_file_that_does_not_run_is_named_with_the_line(my_rewards, text, words):
    my_rewards.write_text(text)
    with pytest.raises(ImportError, match=words):
        load_rewards([f"{my_rewards}:brevity"])


def test_an_error_that_no_text_alone_can_make_keeps_its_text_and_its_line():
    from rlhf_recipes.arguments import located

    class Odd(ValueError):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    class Reward:
        def __init__(self):
            raise Odd("this", "that")

        def __call__(self, completions, **kwargs):
            return []

    with pytest.raises(ValueError, match="run.yaml, line 3: this and that"):
        load_rewards([located({"func": Reward}, "run.yaml, line 3")])


def test_the_description_of_a_weight_that_is_a_function_has_no_address():
    """A resumed run compares descriptions."""

    def falling(progress):
        return 1 - progress

    reward = load_rewards([{"func": "EndsWithSentence", "weight": falling}])
    assert "0x" not in repr(reward)
    assert "falling" in repr(reward)
