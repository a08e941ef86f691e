import threading
import time

import pytest

from rlhf_recipes.rewards import Clip, WeightedSum
from rlhf_recipes.rewards.contract import watchdog
from rlhf_recipes.rewards.contract.watchdog import watched

ROWS = {"prompts": ["?"], "completions": ["a"], "completion_ids": [[1]]}


def slow(completions, **kwargs):
    time.sleep(0.5)  # the line that is named
    return [2.0 for _ in completions]


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(watchdog, "FIRST_SECONDS", 0.05)


def test_a_reward_that_does_not_come_back_is_named_with_its_line_ever_more_rarely(soon, caplog):
    assert WeightedSum([Clip(slow, high=1.0, name="clipped")])(**ROWS) == [1.0]
    line = slow.__code__.co_firstlineno + 1
    said = [record.getMessage() for record in caplog.records]
    assert 2 <= len(said) <= 4  # at 0.05, 0.1, 0.2 and 0.4 seconds
    assert all(f"Reward 'slow' has not come back for 0.{''}" in text for text in said)
    assert all(f"it is in {__file__}, line {line}" in text for text in said)


def test_a_reward_that_comes_back_is_not_named(soon, caplog):
    with watched("quick"):
        pass
    with pytest.raises(KeyError), watched("fails"):
        raise KeyError("x")
    time.sleep(0.15)
    assert caplog.text == ""
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_the_first_word_comes_after_a_minute():
    assert watchdog.FIRST_SECONDS == 60
