"""Mathematics as the answer: roots, fractions, sets, intervals, matrices, equations, by symbolic equality."""

import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

from rlhf_recipes.imports import optional
from rlhf_recipes.rewards.contract.checks import check_positive
from rlhf_recipes.rewards.verifiable.answer import Reference, VerifiableAnswer
from rlhf_recipes.rewards.verifiable.equality import are_equal, number_of
from rlhf_recipes.rewards.verifiable.expressions import is_expression
from rlhf_recipes.rewards.verifiable.latex import IN_BASE, MATH_NAMES, bracket_kind, inside, parts_of, to_latex
from rlhf_recipes.rewards.verifiable.numbers import number_reader
from rlhf_recipes.rewards.verifiable.prover import prover
from rlhf_recipes.rewards.verifiable.short import NO, YES, is_text, letter_of, plain, states
from rlhf_recipes.rewards.verifiable.statement import (
    SEPARATORS,
    Statement,
    is_choice,
    is_denied,
    sentences,
    stated,
    without_explanation,
)
from rlhf_recipes.texts import Text

logger = logging.getLogger(__name__)
MOST_CHARACTERS = 1000
WORD = re.compile(r"\\text|\b[A-Z][a-z]{2,}|\b(?:odd|[a-zA-Z]{4,})")
ENDS = re.compile(r".*(?:\b(?:is|are|equals?|gives?|get|becomes?|be)\b|[:：])", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class MathAnswer(VerifiableAnswer):
    r"""1 if the mathematics that the completion gives as its answer equals the reference, else 0.

    Numbers are compared as [`NumberAnswer`] does, words and letters (`\text{(C)}`, `\text{Tuesday}`) as
    [`ShortAnswer`] does, and everything else symbolically, by [math-verify](https://github.com/huggingface/Math-Verify)
    and sympy: `2\sqrt{3}` is `\sqrt{12}`, `\{1,2\}` is `\{2,1\}`, `x = 5` is `5`. A point is no set and no interval
    that is open elsewhere, and a number in another base (`40_9`) is another number. Decimals are compared to 6
    places.

    What a completion states is read as in [`NumberAnswer`]. A completion without an answer, or with several where the
    reference is one, gets 0. A row whose reference math-verify cannot read gets `None`.

    An expression can be such that its comparison never ends, like a tower of powers. It runs in a process of its own,
    which is ended at the limit and started again. A completion that is not compared by then gets 0; a row whose
    reference alone takes so long gets `None`. How many these are, is logged as `<name>/timed_out`, and said once.

    Args:
        column (`str`, *optional*, defaults to `"answer"`):
            The dataset column with the reference: LaTeX or plain text, with or without dollars or a box; a number.
        where (`str`, *optional*, defaults to `"anywhere"`):
            Where in the completion the answer is; see [`NumberAnswer`].
        timeout (`float`, *optional*, defaults to 5.0):
            Seconds of processor time for one comparison, so that a busy machine changes no value.

    Raises:
        `ImportError`: if math-verify is not installed (`pip install 'rlhf-recipes[math]'`).
        `RewardError`: if a reference is no text and no finite number; the row is named.
    """

    timeout: float = 5.0

    reads: ClassVar[str] = "mathematics that math-verify reads"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("MathAnswer", "timeout", self.timeout, "seconds")
        optional("math_verify", "MathAnswer", package="math-verify", extra="math")

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        before = prover().late
        values = super().__call__(completions, **kwargs)
        late = prover().late - before
        if late:
            _say_once(self.__name__, self.timeout)
        if late and kwargs.get("log_metric") is not None:
            kwargs["log_metric"](f"{self.__name__}/timed_out", float(late))
        return values

    def compare(self, completion: str, reference: Reference) -> float | None:
        statement = stated(completion, self.where)
        number = number_of(reference)
        if number is not None:
            given = None if statement is None else number_reader().answer(statement)
            if given is not None:
                return float(are_equal(given, number))
            wanted = as_latex(number.value)
        else:
            text = marked_text(str(reference))
            if is_words(text):
                return float(statement is not None and states(statement, text, plain(text)))
            wanted = to_latex(text) or ""
            if not 0 < len(wanted) <= MOST_CHARACTERS or not prover().can_read(wanted, self.timeout):
                return None
        answer = None if statement is None else expression_of(statement)
        if answer is None or len(answer) > MOST_CHARACTERS or (number is not None and ":" in answer):
            return 0.0
        sides = [answer] if "=" in wanted else _sides(answer)
        return float(
            all(_may_be_equal(wanted, side) and prover().are_equal(wanted, side, self.timeout) for side in sides)
        )


def as_latex(value: Fraction) -> str:
    """An exact number in LaTeX."""
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}" if value.denominator > 1 else str(value.numerator)


def marked_text(reference: str) -> str:
    """What a reference marks as the answer, or all of it; without the dollars around it."""
    statement = stated(reference)
    text = statement.text if statement is not None and statement.marked else reference
    parts = parts_of(text)
    if len(parts) != 1:
        return text
    around = text.replace(parts[0].group(), "").strip(" .")
    return inside(parts[0]) if not around or re.fullmatch(r"(?:[^\W\d_]+\s*){1,3}", around) else text


def is_words(reference: str) -> bool:
    """Whether a reference is a letter or words, and no mathematics: `\text{(C)}`, `odd`, `Evelyn`, not `cot x`."""
    if letter_of(reference):
        return True
    if not is_text(reference) or re.search(r"\d", reference) or MATH_NAMES.search(reference):
        return False
    text = plain(reference)
    return text in YES | NO or not text.isascii() or WORD.search(reference) is not None


def expression_of(statement: Statement) -> str | None:
    """The LaTeX of what a completion states, several of them as a list; `None` where there is no mathematics."""
    text = statement.text
    if not statement.marked:
        whole = to_latex(text) if len(text) < 200 and "\n" not in text.strip() and not parts_of(text) else None
        told = sentences(text)
        if whole is None and not told:
            return None
        text = text if whole is not None else next((s for s in reversed(told) if parts_of(s)), told[-1])
    if parts_of(text):
        return _between_dollars(text, statement.marked)
    if is_denied(text, "") or (not statement.marked and _is_denied_anywhere(text)):
        return None
    last = ENDS.match(text)
    for candidate in (text, without_explanation(text), text[last.end() :] if last else ""):
        latex = to_latex(candidate)
        if latex is not None:
            return latex
    return None


def _between_dollars(text: str, marked: bool) -> str | None:
    text = without_explanation(text) if marked and parts_of(without_explanation(text)) else text
    parts = [part for part in parts_of(text) if not is_denied(text[: part.start()], text[part.end() :])]
    if not parts:
        return None
    kept = [parts[-1]]
    for former in reversed(parts[:-1]):
        between = text[former.end() : kept[0].start()]
        if not (marked or SEPARATORS.fullmatch(between) or is_choice(between)):
            break
        kept.insert(0, former)
    return to_latex(", ".join(inside(part) for part in kept))


def _is_denied_anywhere(text: str) -> bool:
    return any(is_denied(text[: match.start()], text[match.end() :]) for match in re.finditer(r"\S+", text))


def _sides(answer: str) -> list[str]:
    """What has to equal the reference: of `x = 5` the whole, of `2x = 10` each side, since it says nothing of 10."""
    sides = answer.split("=")
    return sides if any(map(is_expression, sides[:-1])) else [answer]


def _may_be_equal(wanted: str, answer: str) -> bool:
    """Whether neither brackets nor the base of a number tell two expressions apart, which the library overlooks."""
    kinds = {bracket_kind(wanted), bracket_kind(answer)} - {""}
    based = IN_BASE.fullmatch(wanted), IN_BASE.fullmatch(answer)
    if based[0] or based[1]:
        digits = [match[1] if match else text for match, text in zip(based, (wanted, answer), strict=True)]
        bases = {match[2] for match in based if match}
        return based[0] is not None and digits[0] == digits[1] and len(bases) == 1
    return len(kinds) < 2


@functools.cache
def _say_once(name: str, timeout: float) -> None:
    logger.warning(
        "%s: a comparison did not end within %g seconds of processor time, and its process was ended. A completion "
        "that cannot be compared in time gets 0; their number is logged as %s/timed_out. This is said once.",
        *(name, timeout, name),
    )
