import pickle
from types import SimpleNamespace

import pytest

from rlhf_recipes.rewards import WeightedSum, WeightSchedule, load_rewards
from rlhf_recipes.rewards.loading import RewardArguments
from rlhf_recipes.rewards.weighted_sum import progress_of

ROWS = {"prompts": ["a", "b"], "completions": ["x", "yy"], "completion_ids": [[1], [1, 2]]}


def length(completions, **kwargs):
    return [float(len(text)) for text in completions]


def one(completions, **kwargs):
    return [1.0 for _ in completions]


@pytest.mark.parametrize(
    ("shape", "weights"),
    [  # from 1 to 3 between a quarter and three quarters of the run
        ("linear", {0.0: 1.0, 0.25: 1.0, 0.5: 2.0, 0.625: 2.5, 0.75: 3.0, 1.0: 3.0}),
        ("cosine", {0.0: 1.0, 0.25: 1.0, 0.5: 2.0, 0.625: 2.7071067811865475, 0.75: 3.0, 1.0: 3.0}),
        ("step", {0.0: 1.0, 0.25: 1.0, 0.5: 1.0, 0.7499: 1.0, 0.75: 3.0, 1.0: 3.0}),
    ],
)
def test_the_weight_on_its_way(shape, weights):
    schedule = WeightSchedule(1.0, 3.0, begin=0.25, until=0.75, shape=shape)
    assert {progress: schedule(progress) for progress in weights} == pytest.approx(weights, abs=1e-12)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"start": 0, "end": float("nan")}, "end of the weight schedule is nan"),
        ({"start": "0", "end": 1}, "start of the weight schedule is .0."),
        ({"start": 0, "end": 1, "begin": 0.5, "until": 0.5}, "begin 0.5 to until 0.5"),
        ({"start": 0, "end": 1, "until": 1.5}, "shares of the run"),
        ({"start": 0, "end": 1, "shape": "round"}, "shape of the weight schedule is 'round'"),
    ],
)
def test_a_schedule_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        WeightSchedule(**settings)


def test_a_sum_weighs_by_the_progress_of_the_run():
    reward = WeightedSum([length, one], [WeightSchedule(0.0, 1.0), 10.0])
    assert reward.combine(reward.parts(**ROWS)) == [10.0, 10.0]
    assert reward.combine(reward.parts(**ROWS), progress=0.5) == [10.5, 11.0]
    halfway = SimpleNamespace(global_step=5, max_steps=10)
    assert reward(**ROWS, trainer_state=halfway) == [10.5, 11.0]
    assert reward.weights_at(1.0) == {"length": 1.0, "one": 10.0}


def test_progress_is_0_where_nobody_knows_it():
    assert progress_of(None) == 0.0
    assert progress_of(SimpleNamespace(global_step=3, max_steps=0)) == 0.0
    assert progress_of(SimpleNamespace(global_step=30, max_steps=20)) == 1.0


def test_a_schedule_in_a_yaml_file():
    reward = load_rewards([{"func": length, "weight": {"start": 2, "end": 0, "until": 0.5}}])
    assert reward.weights == (WeightSchedule(2, 0, until=0.5),)
    for wrong in ({"start": 1}, {"start": 1, "end": 2, "middle": 3}):
        with pytest.raises(ValueError, match="a schedule with start and end, and where wanted begin, until, shape"):
            load_rewards([{"func": length, "weight": wrong}])


def test_for_trl_whose_weights_are_numbers_the_schedule_is_multiplied_in():
    arguments = RewardArguments([{"func": length, "weight": {"start": 0.0, "end": 4.0}}, {"func": one, "weight": 3.0}])
    (scheduled, plain), weights = arguments.load_for_trl()
    assert weights == [1.0, 3.0]
    quarter = SimpleNamespace(global_step=1, max_steps=4)
    assert scheduled(**ROWS, trainer_state=quarter) == [1.0, 2.0]
    assert plain(**ROWS, trainer_state=quarter) == [1.0, 1.0]
