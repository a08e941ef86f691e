"""Rewards that compare a completion with a text of the dataset: BLEU, chrF, ROUGE, exact match, F1 of the words.

All values are from 0 to 1, and the same text gets 1 in any language, however short. What they have in common:

- A column, `"reference"` unless said otherwise, holds a text for each row, messages, or a list of those, of which the
  most similar one counts (for BLEU all at once, as it is defined).
- A row without a reference (`None`, an empty list, or nothing to see in it) gets `None`.
- An empty completion, or one with nothing to see, gets 0 if there is a reference: it is the worst answer.
- A reference of nothing but punctuation is compared sign by sign: `...` gets 1 for `...`, and 0 for `!!!`.

They reward the wording of a reference, not its meaning.
"""

import functools
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.contract.checks import check_choice, check_setting
from rlhf_recipes.rewards.rules import Rule, column_values
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import is_blank, sacrebleu_tokenizer, words

BleuTokenizer = Literal["auto", "13a", "intl", "zh", "char", "none"]
RougeVariant = Literal["rouge1", "rouge2", "rougeL"]

# rouge-score fills a table of reference words by completion words in Python: a million entries take 0.15 s.
LARGEST_TABLE = 1_000_000


@dataclass(frozen=True)
class ReferenceReward(Rule):
    """A reward of the completion and its references: a subclass defines `compare(text, references) -> float`.

    Args:
        column (`str`, *optional*, defaults to `"reference"`):
            The dataset's column with the references.
    """

    column: str = "reference"

    def compare(self, text: str, references: Sequence[str]) -> float:
        """The reward of a completion; neither it nor any of the references, one or more, is empty."""
        raise NotImplementedError

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        wanted = references_of(kwargs, self.column, self.__name__)
        pairs = zip(map(as_text, completions), wanted, strict=True)
        return [None if not own else 0.0 if is_blank(text) else self.compare(text, own) for text, own in pairs]


@dataclass(frozen=True)
class BLEU(ReferenceReward):
    """sacrebleu's sentence BLEU of the completion, from 0 to 1.

    `BP * exp(mean_n log p_n)`, where `p_n` is the share of the completion's n-grams that are in a reference, counted
    at most as often as there, and `BP = exp(1 - r / c)` for a completion of `c` tokens that is shorter than the
    reference closest in length, of `r` tokens (Papineni et al. 2002, P02-1040; Post 2018, arXiv 1804.08771). The mean
    goes over `n` from 1 to `max_order`, without those longer than the completion (effective order), so that short
    texts count. A `p_n` without matches is smoothed to `1 / (2^k * count)` at the k-th such `n` (`exp`, method 3 of
    Chen and Cherry 2014, W14-3346). No match at all is 0.

    Any language. Both texts are put into Unicode's form NFC, which sacrebleu leaves to the caller.

    Args:
        tokenize (`str`, *optional*, defaults to `"auto"`):
            sacrebleu's tokenizer: `"13a"`, `"intl"`, `"zh"`, `"char"` or `"none"`. `"auto"` chooses by the references
            alone, so that no completion chooses its own metric: `"char"` for Japanese, Thai and others without spaces,
            `"zh"` for Chinese, else `"13a"` (see `sacrebleu_tokenizer` in `rlhf_recipes.words`).
        max_order (`int`, *optional*, defaults to 4):
            Number of tokens in the longest n-grams.
        lowercase (`bool`, *optional*, defaults to `False`):
            Whether upper and lower case are the same.
    """

    tokenize: BleuTokenizer = "auto"
    max_order: int = 4
    lowercase: bool = False

    def __post_init__(self) -> None:
        check_choice("BLEU", "tokenize", self.tokenize, get_args(BleuTokenizer))
        check_setting("BLEU", "max_order", self.max_order, least=1, whole=True)
        optional("sacrebleu", "BLEU")

    def compare(self, text: str, references: Sequence[str]) -> float:
        tokenize = sacrebleu_tokenizer(references) if self.tokenize == "auto" else self.tokenize
        bleu = _bleu(tokenize, self.lowercase, self.max_order)
        return as_share(bleu.sentence_score(_nfc(text), [_nfc(reference) for reference in references]).score)


def corpus_bleu(texts: Sequence[Text], references: Sequence[Any], tokenize: BleuTokenizer = "auto") -> float:
    """sacrebleu's corpus BLEU, from 0 to 1: counts are summed over all texts first. For evaluation, not a reward.

    Args:
        texts (`Sequence`):
            Completions, as texts or messages.
        references (`Sequence`):
            For each of them what the column of [`BLEU`] holds. Texts without a reference are left out.
        tokenize (`str`, *optional*, defaults to `"auto"`):
            As in [`BLEU`]; `"auto"` chooses for each text by its own references, so that one Chinese sign in a corpus
            changes nothing for the rest of it.

    Raises:
        `ValueError`: if there are not as many of both, or no text has a reference.

    The value is that of `sacrebleu.corpus_bleu` (exponential smoothing) but where no text has four tokens, for which
    that gives 0; here orders without any n-gram are left out (effective order), so that equal texts get 1.
    """
    if len(texts) != len(references):
        raise ValueError(f"There are {len(texts)} texts and {len(references)} references; give one for each text.")
    check_choice("corpus_bleu", "tokenize", tokenize, get_args(BleuTokenizer))
    read = [as_references(value, f"Reference {row}") for row, value in enumerate(references)]
    pairs = [(_nfc(as_text(text)), [_nfc(one) for one in own]) for text, own in zip(texts, read, strict=True) if own]
    if not pairs:
        raise ValueError(f"None of the {len(texts)} texts has a reference, so there is nothing to compare.")
    pairs = [_tokenized(text, own, tokenize) for text, own in pairs]
    # sacrebleu wants first all first references, then all second ones, and so on, with None where there is none.
    most = max(len(own) for _, own in pairs)
    streams = [[own[index] if index < len(own) else None for _, own in pairs] for index in range(most)]
    return as_share(_bleu("none", False, 4).corpus_score([text for text, _ in pairs], streams).score)


def _tokenized(text: str, references: Sequence[str], tokenize: BleuTokenizer) -> tuple[str, list[str]]:
    """A text and its references with a space between the tokens, as sacrebleu cuts them."""
    tokenizer = _bleu(sacrebleu_tokenizer(references) if tokenize == "auto" else tokenize, False, 4).tokenizer
    return tokenizer(text), [tokenizer(reference) for reference in references]


@dataclass(frozen=True)
class ChrF(ReferenceReward):
    """sacrebleu's chrF of the completion, from 0 to 1; chrF++ with `word_order=2`.

    `(1 + beta^2) P R / (beta^2 P + R)`, with precision and recall of character n-grams, averaged over n from 1 to
    `char_order` (Popović 2015, W15-3049), and of word n-grams up to `word_order` (Popović 2017, W17-4770), over those
    orders of which both texts have n-grams. White space is left out; of several references the most similar counts.

    Any language, without a tokenizer: a wrong ending costs little, where BLEU sees another word. Words are what stands
    between white space, so `word_order` means little in scripts without. Both texts are put into form NFC.

    Args:
        char_order (`int`, *optional*, defaults to 6):
            Characters in the longest n-grams.
        word_order (`int`, *optional*, defaults to 0):
            Words in the longest word n-grams; 0 for none.
        beta (`int`, *optional*, defaults to 2):
            How many times more recall counts than precision.
        lowercase (`bool`, *optional*, defaults to `False`):
            Whether upper and lower case are the same.
    """

    char_order: int = 6
    word_order: int = 0
    beta: int = 2
    lowercase: bool = False

    def __post_init__(self) -> None:
        check_setting("ChrF", "char_order", self.char_order, least=1, whole=True)
        check_setting("ChrF", "word_order", self.word_order, least=0, whole=True)
        check_setting("ChrF", "beta", self.beta, least=1, whole=True)
        optional("sacrebleu", "ChrF")

    def compare(self, text: str, references: Sequence[str]) -> float:
        chrf = _chrf(self.char_order, self.word_order, self.beta, self.lowercase)
        return as_share(chrf.sentence_score(_nfc(text), [_nfc(reference) for reference in references]).score)


@dataclass(frozen=True)
class ROUGE(ReferenceReward):
    """rouge-score's F-measure of the completion, from 0 to 1; of several references the most similar counts.

    `2 P R / (P + R)`, where precision and recall are the shares of words in common (`"rouge1"`), of pairs of words
    (`"rouge2"`), or of the longest common subsequence of words (`"rougeL"`; Lin 2004, W04-1013).

    Any language: rouge-score is given the words of `rlhf_recipes.words`, one character each where words have no
    spaces. Its own tokenizer keeps a-z and 0-9 alone, and finds nothing in common between two equal texts in Chinese.
    For English the values are the same but for words with an apostrophe or a hyphen, and numbers with a point, a comma
    or a slash in them, which it splits: to it `4.50` shares a word with `4`, and here it does not. A reference of one
    word has no pairs, and `"rouge2"` is `"rouge1"` for it. Texts of more than a million pairs of words are compared by
    a faster algorithm with the same result.

    Args:
        variant (`"rouge1"`, `"rouge2"` or `"rougeL"`, *optional*, defaults to `"rougeL"`):
            What is counted.
        stem (`bool`, *optional*, defaults to `False`):
            Whether to compare English words by their stems (Porter's). Words with other letters than a-z stay.
    """

    variant: RougeVariant = "rougeL"
    stem: bool = False

    def __post_init__(self) -> None:
        check_choice("ROUGE", "variant", self.variant, get_args(RougeVariant))
        optional("rouge_score", "ROUGE", package="rouge-score")

    def compare(self, text: str, references: Sequence[str]) -> float:
        return max(self._f_measure(text, reference) for reference in references)

    def _f_measure(self, text: str, reference: str) -> float:
        tokenizer = RougeTokenizer(self.stem)
        if not tokenizer.tokenize(reference):
            tokenizer = RougeTokenizer(self.stem, punctuation=True)
        wanted, found = tokenizer.tokenize(reference), tokenizer.tokenize(text)
        if self.variant == "rougeL" and len(wanted) * len(found) > LARGEST_TABLE:
            return 2 * common_subsequence(wanted, found) / (len(wanted) + len(found))
        variant = "rouge1" if self.variant == "rouge2" and len(wanted) == 1 else self.variant
        return float(_rouge(variant, tokenizer).score(reference, text)[variant].fmeasure)


@dataclass(frozen=True)
class RougeTokenizer:
    """The words of a text, in the form that rouge-score asks for a tokenizer."""

    stem: bool = False
    punctuation: bool = False

    @functools.lru_cache(maxsize=256)  # noqa: B019  an equal tokenizer shares it, and a prompt's reference is read once
    def tokenize(self, text: str) -> tuple[str, ...]:
        tokens = words(text, punctuation=self.punctuation)
        return tuple(_stem(token) for token in tokens) if self.stem else tuple(tokens)


@dataclass(frozen=True)
class AnswerReward(ReferenceReward):
    """A reward of a short answer, normalized as in SQuAD's evaluation; a subclass defines `agreement`."""

    ignore_case: bool = True
    ignore_punctuation: bool = True
    articles: Sequence[str] = ("a", "an", "the")

    def __post_init__(self) -> None:
        if isinstance(self.articles, str):
            raise ValueError(
                f"{type(self).__name__} has articles {self.articles!r}, a text; give a list of words, or an empty one."
            )

    def agreement(self, found: Sequence[str], wanted: Sequence[str]) -> float:
        """The reward of the words of a completion against those of a reference, which has one or more."""
        raise NotImplementedError

    def compare(self, text: str, references: Sequence[str]) -> float:
        return max(self._agreement(text, reference) for reference in references)

    def _agreement(self, text: str, reference: str) -> float:
        wanted = self._words(reference)
        if wanted:
            return self.agreement(self._words(text), wanted)
        as_they_stand = functools.partial(words, lower=self.ignore_case, punctuation=True)
        return self.agreement(as_they_stand(text), as_they_stand(reference))

    def _words(self, text: str) -> list[str]:
        tokens = words(_without_punctuation(text) if self.ignore_punctuation else text, self.ignore_case, True)
        articles = {article.casefold() for article in self.articles}
        return [token for token in tokens if token.casefold() not in articles]


@dataclass(frozen=True)
class ExactMatch(AnswerReward):
    """1 if the completion is one of the references, else 0, after SQuAD's normalization.

    As in SQuAD's evaluation (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1) case, punctuation, English articles
    and white space do not count, here in any script. Signs of ASCII vanish as they do there, so that `-5` is `5` and
    `3.14` is `314`: set `ignore_punctuation=False` where that matters. Other punctuation parts words. A reference
    of which nothing is left (`?`, `the`) is compared as it stands.

    The whole completion is compared. Where the answer is a part of it, cut it out first.

    Args:
        ignore_case (`bool`, *optional*, defaults to `True`):
            Whether upper and lower case are the same.
        ignore_punctuation (`bool`, *optional*, defaults to `True`):
            Whether punctuation is dropped.
        articles (`Sequence[str]`, *optional*, defaults to `("a", "an", "the")`):
            Words that are dropped; an empty list for none. These are English: name others for other languages.
    """

    def agreement(self, found: Sequence[str], wanted: Sequence[str]) -> float:
        return float(list(found) == list(wanted))


@dataclass(frozen=True)
class TokenF1(AnswerReward):
    """F1 of the words that the completion and a reference share, from 0 to 1; the best over the references.

    `2 s / (c + r)`, for `c` words of the completion, `r` of the reference, and `s` of them shared, each counted as
    often as both have it (Rajpurkar et al. 2016, arXiv 1606.05250, section 6.1). Words are normalized as in
    [`ExactMatch`]; in scripts without spaces each character is a word. Order does not count.
    """

    def agreement(self, found: Sequence[str], wanted: Sequence[str]) -> float:
        shared = (Counter(found) & Counter(wanted)).total()
        return 2 * shared / (len(found) + len(wanted))


def references_of(columns: Mapping[str, Any], column: str, reward: str) -> list[list[str]]:
    """The references of each row, out of the column that a reward was told to read."""
    values = column_values(columns, column, reward)
    return [as_references(value, f"Row {row} of the column {column!r}") for row, value in enumerate(values)]


def as_references(value: Any, where: str) -> list[str]:
    """The references of one row, without those with nothing to see. `where` is what an error calls the row."""
    if value is None:
        return []
    if isinstance(value, str):
        return [] if is_blank(value) else [value]
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(part, Mapping) for part in value):
            return as_references(as_text(list(value)), where)
        return [reference for part in value for reference in as_references(part, where)]
    raise ValueError(
        f"{where} holds {value!r}, of type {type(value).__name__}. A reference is a text, messages, or a list of "
        "those; turn anything else into text first."
    )


def as_share(percent: float) -> float:
    """A score of sacrebleu, from 0 to 100, as a number from 0 to 1. It gives 100.00000000000004 to equal texts."""
    return min(1.0, percent / 100)


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, with one bit for each token of `first` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, token in enumerate(first):
        places[token] = places.get(token, 0) | 1 << place
    every = (1 << len(first)) - 1
    state = every  # a bit is cleared where one more token of `first` is matched
    for token in second:
        matched = state & places.get(token, 0)
        state = ((state + matched) | (state - matched)) & every
    return len(first) - state.bit_count()


def _nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _without_punctuation(text: str) -> str:
    return _other_punctuation().sub(" ", _nfc(text).translate(_ASCII_PUNCTUATION))


# Apostrophes and hyphens vanish as those of ASCII do, or `don’t` would be two words and `don't` one.
_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’‐‑")


@functools.cache
def _other_punctuation() -> Any:
    return optional("regex", "ExactMatch").compile(r"\p{P}+")


@functools.cache
def _bleu(tokenize: str, lowercase: bool, max_order: int) -> Any:
    metrics = optional("sacrebleu.metrics", "BLEU")
    return metrics.BLEU(
        tokenize=tokenize, lowercase=lowercase, max_ngram_order=max_order, effective_order=True, force=True
    )


@functools.cache
def _chrf(char_order: int, word_order: int, beta: int, lowercase: bool) -> Any:
    metrics = optional("sacrebleu.metrics", "ChrF")
    return metrics.CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)


@functools.cache
def _rouge(variant: str, tokenizer: RougeTokenizer) -> Any:
    scorer = optional("rouge_score.rouge_scorer", "ROUGE", package="rouge-score")
    return scorer.RougeScorer([variant], tokenizer=tokenizer)


@functools.cache
def _stemmer() -> Any:
    return optional("nltk.stem.porter", "ROUGE", package="rouge-score").PorterStemmer()


@functools.lru_cache(maxsize=100_000)
def _stem(word: str) -> str:
    # rouge-score leaves words of up to three letters as they are too.
    return str(_stemmer().stem(word)) if len(word) > 3 and word.isascii() and word.isalpha() else word
