"""Runs in processes of their own, in turns, and the figures of all of them together. No library is imported here.

So this process stays small, and what a run takes is its own.
"""

import argparse
import contextlib
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside_trl import overlay
from beside_trl.setups import Setup

SCRIPT = Path(__file__).parents[1] / "ppo_vs_trl.py"
# Each side's file in this folder, what it changes of the setup, and of its own config.
SIDES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ours": ("ours", {}, {}),
    "trl": ("trl_ppo", {}, {}),
    "trl_lora_critic": ("trl_ppo", {"critic_adapters": True}, {}),
    "trl_bf16": ("trl_ppo", {}, {"bf16": True}),
    "grpo": ("grpo", {}, {}),
}
Run = Mapping[str, Any]
Ways = Mapping[str, tuple[str, Setup]]


def work(side: str, setup: Setup, model: str, dataset: str) -> dict[str, Any]:
    """What the worker does: one run of one side, in this process."""
    module = SIDES[side][0]
    if module == "trl_ppo":
        sys.path.insert(0, str(overlay.find()))
    # What trainers and libraries print goes to stderr; stdout is for one line alone.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        found = importlib.import_module(f"beside_trl.{module}").run(setup, model, dataset, folder)
    from beside_trl.common import memory_mb  # with it come torch and transformers

    return {**found, "peak_mb": memory_mb("VmHWM")}


def start(side: str, setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """One run in a process of its own.

    Raises:
        `SystemExit`: with the end of what it wrote, if it failed.
    """
    _, changes, options = SIDES[side]
    setup = replace(setup, **changes, options=setup.options | options)
    command = [sys.executable, str(SCRIPT), "--worker", side, "--setup", setup.as_json()]
    command += ["--model", args.model, "--dataset", args.dataset]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    # The same for all: what this library sets for itself.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
    environment = {**os.environ, **threads, **waiting, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed on {setup}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{name} {value:.4g}" for name, value in numbers(found).items())
    print(f"{side:>8} {setup.options}: {said}", file=sys.stderr, flush=True)
    return found


def in_turns(ways: Ways, args: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """Every way once, then every way again, as often as `repeats` says."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (side, setup) in ways.items():
            runs[name].append(start(side, setup, args))
    return runs


def numbers(run: Run) -> dict[str, float]:
    """The figures of a run, without its curve."""
    return {name: value for name, value in run.items() if isinstance(value, int | float)}


def summary(runs: Mapping[str, Sequence[Run]]) -> dict[str, dict[str, list[float]]]:
    """Median, least and most of every figure."""
    picks = (statistics.median, min, max)
    return {
        way: {name: [round(float(pick(run[name] for run in done)), 4) for pick in picks] for name in numbers(done[0])}
        for way, done in runs.items()
    }


def ratios(ours: Sequence[Run], other: Sequence[Run]) -> dict[str, float]:
    """How many times the other's episodes a second ours are, by clock and processor, and our part of its memory."""

    def median(over: Sequence[Run], under: Sequence[Run], name: str) -> float:
        return round(statistics.median(a[name] / b[name] for a, b in zip(over, under, strict=True)), 3)

    return {
        "speed": median(other, ours, "seconds"),
        "cpu_speed": median(other, ours, "cpu_seconds"),
        "memory": median(ours, other, "peak_mb"),
    }


def judged(found: Mapping[str, float], bars: Mapping[str, float], by_processor: bool) -> dict[str, Any]:
    """Each bar, and whether it is reached: a speed at least, memory at most."""
    speed = found["cpu_speed" if by_processor else "speed"]
    met = {"speed": speed >= bars["speed"], "memory": found["memory"] <= bars.get("memory", 0.0)}
    return {name: {"bar": bar, "met": met[name]} for name, bar in bars.items()}
