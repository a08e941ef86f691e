r"""What it costs to ask for rewards over HTTP, and whether each value comes back right, also where a server fails.

    python benchmarks/serving.py
    python benchmarks/serving.py --reward_funcs runs/quickstart/reward --rows 512 --output runs/serving.json

It starts recipes/serve_reward.py as a process of its own, sends it made-up rows with `RemoteReward`, at each number of
concurrent requests, and compares every value with that of the same reward here, to 1e-6. Then it puts a double between
them that answers each fifth request with 503 and lets each tenth wait for a second, and does so again.

`overhead_ms_per_row` is the time of a row over HTTP less that of the same row in this process, both in batches of
`batch_size`; latencies are those of the attempts that were answered, from sending to the last byte. Progress goes to
stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.remote import RemoteReward

RECIPE = Path(__file__).parents[1] / "recipes/serve_reward.py"
OPENINGS = ("The film is", "A dull script", "What a", "It was bad, but the", "Nobody could save")
WORDS = ("a", "quiet", "funny", "moving", "story", "about", "two", "brothers", "and", "bad", "good", "way", "home")
ENDS = (".", "!", "", ",")
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Timed(RemoteReward):
    """A `RemoteReward` that notes each attempt, and how long it took to be answered."""

    begun: list[float] = field(default_factory=list, kw_only=True)
    seconds: list[float] = field(default_factory=list, kw_only=True)

    async def _attempt(self, client: Any, request: Any) -> Any:
        self.begun.append(time.perf_counter())
        begin = self.begun[-1]
        answer = await super()._attempt(client, request)
        self.seconds.append(time.perf_counter() - begin)
        return answer


class Unreliable(BaseHTTPRequestHandler):
    """Hands requests on to `behind`: of ten, two are answered with 503 instead, and one waits for a second."""

    behind = ""
    counted = 0
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with Unreliable.lock:
            Unreliable.counted += 1
            number = Unreliable.counted
        if number % 5 == 0:
            return self.answer(503, b'{"detail": "too busy"}')
        if number % 10 == 1:
            time.sleep(1.0)
        request = urllib.request.Request(self.behind, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return self.answer(response.status, response.read())
        except urllib.error.HTTPError as error:
            return self.answer(error.code, error.read())

    def answer(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reward_funcs", nargs="+", default=["EndsWithSentence", "Vader"])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--words", type=int, default=20, help="Words of a completion.")
    parser.add_argument("--batch_size", type=int, default=32, help="Rows in a request.")
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 4, 16], help="Requests under way at once.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures.")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All runs, and what they gave."""
    rows = made_up_rows(args.rows, args.words)
    wanted, here = local_values(args, rows)
    report: dict[str, Any] = {
        "benchmark": "serving",
        "reward_funcs": args.reward_funcs,
        **{name: getattr(args, name) for name in ("rows", "words", "batch_size")},
        "machine": {"cpu_cores": os.cpu_count(), "omp_num_threads": os.environ.get("OMP_NUM_THREADS")},
        "local_rows_per_second": round(args.rows / here, 1),
        "runs": [],
    }
    with served(args.reward_funcs) as (url, process):
        asked(Timed(url), {name: values[:8] for name, values in rows.items()})  # the first call of all is slow
        for concurrency in args.concurrency:
            reward = Timed(url, batch_size=args.batch_size, max_concurrent=concurrency, timeout=600)
            report["runs"].append(one_run(reward, rows, wanted, here))
        with unreliable(url) as double:
            reward = Timed(double, batch_size=args.batch_size, max_concurrent=max(args.concurrency), timeout=600)
            report["with_failures"] = one_run(reward, rows, wanted, here)
        process.send_signal(signal.SIGTERM)
        report["exit_code_after_sigterm"] = process.wait(timeout=60)
    return report


def made_up_rows(count: int, words: int) -> dict[str, list[Any]]:
    dice = random.Random(0)
    texts = [" " + " ".join(dice.choices(WORDS, k=words)) + dice.choice(ENDS) for _ in range(count)]
    return {
        "prompts": [OPENINGS[row % len(OPENINGS)] + f" {row}:" for row in range(count)],  # each prompt once
        "completions": texts,
        "completion_ids": [list(range(words)) for _ in texts],
    }


def local_values(args: argparse.Namespace, rows: dict[str, list[Any]]) -> tuple[list[float], float]:
    """The values that must come back, and the seconds that they took in this process."""
    rewards = load_rewards(args.reward_funcs)
    rewards(**{name: values[:8] for name, values in rows.items()})  # what is loaded at first use
    wanted: list[float] = []
    begin = time.perf_counter()
    for start in range(0, args.rows, args.batch_size):
        wanted += rewards(**{name: values[start : start + args.batch_size] for name, values in rows.items()})
    return wanted, time.perf_counter() - begin


@contextlib.contextmanager
def served(reward_funcs: Sequence[str]) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The recipe as a process; its address is in the line that it prints for clients."""
    command = [sys.executable, str(RECIPE), "--reward_funcs", *reward_funcs, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if line.startswith("reward_funcs: ")), "")
        if not line:
            raise RuntimeError(f"{RECIPE.name} ended with code {process.wait()} before it listened.")
        yield json.loads(line.partition(": ")[2])[0]["args"]["url"], process
    finally:
        process.kill()  # nothing, where it has ended
        process.wait()


@contextlib.contextmanager
def unreliable(url: str) -> Iterator[str]:
    Unreliable.behind, Unreliable.counted = url, 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unreliable)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/score"
    finally:
        server.shutdown()
        server.server_close()


def asked(reward: Timed, rows: dict[str, list[Any]]) -> tuple[list[float | None], float]:
    begin = time.perf_counter()
    values = reward(**rows)
    return values, time.perf_counter() - begin


def one_run(reward: Timed, rows: dict[str, list[Any]], wanted: Sequence[float], here: float) -> dict[str, Any]:
    values, seconds = asked(reward, rows)
    differences = [abs(value - want) for value, want in zip(values, wanted, strict=True) if value is not None]
    if len(differences) < len(wanted) or max(differences) > TOLERANCE:
        raise AssertionError(f"Values over HTTP differ from those here by up to {max(differences)}.")
    latencies = sorted(reward.seconds)
    run = {
        "concurrency": reward.max_concurrent,
        "rows_per_second": round(len(values) / seconds, 1),
        "overhead_ms_per_row": round(1000 * (seconds - here) / len(values), 3),
        "p50_ms": round(1000 * latencies[len(latencies) // 2], 1),
        "p99_ms": round(1000 * latencies[int(0.99 * (len(latencies) - 1))], 1),
        "requests": len(latencies),
        "retries": len(reward.begun) - len(latencies),
        "largest_difference": max(differences),
    }
    sys.stderr.write(f"{json.dumps(run)}\n")
    return run


if __name__ == "__main__":
    main()
