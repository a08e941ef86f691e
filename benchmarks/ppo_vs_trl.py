r"""PPO here and in TRL 1.12, on the same work: seconds of an episode, and the most memory.

    python benchmarks/ppo_vs_trl.py --setups lora10
    python benchmarks/ppo_vs_trl.py --output runs/speed/setups.json     # all setups
    python benchmarks/ppo_vs_trl.py --setups lora10 --ours logits_chunk_size=512
    python benchmarks/ppo_vs_trl.py --levers --setups lora10
    python benchmarks/ppo_vs_trl.py --grow --plot runs/speed/growth.png
    python benchmarks/ppo_vs_trl.py --learning --plot runs/speed/learning.png

Both get the same models (SmolLM2 of the starter kit; as reward model the same with a scalar head of random weights),
prompts, number of episodes and of tokens of each, epochs, optimizer steps, micro-batch, trained layers, threads, and
float32. No completion ends early. What the setups are stands in benchmarks/beside_trl/setups.py. TRL 1.12 comes from
pip into `.cache/`, or from the folder that TRL_1_12 names.

The sides take turns, so that a passing load of other programs falls on all of them; every run is a process of its own,
which leaves its first rollout out of the time, and not out of the memory. TRL is run with three sizes of
`local_rollout_forward_batch_size` first, and then with the fastest. `trl` is as its own script runs it: its critic, a
model of its own, is trained whole, since `peft_config` is the policy's alone. `trl_lora_critic` has adapters on the
same layers of the critic, put on by hand, and `trl_bf16` is `trl` under bf16 autocast. `grpo` is GRPOTrainer of the
installed TRL.

`seconds` are by the clock, `cpu_seconds` of computing by all threads of the process: these say about the same on a
machine that others use. All are for one episode; `sample` has all that is read of a rollout but for the reward model,
which is `score`. Each figure is the median of the repeats, with the least and the most. `ratios` are medians over the
repeats: `speed` how many times TRL's episodes a second ours are, `memory` which part of its peak.

`--levers` runs ours alone, as it is and with each thing that makes it cheap switched off. `--grow` goes along one
quantity of the work after another. `--learning` trains both from five seeds on a lexicon's praise, and compares scores
and KL. Progress goes to stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside_trl import growth, learning
from beside_trl.setups import BARS, LEVERS, SETUPS, Setup
from beside_trl.turns import SIDES, in_turns, judged, ratios, start, summary, work

FORWARD = "local_rollout_forward_batch_size"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    if args.worker:
        print(json.dumps(work(args.worker, Setup(**json.loads(args.setup)), args.model, args.dataset)))
        return
    report: dict[str, Any] = {"benchmark": "ppo_vs_trl", "machine": machine(args)}
    if args.grow:
        report["growth"] = growth.measure(replace(SETUPS[args.setups[0]], **args.change), args)
        said, picture = growth.table(report["growth"]), growth.plot
    elif args.learning:
        report["learning"] = learning.measure(args)
        said, picture = learning.table(report["learning"]), learning.plot
    else:
        report["setups"], picture = {}, None
        for name in args.setups:
            setup = replace(SETUPS[name], **args.change)
            report["setups"][name] = measure_levers(setup, args) if args.levers else compare(name, setup, args)
            keep(report, args.output)  # the next one may take an hour
        said = table(report["setups"])
    keep(report, args.output)
    if args.plot and picture:
        picture(report["growth" if args.grow else "learning"], args.plot)
    sys.stderr.write(said)
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--levers", action="store_true", help="Ours alone, with each lever switched off in turn.")
    modes.add_argument("--grow", action="store_true", help="Along one quantity after another.")
    modes.add_argument("--learning", action="store_true", help="Score and KL over episodes.")
    parser.add_argument("--setups", nargs="+", choices=list(SETUPS), default=list(SETUPS))
    parser.add_argument(
        "--sides", nargs="+", choices=list(SIDES), help="Default: all but grpo; for --grow ours and grpo."
    )
    parser.add_argument("--axes", nargs="+", choices=growth.AXES, default=list(growth.AXES), help="Of --grow.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4], help="Of --learning.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each side.")
    parser.add_argument("--forward", nargs="+", type=int, metavar="N", help=f"TRL's {FORWARD}, in place of three.")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="Of every run.")
    parser.add_argument(
        "--processor-seconds", action="store_true", help="Judge speed by cpu_seconds: on a machine that others use."
    )
    pairs: dict[str, Any] = {"nargs": "+", "type": option, "default": [], "metavar": "NAME=VALUE"}
    parser.add_argument("--ours", **pairs, help="Options of our PPOConfig.")
    parser.add_argument("--change", **pairs, help="Of the setups, such as batch=8 or rollouts=1.")
    parser.add_argument("--model", default="starter/smollm2-135m-instruct", help="The policy's folder.")
    parser.add_argument("--dataset", default="starter/movie-ratings", help="Folder whose texts prompts come from.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures, after every setup.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw --grow or --learning.")
    parser.add_argument("--worker", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--setup", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.sides = args.sides or (["ours", "grpo"] if args.grow else [side for side in SIDES if side != "grpo"])
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


def compare(name: str, setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """All sides on one setup, in turns."""
    of_side = dict.fromkeys(args.sides, setup) | {"ours": replace(setup, options=args.ours)}
    tried: dict[int, float] = {}
    if "trl" in args.sides:
        by, sizes = "cpu_seconds" if args.processor_seconds else "seconds", args.forward or forward_sizes(setup.batch)
        if len(sizes) > 1:
            tried = {size: start("trl", at_size(setup, size), args)[by] for size in sizes}
        fastest = at_size(setup, min(sizes, key=lambda size: tried.get(size, 0.0)))
        of_side |= {side: fastest for side in args.sides if SIDES[side][0] == "trl_ppo"}
    runs = in_turns({side: (side, of_side[side]) for side in args.sides}, args)
    result: dict[str, Any] = {"setup": json.loads(setup.as_json()), FORWARD: tried, "runs": summary(runs)}
    others = [side for side in args.sides if side != "ours"] if "ours" in runs else []
    result["ratios"] = {side: ratios(runs["ours"], runs[side]) for side in others}
    if name in BARS and "trl" in result["ratios"]:
        result["bars"] = judged(result["ratios"]["trl"], BARS[name], args.processor_seconds)
    return result


def at_size(setup: Setup, size: int) -> Setup:
    return replace(setup, options={FORWARD: size})


def forward_sizes(batch: int) -> list[int]:
    """Three sizes for what TRL reads of a rollout at a time: all, half and a quarter."""
    return sorted({max(batch // part, 1) for part in (1, 2, 4)}, reverse=True)


def measure_levers(setup: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """Ours as it is, and without each lever; `ratios` are of what it is with all of them by that."""
    ways = {"all levers": args.ours} | {name: args.ours | change for name, change in LEVERS.items()}
    runs = in_turns({name: ("ours", replace(setup, options=options)) for name, options in ways.items()}, args)
    shares = {name: ratios(runs["all levers"], runs[name]) for name in LEVERS}
    return {"setup": json.loads(setup.as_json()), "runs": summary(runs), "ratios": shares}


def machine(args: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on."""
    load = [round(value, 1) for value in os.getloadavg()]
    kind = {"architecture": platform.machine(), "cores": os.cpu_count(), "threads": args.threads}
    return kind | {"load_average_at_start": load}


def keep(report: Mapping[str, Any], file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report) + "\n", encoding="utf-8")


def table(setups: Mapping[str, Any]) -> str:
    """The figures for people, in Markdown."""
    lines = ["| setup | | s/episode | CPU s/episode | peak GB | speed | by CPU | memory |", "|---" * 8 + "|"]
    for name, found in setups.items():
        for way, figures in found["runs"].items():
            cells = [figures["seconds"][0], figures["cpu_seconds"][0], figures["peak_mb"][0] / 1000]
            shown = [f"{value:.3g}" for value in cells]
            shown += [f"{value:.2f}" for value in found["ratios"].get(way, {}).values()] or [""] * 3
            lines.append(f"| {name} | {way} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
