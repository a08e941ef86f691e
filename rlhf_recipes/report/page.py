"""From the folder of a run to the page: load_run -> sections -> run.html.j2 -> one HTML file."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_recipes.errors import ReportError
from rlhf_recipes.report import run_sections as sections
from rlhf_recipes.report import words
from rlhf_recipes.report.run import Run, load_run
from rlhf_recipes.report.run_facts import describe_run


def write_report(run_dir: str | Path, output: str | Path | None = None) -> Path:
    """Write the report of one run as a single HTML file that needs nothing else, and no network.

    Args:
        run_dir (`str` or `Path`):
            Folder of the run, see [`load_run`].
        output (`str` or `Path`, *optional*):
            Where the page goes; `report.html` in `run_dir` by default.

    Returns:
        `Path`: the page.

    Raises:
        [`ReportError`]: if the run cannot be read, or `output` is a folder.
    """
    run = load_run(run_dir)
    page = Path(output) if output is not None else run.folder / "report.html"
    if page.is_dir():
        raise ReportError(
            f"{page} is a folder; name the file that the page is written to, such as {page}/report.html."
        )
    html = render(run)
    page.parent.mkdir(parents=True, exist_ok=True)
    part = page.with_name(page.name + ".part")
    part.write_text(html, encoding="utf-8", newline="\n")
    part.replace(page)  # a page is whole or not there
    return page


def render(run: Run) -> str:
    """Return the page's HTML; the same run gives the same bytes."""
    environment = Environment(
        loader=PackageLoader("rlhf_recipes.report"),
        autoescape=True,  # completions are a model's output: text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for filter_ in (words.plain, words.signed, words.percent, words.interval, words.figure, words.duration):
        environment.filters[filter_.__name__] = filter_
    environment.filters |= {"memory": words.memory, "visible": words.visible, "breakable": words.breakable}
    names = sections.score_names(run)
    changes = sections.pair_completions(run, names)
    return (
        environment.get_template("run.html.j2")
        .render(
            run=run,
            title=run.folder.resolve().name,
            style=Markup(Path(__file__).with_name("style.css").read_text(encoding="utf-8")),
            headline=sections.describe_outcome(run),
            tiles=sections.build_tiles(run),
            facts=describe_run(run),
            notices=sections.find_contradictions(run),
            changes=sections.show_changes(run, changes),
            training=sections.show_training(run),
            reward_model=sections.show_reward_model(run),
            scores=sections.show_scores(run, changes, names),
            repeat=sections.show_repeat(run),
        )
        .lstrip()
    )
