"""Processes that start others, as launchers do, and what they leave behind: nothing, however a test ends."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

RUN_ALL = """
import io, json, runpy, sys, contextlib
sys.path.insert(0, sys.argv[1])
commands, watched, told = json.loads(sys.argv[2]), json.loads(sys.argv[3]), {}
for command in commands:
    said, code = io.StringIO(), 0
    name, *sys.argv[1:] = command
    sys.argv[0] = name
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            if name.endswith(".py"):
                runpy.run_path(name, run_name="__main__")
            else:
                runpy.run_module(name, run_name="__main__")
        except SystemExit as ended:
            code = ended.code or 0
    told[" ".join(command)] = [code, said.getvalue(), [module for module in watched if module in sys.modules]]
print(json.dumps(told))
"""


def in_one_process(
    commands: Sequence[Sequence[str]], root: Path, cwd: Path, watched: Sequence[str] = ()
) -> dict[str, tuple[int, str, list[str]]]:
    """Run commands (a script or the name of a module, and arguments) one after the other in one new process.

    Returns:
        For each command its exit code, what it said, and which of the modules `watched` had been imported by then.
    """
    arguments = [str(root), json.dumps(commands), json.dumps(watched)]
    env = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "RLHF_RECIPES_DEBUG": "0",
        "PYTHONPATH": str(root),
    }
    done = run_whole([sys.executable, "-c", RUN_ALL, *arguments], 200, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


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
