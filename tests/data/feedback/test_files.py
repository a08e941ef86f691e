"""Splits of a dataset, read by their names and written as files that can be read again."""

import datetime
import json
import math

import pytest
from datasets import Dataset, DatasetDict

from rlhf_recipes.data.feedback.files import SplitArguments, in_split, read_splits, split_names, write_splits
from rlhf_recipes.data.loading import load_rows
from tests.data.feedback_examples import rows


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def test_all_splits_of_a_folder_a_file_and_a_saved_dataset_are_found(tmp_path):
    both = {"train": rows(completion=["a", "b"]), "test": rows(completion=["c"])}
    folder = tmp_path / "folder"
    folder.mkdir()
    assert write_splits(folder, both) == {"train": "train.jsonl", "test": "test.jsonl"}
    DatasetDict(both).save_to_disk(tmp_path / "saved")
    both["test"].save_to_disk(tmp_path / "one")
    assert split_names(str(folder / "test.jsonl")) == ["train"]
    assert split_names(str(tmp_path / "one")) == ["train"]
    for name in (folder, tmp_path / "saved"):
        found = read_splits(SplitArguments(str(name)))
        assert {split: of_split["completion"][:] for split, of_split in found.items()} == {
            "train": ["a", "b"],
            "test": ["c"],
        }
    assert list(read_splits(SplitArguments(str(folder), splits=["test"]))) == ["test"]


def test_what_is_no_dataset_says_so_as_loading_does(tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="holds no data files"):
        read_splits(SplitArguments(str(tmp_path / "nothing")))
    with pytest.raises(FileNotFoundError, match="No dataset at"):
        read_splits(SplitArguments(str(tmp_path / "nowhere.jsonl")))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_what_is_written_is_read_again(kind, tmp_path):
    dataset = rows(
        prompt=[[{"role": "user", "content": "q\u2028\u00e9"}], None],
        completions=[["a", "b\n"], ["c"]],
        ranks=[[1.0, 2.5], [1.0]],
        count=[2**53 + 1, None],
        share=[0.1 + 0.2, 1e-300],
    )
    files = write_splits(tmp_path, {"train": dataset}, kind)
    assert load_rows(str(tmp_path / files["train"]), "train").to_list() == dataset.to_list()
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_json_has_no_nan_and_no_bytes(tmp_path):
    dataset = rows(completion=["a", "b"], votes=[[1.0, math.nan], [2.0]], day=[datetime.date(2024, 2, 29), None])
    write_splits(tmp_path, {"train": dataset})
    assert [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()] == [
        {"completion": "a", "votes": [1.0, None], "day": "2024-02-29"},
        {"completion": "b", "votes": [2.0], "day": None},
    ]
    with pytest.raises(ValueError, match="Column 'picture' holds a bytes, which JSON cannot say. Write parquet"):
        write_splits(tmp_path, {"train": rows(picture=[b"x"])})
    write_splits(tmp_path, {"train": rows(picture=[b"x"])}, "parquet")
    assert Dataset.from_parquet(str(tmp_path / "train.parquet"))["picture"][:] == [b"x"]


def test_an_error_names_its_split():
    with pytest.raises(ValueError, match=r"Split 'test': Row 3 is wrong\."), in_split("test"):
        raise ValueError("Row 3 is wrong.")


@pytest.mark.parametrize("options", [{"output_format": "csv"}, {"splits": []}])
def test_options_that_cannot_be(options):
    with pytest.raises(ValueError, match="csv|names none"):
        SplitArguments("x", **options)
