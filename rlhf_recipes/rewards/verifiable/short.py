"""A letter, a yes or no, or a few words as the answer, in whatever prose a model puts around them."""

import re
import unicodedata
from dataclasses import dataclass
from typing import ClassVar

from rlhf_recipes.rewards.verifiable.answer import Reference, VerifiableAnswer
from rlhf_recipes.rewards.verifiable.numbers import normalized, number_reader
from rlhf_recipes.rewards.verifiable.statement import (
    Statement,
    is_choice,
    is_denied,
    sentences,
    stated,
    without_explanation,
)

MOST_WORDS = 12
MOST_LETTERS = 20  # of one sentence that are looked at, from its end
YES_WORDS = "yes yeah yep true correct ja oui sí si sim да 是 对 对的 正确 はい 예 네 نعم हाँ हां wahr vrai"
NO_WORDS = "no nope false incorrect nein non não нет 否 不是 不对 错误 いいえ 아니요 아니오 لا नहीं falsch faux"
YES, NO = frozenset(YES_WORDS.split()), frozenset(NO_WORDS.split())
ARTICLES = re.compile(r"^(?:the|a|an|der|die|das|ein|eine|le|la|les|l|un|une|el|los|las|il|lo|o|os|as)\s+(?=\S)")
OPTION = r"(?:option|choice|answer|letter|alternative)"

# Letters of a multiple choice as they are pointed out: (C), **C**, C) or C. before a text, option C.
POINTED = re.compile(
    rf"\(([A-Z])\)|(?<![\w'’])(?i:{OPTION})\s+\(?([A-Z])\b|(?:^|(?<=[\s:]))([A-Z])"
    r"(?=\s*[).:,]\s|\s*[).:,]?\s*$|\s+(?:or|and|is (?:the )?(?:right|correct)|because|since)\b)"
)
LETTER = re.compile(r"\W*(?:(?i:option|choice|letter|answer)\s+)?\(?([A-Za-z])\)?\W*")
LEADING_LETTER = re.compile(
    rf"\W*(?:(?i:{OPTION})\s+)?(?:\(([A-Z])\)|([A-Z])(?=[).:,]|\s*$|\s+(?:because|since|as|is)\b))"
)
FORMULA = re.compile(r"[\\^=<>{}\[\]|+*_√π∞≤≥]")
SAYS = r"(?:is|are|was|were|be|called|named|namely|means|equals?|:|=|ist|est|es|è|é)"


@dataclass(frozen=True)
class ShortAnswer(VerifiableAnswer):
    r"""1 if the completion gives the short text of the reference as its answer, else 0.

    The reference says of which kind it is:

    - one letter, `C`, `(C)` or `\text{(C)}`: the option that the completion chooses, as in "The answer is (C).",
      "C) Paris" or `\boxed{C}`. Several of them ("A or C") are none;
    - yes or no (true or false, in a dozen languages): the one that a sentence begins with, "Yes, because ...", or that
      is the answer;
    - up to 12 words: what the completion states, without case, articles, accents of width and punctuation: as a whole,
      after "the answer is", in a box or a tag, or at an end of its last sentence ("It is called the derivative.").

    What a completion states is read as in [`NumberAnswer`]; what it denies, and one thing or another, pay nothing. A
    row whose reference is longer, or a number or a formula, gets `None`.

    Args:
        column (`str`, *optional*, defaults to `"answer"`):
            The dataset column with the reference.
        where (`str`, *optional*, defaults to `"anywhere"`):
            Where in the completion the answer is; see [`NumberAnswer`]. `"last"` is its prose.
    """

    reads: ClassVar[str] = f"letters or texts of {MOST_WORDS} words or fewer"

    def compare(self, completion: str, reference: Reference) -> float | None:
        marked = stated(str(reference))
        text = plain(marked.text if marked and marked.marked else str(reference))
        if not is_text(str(reference)) or len(text.split()) > MOST_WORDS:
            return None
        statement = stated(completion, self.where)
        return float(statement is not None and states(statement, str(reference), text))


def states(statement: Statement, reference: str, text: str) -> bool:
    """Whether a statement gives this short text, `text` being the reference's plain form."""
    letter = letter_of(reference)
    said = normalized(statement.text)
    if letter is not None:
        return _letter(said, statement.marked) == letter
    if text in YES | NO:
        return _verdict(said) == (text in YES)
    return _says(said, text, statement.marked)


def plain(text: str) -> str:
    """A text for comparison: case folded, without LaTeX around words, punctuation, leading articles."""
    folded = unicodedata.normalize("NFKC", normalized(text)).casefold().replace("’", "'")
    words = re.sub(r"[^\w\s.+/%'-]|(?<!\d)\.|\.(?!\d)|(?<!\w)[-']|'(?!\w)|_", " ", folded)
    words = re.sub(r"(?:です|でした|입니다|예요)\s*$", "", words)
    return ARTICLES.sub("", " ".join(words.split()))


def is_text(reference: str) -> bool:
    """Whether a reference is a letter or words, with digits among them or not, and no number and no formula."""
    text = plain(reference)
    if letter_of(reference):
        return True
    if number_reader().exact(reference) is not None:
        return False
    return re.search(r"[^\W\d_]{2,}|[^\W\d_\x00-\u024f]", text) is not None and not FORMULA.search(
        normalized(reference)
    )


def letter_of(reference: str) -> str | None:
    """The option that a reference names, as a capital letter; `None` if it is no single letter."""
    match = LETTER.fullmatch(normalized(reference).strip())
    return match[1].upper() if match else None


def _letter(text: str, marked: bool) -> str | None:
    """The option that a text chooses."""
    alone = LETTER.fullmatch(text.strip())
    if alone:
        return alone[1].upper()
    if marked:
        leading = LEADING_LETTER.match(without_explanation(text))
        if leading is None and is_denied(text, ""):
            return None
        text = without_explanation(text)
    for sentence in reversed(sentences(text)):
        pointed = list(POINTED.finditer(sentence))[-MOST_LETTERS:]
        found = [m for m in pointed if not is_denied(sentence[: m.start()], sentence[m.end() :])]
        letters = {m[1] or m[2] or m[3] for m in found}
        if letters:
            return letters.pop() if len(letters) == 1 else None
    return None


def _verdict(text: str) -> bool | None:
    """Whether a text says yes or no; `None` if neither, or both."""
    told = sentences(text)
    verdicts = {_of_words(plain(sentence).split(), sentence) for sentence in told} - {None}
    return verdicts.pop() if len(verdicts) == 1 else None


def _of_words(words: list[str], sentence: str) -> bool | None:
    if not words or re.search(
        r"\b(?:yes|true)\b.{0,12}\b(?:or|and)\b.{0,12}\b(?:no|false)\b", sentence, re.IGNORECASE
    ):
        return None
    first, last = words[0], words[-1]
    if first in YES | NO and (len(words) == 1 or re.match(r"\W*\w+\s*[,.;:!。，、—-]", sentence)):
        return first in YES
    if last in YES | NO and len(words) > 1 and words[-2] in ("is", "be", "ist", "est", "es", "è", "é", "are"):
        denied = is_denied(sentence[: sentence.lower().rfind(last)], "")
        return None if denied else last in YES
    return None


def _says(said: str, text: str, marked: bool) -> bool:
    if plain(said) == text:
        return True
    said = without_explanation(said) if marked else said
    told = sentences(said)
    if not told or plain(told[0]) == text:
        return bool(told)
    sentence = told[-1]
    words = plain(sentence)
    position = f" {words} ".find(f" {text} ")
    if position < 0 or is_choice(sentence):
        return False
    before, after = words[:position], words[position + len(text) :]
    if is_denied(before, after):
        return False
    if marked and not before.strip():
        return re.match(r"\s*$|\s*(?:of|in|for|and not|not)\b", after) is not None
    ends = (
        re.match(r"\s*(?:$|and not\b|not\b|rather\b)", after) is not None
        and re.search(rf"(?:\b{SAYS}|'s)\s*(?:the|a|an)?\s*$", before) is not None
    )
    begins = not before.strip() and re.match(rf"\s*{SAYS}\b", after) is not None
    return ends or begins
