"""Cleaning: options become steps in their order, and every row is accounted for."""

import json
import pickle
import re
from itertools import pairwise

import pytest
from datasets import DatasetDict

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.data.cleaning.__main__ import SplitCleaningArguments, clean_splits, main
from rlhf_recipes.data.cleaning.duplicates import Deduplicate, NearDuplicates
from rlhf_recipes.data.cleaning.edits import EditTexts
from rlhf_recipes.data.cleaning.filters import BalanceLabels, Counts, DropBlank, InLanguage, Length
from rlhf_recipes.data.cleaning.steps import CleaningArguments, Table, run, steps_from
from rlhf_recipes.data.loading import load_rows
from tests.data.feedback_examples import rows

SENTENCE = "The film was better than its poster, and the actors knew it from the first scene on."


def names(steps):
    return [step.name for step in steps]


def test_without_options_only_light_tidying_is_done():
    dataset = rows(prompt=["a\r\nb "], completion=[" C &amp; d\n\nE"], score=[1.0])
    new, table = run(steps_from(CleaningArguments()), dataset)
    assert new.to_list() == [{"prompt": "a\nb ", "completion": " C &amp; d\n\nE", "score": 1.0}]
    assert table.steps == [("tidy (light)", Counts(1, 1, changed=1)), ("blank", Counts(1, 1))]
    nothing, _ = run(steps_from(CleaningArguments(tidy="off")), dataset)
    assert nothing.to_list() == dataset.to_list()


def test_every_option_is_a_step_and_texts_are_changed_first(tmp_path):
    (tmp_path / "words.txt").write_text("the\n")
    args = CleaningArguments(
        tidy="full",
        lowercase=True,
        remove_punctuation=True,
        stop_words=str(tmp_path / "words.txt"),
        min_characters=2,
        language="en",
        deduplicate=True,
        near_duplicates=0.8,
        balance_labels=True,
        swap_pairs=True,
        word_dropout=0.1,
    )
    assert names(steps_from(args, held_out=rows(completion=["x"]))) == [
        "tidy (full)", "lower case", "punctuation", "stop words", "blank", "length", "language", "duplicates",
        "near duplicates", "leakage", "balance", "swap", "word dropout",
    ]  # fmt: skip


def test_the_options_parse_from_the_command_line():
    (args,) = RecipeParser(CleaningArguments).parse(["--deduplicate", "--near_duplicates", "0.9", "--tidy", "full"])
    assert (args.deduplicate, args.near_duplicates, args.tidy) == (True, 0.9, "full")


def test_the_table_as_text_and_as_json():
    table = Table([("length", Counts(10, 8, notes={"too short": 2})), ("word dropout", Counts(8, 16, changed=0))])
    assert str(table) == (
        "step          before  after  left out  added  changed  notes\n"
        "length            10      8         2      0        0  too short: 2\n"
        "word dropout       8     16         0      8        0"
    )
    assert json.loads(table.as_json())[0] == {
        "step": "length", "before": 10, "after": 8, "left_out": 2, "added": 0, "changed": 0, "notes": {"too short": 2},
    }  # fmt: skip


def test_every_row_is_accounted_for_and_a_step_of_ones_own_works():
    class Mine:
        name = "mine"

        def __call__(self, dataset):
            return dataset.select(range(3)), Counts(len(dataset), 3)

    dataset = rows(completion=["a", "b", "", "B", "c", "d"])
    steps = [*steps_from(CleaningArguments(lowercase=True, deduplicate=True)), Mine()]
    new, table = run(steps, dataset)
    counts = [each for _, each in table.steps]
    assert counts[0].before == 6
    assert all(one.after == other.before for one, other in pairwise(counts))
    assert counts[-1].after == len(new) == 3
    assert [each.after for each in counts] == [6, 6, 5, 4, 3]


def test_a_step_that_leaves_nothing_is_named_with_the_table():
    with pytest.raises(ValueError, match=r"The step 'length' leaves no row[\s\S]*too short: 2"):
        run([Length(5)], rows(completion=["a", "b"]))


def test_other_columns_are_kept_and_missing_text_columns_are_named():
    new, _ = run([Deduplicate()], rows(completion=["a", "a", "b"], id=[1, 2, 3]))
    assert new.to_list() == [{"completion": "a", "id": 1}, {"completion": "b", "id": 3}]
    with pytest.raises(ValueError, match="Cleaning needs the columns 'prompt', or 'completion'.*has: id"):
        run([Deduplicate()], rows(id=[1]))
    with pytest.raises(ValueError, match="Cleaning needs the columns 'topic'"):
        run([Deduplicate(("topic",))], rows(completion=["a"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tidy": "most"}, "give one of off, light, full"),
        ({"min_characters": -1}, "min_characters is -1"),
        ({"min_characters": 5, "max_characters": 4}, "max_characters 4"),
        ({"max_characters": 0}, "max_characters 0"),
        ({"language": "xx"}, "language is 'xx', which is not known"),
        ({"near_duplicates": 0.0}, "near_duplicates is 0.0; give a similarity above 0"),
        ({"near_duplicates": 1.5}, "near_duplicates is 1.5"),
        ({"word_dropout": 1.0}, "word_dropout is 1.0"),
        ({"stop_words": "nowhere.txt"}, "'nowhere.txt', which is no file"),
    ],
)
def test_settings_that_cannot_be_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CleaningArguments(**options)


def test_texts_that_an_edit_leaves_empty_are_counted_as_blank():
    dataset = rows(completion=["...", "fine", None])
    new, table = run(steps_from(CleaningArguments(remove_punctuation=True)), dataset)
    assert new["completion"][:] == ["fine"]
    assert dict(table.steps)["blank"] == Counts(3, 1)


def test_held_out_rows_are_changed_like_the_others_before_they_are_compared():
    steps = steps_from(CleaningArguments(remove_punctuation=True), held_out=rows(completion=["A fine film!"]))
    new, table = run(steps, rows(completion=["A fine, film", "Other"]))
    assert new["completion"][:] == ["Other"]
    assert dict(table.steps)["leakage"].notes["exact copies"] == 1


@pytest.mark.parametrize(
    "step",
    [EditTexts(str.lower), DropBlank(), Length(2), InLanguage("en"), Deduplicate(), NearDuplicates(), BalanceLabels()],
    ids=lambda step: step.name,
)
def test_steps_can_be_pickled_and_do_the_same(step):
    dataset = rows(completion=[SENTENCE, "Yes.", SENTENCE, "a"], label=[1.0, 0.0, 1.0, 0.0])
    twin = pickle.loads(pickle.dumps(step))
    assert (twin(dataset)[0].to_list(), twin(dataset)[1]) == (step(dataset)[0].to_list(), step(dataset)[1])


def test_very_long_texts_pass():
    dataset = rows(completion=["word " * 10_000, "word " * 10_000, SENTENCE])
    args = CleaningArguments(tidy="full", remove_punctuation=True, near_duplicates=0.8)
    new, _ = run(steps_from(args), dataset)
    assert len(new) == 2


# --- All splits -------------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path, monkeypatch):
    """A folder with three splits, of which train has rows of both others."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    texts = {"train": ["a", "A", "b ", "c", "d"], "validation": ["b", "c", "e"], "test": ["c", "f"]}
    (tmp_path / "kit").mkdir()
    for name, of_split in texts.items():
        lines = [{"completion": text, "score": place, "author": text.lower()} for place, text in enumerate(of_split)]
        (tmp_path / "kit" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path / "kit"


def test_several_held_out_splits_are_steps_with_their_names():
    held_out = {"test": rows(completion=["x"]), "validation": rows(completion=["y"])}
    steps = steps_from(CleaningArguments(), held_out)
    assert names(steps) == ["tidy (light)", "blank", "leakage (test)", "leakage (validation)"]
    assert run(steps, rows(completion=["x", "y", "z"]))[0]["completion"][:] == ["z"]


def test_leaks_can_be_looked_for_by_other_columns_than_copies():
    args = CleaningArguments(deduplicate=True, leakage_columns=["prompt"])
    dataset = rows(prompt=["p", "q", "q", "q"], completion=["a", "a", "b", "b"])
    new, _ = run(steps_from(args, rows(prompt=["p"], completion=["z"])), dataset)
    assert new.to_list() == [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "b"}]


def test_held_out_splits_are_not_balanced_nor_added_to():
    splits = {
        name: rows(completion=[f"{name} {number} and more words" for number in range(6)], label=[1.0] * 4 + [0.0] * 2)
        for name in ("train", "test")
    }
    left = clean_splits(splits, CleaningArguments(balance_labels=True, word_dropout=0.5))
    assert [step for step, _ in left["test"][1].steps] == ["tidy (light)", "blank"]
    assert len(left["test"][0]) == 6
    assert [step for step, _ in left["train"][1].steps][-3:] == ["leakage (test)", "balance", "word dropout"]
    other = clean_splits(splits, CleaningArguments(balance_labels=True), held_out=())
    assert len(other["test"][0]) == 4


def test_the_command_cleans_all_splits_and_writes_what_it_did(kit, tmp_path, capsys):
    out = tmp_path / "out"
    main(["--dataset_name", str(kit), "--deduplicate", "--output_dir", str(out)])
    texts = {name: load_rows(str(out), name)["completion"][:] for name in ("train", "validation", "test")}
    assert texts == {"train": ["a", "d"], "validation": ["b", "e"], "test": ["c", "f"]}
    said = capsys.readouterr().out
    assert "train: ratings (completion, score; text, without prompt): 0..4 whole numbers: ordinal" in said
    assert re.search(r"^duplicates +5 +4 +1 +0 +0  copies with other feedback: 1$", said, re.MULTILINE)
    facts = json.loads((out / "cleaning.json").read_text())
    assert facts["rows"] == {"train": 2, "validation": 2, "test": 2}
    assert facts["checks"]["validation"]["kept"] == 3
    assert [step["left_out"] for step in facts["cleaning"]["train"]] == [0, 0, 1, 1, 1]
    assert facts["files"]["test"] == "test.jsonl"
    assert "deduplicate: true" in (out / "config.yaml").read_text()


def test_the_command_without_a_folder_only_shows(kit, tmp_path, capsys):
    before = sorted(tmp_path.rglob("*.json*"))
    main(["--dataset_name", str(kit), "--held_out_splits", "test"])
    said = capsys.readouterr().out
    assert "Nothing was written" in said
    assert "leakage (test)" in said
    assert "leakage (validation)" not in said
    assert [path for path in sorted(tmp_path.rglob("*.json*")) if "cache" not in path.parts] == before


def test_the_command_divides_rows_by_a_column(kit, tmp_path):
    out = tmp_path / "out"
    shares = ["--group_column", "author", "--split_shares", '{"train": 0.5, "test": 0.5}']
    main(["--dataset_name", str(kit), *shares, "--output_dir", str(out), "--output_format", "parquet"])
    parts = {name: set(load_rows(str(out), name)["author"]) for name in ("train", "test")}
    assert parts["train"] & parts["test"] == set()
    assert {author.strip() for part in parts.values() for author in part} == set("abcdef")
    assert not (out / "validation.parquet").exists()
    facts = json.loads((out / "cleaning.json").read_text())
    assert facts["groups"]["test"].endswith(f"of {len({author.strip() for author in parts['test']})} groups")


def test_splits_of_different_columns_are_not_put_together(tmp_path):
    train = rows(completion=["a", "b"], score=[1, 2], author=["x", "y"])
    DatasetDict(train=train, test=train.remove_columns("author")).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="different columns.*train: completion, .*author.*; test: completion, score"):
        main(["--dataset_name", str(tmp_path / "saved"), "--group_column", "author"])
    with pytest.raises(ValueError, match="split_shares is given without group_column"):
        SplitCleaningArguments(split_shares={"train": 1.0})
