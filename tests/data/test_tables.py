"""Tables of text: every shape of damage in every kind of table, packed or not, and no cell that is read by guess."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random

import pyarrow as pa
import pytest
from datasets import Dataset

from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.local_files import PACKED
from rlhf_recipes.data.tables import parse_table

DELIMITERS = {".csv": ",", ".tsv": "\t"}
WORDS = (
    "plain",
    "two\nlines",
    'a "quoted" word',
    "comma, tab\t and; more",
    " 007",
    "NA",
    "null",
    "true",
    "1e3",
    "Ä, 水",
)


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def packed(data, ending):
    if ending == ".zst":
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()
    return {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending](data)


def table(rows, delimiter=",", names=("completion", "score")):
    stream = io.StringIO(newline="")
    csv.writer(stream, delimiter=delimiter).writerows([names, *rows])
    return stream.getvalue()


def write(folder, name, text, packing=""):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}{packing}"
    path.write_bytes(packed(text.encode() if isinstance(text, str) else text, packing))
    return str(path)


# --- Good tables ------------------------------------------------------------------------------


@pytest.mark.parametrize("packing", ["", *PACKED])
@pytest.mark.parametrize("ending", DELIMITERS)
def test_texts_come_back_as_they_are_and_scores_as_numbers(ending, packing, tmp_path):
    draw = random.Random(ending + packing)
    texts = ["".join(draw.choices(WORDS, k=draw.randint(1, 3))) for _ in range(200)]
    scores = [draw.choice((1, 4.5, -2, None)) for _ in texts]
    cells = [("" if score is None else score) for score in scores]
    text = table(list(zip(texts, cells, strict=True)), DELIMITERS[ending])
    rows = load_rows(write(tmp_path, f"rows{ending}", text, packing), "train")
    assert rows["completion"][:] == texts
    assert rows["score"][:] == scores


def test_the_name_of_a_column_decides_what_its_cells_are():
    text = (
        'prompt,answer,score,label,best,label_2\r\n007,042,1,true,0,true\r\n"NA",,,FALSE,2,no\r\nnull,1e3,NaN,,NA,\r\n'
    )
    assert parse_table(text) == {
        "prompt": ["007", "NA", "null"],
        "answer": ["042", None, "1e3"],
        "score": [1, None, None],
        "label": [True, False, None],
        "best": [0, 2, None],
        "label_2": ["true", "no", None],
    }
    assert parse_table("score\n+1\n2.\n .5 \n-1E-2\n")["score"] == [1.0, 2.0, 0.5, -0.01]
    assert parse_table("score\n1_000\n")["score"] == ["1_000"]  # no number, and refused where numbers must be
    assert parse_table("label\n1\n-1\n")["label"] == [1, -1]
    assert parse_table("label\ngood\nNA\n")["label"] == ["good", "NA"]


def test_what_a_column_is_does_not_hang_on_its_first_rows():
    rows = [("1", str(place)) for place in range(30_000)]
    assert parse_table(table([*rows, ("one", "2.5")]))["score"][-2:] == [29_999.0, 2.5]
    assert parse_table(table([*rows, ("one", "2.5")]))["completion"][-2:] == ["1", "one"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_marks_of_encodings_and_all_ends_of_lines_are_known(encoding, ends, tmp_path):
    text = ends.join(["completion,score", "Grüße,1", "", "水,2", ""])
    rows = load_rows(write(tmp_path, "rows.csv", text.encode(encoding)), "train")
    assert rows.to_list() == [{"completion": "Grüße", "score": 1}, {"completion": "水", "score": 2}]


def test_an_index_that_pandas_wrote_is_a_column_without_a_name():
    assert parse_table(",completion,score\n0,a,1\n1,b,2\n") == {
        "Unnamed: 0": ["0", "1"],
        "completion": ["a", "b"],
        "score": [1, 2],
    }


def test_a_text_may_be_longer_than_the_parser_of_python_allows_by_itself():
    long = "word, " * 100_000
    assert parse_table(table([(long, 1)]))["completion"] == [long]


# --- Damage -----------------------------------------------------------------------------------


def damaged(kind, line, delimiter):
    """A row of two fields with one fault; of the first text it takes the delimiter's place."""
    return {
        "a separator without quotes": f"Fine{delimiter} really{delimiter}4",
        "a field too many at the end": f"Fine{delimiter}4{delimiter}",
        "a field too few": "Fine",
        "a quote that is not closed": f'"Fine{delimiter}4',
        "a quote that is not doubled": f'"She said "no" twice"{delimiter}4',
    }[kind]


FIELDS = {"a separator without quotes": 3, "a field too many at the end": 3, "a field too few": 1}
QUOTES = ("a quote that is not closed", "a quote that is not doubled")


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("ending", DELIMITERS)
@pytest.mark.parametrize("kind", [*FIELDS, *QUOTES])
def test_damage_is_refused_with_file_and_line(kind, ending, packing, tmp_path):
    draw = random.Random(kind + ending)
    delimiter = DELIMITERS[ending]
    lines = [f'"two\nlines{delimiter} or {n}"{delimiter}{n}' if draw.random() < 0.3 else f"row {n}{delimiter}{n}"
             for n in range(40)]  # fmt: skip
    place = draw.randrange(40)
    lines[place] = damaged(kind, place, delimiter)
    text = "\n".join([f"completion{delimiter}score", *lines]) + "\n"
    line = 2 + sum(row.count("\n") + 1 for row in lines[:place])
    path = write(tmp_path, f"rows{ending}", text, packing)
    words = (
        f"{FIELDS[kind]} field.*where the header has 2 .completion, score.; so in 1 of 40 rows"
        if kind in FIELDS
        else ""
    )
    with pytest.raises(ValueError, match=rf"rows{ending}{packing}', line {line}: {words}"):
        load_rows(path, "train")


@pytest.mark.parametrize("ending", DELIMITERS)
def test_the_damaged_file_of_a_folder_and_of_several_is_named(ending, tmp_path):
    delimiter = DELIMITERS[ending]
    good = table([("a", 1), ("b", 2)], delimiter)
    bad = good + f"c{delimiter}d{delimiter}3\n"
    write(tmp_path / "kit", f"train-0{ending}", good)
    write(tmp_path / "kit", f"train-1{ending}", bad, ".gz")
    write(tmp_path / "kit", f"test{ending}", good)
    for name, split in ((tmp_path / "kit", "test"), (tmp_path / "kit" / f"train-*{ending}*", "train")):
        with pytest.raises(ValueError, match=rf"train-1{ending}.gz', line 4: 3 fields"):
            load_rows(str(name), split)
    write(tmp_path / "kit", f"train-1{ending}", good.replace("a", "c"), ".gz")
    assert load_rows(str(tmp_path / "kit"), "train")["completion"][:] == ["a", "b", "c", "b"]
    assert load_rows(str(tmp_path / "kit"), "train[1:3]+test[:1]")["completion"][:] == ["b", "c", "a"]
    write(tmp_path / "kit", f"train-2{ending}", table([("e", 1)], delimiter, names=("completion", "stars")))
    with pytest.raises(ValueError, match=rf"train-2{ending}': its header is another one\. It has completion, stars"):
        load_rows(str(tmp_path / "kit"), "train")


def test_a_file_that_is_separated_by_something_else_says_so(tmp_path):
    path = write(tmp_path, "rows.csv", "completion;score\nFine, really;4\n")
    with pytest.raises(ValueError, match="The header has no commas but semicolons: write the file with commas"):
        load_rows(path, "train")
    write(tmp_path / "kit", "train.csv", "completion;score\nFine, really;4\n")
    (tmp_path / "kit" / "README.md").write_text(
        '---\nconfigs:\n- config_name: default\n  data_files: train.csv\n  sep: ";"\n---\n'
    )
    assert load_rows(str(tmp_path / "kit"), "train").to_list() == [{"completion": "Fine, really", "score": 4}]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("completion,score\nGrüße,1\n".encode("latin1"), r"not UTF-8 text \(byte 0xfc in line 2\)\. Save it as UTF-8"),
        ("completion,score\na,1\n".encode("utf-16-le"), "it holds characters of the code 0"),
        (b"completion,score\n", "it has no rows in split 'train'"),
        (b"completion,completion\na,b\n", "line 1: there are two columns 'completion'"),
    ],
)
def test_what_is_no_table_is_refused(data, words, tmp_path):
    with pytest.raises(ValueError, match=rf"Cannot read .*rows.csv'.{{1,2}}{words}"):
        load_rows(write(tmp_path, "rows.csv", data), "train")


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("ending", [".csv", ".jsonl"])
def test_a_packed_file_that_was_cut_off_or_is_none_is_named(ending, packing, tmp_path):
    text = table([("a", 1)]) if ending == ".csv" else '{"completion": "a", "score": 1}\n'
    whole = packed(text.encode() * 500, packing)
    for data in (whole[: len(whole) // 2], b"plain text"):
        (tmp_path / f"rows{ending}{packing}").write_bytes(data)
        with pytest.raises(ValueError, match=rf"Cannot read .*rows{ending}{packing}': it cannot be unpacked"):
            load_rows(str(tmp_path / f"rows{ending}{packing}"), "train")


# --- Beside tables ----------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["test.jsonl", "train.parquet", "train-2.tsv", "test.txt"])
def test_a_folder_with_files_of_two_formats_names_both(other, tmp_path):
    write(tmp_path, "train.csv", table([("a", 1)]))
    if other.endswith("parquet"):
        Dataset.from_dict({"completion": ["a"]}).to_parquet(tmp_path / other)
    else:
        write(tmp_path, other, '{"completion": "a", "score": 1}\n')
    with pytest.raises(ValueError, match=rf"files of 2 formats: (?=.*csv \(train.csv\))(?=.*\({other}\))"):
        load_rows(str(tmp_path), "train")


def test_what_lies_beside_the_files_of_splits_is_no_format(tmp_path):
    write(tmp_path / "kit", "train.csv", table([("a", 1)]))
    for name in ("LICENSE.txt", "metrics.json", "config.yaml", "README.md"):
        write(tmp_path / "kit", name, json.dumps({"seconds": 1}))
    assert load_rows(str(tmp_path / "kit"), "train")["completion"][:] == ["a"]


def test_decimals_of_a_parquet_file_are_numbers(tmp_path):
    money, votes = pa.decimal128(6, 2), pa.list_(pa.decimal128(3, 1))
    columns = {
        "completion": pa.array(["a", "b", "c"]),
        "score": pa.array(["4.50", "2.00", None]).cast(money),
        "votes": pa.array([["4.0", "5.0"], ["2.0"], []], pa.list_(pa.string())).cast(votes),
    }
    pa.parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = load_rows(str(tmp_path / "rows.parquet"), "train")
    assert rows["score"][:] == [4.5, 2.0, None]
    decimals = Dataset(pa.table(columns))
    for dataset in (rows, decimals):
        clean, found = normalize(dataset)
        assert clean.to_list() == [
            {"completion": "a", "score": 4.5, "votes": [4.0, 5.0]},
            {"completion": "b", "score": 2.0, "votes": [2.0]},
        ]
        assert found.left_out == {"missing value": 1}
