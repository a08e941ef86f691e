"""Datasets by name, columns and blank rows, as worked examples; everything here is local."""

import json
import logging
import os

import pytest
from datasets import Dataset, DatasetDict, load_dataset

from rlhf_recipes.data.columns import detect_format, drop_blank, require_columns
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.texts import is_conversational

ROWS = [{"prompt": "The film", "votes": [1, 2]}, {"prompt": "A dull", "votes": [-1]}]


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --- Loading ----------------------------------------------------------------------------------


def test_a_local_file_of_each_kind_is_a_dataset(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps(ROWS, indent=2))
    (tmp_path / "rows.csv").write_text("prompt,score\nThe film,1.5\nA dull,-1\n")
    (tmp_path / "rows.txt").write_text("The film\nA dull\n")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "rows.parquet")
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    for ending in ("jsonl", "json", "parquet"):
        assert load_rows(str(tmp_path / f"rows.{ending}"), "train").to_list() == ROWS
    assert load_rows(str(tmp_path / "rows.csv"), "train")["score"][:] == [1.5, -1.0]
    assert load_rows(str(tmp_path / "rows.txt"), "train").column_names == ["text"]
    assert len(load_rows(str(tmp_path / "rows.txt"), "train[:1]")) == 1


def test_a_folder_of_files_and_a_saved_folder_are_datasets(tmp_path):
    write_jsonl(tmp_path / "kit" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "kit" / "test.jsonl", ROWS[1:])
    (tmp_path / "kit" / "README.md").write_text("# No YAML header\n")
    assert load_rows(str(tmp_path / "kit"), "test").to_list() == ROWS[1:]

    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "both")
    assert load_rows(str(tmp_path / "both"), "test").to_list() == ROWS[:1]

    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    assert load_rows(str(tmp_path / "one"), "train").to_list() == ROWS
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        load_rows(str(tmp_path / "one"), "test")


def test_a_changed_file_is_read_anew_even_if_its_date_and_size_were_kept(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": "aaaa"}])
    before = path.stat()
    assert load_rows(str(path), "train")[0]["prompt"] == "aaaa"
    assert load_dataset("json", data_files=str(path))["train"][0]["prompt"] == "aaaa"
    write_jsonl(path, [{"prompt": "bbbb"}])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_dataset("json", data_files=str(path))["train"][0]["prompt"] == "aaaa"  # why there is a key of our own
    assert load_rows(str(path), "train")[0]["prompt"] == "bbbb"


@pytest.mark.parametrize(
    "name", ["./mine", "/no/where", "~/nowhere", "a/b/c", "mine.jsonl", "me/mine.tsv", "starter/x", "runs/x"]
)
def test_what_looks_like_a_path_is_not_looked_for_on_the_hub(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asked the Hub"))
    with pytest.raises(FileNotFoundError, match="looked in .*python -m rlhf_recipes.data.starter"):
        load_rows(name, "train")


def test_a_name_that_may_be_on_the_hub_says_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConnectionError, match=r"No local folder or file 'nobody/nothing'.*cannot be reached"):
        load_rows("nobody/nothing", "train")


def test_a_missing_split_says_which_exist(tmp_path):
    write_jsonl(tmp_path / "kit" / "train.jsonl", ROWS)
    write_jsonl(tmp_path / "kit" / "validation.jsonl", ROWS)
    with pytest.raises(ValueError, match="no split 'valid'; it has: train, validation. Did you mean 'validation'"):
        load_rows(str(tmp_path / "kit"), "valid")

    DatasetDict(train=Dataset.from_list(ROWS)).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match="no split 'test'; it has: train"):
        load_rows(str(tmp_path / "saved"), "test")

    path = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"single file.*no split 'test'.*train.jsonl, test.jsonl.*name the folder"):
        load_rows(str(path), "test")


@pytest.mark.parametrize(
    ("file_name", "content", "words"),
    [
        ("rows.jsonl", b'{"prompt": "a"}\n{"prompt": oops}\n', "rows.jsonl', line 2, column 12: Expecting value"),
        ("rows.json", b'[{"prompt": "a"},\n {"prompt" "b"}]', "rows.json', line 2, column 12: Expecting ':'"),
        ("rows.jsonl", b'{"prompt": "\xff\xfe"}\n', "rows.jsonl': not UTF-8 text"),
        ("rows.csv", b"a,b\n1,2\n1,2,3\n", "rows.csv', line 3: 3 fields, where the header has 2"),
        ("rows.parquet", b"no parquet", "rows.parquet': .*"),
        ("rows.xlsx", b"a", r"rows.xlsx': files may end in .jsonl, .json, .csv, .parquet, .txt"),
        ("rows.jsonl", b"", "rows.jsonl' is empty"),
        ("rows.jsonl", b"\n \n", "rows.jsonl' is empty"),
        ("rows.csv", b"prompt,score\n", "Cannot read .*rows.csv': it has no rows in split 'train'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(file_name, content, words, tmp_path):
    (tmp_path / file_name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        load_rows(str(tmp_path / file_name), "train")


def test_the_bad_file_of_a_folder_is_named(tmp_path):
    write_jsonl(tmp_path / "kit" / "train.jsonl", ROWS)
    (tmp_path / "kit" / "test.jsonl").write_text('{"prompt": "a"}\n{bad\n')
    with pytest.raises(ValueError, match=r"test.jsonl', line 2, column 2"):
        load_rows(str(tmp_path / "kit"), "train")
    (tmp_path / "kit" / "test.jsonl").write_text('{"other": "a"}\n')
    with pytest.raises(ValueError, match=r"Cannot read the dataset folder .*column names don't match"):
        load_rows(str(tmp_path / "kit"), "train")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="holds no data files"):
        load_rows(str(tmp_path / "none"), "train")


def test_data_arguments_refuse_a_sample_of_nothing():
    assert DataArguments("starter/movie-ratings").max_train_samples is None
    with pytest.raises(ValueError, match="max_eval_samples is 0. Give at least 1"):
        DataArguments("starter/movie-ratings", max_eval_samples=0)


# --- Rows and columns -------------------------------------------------------------------------


def test_a_sample_is_the_same_each_time_and_within_every_larger_one():
    dataset = Dataset.from_dict({"row": list(range(100))})
    ten, twenty = sample_rows(dataset, 10)["row"][:], sample_rows(dataset, 20)["row"][:]
    assert ten == sample_rows(dataset, 10)["row"][:] == sorted(ten)
    assert len(set(ten)) == 10
    assert set(ten) < set(twenty)
    assert ten != list(range(10))  # not the first rows
    assert ten != sample_rows(dataset, 10, seed=1)["row"][:]
    assert sample_rows(dataset, None) is dataset
    assert sample_rows(dataset, 1000) is dataset


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["chosen", "rejected"], "pairs"),
        (["prompt", "chosen", "rejected", "margin"], "pairs"),
        (["completion", "score", "votes"], "ratings"),
        (["prompt", "completion", "score"], "ratings"),
        (["id", "prompt"], "prompts"),
    ],
)
def test_detect_format(columns, expected):
    assert detect_format(columns) == expected


def test_detect_format_names_the_columns_that_would_do():
    with pytest.raises(
        ValueError, match=r"'chosen' and 'rejected', or 'completion' and 'score', or 'prompt'.*has: id"
    ):
        detect_format(["id"])


def test_require_columns_gives_the_alternative_that_is_there():
    dataset = Dataset.from_dict({"completion": ["a"], "score": [1.0]})
    assert require_columns(dataset, ["completion"], "PPO") == ("completion",)
    assert require_columns(dataset, [["chosen", "rejected"], ["completion", "score"]], "A reward model") == (
        "completion",
        "score",
    )


def test_require_columns_says_what_is_needed_what_exists_and_how_to_rename():
    dataset = Dataset.from_dict({"Chosen": ["a"], "loser": ["b"], "id": [1]})
    with pytest.raises(ValueError, match="^A reward model needs") as caught:
        require_columns(dataset, ["chosen", "rejected"], "A reward model")
    assert str(caught.value) == (
        "A reward model needs the columns 'chosen' and 'rejected'. The dataset has: Chosen, loser, id. Perhaps "
        "`dataset.rename_column('Chosen', 'chosen')`, `dataset.rename_column('loser', 'rejected')` and save it, or "
        "rename them in the file."
    )
    verdict = r"If 'winner' says which of two answers is the better one, write that answer into a column 'chosen' and"
    arena = Dataset.from_dict({name: ["a"] for name in ("prompt", "response_a", "response_b", "winner")})
    with pytest.raises(ValueError, match=verdict):
        require_columns(arena, [["chosen", "rejected"], ["completion", "score"]], "Feedback")
    with pytest.raises(ValueError, match=r"The dataset has: id. Rename columns with `dataset.rename_column\(old, new"):
        require_columns(dataset.select_columns("id"), ["prompt"], "PPO")


# --- Text -------------------------------------------------------------------------------------


def test_is_conversational():
    assert is_conversational([{"role": "user", "content": "Hello"}])
    assert not is_conversational("Hello")
    assert not is_conversational(["Hello"])
    assert not is_conversational([{"from": "user", "value": "Hello"}])


def test_drop_blank_counts_and_says_so(caplog):
    dataset = Dataset.from_dict(
        {"prompt": ["a", "", " \n\t", None, "\u200b \ufeff", "b"], "completion": list("abcd e")}
    )
    with caplog.at_level(logging.WARNING):
        kept, dropped = drop_blank(dataset, ["prompt", "completion"])
    assert kept["prompt"][:] == ["a", "b"]
    assert dropped == 4
    assert "Left out 4 of 6 rows, empty or blank: 4 in 'prompt', 1 in 'completion'; the first is row 1" in caplog.text

    caplog.clear()
    assert drop_blank(kept, ["prompt"]) == (kept, 0)
    assert caplog.text == ""


def test_drop_blank_looks_at_the_last_message():
    def turn(*contents):
        return [
            {"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=False)
        ]

    dataset = Dataset.from_dict({"chosen": [turn("Hi", "Hello"), turn("Hi", " "), turn("Hi"), []]})
    assert drop_blank(dataset, ["chosen"])[0]["chosen"][:] == [turn("Hi", "Hello"), turn("Hi")]


def test_drop_blank_knows_parts_and_tool_calls():
    picture = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": ""}]}]
    nothing = [{"role": "user", "content": [{"type": "text", "text": " "}]}]
    kept, _ = drop_blank(Dataset.from_list([{"prompt": picture}, {"prompt": nothing}]), ["prompt"])
    assert len(kept) == 1
    assert kept[0]["prompt"][0]["content"][0]["type"] == "image"

    call = [{"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}]
    assert drop_blank(Dataset.from_list([{"completion": call}]), ["completion"])[1] == 0


def test_drop_blank_refuses_what_it_cannot_judge():
    with pytest.raises(ValueError, match=r"All 2 rows are empty or blank \(2 in 'prompt'\)"):
        drop_blank(Dataset.from_dict({"prompt": ["", " "]}), ["prompt"])
    with pytest.raises(TypeError, match="'prompt' holds neither text nor messages in row 0, but a int: 3"):
        drop_blank(Dataset.from_dict({"prompt": [3]}), ["prompt"])
    with pytest.raises(
        ValueError, match=r"needs the columns 'prompt'. The dataset has: text. Perhaps .*'text', 'prompt'"
    ):
        drop_blank(Dataset.from_dict({"text": ["a"]}), ["prompt"])
