"""Where TRL 1.12 is, for tests: they are skipped where pip cannot fetch it."""

from pathlib import Path

import pytest

from benchmarks.beside_trl import overlay


def find() -> Path:
    """The folder to put first on the path; see [`benchmarks.beside_trl.overlay.find`]."""
    try:
        return overlay.find()
    except overlay.NotInstallable as error:
        pytest.skip(str(error))
