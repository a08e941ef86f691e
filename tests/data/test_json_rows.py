"""JSON in the shapes in which people save rows: each gives the same rows, and what is none says where."""

import gzip
import json
import logging

import pandas as pd
import pytest

from rlhf_recipes.data.json_rows import parse_json
from rlhf_recipes.data.loading import load_rows

ROWS = [
    {"completion": "2020-01-01 00:00:00", "score": 1},
    {"completion": "007", "score": 2},
    {"completion": "NaN", "score": 3},
]


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


SHAPES = {
    "lines": "\n".join(map(json.dumps, ROWS)),
    "lines with blank ones and Windows ends": "\r\n\r\n".join(map(json.dumps, ROWS)) + "\r\n",
    "a list": json.dumps(ROWS),
    "a list over many lines": json.dumps(ROWS, indent=2),
    "rows in an object": json.dumps({"version": "1.0", "data": ROWS}),
    "rows in an object over many lines": json.dumps({"rows": ROWS, "tags": ["a", "b", "c"]}, indent=1),
    "columns": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
    "columns as pandas writes them": pd.DataFrame(ROWS).to_json(),
    "records as pandas writes them": pd.DataFrame(ROWS).to_json(orient="records"),
    "a table as pandas writes it": pd.DataFrame(ROWS).to_json(orient="table", index=False),
}


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_rows_and_texts_stay_texts(shape, ending, tmp_path):
    data = SHAPES[shape].encode()
    (tmp_path / f"rows{ending}").write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    assert load_rows(str(tmp_path / f"rows{ending}"), "train").to_list() == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.ndjson"])
def test_a_packed_file_loads_alone_as_it_does_in_a_folder(name, tmp_path):
    data = SHAPES["lines"].encode()
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / name.replace("rows", "train")).write_bytes(
        gzip.compress(data) if name.endswith("gz") else data
    )
    alone = load_rows(str(tmp_path / "kit" / name.replace("rows", "train")), "train")
    assert alone.to_list() == load_rows(str(tmp_path / "kit"), "train").to_list() == ROWS


def test_one_line_of_jsonl_is_a_row_whatever_it_holds():
    row = {"messages": [{"role": "user", "content": "Hi"}], "data": [{"a": 1}]}
    assert parse_json(json.dumps(row), lines=True) == [row]
    talk = {"conversations": [{"from": "human", "value": "Hi"}], "score": 1}
    assert parse_json(json.dumps(talk)) == [talk]  # messages are no rows


def test_values_of_several_kinds_and_missing_ones_stay_what_they_are(tmp_path):
    rows = [{"a": 1, "b": {"x": 1}}, {"a": "one", "b": {"y": [2]}}, {"c": None}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert load_rows(str(tmp_path / "rows.jsonl"), "train").to_list() == [
        {"a": 1, "b": {"x": 1}, "c": None},
        {"a": "one", "b": {"y": [2]}, "c": None},
        {"a": None, "b": None, "c": None},
    ]


def test_nan_is_null_and_what_is_not_read_is_said(caplog):
    with caplog.at_level(logging.INFO):
        found = parse_json('{"note": "x", "data": [{"score": NaN, "votes": [1, NaN]}, {"score": Infinity}]}')
    assert found == [{"score": None, "votes": [1, None]}, {"score": float("inf")}]
    assert "The rows are those in 'data'; what stands beside them is not read: ['note']" in caplog.text
    assert parse_json('["a", "b"]') == [{"text": "a"}, {"text": "b"}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1}\n{"a": }\n', r"rows.json', line 2, column 7: Expecting value"),
        ('{"a": 1}\n[2]\n', r"rows.json', line 2: there is a list, where a row, \{...\}, must be"),
        ('[{"a": 1}, 2]', r"rows.json', row 1: there is a int, where a row"),
        ("3", r"rows.json': there is a int, where rows must be"),
        ('{"a": {"b": 1, "b": 2}}\n{"a": 1}', r"rows.json', line 1: 'b' is specified twice"),
        ('{"train": [{"a": 1}], "test": [{"a": 2}]}', r"rows.json': there are several lists of rows: train, test"),
        ('{"a": [1, 2], "b": [1]}', r"rows.json': the object has columns of different lengths \(a 2, b 1\)"),
        ('{"a": 1, "b": "\\ud83d"}\n{"a": 2}', r"rows.json': column 'b' cannot be held: .*surrogates"),
        ('{"a": 123456789012345678901234567890}\n{"a": 2}', r"rows.json': column 'a' cannot be held"),
        ("[" * 100_000, r"rows.json', line 1: lists or objects lie in each other too deeply"),
    ],
)
def test_what_is_no_rows_says_where(text, words, tmp_path):
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        load_rows(str(tmp_path / "rows.json"), "train")
