"""Names in the log the reward that has not come back, so that a run that waits for ever says for what."""

import contextlib
import logging
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)
FIRST_SECONDS = 60.0
HERE = Path(__file__).resolve().parents[2]
LIBRARY = Path(sysconfig.get_paths()["stdlib"]).resolve()
_inside = threading.local()


@contextlib.contextmanager
def watched(name: str) -> Iterator[None]:
    """While the block runs, say after 1, 2, 4, 8 ... minutes that this reward has not come back, and where it is.

    Where one reward waits for another, as a composition does, the inner one alone is named.
    """
    calls = _inside.__dict__.setdefault("calls", [])
    call = _Call(name, calls, sys._getframe(2))  # the block's own frame, below contextlib's
    calls.append(call)
    call.wait(FIRST_SECONDS)
    try:
        yield
    finally:
        calls.remove(call)
        call.timer.cancel()


class _Call:
    def __init__(self, name: str, calls: "list[_Call]", frame: FrameType) -> None:
        self.name = name
        self.calls = calls
        self.frame = frame
        self.thread = threading.get_ident()
        self.begin = time.monotonic()
        self.timer: threading.Timer

    def wait(self, seconds: float) -> None:
        self.timer = threading.Timer(seconds, self.say)
        self.timer.daemon = True  # nor must a program wait for it
        self.timer.start()

    def say(self) -> None:
        calls = list(self.calls)
        if self not in calls:  # it came back meanwhile
            return
        seconds = time.monotonic() - self.begin
        if calls[-1] is self:
            logger.warning(
                "Reward %r has not come back for %.3g seconds%s. The run waits for it. With a timeout in its entry, "
                "as in {func: ..., timeout: 30}, it would be ended.",
                self.name,
                seconds,
                self._place(),
            )
        self.wait(seconds)  # until twice the time

    def _place(self) -> str:
        """The user's line that the call is in, or that of a library where it has come through none of the user's."""
        frame = sys._current_frames().get(self.thread)
        frames = []
        while frame is not None and frame is not self.frame:
            frames.append(frame)
            frame = frame.f_back
        own = [frame for frame in frames if not is_library(frame.f_code.co_filename)] or frames
        return f"; it is in {own[0].f_code.co_filename}, line {own[0].f_lineno}" if own else ""


def is_library(filename: str) -> bool:
    """Whether a file is of this package or of an installed library, and not the user's own."""
    path = Path(filename).resolve()
    return HERE in path.parents or LIBRARY in path.parents or "site-packages" in path.parts or filename.startswith("<")
