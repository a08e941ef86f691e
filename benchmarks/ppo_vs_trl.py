r"""PPO here and in TRL 1.12, on the same work: seconds of an episode, and the most memory.

    python benchmarks/ppo_vs_trl.py --setups lora10
    python benchmarks/ppo_vs_trl.py --output runs/ppo_vs_trl.json     # all setups; hours
    python benchmarks/ppo_vs_trl.py --levers --setups lora10
    python benchmarks/ppo_vs_trl.py --setups lora10 --ours logits_chunk_size=512

Both get the same models (SmolLM2 of the starter kit; as reward model the same with a scalar head of random weights),
prompts, number of episodes and of tokens of each, epochs, optimizer steps, micro-batch, trained layers, threads, and
float32. No completion ends early. What the setups are stands in benchmarks/beside_trl/setups.py. TRL 1.12 comes from
pip into `.cache/`, or from the folder that TRL_1_12 names.

The sides take turns, so that a passing load of other programs falls on all of them; every run is a process of its own,
which leaves its first rollout out of the time, and not out of the memory. TRL is run with three sizes of
`local_rollout_forward_batch_size` first, and then with the fastest. `trl` is as its own script runs it: its critic, a
model of its own, is trained whole, since `peft_config` is the policy's alone. `trl_lora_critic` has adapters on the
same layers of the critic, put on by hand, and `trl_bf16` is `trl` under bf16 autocast.

`seconds` are by the clock, `cpu_seconds` of computing by all threads of the process: these say about the same on a
machine that others use. All are for one episode; `sample` has all that is read of a rollout but for the reward model,
which is `score`. Each figure is the median of the repeats, with the least and the most. `ratios` are medians over the
repeats: `speed` how many times TRL's episodes a second ours are, `memory` which part of its peak.
Progress goes to stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside_trl import overlay
from beside_trl.setups import BARS, LEVERS, SETUPS, Setup

# Each side's file in beside_trl/, what it changes of the setup, and of its own config.
SIDES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "ours": ("ours", {}, {}),
    "trl": ("trl_ppo", {}, {}),
    "trl_lora_critic": ("trl_ppo", {"critic_adapters": True}, {}),
    "trl_bf16": ("trl_ppo", {}, {"bf16": True}),
    "grpo": ("grpo", {}, {}),
}
FORWARD = "local_rollout_forward_batch_size"
Runs = dict[str, list[dict[str, float]]]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.worker:
        print(json.dumps(work(args.worker, Setup(**json.loads(args.setup)), args.model, args.dataset)))
        return
    report: dict[str, Any] = {"benchmark": "ppo_vs_trl", "machine": machine(args), "setups": {}, "levers": {}}
    for name in args.setups:
        setup = replace(SETUPS[name], **args.change)
        if args.levers:
            report["levers"][name] = measure_levers(setup, args)
        else:
            report["setups"][name] = compare(name, setup, args)
        keep(report, args.output)
    sys.stderr.write(tables(report))
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setups", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=[side for side in SIDES if side != "grpo"])
    parser.add_argument("--levers", action="store_true", help="Ours alone, with each lever switched off in turn.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each side.")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Of every run.")
    parser.add_argument(
        "--processor-seconds", action="store_true", help="Judge speed by cpu_seconds: on a machine that others use."
    )
    parser.add_argument("--ours", nargs="+", type=option, default=[], metavar="NAME=VALUE", help="Of our PPOConfig.")
    parser.add_argument(
        "--change", nargs="+", type=option, default=[], metavar="NAME=VALUE", help="Of the setups, such as batch=8."
    )
    parser.add_argument("--model", default="starter/smollm2-135m-instruct", help="The policy's folder.")
    parser.add_argument("--dataset", default="starter/movie-ratings", help="Folder whose texts prompts come from.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures, after every setup.")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--setup", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.ours, args.change = dict(args.ours), dict(args.change)
    return args


def option(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value read as JSON where it is that, and as text otherwise."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} has no value: write NAME=VALUE.")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


# --- One run ----------------------------------------------------------------------------------------


def work(side: str, setup: Setup, model: str, dataset: str) -> dict[str, float]:
    """What the worker does: one run of one side, in this process."""
    module = SIDES[side][0]
    if module == "trl_ppo":
        sys.path.insert(0, str(overlay.find()))
    # What trainers and libraries print goes to stderr; stdout is for one line alone.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        found = importlib.import_module(f"beside_trl.{module}").run(setup, model, dataset, folder)
    from beside_trl.common import memory_mb

    return {**found, "peak_mb": memory_mb("VmHWM")}


def start(side: str, setup: Setup, args: argparse.Namespace) -> dict[str, float]:
    """One run in a process of its own.

    Raises:
        `SystemExit`: with the end of what it wrote, if it failed.
    """
    _, changes, options = SIDES[side]
    setup = replace(setup, **changes, options=setup.options | options)
    command = [sys.executable, __file__, "--worker", side, "--setup", setup.as_json()]
    command += ["--model", args.model, "--dataset", args.dataset]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(args.threads))
    # The same for both: what this library sets for itself.
    waiting = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
    environment = {**os.environ, **threads, **waiting, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{side} failed on {setup}:\n{done.stderr[-3000:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    said = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
    print(f"{side:>8} {setup.options}: {said}", file=sys.stderr, flush=True)
    return found


# --- Runs in turn -----------------------------------------------------------------------------------


def compare(name: str, setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """All sides on one setup, in turns."""
    by = "cpu_seconds" if args.processor_seconds else "seconds"
    tried: dict[int, float] = {}
    of_side = dict.fromkeys(args.sides, setup) | {"ours": replace(setup, options=args.ours)}
    if "trl" in args.sides:
        for size in forward_sizes(setup.batch):
            tried[size] = start("trl", replace(setup, options={FORWARD: size}), args)[by]
        fastest = replace(setup, options={FORWARD: min(tried, key=lambda size: tried[size])})
        of_side |= {side: fastest for side in args.sides if SIDES[side][0] == "trl_ppo"}
    runs = in_turns({side: (side, of_side[side]) for side in args.sides}, args)
    result: dict[str, Any] = {"setup": json.loads(setup.as_json()), FORWARD: tried, "runs": summary(runs)}
    result["ratios"] = {side: ratios(runs["ours"], runs[side]) for side in args.sides if side != "ours"}
    if name in BARS and "trl" in runs and not args.change:
        result["bars"] = judged(result["ratios"]["trl"], BARS[name], args.processor_seconds)
    return result


def forward_sizes(batch: int) -> list[int]:
    """Three sizes for what TRL reads of a rollout at a time: all, half and a quarter."""
    return sorted({max(batch // part, 1) for part in (1, 2, 4)}, reverse=True)


def measure_levers(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """Ours as it is, and without each lever; `ratios` are of that by what it is with all of them."""
    ways = {"all levers": args.ours} | {name: args.ours | change for name, change in LEVERS.items()}
    runs = in_turns({name: ("ours", replace(setup, options=options)) for name, options in ways.items()}, args)
    shares = {name: ratios(runs["all levers"], runs[name]) for name in ways if name != "all levers"}
    return {"setup": json.loads(setup.as_json()), "runs": summary(runs), "ratios": shares}


def in_turns(ways: Mapping[str, tuple[str, Setup]], args: argparse.Namespace) -> Runs:
    runs: Runs = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (side, setup) in ways.items():
            runs[name].append(start(side, setup, args))
    return runs


# --- Figures ----------------------------------------------------------------------------------------


def summary(runs: Runs) -> dict[str, dict[str, list[float]]]:
    """Median, least and most of every figure."""
    return {
        side: {
            name: [round(pick(run[name] for run in of_side), 4) for pick in (statistics.median, min, max)]
            for name in of_side[0]
        }
        for side, of_side in runs.items()
    }


def ratios(ours: Sequence[Mapping[str, float]], other: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """How much faster ours is, by the clock and by the processor, and which part of the other's memory it takes."""

    def median(name: str, inverse: bool) -> float:
        pairs = [(b[name] / a[name]) if inverse else (a[name] / b[name]) for a, b in zip(ours, other, strict=True)]
        return round(statistics.median(pairs), 3)

    return {
        "speed": median("seconds", True),
        "cpu_speed": median("cpu_seconds", True),
        "memory": median("peak_mb", False),
    }


def judged(found: Mapping[str, float], bar: Mapping[str, float], by_processor: bool) -> dict[str, Any]:
    """Each bar, and whether it is reached."""
    speed = found["cpu_speed" if by_processor else "speed"]
    met = {"speed": speed >= bar["speed"]}
    if "memory" in bar:
        met["memory"] = found["memory"] <= bar["memory"]
    return {name: {"bar": bar[name], "met": met[name]} for name in bar}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cores": os.cpu_count(), "threads": args.threads, "architecture": platform.machine(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
    }  # fmt: skip


def keep(report: Mapping[str, Any], file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report) + "\n", encoding="utf-8")


def tables(report: Mapping[str, Any]) -> str:
    """The report for people, in Markdown."""
    lines = ["| setup | | s/episode | CPU s/episode | peak GB | speed | by CPU | memory |", "|---" * 8 + "|"]
    for name, found in [*report["setups"].items(), *report["levers"].items()]:
        for side, figures in found["runs"].items():
            cells = [figures["seconds"][0], figures["cpu_seconds"][0], figures["peak_mb"][0] / 1000]
            shown = [f"{value:.3g}" for value in cells]
            shown += [f"{value:.2f}" for value in found["ratios"].get(side, {}).values()] or [""] * 3
            lines.append(f"| {name} | {side} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
