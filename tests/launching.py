"""Processes that start others, as launchers do, and what they leave behind: nothing, however a test ends."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import psutil


def run_whole(command: Sequence[str], timeout: float, **kwargs: Any) -> subprocess.CompletedProcess:
    """`subprocess.run` that takes down its output, for a command that starts others: they end with it."""
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs) as process:
        output, errors = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@contextlib.contextmanager
def started(command: Sequence[str], **kwargs: Any) -> Iterator[subprocess.Popen]:
    """A process in a group of its own. At the end, also of a test that fails, it and all it has started are gone."""
    process = subprocess.Popen(command, start_new_session=True, **kwargs)
    try:
        yield process
    finally:
        end_all(process)


def end_all(process: subprocess.Popen) -> None:
    """Kill a process, its group, and what it has started: torch's launcher gives each worker a group of its own."""
    below = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait()
