"""R = P * delta(C), by hand."""

import math

import pytest

from rlhf_recipes.compression.search.objective import Delta, Objective, QualityMap, relative_cost


@pytest.mark.parametrize(
    ("delta", "cost", "expected"),
    [
        (Delta("power", 2.0), 0.5, 4.0),
        (Delta("power", 0.5), 1.0, 1.0),
        (Delta("exponential", 3.0), 0.5, math.exp(-1.5)),
        (Delta("hinge", 20.0, 0.5), 0.5, 1.0),
        (Delta("hinge", 20.0, 0.5), 0.1, 1.0),
        (Delta("hinge", 20.0, 0.5), 0.51, 0.6),
        (Delta("hinge", 20.0, 0.5), 0.6, 0.0),
    ],
)
def test_delta_by_hand(delta, cost, expected):
    assert delta(cost) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("delta", [Delta("power", 1.5), Delta("exponential", 2.0), Delta("hinge", 3.0, 0.4)])
def test_delta_never_grows_with_cost(delta):
    values = [delta(cost / 100) for cost in range(1, 101)]
    assert all(a >= b for a, b in zip(values, values[1:], strict=False))
    assert values[0] > values[-1]


@pytest.mark.parametrize(
    ("given", "quality", "expected"),
    [
        ("exp", -2.0, math.exp(-2)),
        ("sigmoid", 1.5, 1 / (1 + math.exp(-1.5))),
        ("sigmoid", -800.0, 0.0),
        ({"rescale": [-2, 6]}, 0.0, 0.25),
        ({"rescale": [-2, 6]}, 10.0, 1.5),
        ({"rescale": [-2, 6]}, -2.5, 1e-6),
    ],
)
def test_maps_by_hand(given, quality, expected):
    assert QualityMap.of(given)(quality) == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_reward_is_the_product():
    objective = Objective(Delta("power", 1.0), QualityMap.of("sigmoid"))
    assert objective(0.0, 0.25) == pytest.approx(0.5 * 4)
    assert Objective(Delta("power", 1.0), nonnegative=True)(0.3, 0.5) == pytest.approx(0.6)


def test_relative_cost_is_the_weighted_mean_of_shares():
    original = {"parameters": 200.0, "flops": 1000.0, "seconds": 0.0}
    costs = {"parameters": 50.0, "flops": 750.0, "seconds": 0.0}
    assert relative_cost(costs, original, {"parameters": 1, "flops": 3}) == pytest.approx((0.25 + 3 * 0.75) / 4)
    assert relative_cost(original, original, {"parameters": 2, "flops": 0.5, "seconds": 0}) == 1.0


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Objective(Delta("power", 1.0)), "may be negative"),
        (lambda: Objective(Delta("power", 1.0), nonnegative=True)(-0.1, 0.5), "said never to be negative"),
        (lambda: Objective(Delta("power", 1.0), nonnegative=True)(math.nan, 0.5), "finite"),
        (lambda: Delta("cubic", 1.0), "it can be power, exponential, hinge"),
        (lambda: Delta("power", 0.0), "strength"),
        (lambda: Delta("hinge", 1.0), "needs a budget"),
        (lambda: Delta("power", 1.0, 0.5), "has no budget"),
        (lambda: Delta("hinge", 1.0, 1.5), "at most 1"),
        (lambda: Delta("power", 1.0)(0.0), "greater than 0"),
        (lambda: QualityMap.of("log"), "exp, sigmoid, or rescale"),
        (lambda: QualityMap.of({"rescale": [3, 1]}), "the lower one first"),
        (lambda: QualityMap.of({"rescale": 3}), "two numbers"),
        (lambda: QualityMap("exp", 0.0, 1.0), "has no ends"),
        (lambda: relative_cost({"a": 0}, {"a": 0}, {"a": 1}), "leave this cost out"),
        (lambda: relative_cost({"a": 1}, {"a": 1}, {"a": 0}), "one of them not 0"),
        (lambda: relative_cost({"a": 1}, {"a": 1}, {"a": -1}), "0 or more"),
        (lambda: relative_cost({"a": 1}, {"a": 1}, {"b": 1}), "known are a"),
    ],
)
def test_errors_say_what_is_wrong(make, said):
    with pytest.raises(ValueError, match=said):
        make()
