"""Features of a text that have a name, group by group: what each counts, and what it says where there is nothing."""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import numpy as np

from rlhf_recipes.rewards.diversity import DistinctN
from rlhf_recipes.rewards.rules import Repetition as RepetitionRule
from rlhf_recipes.words import ngrams, words

Matrix = Any  # numpy.ndarray, or a sparse matrix of scipy in rows (CSR)
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+""")
VOWELS = re.compile(r"[aeiouy]+")
LATIN = re.compile(r"[a-z]")
STANDARD_FLESCH = 60.0  # where "standard" English begins (Flesch 1948)
FLESCH_RANGE = (-100.0, 121.22)  # a sentence of one short word has the most; a text without full stops knows no least


@dataclass(frozen=True)
class Feature:
    """One number of a text: its name, what it means in one line, and its unit."""

    name: str
    meaning: str
    unit: str


@dataclass(frozen=True)
class Reading:
    """A row as features see it. `text` is what they are of; the prompt is known to those that compare with it."""

    prompt: str
    completion: str
    text: str

    @functools.cached_property
    def words(self) -> list[str]:
        """The words of the text, without case and punctuation."""
        return words(self.text)

    @functools.cached_property
    def sentences(self) -> int:
        """Pieces between sentence ends that have a word; an abbreviation's point before a space is taken for one."""
        return sum(1 for piece in SENTENCE_END.split(self.text) if any(map(str.isalnum, piece)))


@dataclass(frozen=True)
class FeatureGroup:
    """Features that are computed together: a subclass defines `features`, and `values` or `matrix`.

    Attributes:
        standardize (`bool`): whether each column is divided by its standard deviation before a regression. A bag of
            words and an embedding are not: their rows have length 1, and a rare word would weigh as much as all.
        from_zero (`bool`): whether the absence of a feature, and not its mean, is what a contribution is told against.
        opaque (`bool`): whether single columns mean nothing to a person, so that they are told as one.
        bounded (`bool`): whether no text can drive a value far, so that it need not be held within what training saw.
    """

    standardize: ClassVar[bool] = True
    from_zero: ClassVar[bool] = False
    opaque: ClassVar[bool] = False

    @property
    def bounded(self) -> bool:
        return False

    @property
    def features(self) -> tuple[Feature, ...]:
        """One for each column."""
        raise NotImplementedError

    def fit(self, readings: Sequence[Reading]) -> "FeatureGroup":
        """The group with what it learns from training texts; itself, if that is nothing."""
        return self

    def values(self, reading: Reading) -> Sequence[float]:
        """The numbers of one text."""
        raise NotImplementedError

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        """The numbers of all texts. `(N, F)`"""
        rows = [self.values(reading) for reading in readings]
        return np.array(rows, dtype=np.float64).reshape(len(readings), len(self.features))


@dataclass(frozen=True)
class Length(FeatureGroup):
    """Length of the text: characters, words, sentences, characters in a word, words in a sentence.

    A text without words has 0 words, and 0 for both means. A text with words has one sentence at least.
    """

    features = (
        Feature("characters", "length of the text, white space at its ends left out", "characters"),
        Feature("words", "words of the text", "words"),
        Feature("sentences", "sentences of the text", "sentences"),
        Feature("word_length", "mean length of a word", "characters per word"),
        Feature("sentence_length", "mean length of a sentence", "words per sentence"),
    )

    def values(self, reading: Reading) -> Sequence[float]:
        count = len(reading.words)
        letters = sum(map(len, reading.words))
        sentences = reading.sentences
        characters = len(reading.text.strip())
        return (characters, count, sentences, letters / max(count, 1), count / max(sentences, 1))


@dataclass(frozen=True)
class Readability(FeatureGroup):
    """Flesch's reading ease, for English: `206.835 - 1.015 words/sentences - 84.6 syllables/words` (Flesch 1948,
    Journal of Applied Psychology 32). The higher, the easier: 0 to 30 is very difficult, 60 to 70 standard, 90 to 100
    very easy. Held within -100 and 121.22.

    Words are those with a Latin letter. A syllable is a run of vowels (a, e, i, o, u, y, without accents); an `e` at
    the end is silent, but not in `le` after a consonant, and every word has one syllable at least. This is right for
    about nine of ten English words. A text without Latin words gets 60.
    """

    features = (Feature("reading_ease", "Flesch reading ease, higher is easier", "Flesch points"),)

    def values(self, reading: Reading) -> Sequence[float]:
        latin = [word for word in map(_plain, reading.words) if LATIN.search(word)]
        if not latin:
            return (STANDARD_FLESCH,)
        sentences = max(reading.sentences, 1)
        syllables = sum(map(count_syllables, latin)) / len(latin)
        ease = 206.835 - 1.015 * len(latin) / sentences - 84.6 * syllables
        return (min(max(ease, FLESCH_RANGE[0]), FLESCH_RANGE[1]),)


def count_syllables(word: str) -> int:
    """Syllables of an English word in small letters, by a rule; see [`Readability`]."""
    count = len(VOWELS.findall(word))
    silent = len(word) > 2 and word.endswith("e") and word[-2] not in "aeiouy"
    if silent and not (word.endswith("le") and word[-3] not in "aeiouy"):
        count -= 1
    return max(count, 1)


def _plain(word: str) -> str:
    return word if word.isascii() else "".join(c for c in unicodedata.normalize("NFKD", word) if c.isascii())


@dataclass(frozen=True)
class Variety(FeatureGroup):
    """How varied the words are, from 0 to 1: different words over all words (type-token ratio), and the same of pairs
    of neighbours (distinct-2, Li et al., arXiv 1510.03055). Both fall with length. A text without words has 0.
    """

    features = (
        Feature("type_token_ratio", "different words among all words", "share"),
        Feature("distinct_2", "different word pairs among all word pairs", "share"),
    )

    def values(self, reading: Reading) -> Sequence[float]:
        return tuple(DistinctN(n).score(reading.text) for n in (1, 2))


@dataclass(frozen=True)
class Marks(FeatureGroup):
    """What the text is written with: shares of punctuation, `!`, `?` and digits among all characters but white space,
    and of capitals among the letters that have case. Of none of these, 0.
    """

    features = (
        Feature("punctuation", "punctuation among visible characters", "share"),
        Feature("exclamation", "exclamation marks among visible characters", "share"),
        Feature("question", "question marks among visible characters", "share"),
        Feature("digits", "digits among visible characters", "share"),
        Feature("uppercase", "capitals among letters", "share"),
    )

    def values(self, reading: Reading) -> Sequence[float]:
        visible = [c for c in unicodedata.normalize("NFKC", reading.text) if not c.isspace()]
        counts = Counter(visible)
        total = max(len(visible), 1)
        punctuation = sum(number for c, number in counts.items() if unicodedata.category(c).startswith("P"))
        digits = sum(number for c, number in counts.items() if c.isdigit())
        upper = sum(number for c, number in counts.items() if c.isupper())
        cased = upper + sum(number for c, number in counts.items() if c.islower())
        questions = counts["?"] + counts["؟"]
        return (punctuation / total, counts["!"] / total, questions / total, digits / total, upper / max(cased, 1))


@dataclass(frozen=True)
class Sentiment(FeatureGroup):
    """VADER's four numbers (Hutto and Gilbert, ICWSM 2014): the compound score from -1 to 1, and the shares of
    positive, negative and neutral words. It knows English words, emoticons and emoji; a text without any of these has
    compound 0, and an empty one has 0 for all.

    Args:
        max_characters (`int`, *optional*, defaults to 10,000):
            How much of a text is read, because VADER's time grows with the square of the emotional words.
    """

    max_characters: int = 10_000

    def __post_init__(self) -> None:
        if self.max_characters < 1:
            raise ValueError(f"Sentiment has max_characters {self.max_characters}; it must be 1 or more.")

    features = (
        Feature("vader_compound", "VADER's sentiment of the whole, -1 to 1", "VADER points"),
        Feature("vader_positive", "positive words by VADER, by strength", "share"),
        Feature("vader_negative", "negative words by VADER, by strength", "share"),
        Feature("vader_neutral", "words without feeling by VADER", "share"),
    )

    def values(self, reading: Reading) -> Sequence[float]:
        scores = _vader().polarity_scores(reading.text[: self.max_characters])
        return tuple(scores[key] for key in ("compound", "pos", "neg", "neu"))


@functools.cache
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@dataclass(frozen=True)
class Keywords(FeatureGroup):
    """How often the words of a list, or phrases of several words, are in the text; without case, in any script.

    Args:
        keywords (`Sequence[str]`):
            The words. `"good"` does not count in `goodness`.
        label (`str`, *optional*, defaults to `"keywords"`):
            The name of the feature.
    """

    keywords: tuple[str, ...]
    label: str = "keywords"

    def __post_init__(self) -> None:
        if isinstance(self.keywords, str):
            raise ValueError(f"Keywords takes a list of words, not the text {self.keywords!r}.")
        object.__setattr__(self, "keywords", tuple(self.keywords))  # JSON and YAML give lists
        empty = [keyword for keyword in self.keywords if not words(keyword)]
        if empty or not self.keywords:
            raise ValueError(f"Keywords needs words to count; given was {list(self.keywords)}.")

    @property
    def features(self) -> tuple[Feature, ...]:
        shown = ", ".join(self.keywords[:3]) + (", ..." if len(self.keywords) > 3 else "")
        return (Feature(self.label, f"how often one of these is there: {shown}", "times"),)

    @functools.cached_property
    def _phrases(self) -> dict[int, set[tuple[str, ...]]]:
        by_length: dict[int, set[tuple[str, ...]]] = {}
        for keyword in self.keywords:
            phrase = tuple(words(keyword))
            by_length.setdefault(len(phrase), set()).add(phrase)
        return by_length

    def values(self, reading: Reading) -> Sequence[float]:
        phrases = self._phrases.items()
        return (sum(gram in wanted for length, wanted in phrases for gram in ngrams(reading.words, length)),)


@dataclass(frozen=True)
class Repetition(FeatureGroup):
    """How much the text repeats itself: the share of word n-grams that were there before, and the longest run of one
    word. A text of fewer than `n` words repeats nothing: 0; one without words has a run of 0.

    Args:
        n (`int`, *optional*, defaults to 3): Words in an n-gram.
    """

    n: int = 3

    def __post_init__(self) -> None:
        RepetitionRule(self.n)  # refuses what cannot be

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
            Feature("repetition", f"runs of {self.n} words that were there before", "share"),
            Feature("longest_run", "longest run of one word", "words"),
        )

    def values(self, reading: Reading) -> Sequence[float]:
        runs = (sum(1 for _ in run) for _, run in groupby(reading.words))
        return (-RepetitionRule(self.n).score(reading.text), max(runs, default=0))


@dataclass(frozen=True)
class PromptOverlap(FeatureGroup):
    """The share of the completion's different words that the prompt has too, from 0 to 1; 0 where either has none."""

    features = (Feature("prompt_overlap", "words of the completion that the prompt has too", "share"),)

    def values(self, reading: Reading) -> Sequence[float]:
        own = set(words(reading.completion))
        return (len(own & set(words(reading.prompt))) / max(len(own), 1),)
