"""Rewards from rules: fixed, fast, and worth a sentence each in a reward list next to a learned one.

Each is a frozen dataclass that reads the completion, and of the dataset's columns none but the one that it names. None
needs another, so that they stand in one file, however many. `name` is what logs show; it defaults to the class's name,
and must be given where the same rule is used twice in one list. Rules on the form of an answer (JSON, a number, think
and answer tags) are in `verifiable/answers.py`.
"""

import functools
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from rlhf_recipes.rewards.contract.checks import check_choice, check_setting
from rlhf_recipes.texts import Text, as_text, sentence
from rlhf_recipes.words import is_blank, language_identifier, language_probability, ngrams, words

# Letters, marks, numbers, punctuation and currency signs (Unicode's general categories).
PROSE_CATEGORIES = ("L", "M", "N", "P", "Sc")
MARKUP = frozenset("#*@[]\\_{}")

# Letters glued by a lost space or a cut-off word: "good.The", "filmThe", "film2"; not "U.S.", "McCoy" or "1990s".
GLUED = re.compile(r"[^\W\d_]{2}[.,;:!?][^\W\d_]|[a-z]{2}[A-Z]|[^\W\d_]{2}\d")
SENTENCE_END = re.compile(r"""[.!?…。！？]["'”’»)\]」』]*\s*\Z""")


@dataclass(frozen=True)
class Rule:
    """A reward of the completion's text: a subclass defines `score(text) -> float`, or `None` where it cannot say."""

    name: str | None = field(default=None, kw_only=True)

    @property
    def __name__(self) -> str:
        return self.name or type(self).__qualname__

    def score(self, text: str) -> float | None:
        """The reward of one completion, as plain text."""
        raise NotImplementedError

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        return [self.score(as_text(completion)) for completion in completions]


def column_values(columns: Mapping[str, Any], wanted: str, reward: str) -> Sequence[Any]:
    """The values of a dataset column that a reward was told to read; `ValueError` if it is not there."""
    if wanted not in columns:
        given_by_the_trainer = ("prompts", "completion_ids", "trainer_state", "log_extra", "log_metric")
        there = sorted(set(columns) - set(given_by_the_trainer))
        raise ValueError(
            f"{reward} reads the column {wanted!r}, which the dataset lacks. It has {', '.join(there) or 'none'}. "
            "Name one of these as `column`, or add it."
        )
    values: Sequence[Any] = columns[wanted]
    return values


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
        check_setting("LengthWindow", "minimum", self.minimum)
        check_setting("LengthWindow", "margin", self.margin, least=1)
        if self.maximum is not None:
            check_setting("LengthWindow", "maximum", self.maximum)
        if self.minimum < 0 or (self.maximum is not None and self.maximum < self.minimum):
            raise ValueError(
                f"LengthWindow goes from minimum {self.minimum} to maximum {self.maximum}: the minimum must be 0 or "
                "more, and the maximum no smaller."
            )
        check_choice("LengthWindow", "unit", self.unit, ("tokens", "words"))

    def __call__(
        self, completions: Sequence[Text], completion_ids: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> list[float | None]:
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
class NgramRule(Rule):
    """A reward of word n-grams, those of `rlhf_recipes.words`: of any script, without case and punctuation.

    Args:
        n (`int`, *optional*, defaults to 2):
            Number of words in an n-gram.
    """

    n: int = 2

    def __post_init__(self) -> None:
        check_setting(type(self).__qualname__, "n", self.n, least=1, whole=True)


@dataclass(frozen=True)
class Repetition(NgramRule):
    """Minus the share of word n-grams that were there before: `-(1 - distinct_n)`, from 0 down towards -1.

    `distinct_n` is the number of different n-grams over the number of all (arXiv 1510.03055, section 5.2). A
    completion of fewer than `n` words (by default 2) has nothing to repeat: 0.
    """

    def score(self, text: str) -> float:
        found = ngrams(words(text), self.n)
        return len(set(found)) / len(found) - 1.0 if found else 0.0


@dataclass(frozen=True)
class RegexMatch(Rule):
    """1 if the pattern is found in the completion, else 0; or the other way round.

    An empty completion is searched like any other: most patterns are not found in it. A pattern with a repeat inside
    of a repeat, `(a+)+b`, may take minutes on one long text. Give the reward of such a pattern a time limit: in YAML
    `{func: RegexMatch, args: {pattern: "(a+)+b"}, timeout: 5}`, in Python `TimedReward(RegexMatch("(a+)+b"), 5)`.
    It then runs in a process of its own, and a row that takes longer gets `None`.

    Args:
        pattern (`str`):
            A pattern of Python's `re`. It may match anywhere; `^` and `$` are the ends of the whole text.
        ignore_case (`bool`, *optional*, defaults to `False`):
            Whether upper and lower case are the same.
        forbid (`bool`, *optional*, defaults to `False`):
            Whether 1 is for a completion in which nothing matches. (A negative weight punishes a match as much, but
            rewards nothing.)
    """

    pattern: str
    ignore_case: bool = False
    forbid: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"RegexMatch cannot read the pattern {self.pattern!r}: {sentence(error)}") from error

    def score(self, text: str) -> float:
        found = re.search(self.pattern, text, re.IGNORECASE if self.ignore_case else 0) is not None
        return 1.0 if found != self.forbid else 0.0


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

    def __post_init__(self) -> None:
        check_setting("PlainProse", "max_digits", self.max_digits, least=0)

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


@dataclass(frozen=True)
class KeywordCoverage(Rule):
    """The share of wanted keywords that the completion has, minus the share of forbidden ones that it has.

    `r = |wanted and found| / |wanted| - |forbidden and found| / |forbidden|`, from -1 to 1; a share of nothing is 0.
    A keyword is a word or a phrase, and is found where its words stand in the completion, whole and one after the
    other, whatever their case and the punctuation between them. `well-known` is one word. Scripts without spaces are
    read character by character. Inflected forms are other words: list them, or use [`RegexMatch`].

    An empty completion has no keyword: 0. A row that names no keyword, because its column holds `None`, an empty list
    or punctuation alone, gets `None` unless there are other keywords.

    Args:
        keywords (`Sequence[str]`, *optional*):
            Keywords wanted in every completion.
        column (`str`, *optional*):
            A dataset column with the keywords wanted in its row: a list of texts, or one text.
        forbidden (`Sequence[str]`, *optional*):
            Keywords that no completion should have.
        forbidden_column (`str`, *optional*):
            A dataset column with the keywords forbidden in its row.
        separator (`str`, *optional*):
            What stands between the keywords of a column that holds one text for each row, such as `","`. Default: the
            text is one keyword.

    Raises:
        `ValueError`: if there is nothing to look for, or a keyword has no letter, digit or emoji.
    """

    keywords: Sequence[str] | None = None
    column: str | None = None
    forbidden: Sequence[str] | None = None
    forbidden_column: str | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        for setting in ("keywords", "forbidden"):
            given = getattr(self, setting)
            if isinstance(given, str):
                raise ValueError(f"KeywordCoverage takes {setting} as a list, but was given {given!r}: [{given!r}].")
            wordless = [keyword for keyword in given or () if not _phrase(keyword).strip()]
            if wordless:
                raise ValueError(
                    f"The keyword {wordless[0]!r} has no letter, digit or emoji. RegexMatch finds other signs."
                )
        if not (self.keywords or self.column or self.forbidden or self.forbidden_column):
            raise ValueError("KeywordCoverage has nothing to look for: give keywords, column, forbidden or both.")

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        count = len(completions)
        wanted = self._of_rows(self.keywords, self.column, kwargs, count)
        forbidden = self._of_rows(self.forbidden, self.forbidden_column, kwargs, count)
        texts = [_phrase(as_text(completion)) for completion in completions]
        return [_coverage(*row) for row in zip(texts, wanted, forbidden, strict=True)]

    def _of_rows(
        self, always: Sequence[str] | None, column: str | None, columns: Mapping[str, Any], count: int
    ) -> list[frozenset[str]]:
        values = [None] * count if column is None else column_values(columns, column, self.__name__)
        fixed = _phrases(always)
        return [fixed | self._of_row(value) for value in values]

    def _of_row(self, value: str | Sequence[str] | None) -> frozenset[str]:
        if isinstance(value, str):
            value = [value] if self.separator is None else value.split(self.separator)
        return _phrases(value)


def _coverage(text: str, wanted: frozenset[str], forbidden: frozenset[str]) -> float | None:
    if not wanted and not forbidden:
        return None
    shares = [sum(phrase in text for phrase in phrases) / max(1, len(phrases)) for phrases in (wanted, forbidden)]
    return shares[0] - shares[1]


def _phrases(keywords: Sequence[str] | None) -> frozenset[str]:
    return frozenset(phrase for keyword in keywords or () if keyword and (phrase := _phrase(keyword)).strip())


def _phrase(text: str) -> str:
    """The words with a space before and after each, so that whole words are found as parts of a text."""
    return f" {' '.join(words(text))} "


@dataclass(frozen=True)
class Language(Rule):
    """The probability that the completion is in a language, from 0 to 1, as py3langid judges it.

    It is a naive Bayes classifier on byte n-grams (Lui and Baldwin, ACL 2012) of 140 languages, its probabilities
    normalized over them. Short texts are hard: of English film-review sentences cut to 10 letters it takes 69% for
    English, of 20 letters 94%, of 40 letters 99.8%; with ten languages to choose from 84%, 98% and 99.9%. Hence
    `min_letters`. In a text of several languages the longer part decides. Digits, emoji and punctuation say nothing.

    Args:
        language (`str`, *optional*, defaults to `"en"`):
            Its ISO 639-1 code.
        among (`Sequence[str]`, *optional*):
            The languages that come into question, which makes short texts easier. Default: all that it knows.
        threshold (`float`, *optional*):
            The probability from which on the reward is 1, and 0 below. Default: the reward is the probability.
        min_letters (`int`, *optional*, defaults to 20):
            A completion with fewer letters gets `None`, and one with nothing to see 0, the worst. For Chinese and
            Japanese, which say more with each letter, set it lower.
    """

    language: str = "en"
    among: Sequence[str] | None = None
    threshold: float | None = None
    min_letters: int = 20
    may_not_apply: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.among, str):
            raise ValueError(f"Language takes among as a list, but was given {self.among!r}: [{self.among!r}].")
        known = language_identifier().labels
        unknown = [code for code in (self.language, *(self.among or ())) if code not in known]
        if unknown:
            raise ValueError(f"Language does not know {unknown[0]!r}. Known: {', '.join(sorted(known))}.")
        if self.among is not None and (self.language not in self.among or len(set(self.among)) < 2):
            raise ValueError(
                f"The languages in question are {', '.join(self.among) or 'none'}; they must be {self.language!r} and "
                "one other at least."
            )
        if self.threshold is not None and not 0 < self.threshold <= 1:
            raise ValueError(f"The threshold of Language is {self.threshold}; it must be above 0 and at most 1.")
        check_setting("Language", "min_letters", self.min_letters, least=1)

    def score(self, text: str) -> float | None:
        probability = language_probability(text, self.language, self.among, self.min_letters)
        if probability is None:
            return 0.0 if is_blank(text) else None
        return probability if self.threshold is None else float(probability >= self.threshold)


@dataclass(frozen=True)
class OnText(Rule):
    """What a function makes of the completion's text: `len`, a readability formula, a check of your own.

    The function is called with every text, also with an empty one, and returns a finite number, or `None` where it
    cannot say. Anything else stops the run, with the row named. Its own name is the name of the reward.

    Args:
        func (`str` or callable):
            The function, or where it is: `package.module:name` or `path/to/file.py:name`. A class is called once,
            with `args`, and must give a callable. To be pickled, a callable must be one that can be imported.
        args (`Mapping`, *optional*):
            Further arguments of the function, by name.

    Example:

    ```python
    OnText("textstat:flesch_reading_ease")  # with `pip install textstat`
    OnText(len)
    ```
    """

    func: str | Callable[..., float | None]
    args: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if ":" not in self.func if isinstance(self.func, str) else not callable(self.func):
            raise ValueError(
                f"OnText takes package.module:name or path/to/file.py:name, or a callable, not {self.func!r}."
            )
        _ = self._loaded  # a mistake shows here, not after the first rollout

    @property
    def __name__(self) -> str:
        return self.name or self._loaded.__name__

    def score(self, text: str) -> float | None:
        value: float | None = self._loaded.reward(text, **self._loaded.args)
        return value

    @functools.cached_property
    def _loaded(self) -> Any:
        from rlhf_recipes.rewards.loading import LoadedReward  # it finds rewards by name, these among them

        return LoadedReward(self.func, args=self.args, is_reward=False)
