"""The pictures of a reward model's page, out of `evaluation.json`: the most important first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rlhf_recipes.figures import INK, LARGE, MUTED, SERIES, draw, plot_accuracy, plot_calibration
from rlhf_recipes.report.page import Plot
from rlhf_recipes.report.words import number

Report = Mapping[str, Any]
BARS = {
    "model": "Reward model",
    "single_rater": "One human rater",
    "vader": "VADER, a word list",
    "length": "The longer text wins",
}
PERCENT = FuncFormatter(lambda value, _: f"{value:.0%}")


def build_plots(evaluation: Report) -> list[Plot]:
    """The pictures that the figures allow."""
    makers: tuple[Callable[[Report], Plot | None], ...] = (_bars, _margins, _reliability, _shares, _wins)
    return [plot for plot in (maker(evaluation) for maker in makers) if plot is not None]


def bucket_name(bucket: Mapping[str, Any]) -> str:
    """How a bucket of pairs is called on an axis and in a table."""
    if "name" in bucket:
        return str(bucket["name"])
    if bucket["to"] is None:
        return f"{bucket['from']:.3g} and more"
    return f"{bucket['from']:.3g} to {bucket['to']:.3g}"


def share_text(value: float | None) -> str:
    """A share of pairs as a percentage, and that there is none where there is none."""
    return "no pair" if value is None else f"{value:.1%}"


def _bars(evaluation: Report) -> Plot | None:
    accuracy = evaluation.get("accuracy") or {}
    bars = [(label, accuracy[key]) for key, label in BARS.items() if number(accuracy.get(key)) is not None]
    if not bars:
        return None
    said = ", ".join(f"{label} {value:.1%}" for label, value in bars)
    pairs = f" {accuracy['pairs']:,}" if accuracy.get("pairs") else ""
    ceiling = evaluation.get("ceiling", {}).get("pairwise")
    rest = f" A perfect model would reach about {ceiling:.1%}, because the ratings err too." if ceiling else ""
    return Plot(
        plot_accuracy("accuracy", f"Pairs in the right order: {said}.", bars),
        "Which text is better?",
        f"Share of{pairs} held-out pairs in people's order. The dashed line is chance.{rest}",
    )


def _margins(evaluation: Report) -> Plot | None:
    """Accuracy over how clear the case is: a point with its interval for each bucket and each scorer."""
    margins = evaluation.get("by_margin")
    if not margins:
        return None
    series: dict[str, Sequence[Mapping[str, Any]]] = {
        key: margins[key] for key in ("model", "vader") if key in margins
    }
    names = [bucket_name(bucket) for bucket in series["model"]]
    there = {
        scorer: [(place, bucket) for place, bucket in enumerate(buckets) if bucket["accuracy"] is not None]
        for scorer, buckets in series.items()
    }
    bounds = {id(b): b.get("accuracy_ci95") or [b["accuracy"]] * 2 for found in there.values() for _, b in found}

    def paint(axes: Axes) -> None:
        axes.axhline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
        for index, found in enumerate(there.values()):
            color, shift = (SERIES[0], 0.0) if index == 0 else (MUTED, 0.14 * index)
            for place, bucket in found:
                axes.plot([place + shift] * 2, bounds[id(bucket)], color=color, linewidth=2.2)
            xs, ys = [place + shift for place, _ in found], [bucket["accuracy"] for _, bucket in found]
            axes.plot(xs, ys, "o" if index == 0 else "s", color=color, markersize=6)
        lowest = min([0.45, *(low - 0.03 for low, _ in bounds.values())])
        axes.set_xticks(range(len(names)), names)
        axes.set(xlim=(-0.5, len(names) - 0.3), ylim=(lowest, 1.02), xlabel=margins["margin"])
        axes.set_ylabel("pairs in the right order")
        axes.yaxis.set_major_formatter(PERCENT)
        axes.grid(visible=False, axis="x")

    said = ", ".join(f"{bucket_name(b)}: {share_text(b['accuracy'])}" for b in series["model"])
    legend = (("reward model", "s0"), ("VADER", "muted"))[: len(series)]
    caption = "Accuracy by how clear the case is to people, with 95% intervals."
    svg = draw("margins", f"Accuracy by {margins['margin']}: {said}.", LARGE, paint)
    return Plot(svg, "Easy and hard cases", caption, legend)


def _reliability(evaluation: Report) -> Plot | None:
    bins = evaluation.get("reliability")
    if not bins:
        return None
    points = [(b["score"], b["rating"], b["error"] or 0.0) for b in bins]
    return Plot(
        plot_calibration("reliability", f"Mean human rating over score, {len(bins)} bins.", points),
        "Does the score mean what it says?",
        f"Mean rating over mean score in {len(bins)} bins of equally many texts, with twice the standard error each "
        "way. On the dashed diagonal the two agree.",
    )


def _shares(evaluation: Report) -> Plot | None:
    """What came true over what was said, a dot for each bin, as large as it has rows."""
    found = evaluation.get("calibration")
    if not found:
        return None
    bins, low = found["bins"], 0.5 if found["of"] == "pairs" else 0.0  # probabilities of pairs begin at one half

    def paint(axes: Axes) -> None:
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
            axis.set_major_formatter(PERCENT)

    what = {"pairs": "that the text is preferred", "labels": "of a good label", "steps": "that a step is right"}
    text = (
        f"Probability {what[found['of']]}, over the share that came true, in {len(bins)} bins of equally many rows. "
        f"On the diagonal the two agree; ECE {found['ece']:.3f}."
    )
    label = f"What came true over the stated probability, {len(bins)} bins."
    return Plot(draw("shares", label, LARGE, paint), "How sure is it, and how right?", text)


def _wins(evaluation: Report) -> Plot | None:
    """How often the best of n wins against a random text, with its interval, and people's own choice."""
    curve = evaluation.get("win_rate")
    if not curve or len(curve) < 2:
        return None

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
        axes.yaxis.set_major_formatter(PERCENT)

    last = curve[-1]
    return Plot(
        draw("wins", f"Win rate of the best of n: {last['win_rate']:.1%} at n = {last['n']}.", LARGE, paint),
        "Best of n, on paper",
        "How often the text with the highest score of n beats a random other one in people's eyes.",
        (("chosen by the reward model, with 95% interval", "s0"), ("chosen by people", "muted d1")),
    )
