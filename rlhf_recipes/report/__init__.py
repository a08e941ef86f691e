"""The report of a run: one self-contained HTML page that shows what a run changed, and how to repeat it.

    python -m rlhf_recipes.report runs/ppo
    python -m rlhf_recipes.report runs/ppo runs/grpo

Reading order: `run.py` reads and checks a run's files, `run_sections.py` and `curves.py` choose what its page shows,
`comparison.py` that of several runs, `quickstart/` that of `make quickstart`, `compression/` that of smaller models;
`page.py` is the shell of all of them. `reward_card.py` and `policy_card.py` write the README of a model, `ending.py`
what every recipe leaves behind.
"""

from pathlib import Path
from typing import Any

from rlhf_recipes import filenames
from rlhf_recipes.errors import ReportError
from rlhf_recipes.report.ending import end_run, write_figures
from rlhf_recipes.report.run import check_folder, load_run

__all__ = ["ReportError", "end_run", "load_run", "write_figures", "write_report"]


def write_report(*run_dirs: str | Path, output: str | Path | None = None) -> Path:
    """Write the page of one run, or one that compares several, as a single HTML file that needs nothing else.

    Args:
        run_dirs (`str` or `Path`):
            Folders of runs: of any recipe, of a Trainer, or of the quickstart. See [`load_run`].
        output (`str` or `Path`, *optional*):
            Where the page goes. Default: `report.html` in the folder of the run, and `comparison.html` beside the
            first of several.

    Returns:
        `Path`: the page.

    Raises:
        [`ReportError`]: if a folder holds no run or cannot be read, or `output` is a folder.
    """
    from rlhf_recipes.report.page import write_page

    folders = [Path(folder) for folder in run_dirs]
    if len(folders) == 1:
        return write_page(_page_of(folders[0]), output or folders[0] / filenames.PAGE)
    from rlhf_recipes.report.comparison import comparison_page

    if not folders:
        raise ReportError("There is no run to write a page of. Give the folder of one, or of several to compare.")
    page = comparison_page([load_run(folder) for folder in folders])
    return write_page(page, output or folders[0].resolve().parent / "comparison.html")


def _page_of(folder: Path) -> Any:
    """What the page of one folder shows: of a quickstart, of a reward model, or of any other run."""
    # Imported here, because recipes import this package before they read their options.
    from rlhf_recipes.report.quickstart.run import is_quickstart, load_quickstart

    if is_quickstart(check_folder(folder)):
        from rlhf_recipes.report.quickstart.page import quickstart_page

        return quickstart_page(load_quickstart(folder))
    from rlhf_recipes.report.compression.page import compression_page, is_compression
    from rlhf_recipes.report.reward_card import has_card, reward_page
    from rlhf_recipes.report.run_sections import run_page

    run = load_run(folder)
    if is_compression(folder):
        return compression_page(run)
    return reward_page(run) if has_card(run) else run_page(run)
