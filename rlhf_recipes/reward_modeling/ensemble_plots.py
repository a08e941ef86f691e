"""The uncertainty of an ensemble as one picture: error, order and strange texts by disagreement."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_recipes.report.plots import MUTED, SERIES
from rlhf_recipes.rewards.balance import COLORS, draw_png

Panel = tuple[str, Any]


def draw_uncertainty(report: Mapping[str, Any], path: str | Path) -> Path | None:
    """Draw `uncertainty.json` as PNG: only the panels that it has figures for, and nothing where it has none.

    Args:
        report (`dict`): As `ensemble_evaluation.measure_ensemble` gives it.
        path (`str` or `Path`): The file.
    """
    panels: list[Panel] = []
    if report.get("error"):
        panels.append(("Texts: error by disagreement", _paint_error))
    if report.get("pairs"):
        panels.append(("Pairs: right by disagreement", _paint_pairs))
    if len(report.get("elsewhere") or ()) > 1:
        panels.append(("Disagreement on other texts", _paint_elsewhere))
    if not panels:
        return None

    def paint(canvas: Figure) -> None:
        for place, (title, painter) in enumerate(panels, start=1):
            axes = canvas.add_subplot(1, len(panels), place)
            painter(axes, report)
            axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")

    return draw_png(path, (4.0 * len(panels), 3.2), paint)


def _paint_error(axes: Axes, report: Mapping[str, Any]) -> None:
    parts = report["error"]["parts"]
    axes.plot([p["disagreement"] for p in parts], [p["error"] for p in parts], "o-", color=COLORS[SERIES[0]])
    low, high = report["error"]["spearman_ci95"] or (float("nan"), float("nan"))
    said = f"rank correlation {report['error']['spearman'] or 0:.2f} ({low:.2f} to {high:.2f})"
    axes.text(0.03, 0.95, said, transform=axes.transAxes, va="top", fontsize=9, color=COLORS[MUTED])
    axes.set(xlabel="standard deviation of the members", ylabel="mean distance from the rating", ylim=(0, None))
    axes.set_ylim(0, 1.25 * max(p["error"] for p in parts))


def _paint_pairs(axes: Axes, report: Mapping[str, Any]) -> None:
    parts = report["pairs"]["parts"]
    names = ["least", *[""] * (len(parts) - 2), "most"] if len(parts) != 3 else ["least", "middle", "most"]
    points = [*zip(names, parts, strict=True), *((kind, report["pairs"][kind]) for kind in ("unanimous", "divided"))]
    for place, (_, part) in enumerate(points):
        if part["accuracy"] is None:
            continue
        color = COLORS[SERIES[0]] if place < len(parts) else COLORS[SERIES[1]]
        axes.plot(place, part["accuracy"], "o", color=color, markersize=6)
        if part["accuracy_ci95"] is not None:
            axes.plot([place, place], part["accuracy_ci95"], color=color, linewidth=2)
        axes.annotate(f"{part['accuracy']:.2f}", (place, part["accuracy"]), (7, -3), textcoords="offset points")
    axes.set(xlim=(-0.4, len(points) - 0.3), xticks=range(len(points)), xticklabels=[name for name, _ in points])
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set(xlabel="thirds by deviation; by whether all agree", ylabel="pairs that the mean has right")


def _paint_elsewhere(axes: Axes, report: Mapping[str, Any]) -> None:
    tables = report["elsewhere"]
    for place, table in enumerate(tables):
        color = COLORS[SERIES[0]] if place == 0 else COLORS[SERIES[1]]
        low, first, middle, third, high = table["quantiles"]
        axes.plot([low, high], [place, place], color=color, linewidth=1)
        axes.plot([first, third], [place, place], color=color, linewidth=6, solid_capstyle="butt")
        axes.plot(middle, place, "o", color="white", markeredgecolor=color, markersize=6)
        if "above_test" in table:
            axes.annotate(f"{table['above_test']:.2f}", (high, place), (5, -3), textcoords="offset points", fontsize=9)
    axes.set(yticks=range(len(tables)), yticklabels=[table["name"] for table in tables])
    axes.set(xlim=(0, 1.15 * max(table["quantiles"][-1] for table in tables)), ylim=(len(tables) - 0.5, -0.5))
    axes.set_xlabel("standard deviation of the members")
