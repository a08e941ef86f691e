"""The run report: one self-contained HTML page that shows what a run changed, and how to repeat it.

    python -m rlhf_recipes.report runs/quickstart

Reading order: `run.py` reads and checks the run's files, `run_sections.py` chooses what each part of the page shows,
`run_facts.py` says what the things are, `words.py` writes numbers and texts, `rlhf_recipes/figures.py` draws the
figures, and `page.py` puts all of it into `templates/run.html.j2` with `style.css`.
"""

from rlhf_recipes.errors import ReportError
from rlhf_recipes.report.page import write_report
from rlhf_recipes.report.run import load_run

__all__ = ["ReportError", "load_run", "write_report"]
