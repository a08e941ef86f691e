"""The figures of the report, each one function from numbers to an SVG string.

Colours are names of the page's style sheet and not values, so that one drawing serves light, dark and print; text
stays text, in the reader's own font. Titles, legends and captions belong to the page: there they wrap, and can be read
aloud.
"""

import functools
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import numpy as np
from markupsafe import Markup, escape

if TYPE_CHECKING:  # takes a third of a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
# matplotlib wants real colours. These near-blacks stand for the style sheet's names and are replaced in the SVG.
THEME = {f"#0102{index:02x}": f"var(--{name})" for index, name in enumerate(("ink", "muted", "grid"))}
INK, MUTED, GRID = THEME
SERIES = tuple(f"#0103{index:02x}" for index in range(6))
THEME |= {color: f"var(--s{index})" for index, color in enumerate(SERIES)}
# The same on paper: an image cannot follow the style sheet.
COLORS = {INK: "#1c232e", MUTED: "#596271", GRID: "#e9e8e4", SERIES[0]: "#2361a5", SERIES[1]: "#bd5416"}
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
SMALL = (300, 190)  # points; on the page about as many pixels, alone on a phone and three in a row on a desktop
LARGE = (400, 285)  # two in a row on a desktop
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",  # text as text: smaller, selectable, and in the page's font
    "text.parse_math": False,  # a reward may be called "$cost$"
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.unicode_minus": True,
    "axes.xmargin": 0.02,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
}


def draw(name: str, label: str, size: tuple[int, int], paint: Callable[["Axes"], None]) -> Markup:
    """Paint one pair of axes and return it as inline SVG.

    Args:
        name (`str`):
            Unique on the page: it goes before every id inside the SVG, because ids are shared by the whole page.
        label (`str`):
            What a person who cannot see the figure is told.
        size (`tuple[int, int]`):
            Width and height in points; the page scales the figure to its place.
        paint (`Callable`):
            Draws on the axes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the reader's must not change the page
        # ids are hashes; without a fixed salt every run of the program would give others
        settings: Any = STYLE | {"svg.hashsalt": name}
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        axes = figure.add_subplot()
        paint(axes)
        for patch in (figure.patch, axes.patch):  # the page shows through
            patch.set(facecolor="none", edgecolor="none")
        buffer = io.StringIO()
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        # `savefig` would draw all twice, the first time to find a size that is given here.
        FigureCanvasSVG(figure).print_svg(buffer, metadata=no_metadata)
    return inline(buffer.getvalue(), name, label)


def inline(svg: str, name: str, label: str) -> Markup:
    """Turn matplotlib's SVG file into an element of an HTML page."""
    svg = svg[svg.index("<svg") :]  # no XML header: it is not allowed inside HTML
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # its rules would apply to the whole page
    # Tags alone: what stands between them is text, and a tick label of 0.0025 must stay one.
    svg = re.sub(r"<[^>]*>", lambda tag: _adapt_tag(tag.group(), name), svg)
    svg = re.sub(r"\n\s*", " ", svg)
    view_box = re.search(r'viewBox="[^"]*"', svg)
    assert view_box is not None
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {view_box.group()} role="img" aria-label="{escape(label)}">'
    return Markup(head + svg[svg.index(">") + 1 :].strip())


def _adapt_tag(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = tag.replace("url(#", f"url(#{name}-").replace('xlink:href="#', f'href="#{name}-')
    tag = re.sub(r"font-family: [^;\"]*", "font-family: inherit", tag)
    tag = re.sub(r"#010[23]\d\d", lambda color: THEME[color.group()], tag)
    return re.sub(r"(\d\.\d\d)\d+", r"\1", tag)  # a hundredth of a point is finer than any screen


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Average each value with its neighbours, `window` in all; at the ends with those that there are."""
    half = window // 2
    return [float(np.mean(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def drawn(
    size: tuple[int, int],
) -> Callable[[Callable[Concatenate["Axes", P], None]], Callable[Concatenate[str, str, P], Markup]]:
    """Make a function that paints on axes one that takes the name and the label of [`draw`] in their place."""

    def of(paint: Callable[Concatenate["Axes", P], None]) -> Callable[Concatenate[str, str, P], Markup]:
        @functools.wraps(paint)
        def plot(name: str, label: str, /, *args: P.args, **kwargs: P.kwargs) -> Markup:
            return draw(name, label, size, lambda axes: paint(axes, *args, **kwargs))

        return plot

    return of


@drawn(SMALL)
def plot_curves(
    axes: "Axes",
    unit: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    from_zero: bool = False,
    axis: str = "episodes",
) -> None:
    """Draw quantities over the episodes or steps of training: each value pale, their running mean on top.

    Args:
        series (`Mapping[str, Sequence[tuple[float, float]]]`):
            For each name its `(episode, value)` points; the page's legend lists them in the same order.
        from_zero (`bool`):
            Whether the upright axis shows 0, for a quantity whose distance from 0 is what matters.
        axis (`str`):
            What is counted along the lying axis.
    """
    for index, points in enumerate(series.values()):
        episodes, values = zip(*points, strict=True)
        color = SERIES[index % len(SERIES)]
        window = max(1, len(values) // 12) | 1  # odd, so that a mean sits on its own episode
        marker = "o" if len(values) == 1 else None  # a line through one point cannot be seen
        axes.plot(episodes, values, color=color, linewidth=0.8, alpha=0.35, marker=marker)
        axes.plot(episodes, running_mean(values, window), color=color, linestyle=DASHES[index % len(DASHES)])
    if from_zero:
        axes.update_datalim([(episodes[0], 0.0)])
        axes.autoscale_view()
    axes.set(xlabel=axis, ylabel=unit)
    _few_ticks(axes)


@drawn(LARGE)
def plot_score_histogram(axes: "Axes", before: Sequence[float], after: Sequence[float]) -> None:
    """Draw how many prompts got which score before and after, each mean as an upright line."""
    from matplotlib.ticker import MaxNLocator

    everything = [*before, *after]
    low, high = math.floor(min(everything)), math.ceil(max(everything))
    bins = np.linspace(low, max(high, low + 1), 25).tolist()
    axes.hist(before, bins=bins, color=MUTED, alpha=0.35)
    axes.hist(after, bins=bins, color=SERIES[0], alpha=0.45)
    for values, color, style in ((before, MUTED, (0, (4, 2))), (after, SERIES[0], "-")):
        axes.axvline(float(np.mean(values)), color=color, linewidth=2, linestyle=style)
    axes.set(xlabel="score of a completion", ylabel="prompts")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(visible=False, axis="x")


@drawn(LARGE)
def plot_gains(axes: "Axes", gains: Sequence[tuple[float, float]], names: tuple[str, str]) -> None:
    """Draw one dot per prompt: the change of one score across, the change of another upwards."""
    axes.axhline(0, color=MUTED, linewidth=0.9)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    first, second = zip(*gains, strict=True)
    axes.scatter(first, second, s=18, color=SERIES[0], alpha=0.55, linewidths=0)
    axes.set(xlabel=f"change of the score of {names[0]}", ylabel=f"change of the score of {names[1]}")
    _few_ticks(axes)


@drawn(LARGE)
def plot_accuracy(axes: "Axes", bars: Sequence[tuple[str, float]]) -> None:
    """Draw shares of 1 as lying bars from the top down, the first one in colour, with a line at chance."""
    from matplotlib.ticker import FuncFormatter

    rows = range(len(bars))
    values = [value for _, value in bars]
    axes.barh(rows, values, height=0.55, color=[SERIES[0], *[MUTED] * (len(bars) - 1)], alpha=0.75)
    axes.axvline(0.5, color=INK, linewidth=1, linestyle=(0, (3, 2)), zorder=0.5)
    for row, (text, value) in enumerate(bars):
        axes.text(0.0, row - 0.42, text, va="center", fontsize=10.5)
        axes.text(value + 0.012, row, f"{value:.1%}", va="center", fontsize=10.5, fontweight="bold")
    axes.set(xlim=(0, 1.12), ylim=(len(bars) - 0.5, -0.75), xlabel="pairs put in the right order", yticks=[])
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))


@drawn(LARGE)
def plot_calibration(axes: "Axes", bins: Sequence[tuple[float, float, float]]) -> None:
    """Draw the mean human rating over the mean score of each bin, with its standard error twice each way.

    Args:
        bins (`Sequence[tuple[float, float, float]]`):
            For each bin the mean score, the mean rating and the standard error of the mean rating.
    """
    scores, ratings, errors = (np.array(column) for column in zip(*bins, strict=True))
    low = math.floor(min(scores.min(), (ratings - 2 * errors).min())) - 0.25
    high = math.ceil(max(scores.max(), (ratings + 2 * errors).max())) + 0.25
    axes.plot([low, high], [low, high], color=MUTED, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.errorbar(
        scores, ratings, yerr=2 * errors, fmt="o", color=SERIES[0], markersize=5.5, elinewidth=1.6, capsize=0
    )
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="calibrated score", ylabel="mean human rating")
    _few_ticks(axes)


def _few_ticks(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3))
        axis.set_major_formatter(ScalarFormatter(useOffset=False))


def draw_png(path: str | Path, size: tuple[float, float], paint: Callable[["Figure"], None]) -> Path:
    """Paint a figure in the report's style, of a size in inches, and write it as PNG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the reader's must not change it
        settings: Any = {
            key: COLORS.get(value, value) if isinstance(value, str) else value for key, value in STYLE.items()
        }
        matplotlib.rcParams.update(settings)
        canvas = Figure(figsize=size, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1))
        paint(canvas)
        canvas.savefig(target, format="png", dpi=150)
    return target


# --- Values of rewards ------------------------------------------------------------------------


def as_figure(value: float | None, digits: int = 3) -> str:
    """A number in a table; `-` for one that cannot be said."""
    if value is None:
        return "-"
    if not value or abs(value) < 1e-12:
        return "0"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """A share in a table; `-` for one that cannot be said."""
    return "-" if share is None else f"{100 * share:.0f}%".replace("-0%", "0%")


def shortened(name: str, most: int) -> str:
    """A long name without its end."""
    return name if len(name) <= most else f"{name[: most - 3]}..."


def finite_values(values: Sequence[float | None]) -> np.ndarray:
    """Those that are there, and finite."""
    return np.array([value for value in values if value is not None and math.isfinite(value)])


def bins(values: np.ndarray, count: int) -> tuple[np.ndarray, list[float] | None]:
    """Edges of about `count` bins at round numbers; and the values themselves where there are no more than 8.

    Then there is a bin around each.
    """
    from matplotlib.ticker import MaxNLocator

    distinct = np.unique(values)
    if len(distinct) <= 8:
        gap = float(np.diff(distinct).min()) if len(distinct) > 1 else max(abs(float(distinct[0])), 1.0) * 0.2
        middles = (distinct[1:] + distinct[:-1]) / 2
        edges = [distinct[0] - gap / 2, *middles, distinct[-1] + gap / 2]
        return np.array(edges, dtype=float), [float(value) for value in distinct]
    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    return np.asarray(locator.tick_values(float(distinct[0]), float(distinct[-1])), dtype=float), None


def paint_histogram(axes: "Axes", name: str, values: Sequence[float | None]) -> None:
    """How many rows have which value, with the mean as an upright line; in words where there is nothing to draw."""
    from matplotlib.ticker import MaxNLocator

    finite = finite_values(values)
    axes.set_title(shortened(name, 24), loc="left", fontsize=10.5, fontweight="bold")
    axes.grid(visible=False, axis="x")
    if not len(finite):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "applies to no row", transform=axes.transAxes, ha="center", va="center")
        return
    said = f"mean {as_figure(float(finite.mean()))}, std {as_figure(float(finite.std()))}"
    axes.set_title(said, loc="right", fontsize=9.5, color=COLORS[MUTED])
    edges, exact = bins(finite, 24)
    if exact is None:
        axes.hist(finite, bins=edges.tolist(), color=COLORS[SERIES[0]], alpha=0.6)
    else:
        counts, _ = np.histogram(finite, edges)
        gap = float(np.diff(exact).min()) if len(exact) > 1 else 1.0
        axes.bar(exact, counts, width=0.5 * gap, color=COLORS[SERIES[0]], alpha=0.6)
        axes.set_xlim(exact[0] - 0.6 * gap, exact[-1] + 0.6 * gap)
    axes.axvline(float(finite.mean()), color=COLORS[SERIES[1]], linewidth=1.8)
    axes.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    if exact is not None and len(exact) <= 3:
        axes.set_xticks(exact, [as_figure(value) for value in exact])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))


def paint_correlations(axes: "Axes", names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> None:
    """A square of colours, with numbers; grey where there is no correlation."""
    from matplotlib.colors import LinearSegmentedColormap

    size = len(names)
    colors = LinearSegmentedColormap.from_list("both", [COLORS[SERIES[1]], "#ffffff", COLORS[SERIES[0]]])
    axes.set_facecolor(COLORS[GRID])  # seen where there is no correlation
    numbers = np.array([[math.nan if r is None else r for r in row] for row in matrix], dtype=float)
    axes.imshow(np.ma.masked_invalid(numbers), cmap=colors, vmin=-1, vmax=1)
    for row in range(size):
        for column in range(size):
            r = numbers[row, column]
            text = "–" if math.isnan(r) else f"{r:.2f}"
            axes.text(
                column, row, text, ha="center", va="center", fontsize=10,
                color="#ffffff" if abs(r) > 0.6 else COLORS[INK],
            )  # fmt: skip
    labels = [shortened(name, 20) for name in names]
    axes.set_xticks(range(size), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(size), labels)
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.set_anchor("N")
    axes.set_title("Pearson's correlation", loc="left", fontsize=10.5, fontweight="bold")
