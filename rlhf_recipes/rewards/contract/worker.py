"""A function in a process of its own, so that a call that does not come back can be ended.

A thread cannot be stopped, and an alarm reaches the main thread alone, and not before the operation that it is in has
ended; a power with a billion digits is one operation. A process can be killed at any time.
"""

import atexit
import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

START_SECONDS = 300.0  # imports on a busy machine; the limit of a call begins after them
GRACE_SECONDS = 5.0  # after which a process whose parent is gone ends itself in the middle of a call
GIGABYTE = 2**30
IDLE = 20.0  # how many times a limit of processor time may pass, for a call that waits or a machine that is busy
PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from rlhf_recipes.rewards.contract.worker import serve; "
    "serve({fd}, {memory!r}, {busy!r})"
)


class WorkerEnded(RuntimeError):
    """The process of a worker ended in the middle of a call, killed by the system or by itself."""


class Worker:
    """A function that is called in a process of its own, one call at a time, from any thread.

    The process starts at the first call, without importing the program's main file, and again at the first one after
    it has been ended. What is sent to it and comes back is pickled.

    Args:
        function (callable): What is called, with one argument. It must be importable elsewhere: pickled by its name.
        memory_gb (`float`, *optional*): How much memory the process may address.
        busy (`bool`, *optional*, defaults to `False`):
            Whether limits are of processor time, so that a result does not depend on what else the machine does. A
            call that waits ends after 20 times as long.
    """

    def __init__(self, function: Callable[[Any], Any], memory_gb: float | None = None, busy: bool = False) -> None:
        self.packed = pickle.dumps(function)
        self.memory_gb = memory_gb
        self.busy = busy
        self._lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._owner = os.getpid()
        atexit.register(self.end)

    def __call__(self, argument: Any, timeout: float) -> Any:
        """The function's result for one argument.

        Args:
            timeout (`float`): Seconds that it may take; the time to start the process does not count.

        Raises:
            `TimeoutError`: if it takes longer. Its process is ended then.
            `WorkerEnded`: if its process ended by itself.
            `Exception`: whatever it raises.
        """
        with self._lock:
            connection = self._running()
            try:
                connection.send((timeout, argument))
            except (BrokenPipeError, ConnectionResetError):  # it was ended from elsewhere since the last call
                self._end()
                connection = self._running()
                connection.send((timeout, argument))
            return self._answer(connection, timeout * IDLE if self.busy else timeout)

    def end(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._end()

    def _running(self) -> Connection:
        if self._owner != os.getpid():  # after a fork the process is the parent's, and so are its answers
            self.process = self._connection = None
            self._owner = os.getpid()
        if self._connection is None:
            self._connection, theirs = Pipe()
            program = PROGRAM.format(path=sys.path, fd=theirs.fileno(), memory=self.memory_gb, busy=self.busy)
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, process_group=0
            )
            theirs.close()
            self._connection.send_bytes(self.packed)
            self._answer(self._connection, START_SECONDS)
        return self._connection

    def _answer(self, connection: Connection, timeout: float) -> Any:
        try:
            if not connection.poll(timeout):
                raise TimeoutError(f"It did not come back within {timeout:g} seconds.")
            raised, value = connection.recv()
        except (EOFError, ConnectionResetError):
            code = self.process.wait() if self.process is not None else None
            self._end()
            if code == -signal.SIGPROF:
                raise TimeoutError("It did not come back within its limit of processor time.") from None
            raise WorkerEnded(f"Its process ended with code {code}.") from None
        except (
            BaseException
        ):  # the limit, or Ctrl-C: an answer that came later would be taken for that of another call
            self._end()
            raise
        if raised:
            raise value
        return value

    def _end(self) -> None:
        process, connection = self.process, self._connection
        self.process = self._connection = None
        if connection is not None:
            connection.close()
        if process is not None and self._owner == os.getpid():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # and what it has started
            process.wait()


def serve(fd: int, memory_gb: float | None, busy: bool) -> None:
    """What the process runs: calls, until its parent closes the connection."""
    connection = Connection(fd)
    if memory_gb is not None:
        import resource

        limit = int(memory_gb * GIGABYTE)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        function = pickle.loads(connection.recv_bytes())
    except Exception as error:  # what is read imports the function's module, and that may raise anything
        _send(connection, True, error)
        return
    _send(connection, False, None)
    while True:
        try:
            timeout, argument = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        # Without a handler an alarm ends the process from outside of Python, whatever it is in.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_REAL, timeout * (IDLE if busy else 1) + GRACE_SECONDS)
        signal.setitimer(signal.ITIMER_PROF, timeout if busy else 0)
        try:
            answer = False, function(argument)
        except Exception as error:  # of any kind: it is raised where the call was made
            answer = True, error
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(connection, *answer)


def _send(connection: Connection, raised: bool, value: Any) -> None:
    try:
        message = pickle.dumps((raised, value))
        pickle.loads(message)  # an exception whose arguments are not those of its class pickles, and cannot be read
    except Exception as error:  # classes say themselves how they are pickled and read, and may raise anything
        kind = f"raised {type(value).__name__}: {value}" if raised else f"gave {type(value).__name__} ({error})"
        message = pickle.dumps((True, RuntimeError(f"It {kind}, which cannot be sent to another process.")))
    with contextlib.suppress(BrokenPipeError):
        connection.send_bytes(message)
