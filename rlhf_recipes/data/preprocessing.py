"""Text rules that decide which rows are the same and which split a row is in: pure functions, no state, no order."""

import hashlib
import html
import math
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Row = TypeVar("Row", bound=Mapping[str, Any])
SPLITS: Mapping[str, float] = {"train": 0.8, "validation": 0.1, "test": 0.1}


def tidy_text(text: str) -> str:
    """Make scraped text readable: HTML entities decoded once, runs of whitespace made one space, ends stripped.

    Args:
        text (`str`): Any text.

    Returns:
        `str`: The text as a reader should see it; letters, case and punctuation are untouched.

    Example:
        >>> tidy_text(" Lovely &amp; Amazing\\n involves  us ")
        'Lovely & Amazing involves us'
    """
    return " ".join(html.unescape(text).split())


def normalize_text(text: str) -> str:
    """Reduce a text to the form in which two copies of it are equal. A key for comparing, not text to show.

    HTML entities are decoded until none is left (`&amp;amp;` occurs in twice-scraped data), whitespace is tidied, case
    is folded, and composed and decomposed accents are made one (Unicode NFC).

    Args:
        text (`str`): Any text.

    Returns:
        `str`: The key. `normalize_text(normalize_text(x)) == normalize_text(x)`.
    """
    decoded = html.unescape(text)
    while decoded != text:
        text, decoded = decoded, html.unescape(decoded)
    return unicodedata.normalize("NFC", " ".join(decoded.split()).casefold())


def split_of(text: str, splits: Mapping[str, float] = SPLITS) -> str:
    """Say which split a text belongs to, from nothing but the text.

    The SHA-256 of the normalized text is read as a number in [0, 1) and looked up in the cumulated shares. So a row
    stays in its split when rows are shuffled, added or removed, in every process and on every machine, and a copy of
    a training text can never turn up in the test set.

    Args:
        text (`str`): The text that identifies the row. Where several rows share a prompt, pass the prompt, so that all
            of them land on the same side.
        splits (`Mapping[str, float]`, *optional*): Name and share of each split, in order. The shares add up to 1.

    Returns:
        `str`: One of the names in `splits`.

    Raises:
        ValueError: If a share is not positive, or the shares do not add up to 1.
    """
    if any(share <= 0 for share in splits.values()) or not math.isclose(sum(splits.values()), 1.0, abs_tol=1e-9):
        raise ValueError(f"splits are {dict(splits)}; every share must be above 0 and their sum 1. Change the shares.")
    # surrogatepass: JSON may hold half of a surrogate pair, and a split must not fail on it
    digest = hashlib.sha256(normalize_text(text).encode("utf-8", "surrogatepass")).digest()
    point = int.from_bytes(digest[:8], "big") / 2**64
    bound = 0.0
    for name, share in splits.items():
        bound += share
        if point < bound:
            return name
    return name  # the shares add up to a hair below 1 in floating point


def deduplicate(rows: Iterable[Row], key: str | Callable[[Row], str]) -> tuple[list[Row], int]:
    """Keep the first row of every group whose key texts are equal after `normalize_text`.

    Args:
        rows (`Iterable`): Rows (mappings). The caller's order decides which copy stays; sort by a stable id first.
        key (`str` or `Callable`): A column name, or a function of the row that gives the text to compare.

    Returns:
        `tuple[list, int]`: The rows that stay, in their order, and how many were left out.

    Raises:
        KeyError: If a row lacks the column `key`; the message lists the columns that it has.
    """
    seen: set[str] = set()
    kept: list[Row] = []
    removed = 0
    for row in rows:
        if isinstance(key, str) and key not in row:
            raise KeyError(
                f"no column '{key}' to deduplicate by; the row has {sorted(row)}. Pass one of these as key."
            )
        text = normalize_text(row[key] if isinstance(key, str) else key(row))
        if text in seen:
            removed += 1
        else:
            seen.add(text)
            kept.append(row)
    return kept, removed
