r"""Does it learn? Three tasks of a known best score, by each method of recipes/configs/preset_*.yaml, from five seeds.

    OMP_NUM_THREADS=1 python benchmarks/learning.py --output runs/learning.json --plot docs/images/learning.png
    OMP_NUM_THREADS=1 python benchmarks/learning.py --against rollout_dtype=bfloat16

    emit     write one symbol at every position; the score is its share of the completion       best 1
    reverse  write the three symbols of the prompt backwards; every position is paid by itself   best 1
    stop     end at once; the score falls with every token before the end                        best 1

`episodes` is how many episodes had been learned from when a rollout of training first had a mean score of 95% of the
best. `final_score` is the mean of one sampled completion for each of 64 prompts that were not trained on, after the
last update; a seed has reached the goal if that is 95% of the best or more. Progress goes to stderr; the last line, on
stdout, is one JSON object. `--output` keeps the same, with the curve of every run.

`--against` runs every seed once more with another option of PPOConfig. `difference` is the final score with it, less
that without, in standard deviations of the untrained policy's scores: the mean over seeds with its 95% interval
(Student's t).
"""

import argparse
import contextlib
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scipy import stats
from tiny_tasks import METHODS, TASKS, Run, Task, episodes_to, machine, save_figure, train

SHARE = 0.95  # of the best score


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    print(json.dumps(report))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All runs that were asked for, and what they gave."""
    given = {"total_episodes": args.episodes, "learning_rate": args.learning_rate}
    changes = {name: value for name, value in given.items() if value is not None}
    results: dict[str, dict[str, Any]] = {}
    against = {} if args.against is None else dict([args.against])
    curves: dict[str, dict[str, list[list[list[float]]]]] = {}
    for name in args.tasks:
        task = TASKS[name]()
        results[name], curves[name] = {}, {}
        for method in args.methods:
            runs = []
            for seed in args.seeds:
                runs.append(train(task, method, seed, **changes))
                sys.stderr.write(f"{name:>8} {method:<16} seed {seed}: {one_line(task, runs[-1])}\n")
            results[name][method] = summary(task, runs)
            if against:
                others = [train(task, method, seed, **changes, **against) for seed in args.seeds]
                results[name][method]["against"] = against | {"difference": difference(runs, others)}
            curves[name][method] = [curve(run) for run in runs]
    report = {"benchmark": "learning", "share_of_best": SHARE, "seeds": args.seeds, "machine": machine()}
    report["results"] = results
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report | {"curves": curves}) + "\n", encoding="utf-8")
    if args.plot:
        plot(curves, args.plot)
    sys.stderr.write(table(results, len(args.seeds)))
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--episodes", type=int, help="Of each run, in place of what is set for the task and method.")
    parser.add_argument("--learning_rate", type=float, help="In place of that of the task and method.")
    parser.add_argument("--against", type=pair, metavar="NAME=VALUE", help="Run every seed with this option, too.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures, and every curve.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw the curves.")
    return parser.parse_args(argv)


def pair(text: str) -> tuple[str, Any]:
    """An option of PPOConfig with its value, read as JSON where it is that."""
    name, _, value = text.partition("=")
    with contextlib.suppress(json.JSONDecodeError):
        return name, json.loads(value)
    return name, value


def difference(runs: Sequence[Run], others: Sequence[Run]) -> dict[str, Any]:
    """How much better the others' final scores are, seed by seed."""
    spread = statistics.fmean(run.history[0]["objective/scores_std"] for run in runs)
    finals = [[run.held_out["objective/scores"] for run in side] for side in (runs, others)]
    gains = [(other - own) / spread for own, other in zip(*finals, strict=True)]
    low, high = stats.ttest_1samp(gains, 0.0).confidence_interval(0.95) if len(set(gains)) > 1 else (gains[0],) * 2
    return {"mean": round(statistics.fmean(gains), 4), "low": round(float(low), 4), "high": round(float(high), 4),
            "all": [round(gain, 4) for gain in gains]}  # fmt: skip


def curve(run: Run) -> list[list[float]]:
    """`[episodes learned from, mean score]` of every rollout."""
    learned = [0, *(entry["episode"] for entry in run.history)]
    return [[n, round(entry["objective/scores"], 4)] for n, entry in zip(learned, run.history, strict=False)]


def one_line(task: Task, run: Run) -> str:
    reached = episodes_to(run.history, SHARE * task.best)
    return (
        f"{SHARE:.0%} after {'none' if reached is None else reached} of {run.history[-1]['episode']:.0f} episodes, "
        f"final score {run.held_out['objective/scores']:.3f}, {run.cpu_seconds:.1f} s of CPU in "
        f"{run.wall_seconds:.1f} s"
    )


def summary(task: Task, runs: Sequence[Run]) -> dict[str, Any]:
    """The figures of one task and method over all seeds; `null` stands for a goal that was not reached."""
    episodes = [episodes_to(run.history, SHARE * task.best) for run in runs]
    counts = sorted(math.inf if count is None else count for count in episodes)
    middle = {"median": statistics.median(counts), "min": counts[0], "max": counts[-1]}
    finals = [run.held_out["objective/scores"] for run in runs]
    return {
        "best_score": task.best,
        "settings": runs[0].settings,
        "episodes": {name: None if math.isinf(count) else count for name, count in middle.items()} | {"all": episodes},
        "final_score": _spread(finals, 4),
        "seeds_reached": sum(final >= SHARE * task.best for final in finals),
        "wall_seconds": _spread([run.wall_seconds for run in runs], 1),
        "cpu_seconds": _spread([run.cpu_seconds for run in runs], 1),
    }


def _spread(values: Sequence[float], digits: int) -> dict[str, float]:
    found = {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}
    return {name: round(value, digits) for name, value in found.items()}


def table(results: dict[str, dict[str, Any]], seeds: int) -> str:
    """The figures as a table for people, in Markdown."""
    lines = [
        "| task | method | learning rate | episodes to 95%: median (min to max) | final score: mean (min) "
        "| seeds that reached it | CPU s a run | wall s a run, at most |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, methods in results.items():
        for method, found in methods.items():
            episodes, score = found["episodes"], found["final_score"]
            median, low, high = (f"{episodes[k]:.0f}" if episodes[k] is not None else "-" for k in
                                 ("median", "min", "max"))  # fmt: skip
            lines.append(
                f"| {name} | {method} | {found['settings']['learning_rate']:g} | {median} ({low} to {high}) of "
                f"{found['settings']['total_episodes']} | {score['mean']:.3f} ({score['min']:.3f}) "
                f"| {found['seeds_reached']} of {seeds} | {found['cpu_seconds']['mean']:.0f} "
                f"| {found['wall_seconds']['max']:.0f} |"
            )
            if "against" in found:
                *options, gain = found["against"].items()
                said = ", ".join(f"{key}={value}" for key, value in options)
                lines.append(
                    f"| | {said}: {gain[1]['mean']:+.3f} SD ({gain[1]['low']:+.3f} to {gain[1]['high']:+.3f}) |"
                )
    return "\n".join(lines) + "\n"


def plot(curves: dict[str, dict[str, list[list[list[float]]]]], file: Path) -> None:
    """One panel for each task: every run pale, the mean over seeds of each method on top."""

    def paint(axes: Any, name: str) -> None:
        for index, (method, runs) in enumerate(curves[name].items()):
            color = f"C{index}"
            for run in runs:
                axes.plot(*zip(*run, strict=True), color=color, linewidth=0.6, alpha=0.3)
            means = [(points[0][0], statistics.fmean(p[1] for p in points)) for points in zip(*runs, strict=True)]
            axes.plot(*zip(*means, strict=True), color=color, linewidth=1.8, label=method)
        axes.axhline(SHARE, color="0.4", linewidth=0.9, linestyle=(0, (4, 2)))
        axes.set(title=name, xlabel="episodes learned from", ylabel="mean score of a rollout", ylim=(0, 1.03))
        axes.legend(loc="lower right")

    save_figure(file, [(paint, name) for name in curves], columns=len(curves))


if __name__ == "__main__":
    main()
