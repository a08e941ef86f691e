"""What the workbench shows: tables, histograms and rows in a terminal, histograms as an image."""

import math
import os
import sys
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text as Cell

from rlhf_recipes.figures import as_figure, bins, finite_values
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.workbench.balance import Balance
from rlhf_recipes.rewards.workbench.table import Sample
from rlhf_recipes.texts import as_text, cell_text, readable, shorten

WIDTH = 100  # of what goes to a file or a pipe, which has no width of its own
PROMPT_LENGTH, COMPLETION_LENGTH = 160, 320  # characters shown
FIRST_TO_GO = ((), ("25%", "75%"), ("25%", "75%", "50%"), ("min", "25%", "50%", "75%", "max"))  # columns of figures
BLOCKS = " ▏▎▍▌▋▊▉█"


class Screen(Console):
    """A terminal, or a file; `plain` where it knows ASCII alone."""

    def __init__(self) -> None:
        on_screen = sys.stdout.isatty() or "COLUMNS" in os.environ
        super().__init__(width=None if on_screen else WIDTH, highlight=False)
        self.plain = self.options.ascii_only

    def title(self, text: str) -> None:
        """A line of its own, in bold."""
        self.print()
        self.print(cell_text(text, self.plain), style="bold")
        self.print()

    def figures(self, balance: Balance) -> None:
        """The table of figures that fits: one that is too wide would lose names and the ends of numbers."""
        boundless = self.options.update(max_width=10_000)
        for without in FIRST_TO_GO:
            table = balance.table(without)
            if Measurement.get(self, boundless, table).maximum <= self.width:
                break
        self.print(table)

    def remarks(self, remarks: Sequence[str]) -> None:
        """A list of sentences."""
        if remarks:
            self.print()
        for remark in remarks:
            self.print(cell_text(f"* {remark}", self.plain))

    def histograms(self, balance: Balance) -> None:
        """A text histogram of the sum and of each reward, two beside each other where there is room."""
        series = balance.series()
        columns = 2 if self.width >= 90 and len(series) > 1 else 1
        width = (self.width - 4 * (columns - 1)) // columns
        panels = []
        for number, (name, values) in enumerate(series.items()):
            lines = "\n".join(bar_lines(values, width, self.plain))
            above = Cell("\n" if number >= columns else "")
            panels.append(above + cell_text(name, self.plain).append(f"\n{lines}", style="not bold"))
        grid = Table.grid(*[""] * columns, padding=(0, 4, 0, 0))
        for first in range(0, len(panels), columns):
            grid.add_row(*panels[first : first + columns], style="bold")
        self.print(grid)

    def rows(self, balance: Balance, sample: Sample, top: int) -> None:
        """The rows that the rewards like best, and those that they like least."""
        scored = [(total, i) for i, total in enumerate(balance.totals) if total is not None]
        ranked = [i for _, i in sorted(scored, key=lambda pair: (-pair[0], pair[1]))]
        if not top or not ranked:
            return
        if len(ranked) <= 2 * top:
            self._row_table(balance, sample, ranked, "All rows, the best first")
            return
        self._row_table(balance, sample, ranked[:top], f"The best {top} of {len(ranked)} rows")
        self._row_table(balance, sample, ranked[-top:], f"The worst {top}, the very worst last")

    def _row_table(self, balance: Balance, sample: Sample, chosen: Sequence[int], title: str) -> None:
        has_prompts = any(sample.prompts)
        table = Table(
            title=f"\n{title}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
            padding=(0, 1), leading=1, show_edge=False, expand=True,
        )  # fmt: skip
        table.add_column("row", justify="right")
        if has_prompts:
            table.add_column("prompt", ratio=3, overflow="fold")
        table.add_column("completion", ratio=5, overflow="fold")
        table.add_column("values", no_wrap=False, overflow="fold", min_width=14, max_width=30)
        for i in chosen:
            completion = shorten(as_text(sample.completions[i]), COMPLETION_LENGTH)
            texts = [cell_text(completion, self.plain) if completion.strip() else Cell("(empty)", style="dim")]
            if has_prompts:
                texts.insert(0, cell_text(shorten(readable(sample.prompts[i]), PROMPT_LENGTH), self.plain))
            table.add_row(str(sample.rows[i]), *texts, self._values_of_row(balance, i))
        self.print(table)

    def _values_of_row(self, balance: Balance, i: int) -> Cell:
        lines = [f"{as_figure(values[i]):>6} {name}" for name, values in balance.series().items()]
        cell = Cell("\n").join(cell_text(line, self.plain) for line in lines)
        cell.stylize("bold", 0, cell.plain.find("\n"))
        return cell


def bar_lines(values: Series, width: int, plain: bool = False) -> list[str]:
    """A histogram as lines of text: where a bin begins and ends, a bar, and how many values it holds.

    Args:
        width (`int`): Characters in a line.
        plain (`bool`, *optional*, defaults to `False`): ASCII alone, for terminals that know no other.
    """
    finite = finite_values(values)
    if not len(finite):
        return ["applies to no row"]
    edges, exact = bins(finite, 12)
    counts, _ = np.histogram(finite, edges)
    pairs = zip(edges[:-1], edges[1:], strict=True)
    labels = [as_figure(v) for v in exact] if exact else [f"{_edge(a, edges)} to {_edge(b, edges)}" for a, b in pairs]
    left, right = max(map(len, labels)), len(str(counts.max()))
    room = max(width - left - right - 2, 4)
    return [
        f"{label:>{left}} {_bar(int(count) / int(counts.max()), room, plain)} {count:>{right}}"
        for label, count in zip(labels, counts, strict=True)
    ]


def _edge(value: float, edges: np.ndarray) -> str:
    """An edge with as many decimals as tell it from the next."""
    step = float(edges[1] - edges[0])
    digits = next((digits for digits in range(7) if math.isclose(round(step, digits), step, rel_tol=1e-6)), None)
    return f"{value:.4g}" if digits is None or abs(value) >= 1e7 else f"{value:.{digits}f}"


def _bar(share: float, room: int, plain: bool) -> str:
    if plain:
        return ("#" * max(round(share * room), 1 if share else 0)).ljust(room)
    eighths = max(round(share * room * 8), 1 if share else 0)
    return (BLOCKS[-1] * (eighths // 8) + BLOCKS[eighths % 8].strip()).ljust(room)
