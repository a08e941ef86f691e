"""Asked for without a GPU, the tests of this folder end with an error that says what was not run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_without_a_gpu_they_fail_and_are_named():
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, str(Path(__file__).with_name("test_training.py"))],
        capture_output=True, text=True, timeout=250, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    assert done.returncode == 1
    assert "sees no GPU here. Not run" in done.stdout + done.stderr
    assert "test_training.py::test_stopped_and_resumed_equals_never_stopped" in done.stdout + done.stderr
