import dataclasses
import json
import math
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from rlhf_recipes.reward_modeling.linear.features import (
    GROUPS,
    NAMED,
    BagOfWords,
    Embedding,
    Feature,
    FeatureGroup,
    FeatureSet,
    Keywords,
    Length,
    Marks,
    PromptOverlap,
    Readability,
    Repetition,
    Sentiment,
    Variety,
    beside,
    make_group,
)
from rlhf_recipes.reward_modeling.linear.groups import count_syllables
from rlhf_recipes.rewards import RewardError
from rlhf_recipes.words import words
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

TEXTS = ["The film is good. The cast is good!", "A dull plot", "Is it good? No.", "静かな映画。 とても良い。"]


def values_of(group, text, prompt=""):
    """The values of one text by the name of the feature."""
    features = FeatureSet((group,)).fit([prompt], [text])
    return dict(zip([f.name for f in features.features], features.matrix([prompt], [text])[0].tolist(), strict=True))


# ---- what is counted


def test_length_counts_characters_words_and_sentences():
    assert values_of(Length(), " The film is good. It's 3.5 stars! ") == pytest.approx(
        # film is good. It's 3.5 stars!: 3 + 4 + 2 + 4 + 4 + 3 + 5 letters and signs inside of words
        {"characters": 33, "words": 7, "sentences": 2, "word_length": 25 / 7, "sentence_length": 3.5}
    )


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("No full stop", 1),
        ("One. Two! Three?", 3),
        ("Wait... what?!", 2),
        ('He said "go." She went.', 2),
        ("静かな映画。とても良い！", 2),
        ("A J.R.R. Tolkien film at 3.5 stars", 2),  # the last point of an abbreviation is taken for an end
        ("...", 0),
        ("", 0),
    ],
)
def test_sentences(text, sentences):
    assert values_of(Length(), text)["sentences"] == sentences


def test_characters_of_scripts_without_spaces_are_words():
    assert values_of(Length(), "静かな映画。")["words"] == 5


@pytest.mark.parametrize(
    ("word", "count"),
    [("cat", 1), ("film", 1), ("funny", 2), ("table", 2), ("made", 1), ("whole", 1), ("beautiful", 3), ("the", 1),
     ("a", 1), ("rhythm", 1), ("1990s", 1), ("tale", 1)],
)  # fmt: skip
def test_syllables(word, count):
    assert count_syllables(word) == count


def test_reading_ease_is_flesch_s_formula():
    # "The cat sat on the mat." has 6 words in 1 sentence, and 6 syllables.
    assert values_of(Readability(), "The cat sat on the mat.") == pytest.approx(
        {"reading_ease": 206.835 - 1.015 * 6 - 84.6}
    )
    # 3 words, 1 sentence, 3 + 4 + 5 syllables; below the least, which is -100.
    hard = values_of(Readability(), "beautiful capability individuality")["reading_ease"]
    assert hard == -100


def test_reading_ease_of_accents_and_of_no_latin_words():
    assert values_of(Readability(), "Le café noir") == values_of(Readability(), "Le cafe noir")
    for text in ("", "...", "静かな映画。", "Тихий фильм", "1995"):
        assert values_of(Readability(), text) == {"reading_ease": 60.0}


def test_variety_is_distinct_words_and_pairs():
    # good film good film: 2 of 4 words, 2 of 3 pairs
    assert values_of(Variety(), "Good film, good film") == pytest.approx(
        {"type_token_ratio": 0.5, "distinct_2": 2 / 3}
    )


def test_marks_are_shares_of_visible_characters():
    # "Wow! Is it 10?": 11 visible: W o w ! I s i t 1 0 ?; letters: 7, of which 2 are capitals
    assert values_of(Marks(), "Wow! Is it 10?") == pytest.approx(
        {"punctuation": 2 / 11, "exclamation": 1 / 11, "question": 1 / 11, "digits": 2 / 11, "uppercase": 2 / 7}
    )
    assert values_of(Marks(), "すごい！")["exclamation"] == 0.25  # full width
    assert values_of(Marks(), "静か")["uppercase"] == 0.0


def test_sentiment_is_vader_s():
    # The example of VADER's own README.
    found = values_of(Sentiment(), "VADER is smart, handsome, and funny.")
    assert found == {
        "vader_compound": 0.8316,
        "vader_positive": 0.746,
        "vader_negative": 0.0,
        "vader_neutral": 0.254,
    }
    beginning = values_of(Sentiment(max_characters=8), "It is a bad film")
    assert beginning["vader_negative"] == 0.0


def test_keywords_are_counted_as_words_and_phrases_without_case():
    group = Keywords(["good", "well made", "静か"], label="praise")
    assert values_of(group, "Good! A well-made film, well made and good; no goodness.") == {"praise": 3}
    assert values_of(group, "静かな映画、静か") == {"praise": 2}
    assert values_of(group, "か静") == {"praise": 0}


def test_repetition_is_what_was_there_before():
    # 6 words, 4 runs of three: abc bca cab abc
    assert values_of(Repetition(), "a b c a b c") == {"repetition": 0.25, "longest_run": 1}
    assert values_of(Repetition(n=1), "no no no film") == {"repetition": 0.5, "longest_run": 3}


def test_prompt_overlap_is_of_the_completion():
    assert values_of(PromptOverlap(), " a film a day", "The film is a") == {"prompt_overlap": 2 / 3}
    assert values_of(PromptOverlap(), "a film") == {"prompt_overlap": 0.0}


# ---- bags of words


def test_tfidf_is_scikit_learn_s():
    group = BagOfWords(max_n=2, min_texts=2)
    features = FeatureSet((group,)).fit([""] * 4, TEXTS)
    theirs = TfidfVectorizer(tokenizer=words, lowercase=False, token_pattern=None, ngram_range=(1, 2), min_df=2)
    expected = theirs.fit_transform(TEXTS).toarray()
    assert features.groups[0].vocabulary == tuple(theirs.get_feature_names_out())
    np.testing.assert_allclose(features.matrix([""] * 4, TEXTS), expected, atol=1e-12)


@pytest.mark.parametrize(("weighting", "value"), [("binary", 1.0), ("count", 2.0)])
def test_words_are_there_or_counted(weighting, value):
    features = FeatureSet((BagOfWords(min_texts=1, weighting=weighting),)).fit([""] * 4, TEXTS)
    row = features.matrix([""], ["good good"])[0]
    by_name = dict(zip([feature.name for feature in features.features], row, strict=True))
    assert by_name['"good"'] == value
    assert sum(by_name.values()) == value


def test_a_text_of_unknown_words_is_zero():
    features = FeatureSet((BagOfWords(min_texts=1),)).fit([""] * 4, TEXTS)
    assert features.matrix(["", "", ""], ["zebra", "", "?!"]).tolist() == [[0.0] * len(features.features)] * 3


def test_max_features_keeps_the_most_frequent():
    features = FeatureSet((BagOfWords(min_texts=1, max_features=2),)).fit([""] * 3, ["good film", "good", "a film"])
    assert features.groups[0].vocabulary == ("film", "good")


def test_a_vocabulary_comes_from_training_texts_alone():
    with pytest.raises(ValueError, match="call fit"):
        FeatureSet((BagOfWords(),)).matrix([""], ["good"])
    with pytest.raises(ValueError, match="Lower min_texts"):
        FeatureSet((BagOfWords(),)).fit(["", ""], ["good", "bad"])


def test_many_columns_stay_sparse():
    texts = [f"word{number} film" for number in range(1200)]
    features = FeatureSet((Length(), BagOfWords(min_texts=1))).fit([""] * 1200, texts)
    matrix = features.matrix([""] * 1200, texts)
    assert matrix.shape == (1200, 5 + 1201)
    assert not isinstance(matrix, np.ndarray)
    dense = beside([block if isinstance(block, np.ndarray) else block.toarray()
                    for block in features.blocks([""] * 1200, texts)])  # fmt: skip
    np.testing.assert_array_equal(matrix.toarray(), dense)


# ---- embeddings


def test_an_embedding_is_a_vector_of_length_one(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "encoder", tiny_classifier(tokenizer), tokenizer)
    features = FeatureSet((Length(), Embedding(str(folder)))).fit([""], ["A film"])
    matrix = features.matrix(["The film is", ""], [" good", "bad"])
    assert matrix.shape == (2, 5 + 32)
    np.testing.assert_allclose(np.linalg.norm(matrix[:, 5:], axis=1), [1, 1], atol=1e-6)
    together = features.matrix([""], ["The film is good"])
    np.testing.assert_allclose(matrix[0], together[0], atol=1e-6)


# ---- all groups


def all_values(features, prompt, completion):
    return features.matrix([prompt], [completion])[0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n",
        "...",
        "?!",
        "👍🏽 🎬",
        "静かな film — ЖЁЛТЫЙ 🎬!",
        "no " * 10_000,
        "\ud800 broken",
        "\u200b",
        "1" * 5000,
    ],
    ids=["empty", "blank", "points", "signs", "emoji", "mixed", "long", "surrogate", "invisible", "digits"],
)
def test_every_text_has_finite_values(text):
    features = FeatureSet((*NAMED, Keywords(("good",)), BagOfWords(min_texts=1))).fit([""] * 4, TEXTS)
    for prompt, completion in (("", text), (text, ""), (text, text)):
        values = all_values(features, prompt, completion)
        assert np.isfinite(values).all()
        assert len(values) == len(features.features)


def test_an_empty_text_has_zeros_but_for_the_reading_ease():
    features = FeatureSet()
    found = dict(zip([f.name for f in features.features], all_values(features, "", ""), strict=True))
    assert found.pop("reading_ease") == 60.0
    assert set(found.values()) == {0.0}


def test_every_feature_has_a_name_a_meaning_and_a_unit():
    features = FeatureSet((*NAMED, Keywords(("good",)), BagOfWords(min_texts=1))).fit([""] * 4, TEXTS).features
    assert len({feature.name for feature in features}) == len(features)
    for feature in features:
        assert feature.name
        assert feature.meaning
        assert "\n" not in feature.meaning
        assert feature.unit


def test_a_row_alone_has_the_values_that_it_has_among_others():
    features = FeatureSet((*NAMED, BagOfWords(min_texts=1))).fit([""] * 4, TEXTS)
    together = features.matrix(["x"] * 4, TEXTS)
    for row, text in enumerate(TEXTS):
        np.testing.assert_array_equal(features.matrix(["x"], [text])[0], together[row])


def test_features_are_of_prompt_and_completion_unless_told_otherwise():
    assert FeatureSet((Length(),)).matrix(["The film"], [" is good"])[0][1] == 4
    assert FeatureSet((Length(),), completion_only=True).matrix(["The film"], [" is good"])[0][1] == 2
    messages = [{"role": "user", "content": "Well?"}], [{"role": "assistant", "content": "It is good"}]
    assert FeatureSet((Length(),)).matrix([messages[0]], [messages[1]])[0][1] == 4  # not Well?It


def test_json_holds_all_that_was_learned():
    features = FeatureSet((*NAMED, Keywords(("good", "well made"), "praise"), BagOfWords(2, 1)), completion_only=True)
    features = features.fit([""] * 4, TEXTS)
    again = FeatureSet.from_json(json.loads(json.dumps(features.to_json())))
    assert again == features
    np.testing.assert_array_equal(again.matrix([""] * 4, TEXTS), features.matrix([""] * 4, TEXTS))


@dataclass(frozen=True)
class Vowels(FeatureGroup):
    factor: float = 1.0

    @property
    def features(self):
        return (Feature("vowels", "vowels in the text", "letters"),)

    def values(self, reading):
        return (self.factor * sum(c in "aeiou" for c in reading.text),)


def test_a_group_of_one_s_own_is_imported_from_json_only_if_trusted():
    features = FeatureSet((Vowels(factor=2.0),))
    assert features.matrix([""], ["a film"]).tolist() == [[4.0]]
    with pytest.raises(ValueError, match="trust=True"):
        FeatureSet.from_json(features.to_json())
    assert FeatureSet.from_json(features.to_json(), trust=True).matrix([""], ["a film"]).tolist() == [[4.0]]


def test_a_group_out_of_a_file_is_found_again(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from rlhf_recipes.reward_modeling.linear.features import Feature, FeatureGroup\n"
        "class One(FeatureGroup):\n"
        "    features = (Feature('one', 'always one', 'none'),)\n"
        "    def values(self, reading):\n"
        "        return (1.0,)\n"
    )
    features = FeatureSet((f"{file}:One",))
    assert features.to_json()["groups"] == [{"kind": f"{file}:One"}]
    assert FeatureSet.from_json(features.to_json(), trust=True).matrix([""], ["x"]).tolist() == [[1.0]]


@dataclass(frozen=True)
class NotANumber(Vowels):
    def values(self, reading):
        return (math.nan if reading.text == "b" else 0.0,)


def test_a_value_that_is_no_number_is_refused_and_named():
    with pytest.raises(RewardError, match=r"'vowels' is nan for row 1 \('b'\)"):
        FeatureSet((NotANumber(),)).matrix(["", ""], ["a", "b"])


# ---- settings


def test_groups_by_name_as_in_yaml():
    assert make_group("Length") == Length()
    assert make_group({"BagOfWords": {"max_n": 2}}) == BagOfWords(max_n=2)
    assert make_group({"Sentiment": None}) == Sentiment()
    for group in GROUPS:
        assert dataclasses.is_dataclass(group)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("Lenght", "did you mean 'Length'"),
        ({"Length": {"unit": "words"}}, "Length has no setting unit"),
        ("Keywords", "Keywords has to be given keywords"),
        ({"Keywords": {"keywords": "good"}}, "takes a list of words"),
        ({"Keywords": {"keywords": ["good", "?!"]}}, "needs words to count"),
        ({"BagOfWords": {"max_n": 0}}, "must be 1 or more"),
        ({"BagOfWords": {"weighting": "tf"}}, "'tfidf', 'binary' or 'count'"),
        ({"Repetition": {"n": 0}}, "n of Repetition is 0"),
        ({"Sentiment": {"max_characters": 0}}, "must be 1 or more"),
        ({"Length": {}, "Marks": {}}, "one name with its settings"),
        (3, "one name with its settings"),
    ],
)
def test_mistakes_are_told(spec, message):
    with pytest.raises(ValueError, match=message):
        make_group(spec)


def test_two_features_of_one_name_are_refused():
    with pytest.raises(ValueError, match="keywords"):
        FeatureSet((Keywords(("good",)), Keywords(("bad",))))
    with pytest.raises(ValueError, match="one group"):
        FeatureSet(())


def test_features_do_not_wait_for_torch():
    code = (
        "import sys; from rlhf_recipes.reward_modeling.linear.features import FeatureSet\n"
        "FeatureSet().matrix([''], ['good']); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"
