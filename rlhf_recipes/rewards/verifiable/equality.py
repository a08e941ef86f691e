"""When two numbers are the same answer: exact arithmetic, units, percent signs, decimals that were cut off."""

from fractions import Fraction

from rlhf_recipes.rewards.verifiable.numbers import MOST_DIGITS, Number, number_reader
from rlhf_recipes.rewards.verifiable.units import may_be_same

DEFAULT_TOLERANCE = 1e-14
ROUNDED_PLACES = 6  # a decimal of so many places may be a fraction that was cut off


def number_of(value: str | int | float | Fraction, decimal_comma: bool = False) -> Number | None:
    """A reference as a number, where it is one: of a float what is printed, since that is meant.

    `None` for other texts, and beyond what a float holds.
    """
    if isinstance(value, str):
        return number_reader(decimal_comma).reference(value)
    if isinstance(value, float):
        written = repr(value)
        places = len(written.partition(".")[2]) if "e" not in written else 0
        return Number(Fraction(written), decimals=places if value % 1 else None)
    return Number(Fraction(value)) if abs(value) < 10**MOST_DIGITS else None


def are_equal(
    given: Number,
    wanted: Number,
    relative_tolerance: float = DEFAULT_TOLERANCE,
    absolute_tolerance: float = 0.0,
    ignore_percent: bool = False,
) -> bool:
    """Whether two numbers are the same answer; see [`NumberAnswer`]."""
    if not may_be_same(given.unit, wanted.unit):
        return False
    pairs = [(given.value, wanted.value)]
    if given.percent != wanted.percent and not ignore_percent:
        hundredth = Fraction(1, 100)
        pairs.append(
            (given.value * hundredth, wanted.value) if given.percent else (given.value, wanted.value * hundredth)
        )
    if any(_is_close(one, other, relative_tolerance, absolute_tolerance) for one, other in pairs):
        return True
    return _is_cut_off(given, wanted.value) or _is_cut_off(wanted, given.value)


def _is_close(one: Fraction, other: Fraction, relative: float, absolute: float) -> bool:
    apart = abs(one - other)
    if one.denominator == other.denominator == 1 and relative <= DEFAULT_TOLERANCE:
        relative = 0.0  # nothing was rounded
    return apart <= max(Fraction(relative) * max(abs(one), abs(other)), Fraction(absolute))


def _is_cut_off(decimal: Number, exact: Fraction) -> bool:
    """Whether a decimal is this fraction, which no decimal is, cut off or rounded at its last place."""
    if decimal.decimals is None or decimal.decimals < ROUNDED_PLACES or _ends(exact):
        return False
    place = Fraction(1, 10**decimal.decimals)
    left_off = abs(exact) - abs(decimal.value)
    return decimal.value * exact > 0 and -place / 2 <= left_off < place


def _ends(value: Fraction) -> bool:
    """Whether a fraction can be written as a decimal: its denominator has no factor but 2 and 5."""
    rest = value.denominator
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest == 1
