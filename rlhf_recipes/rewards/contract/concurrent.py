"""Rewards that wait on something outside (a server, a subprocess): they run side by side, while the trainer goes on.

Two kinds of rewards can be started and fetched later:

- a coroutine function, `async def reward(prompts, completions, ...)`, as TRL's trainers take it;
- an object with a method `start(**batch)` that begins the work at once and returns a function that gives the values.

All others are called when their values are fetched, in the thread of the caller: a model on the processor that the
policy is on would gain nothing from being called earlier.
"""

import asyncio
import functools
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any

Finish = Callable[[], Any]


def is_async(func: Any) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(func) or inspect.iscoroutinefunction(getattr(func, "__call__", None))  # noqa: B004


def can_start(func: Any) -> bool:
    """Whether a reward may be begun before its values are needed."""
    return callable(getattr(func, "start", None)) or is_async(func)


def only_waits(func: Any) -> bool:
    """Whether a reward may run in a thread beside others: it can be started, and so can all that it is made of.

    All others stay in the thread of the caller, the main one: some ask for it (alarms), and a model gains nothing.
    """
    return can_start(func) and all(map(only_waits, getattr(func, "inner_rewards", ())))


def started(func: Callable[..., Any], batch: dict[str, Any]) -> Finish:
    """Begin a reward, where it can be begun, and return what gives its values."""
    start = getattr(func, "start", None)
    if callable(start):
        finish: Finish = start(**batch)
        return finish
    if is_async(func):
        return functools.partial(wait_for, run_in_background(func(**batch)))
    return functools.partial(func, **batch)


def begun(func: Any, batch: dict[str, Any]) -> Finish:
    """[`started`], whose failure waits until the values are asked for: there the reward's name is known."""
    try:
        return started(func, batch)
    except Exception as error:
        failed = error  # the name `error` is gone after this block

        def finish() -> Any:
            raise failed

        return finish


def run_in_background(coroutine: Coroutine[Any, Any, Any]) -> "Future[Any]":
    """Run a coroutine on the event loop that all rewards of this process share, in a thread of its own."""
    return asyncio.run_coroutine_threadsafe(_kept_in(coroutine), _loop(os.getpid()))


async def _kept_in(coroutine: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:  # either would end the loop, and every wait would be for ever
        raise RuntimeError(f"it asked the program to end ({type(error).__name__}: {error})") from error


def wait_for(future: "Future[Any]") -> Any:
    """The result of a coroutine in the background. If the wait is interrupted (Ctrl-C), the coroutine is cancelled."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@functools.cache
def _loop(process: int) -> asyncio.AbstractEventLoop:
    # One for each process id: a forked child inherits the object, but not the thread that runs it.
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="rlhf_recipes-rewards", daemon=True).start()
    return loop
