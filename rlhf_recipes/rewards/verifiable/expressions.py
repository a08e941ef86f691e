r"""What makes of a number a part of something else: operators, functions, bounds and circumstances.

"8 times 9", "half of 9", "less than 9" and `9^2` end in a 9 or begin with one, and none of them is 9. Nor is the 3 of
"72 dollars in 3 days" what that sentence states.
"""

import re
from typing import Literal

FRACTIONS = r"(?:hal(?:f|ves)|thirds?|quarters?|(?:four|fif|six|seven|eigh|nin|ten)ths?)"
FUNCTIONS = (
    "power|root|square|cube|log(?:arithm)?|sine?|cosine|tangent|reciprocal|inverse|factorial|percent|multiple|factor|"
    f"divisor|digit|double|triple|{FRACTIONS}"
)

# Operators in words that take another number, in English and elsewhere, and what is complete behind its number.
OPERATOR = r"(?:times|plus|minus|over|take away|(?:multiplied|divided) by|mod(?:ulo)?)"
ELSEWHERE = (
    r"(?:\b(?:mal|geteilt durch|fois|divisé par|por|dividido (?:por|entre)|per|diviso|vezes|умножить на|разделить на|"
    r"плюс|минус)\b|乘以|乘上|除以|加上|减去|減去|かける|掛ける|わる|割る|たす|足す|ひく|引く)"
)
OPERATED = (
    rf"(?:raised to|to the (?:power|(?:\d+(?:st|nd|rd|th)|second|{FRACTIONS})(?: power)?)"
    rf"|and (?:a|one|two|three|\d)[\s/-]+(?:{FRACTIONS}|\d))"
)

# Behind a number that is marked as the answer, or stands at the beginning of it: more of an expression, another number
# of a list, or a share of something.
GOES_ON = re.compile(
    rf"\s*(?:[-+*/×÷^_=<>≤≥≠&|√π∞±:]|\\|!\S|\(|\[|,\s*[-+(]?[\d$\\]|and\b.*\d|to\s+[-+]?\d|(?:{OPERATOR}|{OPERATED})\b"
    rf"|{ELSEWHERE}\s*\d|of\s+\d|more\b|less\b|percentage\b|through\b|versus\b|vs\b)",
    re.IGNORECASE,
)

# Behind the last number of a sentence.
EXPRESSION_AFTER = re.compile(
    rf"\s*(?:\+|[-+*/×÷^_<>]\s*[\w(\\]|\\|[)\]}}]\s*\^|[.,]\d|{OPERATOR}\s+[-\d\\]|{OPERATED}\b"
    r"|(?:times|plus|minus|(?:multiplied|divided) by)\s+"
    r"(?:[b-z]|the|one|two|three|four|five|six|seven|eight|nine|ten)\b)",
    re.IGNORECASE,
)

# Before a number, in signs and in words: an operator, a function, a bound, or the opening of something else.
SIGN_BEFORE = re.compile(
    r"(?:[-+*/×÷^_<>≤≥≠&|√±⌊⌈]|\\[a-zA-Z]+|(?:\b(?:sqrt|log|ln|exp|sin|cos|tan|cot))|[a-zA-Z](?=\())\s*[\[({]*\s*$"
    rf"|[\[{{]\s*$|\)\s*\(\s*$|\d\s*(?:[-–—:]|\bx|{ELSEWHERE})\s*$"
)
WORD_BEFORE = re.compile(
    rf"(?:\b(?:{OPERATOR}|modulus|choose|to the(?: power(?: of)?)?|raised to|less|(?:added|subtracted) \w+|"
    r"twice|doubles?|triples?|halves?|thrice|versus|vs\.?|above|below|under|beyond|exceed(?:s|ing)?|out of|as \w+ as|"
    rf"remainder|(?<!no more )(?<!no less )(?<!no fewer )than|(?:{FUNCTIONS})s?(?: base \d+)? of|"
    r"(?:square|cube|cubic) roots?|(?:multipl|divid)\w*\s[^,;=]*\d[^,;=]*\bby|"
    r"(?:subtract|deduct)\w*\s[^,;=]*\d[^,;=]*\bfrom|add\w*\s[^,;=]*\d[^,;=]*\bto)|%\s*of)\s+(?:(?:the|a|an|all|number)\s+)*[\[({$€£]*$",
    re.IGNORECASE,
)
LISTED = re.compile(
    r"\s*(?:[^\W\d_]+\s+){0,2}?"
    r"(?:(?:[,;/|&、，–—-]|\b(?:or|and|to|through|oder|und|bis|ou|et|à|y|o|или|и)\b|或|和|或者|और)\s*)+"
    r"(?:(?:perhaps|maybe|possibly|also|even)\s+)*\(?\s*[$€£¥]?\s*$",
    re.IGNORECASE,
)

# Between two numbers of a sentence: what begins another statement, and what leads to a circumstance of the first.
CLAUSE = re.compile(
    r"[,;:=()?]|\b(?:and|or|so|but|because|since|while|if|when|which|who|that|gives|makes|gets|leaves|leaving|equals?|"
    r"total|altogether|he|she|they|(?<!do )it|we|i|you|has|have|had|can|could|does|did|takes?|costs?)\b",
    re.IGNORECASE,
)
SUBORDINATE = re.compile(
    r"[,(]\s*(?:which (?:includes?|included)|of which|including|(?:not )?counting|as|since|because|after|by|with|if"
    r"|when|where|i\.e|e\.g|though|although|despite)\b"
    r"(?!.*(?:[,;:=]|\b(?:is|are|was|were|be|has|have|had|will|would|gets?|gives?|makes?|leaves?|total|so)\b))"
    r"|[,，]\s*(?:用了|花了|历时)",
    re.IGNORECASE,
)
SAID_OF = re.compile(r"\s*(?:is|are|was|were|has|have|had|contains?|includes?)\b[^,;:=]*$")
COPULA = re.compile(r"\b(?:is|are|was|were|be|will|would)\b")
LEADS = re.compile(
    r"\bto\s+(?!(?:the|an?|his|her|its|their|all)\b)(?P<verb>[a-z]+)\b"
    r"|\b(?P<within>in|after|every|during|within|over|throughout|per|each|out of|en|dans|pendant|durante?|après|dopo|"
    r"nach|innerhalb|pro|за|через)\b"
    r"|\b(?:for|from|with|by|at|on|among|across|between|before|until|through|into|of|to|under|above|below)\b"
)
DETERMINERS = re.compile(
    r"(?:\s+(?:the|a|an|his|her|its|their|my|our|your|these|those|this|all|about|around|only|just|another|next|first|"
    r"last|approximately|roughly|exactly))*\s*[$€£¥(]*"
)
RESULTING = re.compile("get|give|obtain|have|make|find|reach|equal|yield|become|leave|arrive|produce|be")

# Before the first of them: it is stated, or it is itself a circumstance or known before.
ASSERTED = re.compile(r"(?:=|\b(?:is|are|was|were|be|gets?|becomes?|gives?|have|has|had|makes?))\s*[$€£¥]?\s*$")
GIVEN = re.compile(
    r"\b(?:in|after|every|during|within|over|per|each|for|from|with|by|at|on|among|across|between|before|until|"
    r"through|into|to|the|these|those|all|if|when|(?<!total )(?<!average )of)\s+[$€£¥]?$",
    re.IGNORECASE,
)
LATER = re.compile(r"\s*(?:[^\W\d_]+\s+)?(?:from (?:now|today)|later|ago|earlier)\b")
CONDITION = re.compile(r"\s*\b(?:for|when|where|at|if|with)\s+\$?\\?[A-Za-z]\w?\s*=[^,;=]*$")
NAME = re.compile(r"\s*(?:\\?[A-Za-z]+'*|[^\W\d_]+)(?:_\{?\w+\}?)?(?:\s*\([^()=]*\))?(?:\s+[^\W\d_]+){0,6}\s*")
TOKEN = re.compile(r"\\?[^\W\d_]+|\d[\d.,]*|\S")
OPERATION = re.compile(r"[-+*/^×÷\d\\]")

Place = Literal["free", "aside", "unclear"]


def is_operand(before: str) -> bool:
    """Whether what stands before a number takes it for something else.

    >>> is_operand("It is half of "), is_operand("She has "), is_operand("more than ")
    (True, False, True)
    """
    return SIGN_BEFORE.search(before) is not None or WORD_BEFORE.search(before) is not None


def is_given(before: str) -> bool:
    """Whether a number stands in a circumstance itself, or is spoken of as known: "in 3 days", "the 3 boys"."""
    return GIVEN.search(before) is not None


def place_of(before: str, between: str, after: str, money: tuple[bool, bool] = (False, False)) -> Place:
    """How a number stands to the one before it in its sentence.

    Args:
        before (`str`): What stands before the first.
        between (`str`): What stands between both, a unit of the first included.
        after (`str`): What stands behind the second.
        money (`tuple[bool, bool]`): Whether the first is money, and whether the second is.

    Returns:
        `str`: `"aside"`, it says only when or for what the first is so, as in "72 dollars in 3 days"; `"free"`, it
            does not; `"unclear"`, it may, or makes something else of both, as in "3 bags of 24".

    >>> place_of("She earned ", " dollars in ", " days"), place_of("", " bags of ", " each")
    ('aside', 'unclear')
    """
    if SUBORDINATE.search(between) or re.match(
        r"\s*of (?:them|these|those|which)\b(?!\s+(?:is|are|was|were|will|can))", after
    ):
        return "unclear"
    if not before.strip() and SAID_OF.match(between):  # 72 is the number of days in 3 months
        return "unclear"
    if between.startswith("-") or CLAUSE.search(between):
        return "free"
    leads = list(LEADS.finditer(between))
    is_next = bool(leads) and DETERMINERS.fullmatch(between[leads[-1].end() :]) is not None
    leads = [lead for lead in leads if lead.group() != "of" or (is_next and lead is leads[-1])]
    verbs = [lead["verb"] for lead in leads if lead["verb"]]
    if not leads or (COPULA.search(between) and not verbs):
        return "unclear" if LATER.match(after) else "free"
    counted = between[: leads[0].start()].split()  # a unit, or what there are so many of
    has_unit = bool(counted) or money[0]
    if verbs:  # 72 dollars to buy 3 books
        is_circumstance = has_unit
        clear = not any(map(RESULTING.fullmatch, verbs))
    else:
        is_price = leads[-1].group() == "for" and money[0] != money[1]  # 72 dollars for 3 books
        is_circumstance = len(counted) <= (5 if leads[0]["within"] else 3) and not (is_price and money[1])
        is_circumstance = is_circumstance and (is_next or len(between[leads[-1].end() :].split()) <= 3)
        clear = is_next and (is_price or all(lead["within"] for lead in leads))
    if not is_circumstance:
        return "free"
    may_be_subject = len(counted) > 1 and not before.strip()
    is_share = leads[0].group() in ("over", "per", "each", "out of")  # 67 over 20
    is_stated = has_unit or (ASSERTED.search(before) and not is_share)
    return "aside" if clear and is_stated and not may_be_subject else "unclear"


def without_condition(text: str) -> str:
    """A statement without the values for which it holds: "72 for x = 3" without the last three."""
    condition = CONDITION.search(text)
    return text[: condition.start()] if condition and re.search(r"\d", text[: condition.start()]) else text


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
