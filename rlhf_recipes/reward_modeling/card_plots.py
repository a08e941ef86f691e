"""The pictures of a reward model's page, as inline SVG in the colours of the page; see `rlhf_recipes.report.plots`."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlhf_recipes.report.plots import (
    INK,
    LARGE,
    MUTED,
    SERIES,
    STYLE,
    _inline,
    bin_predictions,
    draw,
    plot_accuracy,
    plot_calibration,
)

__all__ = [
    "as_svg",
    "bin_predictions",
    "plot_accuracy",
    "plot_calibration",
    "plot_margins",
    "plot_shares",
    "plot_wins",
]

Bucket = Mapping[str, Any]


def plot_margins(name: str, label: str, axis: str, series: Mapping[str, Sequence[Bucket]]) -> Markup:
    """Draw accuracy over how clear the case is: a point with its interval for each bucket and each scorer.

    Args:
        axis (`str`): What the margin is.
        series (`Mapping[str, Sequence[Mapping]]`):
            For each scorer its buckets, with `accuracy`, `accuracy_ci95` and either `name` or `from` and `to`.
    """
    names = [bucket_name(bucket) for bucket in next(iter(series.values()))]

    def paint(axes: Axes) -> None:
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
        for index, buckets in enumerate(series.values()):
            color = SERIES[0] if index == 0 else MUTED
            there = [(place, b) for place, b in enumerate(buckets) if b["accuracy"] is not None]
            shift = 0.0 if index == 0 else 0.14 * index
            for place, bucket in there:
                low, high = bucket.get("accuracy_ci95") or (bucket["accuracy"],) * 2
                axes.plot([place + shift] * 2, [low, high], color=color, linewidth=2.2)
            xs, ys = [place + shift for place, _ in there], [bucket["accuracy"] for _, bucket in there]
            axes.plot(xs, ys, "o" if index == 0 else "s", color=color, markersize=6)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(names) - 0.3), ylim=(min(0.45, *_lows(series)), 1.02), xlabel=axis)
        axes.set_ylabel("pairs in the right order")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.grid(visible=False, axis="x")

    return draw(name, label, LARGE, paint)


def bucket_name(bucket: Bucket) -> str:
    """How a bucket is called on an axis and in a table."""
    if "name" in bucket:
        return str(bucket["name"])
    if bucket["to"] is None:
        return f"{bucket['from']:.3g} and more"
    return f"{bucket['from']:.3g} to {bucket['to']:.3g}"


def _lows(series: Mapping[str, Sequence[Bucket]]) -> list[float]:
    every = [bucket for buckets in series.values() for bucket in buckets if bucket["accuracy"] is not None]
    return [(bucket.get("accuracy_ci95") or [bucket["accuracy"]])[0] - 0.03 for bucket in every] or [0.45]


def plot_shares(name: str, label: str, bins: Sequence[Bucket], from_half: bool) -> Markup:
    """Draw what came true over what was said, a dot for each bin, as large as it has rows.

    Args:
        bins (`Sequence[Mapping]`): With `probability`, `outcome` and `rows`.
        from_half (`bool`): Whether probabilities begin at 0.5, as those of pairs do.
    """

    def paint(axes: Axes) -> None:
        low = 0.5 if from_half else 0.0
        axes.plot([low, 1], [low, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
        most = max(bucket["rows"] for bucket in bins)
        sizes = [18 + 40 * bucket["rows"] / most for bucket in bins]
        xs, ys = [b["probability"] for b in bins], [b["outcome"] for b in bins]
        axes.plot(xs, ys, color=SERIES[0], linewidth=1, alpha=0.5)
        axes.scatter(xs, ys, s=sizes, color=SERIES[0], linewidths=0)
        axes.set(xlim=(low - 0.02, 1.02), ylim=(min(low, *ys) - 0.03, 1.03))
        axes.set_xlabel("probability that the model states")
        axes.set_ylabel("share that people confirm")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))

    return draw(name, label, LARGE, paint)


def plot_wins(name: str, label: str, curve: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw how often the best of n wins against a random text, with its interval, and people's own choice."""

    def paint(axes: Axes) -> None:
        ns = [point["n"] for point in curve]
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
        axes.plot(ns, [point["ceiling"] for point in curve], color=MUTED, linestyle=(0, (5, 1.5)))
        if all(point["win_rate_ci95"] for point in curve):
            lows, highs = zip(*(point["win_rate_ci95"] for point in curve), strict=True)
            axes.fill_between(ns, lows, highs, color=SERIES[0], alpha=0.18, linewidth=0)
        axes.plot(ns, [point["win_rate"] for point in curve], color=SERIES[0], marker="o", markersize=4)
        axes.set_xlabel("n texts to choose from")
        axes.set_ylabel("wins against a random text")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))

    return draw(name, label, LARGE, paint)


def as_svg(drawn: Any, name: str, label: str) -> Markup:
    """A matplotlib figure, or a picture that is SVG already, as an element of the page."""
    if not isinstance(drawn, Figure):
        return Markup(str(drawn))
    with matplotlib.rc_context():
        settings: Any = STYLE | {"svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        drawn.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    return _inline(buffer.getvalue(), name, label)
