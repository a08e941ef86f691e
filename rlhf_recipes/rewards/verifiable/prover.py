"""Symbolic equality by math-verify, as a function for a process of its own: it may compute for ever.

The library's own limits are alarms, which need the main thread and wait for the operation that they are in; they are
switched off here, and the process is ended instead.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

from rlhf_recipes.rewards.contract.worker import Worker, WorkerEnded

MEMORY_GB = 4.0


class Prover:
    """Asks [`judge`] in its process, within a time limit.

    Attributes:
        late (`int`): How many questions have not been answered within their limit.
    """

    def __init__(self) -> None:
        self.late = 0
        self.worker = Worker(_Judge(), MEMORY_GB, busy=True)
        self._readable: dict[str, bool] = {}

    def can_read(self, reference: str, timeout: float) -> bool:
        """Whether a reference can be read, and compared with a simple answer within the limit."""
        if reference not in self._readable:
            self._readable[reference] = self._ask(reference, "1", timeout) is not None
        return self._readable[reference]

    def are_equal(self, reference: str, answer: str, timeout: float) -> bool:
        """Whether an answer is found to equal a reference within the limit."""
        return bool(self._ask(reference, answer, timeout))

    def _ask(self, reference: str, answer: str, timeout: float) -> bool | None:
        try:
            equal: bool | None = self.worker((reference, answer), timeout)
        except (TimeoutError, WorkerEnded):  # nested so deep, or so large, that the process could not go on
            self.late += 1
            return None
        return equal


@functools.cache
def prover() -> Prover:
    """The one of this program: all rewards share its process."""
    return Prover()


class _Judge:
    """[`judge`], which has imported what it needs before the first limit begins to run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _ready_judge, ()

    def __call__(self, question: tuple[str, str]) -> bool | None:
        return judge(question)


def _ready_judge() -> Callable[[tuple[str, str]], bool | None]:
    judge((r"\frac{1}{2}", r"\sqrt{2}"))
    return judge


def judge(question: tuple[str, str]) -> bool | None:
    """Whether an answer equals a reference, both in LaTeX; `None` if the reference cannot be read."""
    reference, answer = question
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its limits are off
    wanted = _read(reference)
    if not wanted:
        return None
    given = _read(answer)
    if not given:
        return False
    from math_verify import verify

    return bool(verify(wanted, given, allow_set_relation_comp=True, timeout_seconds=None))


@functools.lru_cache(maxsize=4096)
def _read(latex: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    return list(parse(f"${latex}$", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None))
