"""Units of measure that two answers can differ in: "5 meters" is not "5 feet", while "5 clips" may be "5 of them"."""

import re

# By their common name: how each may be written, apart from a plural s.
SPELLINGS = {
    "meter": "m meter metre", "kilometer": "km kilometer kilometre", "centimeter": "cm centimeter centimetre",
    "millimeter": "mm millimeter millimetre", "inch": "inch inches", "foot": "ft foot feet", "yard": "yd yard",
    "mile": "mi mile", "gram": "g gram gramme", "kilogram": "kg kilogram kilo", "milligram": "mg milligram",
    "ounce": "oz ounce", "pound": "lb lbs", "ton": "ton tonne", "liter": "l liter litre",
    "milliliter": "ml milliliter millilitre", "gallon": "gal gallon", "second": "s sec second",
    "minute": "min minute", "hour": "h hr hrs hour", "day": "day", "week": "week", "month": "month",
    "year": "yr year", "cent": "cent ¢", "dollar": "$ usd dollar buck", "euro": "€ eur euro",
    "british pound": "£ gbp", "yen": "¥ jpy yen 円", "rupee": "₹ inr rupee", "yuan": "cny yuan rmb 元",
    "degree": "degree", "celsius": "celsius °c", "fahrenheit": "fahrenheit °f", "radian": "rad radian",
    "newton": "n newton", "joule": "j joule", "watt": "w watt", "volt": "v volt", "ampere": "a ampere amp",
    "mph": "mph", "km/h": "kmh kph",
}  # fmt: skip
UNIT_OF = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in spellings.split()}

# One letter is a unit where it stands apart from its number, "5 m", and else a variable, "5m".
LETTERS = frozenset("mgshlLVWJNKCFAt")

# What makes something else of a number: "12 pi", "3 dozen", "5 squared".
OTHER_WORDS = (
    "pi tau phi theta alpha beta gamma delta lambda sqrt root roots cbrt sin cos tan cot sec csc log ln exp lim inf "
    "infinity infty mod modulo squared cubed factorial choose dozen dozens hundred hundreds thousand thousands "
    "million millions billion billions trillion twice doubled tripled halved half halves thirds quarters fifths"
)

# What ends its unit: "72 clips and", "72 is".
ENDING_WORDS = (
    "or and not to than times plus minus over divided multiplied raised take more less between through until but nor "
    "vs versus is are was were equals equal no wrong incorrect since because as which where so with if when oder und "
    "bis mal ou et à fois o y por veces или и до раз ist est es 乘以 乘上 除以 加上 减去 減去"
)
NO_UNITS, ENDS = frozenset(OTHER_WORDS.split()), frozenset(ENDING_WORDS.split())
WORD = re.compile(r"(?P<word>[^\W\d_]+|°[CF]?|¢)\.?(?:\s?\^\s?\{?(?P<power>-?\d)\}?|(?P<raised>[²³]))?")
BETWEEN = re.compile(r"[\s/·×*-]*(?:per\s+|in\s+)?", re.IGNORECASE)
MOST_WORDS = 5


def read_unit(text: str, glued: bool) -> tuple[str | None, int] | None:
    """The unit at the beginning of what follows a number.

    Args:
        text (`str`): What follows, without the space before it.
        glued (`bool`): Whether there was none.

    Returns:
        `tuple`: the unit, `None` for words that are no measure (clips, people), and where they end; or `None` where
            the words make something else of the number.
    """
    unit, end = None, 0
    for count in range(MOST_WORDS):
        between = BETWEEN.match(text, end)
        match = WORD.match(text, between.end() if count and between else end)
        if match is None:
            break
        word = match["word"]
        if word.lower() in ENDS:
            break
        if not _is_unit(word, glued and count == 0):
            return (unit, end) if count and len(word) == 1 else None
        if count == 0:
            unit = _measure(word, match["power"] or {"²": "2", "³": "3"}.get(match["raised"] or ""))
        elif word.lower() in ("celsius", "fahrenheit") and unit == "degree":
            unit = word.lower()
        elif match["power"] and _measure(word, None) is None:
            return None  # 5 clips^2
        end = match.end()
    return unit, end


def may_be_same(one: str | None, other: str | None) -> bool:
    """Whether two numbers may have the same unit: one of them may leave it out, and a degree may be any."""
    if one is None or other is None or one == other:
        return True
    return "degree" in (one, other) and {one, other} <= {"degree", "celsius", "fahrenheit"}


def _is_unit(word: str, glued: bool) -> bool:
    if word.lower() in NO_UNITS:
        return False
    if len(word) > 1 or not re.match(r"[A-Za-zα-ωΑ-Ω]", word):
        return True
    return word in LETTERS and not glued


def _measure(word: str, power: str | None) -> str | None:
    lower = word.lower()
    unit = UNIT_OF.get(lower) or UNIT_OF.get(lower.removesuffix("s"))
    return unit if unit is None or power is None else f"{unit}^{power}"
