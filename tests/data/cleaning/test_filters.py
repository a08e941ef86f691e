"""Filters: which rows go, and what is counted."""

import pytest

from rlhf_recipes.data.cleaning.filters import BalanceLabels, Counts, DropBlank, InLanguage, Length
from tests.data.feedback_examples import rows

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def test_blank_answers_go_and_blank_prompts_stay():
    dataset = rows(prompt=["", "q", "q"], completions=[["a", "b"], ["a", " "], []])
    new, counts = DropBlank()(dataset)
    assert (len(new), counts.after) == (1, 1)
    assert new["prompt"][:] == [""]


def test_lengths_are_those_of_answers():
    dataset = rows(
        prompt=["a long prompt"] * 4, chosen=["a", "abc", "abc", "abcd"], rejected=["ab", "ab", "abcdef", "ab"]
    )
    new, counts = Length(2, 4)(dataset)
    assert new["chosen"][:] == ["abc", "abcd"]
    assert counts == Counts(4, 2, 0, {"too short": 1, "too long": 1})


def test_rows_in_another_language_go_and_short_ones_pass_counted():
    german = "Der Film war besser als sein Plakat, und die Schauspieler wussten es von Anfang an."
    new, counts = InLanguage("en")(rows(chosen=[SENTENCE, SENTENCE, "Yes."], rejected=[SENTENCE, german, "No."]))
    assert new["rejected"][:] == [SENTENCE, "No."]
    assert counts.notes == {"rows with a text too short to tell": 1}
    assert InLanguage("de")(rows(completion=[german, SENTENCE]))[0]["completion"][:] == [german]


def test_labels_are_balanced_by_the_texts_and_not_by_their_order():
    dataset = rows(completion=[f"text {number}" for number in range(10)], label=[True] * 7 + [False] * 3)
    new, counts = BalanceLabels()(dataset)
    assert sorted(new["label"]) == [False] * 3 + [True] * 3
    assert counts == Counts(10, 6, 0, {"good before": 7, "bad before": 3})
    backwards, _ = BalanceLabels()(dataset.select(range(9, -1, -1)))
    assert set(backwards["completion"]) == set(new["completion"])
    assert any(set(BalanceLabels(seed)(dataset)[0]["completion"]) != set(new["completion"]) for seed in range(1, 9))
    with pytest.raises(ValueError, match="one class only"):
        BalanceLabels()(rows(completion=["a"], label=[0.7]))
