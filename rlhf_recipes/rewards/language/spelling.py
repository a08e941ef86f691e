"""Spelling by a dictionary."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.rules import Rule
from rlhf_recipes.texts import lines_of
from rlhf_recipes.words import is_blank

# pyspellchecker's dictionaries, and the script of each as Unicode's character names begin.
SCRIPT_OF = dict.fromkeys(("de", "en", "es", "eu", "fr", "it", "lv", "nl", "pt"), "LATIN")
SCRIPT_OF |= {"ar": "ARABIC", "fa": "ARABIC", "ru": "CYRILLIC"}

# The zero-width non-joiner stands inside of Persian words.
WORD = re.compile(r"[^\W_]+(?:['’\u200c-][^\W_]+)*")
JOINER = re.compile(r"['\u200c-]")
ADDRESS = ("://", "@", "www.")

# A word after one of these may be capitalized for its place in the sentence.
SENTENCE_START = frozenset('.!?:;\n"“„«([。！？')


@dataclass(frozen=True)
class Spelling(Rule):
    """The share of the completion's words that a dictionary knows, from 0 to 1.

    A word is known if the dictionary has it, whatever its case, or has each of the parts between its hyphens and
    apostrophes: `well-known`, `l'homme`. Left out are words with digits, addresses, and words without a letter of the
    language's script. A completion in which no word is left gets `None`: punctuation alone, or another script. One
    with nothing to see gets 0: it is the worst answer.

    The dictionaries are those of pyspellchecker, lists of frequent forms: rare words and names count as misspelt, and
    so does the last word of a completion that was cut off. A right word in the wrong place is not seen. A text in
    another language of the same script mostly gets a low value (but Basque and Latvian lists hold many English words).

    Args:
        language (`str`, *optional*, defaults to `"en"`):
            One of ar, de, en, es, eu, fa, fr, it, lv, nl, pt, ru.
        extra (`Sequence[str]`, `str` or `Path`, *optional*):
            More words that are right: a list, or a text file with one on each line.
        skip_names (`bool`, *optional*):
            Whether to leave out a word that the dictionary does not know, if it is capitalized inside of a sentence.
            Errors can hide behind capitals then. Default: yes, but not in German, which capitalizes its nouns.
    """

    language: str = "en"
    extra: Sequence[str] | str | Path = ()
    skip_names: bool | None = None
    may_not_apply: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.language not in SCRIPT_OF:
            raise ValueError(
                f"Spelling has no dictionary of {self.language!r}. It has {', '.join(sorted(SCRIPT_OF))}."
            )
        optional("spellchecker", "Spelling", package="pyspellchecker")
        # Kept as words, so that a pickle needs no file.
        object.__setattr__(self, "extra", tuple(_plain(word).lower() for word in lines_of(self.extra)))

    def score(self, text: str) -> float | None:
        if is_blank(text):
            return 0.0
        plain = re.sub(r"\S+", _without_address, _plain(text))
        judged, end = [], 0
        for match in WORD.finditer(plain):
            starts = end == 0 or not SENTENCE_START.isdisjoint(plain[end : match.start()])
            judged.append(self._knows(match.group(), starts))
            end = match.end()
        known = [value for value in judged if value is not None]
        return sum(known) / len(known) if known else None

    def _knows(self, word: str, starts_sentence: bool) -> bool | None:
        """Whether a word is right; `None` where it is not to be judged."""
        script = SCRIPT_OF[self.language]
        if any(map(str.isdigit, word)) or not any(_script(character) == script for character in word):
            return None
        dictionary, extra = _dictionary(self.language), self.extra
        assert isinstance(extra, tuple)
        lower = word.lower()
        if lower in dictionary or lower in extra or all(part in dictionary for part in JOINER.split(lower)):
            return True
        skip_names = self.language != "de" if self.skip_names is None else self.skip_names
        return None if skip_names and word[0].isupper() and not starts_sentence else False


def _plain(text: str) -> str:
    """Composed letters, one apostrophe, and none of the marks that only some write (the vowels of Arabic)."""
    composed = unicodedata.normalize("NFKC", text).replace("’", "'")
    return composed if composed.isascii() else "".join(c for c in composed if unicodedata.category(c) != "Mn")


def _without_address(chunk: re.Match[str]) -> str:
    return "" if any(sign in chunk.group() for sign in ADDRESS) else chunk.group()


@functools.cache
def _dictionary(language: str) -> Any:
    # Read once, and only where the reward is used: up to half a second and some hundred thousand words.
    return optional("spellchecker", "Spelling", package="pyspellchecker").SpellChecker(language=language)


@functools.cache
def _script(character: str) -> str:
    return unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""
