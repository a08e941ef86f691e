"""The pieces that every page is made of."""

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Plot:
    """One figure with what stands around it."""

    svg: Markup
    title: str
    caption: str
    legend: tuple[tuple[str, str], ...] = ()  # label and the style sheet's class for its swatch


@dataclass(frozen=True)
class Tile:
    """One figure at the top of the page; `aim` is what the quickstart sets out to reach."""

    label: str
    value: Markup
    detail: Markup | str
    aim: str = ""
    met: bool | None = None
