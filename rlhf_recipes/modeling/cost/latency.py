"""How long things take on this machine, one beside the other."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median

import torch


@dataclass(frozen=True)
class Latency:
    """Of steps that took turns."""

    seconds: dict[str, float]  # the median of each
    ratios: dict[str, float]  # to the first step: the median of the ratios within a round; below 1 is faster
    rounds: int


def paired_latency(
    steps: Mapping[str, Callable[[], object]], seconds: float = 5.0, min_rounds: int = 5, warm_up: int = 1
) -> Latency:
    """Time several steps in turns: in each round every one runs once, so that a passing load falls on all of them.

    The order is turned around from round to round. Times are wall-clock; on a GPU each step is waited for.

    Args:
        steps (`Mapping`): By name; the first is what the others are compared with.
        seconds (`float`): No further round begins after this time,
        min_rounds (`int`): but there are as many at least.
        warm_up (`int`): Rounds before that, which are not counted.
    """
    if not steps or min_rounds < 1:
        raise ValueError(f"{len(steps)} steps and {min_rounds} rounds are to be timed; give one of each at least.")
    names = list(steps)
    times: dict[str, list[float]] = {name: [] for name in names}
    start, rounds = time.perf_counter(), -warm_up
    while rounds < min_rounds or time.perf_counter() - start < seconds:
        for name in names if rounds % 2 == 0 else reversed(names):
            taken = _timed(steps[name])
            if rounds >= 0:
                times[name].append(taken)
        rounds += 1
        start = time.perf_counter() if rounds == 0 else start
    ratios = {
        name: median(own / first for own, first in zip(taken, times[names[0]], strict=True))
        for name, taken in times.items()
    }
    return Latency({name: median(taken) for name, taken in times.items()}, ratios, rounds)


def _timed(step: Callable[[], object]) -> float:
    began = time.perf_counter()
    step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began
