import time

import pytest
import torch

from rlhf_recipes.modeling.cost import threads
from rlhf_recipes.modeling.cost.threads import THREAD_VARIABLES, best_thread_count, cpu_has_bfloat16


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # The number is only noted, so that a step can take as long as the test says.
    state = {"threads": 2}
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: state["threads"])
    monkeypatch.setattr(threads.torch, "set_num_threads", lambda count: state.update(threads=count))
    return state


def step_of(machine, durations):
    return lambda: time.sleep(durations[machine["threads"]])


@pytest.mark.parametrize(("durations", "best"), [({1: 0.03, 2: 0.005}, 2), ({1: 0.005, 2: 0.03}, 1)])
def test_the_fastest_number_is_kept(machine, durations, best):
    assert best_thread_count(step_of(machine, durations), seconds=0.1) == best
    assert machine["threads"] == best


def test_a_passing_load_does_not_decide(machine):
    calls = []

    def step():
        calls.append(machine["threads"])
        time.sleep(0.08 if len(calls) in (4, 6) else {1: 0.03, 2: 0.005}[machine["threads"]])

    assert best_thread_count(step, seconds=0.4) == 2


def test_a_tie_goes_to_fewer_threads(machine):
    assert best_thread_count(step_of(machine, {1: 0.02, 2: 0.02}), seconds=0.2, margin=0.5) == 1


def test_candidates_can_be_named(machine):
    assert best_thread_count(step_of(machine, {3: 0.02, 5: 0.002}), candidates=[3, 5], seconds=0.05) == 5


def test_nothing_is_tried_where_the_user_or_a_gpu_decides(machine, monkeypatch):
    def step():
        raise AssertionError("nothing should be timed")

    assert best_thread_count(step, candidates=[2]) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert best_thread_count(step) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert best_thread_count(step) == 2


@pytest.mark.parametrize(
    ("flags", "has"), [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)]
)
def test_bfloat16_of_a_cpu(flags, has, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags, raising=False)
    assert cpu_has_bfloat16() is has
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not cpu_has_bfloat16()
