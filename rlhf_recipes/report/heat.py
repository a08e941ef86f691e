"""Heat maps: words on a ground as strong as what they add to a score."""

import html
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


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


# --- As a page -----------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c232e; --muted: #596271; --line: #e1dfd8;
  --up: 35, 97, 165; --down: 189, 84, 22; }
@media (prefers-color-scheme: dark) { :root { --paper: #13161b; --ink: #f2f4f7; --muted: #a2abb9; --line: #2f353f;
  --up: 60, 132, 214; --down: 196, 92, 32; } }
@media print { :root { --paper: #ffffff; --ink: #000000; } * { print-color-adjust: exact; } }
body { background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; margin: 0 auto;
  max-width: 60rem; padding: 24px 16px 48px; }
h1 { font-size: 1.35rem; } h2 { font-size: 1rem; margin: 32px 0 6px; }
p { margin: 6px 0; } .muted { color: var(--muted); font-size: 0.9rem; }
.text { border: 1px solid var(--line); border-radius: 8px; font-size: 1.15rem; line-height: 2; padding: 10px 14px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.w { color: var(--ink); border-radius: 3px; padding: 2px 1px; border-bottom: 2px solid transparent; }
.up { background: rgba(var(--up), var(--a)); border-bottom-color: rgb(var(--up)); }
.down { background: rgba(var(--down), var(--a)); border-bottom: 2px dashed rgb(var(--down)); }
.unread { color: var(--muted); text-decoration: line-through; }
table { border-collapse: collapse; font-size: 0.9rem; margin-top: 8px; font-variant-numeric: tabular-nums; }
td, th { border-bottom: 1px solid var(--line); padding: 2px 14px 2px 0; text-align: left; }
td.n, th.n { text-align: right; }
"""
STRONGEST = 0.6  # opacity: ink on it can be read in light and dark
FAINTEST = 0.05  # a share of the strongest word, below which a word is left plain


def to_html(heat_maps: Sequence[HeatMap], title: str = "What moved the score") -> str:
    """A page of its own, without scripts or anything to be fetched: each text with its words coloured, and a table.

    Blue with a whole line below raised the score, orange with a broken line lowered it; the stronger, the deeper. The
    scale is that of each text by itself. A word that the model did not read is struck out.
    """
    parts = "".join(map(_section, heat_maps))
    key = (
        '<p class="muted"><span class="w up" style="--a:0.4">raised</span> '
        '<span class="w down" style="--a:0.4">lowered</span> '
        "the score, against a text in which every word is blank.</p>"
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>{key}{parts}</body></html>\n"
    )


def save_html(heat_maps: Sequence[HeatMap], path: str | Path, title: str = "What moved the score") -> Path:
    """Write [`to_html`] into a file, whose folder is made if needed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(to_html(heat_maps, title), encoding="utf-8", errors="replace")
    return target


def _section(heat: HeatMap) -> str:
    strongest = max((abs(word.value or 0.0) for word in heat.words), default=0.0) or 1.0
    pieces, position = [], 0
    for word in heat.words:
        pieces.append(html.escape(heat.text[position : word.start]))
        pieces.append(_span(word, strongest))
        position = word.end
    pieces.append(html.escape(heat.text[position:]))
    rows = "".join(
        f'<tr><td dir="auto">{html.escape(word.word)}</td><td class="n">{word.value:+.3f}</td></tr>'
        for word in heat.top()
    )
    difference = heat.score - heat.baseline_score
    return (
        f"<h2>{html.escape(heat.name)}: {heat.score:.3f}</h2>"
        f'<p class="text" dir="auto">{"".join(pieces)}</p>'
        f'<p class="muted">Score {heat.score:.3f}, blank text {heat.baseline_score:.3f}: the words account for '
        f"{difference:+.3f}, with an error of {heat.error:+.4f} after {heat.steps} steps.</p>"
        f'<table><tr><th>word</th><th class="n">score</th></tr>{rows}</table>\n'
    )


def _span(word: WordAttribution, strongest: float) -> str:
    shown = html.escape(word.word)
    if word.value is None:
        return f'<span class="unread" title="not read">{shown}</span>'
    share = abs(word.value) / strongest
    if share < FAINTEST:
        return f'<span class="w" title="{word.value:+.3f}">{shown}</span>'
    way = "up" if word.value > 0 else "down"
    return f'<span class="w {way}" style="--a:{STRONGEST * share:.2f}" title="{word.value:+.3f}">{shown}</span>'
