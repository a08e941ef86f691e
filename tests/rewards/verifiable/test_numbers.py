"""Generated references of every kind, each with right and wrong completions, whose numbers are worked out here."""

import random
import time
from fractions import Fraction

import pytest

from rlhf_recipes.rewards import MathAnswer, NumberAnswer, ShortAnswer

# Digits of other scripts: those of 0; the others follow it.
ZEROS = {"arabic": "٠", "persian": "۰", "devanagari": "०", "bengali": "০", "thai": "๐", "fullwidth": "０"}
# A sentence in which a number is the answer, and one that denies it.
LANGUAGES = {
    "en": ("The answer is {}.", "The answer is not {}."),
    "de": ("Die Antwort ist {}.", "Die Antwort ist nicht {}."),
    "fr": ("La réponse est {}.", "Ce n'est pas {}."),
    "es": ("La respuesta es {}.", "No es {}."),
    "it": ("La risposta è {}.", "Non è {}."),
    "pt": ("A resposta é {}.", "Não é {}."),
    "ru": ("Ответ: {}", "Это не {}"),
    "zh": ("答案是{}。", "答案不是{}。"),
    "ja": ("答えは{}です。", "{}ではない。"),
    "ko": ("정답은 {}입니다.", "{}이 아니다."),
    "ar": ("الجواب هو {}", "ليس {}"),
    "hi": ("उत्तर {} है।", "{} नहीं है"),
}


def whole(rng):
    n = rng.randint(2, 9999)
    return str(n), [f"{n}.0", f"+{n}", f"0{n}"], [str(n + 1), f"-{n}", f"{n}0", f"1{n}", f"{n}.5"]


def negative(rng):
    n = rng.randint(2, 9999)
    return f"-{n}", [f"−{n}", f"-{n}.0", f"- {n}"], [str(n), f"-{n + 1}"]


def thousands(rng):
    n = rng.randint(10_000, 10**8)
    return f"{n:,}", [str(n), f"{n:,}".replace(",", "{,}"), f"{n:,}".replace(",", " "), f"{n:,}.00"], [
        str(n + 1), f"{n:,}"[-3:], f"{n:,}0"
    ]  # fmt: skip


def decimal(rng):
    n, places = rng.randint(1, 9999) * 10 + rng.randint(1, 9), rng.randint(1, 4)
    value = Fraction(n, 10**places)
    text = f"{float(value):.{places}f}"
    return (
        text,
        [f"{text}0", f"{value.numerator}/{value.denominator}"],
        [f"{text}1", text.replace(".", ""), f"-{text}"],
    )


def fraction(rng):
    value = Fraction(rng.randint(1, 99), rng.choice([3, 7, 9, 11, 13]))
    n, d = value.numerator, value.denominator
    if d == 1:
        value, n, d = Fraction(1, 3), 1, 3
    right = [f"{n}/{d}", f"{2 * n}/{2 * d}", rf"\dfrac{{{3 * n}}}{{{3 * d}}}", rf"\tfrac{{-{n}}}{{-{d}}}"]
    wrong = [f"{d}/{n}", str(n), str(d), f"-{n}/{d}", f"{n + 1}/{d}", f"{float(value):.2f}", rf"\frac{{{n}}}{{{d}x}}"]
    return rf"\frac{{{n}}}{{{d}}}", [*right, f"{float(value):.9f}"], wrong


def mixed(rng):
    w, d = rng.randint(1, 50), rng.choice([2, 3, 4, 5, 8])
    return rf"{w}\frac{{1}}{{{d}}}", [f"{w} 1/{d}", f"{w * d + 1}/{d}", rf"\frac{{{w * d + 1}}}{{{d}}}"], [
        f"1/{d}", str(w), f"{w}/{d}", f"{w + 1} 1/{d}"
    ]  # fmt: skip


def percent(rng):
    n = rng.randint(1, 99)
    return (
        rf"{n}\%",
        [f"{n}%", f"{n} percent", f"{n / 100}", str(n)],
        [f"{n + 1}%", f"{n / 100}%", f"{n}.5%", f"-{n}%"],
    )


def money(rng):
    n = rng.randint(1000, 99999)
    return (
        rf"\${n}",
        [f"${n:,}", f"{n} dollars", f"{n:,}.00", f"USD {n}"],
        [f"€{n}", f"{n} cents", f"-${n}", f"${n + 1}"],
    )


def unit(rng):
    n, (one, other, wrong) = rng.randint(2, 999), rng.choice(
        [("cm", "centimeters", "m"), ("hours", "h", "minutes"), ("kg", "kilograms", "grams"), ("miles", "mile", "km")]
    )  # fmt: skip
    return rf"{n}\text{{ {one}}}", [str(n), f"{n} {other}", f"{n} {one}", rf"{n}~\mathrm{{{one}}}"], [
        f"{n} {wrong}", f"{n + 1} {one}", f"{n}x"
    ]  # fmt: skip


def square(rng):
    n = rng.randint(2, 999)
    return (
        rf"{n}\text{{ cm}}^2",
        [str(n), f"{n} cm^2", f"{n} cm²", rf"{n} \text{{ cm}}^{{2}}"],
        ["2", f"{n} cm^3", f"{n}^2"],
    )


def degrees(rng):
    n = rng.randint(2, 359)
    return rf"{n}^\circ", [str(n), f"{n}°", f"{n} degrees", rf"{n}^{{\circ}}"], [f"{n} radians", f"{n + 1}°"]


def scientific(rng):
    n, e = rng.randint(11, 99), rng.randint(2, 9)
    value = Fraction(n, 10) * 10**e
    return rf"{n / 10} \times 10^{{{e}}}", [
        f"{n / 10}e{e}", f"{n / 10} × 10^{e}", rf"{n / 10}\cdot 10^{e}", str(value), f"{int(value):,}"
    ], [f"{n / 10}e{e + 1}", str(n / 10), str(e), "10", f"{n / 10} × 10^-{e}"]  # fmt: skip


KINDS = [
    whole, negative, thousands, decimal, fraction, mixed, percent, money, unit, square, degrees, scientific
]  # fmt: skip
FRAMES = [
    "{}", r"\boxed{{{}}}", "The answer is {}.", "<answer>{}</answer>", "#### {}", "**Answer:** {}",
    "<think>It is 4.</think>{}",
    "First, 3 + 4 = 7.\n\nSo the final answer is {}. I checked it 3 times.",
]  # fmt: skip
REFUSED = [
    "not {}",
    "It's not {}.",
    "{} or 1000003",
    r"\boxed{{{}",
    "The answer is 1000003, not {}.",
    "<think>{}</think>",
]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("reward", [NumberAnswer(), MathAnswer()], ids=lambda reward: reward.__name__)
def test_right_and_wrong_completions_of_generated_references(kind, reward):
    rng = random.Random(kind.__name__)
    for _ in range(6 if isinstance(reward, NumberAnswer) else 2):
        reference, right, wrong = kind(rng)
        right = [reference, *right]
        paid = [frame.format(text) for frame in FRAMES for text in right]
        assert dict(zip(paid, score(reward, paid, reference), strict=True)) == dict.fromkeys(paid, 1.0), reference
        unpaid = [frame.format(text) for frame in FRAMES for text in wrong]
        unpaid += [frame.format(text) for frame in REFUSED for text in right]
        assert dict(zip(unpaid, score(reward, unpaid, reference), strict=True)) == dict.fromkeys(unpaid, 0.0), (
            reference
        )


@pytest.mark.parametrize("language", LANGUAGES)
def test_sentences_of_many_languages(language):
    said, denied = LANGUAGES[language]
    completions = [said.format(72), said.format(73), denied.format(72), said.format("72 / 2"), said.format("71.5")]
    assert score(NumberAnswer(), completions, "72") == [1.0, 0.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("script", ZEROS)
def test_digits_of_every_script(script):
    digits = str.maketrans({str(digit): chr(ord(ZEROS[script]) + digit) for digit in range(10)})
    for number in (7, 42, 1905):
        written = str(number).translate(digits)
        completions = [
            written,
            f"答案是{written}。",
            rf"\boxed{{{written}}}",
            str(number),
            f"{written}1",
            f"not {written}",
        ]
        assert score(NumberAnswer(), completions, written) == [1.0] * 4 + [0.0] * 2


def test_a_decimal_comma_in_generated_numbers():
    rng, reward = random.Random(1), NumberAnswer(decimal_comma=True)
    for _ in range(50):
        n = rng.randint(1_000_000, 10**9)
        written = f"{n // 100:,}".replace(",", ".") + f",{n % 100:02d}"
        completions = [written, f"Die Antwort ist {written} Euro.", f"{n // 100}", f"{n},5"]
        assert score(reward, completions, written)[:2] == [1.0, 1.0]
        assert score(reward, completions, written)[3] == 0.0


def test_reading_a_long_text_takes_no_longer_than_its_length():
    parts = [
        *("word ", "1, ", r"\boxed{", r"\boxed{1}", "("),
        *("$", "$1", "the answer ", "the answer is ", "<think>", "<answer>"),
        *("1. ", "not 1 ", "1 or ", "*", "**a", "1=", "a=1 "),
        *(r"\frac{", "1\n", "####", "wait ", "9", "\n", "`", "(A) "),
    ]  # fmt: skip
    for part in parts:
        begin = time.process_time()
        for reward, reference in ((NumberAnswer(), "72"), (ShortAnswer(), "C")):
            score(reward, [part * 2000], reference)
        assert time.process_time() - begin < 1, part  # 0.1 on the slowest of them; square in its length, minutes


def score(reward, completions, reference):
    return reward(completions=completions, answer=[reference] * len(completions))
