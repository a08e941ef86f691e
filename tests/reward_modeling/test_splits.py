"""The splits of a run: each is read once, and of one format."""

import json

import pytest

from rlhf_recipes.data.cleaning import CleaningArguments
from rlhf_recipes.data.feedback import FeedbackArguments, read
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.splits import load_splits


@pytest.fixture
def rankings(tmp_path, monkeypatch):
    """A folder with three splits of rankings, and what a run needs besides."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for split in ("train", "validation", "test"):
        rows = [{"completions": [f"{split} {word}" for word in "abc"], "ranks": [1, 2, 3], "score": 1}] * 2
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DataArguments(str(tmp_path)), CleaningArguments(), RewardConfig(str(tmp_path / "out"), use_cpu=True)


def test_each_split_is_recognized_and_read_once(rankings, monkeypatch):
    data, cleaning, args = rankings
    calls = []
    for name in ("recognized", "_checked"):
        real = getattr(read, name)
        monkeypatch.setattr(read, name, lambda *given, name=name, real=real: calls.append(name) or real(*given))
    splits = load_splits(data, FeedbackArguments(convert_to="pairs"), cleaning, args)
    assert calls == ["recognized", "_checked"] * 3
    assert (splits.kind, splits.checks["train"].format.kind) == ("pairs", "rankings")
    assert splits.facts()["splits"]["train"] | {"format": ""} == {
        "format": "", "rows": 2, "kept": 6, "left_out": {}, "noted": {},
    }  # fmt: skip


def test_columns_of_other_formats_do_not_stay(rankings):
    splits = load_splits(rankings[0], FeedbackArguments(), *rankings[1:])
    assert splits.kind == "rankings"
    assert splits.train.column_names == ["completions", "ranks"]


def test_splits_of_different_formats_are_refused(rankings, tmp_path):
    (tmp_path / "test.jsonl").write_text('{"chosen": "a", "rejected": "b", "completions": null}\n')
    with pytest.raises(ValueError, match=r"different formats \(train: rankings, validation: rankings, test: pairs\)"):
        load_splits(rankings[0], FeedbackArguments(), *rankings[1:])
