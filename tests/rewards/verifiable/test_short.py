import pytest

from rlhf_recipes.rewards import ShortAnswer

# By reference: completions that give it, and completions that do not.
ANSWERS = {
    r"\text{(C)}": (
        [
            *("C", "(C)", "C.", "c", "**C**"),
            *("The answer is C.", "The answer is (C).", "Answer: C", "C) Paris", "(C) Paris"),
            *(r"\boxed{C}", r"\boxed{\text{(C)}}"),
            *(r"\boxed{\textbf{(C)}}", "<answer>C</answer>", "Option C is correct."),
            *("The correct option is (C) because it is larger.", "I choose (C).", "The correct answer is C: Paris"),
            *("A is wrong, so the answer is C.", "The answer is (C), not (B).", "<think>Maybe A.</think> C"),
            *("Since A and B are false, the correct choice is C.", "The answer is B. Wait, no: the answer is C."),
        ],
        [
            *("A", "(B)", "", "A or C"),
            *("A, C", "The answer is A, B, C, or D.", "Both (B) and (C).", "not C", "It is not (C)."),
            *("The answer is not C.", "The answer cannot be (C)", "(C) is wrong.", "I think (C) is incorrect"),
            *("The answer is (B), not (C).", "The answer is (B) or (C)."),
            *(r"\boxed{C", r"\boxed{B} \boxed{C}", "Cats are nice"),
            *("The answer is Carl.", "Is it (C)?", "<think>(C)</think>", "Which one is it, A, B or C?"),
        ],
    ),
    "yes": (
        [
            *("Yes", "Yes.", "yes, because it is prime"),
            *("The answer is yes.", r"\boxed{\text{Yes}}", "**Yes**", "True"),
            *("Yes, it is not divisible by 2.", "<think>no</think> Yes."),
            *("Ja, das stimmt.", "是", "So the answer is yes!"),
        ],
        [
            *("No", "no.", "No, it is not.", "The answer is no.", "yes or no", "Yes and no.", "not yes", "", "Maybe"),
            *("The answer is not yes.", "It depends.", r"\boxed{\text{Yes}", "<think>Yes</think>", "Yes? No.", "Nein"),
        ],
    ),
    "no": (["No.", "No, it is not.", "False", "The answer is no."], ["Yes.", "Not no.", "no or yes", "nothing", ""]),
    "the derivative": (
        [
            *("derivative", "The derivative."),
            *("the Derivative", "The answer is the derivative.", r"\boxed{\text{derivative}}"),
            *("It is called the derivative.", "The answer is the derivative, because it is a limit."),
        ],
        [
            *("integral", "not the derivative", "the derivative or the integral", "The answer is not the derivative."),
            *("It isn't the derivative", "the second derivative"),
            *("Derivative, integral, limit.", "Is it the derivative?"),
        ],
    ),
    "Paris": (
        [
            *("Paris", "**Paris**"),
            *("It's Paris.", "The capital of France is Paris.", "Paris is the capital of France."),
            *("The capital is Paris, not Lyon.", "<answer> paris </answer>", "#### Paris", "ＰＡＲＩＳ"),
        ],
        [
            *("Lyon", "not Paris", "The capital is not Paris.", "Paris or Lyon", "The capital is Lyon, not Paris."),
            *("Is it Paris?", "Parisian", "I don't think it is Paris.", "Paris is not the capital.", ""),
        ],
    ),
    "東京": (["東京", "答えは東京です。", "答えは東京"], ["京都", "東京ではない", "東京または京都"]),
}  # fmt: skip


@pytest.mark.parametrize("reference", ANSWERS)
def test_what_states_the_reference_pays_and_nothing_else(reference):
    right, wrong = ANSWERS[reference]
    completions = right + wrong
    values = ShortAnswer()(completions=completions, answer=[reference] * len(completions))
    expected = dict.fromkeys(right, 1.0) | dict.fromkeys(wrong, 0.0)
    assert dict(zip(completions, values, strict=True)) == expected


def test_every_letter_is_told_from_every_other():
    for letter in "ABCDEFGHIJ":
        for said in ("{}", "({})", "The answer is ({}).", "{}) because", r"\boxed{{{}}}", "Answer: {}"):
            completions = [said.format(other) for other in "ABCDEFGHIJ"]
            values = ShortAnswer()(completions=completions, answer=[letter] * 10)
            assert values == [float(other == letter) for other in "ABCDEFGHIJ"], (letter, said)


@pytest.mark.parametrize("reference", ["72", "5 meters", 72, r"2\pi", "x = 5", "(1, 2)", "word " * 13, "..."])
def test_numbers_formulas_and_long_texts_are_not_for_this_reward(reference):
    assert ShortAnswer()(completions=["72", str(reference)], answer=[reference] * 2) == [None, None]
