import pickle

import pytest

from rlhf_recipes.rewards import Spelling, WeightedSum


def score(rule, *completions):
    return rule(
        prompts=[""] * len(completions), completions=list(completions), completion_ids=[[1]] * len(completions)
    )


def test_spelling_is_the_share_of_words_that_the_dictionary_has():
    assert score(Spelling(), "The film is good.", "Teh film is good", "Teh flim") == [1.0, 0.75, 0.0]
    assert score(Spelling(), "It's a WELL-known film's plot", "It’s", "dont", "ﬁlm") == [1.0, 1.0, 0.0, 1.0]


def test_what_cannot_be_judged_is_left_out():
    completions = [
        "...",
        "静かな映画。",
        "😀",
        "1995 film2 1990s 3.14",
        "http://flim.example/teh",
        "me@flim.de",
    ]
    assert score(Spelling(), *completions) == [None] * len(completions)
    assert score(Spelling(), "", " ", "\u200b") == [0.0] * 3  # nothing to see is the worst answer
    assert score(Spelling(), "静かな film 😀 2", "teh 静か", "a me@flim.de\nwww.flim.de film") == [1.0, 0.0, 1.0]
    assert score(Spelling("ru"), "film Тихий фильм", "film") == [1.0, None]


def test_letters_of_another_script_inside_a_word_make_it_wrong():
    assert score(Spelling(), "f\u0456lm") == [0.0]  # a Ukrainian i


def test_names_are_left_out_inside_a_sentence():
    text = "Zorbax said that Zorbax met Brother Zorbax. Zorbax left."
    # Judged are "Zorbax" at the two beginnings, and "said that met Brother left".
    assert score(Spelling(), text) == pytest.approx([5 / 7])
    assert score(Spelling(skip_names=False), text) == pytest.approx([5 / 9])
    assert score(Spelling("de"), "Das Haxx ist schön") == [0.75]
    assert score(Spelling("de", skip_names=True), "Das Haxx ist schön") == [1.0]


def test_extra_words_are_right(tmp_path):
    (tmp_path / "words.txt").write_text("Flim\n\nzorbax\n", encoding="utf-8")
    for extra in (["flim", "Zorbax"], tmp_path / "words.txt", str(tmp_path / "words.txt")):
        assert score(Spelling(extra=extra), "teh flim zorbax") == pytest.approx([2 / 3])
    rule = Spelling(extra=tmp_path / "words.txt")
    packed = pickle.dumps(rule)
    (tmp_path / "words.txt").unlink()
    assert pickle.loads(packed) == rule
    assert score(pickle.loads(packed), "flim") == [1.0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "L'homme qu'il aime est là, aujourd'hui."),
        ("it", "L'uomo dell'anno è qui."),
        ("de", "Das Haus steht auf dem Hügel."),
        ("ru", "Он пошёл домой вчера."),
        ("ar", "ذَهَبَ الولد إلى المدرسة"),
        ("fa", "من به خانه می\u200cروم"),
    ],
)
def test_other_languages_have_their_own_dictionaries(language, text):
    assert score(Spelling(language), text) == [1.0]
    assert score(Spelling(), text)[0] in (None, pytest.approx(0.0, abs=0.5))


def test_spelling_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="no dictionary of 'zh'. It has ar, de, en"):
        Spelling("zh")
    with pytest.raises(FileNotFoundError, match="no text file at"):
        Spelling(extra=tmp_path / "none.txt")


def test_spelling_judges_each_row_alone_and_adds_up():
    completions = ["teh film", "", "Good Zorbax", "flim " * 10_000, "a'" * 10_000]
    together = score(Spelling(), *completions)
    assert together == [score(Spelling(), text)[0] for text in completions]
    assert together[:4] == [0.5, 0.0, 1.0, 0.0]
    assert score(pickle.loads(pickle.dumps(Spelling())), *completions) == together
    assert score(WeightedSum([Spelling()], weights=[2.0]), "teh film") == [1.0]
    assert Spelling()(completions=[[{"role": "assistant", "content": "teh film"}]]) == [0.5]
