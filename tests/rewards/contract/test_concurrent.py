import asyncio
import pickle
import signal
import threading

import pytest

from rlhf_recipes.rewards import Clip, EnsembleReward, Gate, RewardError, WeightedSum, load_rewards
from rlhf_recipes.rewards.base import StartedRewards
from rlhf_recipes.rewards.contract.concurrent import can_start, is_async
from rlhf_recipes.rewards.loading import RewardArguments

ROWS = {"prompts": ["a", "b"], "completions": ["x", "yy"], "completion_ids": [[1], [1, 2]]}


async def slow_length(completions, **kwargs):
    await asyncio.sleep(0)
    return [float(len(text)) for text in completions]


class AsyncObject:
    __name__ = "async_object"

    async def __call__(self, completions, **kwargs):
        return [1.0 for _ in completions]


class Startable:
    """Says when it began and when somebody asked for its values."""

    __name__ = "startable"

    def __init__(self):
        self.seen = []

    def start(self, completions, **kwargs):
        self.seen.append("start")

        def finish():
            self.seen.append("finish")
            return [2.0 for _ in completions]

        return finish

    def __call__(self, **batch):
        return self.start(**batch)()


def test_which_rewards_can_be_started():
    assert [can_start(func) for func in (slow_length, AsyncObject(), Startable())] == [True, True, True]
    assert not can_start(lambda completions, **kwargs: [])
    assert is_async(AsyncObject())
    assert not is_async(Startable())


def test_coroutines_started_objects_and_functions_in_one_list():
    reward = WeightedSum([slow_length, AsyncObject(), Startable(), lambda completions, **kwargs: [0.5, None]])
    parts = reward.parts(**ROWS)
    assert parts == {
        "slow_length": [1.0, 2.0], "async_object": [1.0, 1.0], "startable": [2.0, 2.0], "<lambda>": [0.5, None]
    }  # fmt: skip
    assert reward(**ROWS) == [4.5, 5.0]


def test_two_coroutines_run_side_by_side():
    """Each waits for the other to have begun, which never happens if they are called one after the other."""
    begun = {"first": threading.Event(), "second": threading.Event()}

    def waiting(own, other):
        async def reward(completions, **kwargs):
            begun[own].set()
            while not begun[other].is_set():
                await asyncio.sleep(0.001)
            return [1.0 for _ in completions]

        reward.__name__ = own
        return reward

    reward = WeightedSum([waiting("first", "second"), waiting("second", "first")])
    assert reward(**ROWS) == [2.0, 2.0]


def test_what_can_start_begins_before_anyone_asks_for_values():
    startable, called = Startable(), []
    plain = lambda completions, **kwargs: called.append("plain") or [0.0, 0.0]  # noqa: E731
    rewards = WeightedSum([startable, plain]).begin(**ROWS)
    assert (startable.seen, called) == (["start"], [])
    assert rewards.values() == {"startable": [2.0, 2.0], "<lambda>": [0.0, 0.0]}
    assert (startable.seen, called) == (["start", "finish"], ["plain"])
    assert set(rewards.seconds) == {"startable", "<lambda>"}


def test_what_is_known_late_reaches_those_that_want_it():
    def wanting(completions, ref_logprobs=None, **kwargs):
        return [sum(row) for row in ref_logprobs]

    def other(completions, **kwargs):
        return [float("ref_logprobs" in kwargs)] * 2

    wanting.wants_ref_logprobs = True
    inner = WeightedSum([wanting], name="inner")  # it could be started, but lacks what it wants until the end
    rewards = StartedRewards({"wanting": wanting, "other": other, "inner": inner}, *ROWS.values(), {})
    parts = rewards.values(ref_logprobs=[[-1.0], [-1.0, -2.0]])
    assert parts == {"wanting": [-1.0, -3.0], "other": [0.0, 0.0], "inner": [-1.0, -3.0]}


def test_a_coroutine_that_fails_is_named_with_the_row_and_the_line():
    async def fails(completions, **kwargs):
        return [1.0 / (len(text) - 2) for text in completions]

    with pytest.raises(RewardError, match=r"'fails' raised ZeroDivisionError.*first row to fail is row 1 .*line \d+"):
        WeightedSum([fails])(**ROWS)


def test_a_coroutine_out_of_a_yaml_file_stays_one(tmp_path):
    (tmp_path / "mine.py").write_text(
        "async def fixed(completions, value=1.0, **kwargs):\n    return [value for _ in completions]\n"
    )
    rewards = load_rewards([{"func": f"{tmp_path}/mine.py:fixed", "args": {"value": 3.0}}])
    assert can_start(rewards.reward_funcs[0])
    assert rewards(**ROWS) == [3.0, 3.0]
    assert pickle.loads(pickle.dumps(rewards))(**ROWS) == [3.0, 3.0]


def test_trl_is_given_coroutines_for_what_can_start():
    (first, second), _ = RewardArguments([slow_length, Startable()]).load_for_trl()
    assert asyncio.iscoroutinefunction(first)
    assert asyncio.iscoroutinefunction(second)

    async def both():
        return await asyncio.gather(first(**ROWS), second(**ROWS))

    assert asyncio.run(both()) == [[1.0, 2.0], [2.0, 2.0]]


def test_a_coroutine_that_ends_the_program_is_an_error_and_no_wait_for_ever():
    async def judge(completions, **kwargs):
        raise SystemExit("set JUDGE_KEY")

    with pytest.raises(RewardError, match="'judge' raised RuntimeError: .*set JUDGE_KEY"):
        WeightedSum([judge])(**ROWS)
    assert WeightedSum([slow_length])(**ROWS) == [1.0, 2.0]  # and the others go on


def test_what_fails_at_the_start_is_named_like_any_other():
    async def without_kwargs(completions):
        return [0.0 for _ in completions]

    class Broken(Startable):
        def start(self, completions, **kwargs):
            raise KeyError("x")

    with pytest.raises(RewardError, match="'without_kwargs' raised TypeError"):
        WeightedSum([without_kwargs])(**ROWS)
    with pytest.raises(RewardError, match="'startable' raised KeyError"):
        WeightedSum([Broken()])(**ROWS)


def test_a_setting_may_be_called_start():
    class Ramp:
        start = 3.0

        def __call__(self, completions, **kwargs):
            return [self.start for _ in completions]

    assert WeightedSum([Ramp()])(**ROWS) == [3.0, 3.0]


def in_main_thread(completions, **kwargs):
    """Asks for the main thread, as an alarm does."""
    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))
    return [float(threading.current_thread() is threading.main_thread()) for _ in completions]


@pytest.mark.parametrize(
    "spec",
    [
        in_main_thread,
        {"func": in_main_thread, "name": "named"},
        Clip(in_main_thread, high=5.0),
        Gate(Clip(in_main_thread, high=5.0), only_if=slow_length),
        WeightedSum([in_main_thread, slow_length], [1.0, 0.0]),
        EnsembleReward([in_main_thread, in_main_thread]),
    ],
    ids=["alone", "named", "clip", "gate_with_one_that_waits", "sum_with_one_that_waits", "ensemble"],
)
def test_what_is_no_wait_stays_in_the_main_thread_under_trl(spec):
    [reward], _ = RewardArguments([spec]).load_for_trl()
    assert not asyncio.iscoroutinefunction(reward)
    assert reward(**ROWS) == [1.0, 1.0]


@pytest.mark.parametrize("spec", [slow_length, Clip(slow_length, high=5.0), WeightedSum([slow_length, AsyncObject()])])
def test_what_only_waits_runs_beside_others_under_trl(spec):
    [reward], _ = RewardArguments([spec]).load_for_trl()
    assert asyncio.iscoroutinefunction(reward)
