import math
import pickle
import random
import re
import string
from collections import Counter

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU as SacreBLEU
from sacrebleu.metrics import CHRF

from rlhf_recipes.rewards import EndsWithSentence, WeightedSum
from rlhf_recipes.rewards import reference as module
from rlhf_recipes.rewards.reference import BLEU, ROUGE, ChrF, ExactMatch, TokenF1, common_subsequence, corpus_bleu
from rlhf_recipes.words import sacrebleu_tokenizer

FOX = "the quick brown fox jumps over the lazy dog"
FOX_TOO = "the fast brown fox jumped over the lazy dog"
# A text, and one that differs from it in a word.
ALIKE = {
    "Chinese": ("今天天气很好，我们去公园。", "今天天气不错，我们去公园。"),
    "Japanese": ("今日は天気がとても良いです。", "今日は天気がとても悪いです。"),
    "Korean": ("오늘은 날씨가 아주 좋아요", "오늘은 날씨가 정말 좋아요"),
    "Thai": ("วันนี้อากาศดีมาก", "วันนี้อากาศร้อนมาก"),
    "Arabic": ("الطقس جميل جدا هذا اليوم", "الطقس حار جدا هذا اليوم"),
    "Hindi": ("आज मौसम बहुत अच्छा है", "आज मौसम बहुत खराब है"),
}
ALL = [BLEU(), ChrF(), ChrF(word_order=2), ROUGE(variant="rouge1"), ROUGE(variant="rouge2"), ROUGE(), ROUGE(stem=True),
       ExactMatch(), TokenF1()]  # fmt: skip
ids = [f"{reward.__name__}-{index}" for index, reward in enumerate(ALL)]


def score(reward, text, *references):
    (value,) = reward(prompts=[""], completions=[text], completion_ids=[[]], reference=[list(references)])
    return value


def some_texts(count, seed=0, length=12):
    rng = random.Random(seed)
    vocabulary = f"{FOX} {FOX_TOO} a an running jumps quickly , .".split()
    return [" ".join(rng.choices(vocabulary, k=rng.randint(1, length))) for _ in range(count)]


# ---- BLEU


def test_bleu_by_hand():
    # Of three words two are there, of two pairs one, of one triple none: 1 / (2 * 1). Four words were wanted.
    by_hand = math.exp(1 - 4 / 3) * (2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3)
    assert score(BLEU(), "yes it is", "yes it was so") == pytest.approx(by_hand)
    assert score(BLEU(), "no", "yes") == 0.0


@pytest.mark.parametrize(
    ("text", "references", "sacrebleu_says"),
    [
        (FOX, [FOX_TOO], 36.88939732334405),
        ("yes it is", ["yes it was so"], 39.43223765116288),
        ("The cat sat.", ["the cat sat down", "A cat sat."], 59.460355750136046),
        (FOX, [FOX_TOO, "a quick brown fox jumps over a dog"], 74.76743906106104),
    ],
)
def test_bleu_of_known_pairs(text, references, sacrebleu_says):
    assert score(BLEU(), text, *references) == pytest.approx(sacrebleu_says / 100)


@pytest.mark.parametrize(
    ("language", "sacrebleu_says"),
    [
        ("Chinese", 67.03420896351791),
        ("Japanese", 78.25422900366432),
        ("Korean", 35.35533905932737),  # one word in four, and words have spaces
        ("Thai", 65.72677895577044),
        ("Arabic", 42.72870063962342),
        ("Hindi", 42.72870063962342),
    ],
)
def test_bleu_of_many_scripts(language, sacrebleu_says):
    assert score(BLEU(), *ALIKE[language]) == pytest.approx(sacrebleu_says / 100)


def test_bleu_is_sacrebleus():
    theirs = SacreBLEU(effective_order=True)
    for text, first, second in zip(some_texts(50), some_texts(50, seed=1), some_texts(50, seed=2), strict=True):
        assert score(BLEU(), text, first) == pytest.approx(theirs.sentence_score(text, [first]).score / 100)
        both = theirs.sentence_score(text, [first, second]).score
        assert score(BLEU(), text, first, second) == pytest.approx(both / 100)


def test_options_of_bleu():
    assert score(BLEU(lowercase=True, max_order=2), "The Cat", "the cat sat") == pytest.approx(math.exp(1 - 3 / 2))
    assert score(BLEU(), "The Cat", "the cat sat") == 0.0
    # Cut at the comma "a,b" is three words; left whole it is one that the reference has not.
    assert score(BLEU(tokenize="none"), "a,b", "a , b") == 0.0
    assert score(BLEU(tokenize="13a"), "a,b", "a , b") == 1.0


def test_no_completion_chooses_its_own_metric():
    english = "a quiet film with a warm heart"
    theirs = SacreBLEU(effective_order=True, tokenize="13a")
    stuffed = english + " とてもいいえいがです"  # in characters these would be most of the text
    assert score(BLEU(), stuffed, english) == pytest.approx(theirs.sentence_score(stuffed, [english]).score / 100)
    theirs = SacreBLEU(effective_order=True, tokenize="zh")
    assert score(BLEU(), "good 天气", "今天天气很好") == pytest.approx(
        theirs.sentence_score("good 天气", ["今天天气很好"]).score / 100
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokenize": "ja-mecab"}, "tokenize of BLEU is 'ja-mecab'; it must be one of auto, 13a"),
        ({"max_order": 0}, "max_order of BLEU is 0"),
    ],
)
def test_bleu_refuses_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BLEU(**settings)


@pytest.mark.parametrize("max_order", range(1, 13))
def test_bleu_of_equal_texts_is_exactly_one(max_order):
    text = "a b c d e f g h i j k l m"  # sacrebleu says 100.00000000000004, or 100.00000000000013
    assert score(BLEU(max_order=max_order), text, text) == 1.0


# ---- BLEU of a corpus


def test_corpus_bleu_is_sacrebleus():
    texts = [FOX, "It is a small house."]
    assert corpus_bleu(texts, [FOX_TOO, "It was a small house."]) == pytest.approx(0.43194143500600994)
    theirs = sacrebleu.corpus_bleu(texts, [[FOX_TOO, "It was a small house."], ["a quick fox", None]])
    assert corpus_bleu(texts, [[FOX_TOO, "a quick fox"], "It was a small house."]) == pytest.approx(theirs.score / 100)


def test_corpus_bleu_takes_one_tokenizer_for_all():
    texts, references = zip(*[ALIKE["Japanese"]] * 2, strict=True)
    theirs = sacrebleu.corpus_bleu(list(texts), [list(references)], tokenize="char")
    assert corpus_bleu(texts, references) == pytest.approx(theirs.score / 100)


def test_a_text_of_another_script_changes_nothing_for_the_rest_of_a_corpus():
    """Each pair is cut into tokens by its own references, and the counts of all are added up."""
    pairs = [*ALIKE.values(), (FOX, FOX_TOO), ("R&amp;B is 好", "It&amp;s 好"), ("R&amp;B at 3-4", "R&amp;B at 3-5")]
    kinds = [sacrebleu_tokenizer([reference]) for _, reference in pairs]
    assert set(kinds) == {"13a", "zh", "char"}
    tokenizers = {kind: SacreBLEU(tokenize=kind).tokenizer for kind in set(kinds)}
    texts, references = (
        [tokenizers[kind](pair[side]) for kind, pair in zip(kinds, pairs, strict=True)] for side in (0, 1)
    )
    theirs = sacrebleu.corpus_bleu(texts, [references], tokenize="none", force=True)
    assert corpus_bleu(*zip(*pairs, strict=True)) == pytest.approx(theirs.score / 100)

    english = [(FOX, FOX_TOO), ("R&amp;B at 3-4", "R&amp;B at 3-5")] * 50
    alone = sacrebleu.corpus_bleu([text for text, _ in english], [[reference for _, reference in english]])
    beside = [*english, ("x", "好")]  # nothing in common: counts of no n-gram are added, and one token of length
    assert corpus_bleu(*zip(*english, strict=True)) == pytest.approx(alone.score / 100)
    assert corpus_bleu(*zip(*beside, strict=True)) == pytest.approx(alone.score / 100, rel=0.01)


def test_corpus_bleu_leaves_out_what_has_no_reference():
    assert corpus_bleu([FOX, "x"], [FOX_TOO, None]) == corpus_bleu([FOX], [FOX_TOO])
    with pytest.raises(ValueError, match="None of the 2 texts has a reference"):
        corpus_bleu(["a", "b"], [None, ""])
    with pytest.raises(ValueError, match="1 texts and 2 references"):
        corpus_bleu(["a"], ["a", "b"])


def test_corpus_bleu_of_short_and_empty_texts():
    assert corpus_bleu(["yes", "no"], ["yes", "no"]) == 1.0
    assert corpus_bleu(["", ""], ["yes", "no"]) == 0.0
    assert corpus_bleu([[{"role": "assistant", "content": FOX}]], [FOX]) == 1.0


# ---- chrF


def test_chrf_by_hand():
    # Single characters: 2 of 2 are there, of 3 wanted. Pairs: 1 of 1, of 2 wanted. P = 1, R = (2/3 + 1/2) / 2 = 7/12.
    assert score(ChrF(char_order=2), "ab", "abc") == pytest.approx(5 * 7 / 12 / (4 + 7 / 12))
    assert score(ChrF(char_order=2, beta=1), "ab", "abc") == pytest.approx(2 * 7 / 12 / (1 + 7 / 12))


@pytest.mark.parametrize(
    ("language", "word_order", "sacrebleu_says"),
    [
        ("Chinese", 0, 55.26418026418026),
        ("Japanese", 0, 68.42555592555591),
        ("Korean", 0, 48.3519721019721),
        ("Thai", 0, 61.639348855647114),
        ("Arabic", 0, 64.4399100909652),
        ("Hindi", 0, 58.205417499851464),
        ("Arabic", 2, 64.58667767904825),
    ],
)
def test_chrf_of_many_scripts(language, word_order, sacrebleu_says):
    assert score(ChrF(word_order=word_order), *ALIKE[language]) == pytest.approx(sacrebleu_says / 100)


def test_chrf_is_sacrebleus():
    for settings in [{}, {"word_order": 2}, {"char_order": 3, "beta": 1, "lowercase": True}]:
        theirs = CHRF(**settings)
        for text, *references in zip(some_texts(20), some_texts(20, seed=1), some_texts(20, seed=2), strict=True):
            expected = theirs.sentence_score(text, references).score / 100
            assert score(ChrF(**settings), text, *references) == pytest.approx(expected)


@pytest.mark.parametrize("settings", [{"char_order": 0}, {"word_order": -1}, {"beta": 0}, {"beta": 1.5}])
def test_chrf_refuses_settings(settings):
    with pytest.raises(
        ValueError, match=f"{next(iter(settings))} of ChrF is .*; it must be . or more, and a whole number"
    ):
        ChrF(**settings)


# ---- ROUGE


DIGITS_AND_WORDS = [
    "it",
    "costs",
    "4.50",
    "4",
    "1,000",
    "film",
    "well-known",
    "don't",
    "3/4",
    "good",
    "U.S.",
    "50%",
    "$5",
]


def test_rouge_of_english_is_rouge_scores_where_no_word_is_split_there():
    """A number with a point or comma, and a word with an apostrophe or hyphen, is one word here and several there."""
    theirs = RougeScorer(["rougeL"], use_stemmer=False)
    dice = random.Random(0)
    for _ in range(200):
        text, reference = (" ".join(dice.choices(DIGITS_AND_WORDS, k=8)) for _ in range(2))
        expected = theirs.score(reference, text)["rougeL"].fmeasure
        if not re.search(r"\w[.,'/-]\w", text + reference):
            assert score(ROUGE(), text, reference) == pytest.approx(expected)
    assert theirs.score("4.50", "4")["rougeL"].fmeasure == pytest.approx(2 / 3)
    assert score(ROUGE(), "4", "4.50") == 0.0
    assert score(ROUGE(), "It costs 4.50.", "it costs 4.50") == 1.0


def test_rouge_by_hand():
    # In common: the, brown, fox, over, the, lazy, dog; brown fox, over the, the lazy, lazy dog; and all in one order.
    assert score(ROUGE(variant="rouge1"), FOX, FOX_TOO) == pytest.approx(7 / 9)
    assert score(ROUGE(variant="rouge2"), FOX, FOX_TOO) == pytest.approx(4 / 8)
    assert score(ROUGE(), FOX, FOX_TOO) == pytest.approx(7 / 9)
    assert score(ROUGE(), "dog bites man", "man bites dog") == pytest.approx(1 / 3)  # all words, but one in order
    assert score(ROUGE(variant="rouge1"), "dog bites man", "man bites dog") == 1.0
    assert score(ROUGE(), "a b", "a b c d") == pytest.approx(2 * 1 * (1 / 2) / (1 + 1 / 2))


@pytest.mark.parametrize("variant", ["rouge1", "rouge2", "rougeL"])
@pytest.mark.parametrize("stem", [False, True])
def test_rouge_of_english_is_rouge_scores_own(variant, stem):
    theirs = RougeScorer([variant], use_stemmer=stem)
    for text, *references in zip(some_texts(40), some_texts(40, seed=1), some_texts(40, seed=2), strict=True):
        if min(len(re.findall(r"\w+", reference)) for reference in references) < 2:
            continue  # without pairs theirs is 0
        expected = theirs.score_multi(references, text)[variant].fmeasure
        assert score(ROUGE(variant=variant, stem=stem), text, *references) == pytest.approx(expected)


def test_rouge_of_scripts_that_its_own_tokenizer_drops():
    # Characters: 9 of 11, 12 of 13, and 11 of 13 clusters; words: 3 of 4 and 4 of 5.
    found = {language: score(ROUGE(), *texts) for language, texts in ALIKE.items()}
    assert found == pytest.approx(
        {"Chinese": 9 / 11, "Japanese": 12 / 13, "Korean": 3 / 4, "Thai": 11 / 13, "Arabic": 4 / 5, "Hindi": 4 / 5}
    )
    assert RougeScorer(["rougeL"]).score(*ALIKE["Chinese"])["rougeL"].fmeasure == 0.0


def test_rouge_stems_english_alone():
    assert score(ROUGE(stem=True), "he jumps quickly", "he jumped quickly") == 1.0
    assert score(ROUGE(), "he jumps quickly", "he jumped quickly") == pytest.approx(2 / 3)
    assert score(ROUGE(stem=True), "être jumps", "êtres jumps") == pytest.approx(1 / 2)


def test_rouge_of_pairs_where_the_reference_has_one_word():
    assert score(ROUGE(variant="rouge2"), "oh yes", "yes") == pytest.approx(2 / 3)  # as rouge1
    assert score(ROUGE(variant="rouge2"), "yes", "oh yes") == 0.0  # the completion has no say in it


def test_long_texts_are_compared_by_another_algorithm_with_the_same_result(monkeypatch):
    texts, references = some_texts(20, length=40), some_texts(20, seed=1, length=40)
    theirs = RougeScorer(["rougeL"])
    monkeypatch.setattr(module, "LARGEST_TABLE", 0)
    for text, reference in zip(texts, references, strict=True):
        expected = theirs.score(reference, text)["rougeL"].fmeasure
        assert score(ROUGE(), text, reference) == pytest.approx(expected)
    assert common_subsequence("abcbdab", "bdcaba") == 4  # bcba


def test_rouge_refuses_settings():
    with pytest.raises(ValueError, match="variant of ROUGE is 'rouge3'; it must be one of rouge1, rouge2, rougeL"):
        ROUGE(variant="rouge3")


# ---- exact match and F1


@pytest.mark.parametrize(
    ("text", "reference"),
    [
        (" The Eiffel Tower. ", "eiffel tower"),
        ("An U.S. film", "US film"),
        ("don’t", "dont"),
        ("1,000", "1000"),
        ("Café", "cafe\u0301"),
        ("北京，中国。", "北京 中国"),
        ("¿Qué?", "qué"),
        ("नमस्ते।", "नमस्ते"),
        ("ＡＢＣ", "abc"),
        ("?", "?"),
        ("The", "the"),
        ("😀", "😀"),
    ],
)
def test_answers_that_match(text, reference):
    assert score(ExactMatch(), text, reference) == 1.0
    assert score(TokenF1(), text, reference) == 1.0


@pytest.mark.parametrize(
    ("text", "reference"),
    [("eiffel", "eiffel tower"), ("tower eiffel", "eiffel tower"), ("!", "?"), ("a", "the"), ("the", "a house"),
     ("...", "yes"), ("yes", "..."), ("😀", "😢")],
)  # fmt: skip
def test_answers_that_do_not_match(text, reference):
    assert score(ExactMatch(), text, reference) == 0.0


def test_switches_of_exact_match():
    assert score(ExactMatch(ignore_case=False), "Polish", "polish") == 0.0
    assert score(ExactMatch(ignore_punctuation=False), "-5", "5") == 0.0
    assert score(ExactMatch(), "-5", "5") == 1.0
    assert score(ExactMatch(articles=[]), "the film", "film") == 0.0
    assert score(ExactMatch(articles=["der", "die", "das"]), "Der Film", "film") == 1.0
    with pytest.raises(ValueError, match="articles 'the', a text"):
        ExactMatch(articles="the")


def test_f1_by_hand():
    assert score(TokenF1(), "the big red dog", "a red dog barks") == pytest.approx(2 * 2 / (3 + 3))
    assert score(TokenF1(), "red red red", "red dog") == pytest.approx(2 * 1 / (3 + 2))  # red counts once
    assert score(TokenF1(), "dog red", "red dog") == 1.0
    assert score(TokenF1(), "天气很好", "天气不好") == pytest.approx(3 / 4)
    assert score(TokenF1(), "no", "yes", "no way") == pytest.approx(2 / 3)  # the best of the references


def squad(text, reference):
    """Both scores as the paper says: words without case, ASCII punctuation and articles."""

    def normalized(one):
        bare = "".join(character for character in one.lower() if character not in string.punctuation)
        return [word for word in bare.split() if word not in ("a", "an", "the")]

    found, wanted = normalized(text), normalized(reference)
    shared = sum(min(found.count(word), count) for word, count in Counter(wanted).items())
    precision, recall = shared / max(1, len(found)), shared / max(1, len(wanted))
    return found == wanted, 2 * precision * recall / (precision + recall) if shared else 0.0


def test_answers_in_english_are_scored_as_in_squad():
    for text, reference in zip(some_texts(200, length=4), some_texts(200, seed=1, length=4), strict=True):
        text, reference = text.title() + ".", reference.replace("jumps", "well-known")
        exact, f1 = squad(text, reference)
        if squad(reference, reference)[1]:  # something is left of it
            assert score(ExactMatch(), text, reference) == exact
            assert score(TokenF1(), text, reference) == pytest.approx(f1)


# ---- all of them


@pytest.mark.parametrize("reward", ALL, ids=ids)
@pytest.mark.parametrize(
    "text",
    [text for pair in ALIKE.values() for text in pair]
    + ["好", "はい", "네", "ใช่", "نعم", "हाँ", "yes", "a b", "it is so", "no!", "...", "the", "7", "😀", "¿?",
       "👍 好 yes نعم", "ภาษา 中文 English", "Ja — genau…", FOX, "x" * 500, "don't"],
)  # fmt: skip
def test_the_same_text_gets_one_in_any_language(reward, text):
    assert score(reward, text, text) == 1.0
    assert score(reward, f" {text}\n", "something else", text) == 1.0


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_accents_may_be_composed_or_not(reward):
    assert score(reward, "un cafe\u0301 noir", "un café noir") == 1.0
    assert score(reward, "がく", "か\u3099く") == 1.0


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_bad_input_is_defined(reward):
    completions = ["yes", "yes", "yes", "yes", "", " \n", "\u200b", "...", "...", "!!!"]
    references = [None, "", [], [None, " "], "yes", ["yes"], "yes\u200bno", "...", "yes", "..."]
    expected = [None, None, None, None, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert reward(completions=completions, reference=references) == expected


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_references_are_texts_messages_or_lists_of_them(reward):
    message = [{"role": "assistant", "content": FOX}]
    values = reward(completions=[message] * 5, reference=[FOX, [FOX], message, ["no", FOX, None], [message]])
    assert values == [1.0] * 5


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_values_lie_between_0_and_1_and_depend_on_their_row_alone(reward):
    completions = [*some_texts(20), "", "天气", "x " * 10_000]
    references = [*some_texts(20, seed=1), "a", ["天气很好", "yes"], "x y " * 5_000]
    values = reward(completions=completions, reference=references)
    assert all(0.0 <= value <= 1.0 for value in values)
    alone = [reward(completions=[c], reference=[r])[0] for c, r in zip(completions, references, strict=True)]
    assert alone == values
    assert reward(completions=completions[::-1], reference=references[::-1]) == values[::-1]


@pytest.mark.parametrize("reward", ALL, ids=ids)
def test_a_pickled_reward_gives_the_same_values(reward):
    copy = pickle.loads(pickle.dumps(reward))
    assert copy == reward
    assert score(copy, FOX, FOX_TOO) == score(reward, FOX, FOX_TOO)


def test_other_columns_and_names():
    reward = WeightedSum([BLEU("answer", name="close"), TokenF1(column="answer"), EndsWithSentence()], [2.0, 1.0, 0.5])
    assert reward.names == ("close", "TokenF1", "EndsWithSentence")
    values = reward(
        prompts=["", ""], completions=["yes", "yes."], completion_ids=[[], []], answer=["yes", None], topic=["", ""]
    )
    assert values == [3.0, 0.5]


def test_what_is_wrong_with_a_column_is_said():
    with pytest.raises(
        ValueError, match=r"reads the column 'reference', which the dataset lacks. It has answer, topic"
    ):
        BLEU()(completions=["a"], answer=["a"], topic=["b"])
    with pytest.raises(ValueError, match=r"Row 1 of the column 'reference' holds 42, of type int"):
        ExactMatch()(completions=["42", "42"], reference=["42", 42])
