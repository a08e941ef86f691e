import pickle

import pytest

from rlhf_recipes.rewards import EndsWithSentence, LengthWindow, PlainProse, RegexMatch, Repetition, WeightedSum


def score(rule, *completions):
    return rule(prompts=[""] * len(completions), completions=list(completions), completion_ids=[[]] * len(completions))


def test_length_window_counts_tokens_with_the_end_of_sequence():
    rule = LengthWindow(minimum=2, maximum=4, margin=2)
    ids = [[], [1], [1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6], [1] * 9]
    assert rule(completions=[""] * 7, completion_ids=ids) == [0.0, 0.5, 1.0, 1.0, 0.5, 0.0, 0.0]


def test_length_window_counts_words():
    assert score(LengthWindow(maximum=2, unit="words"), "", "one", "one two ", "one two three") == [1.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"minimum": 5, "maximum": 4}, "minimum 5 to maximum 4"),
        ({"minimum": -1}, "minimum -1"),
        ({"margin": 0}, "margin 0; it must be 1 or more"),
        ({"unit": "letters"}, "'tokens' or 'words', not 'letters'"),
    ],
)
def test_length_window_refuses_what_makes_no_window(settings, words):
    with pytest.raises(ValueError, match=words):
        LengthWindow(**settings)


@pytest.mark.parametrize(
    "text", ["Good.", "Good! ", "Good?\n", 'He said "good."', "(Good.)", "Good…", "“Good!”", "好。", "."]
)
def test_a_sentence_ends(text):
    assert score(EndsWithSentence(), text) == [1.0]


@pytest.mark.parametrize("text", ["", " ", "Good", "Good,", "Good. But", '"', "Good. ("])
def test_a_sentence_does_not_end(text):
    assert score(EndsWithSentence(), text) == [0.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so so so so", -2 / 3),  # three bigrams, one of a kind
        ("a b a b", -1 / 3),  # (a b) (b a) (a b)
        ("A b a B", -1 / 3),
        ("a quiet film", 0.0),
        ("one", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_is_minus_the_share_of_bigrams_seen_before(text, expected):
    assert score(Repetition(), text) == pytest.approx([expected])


def test_repetition_of_single_words():
    assert score(Repetition(n=1), "so so so so", "so it goes") == [-0.75, 0.0]
    with pytest.raises(ValueError, match="n = 0; it must be 1 or more"):
        Repetition(n=0)


def test_regex_match():
    assert score(RegexMatch(r"^\s*yes\b"), " yes, it is", "Yes", "no, yes", "") == [1.0, 0.0, 0.0, 0.0]
    assert score(RegexMatch("yes", ignore_case=True), "Oh YES") == [1.0]
    with pytest.raises(ValueError, match=r"cannot read the pattern '\(': missing \)"):
        RegexMatch("(")


@pytest.mark.parametrize(
    "text",
    [
        " a quiet, funny film (of 1995) that's never dull!",
        ' said "no" to the U.S. in McCoy\'s film; it cost $5 and 90%',
        " ein schöner, stiller Film",
        "静かな映画。",
        " unfinished but",
    ],
)
def test_plain_prose_is_plain(text):
    assert score(PlainProse(), text) == [1.0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        " ...",
        " good.\n\nThe next",
        "\tgood",
        " good  film",
        " **good**",
        " see [1]",
        " good 😀",
        " go\ufffdod",
        " good.The plot",
        " goodFilm",
        " film2 was",
        " 10,000 of 25,000 votes",
        " a\u200bb",
    ],
)
def test_what_is_no_plain_prose_gets_nothing(text):
    assert score(PlainProse(), text) == [0.0]


def test_rules_read_messages():
    completion = [{"role": "assistant", "content": "It is good."}]
    assert EndsWithSentence()(completions=[completion]) == [1.0]


def test_rules_have_names_and_survive_pickling():
    rules = [RegexMatch("good", name="praise"), RegexMatch("bad", name="blame"), EndsWithSentence()]
    reward = pickle.loads(pickle.dumps(WeightedSum(rules, weights=[1.0, -1.0, 0.5])))
    assert reward.names == ("praise", "blame", "EndsWithSentence")
    assert score(reward, "good.", "bad", "good and bad!") == [1.5, -1.0, 0.5]
