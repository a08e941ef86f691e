"""The text rules, as worked examples."""

import random
from collections import Counter

import pytest

from rlhf_recipes.data.preprocessing import deduplicate, normalize_text, split_of, tidy_text


def test_tidy_text_decodes_entities_once_and_squeezes_whitespace():
    assert tidy_text("  Lovely &amp;  Amazing\n") == "Lovely & Amazing"
    assert tidy_text("how to write &amp;lt; in HTML") == "how to write &lt; in HTML"


@pytest.mark.parametrize(
    "copy", ["Lovely & Amazing", "lovely &amp; AMAZING ", "Lovely &amp;amp;\u00a0Amazing", "LOVELY\t&\nAMAZING"]
)
def test_normalize_text_makes_copies_equal(copy):
    assert normalize_text(copy) == "lovely & amazing"


def test_normalize_text_joins_both_spellings_of_an_accent_and_is_idempotent():
    assert normalize_text("Caf\u00e9") == normalize_text("cafe\u0301")
    for text in ["Caf\u00e9", "Stra\u00dfe", "&amp;lt;b&amp;gt;", "\u0130stanbul", ""]:
        assert normalize_text(normalize_text(text)) == normalize_text(text)


def test_split_of_is_fixed_for_ever():
    # recorded once: these must not change between releases, or old test sets would leak into new training sets
    texts = ["Horrible.", "Fantastic!", "A fun ride.", "Eh.", "Execrable.", "Obvious."]
    assert [split_of(text) for text in texts] == ["train", "train", "test", "train", "train", "train"]
    assert split_of("HORRIBLE. ") == split_of("Horrible.")


def test_split_of_keeps_the_shares_and_takes_others():
    counts = Counter(split_of(f"sentence number {i}") for i in range(5000))
    assert counts["train"] / 5000 == pytest.approx(0.8, abs=0.02)
    assert counts["validation"] / 5000 == pytest.approx(0.1, abs=0.02)
    assert {split_of(f"sentence number {i}", {"all": 1.0}) for i in range(50)} == {"all"}
    assert split_of("half of a surrogate pair: \ud83d") in {"train", "validation", "test"}


@pytest.mark.parametrize("splits", [{"train": 0.8, "test": 0.1}, {"train": 1.2, "test": -0.2}, {}])
def test_split_of_refuses_shares_that_are_none(splits):
    with pytest.raises(ValueError, match=r"every share must be above 0 and their sum 1"):
        split_of("x", splits)


def test_deduplicate_keeps_the_first_copy_and_counts():
    rows = [
        {"completion": "A &amp; B", "votes": [1]},
        {"completion": "C", "votes": [2]},
        {"completion": "a  & b", "votes": [3]},
    ]
    assert deduplicate(rows, "completion") == (rows[:2], 1)
    assert deduplicate(rows, lambda row: str(len(row["votes"]))) == (rows[:1], 2)
    shuffled = random.Random(0).sample(rows, 3)
    assert deduplicate(shuffled, "completion")[1] == 1


def test_deduplicate_names_the_columns_there_are():
    with pytest.raises(KeyError, match=r"no column 'text'.*\['completion', 'score'\]"):
        deduplicate([{"completion": "x", "score": 1}], "text")
