"""Write the report of one run: `python -m rlhf_recipes.report RUN_DIR [--output report.html]`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_recipes.errors import ReportError
from rlhf_recipes.report.page import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_recipes.report",
        description="Write one self-contained HTML page about a run: what changed, how the training went, how far the "
        "reward model can be trusted, and the commands that repeat it. It opens offline.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the folder of a run, such as runs/quickstart")
    parser.add_argument("--output", type=Path, help="where the page goes (default: RUN_DIR/report.html)")
    args = parser.parse_args(argv)
    try:
        page = write_report(args.run_dir, args.output)
    except (ReportError, OSError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"Report: {page} ({page.stat().st_size / 1000:,.0f} kB)")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
