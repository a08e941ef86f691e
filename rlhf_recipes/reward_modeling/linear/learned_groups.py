"""Groups of features that learn from training texts: a vocabulary, or the size of an encoder's vectors."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import numpy as np

from rlhf_recipes.reward_modeling.linear.groups import Feature, FeatureGroup, Matrix, Reading
from rlhf_recipes.words import ngrams


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
            Keep those that most training texts have. `None` keeps all.
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
        from sklearn.feature_extraction.text import TfidfTransformer

        counter = self._counter(binary=True, min_df=self.min_texts, max_features=self.max_features)
        try:
            there = counter.fit_transform(readings)
        except ValueError:  # nothing is left of the vocabulary
            raise ValueError(
                f"BagOfWords finds nothing that {self.min_texts} or more of the {len(readings)} training texts have. "
                "Lower min_texts."
            ) from None
        idf = TfidfTransformer().fit(there).idf_
        return replace(self, vocabulary=tuple(counter.get_feature_names_out().tolist()), idf=tuple(idf.tolist()))

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        from sklearn.preprocessing import normalize

        if not self.vocabulary:
            raise ValueError("This BagOfWords has no vocabulary yet: call fit with training texts first.")
        counts = self._fitted_counter.transform(readings)
        return normalize(counts.multiply(self.idf).tocsr()) if self.weighting == "tfidf" else counts

    @functools.cached_property
    def _fitted_counter(self) -> Any:
        return self._counter(binary=self.weighting == "binary", vocabulary=self.vocabulary)

    def _counter(self, **settings: Any) -> Any:
        from sklearn.feature_extraction.text import CountVectorizer  # half a second, which the other groups spare

        return CountVectorizer(analyzer=self._grams, dtype=np.float64, **settings)

    def _grams(self, reading: Reading) -> list[str]:
        return [" ".join(gram) for n in range(1, self.max_n + 1) for gram in ngrams(reading.words, n)]


@dataclass(frozen=True)
class Vectors(FeatureGroup):
    """Numbers of an encoder, which mean nothing one by one and are told as one feature.

    A subclass has a field `size`, how many there are, which `fit` finds out, and defines [`vectors`].
    """

    standardize: ClassVar[bool] = False
    opaque: ClassVar[bool] = True

    @property
    def bounded(self) -> bool:
        return True

    def fit(self, readings: Sequence[Reading]) -> "Vectors":
        return replace(self, size=self.vectors(readings[:1]).shape[1])  # type: ignore[call-arg]

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        return self.vectors(readings).double().numpy()

    def vectors(self, readings: Sequence[Reading]) -> Any:
        """The vector of each text, a tensor of torch. `(N, size)`"""
        raise NotImplementedError


@dataclass(frozen=True)
class Embedding(Vectors):
    """The meaning of the text as a vector of length 1, by a sentence encoder ([`~rlhf_recipes.modeling.embedder.
    Embedder`]). It knows the encoder's languages.

    Args:
        model (`str`):
            The folder or Hub id of the encoder. It is not copied into a saved reward model.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of a text that are read; a longer text loses its end. Default: what the encoder was trained on.
    """

    model: str
    batch_size: int = 32
    max_length: int | None = None
    size: int = 0

    @property
    def features(self) -> tuple[Feature, ...]:
        meaning = f"one of {self.size} numbers for the meaning of the text"
        return tuple(Feature(f"embedding[{index}]", meaning, "of a vector of length 1") for index in range(self.size))

    def vectors(self, readings: Sequence[Reading]) -> Any:
        return _load_embedder(self.model, self.batch_size, self.max_length)([reading.text for reading in readings])


@functools.lru_cache(maxsize=2)
def _load_embedder(model: str, batch_size: int, max_length: int | None) -> Any:
    from rlhf_recipes.modeling.embedder import Embedder  # the other features need no torch

    return Embedder(model, batch_size=batch_size, max_length=max_length)
