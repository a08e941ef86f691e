"""Text edits: what each changes, and what it leaves alone."""

import pytest

from rlhf_recipes.data.cleaning.edits import (
    EditTexts,
    SwapPairs,
    WithoutWords,
    WordDropout,
    read_stop_words,
    remove_punctuation,
    tidy_light,
)
from rlhf_recipes.data.cleaning.filters import Counts
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


# --- rows that are added or turned round ----------------------------------------------------------

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def test_a_swap_turns_the_soft_label_too():
    dataset = rows(chosen=["a"], rejected=["b"], target=[0.75], margin=[2.0], id=[1])
    new, counts = SwapPairs(share=1.0)(dataset)
    assert new.to_list() == [{"chosen": "b", "rejected": "a", "target": 0.25, "margin": -2.0, "id": 1}]
    assert counts == Counts(1, 1, 1)
    votes = rows(chosen=["a"], rejected=["b"], chosen_votes=[3], rejected_votes=[1])
    assert SwapPairs(share=1.0)(votes)[0].to_list() == [
        {"chosen": "b", "rejected": "a", "chosen_votes": 1, "rejected_votes": 3}
    ]
    with pytest.raises(ValueError, match="soft label needs the columns 'chosen' and 'rejected' and 'target', or"):
        SwapPairs()(rows(chosen=["a"], rejected=["b"]))
    with pytest.raises(ValueError, match="share of pairs to swap is 2"):
        SwapPairs(share=2)


def test_half_of_the_pairs_are_swapped_over_batches_and_by_their_texts():
    count = 2500  # more than two batches
    dataset = rows(
        chosen=[f"good {n}" for n in range(count)],
        rejected=[f"bad {n}" for n in range(count)],
        target=[1.0] * count,
    )
    new, counts = SwapPairs()(dataset)
    swapped = [text.startswith("bad") for text in new["chosen"]]
    assert counts.changed == sum(swapped) == pytest.approx(count / 2, rel=0.1)
    assert new["target"][:] == [0.0 if each else 1.0 for each in swapped]
    last, _ = SwapPairs()(dataset.select([count - 1]))
    assert last[0] == new[count - 1]


def test_word_dropout_adds_copies_that_lack_words():
    dataset = rows(prompt=["Is it good?", "Is it good?"], completion=[f" {SENTENCE}", "Yes"], score=[1.0, 2.0])
    new, counts = WordDropout(0.3)(dataset)
    assert new.select([0, 1]).to_list() == dataset.to_list()
    assert counts == Counts(2, 3, 0, {"copies like their row, not added": 1})  # of one word the one stays
    copy = new[2]
    left, words = copy["completion"].split(), iter(SENTENCE.split())
    assert len(left) < len(SENTENCE.split())
    assert all(word in words for word in left)  # in their order
    assert (copy["prompt"], copy["score"], copy["completion"][0]) == ("Is it good?", 1.0, " ")
    assert WordDropout(0.3)(dataset.select([1, 0]))[0]["completion"][2] == copy["completion"]
    assert WordDropout(0.3, seed=1)(dataset)[0]["completion"][2] != copy["completion"]


def test_word_dropout_reaches_messages():
    dataset = rows(
        chosen=[[{"role": "assistant", "content": SENTENCE}]], rejected=[[{"role": "assistant", "content": "No"}]]
    )
    new, _ = WordDropout(0.3)(dataset)
    assert len(new) == 2
    assert len(new[1]["chosen"][0]["content"]) < len(SENTENCE)
    assert new[1]["rejected"] == dataset[0]["rejected"]
