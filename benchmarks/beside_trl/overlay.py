"""Where TRL 1.12 is: a folder with that package alone, put first on the path of a process of its own."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

VERSION = "1.12.0"
CACHE = Path(__file__).parents[2] / ".cache" / f"trl-{VERSION}"


class NotInstallable(RuntimeError):
    """There is no TRL 1.12 here, and pip could not fetch it."""


def find(cache: Path = CACHE) -> Path:
    """The folder that the environment variable `TRL_1_12` names, or `.cache/trl-1.12.0`, filled where it is empty.

    Raises:
        `NotInstallable`: if pip could not fetch it.
    """
    named = os.environ.get("TRL_1_12")
    if named:
        assert (Path(named) / "trl").is_dir(), f"TRL_1_12 is {named!r}, where there is no folder trl."
        return Path(named)
    if not (cache / "trl").is_dir():
        _install(cache)
    return cache


def _install(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=cache.parent))  # moved when it is whole, so that no half of it is ever used
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", fresh, f"trl=={VERSION}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode == 0 and not cache.exists():
        fresh.chmod(0o755)
        fresh.rename(cache)
        return
    shutil.rmtree(fresh)
    if done.returncode:
        raise NotInstallable(f"TRL {VERSION} could not be installed: {done.stderr.strip().splitlines()[-1:]}")
