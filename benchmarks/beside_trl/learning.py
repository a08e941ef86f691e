"""Does the cheaper PPO learn as much? Score and KL against episodes, of as many seeds on both sides."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from beside_trl.setups import LEARNING
from beside_trl.turns import start

SIDES = ("ours", "trl")
LAST = 0.25  # the part of a run, at its end, whose means are compared
Curves = Mapping[str, Sequence[Sequence[Sequence[float]]]]  # side, seed, rollout, (episodes, score, KL)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """One run of each side from each seed, in turns."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for seed in args.seeds:
        for side in SIDES:
            setup = replace(LEARNING, seed=seed, **args.change)
            options = setup.options | (args.ours if side == "ours" else {})
            runs[side].append(start(side, replace(setup, options=options), args))
    curves = {side: [run["curve"] for run in of_side] for side, of_side in runs.items()}
    cost = {side: [round(run["cpu_seconds"], 4) for run in of_side] for side, of_side in runs.items()}
    return {"seeds": args.seeds, **compared(curves), "cpu_seconds": cost, "curves": curves}


def compared(curves: Curves) -> dict[str, Any]:
    """The end of every run, as a mean over its last rollouts, and ours less TRL's, paired by seed."""
    from rlhf_recipes.statistics import mean_with_interval, paired_gain

    result: dict[str, Any] = {}
    for place, name in ((1, "score"), (2, "kl")):
        ends = {side: [end_of([row[place] for row in curve]) for curve in of_side] for side, of_side in curves.items()}
        sides = {side: dict(zip(("mean", "ci95"), mean_with_interval(ends[side]), strict=True)) for side in ends}
        gain = paired_gain(ends["trl"], ends["ours"])
        result[name] = sides | {"ours_less_trl": gain["gain"], "ours_less_trl_ci95": gain["gain_ci95"]}
    return result


def end_of(values: Sequence[float]) -> float:
    """The mean of the last quarter of a run, of one rollout at least."""
    last = values[-max(1, round(LAST * len(values))) :]
    return sum(last) / len(last)


def table(found: Mapping[str, Any]) -> str:
    """Score and KL at the end, in Markdown."""
    lines = ["| at the end | ours | TRL 1.12 | ours less TRL | 95% interval |", "|---" * 5 + "|"]
    for name in ("score", "kl"):
        of = found[name]
        low, high = of["ours_less_trl_ci95"] or (float("nan"), float("nan"))
        lines.append(
            f"| {name} | {of['ours']['mean']:.3f} | {of['trl']['mean']:.3f} | {of['ours_less_trl']:+.3f} "
            f"| {low:+.3f} to {high:+.3f} |"
        )
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Any], file: Path) -> None:
    """Score and KL against the episodes that had been learned from: the mean over seeds and its interval."""
    from rlhf_recipes.figures import COLORS, SERIES, draw_png
    from rlhf_recipes.statistics import mean_with_interval

    def paint(figure: Any) -> None:
        for axes, place, unit in zip(figure.subplots(1, 2), (1, 2), ("score", "KL, nats"), strict=True):
            for side, color in zip(SIDES, (COLORS[SERIES[0]], COLORS[SERIES[1]]), strict=True):
                rollouts = list(zip(*found["curves"][side], strict=True))  # each with the row of every seed
                episodes = [rows[0][0] for rows in rollouts]
                means = [mean_with_interval([row[place] for row in rows]) for rows in rollouts]
                axes.plot(episodes, [mean for mean, _ in means], color=color, label=side)
                ends = [interval or [mean, mean] for mean, interval in means]
                axes.fill_between(episodes, *zip(*ends, strict=True), color=color, alpha=0.15, linewidth=0)
            axes.set(xlabel="episodes learned from", ylabel=unit)
        figure.axes[0].legend(frameon=False)

    draw_png(file, (9, 3.6), paint)
