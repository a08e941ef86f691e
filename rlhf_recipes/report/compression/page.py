"""What the page of `recipes/compress.py` shows, out of its `compression.json` and the files of any run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from rlhf_recipes import figures as plots
from rlhf_recipes import filenames
from rlhf_recipes.errors import ReportError
from rlhf_recipes.figures import INK, LARGE, MUTED, SERIES, draw
from rlhf_recipes.report import words
from rlhf_recipes.report.page import Answer, Cell, Grid, Page, Plot, Section, Table, TextRow, Texts, Tile
from rlhf_recipes.report.run import Run, read_object, remedy
from rlhf_recipes.report.run_sections import figures, repeat

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Found = Mapping[str, Any]
NAMES = {
    "perplexity": "Perplexity", "token_accuracy": "Tokens foretold", "order_accuracy": "Right order of words found",
    "pairwise_accuracy": "Pairs in people's order", "log_loss": "Log loss", "accuracy": "Accuracy",
}  # fmt: skip
AXES = (("parameters", "parameters"), ("non_embedding_prefill_flops", "FLOPs without embeddings"), ("bytes", "bytes"),
        ("latency", "time of a pass"))  # fmt: skip
METHODS = {
    "search": "structure policy",
    "random": "by chance",
    "magnitude": "norm of weights",
    "wanda": "weights and activations",
    "shortgpt": "similar layers dropped",
    "greedy": "greedy on quality for cost",
    "ilp": "integer program on block scores",
}


def is_compression(folder: Path) -> bool:
    """Whether a folder holds a run of `recipes/compress.py` that has ended."""
    return (folder / filenames.COMPRESSION).is_file()


def compression_page(run: Run) -> Page:
    """The page of a compression.

    Raises:
        [`ReportError`]: if its `compression.json` is not whole.
    """
    path = run.folder / filenames.COMPRESSION
    found = read_object(path) or {}
    try:
        whole, cells = found["original"], found["cells"]
        headline, lead = _headline(whole, cells[0], found)
        sections = [_front(whole, cells), _table(whole, cells), _structures(whole, cells), _samples(whole, cells),
                    _epochs(cells), _search(whole, cells), figures(run), repeat(run)]  # fmt: skip
    except (KeyError, IndexError, TypeError) as error:
        raise ReportError(f"{path} lacks what the page shows ({error!r}). {remedy(path)}") from None
    return Page(
        title=run.name, about="compression", headline=headline, lead=lead, tiles=_tiles(whole, cells[0]),
        sections=[section for section in sections if section is not None],
    )  # fmt: skip


def _first(figures: Found) -> str:
    """The figure that the others are read beside: the first that was measured."""
    return next(name for name in figures if not name.endswith("_ci95"))


def _named(name: str) -> str:
    return NAMES.get(name, name.replace("_", " ").capitalize())


def _label(cell: Found) -> str:
    return f"{cell['method']} {100 * cell['budget']:g}%"


def _headline(whole: Found, cell: Found, found: Found) -> tuple[Cell, list[Cell]]:
    name = _first(whole["figures"])
    sentence = Markup("At {} of the cost, {} is {} of {}; {} before it was healed.").format(
        words.percent(cell["cost"]), _named(name).lower(), words.figure(cell["after"][name]),
        words.figure(whole["figures"][name]), words.figure(cell["before"][name]),
    )  # fmt: skip
    told = ", ".join(found["cost"])
    family, strength = found["delta"]
    kept = sum(layer is not None for layer in cell["structure"]["layers"])
    return sentence, [
        f"Cost: {told}, relative to the original. The structure is that of {cell['method']} at a budget of "
        f"{cell['budget']:g}: {kept} of {whole['layers']} layers. Its R = P · δ(C) is of the calibration data, "
        f"P being the {whole['quality_name']} and δ {family} of strength {strength:g}; all else is held out."
    ]


def _tiles(whole: Found, cell: Found) -> list[Tile]:
    tiles = []
    for name in (key for key in whole["figures"] if not key.endswith("_ci95")):
        bounds = cell["after"].get(f"{name}_ci95")
        detail = Markup("{} in the original").format(words.figure(whole["figures"][name]))
        interval = Markup(", 95% interval {} to {}").format(*map(words.figure, bounds)) if bounds else ""
        tiles.append(Tile(_named(name), words.figure(cell["after"][name]), detail + interval))
    for name, label in AXES:
        rounds = Markup("{} rounds").format(cell["latency"]["rounds"])
        of = words.figure(whole["costs"][name]) if name in whole["costs"] else rounds
        tiles.append(Tile(label.capitalize(), words.percent(_share(whole, cell, name)), Markup("of {}").format(of)))
    return tiles


def _share(whole: Found, cell: Found, name: str) -> float:
    if name == "latency":
        return float(cell["latency"]["ratio"])
    return float(cell["costs"][name] / whole["costs"][name])


def _front(whole: Found, cells: Sequence[Found]) -> Section:
    name = _first(whole["figures"])
    methods = list(dict.fromkeys(cell["method"] for cell in cells))
    from matplotlib.ticker import FuncFormatter  # a third of a second

    pictures = []
    for axis, label in AXES:

        def paint(axes: "Axes", axis: str = axis, label: str = label) -> None:
            axes.axhline(whole["figures"][name], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)))
            axes.scatter([1.0], [whole["figures"][name]], marker="s", s=32, color=INK)
            for number, method in enumerate(methods):
                own = sorted((c for c in cells if c["method"] == method), key=lambda cell: _share(whole, cell, axis))
                places = [_share(whole, cell, axis) for cell in own]
                color = SERIES[number % len(SERIES)]
                before, after = ([cell[side][name] for cell in own] for side in ("before", "after"))
                for x, low, high in zip(places, before, after, strict=True):
                    axes.plot([x, x], [low, high], color=color, linewidth=0.8, alpha=0.5)
                axes.scatter(places, before, s=26, facecolors="none", edgecolors=color)
                axes.plot(places, after, color=color, marker="o", markersize=5, linewidth=1.2)
            if name == "perplexity":
                axes.set_yscale("log")
                for formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
                    formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
            axes.set(xlabel=f"{label}, original = 1", ylabel=_named(name).lower())

        ends = "; ".join(
            f"{_label(c)}: {_share(whole, c, axis):.3f}, {c['before'][name]:.4g} cut, {c['after'][name]:.4g} healed"
            for c in cells
        )
        legend = tuple((method, f"line s{number % 6} d0") for number, method in enumerate(methods))
        svg = draw(f"front-{axis}", f"{_named(name)} against {label}. {ends}.", LARGE, paint)
        pictures.append(Plot(svg, f"{_named(name)} against {label}", "", legend))
    lead = (
        "Each method at each budget, on held-out rows: hollow as it was cut, filled after healing. The "
        "square and the dashed line are the original."
    )
    return Section("front", "Quality against cost", [Grid(pictures)], lead)


def _table(whole: Found, cells: Sequence[Found]) -> Section:
    names = [name for name in whole["figures"] if not name.endswith("_ci95")]
    header = [
        "Method",
        "Budget",
        "Cost",
        *(f"{_named(n)}, {side}" for n in names for side in ("cut", "healed")),
        "Time of a pass",
        "Structures measured",
        "R",
        "Choosing",
        "Healing",
    ]
    rows: list[list[Cell]] = [
        ["original", "", words.figure(1.0), *(v for n in names for v in (words.figure(whole["figures"][n]),) * 2),
         words.percent(1.0), "", "", "", ""],
        *([cell["method"], words.percent(cell["budget"]), words.figure(cell["cost"]),
           *(_with_ends(cell[side], n) for n in names for side in ("before", "after")),
           words.percent(cell["latency"]["ratio"]), words.figure(cell["evaluations"]), words.figure(cell["reward"]),
           words.duration(cell["seconds"]["choosing"]), words.duration(cell["seconds"]["healing"])] for cell in cells),
    ]  # fmt: skip
    notes = ["", *(METHODS.get(cell["method"], "") for cell in cells)]
    tables = [Table("All methods", header, rows, range(1, len(header)), "In brackets, 95% intervals.", notes)]
    against = [cell for cell in cells if "first_against_this" in cell]
    if against:
        first = next(cell["method"] for cell in cells)
        shown = [[_label(cell), *(_with_ends(cell["first_against_this"], n) for n in names)] for cell in against]
        caption = (
            f"{first} less the other, on the same rows, both healed; of perplexity the quotient, below 1 where it is "
            "better. An interval that holds 0 (or 1, of quotients) does not tell the two apart."
        )
        tables.append(
            Table(
                f"{first} against the others",
                ["Against", *map(_named, names)],
                shown,
                range(1, len(names) + 1),
                caption,
            )
        )
    return Section("table", "Side by side", tables)


def _with_ends(figures: Found, name: str) -> Cell:
    bounds = figures.get(f"{name}_ci95")
    value = words.figure(figures[name])
    return Markup("{} ({} to {})").format(value, *map(words.figure, bounds)) if bounds else value


def _structures(whole: Found, cells: Sequence[Found]) -> Section:
    from matplotlib.ticker import MaxNLocator

    pieces = []
    for cell in cells:
        layers, merged = cell["structure"]["layers"], cell["structure"]["merged"]
        into = {number: merge["layers"][0] for merge in merged for number in merge["layers"][1:]}

        def paint(axes: "Axes", layers: Any = layers, into: Any = into) -> None:
            for number, layer in enumerate(layers):
                if layer is None:
                    axes.text(number, 0.0, "+" if number in into else "×", ha="center", va="center", color=MUTED)
                    continue
                alpha = {16: 0.85, 8: 0.55, 4: 0.3}[layer["bits"]]
                axes.bar(number, len(layer["heads"]) / whole["heads"], width=0.8, color=SERIES[0], alpha=alpha)
                axes.bar(number, -len(layer["neurons"]) / whole["neurons"], width=0.8, color=SERIES[1], alpha=alpha)
            axes.axhline(0, color=MUTED, linewidth=0.8)
            axes.set(xlim=(-0.7, len(layers) - 0.3), ylim=(-1.05, 1.05), xlabel="layer", yticks=[-1, 0, 1])
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
            axes.grid(visible=False)
            axes.set_yticklabels(["all neurons", "", "all heads"])

        said = "; ".join(_of_layer(number, layer, into) for number, layer in enumerate(layers))
        svg = draw(f"structure-{cell['method']}-{100 * cell['budget']:g}".replace(".", "-"), said, LARGE, paint)
        pieces.append(Plot(svg, _label(cell), _in_words(cell, into)))
    lead = (
        "Upwards, the share of attention heads that a layer keeps; downwards, of its neurons; paler, in fewer bits. "
        "× is a layer that was dropped, + one that was merged into the one before it."
    )
    return Section("structure", "What is left, layer by layer", [Grid(pieces)], lead)


def _of_layer(number: int, layer: Any, into: Mapping[int, int]) -> str:
    if layer is None:
        return f"layer {number} " + (f"merged into {into[number]}" if number in into else "dropped")
    return f"layer {number}: {len(layer['heads'])} heads, {len(layer['neurons'])} neurons, {layer['bits']} bits"


def _in_words(cell: Found, into: Mapping[int, int]) -> str:
    layers = cell["structure"]["layers"]
    dropped = [str(number) for number, layer in enumerate(layers) if layer is None and number not in into]
    kept = next(layer for layer in layers if layer is not None)
    said = [f"Dropped: {', '.join(dropped)}" if dropped else "No layer dropped"]
    said += [f"merged: {', '.join(f'{a} into {b}' for a, b in into.items())}"] if into else []
    return (
        f"{'; '.join(said)}. {len(kept['heads'])} heads and {len(kept['neurons'])} neurons in the first that is left."
    )


def _samples(whole: Found, cells: Sequence[Found]) -> Section | None:
    shown = [cell for cell in cells if cell["budget"] == cells[0]["budget"]]
    if not whole["samples"]:
        return None
    rows = []
    for number, before in enumerate(whole["samples"]):
        of_all = [before, *(cell["samples"][number] for cell in shown)]
        prompt = before["prompt"] or before["completion"]
        rows.append(TextRow(prompt, [_answer(row) for row in of_all]))
    texts = Texts("Before and after", ["Original", *(_label(cell) for cell in shown)], rows)
    return Section(
        "samples", "Samples", [texts], "Rows of the test split: what the original says, and each healed model."
    )


def _answer(row: Found) -> Answer:
    facts = [f"{name} {words.text(value)}" for name, value in row.get("scores", {}).items()]
    return Answer(row["completion"] if row["prompt"] else "(its score)", facts)


def _epochs(cells: Sequence[Found]) -> Section | None:
    """Loss at each step that was logged; quality, cost and R at the end of each epoch."""
    pictures = []
    kinds = (("loss", "Loss", "step"), ("quality", "Quality P, before the map", "epoch"), ("cost", "Cost C", "epoch"),
             ("reward", "R = P · δ(C)", "epoch"))  # fmt: skip
    for key, title, axis in kinds:
        lines = {
            _label(cell): [(float(row[axis]), float(row[key])) for row in cell["log"] if row.get(key) is not None]
            for cell in cells
        }
        lines = {label: points for label, points in lines.items() if points}
        if not lines:
            continue
        ends = "; ".join(f"{label} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for label, points in lines.items())
        svg = plots.plot_curves(f"healing-{key}", f"{title}: {ends}.", title, lines, False, f"{axis}s")
        legend = tuple((label, f"line s{number % 6} d{number % 4}") for number, label in enumerate(lines))
        pictures.append(Plot(svg, title, "", legend))
    if not pictures:
        return None
    rows = [
        [
            _label(cell),
            words.figure(row["epoch"]),
            words.figure(_loss_at(cell, row)),
            *(words.figure(row[key]) for key in ("quality", "cost", "reward")),
        ]
        for cell in cells
        for row in cell["log"]
        if "quality" in row
    ]
    table = Table("Epoch by epoch", ["Model", "Epoch", "Loss", "Quality P", "Cost C", "R"], rows, range(1, 6))
    return Section("healing", "Healing", [Grid(pictures), table], "Quality, cost and R are on the calibration data.")


def _loss_at(cell: Found, row: Found) -> float | None:
    """The last loss that was logged by then."""
    losses = [other["loss"] for other in cell["log"] if "loss" in other and other["step"] <= row["step"]]
    return losses[-1] if losses else None


def _search(whole: Found, cells: Sequence[Found]) -> Section | None:
    pictures = []
    for cell in (cell for cell in cells if cell["search_log"]):
        log = [row for row in cell["search_log"] if "best_reward" in row]
        budget = 100 * cell["budget"]
        for key, title in (
            ("best_reward", "Best R"),
            ("reward", "Mean R of what was drawn"),
            ("entropy", "Entropy, nats"),
        ):
            points = [(float(row["evaluations"]), float(row[key])) for row in log if key in row]
            if points:
                said = f"{title}: from {points[0][1]:.4g} to {points[-1][1]:.4g}."
                svg = plots.plot_curves(
                    f"search-{key}-{budget:g}".replace(".", "-"),
                    said,
                    title,
                    {title: points},
                    False,
                    "structures measured",
                )
                pictures.append(Plot(svg, f"{title}, budget {budget:g}%"))
        front = [(point["cost"], point["quality"]) for point in cell["front"]]
        svg = plots.plot_curves(
            f"search-front-{budget:g}".replace(".", "-"),
            "Best quality at each cost that was measured.",
            whole["quality_name"],
            {"front": front},
            False,
            "cost",
        )
        pictures.append(Plot(svg, f"Structures that no other beat, budget {budget:g}%"))
    return Section("search", "The search", [Grid(pictures, 3)]) if pictures else None
