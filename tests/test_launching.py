"""What a test has started is gone when it ends, in whatever way."""

import sys
import time

import psutil
import pytest

from tests.launching import run_whole, started

# As torch's launcher does: a worker in a session of its own, which a signal to the launcher's group does not reach.
LAUNCHER = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(worker.pid, flush=True)
time.sleep(600)
"""


def test_a_test_that_fails_leaves_no_worker_behind():
    with (  # noqa: PT012 - what fails is the test itself
        pytest.raises(AssertionError, match="this test fails"),
        started([sys.executable, "-c", LAUNCHER], stdout=-1, text=True) as launcher,
    ):
        worker = psutil.Process(int(launcher.stdout.readline()))
        assert worker.is_running()
        raise AssertionError("this test fails")
    until = time.monotonic() + 10
    while psutil.pid_exists(worker.pid) and worker.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until:
        time.sleep(0.01)
    assert not psutil.pid_exists(worker.pid) or worker.status() == psutil.STATUS_ZOMBIE
    assert launcher.returncode == -9


def test_what_ends_by_itself_is_told_as_it_was():
    done = run_whole([sys.executable, "-c", "import sys; print('out'); sys.exit('err')"], 30)
    assert (done.returncode, done.stdout, done.stderr) == (1, "out\n", "err\n")
