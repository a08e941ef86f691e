"""Pictures of measurements of reward models: what a score leans on, and how unsure an ensemble is.

The report of a bias measurement is drawn as dots with their intervals around a line at "no bias"; the uncertainty of
an ensemble as error, order and strange texts by disagreement. Each is drawn for a page, in the colours of its style
sheet, and as PNG.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rlhf_recipes.figures import COLORS, INK, LARGE, MUTED, SERIES, draw, draw_png

Bar = tuple[str, float | None, Sequence[float] | None]  # name, figure, ends of its interval
Panel = tuple[str, str, Callable[[Axes, Mapping[str, str]], None], int]  # title, label, painter, lines
WIDTH = 400  # points
LINE = 26  # points for each name
THEMED = {color: color for color in (INK, MUTED, *SERIES)}  # those that a page replaces by its own


def draw_bias(report: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """Title and inline SVG of each picture that the report has figures for, in the colours of the report's page.

    Args:
        report (`dict`): What `bias.measure_bias` gives, or several of them by name, to be drawn one beside another
            (such as before and after).
    """
    drawn = []
    for number, (title, label, paint, lines) in enumerate(_panels(_several(report))):

        def figure(axes: Axes, paint: Any = paint) -> None:
            paint(axes, THEMED)

        drawn.append((title, draw(f"bias-{number}", label, (WIDTH, _height(lines)), figure)))
    return drawn


def save_pictures(report: Mapping[str, Any], folder: str | Path) -> list[Path]:
    """The same as PNG, `bias_1.png` and so on, with titles; what is there of these names is replaced."""
    written = []
    for number, (title, _, paint, lines) in enumerate(_panels(_several(report)), start=1):

        def figure(canvas: Figure, title: str = title, paint: Any = paint) -> None:
            axes = canvas.add_subplot()
            paint(axes, COLORS)
            axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")

        size = (6.2, 0.4 + _height(lines) / 72)
        written.append(draw_png(Path(folder) / f"bias_{number}.png", size, figure))
    return written


def _several(report: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"": report} if "covariates" in report else report


def _height(lines: int) -> int:
    return 60 + LINE * lines


def _panels(reports: Mapping[str, Any]) -> list[Panel]:
    """What is drawn, in order, and how many lines each has."""
    panels = [
        _panel(reports, "Beyond people's ratings", "partial correlation with the score, at equal rating", _partials),
        _panel(reports, "The same text, edited", "change of the score, in standard deviations", _effects("changes")),
        _panel(
            reports, "The same text, read in another way", "change of the score, in standard deviations",
            _effects("encodings"),
        ),
        _panel(reports, "Scores of groups", "score less rating, beyond that of the others", _group("beyond_others")),
        _panel(reports, "Favoured more than by people", "share of pairs with another group", _group("favoured")),
    ]  # fmt: skip
    return [panel for panel in panels if panel is not None]


def _panel(
    reports: Mapping[str, Any], title: str, label: str, bars_of: Callable[[Mapping[str, Any]], list[Bar]]
) -> Panel | None:
    series = {name: [bar for bar in bars_of(report) if bar[1] is not None] for name, report in reports.items()}
    names = list(dict.fromkeys(bar[0] for bars in series.values() for bar in bars))
    if not names:
        return None
    lines = len(names) * max(1, (len(series) + 1) // 2)

    def paint(axes: Axes, colors: Mapping[str, str]) -> None:
        _dots(axes, series, names, label, colors)

    return title, f"{title}: {label}", paint, lines


def _dots(
    axes: Axes, series: Mapping[str, Sequence[Bar]], names: Sequence[str], label: str, colors: Mapping[str, str]
) -> None:
    known = [color for color in SERIES if color in colors]
    step = 0.7 / len(series)
    for index, (of, bars) in enumerate(series.items()):
        # The first of several is what the others are compared with.
        color = colors[known[0]] if len(series) == 1 else colors[MUTED] if index == 0 else colors[known[0]]
        marker = "osD^vP"[index % 6]
        shift = step * (index - (len(series) - 1) / 2)
        for place, (name, value, ends) in enumerate(bars):
            assert value is not None  # `_panel` leaves these out
            row = names.index(name) + shift
            if ends is not None:
                axes.plot(ends, (row, row), color=color, linewidth=1.6)
            title = of if place == 0 and of else None
            axes.plot(value, row, marker=marker, color=color, markersize=5.5, linestyle="none", label=title)
    axes.axvline(0, color=colors[INK], linewidth=0.9, zorder=0.5)
    axes.set_yticks(range(len(names)), [name if len(name) <= 26 else f"{name[:25]}…" for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel(label)
    axes.grid(visible=False, axis="y")
    if len(series) > 1:
        axes.legend(fontsize=8.5, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


def _partials(report: Mapping[str, Any]) -> list[Bar]:
    return [_bar(name, of, "partial") for name, of in report["covariates"].items()]


def _effects(key: str) -> Callable[[Mapping[str, Any]], list[Bar]]:
    return lambda report: [_bar(name, of, "effect") for name, of in report[key].items()]


def _group(key: str) -> Callable[[Mapping[str, Any]], list[Bar]]:
    return lambda report: [_bar(name, of, key) for name, of in (report["groups"] or {"groups": {}})["groups"].items()]


def _bar(name: str, figures: Mapping[str, Any], key: str) -> Bar:
    return name, figures.get(key), figures.get(f"{key}_ci95")


EnsemblePanel = tuple[str, Callable[[Axes, Mapping[str, Any], Mapping[str, str]], None]]


def draw_uncertainty(report: Mapping[str, Any], path: str | Path) -> Path | None:
    """Draw `uncertainty.json` as PNG: only the panels that it has figures for, and nothing where it has none.

    Args:
        report (`dict`): As `ensemble_evaluation.measure_ensemble` gives it.
        path (`str` or `Path`): The file.
    """
    panels = _ensemble_panels(report)
    if not panels:
        return None

    def paint(canvas: Figure) -> None:
        for place, (title, painter) in enumerate(panels, start=1):
            axes = canvas.add_subplot(1, len(panels), place)
            painter(axes, report, COLORS)
            axes.set_title(title, loc="left", fontsize=10.5, fontweight="bold")

    return draw_png(path, (4.0 * len(panels), 3.2), paint)


def uncertainty_pictures(report: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """The same for a page: title and inline SVG of each panel."""
    drawn = []
    for number, (title, painter) in enumerate(_ensemble_panels(report)):

        def paint(axes: Axes, painter: Any = painter) -> None:
            painter(axes, report, THEMED)

        drawn.append((title, draw(f"uncertainty-{number}", title, LARGE, paint)))
    return drawn


def _ensemble_panels(report: Mapping[str, Any]) -> list[EnsemblePanel]:
    panels: list[EnsemblePanel] = []
    if report.get("error"):
        panels.append(("Texts: error by disagreement", _paint_error))
    if report.get("pairs"):
        panels.append(("Pairs: right by disagreement", _paint_pairs))
    return panels


def _paint_error(axes: Axes, report: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    parts = report["error"]["parts"]
    axes.plot([p["disagreement"] for p in parts], [p["error"] for p in parts], "o-", color=colors[SERIES[0]])
    low, high = report["error"]["spearman_ci95"] or (float("nan"), float("nan"))
    said = f"rank correlation {report['error']['spearman'] or 0:.2f} ({low:.2f} to {high:.2f})"
    axes.text(0.03, 0.95, said, transform=axes.transAxes, va="top", fontsize=9, color=colors[MUTED])
    axes.set(xlabel="standard deviation of the members", ylabel="mean distance from the rating", ylim=(0, None))
    axes.set_ylim(0, 1.25 * max(p["error"] for p in parts))


def _paint_pairs(axes: Axes, report: Mapping[str, Any], colors: Mapping[str, str]) -> None:
    parts = report["pairs"]["parts"]
    names = ["least", *[""] * (len(parts) - 2), "most"] if len(parts) != 3 else ["least", "middle", "most"]
    points = [*zip(names, parts, strict=True), *((kind, report["pairs"][kind]) for kind in ("unanimous", "divided"))]
    for place, (_, part) in enumerate(points):
        if part["accuracy"] is None:
            continue
        color = colors[SERIES[0]] if place < len(parts) else colors[SERIES[1]]
        axes.plot(place, part["accuracy"], "o", color=color, markersize=6)
        if part["accuracy_ci95"] is not None:
            axes.plot([place, place], part["accuracy_ci95"], color=color, linewidth=2)
        axes.annotate(f"{part['accuracy']:.2f}", (place, part["accuracy"]), (7, -3), textcoords="offset points")
    axes.set(xlim=(-0.4, len(points) - 0.3), xticks=range(len(points)), xticklabels=[name for name, _ in points])
    axes.tick_params(axis="x", labelsize=8.5)
    axes.set(xlabel="thirds by deviation; by whether all agree", ylabel="pairs that the mean has right")
