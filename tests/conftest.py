"""What every test may rely on."""

import functools
import gc
import importlib.metadata
import os
import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
# bitsandbytes would import torch's compiler, in each process that a test starts, for what no test runs.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
# accelerate looks dozens of times in a run whether DeepSpeed is there, and reads all that the package says each time.
importlib.metadata.metadata = functools.cache(importlib.metadata.metadata)


def pytest_collection_finish():
    """Each training collects garbage: not among all that was imported, which would take half a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_screen_of_the_test_runner(monkeypatch):
    """A table's width is its own and not that which pytest-xdist gives its processes in `COLUMNS`."""
    monkeypatch.delenv("COLUMNS", raising=False)
