"""How values are written on the page.

A figure is rounded for the eye, and its `<data>` element holds the value that stands in the run's file.
"""

import math
import unicodedata
from typing import Any

from markupsafe import Markup

NOTHING = Markup('<span class="none" title="not in the files of this run">–</span>')
TEXT_LIMIT = 1500  # characters of one text; beyond, a row of the table would no longer be a row


def number(value: Any) -> float | None:
    """Return a finite number as it is, and `None` for anything else (missing, NaN, text, true or false)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def text(value: float, digits: int = 2) -> str:
    """Write a number inside a sentence, with a real minus sign."""
    return f"{value:z.{digits}f}".replace("-", "\u2212")


def plain(value: object, digits: int = 2) -> Markup:
    """Write a number with a fixed count of decimals; `z` in the format keeps −0.001 from becoming −0.00."""
    return _data(value, f"{{:z,.{digits}f}}")


def signed(value: object, digits: int = 2) -> Markup:
    """Write a change: always with its sign."""
    return _data(value, f"{{:+z,.{digits}f}}")


def percent(value: object) -> Markup:
    """Write a share of 1 as a percentage."""
    return _data(value, "{:.1%}")


def interval(value: object) -> Markup:
    """Write `[low, high]`, both with their signs."""
    if not isinstance(value, list) or len(value) != 2 or None in map(number, value):
        return NOTHING
    return Markup("[{}, {}]").format(signed(value[0]), signed(value[1]))


def figure(value: object) -> Markup:
    """Write a number that nothing is known about: a count in full, anything else to four digits."""
    return _data(value, "{:,}" if isinstance(value, int) else "{:,.4g}")


def memory(value: object) -> Markup:
    """Write gigabytes."""
    return _data(value, "{:.1f} GB")


def duration(value: object) -> Markup:
    """Write seconds as a person would say them."""
    seconds = number(value)
    if seconds is None:
        return NOTHING
    whole = round(seconds)
    if whole < 60:
        text = f"{whole} s"
    elif whole < 3600:
        text = f"{whole // 60} min {whole % 60} s"
    else:
        text = f"{whole // 3600} h {whole % 3600 // 60} min"
    return Markup('<data value="{}">{}</data>').format(value, text)


def breakable(name: str) -> Markup:
    """Let a long name of a score break after an underscore on a narrow screen, and not inside a word."""
    return Markup("_<wbr>").join(name.split("_"))


def visible(text: str, limit: int | None = TEXT_LIMIT) -> str:
    """Make a model's output fit for a page: cut to a length one can read, and nothing in it invisible or illegal.

    Control characters become their pictures (U+2400 and on), half surrogates and non-characters the replacement
    character. Markup needs no care here, because the template escapes it.
    """
    shown = text if limit is None else text[:limit]
    rest = f" … ({len(text) - len(shown):,} more characters)" if len(text) > len(shown) else ""
    return "".join(map(_visible_character, shown)) + rest


def _visible_character(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    if code < 32:
        return chr(0x2400 + code)
    if code == 127:
        return "\u2421"
    illegal = unicodedata.category(character) in ("Cc", "Cs") or code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF
    return "\ufffd" if illegal else character


def _data(value: object, form: str) -> Markup:
    finite = number(value)
    if finite is None:
        return NOTHING if value is None else Markup("<span>{}</span>").format(str(value))
    text = form.format(finite).replace("-", "\u2212")
    return Markup('<data value="{}">{}</data>').format(value, text)
