import math

import pytest

from rlhf_recipes.rewards import (
    Clip,
    Gate,
    Map,
    Product,
    RewardError,
    Scale,
    WeightedSum,
)
from tests.rewards.combine.small_rewards import ROWS, length, per_token, signed, sometimes


@pytest.mark.parametrize(
    ("by", "values"),
    [  # of -1, 0 and 2, by a calculator
        ("sigmoid", [0.2689414213699951, 0.5, 0.8807970779778823]),
        ("exp", [0.36787944117144233, 1.0, 7.38905609893065]),
        ("softplus", [0.31326168751822286, 0.6931471805599453, 2.1269280110429727]),
        ("relu", [0.0, 0.0, 2.0]),
    ],
)
def test_maps(by, values):
    assert Map(signed, by=by)(**ROWS) == pytest.approx(values, abs=1e-12)
    halved = Map(signed, by=by, scale=0.5, center=-1.0)(**ROWS)  # x = 2 (r + 1) = 0, 2, 6
    assert halved[0] == pytest.approx({"sigmoid": 0.5, "exp": 1.0, "softplus": math.log(2), "relu": 0.0}[by])


def test_maps_of_extreme_values():
    def extreme(completions, **kwargs):
        return [-1e6, 1e6, 0.0]

    assert Map(extreme)(**ROWS) == [0.0, 1.0, 0.5]
    assert Map(extreme, by="softplus")(**ROWS) == [0.0, 1e6, math.log(2)]
    with pytest.raises(RewardError, match="1e[+]06 scales above its center"):
        Map(extreme, by="exp")(**ROWS)


def test_clip_and_scale():
    assert Clip(signed, low=-0.5, high=1.0)(**ROWS) == [-0.5, 0.0, 1.0]
    assert Clip(signed, high=1.0)(**ROWS) == [-1.0, 0.0, 1.0]
    assert Clip(sometimes, low=1.0)(**ROWS) == [1.0, None, 3.0]
    assert Scale(signed, scale=4.0, center=2.0)(**ROWS) == [-0.75, -0.5, 0.0]
    assert Scale(signed).__name__ == "signed"


def test_clip_scale_and_map_take_rewards_per_token():
    scaled = Scale(per_token, scale=2.0)
    assert scaled.per_token
    assert scaled(**ROWS) == [[0.5], [0.5, 1.0], [1.5, 2.0, 2.5]]
    reward = WeightedSum([Clip(per_token, high=2.0)])
    assert reward.combine_tokens(reward.parts(**ROWS), ROWS["completion_ids"]) == [[1.0], [1.0, 2.0], [2.0, 2.0, 2.0]]
    for make in (lambda: Product([length, per_token]), lambda: Gate(length, only_if=per_token)):
        with pytest.raises(
            ValueError, match="one number for each completion, but 'per_token' gives one for each token"
        ):
            make()
