import pytest

from rlhf_recipes.words import is_blank, ngrams, sacrebleu_tokenizer, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The film, oddly, works.", ["the", "film", "oddly", "works"]),
        ("Don't: it's a well-known 'classic' -- truly", ["don't", "it's", "a", "well-known", "classic", "truly"]),
        ("3.14 of 1,000 is 50% in 2024.", ["3.14", "of", "1,000", "is", "50", "in", "2024"]),
        ("good.The snake_case", ["good", "the", "snake", "case"]),
        ("Ein schöner Straßenfilm", ["ein", "schöner", "strassenfilm"]),
        ("l'acqua col·lega", ["l'acqua", "col·lega"]),
        ("한국어는 좋아요!", ["한국어는", "좋아요"]),
        ("الطقس جميل، جدا؟", ["الطقس", "جميل", "جدا"]),
        ("आज मौसम अच्छा है।", ["आज", "मौसम", "अच्छा", "है"]),
        ("צה״ל", ["צה״ל"]),
        ("这部电影很好，2024年。", ["这", "部", "电", "影", "很", "好", "2024", "年"]),
        ("二〇二四年の人々", ["二", "〇", "二", "四", "年", "の", "人", "々"]),
        ("ラーメンを食べた", ["ラ", "ー", "メ", "ン", "を", "食", "べ", "た"]),
        ("ดีมาก", ["ดี", "ม", "า", "ก"]),
        ("ພາສາ", ["ພ", "າ", "ສ", "າ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မာမီ", ["မ", "ာ", "မီ"]),
        ("བོད", ["བོ", "ད"]),
        ("PyTorchを使う", ["pytorch", "を", "使", "う"]),
        ("", []),
        (" \n\t", []),
        ("... !? —", []),
    ],
)
def test_words_of_many_scripts(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "count"),
    [("😀😀", 2), ("👍🏽", 1), ("👨‍👩‍👧", 1), ("🇩🇪🇫🇷", 2), ("1️⃣", 1), ("❤️❤", 2), ("good😀film", 3), ("© ® ™", 0)],
)
def test_each_emoji_is_a_word(text, count):
    assert len(words(text)) == count


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("café", "cafe\u0301"),
        ("ＡＢＣ １２", "abc 12"),
        ("ｶﾞｽ", "ガス"),
        ("ﬁlm", "film"),
        ("don’t", "don't"),
        ("well‑known", "well-known"),
        ("STRASSE", "straße"),
        ("ΟΔΟΣ", "οδος"),
        ("co\u00adoperate", "cooperate"),
        ("می\u200cخواهم", "میخواهم"),
        ("❤️", "❤"),
    ],
)
def test_words_that_look_the_same_are_the_same(one, other):
    assert words(one) == words(other)
    assert words(one)


def test_thai_vowel_signs_stay_with_their_consonant():
    assert len(words("น้ำ")) == 1  # three characters, of which form NFKC makes four with a new beginning


def test_accents_without_a_composed_form_stay_in_their_word():
    assert len(words("ag̣a x̌y")) == 2  # these accents are also in use with Katakana and Bopomofo


def test_nothing_that_is_not_seen_makes_a_word():
    assert words("a\u200bb") == ["a", "b"]  # a zero-width space is a space
    assert words("\u200b\ufeff\u3164\u00ad") == []


def test_case_can_be_kept():
    assert words("The Straße", lower=False) == ["The", "Straße"]


def test_punctuation_can_be_kept():
    assert words("Well, it's $5...", punctuation=True) == ["well", ",", "it's", "$", "5", ".", ".", "."]
    assert words("好。", punctuation=True) == ["好", "。"]
    assert words("😀!", punctuation=True) == ["😀", "!"]


def test_long_and_broken_texts():
    assert words("so it goes " * 4_000) == ["so", "it", "goes"] * 4_000
    assert words("half an emoji: \ud83d") == ["half", "an", "emoji"]
    assert words("\x00\x07") == []


def test_ngrams():
    assert ngrams(["a", "b", "c"], 2) == [("a", "b"), ("b", "c")]
    assert ngrams(["a"], 2) == []


@pytest.mark.parametrize("text", ["", " \n", "\u200b", "\u3164", "\x00", "\ufeff"])
def test_blank(text):
    assert is_blank(text)


@pytest.mark.parametrize("text", ["a", "1", ".", "$", "😀", "好", "\ufffd"])
def test_not_blank(text):
    assert not is_blank(text)


@pytest.mark.parametrize(
    ("references", "tokenizer"),
    [
        (["A quiet film."], "13a"),
        (["Ein schöner Film."], "13a"),
        (["한국어는 좋아요"], "13a"),
        (["आज मौसम अच्छा है"], "13a"),
        (["الطقس جميل"], "13a"),
        (["今天天气很好"], "zh"),
        (["我用 PyTorch 和 Transformers 写代码"], "zh"),
        (["東京は大きい"], "char"),
        (["アメリカ"], "char"),
        (["ดีมาก"], "char"),
        (["ພາສາ"], "char"),
        (["ភាសា"], "char"),
        (["မြန်မာ"], "char"),
        (["They shouted カ at the end of the film"], "13a"),  # one character does not make the text Japanese
        (["Good.", "今天天气很好"], "zh"),
        (["..."], "13a"),
        ([], "13a"),
    ],
)
def test_the_tokenizer_of_sacrebleu_follows_the_script(references, tokenizer):
    assert sacrebleu_tokenizer(references) == tokenizer
