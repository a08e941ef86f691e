"""The one shell of all pages, and the pieces that a page is made of.

A page is a headline, figures at a glance, and sections of pieces: pictures, tables, texts side by side, code, maps of
words. Each piece is plain data here and a macro in `templates/page.html.j2`; whatever comes from a model or from data
is text there, never markup.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeAlias

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_recipes import filenames
from rlhf_recipes.errors import ReportError
from rlhf_recipes.report import words

Cell: TypeAlias = str | Markup


@dataclass(frozen=True)
class Plot:
    """One picture with what stands around it."""

    kind: ClassVar = "plot"
    svg: Markup
    title: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()  # label and the style sheet's class for its swatch


@dataclass(frozen=True)
class Table:
    """A table; `numbers` are the columns that stand on the right, `notes` small print in the first cell of a row."""

    kind: ClassVar = "table"
    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    numbers: Sequence[int] = ()
    caption: str = ""
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Snippet:
    """A piece of code with what to know about it."""

    kind: ClassVar = "snippet"
    title: str
    language: str
    code: str
    note: str = ""


@dataclass(frozen=True)
class Answer:
    """What a policy wrote, with what is known of it (scores, length)."""

    text: str
    facts: Sequence[str] = ()


@dataclass(frozen=True)
class TextRow:
    """A prompt with one or several answers to it, and perhaps what changed from one to the other."""

    prompt: str
    answers: Sequence[Answer | None]
    change: Cell = ""
    small: Cell = ""


@dataclass(frozen=True)
class Texts:
    """Prompts and answers, one column for each of `names`; `folded` is the line that unfolds them."""

    kind: ClassVar = "texts"
    title: str
    names: Sequence[str]
    rows: Sequence[TextRow]
    lead: str = ""
    folded: str = ""


@dataclass(frozen=True)
class Case:
    """A text, or a pair, that a model gets wrong; `rows` are what it is, the text, and figures."""

    kind: ClassVar = "case"
    prompt: str
    rows: Sequence[tuple[str, str, str]]


@dataclass(frozen=True)
class Heat:
    """A text whose words have colours; `pieces` are text, class, opacity and what is said of it."""

    kind: ClassVar = "heat"
    figures: str
    pieces: Sequence[tuple[str, str, str, str]]


@dataclass(frozen=True)
class Fold:
    """A long text, such as a configuration, that the reader unfolds."""

    kind: ClassVar = "fold"
    title: str
    text: str


@dataclass(frozen=True)
class Commands:
    """What was typed, line by line."""

    kind: ClassVar = "commands"
    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """Pieces side by side, two or three in a row."""

    kind: ClassVar = "grid"
    pieces: Sequence["Plot | Table"]
    columns: int = 2


Piece: TypeAlias = Plot | Table | Snippet | Texts | Case | Heat | Fold | Commands | Grid


@dataclass(frozen=True)
class Section:
    """One section. `missing` are sentences about what it lacks, each with the command that makes it, or none."""

    id: str
    title: str
    pieces: Sequence[Piece] = ()
    lead: str = ""
    missing: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page; `aim` is what a run sets out to reach."""

    label: str
    value: Cell
    detail: Cell
    aim: str = ""
    met: bool | None = None


@dataclass(frozen=True)
class Page:
    """Everything that a page shows; `about` says in a few words what it is a page of."""

    title: str
    about: str
    headline: Cell
    sections: Sequence[Section]
    lead: Sequence[Cell] = ()
    notices: Sequence[str] = ()
    tiles: Sequence[Tile] = ()
    no_tiles: tuple[str, str] | None = None  # a line in their place
    terms: Sequence[tuple[str, str]] = ()  # words and what they mean here
    first: Sequence[Piece] = ()  # what a reader must see before the sections


def render(page: Page) -> str:
    """The page as HTML; the same content gives the same bytes."""
    style = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    return _environment().get_template("page.html.j2").render(page=page, style=Markup(style)).lstrip()


@functools.cache  # so that the template is compiled once
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("rlhf_recipes.report"),
        autoescape=True,  # completions are a model's output: text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": words.visible, "whole": lambda text: words.visible(text, None)}
    return environment


def write_page(page: Page, path: str | Path) -> Path:
    """Write a page as a single HTML file that needs nothing else, and no network; it is whole or not there.

    Raises:
        [`ReportError`]: if `path` is a folder.
    """
    target = Path(path)
    if target.is_dir():
        raise ReportError(
            f"{target} is a folder; name the file that the page is written to, such as {target}/{filenames.PAGE}."
        )
    html = render(page)
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.write_text(html, encoding="utf-8", errors="replace", newline="\n")
    part.replace(target)
    return target
