import functools
import pickle
import re

import pytest

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.rewards import EndsWithSentence, LearnedReward, RegexMatch, Vader, load_reward, load_rewards
from rlhf_recipes.rewards.loading import RewardArguments
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


@pytest.mark.parametrize(
    "path",
    [
        "answers:NumberAnswer",
        "compose.Clip",
        "compute.Discount",
        "ensemble:EnsembleReward",
        "grammar:Spelling",
        "grammar:Acceptability",
        "embeddings.EmbeddingDistance",
        "combine.compose:Clip",
        "image_text.ImageTextReward",
        "languagetool:LanguageTool",
        "linear:LinearReward",
        "personal:PersonalReward",
        "schedules:WeightSchedule",
        "semantics.EmbeddingSimilarity",
        "semantics.EmbeddingDistance",
        "shared_ensemble:SharedBaseEnsemble",
    ],
)
def test_a_path_that_a_reward_once_had_still_leads_to_it(path):
    """The paths of version 0.1.0, which may stand in anybody's YAML."""
    name = path.replace(":", ".").rpartition(".")[2]
    try:
        args = {"reward": "EndsWithSentence", "low": 0.5} if "compose" in path else None
        found = type(load_reward(f"rlhf_recipes.rewards.{path}", args=args)).__name__
    except ValueError as error:
        found = str(error)
    assert found == name or found.startswith(f"Reward {name!r} needs ")


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


# ---- functions that make rewards


def make(limit, step=1.0):
    def up_to(completion_ids, **kwargs):
        return [step * min(len(ids), limit) for ids in completion_ids]

    return up_to


def test_a_function_that_makes_a_reward_is_called_once_with_its_args():
    reward = load_reward(make, args={"limit": 2})
    assert reward.__name__ == "up_to"
    assert reward(**ROWS) == [2.0, 1.0]
    assert load_reward(make, name="short", args={"limit": 2, "step": 0.5})(**ROWS) == [1.0, 0.5]
    assert pickle.loads(pickle.dumps(reward))(**ROWS) == [2.0, 1.0]
    assert load_rewards([{"func": make, "args": {"limit": 2}, "weight": 3}])(**ROWS) == [6.0, 3.0]


def test_factories_of_trl_give_what_they_give_there():
    from trl.rewards import get_repetition_penalty_reward, get_soft_overlong_punishment

    args = {"max_completion_len": 3, "soft_punish_cache": 2}
    loaded = load_reward("trl.rewards.get_soft_overlong_punishment", args=args)
    assert loaded(**ROWS) == get_soft_overlong_punishment(**args)(**ROWS) == [-1.0, 0.0]
    # One whose settings all have defaults is called without any.
    words = {**ROWS, "completions": ["a b c a b c", "a"]}
    loaded = load_reward("trl.rewards.get_repetition_penalty_reward")
    assert loaded(**words) == get_repetition_penalty_reward()(**words)


@pytest.mark.parametrize(
    ("func", "args", "words"),
    [
        (make, {}, "Reward 'make' needs limit: give it under args."),
        (make, {"limt": 2}, "Reward 'make' has no argument 'limt'; did you mean 'limit'? It takes limit, step."),
        (lambda limit: limit, {"limit": 2}, "it was called to make one, and gave 2, which is none"),
        (lambda: make, {}, "which is none. Give a reward one of these parameters"),
    ],
)
def test_a_function_that_makes_no_reward_of_its_args_is_told(func, args, words):
    with pytest.raises((ValueError, TypeError), match=re.escape(words)):
        load_reward(func, args=args)


@pytest.mark.parametrize(
    "func",
    [
        lambda completions: [0.0] * len(completions),
        lambda **kwargs: [0.0, 0.0],
        lambda prompts, completions, completion_ids: [0.0, 0.0],
        functools.partial(lambda limit, completions, **kwargs: [0.0, 0.0], 3),
    ],
)
def test_a_reward_is_not_called_to_make_one(func):
    assert load_reward(func) is func


def test_partials_have_the_name_of_their_function_and_two_of_one_name_are_told_how_to_be_named():
    def brevity(completion_ids, limit, **kwargs):
        return [float(limit - len(ids)) for ids in completion_ids]

    one, other = functools.partial(brevity, limit=3), functools.partial(brevity, limit=4)
    message = re.escape(
        "Two rewards are named 'brevity', so their logs would mix. Give them names of their own: {func"
    )
    with pytest.raises(ValueError, match=message):
        load_rewards([one, other])
    with pytest.raises(ValueError, match=r"named '<lambda>'.*load_reward\(func, name='short'\)"):
        load_rewards([lambda **kwargs: [0.0], lambda **kwargs: [1.0]])
    named = load_rewards([{"func": one, "name": "short"}, load_reward(other, name="long")])
    assert named.parts(**ROWS) == {"short": [0.0, 2.0], "long": [1.0, 3.0]}


# ---- files beside files


def parsed(tmp_path, text):
    (tmp_path / "runs").mkdir(exist_ok=True)
    (tmp_path / "runs" / "run.yaml").write_text(text)
    (arguments,) = RecipeParser(RewardArguments).parse(["--config", str(tmp_path / "runs" / "run.yaml")])
    return arguments


def test_paths_are_looked_for_beside_the_yaml_file_and_first_from_where_the_command_runs(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine.py").write_text(
        "def one(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    )
    (tmp_path / "runs" / "words.txt").write_text("flim\n")
    tokenizer = tiny_tokenizer("bert")
    save_tiny(tmp_path / "runs" / "judge", tiny_classifier(tokenizer), tokenizer)
    arguments = parsed(
        tmp_path,
        """
reward_funcs:
  - mine.py:one
  - {func: judge, name: judge, weight: 0}
  - {func: Clip, name: clipped, args: {reward: mine.py:one, high: 0.5}}
  - {func: Product, args: {rewards: [{func: mine.py:one}, {func: Spelling, args: {extra: words.txt}}]}}
  - {func: OnText, name: letters, args: {func: "mine.py:one"}, weight: 0}
""",
    )
    loaded = load_rewards(arguments.reward_funcs[:4])
    assert loaded(prompts=[""], completions=["flim"], completion_ids=[[1]]) == [1.0 + 0.5 + 1.0]
    assert pickle.loads(pickle.dumps(loaded)).names == loaded.names
    (tmp_path / "mine.py").write_text("def one(completions, **kwargs):\n    return [2.0] * len(completions)\n")
    assert load_rewards(arguments.reward_funcs[:1])(prompts=[""], completions=[""], completion_ids=[[1]]) == [2.0]


@pytest.mark.parametrize("func", ["nowhere.py:one", "./nowhere"])
def test_the_message_says_where_it_was_looked_for(tmp_path, monkeypatch, func):
    monkeypatch.chdir(tmp_path)
    arguments = parsed(tmp_path, f"reward_funcs: ['{func}']\n")
    with pytest.raises(FileNotFoundError) as caught:
        load_rewards(arguments.reward_funcs)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}/runs/run.yaml, line 1: ")
    assert said.endswith(f"It is not beside {tmp_path}/runs/run.yaml either, in {tmp_path}/runs.")
    assert "nowhere" in said


def test_a_file_may_import_its_neighbour_at_once_or_later(tmp_path):
    (tmp_path / "neighbour_of_rewards.py").write_text("LIMIT = 2\n")
    (tmp_path / "later_neighbour.py").write_text("STEP = 0.5\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "from neighbour_of_rewards import LIMIT\n\n"
        "def brevity(completion_ids, **kwargs):\n"
        "    from later_neighbour import STEP\n"
        "    return [STEP * min(LIMIT, len(ids)) for ids in completion_ids]\n"
    )
    assert load_reward(f"{file}:brevity")(**ROWS) == [1.0, 0.5]


def test_two_neighbours_of_one_name_are_not_mixed_up(tmp_path):
    files = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "shared_name.py").write_text(f"NUMBER = {number}.0\n\ndef number():\n    return NUMBER\n")
        (folder / "mine.py").write_text(
            "from shared_name import number\n\n"
            "def one(completions, **kwargs):\n    return [number() for _ in completions]\n"
        )
        files.append(folder / "mine.py")
    assert load_reward(f"{files[0]}:one")(**ROWS) == [1.0, 1.0]
    with pytest.raises(ImportError, match=f"imports shared_name, and has got {files[0].parent}/shared_name.py"):
        load_reward(f"{files[1]}:one")


@pytest.mark.parametrize(
    ("func", "meant"),
    [
        ("NumberAnswer:x", "NumberAnswer"),
        ("NumberAnswr.x", "NumberAnswer"),
        ("rlhf_recipes.reward.Vader", "Vader"),
        ("my_own:brevity", "my_own.py:brevity"),
        ("package.my_own.brevity", "package/my_own.py:brevity"),
    ],
)
def test_a_module_that_is_not_there_may_be_a_reward_or_a_file(func, meant, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package").mkdir()
    for folder in (tmp_path, tmp_path / "package"):
        (folder / "my_own.py").write_text("def brevity(completions, **kwargs):\n    return [0.0] * len(completions)\n")
    with pytest.raises(ValueError, match=rf"There is no module .*; did you mean '{re.escape(meant)}'\? Install it"):
        load_rewards([func])
