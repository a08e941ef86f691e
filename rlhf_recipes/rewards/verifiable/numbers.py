r"""Numbers as people, models and LaTeX write them: `1,234.5`, `1 3/4`, `\frac{5}{9}`, `1.2 \times 10^{3}`, `12 cm^2`.

A number is read as one only where that is all there is. The last digits of a root, an interval, an equation or a list
are no answer, and a reading that finds some there pays for answers that are wrong.
"""

import functools
import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

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
from rlhf_recipes.rewards.verifiable.units import read_unit

MOST_DIGITS = 400  # beyond what a float holds; and a power of ten is not written out before it is known to be small
MOST_NUMBERS = 20  # of one sentence that are looked at, from its end
SPACES = "\u00a0\u202f\u2009"
CURRENCIES = "$€£¥₹"
DIGITS = (
    r"(?:(?:\d{1,3}(?:[%(group)s]\d{3})+(?!\d)|\d{1,2}(?:%(lakh)s\d{2})+%(lakh)s\d{3}(?!\d)|\d+)"
    r"(?:%(decimal)s\d+)?|%(decimal)s\d+)(?:[eE][-+]?\d+(?![\w.]))?"
)
TEN = r"10\s?(?:\^|\*\*)\s?[({]?\s?(?P<%s>[-+]?\d{1,4})\s?[)}]?"

# LaTeX and typography that says nothing of its own, and what else is written in several ways.
SIMPLE = r"[-+]?[\d.,]+"
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
        (r"(?<!\d )\b(?:minus|negative)\s+(?=\$?\d)", "-"),
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
EQUATED = re.compile(r"=[^\d=]*$")
EXPRESSION_AFTER = re.compile(
    r"\s*(?:\+|(?:plus|minus|times|over|divided by)\s+[-\d\\]|[-+*/×÷^_<>]\s*[\w(\\]|\\|[)\]}]\s*\^)"
)
NAME = re.compile(r"\s*(?:\\?[A-Za-z]+'*|[^\W\d_]+)(?:_\{?\w+\}?)?(?:\s*\([^()=]*\))?(?:\s+[^\W\d_]+){0,6}\s*")
TOKEN = re.compile(r"\\?[^\W\d_]+|\d[\d.,]*|\S")
OPERATION = re.compile(r"[-+*/^×÷\d\\]")
ARITHMETIC = re.compile(r"[\s\d.,+\-*/×÷^(){}%$€£¥]*")

# After a number: more of an expression, another number of a list, or a share of something.
GOES_ON = re.compile(
    r"\s*(?:[-+*/×÷^_=<>≤≥≠&|√π∞±:]|\\|!\S|\(|\[|,\s*[-+(]?[\d$\\]|and\b.*\d|to\s+[-+]?\d|times\b|plus\b|minus\b|over\b"
    r"|divided\b|more\b|less\b|percentage\b|of\s+\d|through\b)",
    re.IGNORECASE,
)

# Before a number: an operator, an opening of something else, or a function.
GOES_BEFORE = re.compile(
    r"(?:[-+*/×÷^_<>≤≥≠&|√±]|\\[a-zA-Z]+|(?:\b(?:sqrt|log|ln|exp|sin|cos|tan|cot)))\s*[\[({]*\s*$|[\[{]\s*$|\d\s*[-–—:]\s*$"
)
LISTED = re.compile(
    r"\s*(?:[^\W\d_]+\s+){0,2}?(?:(?:[,;/|&、，–—-]|\b(?:or|and|to|through|oder|und|bis|ou|et|à|y|o|или|и)\b|或|和|或者|और)\s*)+"
    r"(?:(?:perhaps|maybe|possibly|also|even)\s+)*\(?\s*[$€£¥]?\s*$",
    re.IGNORECASE,
)
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
            rf"(?P<sign>(?<![\w)\]])[-+]\s?)?(?:(?P<currency>[{CURRENCIES}])\s?(?P<minus>-)?)?(?<![A-Za-z0-9_])(?:"
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
        if statement is None or re.search(r"\d\s?!", statement.text):
            return None
        return self.exact(statement.text) or self._in_several_ways(statement.text)

    def answer(self, statement: Statement) -> Number | None:
        """The number that a completion states."""
        text = normalized(statement.text)
        if statement.marked:
            number = self._stated(text)
            if number is not None or is_denied(text, "") or not re.match(r"\s*[^\W\d_]{2,}", text) or is_choice(text):
                return number
        return self._told(text)

    def _stated(self, text: str) -> Number | None:
        """The number of a statement that is nothing but the answer, or begins with it."""
        whole = self.exact(text) or self._in_several_ways(text)
        if whole is not None:
            return whole
        text = ASIDE.sub("", without_explanation(text))
        if is_choice(text):
            return None
        if "=" in text:
            return self._of_equation(text)
        return self._leading(text)

    def _in_several_ways(self, text: str) -> Number | None:
        """A number that is written in more than one way, 1.5 or 3/2."""
        first, *others = (self.exact(part) for part in re.split(r"\bor\b|=|≈|\\approx", text))
        return first if first and all(number and same(first, number) for number in others) else None

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
        if read is None:
            return None
        number, end = read
        rest = text[end:]
        if GOES_ON.match(rest) or is_denied("", rest):
            return None
        other = self.pattern.search(rest)
        return None if other and (is_choice(rest) or LISTED.fullmatch(rest[: other.start()])) else number

    def _told(self, text: str) -> Number | None:
        """The last number that prose asserts, unless it stands in a row with others or in an expression."""
        text = BULLET.sub("", text)
        whole = self.exact(text) or self._in_several_ways(text)
        if whole is not None:
            return whole
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
            sentence = without_aside if self.pattern.search(without_aside) else sentence
            matches = list(self.pattern.finditer(sentence))[-MOST_NUMBERS:]
            while matches and is_denied(sentence[: matches[-1].start()], sentence[matches[-1].end() :]):
                matches.pop()
            if matches:
                return None if is_alternative(sentence) and len(told) > 1 else self._last_of(sentence, matches)
        return None

    def _last_of(self, sentence: str, matches: list[re.Match[str]]) -> Number | None:
        match = matches[-1]
        read = self._read(sentence, match)
        before, after = sentence[: match.start()], sentence[read[1] if read else match.end() :]
        parts = sentence.split("=")
        if len(parts) > 1 and (EQUATED.search(before) or ARITHMETIC.fullmatch(_bare(parts[-1]))):
            return self._of_equation(sentence)
        if read is None or GOES_BEFORE.search(before[-NEAR:]) or EXPRESSION_AFTER.match(after):
            return None
        between = sentence[matches[-2].end() : match.start()] if len(matches) > 1 else ""
        denied = is_denied(sentence[: matches[-2].start()], f"{between} ") if between else False
        return None if not denied and (LISTED.fullmatch(between) or is_choice(between)) else read[0]

    def _read(self, text: str, match: re.Match[str]) -> tuple[Number, int] | None:
        """What a match is as a number, and where it and its unit end."""
        value = self._value(match)
        if value is None:
            return None
        end, unit = match.end(), None
        rest = text[end:]
        if not match["percent"]:
            spaces = len(rest) - len(rest.lstrip(" \t" + SPACES))
            glued = spaces == 0 and text[end - 1 : end] not in ")}"
            read = (
                read_unit(rest[spaces:].lstrip("-"), glued) if re.match(r"\s*-?[^\W\d_]|\s*[°¢]", rest) else (None, 0)
            )
            if read is None:
                return None
            hyphen = rest[spaces:].startswith("-")
            unit, end = read[0], end + (spaces + hyphen + read[1] if read[1] else 0)
        if match["currency"]:
            unit, _ = read_unit(match["currency"], glued=False) or (None, 0)
            unit = (
                unit or {"$": "dollar", "€": "euro", "£": "british pound", "¥": "yen", "₹": "rupee"}[match["currency"]]
            )
        if re.match(r"\s?(?:[\^_√π∞]|\\(?!\\)|!(?=[\w(]))", text[end:]):
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


def is_expression(side: str) -> bool:
    """Whether what stands before an equal sign is an expression in variables: `3x + 2y` and `x^2`, not `x` or `f(3)`.

    Words end it: of "the cost of 3 books" and "so she pays 3*4" nothing is one.
    """
    if NAME.fullmatch(side):
        return False
    tail = []
    for token in reversed(TOKEN.findall(side)):
        if len(token) > 1 and token.isalpha():
            break
        tail.append(token)
    return any(token.isalpha() for token in tail) and any(OPERATION.match(token) for token in tail)


def _bare(text: str) -> str:
    """A text without what may stand around all of it: spaces, a full stop, a pair of parentheses or braces."""
    text = text.strip(ENDS.replace(".", "")).rstrip(ENDS)
    while len(text) > 1 and (text[0], text[-1]) in (("(", ")"), ("{", "}"), ("[", "]")) and "," not in text:
        inside = text[1:-1].strip()
        if any(bracket in inside for bracket in "()[]{}"):
            break
        text = inside
    return text
