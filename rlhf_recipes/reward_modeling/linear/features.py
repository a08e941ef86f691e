"""Text as numbers that a person can name: what a linear reward model, or any other regressor, reads.

A feature has a name, a meaning in one line and a unit. Features that are computed together are a group, a frozen
dataclass whose fields are its settings:

```python
features = FeatureSet((Length(), Sentiment(), Keywords(("subtle", "warm"), label="praise"), BagOfWords(max_n=2)))
features = features.fit(prompts, completions)  # a bag of words learns its vocabulary
matrix = features.matrix(prompts, completions)  # (N, features)
```

Words are those of `rlhf_recipes.words`, of any script. Every value is a finite number for every text: what a
group says where there is nothing to count is in its docstring. A group of your own is a subclass of [`FeatureGroup`].
"""

import difflib
import functools
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np

from rlhf_recipes.errors import RewardError
from rlhf_recipes.imports import find_function, optional
from rlhf_recipes.rewards.diversity import DistinctN
from rlhf_recipes.rewards.rules import Repetition as RepetitionRule
from rlhf_recipes.texts import Text, as_text, prompt_and_completion
from rlhf_recipes.words import ngrams, words

Matrix = Any  # numpy.ndarray, or a sparse matrix of scipy in rows (CSR)
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s|$)|[。！？]+""")
VOWELS = re.compile(r"[aeiouy]+")
LATIN = re.compile(r"[a-z]")
STANDARD_FLESCH = 60.0  # where "standard" English begins (Flesch 1948)
FLESCH_RANGE = (-100.0, 121.22)  # a sentence of one short word has the most; a text without full stops knows no least
MAX_DENSE = 1000  # more columns than these stay sparse, if any group is


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


# --- Groups --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Length(FeatureGroup):
    """Length of the text: characters, words, sentences, characters in a word, words in a sentence.

    A text without words has 0 words, and 0 for both means. A text with words has one sentence at least.
    """

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
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

    @property
    def features(self) -> tuple[Feature, ...]:
        return (Feature("reading_ease", "Flesch reading ease, higher is easier", "Flesch points"),)

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

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
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

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
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

    @property
    def features(self) -> tuple[Feature, ...]:
        return (
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

    @property
    def features(self) -> tuple[Feature, ...]:
        return (Feature("prompt_overlap", "words of the completion that the prompt has too", "share"),)

    def values(self, reading: Reading) -> Sequence[float]:
        own = set(words(reading.completion))
        return (len(own & set(words(reading.prompt))) / max(len(own), 1),)


@dataclass(frozen=True)
class BagOfWords(FeatureGroup):
    """Which words and runs of words the text has, out of a vocabulary that [`fit`] takes from the training texts.

    `"binary"` is 1 for one that is there, `"count"` its number, and `"tfidf"` the number times `log((1 + N) / (1 + n))
    + 1`, with `n` of `N` training texts that have it; rows are then divided by their length, so that it is 1
    (scikit-learn's TfidfVectorizer). A text with nothing of the vocabulary has 0 in all columns.

    Args:
        max_n (`int`, *optional*, defaults to 1):
            Words in the longest run.
        min_texts (`int`, *optional*, defaults to 3):
            Leave out what fewer of the training texts have.
        max_features (`int`, *optional*):
            Keep the most frequent ones. `None` keeps all.
        weighting (`"tfidf"`, `"binary"` or `"count"`, *optional*, defaults to `"tfidf"`):
            What the numbers are.
        vocabulary (`Sequence[str]`, *optional*), idf (`Sequence[float]`, *optional*):
            What `fit` learns.
    """

    standardize: ClassVar[bool] = False
    from_zero: ClassVar[bool] = True

    max_n: int = 1
    min_texts: int = 3
    max_features: int | None = None
    weighting: Literal["tfidf", "binary", "count"] = "tfidf"
    vocabulary: tuple[str, ...] = field(default=(), repr=False)
    idf: tuple[float, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        if self.max_n < 1 or self.min_texts < 1 or (self.max_features is not None and self.max_features < 1):
            raise ValueError(f"{self}: max_n, min_texts and max_features must be 1 or more.")
        if self.weighting not in ("tfidf", "binary", "count"):
            raise ValueError(f"BagOfWords weighs by 'tfidf', 'binary' or 'count', not by {self.weighting!r}.")
        object.__setattr__(self, "vocabulary", tuple(self.vocabulary))  # JSON gives lists
        object.__setattr__(self, "idf", tuple(self.idf))
        if len(self.idf) != len(self.vocabulary):
            raise ValueError(f"BagOfWords has {len(self.vocabulary)} words and {len(self.idf)} idf values.")

    @property
    def bounded(self) -> bool:
        return self.weighting != "count"

    @property
    def features(self) -> tuple[Feature, ...]:
        unit = {"tfidf": "tf-idf", "binary": "there or not", "count": "times"}[self.weighting]
        return tuple(Feature(f'"{gram}"', f"the words {gram}", unit) for gram in self.vocabulary)

    def fit(self, readings: Sequence[Reading]) -> "BagOfWords":
        counts = Counter(gram for reading in readings for gram in set(self._grams(reading)))
        kept = [gram for gram, number in counts.items() if number >= self.min_texts]
        kept.sort(key=lambda gram: (-counts[gram], gram))
        kept = sorted(kept[: self.max_features])
        if not kept:
            raise ValueError(
                f"BagOfWords finds nothing that {self.min_texts} or more of the {len(readings)} training texts have. "
                "Lower min_texts."
            )
        idf = [math.log((1 + len(readings)) / (1 + counts[gram])) + 1 for gram in kept]
        return replace(self, vocabulary=tuple(kept), idf=tuple(idf))

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        if not self.vocabulary:
            raise ValueError("This BagOfWords has no vocabulary yet: call fit with training texts first.")
        sparse = optional("scipy.sparse", "BagOfWords", package="scikit-learn", extra="feedback")
        columns: list[int] = []
        data: list[float] = []
        ends = [0]
        for reading in readings:
            own = Counter(self._column[gram] for gram in self._grams(reading) if gram in self._column)
            values = np.array([1.0 if self.weighting == "binary" else float(n) for n in own.values()])
            if self.weighting == "tfidf" and own:
                values *= [self.idf[column] for column in own]
                values /= np.sqrt(values @ values)
            columns.extend(own)
            data.extend(values.tolist())
            ends.append(len(columns))
        shape = (len(readings), len(self.vocabulary))
        return sparse.csr_matrix((np.array(data), np.array(columns, dtype=np.int32), np.array(ends)), shape=shape)

    @functools.cached_property
    def _column(self) -> dict[str, int]:
        return {gram: column for column, gram in enumerate(self.vocabulary)}

    def _grams(self, reading: Reading) -> Iterator[str]:
        for n in range(1, self.max_n + 1):
            yield from (" ".join(gram) for gram in ngrams(reading.words, n))


@dataclass(frozen=True)
class Embedding(FeatureGroup):
    """The meaning of the text as a vector of length 1, by a sentence encoder ([`~rlhf_recipes.rewards.
    Embedder`]). It knows the encoder's languages. Its numbers mean nothing one by one and are told as one feature.

    Args:
        model (`str`):
            The folder or Hub id of the encoder. It is not copied into a saved reward model.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of a text that are read; a longer text loses its end. Default: what the encoder was trained on.
        size (`int`, *optional*):
            Numbers in a vector, which `fit` finds out.
    """

    standardize: ClassVar[bool] = False
    opaque: ClassVar[bool] = True

    model: str
    batch_size: int = 32
    max_length: int | None = None
    size: int = 0

    @property
    def bounded(self) -> bool:
        return True

    @property
    def features(self) -> tuple[Feature, ...]:
        meaning = f"one of {self.size} numbers for the meaning of the text"
        return tuple(Feature(f"embedding[{index}]", meaning, "of a vector of length 1") for index in range(self.size))

    def fit(self, readings: Sequence[Reading]) -> "Embedding":
        return replace(self, size=self._embedder([readings[0].text]).shape[1])

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        vectors: Matrix = self._embedder([reading.text for reading in readings]).double().numpy()
        return vectors

    @property
    def _embedder(self) -> Any:
        return _load_embedder(self.model, self.batch_size, self.max_length)


@functools.lru_cache(maxsize=2)
def _load_embedder(model: str, batch_size: int, max_length: int | None) -> Any:
    from rlhf_recipes.modeling.embedder import Embedder  # the other features need no torch

    return Embedder(model, batch_size=batch_size, max_length=max_length)


NAMED: tuple[FeatureGroup, ...] = (
    Length(), Readability(), Variety(), Marks(), Sentiment(), Repetition(), PromptOverlap(),
)  # fmt: skip
GROUPS = (*map(type, NAMED), Keywords, BagOfWords, Embedding)


# --- All groups of a model -----------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureSet:
    """The features of a model, group after group.

    Args:
        groups (`Sequence[FeatureGroup]`, *optional*):
            Default: all of this module that need neither a list, nor a vocabulary, nor an encoder.
        completion_only (`bool`, *optional*, defaults to `False`):
            Whether features are of the completion alone. By default they are of prompt and completion as one text.

    Raises:
        `ValueError`: if there is no group, or two features have the same name.
    """

    groups: tuple[FeatureGroup, ...] = NAMED
    completion_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(map(make_group, self.groups)))
        if not self.groups:
            raise ValueError("A model needs one group of features at least.")
        names = Counter(feature.name for feature in self.features)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"Several features are named {', '.join(twice[:5])}; Keywords has a label to change.")

    @functools.cached_property
    def features(self) -> tuple[Feature, ...]:
        """One for each column, in order."""
        return tuple(feature for group in self.groups for feature in group.features)

    def fit(self, prompts: Sequence[Text], completions: Sequence[Text]) -> "FeatureSet":
        """Learn from training texts what has to be learned, such as a vocabulary."""
        readings = self.readings(prompts, completions)
        if not readings:
            raise ValueError("There are no texts to learn features from.")
        return replace(self, groups=tuple(group.fit(readings) for group in self.groups))

    def readings(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[Reading]:
        """Rows of text or messages, as the groups read them."""
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            start, text = prompt_and_completion(prompt, completion)
            rows.append(Reading(as_text(prompt), text, text if self.completion_only else start + text))
        return rows

    def blocks(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[Matrix]:
        """The numbers of each group. `[(N, F_group)]`

        Raises:
            `RewardError`: if a group gives NaN or infinity; it names the feature and the row.
        """
        readings = self.readings(prompts, completions)
        blocks = [group.matrix(readings) for group in self.groups]
        for group, block in zip(self.groups, blocks, strict=True):
            _check_finite(group, block, readings)
        return blocks

    def matrix(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Matrix:
        """The numbers of all groups, side by side; sparse where a group is and there are many columns. `(N, F)`"""
        return beside(self.blocks(prompts, completions))

    def to_json(self) -> dict[str, Any]:
        """Settings and what was learned, as JSON can hold them."""
        groups = [{"kind": _kind(group), **asdict(group)} for group in self.groups]
        return {"completion_only": self.completion_only, "groups": groups}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], trust: bool = False) -> "FeatureSet":
        """What `to_json` has written.

        Args:
            trust (`bool`, *optional*, defaults to `False`): Whether code that the file names, of groups that are not
                of this module, may be imported.
        """
        groups = []
        for entry in data["groups"]:
            kind = entry["kind"]
            if ":" in kind and not trust:
                raise ValueError(f"The features {kind!r} are code from elsewhere. Give trust=True if you know it.")
            groups.append(make_group({kind: {key: value for key, value in entry.items() if key != "kind"}}))
        return cls(tuple(groups), data["completion_only"])


def make_group(spec: FeatureGroup | str | Mapping[str, Any]) -> FeatureGroup:
    """A group by what a YAML file says: `Length`, or `{BagOfWords: {max_n: 2}}`, or `my_features.py:MyGroup`.

    Raises:
        `ValueError`: if there is no such group or setting, or one that is needed is missing.
    """
    if isinstance(spec, FeatureGroup):
        return spec
    entry: Mapping[str, Any] = {spec: {}} if isinstance(spec, str) else spec
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"A group of features is a name, or one name with its settings; given was {spec!r}.")
    ((name, settings),) = entry.items()
    known = {group.__name__: group for group in GROUPS}
    made: Any = find_function(name) if ":" in name else known.get(name)
    if made is None:
        near = difflib.get_close_matches(name, known, n=1)
        raise ValueError(
            f"There are no features {name!r}{f'; did you mean {near[0]!r}?' if near else ''}. There are "
            f"{', '.join(known)}, or file.py:Class."
        )
    settings = dict(settings or {})
    allowed = {item.name: item for item in fields(made)}
    unknown = [key for key in settings if key not in allowed]
    needed = [key for key, item in allowed.items() if item.default is MISSING and item.default_factory is MISSING]
    missing = [key for key in needed if key not in settings]
    if unknown or missing:
        what = f"no setting {', '.join(unknown)}" if unknown else f"to be given {', '.join(missing)}"
        raise ValueError(f"{name} has {what}. Its settings are {', '.join(allowed) or 'none'}.")
    group: FeatureGroup = made(**settings)
    return group


def beside(blocks: Sequence[Matrix]) -> Matrix:
    """Blocks side by side: a dense array, or a sparse one where a block is sparse and the columns are many."""
    if all(isinstance(block, np.ndarray) for block in blocks):
        return np.hstack(blocks)
    if sum(block.shape[1] for block in blocks) <= MAX_DENSE:
        return np.hstack([block if isinstance(block, np.ndarray) else block.toarray() for block in blocks])
    sparse = optional("scipy.sparse", "FeatureSet", package="scikit-learn", extra="feedback")
    return sparse.csr_matrix(sparse.hstack(blocks, format="csr"))


def _kind(group: FeatureGroup) -> str:
    cls = type(group)
    if cls in GROUPS:
        return cls.__name__
    module = sys.modules[cls.__module__]
    # A module that was made of a file (`find_function`) can be found by the file alone.
    where = module.__file__ if module.__name__.startswith("_rewards_in_") else module.__name__
    return f"{where}:{cls.__qualname__}"


def _check_finite(group: FeatureGroup, block: Matrix, readings: Sequence[Reading]) -> None:
    values = block if isinstance(block, np.ndarray) else block.data
    if np.isfinite(values).all():
        return
    dense = block if isinstance(block, np.ndarray) else block.toarray()
    row, column = np.argwhere(~np.isfinite(dense))[0]
    raise RewardError(
        f"The feature {group.features[column].name!r} is {dense[row, column]} for row {row} "
        f"({readings[row].text[:80]!r}). Features must be finite numbers."
    )
