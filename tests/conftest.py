"""What every test may rely on."""

import signal

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_screen_of_the_test_runner(monkeypatch):
    """A table's width is its own and not that which pytest-xdist gives its processes in `COLUMNS`."""
    monkeypatch.delenv("COLUMNS", raising=False)
