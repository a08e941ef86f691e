"""Write the page of one run, or one page that compares several: `python -m rlhf_recipes.report RUN [RUN ...]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_recipes.report import ReportError, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_recipes.report",
        description="Write one self-contained HTML page about a run of any recipe: what changed, how the training "
        "went, what was written, and how to repeat it. Of several runs it compares curves, figures, texts and "
        "settings. It opens offline.",
    )
    parser.add_argument(
        "runs", type=Path, nargs="+", metavar="RUN", help="the folder of a run, such as runs/ppo or runs/quickstart"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="where the page goes (default: report.html in the folder; of several runs comparison.html beside the "
        "first of them)",
    )
    args = parser.parse_args(argv)
    try:
        page = write_report(*args.runs, output=args.output)
    except (ReportError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Report: {page} ({page.stat().st_size / 1000:,.0f} kB)")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
