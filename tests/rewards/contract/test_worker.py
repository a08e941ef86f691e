import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from rlhf_recipes.rewards.contract.worker import Worker, WorkerEnded

MEGABYTES = 2**20


def square(number):
    return number * number


def act(what):
    """Does what a call can do to its process."""
    if what == "tower":
        return 9**9**9**9
    if what == "sleep":
        time.sleep(600)
    if what == "nap":
        time.sleep(0.5)
        return "rested"
    if what == "exit":
        os._exit(7)
    if what == "child":
        return subprocess.Popen(["sleep", "600"]).pid
    if what == "memory":
        return len(bytearray(8000 * MEGABYTES))
    if what == "main":
        return threading.current_thread() is threading.main_thread(), os.getpid(), "torch" in sys.modules
    if what == "lambda":
        return lambda: 0
    raise {"key": KeyError, "unread": Unread}[what](what)


class Unread(Exception):
    """An exception that pickles, and cannot be read again."""

    def __init__(self, *arguments):
        super().__init__()
        self.needed = arguments[0]


def test_a_call_gives_its_result_or_raises_what_it_raises():
    worker = Worker(square)
    assert [worker(number, 5) for number in (3, 4)] == [9, 16]
    with pytest.raises(TypeError, match="multiply"):
        worker("text", 5)
    assert worker(5, 5) == 25
    worker.end()


def test_a_call_runs_in_the_main_thread_of_one_process_from_whatever_thread():
    worker, found = Worker(act), []
    threads = [threading.Thread(target=lambda: found.append(worker("main", 5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    in_main, process, has_torch = found[0]
    assert in_main
    assert process != os.getpid()
    assert not has_torch or "torch" in act.__module__
    worker.end()


@pytest.mark.parametrize("what", ["tower", "sleep"])
def test_a_call_that_does_not_come_back_is_ended_and_the_next_one_works(what):
    worker = Worker(act)
    worker("main", 5)
    process, begin = worker.process, time.monotonic()
    with pytest.raises(TimeoutError, match="did not come back within 0.3 seconds"):
        worker(what, 0.3)
    assert time.monotonic() - begin < 5
    assert process.returncode == -signal.SIGKILL
    assert worker("main", 5)[1] != process.pid
    worker.end()


def test_a_limit_of_processor_time_counts_no_waiting():
    worker = Worker(act, busy=True)
    with pytest.raises(TimeoutError, match="within its limit of processor time"):
        worker("tower", 0.2)
    assert worker("nap", 0.2) == "rested"
    worker.end()


def test_what_a_call_has_started_ends_with_it():
    worker = Worker(act)
    child = worker("child", 5)
    worker.end()
    for _ in range(100):
        status = pathlib.Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} lives on")


def test_a_process_that_ends_by_itself_is_told_from_a_limit():
    worker = Worker(act)
    with pytest.raises(WorkerEnded, match="ended with code 7"):
        worker("exit", 5)
    assert worker("main", 5)[0]
    worker.end()


def test_what_cannot_be_sent_is_said_in_words():
    worker = Worker(act)
    with pytest.raises(KeyError, match="key"):
        worker("key", 5)
    with pytest.raises(RuntimeError, match="raised Unread: .*cannot be sent to another process"):
        worker("unread", 5)
    with pytest.raises(RuntimeError, match="gave function .*cannot be sent to another process"):
        worker("lambda", 5)
    worker.end()


def test_memory_has_a_limit():
    worker = Worker(act, memory_gb=4)
    with pytest.raises(MemoryError):
        worker("memory", 20)
    worker.end()


def test_it_ends_with_its_program_even_in_the_middle_of_a_call(tmp_path):
    program = (
        "import os, threading, time\n"
        "from rlhf_recipes.rewards.contract.worker import Worker\n"
        "from tests.rewards.contract.test_worker import act\n"
        "worker = Worker(act)\n"
        "print(worker('main', 60)[1], flush=True)\n"
        "threading.Thread(target=worker, args=('tower', 0.5), daemon=True).start()\n"
        "time.sleep(0.2)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    pid = int(done.stdout)
    for _ in range(200):  # its own alarm, 5 seconds after the limit
        if not pathlib.Path(f"/proc/{pid}").exists():
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} lives on")


def test_after_a_fork_the_process_of_the_parent_is_left_alone():
    worker = Worker(square)
    assert worker(3, 5) == 9
    child = os.fork()
    if child == 0:
        right = worker(4, 30) == 16
        worker.end()
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert worker(5, 5) == 25
    worker.end()
