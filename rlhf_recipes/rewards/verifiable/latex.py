"""Mathematics as models write it, made into the LaTeX that math-verify reads."""

import re

# Plain text and Unicode for what LaTeX has commands for.
COMMANDS = {
    "π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "±": r"\pm ",
    "−": "-", "–": "-", "°": r"^\circ ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "φ": r"\phi ",
    "ℝ": r"\mathbb{R}", "√": r"\sqrt ", "½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}",
}  # fmt: skip
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
FUNCTIONS = "sin|cos|tan|cot|sec|csc|arcsin|arccos|arctan|sinh|cosh|tanh|ln|log|exp"
GREEK = "pi|theta|alpha|beta|gamma|lambda|phi|omega|infty|sigma|mu"
MATH_NAMES = re.compile(rf"(?<![a-zA-Z])(?:{FUNCTIONS}|{GREEK}|sqrt|infinity|inf)(?![a-zA-Z])")
REWRITTEN = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|bigl?|bigr?|displaystyle|limits)(?![a-zA-Z])", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"(?<!\\)\\[,;:! ]|\\q?quad(?![a-zA-Z])|~", " "),
        (r"\\(?:text|mathrm|textrm)\s*\{\s*(?:or|and)\s*\}|(?<![\w\\])(?:or|and)(?!\w)", ","),
        (rf"\\(?:text|mathrm|operatorname\*?)\s*\{{\s*({FUNCTIONS}|{GREEK})\s*\}}", r"\\\1 "),
        (r"(?<![a-zA-Z\\])sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])sqrt\s*(\d+|[a-z])(?!\w)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])", r"\\infty "),
        (rf"(?<![a-zA-Z\\])({FUNCTIONS}|{GREEK})(?![a-zA-Z])", r"\\\1 "),
        (r"\*\*", "^"),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"(?<=[\w)}])\s*\*\s*(?=[\w(\\])", r" \\cdot "),
        (r"<=", r"\\le "),
        (r">=", r"\\ge "),
        (r"(?<![\d.,])(\d+)\s?\\frac\s*(\{\d+\}\s*\{\d+\}|\d\s?\d)", r"(\1+\\frac\2)"),  # a mixed number
        (r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}"),
    )
)

# Between two dollars that are no money: "$5 and $6" has a space before the second one, and a digit behind it.
MATHEMATICS = re.compile(
    r"\$\$(.+?)\$\$|\\\[(.+?)\\\]|\\\((.+?)\\\)|(?<![\\$])\$(?=\S)([^$\n]+?)(?<=[^\s\\])\$(?!\d)|\$(\s[^$\n]+?\s)\$(?!\d)",
    re.DOTALL,
)
IN_BASE = re.compile(r"([0-9A-Za-z]+)_\{?(\d+)\}?")
WORDS = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{4,}")


def parts_of(text: str) -> list[re.Match[str]]:
    """The mathematics between dollars or their like in a text."""
    return list(MATHEMATICS.finditer(text))


def inside(match: re.Match[str]) -> str:
    """What stands between the dollars."""
    return next(group for group in match.groups() if group is not None)


def to_latex(text: str) -> str | None:
    """An expression as LaTeX; `None` where it holds words, which are no product of their letters.

    >>> to_latex("2*sqrt(3)"), to_latex("5 apples")
    ('2 \\\\cdot \\\\sqrt{3}', None)
    """
    text = text.replace(r"\$", "").strip().strip("$").strip()
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda match: f"^{{{match.group().translate(RAISED)}}}", text)
    for character, command in COMMANDS.items():
        text = text.replace(character, command)
    for pattern, replacement in REWRITTEN:
        text = pattern.sub(replacement, text)
    text = text.strip(" \n.,;:")
    without_text = re.sub(r"\\(?:text\w*|mathrm|mbox|operatorname|begin|end|mathbb|mathbf)\s*\{[^{}]*\}", "", text)
    return None if not text or WORDS.search(without_text) else text


def bracket_kind(latex: str) -> str:
    """The brackets around all of an expression, `()` of a point, `{}` of a set, `(]` of an interval; else nothing."""
    text = latex.strip()
    text = text[2:] if text.startswith(r"\{") else text
    opening = "{" if latex.strip().startswith(r"\{") else text[:1]
    closing = "}" if latex.strip().endswith(r"\}") else latex.strip()[-1:]
    has_comma = "," in latex
    return opening + closing if has_comma and opening in "([{" and closing in ")]}" and opening and closing else ""
