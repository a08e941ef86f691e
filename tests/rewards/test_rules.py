import pickle

import pytest

from rlhf_recipes.rewards import (
    EndsWithSentence,
    KeywordCoverage,
    Language,
    LengthWindow,
    OnText,
    PlainProse,
    RegexMatch,
    Repetition,
    RewardError,
    WeightedSum,
    compute_rewards,
)


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
        ({"margin": 0}, "margin of LengthWindow is 0; it must be 1 or more"),
        ({"unit": "letters"}, "unit of LengthWindow is 'letters'; it must be one of tokens, words"),
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
        ("a b, a b!", -1 / 3),  # punctuation makes no other word
        ("好看好看", -1 / 3),  # no white space, yet (好 看) (看 好) (好 看)
        ("สวยสวย", -2 / 5),  # ส ว ย ส ว ย: five bigrams, (ส ว) and (ว ย) twice
        ("...", 0.0),
        ("a quiet film", 0.0),
        ("one", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_is_minus_the_share_of_bigrams_seen_before(text, expected):
    assert score(Repetition(), text) == pytest.approx([expected])


def test_repetition_of_single_words():
    assert score(Repetition(n=1), "so so so so", "so it goes") == [-0.75, 0.0]
    with pytest.raises(ValueError, match="n of Repetition is 0; it must be 1 or more"):
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


def test_a_forbidden_pattern_gets_the_opposite():
    rule = RegexMatch(r"\bas an AI\b", forbid=True)
    assert score(rule, "as an AI, I", "as an AIR sign", "", "...") == [0.0, 1.0, 1.0, 1.0]


def test_keyword_coverage_is_the_share_of_keywords_found():
    rule = KeywordCoverage(["dog", "film music", "C3PO", "静か"])
    assert score(rule, "A dog.", "Film  music!", "DOG, c3po, film-music", "とても静かな film music") == [
        0.25,
        0.25,
        0.5,  # film-music is one word
        0.5,
    ]
    assert score(rule, "dogs and hotdog", "music film", "", "...", "😀") == [0.0] * 5


def test_forbidden_keywords_are_taken_off():
    rule = KeywordCoverage(["good", "old"], forbidden=["bad", "sad", "mad"])
    assert score(rule, "good old", "good, bad", "bad sad mad", "") == pytest.approx([1, 1 / 2 - 1 / 3, -1, 0])
    assert score(KeywordCoverage(forbidden=["bad"]), "bad", "good") == [-1.0, 0.0]


def test_keywords_come_from_a_column_too():
    completions = ["red blue", "red", "red", "red", "red"]
    columns = {"colours": [["red", "green"], "red", None, [], ["..."]], "prompts": [""] * 5}
    assert KeywordCoverage(column="colours")(completions=completions, **columns) == [0.5, 1.0, None, None, None]
    both = KeywordCoverage(["blue"], column="colours")
    assert both(completions=completions, **columns) == pytest.approx([2 / 3, 0.5, 0.0, 0.0, 0.0])
    forbidden = KeywordCoverage(forbidden_column="colours")
    assert forbidden(completions=completions, **columns) == [-0.5, -1.0, None, None, None]


def test_a_column_of_texts_can_be_split():
    rule = KeywordCoverage(column="keys", separator=";")
    assert rule(completions=["red wine"], keys=["red; blue sky; wine;"]) == pytest.approx([2 / 3])


def test_a_missing_column_is_named():
    with pytest.raises(
        ValueError, match=r"reads the column 'keys', which the dataset lacks. It has completion_length, k"
    ):
        KeywordCoverage(column="keys")(completions=["a"], prompts=["b"], key=["c"], completion_length=[1])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "nothing to look for"),
        ({"keywords": "good"}, r"takes keywords as a list, but was given 'good': \['good'\]"),
        ({"forbidden": ["good", "!!!"]}, "keyword '!!!' has no letter"),
    ],
)
def test_keyword_coverage_refuses_what_finds_nothing(settings, words):
    with pytest.raises(ValueError, match=words):
        KeywordCoverage(**settings)


ENGLISH = "A quiet and very funny film about two brothers who open a small shop."
GERMAN = "Ein stiller und sehr lustiger Film über zwei Brüder, die einen Laden eröffnen."
JAPANESE = "小さな店を開く二人の兄弟についての、静かでとても愉快な映画です。"


def test_language_gives_the_probability_of_the_language():
    for language, own in (("en", ENGLISH), ("de", GERMAN), ("ja", JAPANESE)):
        scores = score(Language(language), ENGLISH, GERMAN, JAPANESE)
        probabilities = dict(zip((ENGLISH, GERMAN, JAPANESE), scores, strict=True))
        assert probabilities.pop(own) > 0.9
        assert max(probabilities.values()) < 0.05
    shares = [score(Language(language, among=["en", "de"]), ENGLISH)[0] for language in ("en", "de")]
    assert sum(shares) == pytest.approx(1.0)


def test_language_can_be_a_yes_or_no():
    assert score(Language("de", threshold=0.5), GERMAN, ENGLISH) == [1.0, 0.0]


def test_a_short_text_has_no_language():
    assert score(Language(), "...", "😀" * 30, "12 " * 30, "a dull film, 1995") == [None] * 4
    assert score(Language(), "", " \n", "\u200b") == [0.0] * 3  # nothing to see is the worst answer
    assert score(Language("ja", min_letters=5), "静かな映画")[0] > 0.9


def test_among_fewer_languages_a_short_text_is_easier():
    text = "a very long and dull film indeed"
    assert score(Language(among=["en", "ja", "ru"]), text)[0] > score(Language(), text)[0]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"language": "english"}, "does not know 'english'. Known: .*, en,"),
        ({"among": ["en", "klingon"]}, "does not know 'klingon'"),
        ({"among": ["de", "fr"]}, "de, fr; they must be 'en' and one other at least"),
        ({"among": ["en"]}, "one other at least"),
        ({"among": "en"}, r"\['en'\]"),
        ({"threshold": 0}, "threshold of Language is 0; it must be above 0"),
        ({"min_letters": 0}, "min_letters of Language is 0; it must be 1 or more"),
    ],
)
def test_language_refuses_what_it_cannot_judge(settings, words):
    with pytest.raises(ValueError, match=words):
        Language(**settings)


def test_any_function_of_a_text_is_a_reward():
    assert score(OnText(len), "four", "", "好") == [4, 0, 1]
    assert OnText(len).__name__ == "len"
    assert OnText("zlib:crc32", name="checksum").__name__ == "checksum"


def test_a_function_in_a_file_is_found_and_survives_pickling(tmp_path):
    source = "def vowels(text, of='aeiou'):\n    return sum(text.count(v) for v in of) if text else None\n"
    (tmp_path / "mine.py").write_text(source + "class Longer:\n    def __init__(self, than): self.than = than\n")
    with (tmp_path / "mine.py").open("a") as file:
        file.write("    def __call__(self, text): return float(len(text) > self.than)\n")
    rule = OnText(f"{tmp_path}/mine.py:vowels", args={"of": "ae"})
    again = pickle.loads(pickle.dumps(rule))
    assert again == rule
    assert score(again, "a tree", "") == [3, None]
    longer = OnText(f"{tmp_path}/mine.py:Longer", args={"than": 2})
    assert longer.__name__ == "Longer"
    assert score(longer, "ab", "abc") == [0.0, 1.0]


def test_a_function_that_gives_no_number_stops_the_run():
    with pytest.raises(RewardError, match="Reward 'title' returned 'Good', of type str, for row 0"):
        compute_rewards([OnText(str.title, name="title")], [""], ["good"], [[1]], {})
    with pytest.raises(RewardError, match="Reward 'float' returned nan, for row 1"):
        compute_rewards([OnText(float_of, name="float")], ["", ""], ["1", "nan"], [[1], [1]], {})


def float_of(text):
    return float(text)


@pytest.mark.parametrize(
    ("func", "words"),
    [
        ("len", "package.module:name or path/to/file.py:name, or a callable, not 'len'"),
        (3, "or a callable, not 3"),
        ("math:squrt", "no 'squrt' in math; did you mean 'sqrt'"),
        ("no_such_package:name", "no module 'no_such_package'"),
    ],
)
def test_on_text_refuses_what_is_no_function(func, words):
    with pytest.raises(ValueError, match=words):
        OnText(func)


ALL = [
    RegexMatch("film", forbid=True),
    KeywordCoverage(["film", "good"], column="keys", forbidden=["bad"]),
    Language(),
    OnText(len),
]


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.__name__)
def test_a_value_is_that_of_its_own_row_and_survives_pickling(rule):
    completions = [ENGLISH, GERMAN, "", "...", "😀 好 bad", "good film " * 5000]
    keys = [["shop"], None, ["a"], [], "bad", "film"]
    together = rule(completions=completions, keys=keys)
    alone = [rule(completions=[text], keys=[key])[0] for text, key in zip(completions, keys, strict=True)]
    assert together == alone
    assert len(set(together)) > 1
    assert pickle.loads(pickle.dumps(rule))(completions=completions, keys=keys) == together
    messages = [[{"role": "assistant", "content": text}] for text in completions]
    assert rule(completions=messages, keys=keys) == together


def test_new_rules_add_up():
    reward = WeightedSum(ALL, weights=[1.0, 2.0, 0.0, 0.1])
    scores = reward(prompts=["", ""], completions=["good", "bad film"], completion_ids=[[1], [1]], keys=[None, None])
    assert scores == pytest.approx([1 + 2 * 0.5 + 0.4, 2 * (0.5 - 1) + 0.8])
