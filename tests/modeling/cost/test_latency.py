import time

import pytest

from rlhf_recipes.modeling.cost import latency
from rlhf_recipes.modeling.cost.latency import paired_latency


class Clock:
    """Time that passes as steps say."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)

    def step(self, name, *durations):
        left = list(durations)

        def run():
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_medians_of_each_and_of_ratios_within_rounds(monkeypatch):
    clock = Clock(monkeypatch)
    # The first round warms up. Then a load falls on both in the second round: ratios 1/2, 1/2, 1/4.
    steps = {"a": clock.step("a", 99, 2, 20, 4), "b": clock.step("b", 99, 1, 10, 1)}
    found = paired_latency(steps, seconds=0, min_rounds=3)
    assert found.seconds == {"a": 4, "b": 1}
    assert found.ratios == {"a": 1, "b": 0.5}
    assert found.rounds == 3


def test_the_order_is_turned_around(monkeypatch):
    clock = Clock(monkeypatch)
    paired_latency({"a": clock.step("a", 1), "b": clock.step("b", 1)}, seconds=0, min_rounds=3)
    assert "".join(clock.calls) == "baabbaab"[:2] + "ab" + "ba" + "ab"


def test_rounds_go_on_until_the_time_is_over(monkeypatch):
    clock = Clock(monkeypatch)
    assert paired_latency({"a": clock.step("a", 1)}, seconds=7, min_rounds=2).rounds == 7
    assert paired_latency({"a": clock.step("a", 1)}, seconds=1, min_rounds=4, warm_up=0).rounds == 4


def test_real_time():
    found = paired_latency({"a": lambda: time.sleep(0.01), "b": lambda: time.sleep(0.03)}, seconds=0.1)
    assert found.seconds["a"] == pytest.approx(0.01, abs=0.005)
    assert found.ratios["b"] == pytest.approx(3, rel=0.4)


@pytest.mark.parametrize(("steps", "rounds"), [({}, 3), ({"a": print}, 0)])
def test_nothing_to_time_is_refused(steps, rounds):
    with pytest.raises(ValueError, match="at least"):
        paired_latency(steps, min_rounds=rounds)
