"""Rewards from rules: fixed, fast, and worth a sentence each in a reward list next to a learned one.

Each is a frozen dataclass that reads the completion alone. `name` is what logs show; it defaults to the class's name,
and must be given where the same rule is used twice in one list.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlhf_recipes.rewards.base import Text, as_text

# Letters, marks, numbers, punctuation and currency signs (Unicode's general categories).
PROSE_CATEGORIES = ("L", "M", "N", "P", "Sc")
MARKUP = frozenset("#*@[]\\_{}")
# Letters glued by a lost space or a cut-off word: "good.The", "filmThe", "film2"; not "U.S.", "McCoy" or "1990s".
GLUED = re.compile(r"[^\W\d_]{2}[.,;:!?][^\W\d_]|[a-z]{2}[A-Z]|[^\W\d_]{2}\d")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’»)\]」』]*\s*\Z""")


@dataclass(frozen=True)
class Rule:
    """A reward of the completion's text: a subclass defines `score(text) -> float`."""

    name: str | None = field(default=None, kw_only=True)

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    def score(self, text: str) -> float:
        """The reward of one completion, as plain text."""
        raise NotImplementedError

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float]:
        return [self.score(as_text(completion)) for completion in completions]


@dataclass(frozen=True)
class LengthWindow(Rule):
    """1 for a completion of a length from `minimum` to `maximum`, falling to 0 over `margin` outside.

    `r = max(0, 1 - d / margin)`, where `d` is how far the length lies outside of the window, 0 inside.

    Args:
        minimum (`int`, *optional*, defaults to 0):
            Shortest length that is not penalized.
        maximum (`int`, *optional*):
            Longest length that is not penalized. `None` is no limit.
        unit (`"tokens"` or `"words"`, *optional*, defaults to `"tokens"`):
            What is counted: the policy's tokens, with the end-of-sequence token, or words between white space.
        margin (`int`, *optional*, defaults to 1):
            The distance at which the reward reaches 0; with 1 any length outside gets 0.
    """

    minimum: int = 0
    maximum: int | None = None
    unit: Literal["tokens", "words"] = "tokens"
    margin: int = 1

    def __post_init__(self) -> None:
        if self.minimum < 0 or (self.maximum is not None and self.maximum < self.minimum):
            raise ValueError(
                f"LengthWindow goes from minimum {self.minimum} to maximum {self.maximum}: the minimum must be 0 or "
                "more, and the maximum no smaller."
            )
        if self.margin < 1:
            raise ValueError(f"LengthWindow has margin {self.margin}; it must be 1 or more.")
        if self.unit not in ("tokens", "words"):
            raise ValueError(f"LengthWindow counts 'tokens' or 'words', not {self.unit!r}.")

    def __call__(
        self, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> list[float]:
        if self.unit == "words":
            return [self._of(len(as_text(completion).split())) for completion in completions]
        if completion_ids is None:
            raise ValueError("LengthWindow counts tokens and needs completion_ids; without them, use unit='words'.")
        return [self._of(len(ids)) for ids in completion_ids]

    def _of(self, length: int) -> float:
        above = 0 if self.maximum is None else max(0, length - self.maximum)
        return max(0.0, 1.0 - (max(0, self.minimum - length) + above) / self.margin)


@dataclass(frozen=True)
class EndsWithSentence(Rule):
    """1 if the completion ends with `.`, `!`, `?`, `…` or `。！？`, else 0.

    Closing quotes and brackets, and then white space, may follow. An empty completion gets 0.
    """

    def score(self, text: str) -> float:
        return 1.0 if SENTENCE_END.search(text) else 0.0


@dataclass(frozen=True)
class Repetition(Rule):
    """Minus the share of word n-grams that were there before: `-(1 - distinct_n)`, from 0 down towards -1.

    `distinct_n` is the number of different n-grams over the number of all (arXiv 1510.03055, section 5.2). Words are
    what stands between white space, in lower case. A completion of fewer than `n` words has nothing to repeat: 0.

    Args:
        n (`int`, *optional*, defaults to 2):
            Number of words in an n-gram.
    """

    n: int = 2

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Repetition has n = {self.n}; it must be 1 or more.")

    def score(self, text: str) -> float:
        words = text.lower().split()
        ngrams = [tuple(words[start : start + self.n]) for start in range(len(words) - self.n + 1)]
        return len(set(ngrams)) / len(ngrams) - 1.0 if ngrams else 0.0


@dataclass(frozen=True)
class RegexMatch(Rule):
    """1 if the pattern is found in the completion, else 0; a negative weight forbids what it finds.

    Args:
        pattern (`str`):
            A pattern of Python's `re`. It may match anywhere; `^` and `$` are the ends of the whole text.
        ignore_case (`bool`, *optional*, defaults to `False`):
            Whether upper and lower case are the same.
    """

    pattern: str
    ignore_case: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"RegexMatch cannot read the pattern {self.pattern!r}: {error}.") from error

    def score(self, text: str) -> float:
        return 1.0 if re.search(self.pattern, text, re.IGNORECASE if self.ignore_case else 0) else 0.0


@dataclass(frozen=True)
class PlainProse(Rule):
    """1 if the completion reads as one line of plain prose, else 0.

    It has to hold that

    - there is at least one letter;
    - there is no line break, tab or other control character, and no two spaces in a row;
    - every character is a letter, number, punctuation or currency sign of any script, and none is of `#*@[]\\_{}`,
      so no markup, code, emoji or replacement character;
    - no words are glued together: `good.The`, `filmThe`, `film2`;
    - there are at most `max_digits` digits.

    It cannot tell sense from nonsense: that is a learned reward's part. Of the endings of the starter kit's human film
    reviews 99% get 1; of what SmolLM2-135M-Instruct, untuned, writes there within 20 tokens, about 74%.

    Args:
        max_digits (`int`, *optional*, defaults to 4):
            Digits that are let through; 4 make a year.
    """

    max_digits: int = 4

    def score(self, text: str) -> float:
        plain = (
            any(character.isalpha() for character in text)
            and all(_is_prose(character) for character in text)
            and "  " not in text
            and GLUED.search(text) is None
            and sum(character.isdigit() for character in text) <= self.max_digits
        )
        return 1.0 if plain else 0.0


def _is_prose(character: str) -> bool:
    if character == " ":
        return True
    return unicodedata.category(character).startswith(PROSE_CATEGORIES) and character not in MARKUP
