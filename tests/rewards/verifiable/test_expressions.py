"""Numbers that are a part of something else, in generated sentences: what these state is worked out here."""

import math
import random

import pytest

from rlhf_recipes.rewards import MathAnswer, NumberAnswer
from tests.rewards.verifiable.test_numbers import score

REWARDS = [NumberAnswer(), MathAnswer()]

# Of a and b, from 3 to 99 and not equal to either; none of these is a, and none is b.
EXPRESSIONS = [
    "{a} times {b}", "{a} plus {b}", "{a} minus {b}", "{a} dollars minus {b} dollars", "{a} divided by {b}",
    "{a} multiplied by {b}", "{a} over {b}", "{a} x {b}", "{a} × {b}", "{a} - {b}", "{a} modulo {b}", "{a} mod {b}",
    "{a} choose {b}", "{a} less {b}", "{a} take away {b}", "{a} by {b}", "{a} feet by {b} feet",
    "{a} to the power of {b}", "{a} raised to {b}", "{a} to the {b}th power", "the square root of {b}",
    "the square of {b}", "the cube root of {b}", "{b} squared", "{b} cubed", "{b}²", "{b}³", "{b} and a half",
    "half of {b}", "a third of {b}", "twice {b}", "double {b}", "{a} percent of {b}", "{a}% of {b}", "{a}/7 of {b}",
    "{a} more than {b}", "{a} less than {b}", "more than {b}", "less than {b}", "greater than {b}", "over {b}",
    "as many as {b}", "the log of {b}", "log base {a} of {b}", "sin of {b}", "the factorial of {b}", "{b} factorial",
    "the sum of {a} and {b}", "the product of {a} and {b}", "{a} feet {b} inches", "{a} hours {b} minutes", "f({b})",
    "{a} out of {b}", "{a} versus {b}", "{a} bags of {b}", "{a} fois {b}", "{a} mal {b}", "{a}乘以{b}", "√{b}",
]  # fmt: skip
FRAMES = [
    "{}", "It is {}.", "So we get {}.", "The answer is {}.", "<answer>{}</answer>", "First, 3 + 4 = 7.\n\nIt's {}."
]  # fmt: skip


def numbers(rng):
    return rng.sample(range(3, 100), 2)


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
def test_a_part_of_an_expression_does_not_pay(reward):
    rng = random.Random(0)
    for expression in EXPRESSIONS:
        a, b = numbers(rng)
        frames = FRAMES if isinstance(reward, NumberAnswer) else rng.sample(FRAMES, 2)
        said = [frame.format(expression.format(a=a, b=b)) for frame in frames]
        for part in (a, b):
            assert dict(zip(said, score(reward, said, str(part)), strict=True)) == dict.fromkeys(said, 0.0), part


@pytest.mark.parametrize(
    "said",
    [
        "{a} times {b} is {c}.", "We multiply {a} by {b} to get {c}.", "{a} times {b} equals {c}", "So {a}*{b} = {c}.",
        "It is {a} times {b}, which is {c}.", "Since {a} multiplied by {b} gives {c}, the answer is {c}.",
    ],
)  # fmt: skip
def test_what_an_expression_comes_to_pays(said):
    a, b = numbers(random.Random(said))
    text = said.format(a=a, b=b, c=a * b)
    assert [score(NumberAnswer(), [text], str(part)) for part in (a * b, a, b)] == [[1.0], [0.0], [0.0]]


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
def test_a_factorial_is_not_its_number(reward):
    factorials = [
        r"\boxed{{{}!}}", "<answer>{}!</answer>", "#### {}!", "The answer is {}!.", "The answer is ${}!$", "{}!",
        "${}!$", r"\({}!\)", "It is {}! + 1.", r"\boxed{{{} !}}",
    ]  # fmt: skip
    exclamations = ["The answer is {}!", "It is {}!!", r"So \boxed{{{}}}!", "Great, it's {}!\n", "{}, hooray!"]
    for number in (4, 5, 72):
        said = [text.format(number) for text in factorials]
        assert dict(zip(said, score(reward, said, str(number)), strict=True)) == dict.fromkeys(said, 0.0)
        said = [text.format(number) for text in exclamations]
        assert dict(zip(said, score(reward, said, str(number)), strict=True)) == dict.fromkeys(said, 1.0)
    assert score(MathAnswer(), [r"\boxed{5!}", r"\boxed{4!}"], "120") == [1.0, 0.0]
    assert score(NumberAnswer(), [r"\boxed{4! = 24}", "So $4! = 24$."], str(math.factorial(4))) == [1.0, 1.0]


STATED = ["She earned {}", "He will need {}", "It takes {}", "There are {}", "So they sold {}"]
COUNTED = ["{a} dollars", "${a}", "{a} apples", "{a} km", "{a} red roses"]
ASIDE = ["in {b} days", "over {b} weeks", "after {b} hours", "within {b} minutes", "in the first {b} days",
         "every {b} days", "to paint {b} rooms", "to save for {b} bikes", "in May after {b} weeks"]  # fmt: skip
UNCLEAR = ["for {b} children", "from {b} trees", "with {b} friends", "at {b} shops", "to make {b} cakes"]


@pytest.mark.parametrize(
    "text",
    [
        "72 is the number of days in 3 months.", "It will take 72 days with 3 workers.", "72 has 3 as a factor.",
        "She has 72 apples, 3 of them red.", "There are 72 people, including 3 children.", "Therefore 72, by step 3.",
        "The price is $72, which includes 3 dollars of tax.", "72 km/h, after 3 hours",
        "72 eggs are left, as 3 broke.", "He will be 72 years old 3 years from now.",
        "Elle gagne 72 euros en 3 jours.", "Gana 72 dólares en 3 días.", "Она заработала 72 рубля за 3 дня.",
        "她赚了72元，用了3天。", "Es sind 72 Euro in 3 Tagen.", "It is not equal to 3.", "It is anything but 3.",
        "It doesn't equal 3.", "It doubles 3.", "It is the triple of 3.", "(72)(3)",
    ],
)  # fmt: skip
def test_the_last_number_is_not_what_these_state(text):
    assert score(NumberAnswer(), [text], "3") == [0.0]


def test_the_number_with_its_unit_before_a_phrase_is_stated():
    rng = random.Random(2)
    for phrase in ASIDE + UNCLEAR:
        for said in STATED:
            a, b = numbers(rng)
            text = f"{said.format(rng.choice(COUNTED))} {phrase}.".format(a=a, b=b)
            assert score(NumberAnswer(), [text], str(b)) == [0.0], text
            if phrase in ASIDE:
                assert score(NumberAnswer(), [text], str(a)) == [1.0], text


@pytest.mark.parametrize(
    "text",
    [
        "In 3 days she earned 72 dollars.", "With 3 friends, each of them gets 72.", "After 3 rounds he has 72 left.",
        "She sold 48 clips in April and 24 in May, so 72 in all.", "She put 3 in each box, for a total of 72 apples.",
        "The answer is 72 dollars in 3 days.", "The answer is 72 for x = 3.", "So f(x) is 72 when x = 3.", "It is 72.",
        "He paid 72 dollars for 3 books in 2 shops.", "It's 72 square feet.", "She works from 9 to 5, so 72 hours.",
        "So there were 3 balloons, and 72 of them were red.", "It is 3 times 24, which brings it to 72.",
        "To paint 3 rooms it takes 72 minutes.", "If 3 boys share it, each gets 72.", "He sold 3 books for $72.",
    ],
)  # fmt: skip
def test_a_number_that_no_phrase_hides_pays(text):
    assert [score(NumberAnswer(), [text], str(number)) for number in (72, 3)] == [[1.0], [0.0]]


def test_a_question_that_only_asks_to_agree_is_a_statement():
    tags = [
        "right?",
        "correct?",
        "isn't it?",
        "ok ?",
        "don't you think?",
        "oder?",
        "n'est-ce pas?",
        "verdad?",
        "对吧？",
    ]
    for tag in tags:
        said = [f"the answer is 72 , {tag}", f"It is 72, {tag}", f"72, {tag}", rf"So \boxed{{72}}, {tag}"]
        assert dict(zip(said, score(NumberAnswer(), said, "72"), strict=True)) == dict.fromkeys(said, 1.0)
        asked = [f"Is it 72, {tag}", f"It is 72, or 73, {tag}", f"It is not 72, {tag}", f"It is 73, {tag}"]
        assert dict(zip(asked, score(NumberAnswer(), asked, "72"), strict=True)) == dict.fromkeys(asked, 0.0)
    assert score(NumberAnswer(), ["Is it 72?", "72?", "The answer is 72?"], "72") == [0.0] * 3


@pytest.mark.parametrize("text", ["It is 20 000", "20 minutes and 5 seconds", "It is 5,72.", "1.5.72", "$150.00.72"])
def test_a_piece_of_a_number_does_not_pay(text):
    assert score(NumberAnswer(), [text], "0") == [0.0]
    assert score(NumberAnswer(), [text], "72") == [0.0]
