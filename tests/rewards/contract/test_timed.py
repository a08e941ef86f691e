import math
import pickle
import time

import pytest

from rlhf_recipes.rewards import EndsWithSentence, RegexMatch, RewardError, TimedReward, WeightedSum, load_rewards

FILE = '''
import os, signal, time

def length(completions, log_metric=None, scale=1.0, **kwargs):
    """Hangs at "hang" like a power that is too large, and asks for the main thread, as an alarm does."""
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    for text in completions:
        if text == "hang":
            9**9**9**9
        if text == "exit":
            os._exit(3)
        if text == "raise":
            raise KeyError(text)
    log_metric("seen", float(len(completions)))
    return [scale * len(text) for text in completions]

async def slow(completions, **kwargs):
    return [1.0 for text in completions]

def tokens(completion_ids, **kwargs):
    return [[1.0] * len(ids) for ids in completion_ids]
tokens.per_token = True
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "timed_rewards.py"
    path.write_text(FILE)
    return path


def rows(*completions):
    return {
        "prompts": ["?"] * len(completions),
        "completions": list(completions),
        "completion_ids": [[1, 2]] * len(completions),
    }


def test_the_row_that_hangs_gets_none_and_the_others_their_values(file, caplog):
    logged = []
    reward = load_rewards([{"func": f"{file}:length", "timeout": 0.5, "args": {"scale": 2}}]).reward_funcs[0]
    for _ in range(2):
        batch = rows("a", "hang", "ccc")
        assert reward(**batch, log_metric=lambda *pair: logged.append(pair)) == [2.0, None, 6.0]
    assert logged.count(("length/timed_out", 1.0)) == 2
    assert logged.count(("seen", 1.0)) == 4  # of the rows alone: the batch was ended before it could say so
    assert caplog.text.count("did not come back within its timeout of 0.5 seconds, and was ended: 1 of 3 rows") == 1


def test_rows_that_all_hang_are_given_up(file):
    reward = TimedReward(load_rewards([f"{file}:length"]).reward_funcs[0], 0.2)
    reward(**rows("a"))
    begin = time.monotonic()
    assert reward(**rows(*["hang"] * 200)) == [None] * 200
    assert time.monotonic() - begin < 60  # 5 limits and as many starts, and not 200


def test_it_logs_and_raises_as_the_reward_does(file):
    reward, logged = TimedReward(load_rewards([f"{file}:length"]).reward_funcs[0], 20), []
    assert reward(**rows("a", "bb"), log_metric=lambda *pair: logged.append(pair)) == [1.0, 2.0]
    assert logged == [("seen", 2.0)]
    with pytest.raises(RewardError, match=r"'length' raised KeyError: 'raise'.*row 1 .*timed_rewards.py, line 13"):
        reward(**rows("a", "raise"))
    with pytest.raises(RewardError, match="The process of reward 'length' ended: Its process ended with code 3"):
        reward(**rows("exit"))
    assert pickle.loads(pickle.dumps(reward))(**rows("a")) == [1.0]


def test_it_is_what_the_reward_is_and_goes_into_compositions(file):
    specs = [
        {"func": f"{file}:tokens", "timeout": 20},
        {"func": "Clip", "args": {"reward": {"func": f"{file}:length", "timeout": 20}, "high": 1.5}},
        {"func": f"{file}:slow", "timeout": 20, "name": "waits", "weight": 2},
    ]
    rewards = load_rewards(specs)
    assert rewards.token_names == ("tokens",)
    assert rewards.parts(**rows("a", "bb")) == {
        "tokens": [[1.0, 1.0]] * 2, "length": [1.0, 1.5], "waits": [1.0, 1.0]
    }  # fmt: skip
    assert WeightedSum([TimedReward(EndsWithSentence(), 20)])(**rows("Yes.", "no")) == [1.0, 0.0]


def of_main(completions, **kwargs):
    return [0.0 for _ in completions]


@pytest.mark.parametrize("timeout", [0, -1, math.inf, True, "5"])
def test_a_timeout_is_a_number_of_seconds(timeout):
    with pytest.raises(ValueError, match="timeout of reward 'EndsWithSentence' is .*number of seconds above 0"):
        load_rewards([{"func": "EndsWithSentence", "timeout": timeout}])


def test_a_reward_that_no_other_process_finds_is_refused():
    def inner(completions, **kwargs):
        return [0.0 for _ in completions]

    for reward in (inner, lambda **kwargs: []):
        with pytest.raises(ValueError, match="has a timeout, .* Put it into a file and name it"):
            TimedReward(reward, 5)
    of_main.__module__ = "__main__"
    try:
        with pytest.raises(ValueError, match="has a timeout, .* Put it into a file and name it"):
            TimedReward(of_main, 5)
    finally:
        of_main.__module__ = __name__


def test_a_pattern_that_would_take_for_ever_is_ended():
    reward = TimedReward(RegexMatch("(a+)+b"), 1.0)
    start = time.monotonic()
    assert reward(prompts=["", ""], completions=["aab", "a" * 60], completion_ids=[[1], [1]]) == [1.0, None]
    assert time.monotonic() - start < 60
