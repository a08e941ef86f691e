"""What a CPU is good at: how many threads are fastest, found out by trying, and whether it has bfloat16."""

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

logger = logging.getLogger(__name__)

# What users and launchers set to choose for themselves; accelerate does for several processes on one machine.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def best_thread_count(
    step: Callable[[], object], candidates: Sequence[int] | None = None, seconds: float = 2.0, margin: float = 0.03
) -> int:
    """Time one step with each number of threads, and keep the fastest for the rest of the run.

    On small models and virtual processors two threads can be slower than one. The candidates take turns, so that a
    passing load of other programs falls on all of them, and the fastest time of each counts. Nothing is tried, and
    nothing changed, on a machine with a GPU, where the user has set `OMP_NUM_THREADS` or `MKL_NUM_THREADS`, or where
    there is but one candidate.

    Args:
        step (`Callable`):
            One real forward and backward pass of the size to come. It must leave no trace (clear the gradients).
        candidates (`Sequence[int]`, *optional*):
            Numbers of threads. Default: 1, 2, 4, ... and the number that torch has chosen.
        seconds (`float`, *optional*, defaults to 2.0):
            Stop after this time; each candidate has at least two turns, of which the first warms up.
        margin (`float`, *optional*, defaults to 0.03):
            By how much, as a share, fewer threads may be slower and still be preferred: they leave room to others.

    Returns:
        `int`: the number of threads in use from now on.
    """
    current = torch.get_num_threads()
    tried = sorted(set(candidates or [*(2**power for power in range(current.bit_length())), current]))
    if torch.cuda.is_available() or any(name in os.environ for name in THREAD_VARIABLES) or len(tried) == 1:
        return current
    fastest = dict.fromkeys(tried, float("inf"))
    start, rounds = time.perf_counter(), 0
    while rounds < 2 or time.perf_counter() - start < seconds:
        for threads in tried:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            step()
            if rounds:
                fastest[threads] = min(fastest[threads], time.perf_counter() - began)
        rounds += 1
    best = next(count for count in tried if fastest[count] <= min(fastest.values()) * (1 + margin))
    torch.set_num_threads(best)
    times = ", ".join(f"{1000 * duration:.0f} ms with {threads}" for threads, duration in fastest.items())
    logger.info("Threads: %d (a step takes %s).", best, times)
    return best


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has instructions for bfloat16 (AVX512-BF16 or AMX), with which mixed precision saves time.

    Others can compute in bfloat16 too, but only by way of float32, which takes longer than float32 alone.
    """
    # Older releases of torch do not tell.
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
