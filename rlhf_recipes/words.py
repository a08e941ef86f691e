"""Words of any script, for rewards that count, compare or look up words.

Splitting at white space finds no words in Chinese, Japanese or Thai, and leaves a comma hanging on those of English.
"""

import functools
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

from rlhf_recipes.imports import optional

SacrebleuTokenizer = Literal["13a", "zh", "char"]

# Written without spaces between words. Han stands apart, because sacrebleu has a tokenizer for it.
WITHOUT_SPACES = (
    "Hiragana", "Katakana", "Bopomofo", "Yi", "Tangut", "Nushu", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan",
    "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Ahom", "Javanese", "Balinese",
)  # fmt: skip

# Signs that both kana share, such as the prolonged sound mark. (Their script extensions hold accents of Latin too.)
KANA_SIGNS = r"\u3031-\u3035\u303c\u3099\u309a\u30fc\uff70\uff9e\uff9f"

# Digits are left out: a number is one word in every script. The ideographic zero is a letter number (Nl).
LETTERS = r"[\p{L}\p{M}\p{Nl}]"
HAN = rf"[\p{{Han}}&&{LETTERS}]"
OTHERS = f"[[{KANA_SIGNS}" + "".join(rf"\p{{{script}}}" for script in WITHOUT_SPACES) + f"]&&{LETTERS}]"
GRAPHEME = rf"(?=[{HAN}{OTHERS}])\X"
RUN = rf"[[\p{{L}}\p{{M}}\p{{N}}]--[{HAN}{OTHERS}]]+"

# What joins the parts of one word: apostrophes, hyphens, the Catalan middle dot, Hebrew geresh and gershayim, and what
# is not seen (soft hyphen, joiners); between digits also what marks decimals, thousands and fractions.
JOINER = r"(?:['’＇\-‐‑－·׳״\u00ad\u200c\u200d\u2060]|(?<=\p{Nd})[.,．٫٬⁄](?=\p{Nd}))"
EMOJI = r"(?=[\p{Extended_Pictographic}\p{Regional_Indicator}--[©®™]]|[0-9#*]\ufe0f?\u20e3)\X"
SAME = str.maketrans({"’": "'", "‐": "-"})


def words(text: str, lower: bool = True, punctuation: bool = False) -> list[str]:
    """The words of a text in any script, in order.

    A word is a run of letters, marks and digits. An apostrophe or a hyphen inside belongs to it (`don't`,
    `well-known`), and so does the point or comma of a number (`3.14`). Scripts that put no space between words (Han,
    kana, Thai, Lao, Khmer, Myanmar, Tibetan and others) give one token for each character that a reader sees, marks
    included (a grapheme cluster, UAX #29). So does emoji. Korean has spaces, and gives words.

    Words that look the same are the same: they are given in Unicode's form NFKC, without invisible characters, and
    with one apostrophe and one hyphen. NFC would keep apart what only the keyboard or the font makes different
    (full-width `ＡＢＣ`, half-width `ｶﾞ`, the ligature in `ﬁlm`), and a policy could hide a repetition behind it. The
    price: `x²` is `x2`. Where words begin and end is decided before, for NFKC takes the Thai sara am apart.

    Args:
        text (`str`):
            Any text. One without words, such as an empty one, gives an empty list.
        lower (`bool`, *optional*, defaults to `True`):
            Whether upper and lower case are the same (Unicode's case folding, so that `Straße` is `strasse`).
        punctuation (`bool`, *optional*, defaults to `False`):
            Whether each other sign, of punctuation or a symbol, is a token too.

    Example:

    >>> words("Don't panic: it's 3.14!")
    ["don't", 'panic', "it's", '3.14']
    >>> words("静かな film 👍🏽")
    ['静', 'か', 'な', 'film', '👍🏽']
    """
    found, invisible = _patterns(punctuation)
    ascii_only = text.isascii()
    joined = "\n".join(found.findall(text))
    if not ascii_only:
        joined = invisible.sub("", unicodedata.normalize("NFKC", joined)).translate(SAME)
    if lower:
        joined = joined.casefold() if ascii_only else unicodedata.normalize("NFKC", joined.casefold())
    return [word for word in joined.split("\n") if word]


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of `n` tokens, in order; none if there are fewer."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def is_blank(text: str) -> bool:
    """Whether there is nothing to see: no letter, mark, number, punctuation or symbol."""
    return _visible().search(text) is None


def sacrebleu_tokenizer(references: Sequence[str]) -> SacrebleuTokenizer:
    """The tokenizer of sacrebleu that fits the references: one that it has without downloads or MeCab.

    `"char"` where characters of scripts without spaces, other than Han, are at least as many as all words with spaces
    around them (Japanese, Thai, Lao, Khmer, Myanmar, ...); else `"zh"` where there is any Han, which leaves words of
    other scripts whole; else `"13a"`, sacrebleu's default.

    It looks at the references alone. If the completion were looked at, it could choose how it is measured.
    """
    han, others = _spaceless()
    text = "\n".join(references)
    if text.isascii() or not (han.search(text) or others.search(text)):
        return "13a"
    tokens = words(text)
    spaceless = sum(1 for token in tokens if others.match(token))
    spaced = sum(1 for token in tokens if not others.match(token) and not han.match(token))
    if spaceless and spaceless >= spaced:
        return "char"
    return "zh" if han.search(text) else "13a"


@functools.cache
def _patterns(punctuation: bool) -> tuple[Any, Any]:
    regex = optional("regex", "words")
    kinds = [EMOJI, rf"{RUN}(?:{JOINER}{RUN})*", GRAPHEME]
    if punctuation:
        kinds.append(r"[\p{P}\p{S}]")
    return regex.compile("(?V1)" + "|".join(kinds)), regex.compile(r"\p{Default_Ignorable_Code_Point}+")


@functools.cache
def _visible() -> Any:
    return optional("regex", "words").compile(r"(?V1)[[\p{L}\p{M}\p{N}\p{P}\p{S}]--\p{Default_Ignorable_Code_Point}]")


@functools.cache
def _spaceless() -> tuple[Any, Any]:
    regex = optional("regex", "words")
    return regex.compile(f"(?V1){HAN}"), regex.compile(f"(?V1){OTHERS}")


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams of all texts, divided by all word n-grams (arXiv 1510.03055). Words are split on spaces.

    An n-gram does not cross from one text into the next. Without any n-gram it is 0.
    """
    ngrams = []
    for text in texts:
        words = text.lower().split()
        ngrams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def language_probability(
    text: str, language: str, among: Sequence[str] | None = None, min_letters: int = 20
) -> float | None:
    """How probable it is that a text is in a language, from 0 to 1, as py3langid judges it.

    Args:
        text (`str`), language (`str`): The text, and an ISO 639-1 code.
        among (`Sequence[str]`, *optional*): The languages that come into question. Default: all that it knows.
        min_letters (`int`, *optional*, defaults to 20): A text with fewer letters gives `None`.
    """
    if sum(character.isalpha() for character in text) < min_letters:
        return None
    identifier = language_identifier(None if among is None else tuple(among))
    probability: float = dict(identifier.rank(text))[language]
    return probability


@functools.cache
def language_identifier(among: tuple[str, ...] | None = None) -> Any:
    """The identifier of py3langid for some languages, or for all; `labels` are their codes."""
    # Its model takes most of a second to read, and is read only where it is used.
    langid = optional("py3langid.langid", "Language", package="py3langid")
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)
    identifier.set_languages(among)
    return identifier
