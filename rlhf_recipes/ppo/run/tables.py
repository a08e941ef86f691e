"""What a person sees of the policy's completions while PPO trains: in the console, in files and in trackers.

A table is a list of plain dicts, one for each completion: `prompt` (text or messages), `completion`, `score`, `kl`,
`tokens`, `finished`, and one number or `None` for each reward under its name.
"""

import html
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

from rlhf_recipes.outputs import json_row, write_jsonl
from rlhf_recipes.texts import cell_text, readable, shorten

if TYPE_CHECKING:
    from transformers import TrainerCallback

TEXTS = ("prompt", "completion")
FIGURES = ("score", "kl", "tokens", "finished")  # the keys that are not names of rewards
LOG_WIDTH = 120  # of a table in a file, which has no width of its own
PROMPT_LENGTH, COMPLETION_LENGTH = 240, 480  # characters shown in the console
MARKDOWN = re.compile(r"([\\`*_\[\]])")  # what Markdown reads inside a cell


def show(rows: Sequence[Mapping[str, Any]], title: str, limit: int = 5) -> None:
    """Print completions as a table on stderr, best score first; above a progress bar if there is one.

    Of more than `limit` rows those are shown that stand evenly between the best and the worst. Long texts lose their
    middle; line breaks and other characters that would move the cursor are written out.

    Raises:
        `ValueError`: if `limit` is below 1.
    """
    if limit < 1:
        raise ValueError(f"limit is {limit}; give 1 or more completions to show.")
    on_screen = sys.stderr.isatty() or "COLUMNS" in os.environ
    console = Console(stderr=True, width=None if on_screen else LOG_WIDTH, highlight=False)
    plain = console.options.ascii_only
    chosen = spread(rows, limit)
    several = f" ({len(chosen)} of {len(rows)}, from the best to the worst score)" if len(chosen) < len(rows) else ""
    table = Table(title=cell_text(title + several, plain), title_justify="left", show_lines=True, expand=True)
    # One column for all figures: with one for each reward the texts would be squeezed away.
    for name, share in (("prompt", 3), ("completion", 5), ("figures", 2)):
        table.add_column(name, ratio=share, overflow="fold")
    for row in chosen:
        prompt = shorten(readable(row["prompt"]), PROMPT_LENGTH)
        completion = shorten(readable(row["completion"]), COMPLETION_LENGTH)
        figures = Text("\n").join(cell_text(line, plain) for line in _figures(row))
        table.add_row(cell_text(prompt, plain), cell_text(completion, plain), figures)
    with tqdm.external_write_mode(file=sys.stderr):
        console.print(table)


def save(rows: Iterable[Mapping[str, Any]], folder: str | Path, step: int, name: str = "") -> Path:
    """Write all rows to `completions/step_000012.jsonl` in the folder of the run, over an earlier file of that step.

    With a `name`, of one of several sets of prompts, to `completions/step_000012_NAME.jsonl`.

    Figures that JSON cannot say (NaN, infinite) become null.
    """
    of_set = "_" + re.sub(r"\W", "_", name) if name else ""
    return write_jsonl(Path(folder) / "completions" / f"step_{step:06d}{of_set}.jsonl", map(json_row, rows))


def report(
    rows: Sequence[Mapping[str, Any]], callbacks: Iterable["TrainerCallback"], step: int, name: str = "completions"
) -> None:
    """Hand the table to those trackers that are logging in this process: TensorBoard, Weights & Biases, Trackio.

    Other callbacks are passed over. The Trainer starts a tracker on the main process alone, so that nothing happens on
    the others. A tracker is imported only if its callback is there, which has imported it.

    Args:
        rows (`Sequence[Mapping]`): The table.
        callbacks (`Iterable[TrainerCallback]`): Those of the trainer, `trainer.callback_handler.callbacks`.
        step (`int`): The Trainer's `global_step`.
        name (`str`): Under which name the table is found there.
    """
    if not rows:
        return
    from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

    columns = columns_of(rows)
    cells = [[readable(row[n]) if n in TEXTS else row.get(n) for n in columns] for row in rows]
    for callback in callbacks:
        if isinstance(callback, TensorBoardCallback):
            if callback.tb_writer is not None:
                callback.tb_writer.add_text(name, markdown(columns, cells), step)
                callback.tb_writer.flush()
        elif isinstance(callback, WandbCallback):
            _report_to_wandb(name, columns, cells, step)
        elif isinstance(callback, TrackioCallback):
            _report_to_trackio(name, columns, cells, step)


def spread(rows: Sequence[Mapping[str, Any]], limit: int) -> list[Mapping[str, Any]]:
    """At most `limit` rows in the order of their scores, evenly from the best to the worst; of one the middle."""
    ranked = sorted(rows, key=lambda row: -math.inf if math.isnan(row["score"]) else row["score"], reverse=True)
    if len(ranked) <= limit:
        return ranked
    if limit == 1:
        return [ranked[len(ranked) // 2]]
    return [ranked[round(place * (len(ranked) - 1) / (limit - 1))] for place in range(limit)]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of the columns: texts, figures, then each reward that any of the rows has."""
    return list(dict.fromkeys([*TEXTS, *FIGURES, *(name for row in rows for name in row)]))


def markdown(columns: Sequence[str], cells: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown whose cells show the texts as they are: nothing in them is read as Markdown or HTML."""
    lines = [[_escape(name) for name in columns], ["---"] * len(columns)]
    lines += [[_escape(_figure(value)) for value in row] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _report_to_wandb(name: str, columns: list[str], cells: list[list[Any]], step: int) -> None:
    import wandb  # its callback has imported it

    if wandb.run is not None:
        # Mixed types, because a column may hold None, whole numbers and others.
        table = wandb.Table(columns=columns, data=cells, allow_mixed_types=True)
        wandb.log({name: table, "train/global_step": step})


def _report_to_trackio(name: str, columns: list[str], cells: list[list[Any]], step: int) -> None:
    import trackio  # its callback has imported it

    if trackio.context_vars.current_run.get() is not None:
        trackio.log({name: trackio.Table(columns=columns, data=cells), "train/global_step": step})


def _figures(row: Mapping[str, Any]) -> list[str]:
    rewards = [name for name in row if name not in (*TEXTS, *FIGURES)]
    end = "ended" if row["finished"] else "cut off"
    figures = [f"{name} {_figure(row[name])}" for name in ("score", *rewards, "kl")]
    return [*figures, f"{row['tokens']} tokens, {end}"]


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _escape(text: str) -> str:
    escaped = MARKDOWN.sub(r"\\\1", html.escape(text, quote=False))
    return escaped.replace("|", "&#124;").replace("\r", "").replace("\n", "<br>") or " "
