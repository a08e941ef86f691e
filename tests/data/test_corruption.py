"""Corrupted sentences: what happens to words, that chance belongs to the row, and what the command writes."""

import json
import random
from collections import Counter

import pytest

from rlhf_recipes.data import corruption
from rlhf_recipes.data.corruption import (
    Corruption,
    CorruptionArguments,
    corrupt,
    drop_words,
    misspell,
    restoring_rows,
    row_rng,
    swap_neighbours,
)

SENTENCE = "The film was better than its poster, but not by much."
NOTHING = Corruption(drop_rate=0, swap_rate=0, misspell_rate=0)


class Always(random.Random):
    """Chance that says yes to every rate above 0, and picks what it is told to."""

    def __init__(self, *picks):
        super().__init__(0)
        self.picks = list(picks)

    def random(self):
        return 0.0

    def choice(self, options):
        pick = self.picks.pop(0)
        assert pick in options
        return pick


# ---- one thing at a time, by hand


@pytest.mark.parametrize(
    ("picks", "expected"),
    [
        ((1, "omit"), "flm"),
        ((2, "double"), "fillm"),
        ((2, "exchange"), "flim"),
        ((2, "replace", "x"), "fixm"),
    ],
)
def test_one_letter_goes_wrong(picks, expected):
    assert misspell("film", Always(*picks)) == expected


def test_a_letter_is_not_exchanged_with_its_equal_nor_with_the_first():
    assert misspell("good", Always(2, "exchange", "a")) == "goad"  # oo would change nothing
    assert misspell("film", Always(1, "exchange", "a")) == "falm"  # not ifilm


def test_short_words_numbers_and_first_letters_are_spared():
    for word in ("", "the", "1998's", "--", "R.", "😀😀😀😀"):
        assert misspell(word, random.Random(0)) == word
    for seed in range(200):
        spoilt = misspell("(Haneke's", random.Random(seed))
        assert spoilt.startswith("(H")
        assert spoilt != "(Haneke's"


def test_neighbours_change_places_once():
    assert swap_neighbours(["a", "b", "c", "d", "e"], Always(), rate=0.5) == ["b", "a", "d", "c", "e"]
    assert swap_neighbours(["a", "b", "c"], random.Random(0), rate=0) == ["a", "b", "c"]


def test_one_word_is_kept():
    assert drop_words(["only", "these"], Always(), rate=1) == ["only"]
    assert drop_words([], Always(), rate=1) == []


# ---- all three


def test_rates_of_nothing_change_nothing_but_white_space():
    assert corrupt("  The film\n was  fine. ", random.Random(0), NOTHING) == "The film was fine."
    assert corrupt(" \n", random.Random(0)) == ""


def test_each_rate_is_what_it_says():
    """10,000 words of five letters: shares within four standard errors of the rates."""
    words = [f"word{chr(97 + i % 26)}" for i in range(10_000)]
    text = " ".join(words)
    dropped = corrupt(text, random.Random(1), Corruption(0.1, 0, 0)).split()
    assert len(dropped) == pytest.approx(9_000, abs=4 * 30)
    misspelt = corrupt(text, random.Random(1), Corruption(0, 0, 0.1)).split()
    assert sum(a != b for a, b in zip(words, misspelt, strict=True)) == pytest.approx(1_000, abs=4 * 30)
    swapped = corrupt(text, random.Random(1), Corruption(0, 0.1, 0)).split()
    # A pair can only begin where the last one has ended: 0.1 / (1 + 0.1) of the places begin one.
    moved = sum(a != b for a, b in zip(words, swapped, strict=True))
    assert moved / 2 == pytest.approx(10_000 * 0.1 / 1.1, abs=4 * 30)
    assert Counter(swapped) == Counter(words)


def test_chance_belongs_to_seed_and_row():
    once, again = (corrupt(SENTENCE, row_rng(0, "test", SENTENCE)) for _ in range(2))
    assert once == again
    others = {corrupt(SENTENCE, row_rng(seed, "test", SENTENCE), Corruption(0.1, 0.1, 0.5)) for seed in range(20)}
    assert len(others) > 15
    assert row_rng(1, "2").random() != row_rng(12, "").random()  # the parts of a key do not run together
    assert row_rng(0, "\ud800").random() == row_rng(0, "\ud800").random()  # half a surrogate pair, as JSON may hold


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_outside_0_and_1_is_refused(rate):
    with pytest.raises(ValueError, match="misspell_rate is .* from 0 to 1"):
        Corruption(misspell_rate=rate)


# ---- rows and the command


def test_rows_have_what_training_and_rewards_read():
    args = CorruptionArguments(drop_rate=0, swap_rate=0, misspell_rate=1)
    texts = ["too short", SENTENCE, SENTENCE.upper(), "one " * 30, " It  was &quot;fine&quot; and nothing more "]
    rows = list(restoring_rows(texts, "train", args))
    assert [row["reference"] for row in rows] == [SENTENCE, 'It was "fine" and nothing more']
    for row in rows:
        assert row["completion"] == " " + row["reference"]
        assert row["prompt"] == f"Wrong: {row['corrupted']}\nRight:"
        assert row["corrupted"] != row["reference"]


def test_rows_do_not_depend_on_their_order_and_unspoilt_ones_are_left_out():
    args = CorruptionArguments()
    texts = [f"Film number {i} was worse than film number {i + 1} of them" for i in range(30)]
    forwards = list(restoring_rows(texts, "train", args))
    backwards = list(restoring_rows(texts[::-1], "train", args))
    assert forwards == backwards[::-1]
    assert all(row["corrupted"] != row["reference"] for row in forwards)
    assert list(restoring_rows(texts, "train", CorruptionArguments(drop_rate=0, swap_rate=0, misspell_rate=0))) == []


def test_the_command_writes_each_split_for_itself(tmp_path, capsys):
    for split in ("train", "test"):
        rows = [{"completion": f"The {split} sentence number {i} is a sentence."} for i in range(20)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    corruption.main(
        [
            "--dataset_name",
            str(tmp_path),
            "--output_dir",
            str(out),
            "--splits",
            "train",
            "test",
            "--misspell_rate",
            "1",
        ]
    )
    assert "of 20 texts" in capsys.readouterr().out
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (out / f"{split}.jsonl").read_text().splitlines()]
        assert len(rows) == 20
        assert all(split in row["reference"] for row in rows)
        assert all(list(row) == ["prompt", "completion", "reference", "corrupted"] for row in rows)


def test_a_missing_column_and_wrong_lengths_are_named(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "a b c"}\n')
    with pytest.raises(SystemExit):
        corruption.main(["--min_words", "5", "--max_words", "4"])
    with pytest.raises(ValueError, match="text"):
        corruption.main(["--dataset_name", str(tmp_path), "--splits", "train", "--output_dir", str(tmp_path / "out")])
