"""Heat maps: words on a ground as strong as what they add to a score."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes.report.page import Heat, Page, Piece, Section, Table, render, write_page

STRONGEST = 0.6  # opacity: ink on it can be read in light and dark
FAINTEST = 0.05  # a share of the strongest word, below which a word is left plain


@dataclass(frozen=True)
class WordAttribution:
    """A word of the text, or a sign, where it stands, and what it added to the score.

    `value` is `None` for a word that the model did not read, because the text was too long.
    """

    word: str
    start: int
    end: int
    value: float | None


@dataclass(frozen=True)
class HeatMap:
    """What moved one score.

    Attributes:
        text (`str`): What the model read, a chat template's marks included.
        words (`tuple[WordAttribution, ...]`): In order.
        tokens (`tuple[tuple[str, float], ...]`): The same for the model's tokens, special ones included.
        score (`float`): Of the text, before calibration.
        baseline_score (`float`): Of the baseline.
        error (`float`): `sum of attributions - (score - baseline_score)`, which would be 0 with endless steps.
        steps (`int`): Of the integral.
        name (`str`): The reward's.
    """

    text: str
    words: tuple[WordAttribution, ...]
    tokens: tuple[tuple[str, float], ...]
    score: float
    baseline_score: float
    error: float
    steps: int
    name: str

    def rows(self) -> list[dict[str, Any]]:
        """One row for each word, as JSON can hold them."""
        return [asdict(word) for word in self.words]

    def top(self, count: int = 10) -> list[WordAttribution]:
        """The words that moved the score most, in either direction."""
        read = [word for word in self.words if word.value is not None]
        return sorted(read, key=lambda word: -abs(word.value or 0.0))[:count]


def heat_pieces(heat: HeatMap) -> list[tuple[str, str, str, str]]:
    """The text in pieces: `(text, class, opacity, title)`; a class is empty between words."""
    strongest = max((abs(word.value or 0.0) for word in heat.words), default=0.0) or 1.0
    pieces, position = [], 0
    for word in heat.words:
        if word.start > position:
            pieces.append((heat.text[position : word.start], "", "", ""))
        position = word.end
        if word.value is None:
            pieces.append((word.word, "unread", "", "not read"))
            continue
        share = abs(word.value) / strongest
        way = "plain" if share < FAINTEST else "up" if word.value > 0 else "down"
        pieces.append((word.word, way, f"{STRONGEST * share:.2f}", f"{word.value:+.3f}".replace("-", "\u2212")))
    pieces.append((heat.text[position:], "", "", ""))
    return pieces


def heat_piece(heat: HeatMap) -> Heat:
    """The map as a piece of a page."""
    scores = (f"{value:.2f}".replace("-", "\u2212") for value in (heat.score, heat.baseline_score))
    return Heat("score {}, blank text {}".format(*scores), heat_pieces(heat))


def heat_page(heat_maps: Sequence[HeatMap], title: str = "What moved the score") -> Page:
    """A page of maps: each text with its words coloured, and a table of those that moved the score most."""
    return Page(
        title=title,
        about="heat maps",
        headline=title,
        lead=[
            "Blue with a whole line below raised the score, orange with a broken line lowered it, against a text in "
            "which every word is blank; the stronger, the deeper, on a scale of each text by itself. A word that the "
            "model did not read is struck out."
        ],
        sections=[_section(heat, number) for number, heat in enumerate(heat_maps)],
    )


def to_html(heat_maps: Sequence[HeatMap], title: str = "What moved the score") -> str:
    """[`heat_page`] as HTML, without scripts or anything to be fetched."""
    return render(heat_page(heat_maps, title))


def save_html(heat_maps: Sequence[HeatMap], path: str | Path, title: str = "What moved the score") -> Path:
    """Write [`to_html`] into a file, whose folder is made if needed."""
    return write_page(heat_page(heat_maps, title), path)


def _section(heat: HeatMap, number: int) -> Section:
    rows = [[word.word, f"{word.value:+.3f}".replace("-", "\u2212")] for word in heat.top()]
    pieces: list[Piece] = [heat_piece(heat)]
    if rows:
        pieces.append(Table("Words that moved it most", ["word", "score"], rows, (1,)))
    difference = heat.score - heat.baseline_score
    said = (
        f"The words account for {difference:+.3f}, with an error of {heat.error:+.4f} after {heat.steps} steps."
    ).replace("-", "\u2212")
    return Section(f"text-{number}", f"{heat.name}: {heat.score:.3f}", pieces, said)
