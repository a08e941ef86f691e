"""vLLM's own server on this machine's CPU, in an environment of its own, started as docs/vllm.md says."""

import contextlib
import os
import re
import shlex
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launching import end_all, started
from tests.ppo.helpers import free_port

PROJECT = Path(__file__).parents[1]
# It pins other versions of torch and transformers than this project runs with.
PYTHON = Path(os.environ.get("VLLM_PYTHON", PROJECT / ".venv-vllm/bin/python"))
SECONDS = 240  # to start; it takes 30 of a processor
# On a CPU: float32, no compilation, a cache of 1 GB, and threads that do not wait in a loop for each other.
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--host", "127.0.0.1", "--max-model-len", "64"]
ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1",
    "KMP_BLOCKTIME": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
}  # fmt: skip


def need_vllm() -> None:
    """Skip a test where there is no vLLM, and say how it is made."""
    if not PYTHON.is_file():
        pytest.skip(
            f"NOT RUN: the tests with a real vLLM server. They need an environment of their own, and {PYTHON} is not "
            "there: `make test-vllm` makes it (4 minutes, 3.5 GB) and runs them."
        )


def documented() -> tuple[dict[str, str], list[str]]:
    """The environment and the options with which docs/vllm.md starts a server."""
    page = (PROJECT / "docs/vllm.md").read_text(encoding="utf-8").replace("\\\n", " ")
    words = shlex.split(re.search(r"^VLLM_\w+=.* vllm serve .*$", page, re.MULTILINE)[0])
    start = words.index("vllm")
    return dict(word.split("=", 1) for word in words[:start]), words[start + 3 :]


@dataclass
class Server:
    url: str
    process: subprocess.Popen
    log: Path

    def kill(self) -> None:
        end_all(self.process)


@contextlib.contextmanager
def vllm_server(
    model: Path, folder: Path, options: Sequence[str] | None = None, **environment: str
) -> Iterator[Server]:
    """A server of a model's folder, until it answers; its log goes into `folder`.

    Args:
        options (`Sequence[str]`, *optional*): Others than the documented ones, without the documented environment.
    """
    ours, documented_options = documented()
    port, log = free_port(), folder / "vllm.log"
    options_given = options is not None
    options = [*(options if options_given else documented_options), *OPTIONS, "--port", str(port)]
    command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), *options]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | ENVIRONMENT
    openmp = PYTHON.parents[1] / "lib/libiomp5.so"  # with another one it is ten times slower
    env |= {"LD_PRELOAD": str(openmp)} if openmp.is_file() else {}
    env |= environment if options_given else ours | environment
    with log.open("w") as file, started(command, env=env, stdout=file, stderr=subprocess.STDOUT) as process:
        url = f"http://127.0.0.1:{port}"
        until = time.monotonic() + SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > until:
                pytest.fail(f"vLLM's server did not start:\n{log.read_text()[-4000:]}")
            time.sleep(0.5)
        yield Server(url, process, log)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as response:
            return response.status == 200
    except OSError:
        return False
