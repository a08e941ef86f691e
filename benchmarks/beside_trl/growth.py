"""How cost grows with each quantity of the work, as a table and a plot."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from beside_trl.setups import GROWTH, ROLES, Setup
from beside_trl.turns import in_turns, summary

TITLES = {
    "batch": "episodes of a rollout",
    "new_tokens": "new tokens",
    "prompt_tokens": "tokens of a prompt",
    "lora_layers": "layers with adapters",
    "epochs": "epochs",
    "roles": "roles",
}
AXES = tuple(TITLES)
PLAIN = ("new_tokens", "prompt_tokens", "batch")  # in which a rollout's time is to be a straight line


def measure(base: Setup, args: argparse.Namespace) -> dict[str, Any]:
    """Every point of every axis: `sides` take turns at it. Roles are for ours alone: others have them all."""
    found: dict[str, Any] = {}
    for axis in args.axes:
        rows = []
        for value, setup in points(axis, base):
            sides = [side for side in args.sides if axis != "roles" or side == "ours"]
            ways = {side: (side, replace(setup, options=args.ours if side == "ours" else {})) for side in sides}
            work = {"batch": setup.batch, "new_tokens": setup.new_tokens}
            rows.append({"value": value, **work, "runs": summary(in_turns(ways, args))})
        found[axis] = {"points": rows, "fits": fits(axis, rows)}
    return found


def points(axis: str, base: Setup) -> list[tuple[Any, Setup]]:
    """Each value along an axis, and its setup."""
    if axis == "roles":
        return [(name, replace(base, **change)) for name, change in ROLES.items()]
    return [(value, replace(base, **{axis: value})) for value in GROWTH[axis]]


def fits(axis: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What is claimed of an axis, as figures, for each side.

    `off_line` is by how much, as a share, a rollout's processor seconds are off the straight line in its tokens that
    fits best, at most; `memory` the most peak memory along the axis by the least.
    """
    result = {}
    for side in rows[0]["runs"]:
        figures = [row["runs"][side] for row in rows]
        peaks = [figure["peak_mb"][0] for figure in figures]
        result[side] = {"memory": round(max(peaks) / min(peaks), 3)}
        if axis in PLAIN and len(rows) > 2:
            tokens = [
                row["batch"] * (row["new_tokens"] + figure["prompt_tokens"][0])
                for row, figure in zip(rows, figures, strict=True)
            ]
            seconds = [of_rollout(row, side) for row in rows]
            result[side]["off_line"] = round(off_line(tokens, seconds), 3)
    return result


def of_rollout(row: Mapping[str, Any], side: str) -> float:
    """Processor seconds of a whole rollout and its updates."""
    return row["batch"] * row["runs"][side]["cpu_seconds"][0]


def off_line(x: Sequence[float], y: Sequence[float]) -> float:
    """The largest distance from the straight line whose relative distances have the least sum of squares."""
    at, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    line = np.polyfit(at, values, 1, w=1 / values)
    return float(np.abs(np.polyval(line, at) / values - 1).max())


def table(found: Mapping[str, Any]) -> str:
    """The figures of every point, in Markdown."""
    lines = ["| | value | | s/episode | CPU s/episode | peak GB |", "|---" * 6 + "|"]
    for axis, of_axis in found.items():
        for row in of_axis["points"]:
            for side, figures in row["runs"].items():
                cells = [figures["seconds"][0], figures["cpu_seconds"][0], figures["peak_mb"][0] / 1000]
                shown = " | ".join(f"{cell:.3g}" for cell in cells)
                lines.append(f"| {TITLES[axis]} | {row['value']} | {side} | {shown} |")
    lines += ["", "| | | off the line, at most | most by least memory |", "|---|---|---|---|"]
    for axis, of_axis in found.items():
        for side, fit in of_axis["fits"].items():
            off = f"{fit['off_line']:.1%}" if "off_line" in fit else ""
            lines.append(f"| {TITLES[axis]} | {side} | {off} | {fit['memory']:.2f} |")
    return "\n".join(lines) + "\n"


def plot(found: Mapping[str, Any], file: Path) -> None:
    """A column for each axis: processor seconds of a rollout above, peak memory below."""
    from rlhf_recipes.figures import COLORS, INK, MUTED, SERIES, draw_png

    colors = dict(zip(("ours", "grpo", "trl"), (COLORS[SERIES[0]], COLORS[SERIES[1]], COLORS[MUTED]), strict=True))

    def paint(figure: Any) -> None:
        grid = figure.subplots(2, len(found), sharex="col", squeeze=False)
        for column, (axis, of_axis) in enumerate(found.items()):
            names = [str(row["value"]) for row in of_axis["points"]]
            at = range(len(names)) if axis == "roles" else [row["value"] for row in of_axis["points"]]
            for side in of_axis["points"][0]["runs"]:
                rows = of_axis["points"]
                peaks = [row["runs"][side]["peak_mb"][0] / 1000 for row in rows]
                seconds = [of_rollout(row, side) for row in rows]
                for axes, values in zip(grid[:, column], (seconds, peaks), strict=True):
                    axes.plot(at, values, color=colors.get(side, COLORS[INK]), marker="o", markersize=4, label=side)
                    axes.set_ylim(0, max(axes.get_ylim()[1], 1.1 * max(values)))
            grid[1, column].set_xlabel(TITLES[axis])
            grid[1, column].set_xticks(at, names)
        grid[0, 0].set_ylabel("CPU s of a rollout")
        grid[1, 0].set_ylabel("peak GB")
        grid[0, 0].legend(frameon=False)

    draw_png(file, (2.6 * len(found), 4.6), paint)
