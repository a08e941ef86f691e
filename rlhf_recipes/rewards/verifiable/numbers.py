r"""Numbers as people, models and LaTeX write them: `1,234.5`, `1 3/4`, `\frac{5}{9}`, `1.2 \times 10^{3}`, `12 cm^2`.

A number is read as one only where that is all there is. The last digits of a root, an interval, an equation or a list
are no answer, and a reading that finds some there pays for answers that are wrong.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

from rlhf_recipes.rewards.verifiable.expressions import (
    EXPRESSION_AFTER,
    GOES_ON,
    LEADS,
    LISTED,
    is_expression,
    is_given,
    is_operand,
    place_of,
    without_condition,
)
from rlhf_recipes.rewards.verifiable.statement import (
    NEAR,
    Statement,
    is_alternative,
    is_choice,
    is_denied,
    sentences,
    stated,
    without_explanation,
)
from rlhf_recipes.rewards.verifiable.units import UNIT_OF, read_unit

MOST_DIGITS = 400  # beyond what a float holds; and a power of ten is not written out before it is known to be small
MOST_NUMBERS = 20  # of one sentence that are looked at, from its end
SPACES = "\u00a0\u202f\u2009"
CURRENCIES = "$€£¥₹"
MONEY = frozenset(("dollar", "cent", "euro", "british pound", "yen", "rupee", "yuan"))
DIGITS = (
    r"(?:(?:\d{1,3}(?:[%(group)s]\d{3})+(?!\d)|\d{1,2}(?:%(lakh)s\d{2})+%(lakh)s\d{3}(?!\d)|\d+)"
    r"(?:%(decimal)s\d+)?|%(decimal)s\d+)(?:[eE][-+]?\d+(?![\w.]))?"
)
TEN = r"10\s?(?:\^|\*\*)\s?[({]?\s?(?P<%s>[-+]?\d{1,4})\s?[)}]?"

SIMPLE = r"[-+]?[\d.,]+"

# A minus in words that has nothing to its left to take from.
MINUS = (
    r"(^|[=:(,$]\s?|\b(?:is|are|was|be|equals?|gives?|gets?|becomes?|to|of|than|and|or|not|answer)\s+)"
    r"minus\s+(?=\$?\d)"
)

# LaTeX and typography that says nothing of its own, and what else is written in several ways.
REWRITTEN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\$", "\ue000"),  # money, while $ alone is the end of mathematics
        (r"(?<!\\)\$\$?([^$\n]*)\$\$?", r"\1"),
        ("\ue000", "$"),
        (r"\\[()\[\]]|\\(?:left|right|displaystyle|bigl?|bigr?|limits)(?![a-zA-Z])", ""),
        (
            r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|boldsymbol|bm|hbox)\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (r"\\!|\{,\}", lambda match: "," if match.group() == "{,}" else ""),
        (r"(?<=\d)(?:\\[,;:]|~|\\ )(?=\d{3}(?!\d))", "\u2009"),
        (r"\\[,;: ]|\\q?quad\b|~", " "),
        (r"\\%", "%"),
        (r"\bnegative\s+(?=\$?\d)", "-"),
        (MINUS, r"\1-"),
        (r"(?<=[\w)}])[⁻⁰¹²³⁴-⁹]+", lambda match: "^" + unicodedata.normalize("NFKC", match.group())),
        (r"\s?(?:\^\s?\{?\s?\\circ\s?\}?|\\degrees?\b|°(?![CF])|\^\s?\{?°\}?)", " degree "),
        (r"\\(?:times|cdot|ast)(?![a-zA-Z])|[×·∙⋅✕]", "×"),
        (r"\\div(?![a-zA-Z])", "÷"),
        (r"\\(?:approx|simeq|cong)(?![a-zA-Z])|[≈≃]", "="),
        (r"[\u2212\ufe63\uff0d]|(?<![\w)])[\u2012\u2013](?=\d)", "-"),
        (r"[dt]?frac(?![a-z])", "frac"),
        (rf"\\c?frac\s*\{{\s*({SIMPLE})\s*\}}\s*\{{\s*({SIMPLE})\s*\}}", r" \1/\2 "),
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r" \1/\2 "),
        (rf"\\frac\s*\{{({SIMPLE})\}}\s*(\d)(?!\d)|\\frac\s*(\d)\s*\{{({SIMPLE})\}}", r" \1\3/\2\4 "),
        (r"(\d?)([¼-¾⅐-⅞])", lambda match: f"{match[1]} {unicodedata.normalize('NFKC', match[2])}".replace("⁄", "/")),
        (r"-\s+(?=\d+/\d)", "-"),
        (rf"(?<![\\\w^_}}])\{{({SIMPLE})\}}", r"\1"),
        (r"٫", "."),
        (r"٬", ","),
    )
)
ENDS = " \t\n.,;:!。，；：！、"
FILLER = re.compile(
    r"(?:\s|[:：~]|\b(?:approximately|approx\.?|about|around|roughly|exactly|equal to|just|only|therefore|thus|simply"
    r"|the number|the value|equals|now|then|a total of|indeed|ca\.|etwa|environ|des|de|около|约|大约|是|为|為|ist|est"
    r"|es|هو)"
    r"(?:\s+|(?=[^\w])|(?<=[约是为為])))*",
    re.IGNORECASE,
)

# An exclamation mark that no sentence can end in; of all of a text, or of what is enclosed, any is one.
FACTORIAL = re.compile(r"(?<=[\w)}\]])\s?!(?=\s?(?:[$\\\w(^×÷+*/<>.-]|,\s?\d|=(?<!!=)))")
FACTORIAL_ALONE = re.compile(r"(?<=[\w)}\]])\s?!(?!=)")
BEFORE_UNIT = re.compile(rf"([ \t{SPACES}]*)-?(?=[^\W\d_]|[°¢])")
NOT_ALONE = re.compile(r"\s?(?:[\^_√π∞]|\\(?!\\)|!(?=[\w(]))")
EQUATED = re.compile(r"=[^\d=]*$")
ARITHMETIC = re.compile(r"[\s\d.,+\-*/×÷^(){}%$€£¥]*")

ENUMERATED = re.compile(r"^[ \t]*\d+[.)][ \t]+(?=\S)", re.MULTILINE)
REMARK = re.compile(
    r"(?:I|we)(?:['’]ve| have| then| also)? "
    r"(?:checked|double|verified|confirmed|used|tried|tested|repeated|spent|took|am\b)"
    r"|(?:this|that|it) took\b|hope\b|let me know\b|I['’]m\b",
    re.IGNORECASE,
)
BULLET = re.compile(r"^\s*[-*•]\s+(?=.*[^\W\d_])", re.MULTILINE)
ASIDE = re.compile(r"(?<=[\w%°$])\s*\((?!\s*[A-Za-z]\s*\))[^()]*\)")


@dataclass(frozen=True)
class Number:
    """A number that was read.

    Attributes:
        value (`Fraction`): Its value; of `50%`, 50.
        percent (`bool`): Whether a percent sign follows.
        unit (`str`, *optional*): Its unit of measure, by its common name.
        decimals (`int`, *optional*): How many digits stand behind the point, where it is written so.
    """

    value: Fraction
    percent: bool = False
    unit: str | None = None
    decimals: int | None = None


class NumberReader:
    """Reads numbers of one notation.

    Args:
        decimal_comma (`bool`): Whether texts write `1.234,5`.
    """

    def __init__(self, decimal_comma: bool = False) -> None:
        self.group, self.decimal = (".", ",") if decimal_comma else (",", ".")
        digits = DIGITS % {
            "group": re.escape(self.group) + SPACES + "'’",
            "decimal": re.escape(self.decimal),
            "lakh": re.escape(self.group),
        }
        self.pattern = re.compile(
            rf"(?P<sign>(?<![\w)\]])[-+]\s?)?(?:(?P<currency>[{CURRENCIES}])\s?(?P<minus>-)?)?(?<![A-Za-z0-9_])(?<!\d[.,])(?:"
            rf"{TEN % 'alone'}|(?P<number>{digits})"
            rf"(?:(?:\s|(?=\())\(?(?P<over>\d+)\s?/\s?(?P<under>\d+)\)?(?![\d/])"
            rf"|\s?/\s?(?P<divisor>-?{digits})(?![\d/]))?"
            rf"(?:\s?[×*x]\s?{TEN % 'power'})?)(?P<percent>\s?(?:%|％|percent\b|per cent\b))?"
        )

    def exact(self, text: str) -> Number | None:
        """A text as a number, with its unit where it has one; `None` where there is anything else in it."""
        text = _bare(BULLET.sub("", normalized(text)))
        if re.fullmatch(r"[-+]?\d{1,3}( \d{3})+", text):
            text = text.replace(" ", "")
        match = self.pattern.match(text)
        read = self._read(text, match) if match else None
        if match is None or read is None or is_denied("", text[match.end() :]):
            return None
        number, end = read
        return number if not text[end:].strip(ENDS + ")") and text[end:].count(")") <= text.count("(") else None

    def reference(self, text: str) -> Number | None:
        r"""A reference as a number: all of it, or what a box, `####` or "the answer is" marks in it.

        Two ways to write the same one, "1.5 or 3/2", are one.
        """
        statement = stated(text)
        return None if statement is None or re.search(r"\d\s?!", statement.text) else self._whole(statement.text)

    def answer(self, statement: Statement) -> Number | None:
        """The number that a completion states."""
        alone = statement.enclosed or not (statement.marked or re.search(r"[^\W\d_]", statement.text))
        text = normalized((FACTORIAL_ALONE if alone else FACTORIAL).sub(r"\\factorial ", statement.text))
        number = self._whole(text)
        if number is None and statement.marked:
            number = self._begun(text)
            if is_denied(text, "") or not re.match(r"\s*[^\W\d_]{2,}", text) or is_choice(text):
                return number
        return self._told(text) if number is None else number

    def _whole(self, text: str) -> Number | None:
        """A text that is a number, or the same one in several ways, 1.5 or 3/2."""
        whole = self.exact(text)
        if whole is not None:
            return whole
        first, *others = (self.exact(part) for part in re.split(r"\bor\b|=|≈|\\approx", text))
        return first if first and all(number and same(first, number) for number in others) else None

    def _begun(self, text: str) -> Number | None:
        """The number of a marked statement that begins with the answer."""
        text = without_condition(ASIDE.sub("", without_explanation(text)))
        if is_choice(text):
            return None
        return self._of_equation(text) if "=" in text else self._leading(text)

    def _of_equation(self, text: str) -> Number | None:
        """The value that a chain of equal signs comes to: of `x = 18*4 = 72`, and not of `3x + 2y = 7`."""
        *parts, last = text.split("=")
        if any(map(is_expression, parts)):
            return None
        value = self._leading(last)
        if value is None and ARITHMETIC.fullmatch(_bare(last)):  # 72 = 18*4
            value = next((number for number in map(self.exact, reversed(parts)) if number is not None), None)
        return value

    def _leading(self, text: str) -> Number | None:
        start = FILLER.match(text)
        text = text[start.end() if start else 0 :]
        match = self.pattern.match(text)
        read = self._read(text, match) if match else None
        if match is None or read is None:
            return None
        number, end = read
        rest = text[end:]
        if GOES_ON.match(rest) or is_denied("", rest):
            return None
        other = self.pattern.search(text, end)
        if other is None:
            return number
        if is_choice(rest) or LISTED.fullmatch(text[end : other.start()]) or self._is_one_of_two(text, match, other):
            return None
        place = place_of("is ", text[match.end() : other.start()], text[other.end() :])
        return None if place == "unclear" else number

    def _told(self, text: str) -> Number | None:
        """The last number that prose asserts, unless it stands in a row with others or in an expression."""
        text = BULLET.sub("", text)
        if len(ENUMERATED.findall(text)) > 1:
            text = ENUMERATED.sub("", text)
        told = sentences(text)
        told = [sentence for sentence in told if not REMARK.match(sentence)] or told
        first = self.exact(told[0]) if told else None
        if first is not None and not (ENUMERATED.match(text) and "=" in text):  # 72. And then whatever
            others = {number.value for number in map(self.exact, told[1:]) if number is not None}
            return None if others - {first.value} or any(map(is_alternative, told[1:])) else first
        for sentence in reversed(told):
            without_aside = ASIDE.sub("", sentence)
            sentence = without_condition(without_aside if self.pattern.search(without_aside) else sentence)
            matches = list(self.pattern.finditer(sentence))[-MOST_NUMBERS:]
            while matches and is_denied(sentence[: matches[-1].start()], sentence[matches[-1].end() :]):
                matches.pop()
            if matches:
                return None if is_alternative(sentence) and len(told) > 1 else self._last_of(sentence, matches)
        return None

    def _last_of(self, sentence: str, matches: list[re.Match[str]]) -> Number | None:
        *earlier, match = matches
        read = self._read(sentence, match)
        parts = sentence.split("=")
        if len(parts) > 1 and (EQUATED.search(sentence[: match.start()]) or ARITHMETIC.fullmatch(_bare(parts[-1]))):
            return self._of_equation(sentence)
        if read is None or EXPRESSION_AFTER.match(sentence, read[1]):
            return None
        for former in reversed(earlier):
            before, between = sentence[: former.start()][-NEAR:], sentence[former.end() : match.start()]
            if is_denied(before, f"{between} "):
                break
            if LISTED.fullmatch(between) or is_choice(between) or self._is_one_of_two(sentence, former, match):
                return None
            known = self._read(sentence, former)
            money = known is not None and known[0].unit in MONEY, read[0].unit in MONEY
            place = place_of(before, between, sentence[match.end() :], money)
            if place == "free":
                break
            if place == "unclear" or known is None:
                return None
            match, read = former, known
        before = sentence[: match.start()][-NEAR:]
        return None if is_operand(before) or (match is not matches[-1] and is_given(before)) else read[0]

    def _is_one_of_two(self, text: str, match: re.Match[str], other: re.Match[str]) -> bool:
        """Whether two numbers make one: 20 000, 5 feet 6 inches, 20 dollars - 3 dollars."""
        between = text[match.end() : other.start()].strip()
        if not re.fullmatch(r"[^\W\d_]*", between) or LEADS.search(between):
            return False
        units = [read[0].unit if read else None for read in (self._read(text, match), self._read(text, other))]
        return not between or other["sign"] is not None or None not in units

    def _read(self, text: str, match: re.Match[str]) -> tuple[Number, int] | None:
        """What a match is as a number, and where it and its unit end."""
        value, unit, end = self._value(match), None, match.end()
        unit_begins = BEFORE_UNIT.match(text, end)
        if unit_begins and not match["percent"]:
            glued = not unit_begins[1] and text[end - 1] not in ")}"
            read = read_unit(text[unit_begins.end() :], glued)
            if read is None:
                return None
            unit, length = read
            end = unit_begins.end() + length if length else end
        if match["currency"]:
            unit = UNIT_OF[match["currency"]]
        if value is None or NOT_ALONE.match(text, end):
            return None
        decimals = (match["number"] or "").lower().partition("e")[0].rpartition(self.decimal)
        plain = not match["divisor"] and not match["power"] and not match["over"]
        places = len(decimals[2]) if decimals[1] and plain else None
        return Number(value, bool(match["percent"]), unit, places), end

    def _value(self, match: re.Match[str]) -> Fraction | None:
        sign = -1 if ((match["sign"] or "").startswith("-")) != bool(match["minus"]) else 1
        if match["alone"]:
            power = int(match["alone"])
            return sign * Fraction(10) ** power if abs(power) < MOST_DIGITS else None
        value = self._fraction(match["number"])
        if value is None:
            return None
        if match["over"]:
            value = value + Fraction(int(match["over"]), int(match["under"])) if int(match["under"]) else None
        elif match["divisor"]:
            divisor = self._fraction(match["divisor"])
            value = value / divisor if divisor else None
        if value is None or (match["power"] and abs(int(match["power"])) >= MOST_DIGITS):
            return None
        return sign * value * Fraction(10) ** int(match["power"] or 0)

    def _fraction(self, digits: str) -> Fraction | None:
        ignored = str.maketrans(self.decimal, ".", self.group + SPACES + "'’")
        plain = digits.translate(ignored).lower()
        mantissa, _, exponent = plain.partition("e")
        if len(mantissa) > MOST_DIGITS or (exponent and abs(int(exponent[:9])) >= MOST_DIGITS):
            return None
        return Fraction(plain)


@functools.cache
def number_reader(decimal_comma: bool = False) -> NumberReader:
    """The reader of numbers of one notation."""
    return NumberReader(decimal_comma)


def same(one: Number, other: Number) -> bool:
    """Whether two readings are the same number, however written."""
    return one.value == other.value and one.percent == other.percent


def normalized(text: str) -> str:
    """A text with the digits of every script as ASCII, and without LaTeX that says nothing of its own."""
    text = "".join(str(unicodedata.decimal(c)) if c.isdecimal() and c > "9" else c for c in text)
    for pattern, replacement in REWRITTEN:
        text = pattern.sub(replacement, text)
    return text


def _bare(text: str) -> str:
    """A text without what may stand around all of it: spaces, a full stop, a pair of parentheses or braces."""
    text = text.strip(ENDS.replace(".", "")).rstrip(ENDS)
    while len(text) > 1 and (text[0], text[-1]) in (("(", ")"), ("{", "}"), ("[", "]")) and "," not in text:
        inside = text[1:-1].strip()
        if any(bracket in inside for bracket in "()[]{}"):
            break
        text = inside
    return text
