"""Text edits: what each changes, and what it leaves alone."""

import pytest

from rlhf_recipes.data.cleaning.edits import EditTexts, WithoutWords, read_stop_words, remove_punctuation, tidy_light
from rlhf_recipes.data.preprocessing import tidy_text
from tests.data.feedback_examples import rows


def test_light_tidying_touches_line_ends_accents_and_nul_alone():
    assert tidy_light("a\r\nb\rc\0 &amp;  d ") == "a\nb\nc &amp;  d "
    assert tidy_light("Cafe\u0301") == "Caf\u00e9"


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Well-made, isn't it?Yes!", "Well-made isn't it Yes"),
        ("\u201cQuoted\u201d (or) \u00abnot\u00bb \u2026", "Quoted or not"),
        ("\u4f60\u597d\uff0c\u4e16\u754c\u3002", "\u4f60\u597d \u4e16\u754c"),
        ("$5 + 5% of 3.5 \U0001f600", "$5 + 5 of 3 5 \U0001f600"),
        ("a -- b", "a b"),
        ("...", ""),
        ("", ""),
    ],
)
def test_punctuation_of_all_scripts_goes_and_words_stay_apart(text, without):
    assert remove_punctuation(text) == without


def test_stop_words_go_in_any_case_and_as_whole_words(tmp_path):
    (tmp_path / "words.txt").write_text("The\nof\n\n")
    edit = read_stop_words(str(tmp_path / "words.txt"))
    assert edit == WithoutWords(frozenset({"the", "of"}))
    assert edit("The theme of THE film.") == "theme film."
    assert edit("of the") == ""
    assert edit("the-best often") == "the-best often"
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="empty"):
        read_stop_words(str(tmp_path / "empty.txt"))


def test_the_english_stop_words_of_scikit_learn():
    pytest.importorskip("sklearn")
    edit = read_stop_words("english")
    assert len(edit.words) == 318
    assert edit("This is not the best film of the year") == "best film year"


def test_edits_reach_messages_lists_and_parts_and_count_rows():
    message = [{"role": "user", "content": "A"}, {"role": "assistant", "content": None}]
    dataset = rows(prompt=[message, message], completions=[["A", "b"], ["c", "d"]], id=["A", "A"])
    new, counts = EditTexts(str.lower, "lower", columns=("completions",))(dataset)
    assert (new["completions"][:], counts.changed) == ([["a", "b"], ["c", "d"]], 1)
    new, counts = EditTexts(str.lower, "lower")(dataset)
    assert new["prompt"][0] == [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]
    assert (new["id"][:], counts.changed) == (["A", "A"], 2)
    parts = [[{"role": "user", "content": [{"type": "text", "text": "A"}]}]]
    new, _ = EditTexts(str.lower)(rows(prompt=parts))
    assert new["prompt"][0][0]["content"][0]["text"] == "a"


def test_white_space_between_a_prompt_and_its_answer_stays():
    dataset = rows(prompt=["The  sky is", "Q: "], completion=["\n  blue. ", "a "])
    new, _ = EditTexts(tidy_text)(dataset)
    assert new.to_list() == [{"prompt": "The sky is", "completion": " blue."}, {"prompt": "Q: ", "completion": "a"}]
    alone, _ = EditTexts(tidy_text)(rows(completion=["  blue. "]))
    assert alone["completion"][:] == ["blue."]
