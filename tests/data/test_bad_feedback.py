"""Files as people send them: read, normalized and cleaned, each fault is counted, refused or defined.

Every case is written as JSONL, as CSV (lists as JSON in their cells) and as parquet, unless a format cannot hold it.
"""

import csv
import json

import pytest
from datasets import Dataset

from rlhf_recipes.data.cleaning.__main__ import clean_splits
from rlhf_recipes.data.cleaning.steps import CleaningArguments
from rlhf_recipes.data.feedback.formats import FeedbackSettings
from rlhf_recipes.data.feedback.read import convert, normalize
from rlhf_recipes.data.feedback.recognize import row_keys
from rlhf_recipes.data.loading import load_rows

FORMATS = ("jsonl", "csv", "parquet")
LONG = "A sentence of some words. " * 2000  # 52,000 characters


@pytest.fixture(autouse=True)
def _own_cache_and_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def cell(value):
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def write(folder, kind, rows, name="train"):
    path = folder / f"{name}.{kind}"
    names = list(dict.fromkeys(column for row in rows for column in row))
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        Dataset.from_dict({column: [row.get(column) for row in rows] for column in names}).to_parquet(path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(names)
            writer.writerows([cell(row.get(column)) for column in names] for row in rows)
    return str(path)


def cleaned(folder, kind, rows, settings=None, **options):
    """What is left after reading, normalizing and cleaning, and what was found."""
    dataset = load_rows(write(folder, kind, rows), "train")
    clean, found = normalize(dataset, settings or FeedbackSettings())
    left, _ = clean_splits({"train": clean}, CleaningArguments(**options))["train"]
    return left, found


def pair(chosen="a", rejected="b", **more):
    return {"chosen": chosen, "rejected": rejected, **more}


def rated(completion="a", score=1.0, **more):
    return {"completion": completion, "score": score, **more}


def ranked(completions, ranks, **more):
    return {"completions": completions, "ranks": ranks, **more}


def labelled(completion, label):
    return {"completion": completion, "label": label}


# --- Counted ----------------------------------------------------------------------------------

COUNTED = {
    "tied votes": (
        [pair(chosen_votes=2, rejected_votes=2), pair("c", "d", chosen_votes=3, rejected_votes=1)],
        {}, {"tie": 1},
    ),
    "tied targets": ([pair(target=0.5), pair("c", "d", target=0.9)], {}, {"tie": 1}),
    "tied ranks": (
        [ranked(["a", "b"], [1, 1]), ranked(["a", "b", "c"], [1, 1, 2]), ranked(["a", "b"], [2, 1])],
        {"all ranks tied": 1}, {"ties": 1},
    ),
    "identical chosen and rejected": (
        [pair(), pair("c", "c"), pair("d", "e")],
        {"identical chosen and rejected": 1}, {},
    ),
    "empty texts": ([pair(), pair("", "c"), pair("d", " \t")], {"empty text": 2}, {}),
    "missing votes": (
        [
            pair(chosen_votes=1, rejected_votes=0),
            pair("c", "d", chosen_votes=None, rejected_votes=1),
            pair("e", "f", chosen_votes=0, rejected_votes=0),
        ],
        {"missing votes": 2}, {},
    ),
    "ratings without votes": (
        [rated(votes=[1, 2]), rated("b", 2.0, votes=None), rated("c", 3.0, votes=[]), rated("d", 4.0, votes=[None])],
        {}, {"a score without votes": 3},
    ),
    "missing scores": ([rated(), rated("b", None), rated("c", 2.0)], {"missing value": 1}, {}),
    "missing labels": (
        [labelled("a", True), labelled("b", None), labelled("c", False)],
        {"missing value": 1}, {},
    ),
    "missing weights": (
        [rated(weight=1.0), rated("b", 2.0, weight=None), rated("c", 3.0, weight=0.0)],
        {"missing value": 1}, {},
    ),
    "lists of unequal length": (
        [ranked(["a", "b"], [1, 2]), ranked(["a", "b", "c", "d"], [2, 1, 3, 4]), ranked(["a"], [1])],
        {"fewer than two completions": 1}, {},
    ),
    "best and worst the same": (
        [
            {"completions": ["a", "b"], "best": 0, "worst": 1},
            {"completions": ["c", "d", "e"], "best": 1, "worst": 1},
        ],
        {"best and worst are the same": 1}, {},
    ),
    "very long texts": ([pair(LONG, "b"), pair("c", "d")], {}, {"very long text": 1}),
    "prompts that are missing": (
        [rated(prompt=None), rated("b", 2.0, prompt="q"), rated("c", 3.0, prompt="")],
        {}, {"an empty prompt": 2},
    ),
    "a prompt column of nothing": ([rated(prompt=None), rated("b", 2.0, prompt=None)], {}, {"an empty prompt": 2}),
    "steps without labels": (
        [
            {"completions": ["a", "b"], "labels": [True, None]},
            {"completions": ["c"], "labels": [False]},
            {"completions": ["d"], "labels": [None]},
        ],
        {"missing value": 1}, {"a step without a label": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", COUNTED)
def test_rows_that_say_nothing_and_odd_rows_are_counted(case, kind, tmp_path):
    rows, left_out, noted = COUNTED[case]
    left, found = cleaned(tmp_path, kind, rows)
    assert (found.left_out, found.noted) == (left_out, noted)
    assert len(left) == len(found.kept) == len(rows) - sum(left_out.values())


# --- Refused ----------------------------------------------------------------------------------

REFUSED = {
    "one class": ([labelled("a", True), labelled("b", True)], "one class only: in all 2 rows the label is 1"),
    "one rating": ([rated(), rated("b", 1.0)], "one class only: in all 2 rows the score is 1"),
    "one class left": ([labelled("a", True), labelled("", False)], "one class only: in all 1 rows"),
    "labels as texts": (
        [labelled("a", "good"), labelled("b", "bad")],
        r"column 'label' has 'bad' \(1\), 'good' \(1\)\. Say what each counts.*label_map",
    ),
    "labels out of range": ([labelled("a", 1), labelled("b", 5)], r"column 'label' has 1 \(1\), 5 \(1\)"),
    "lists that do not match": (
        [ranked(["a", "b"], [1, 2]), ranked(["a", "b", "c"], [1, 2])],
        "Row 1 of the rankings: there are 3 completions and 2 ranks; give one for each",
    ),
    "places outside the list": (
        [{"completions": ["a", "b"], "best": 0, "worst": 2}],
        "Row 0 of the best_worst: worst is 2; it is a place in the list, from 0 to 1",
    ),
    "negative votes": ([pair(chosen_votes=-1, rejected_votes=2)], "Row 0 of the votes: chosen_votes is -1"),
    "numbers as texts": (
        [rated(score="4,5"), rated("b", "3.0"), rated("c", "four")],
        r"Column 'score' must hold numbers, but has '4,5' \(1\), 'four' \(1\)\. .*a point and no comma",
    ),
    "votes that are counts": ([rated(votes=12), rated("b", 2.0, votes=7)], "votes must be a list .* but is 12"),
    "votes that are texts": (
        [rated(votes=["1"]), rated("b", 2.0, votes=["2"])],
        r"Row 0 of the ratings: votes\[0\] is '1', a str",
    ),
    "votes in lists of lists": (
        [rated(votes=[[1, 2], [3]]), rated("b", 2.0, votes=[[2]])],
        r"Row 0 of the ratings: votes\[0\] is \[1, 2\], a list, and must be a number",
    ),
    "completions in lists of lists": (
        [ranked([["a", "b"], ["c"]], [1, 2])],
        "Row 0 of the rankings: Column 'completions' holds neither text nor messages .* but a list",
    ),
    "a list that is a text": (
        [ranked("Red, Blue", [1, 2])],
        r"Row 0: completions must be a list, but is the text 'Red, Blue'\. A CSV can hold a list as JSON",
    ),
    "weights below zero": ([rated(weight=-1), rated("b", 2.0, weight=1)], "weight is -1; it must be 0 or more"),
    "weights of zero": ([rated(weight=0), rated("b", 2.0, weight=0)], "weight of all 2 rows is 0"),
    "columns for two formats": (
        [rated(label=True), rated("b", 2.0, label=False)],
        r"fit 2 formats: ratings \(completion, score\) and unpaired \(completion, label\)\. Choose with",
    ),
    "votes of one side": ([pair(chosen_votes=1)], "not the votes of the other side"),
    "no row that says anything": ([pair("", "b"), pair("c", "c")], r"empty text \(1\), identical .* \(1\)"),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_refused_and_said(case, kind, tmp_path):
    rows, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        cleaned(tmp_path, kind, rows)


@pytest.mark.parametrize("kind", FORMATS)
def test_ratings_out_of_a_stated_range_are_refused(kind, tmp_path):
    rows = [rated(), rated("b", 6.0)]
    assert len(cleaned(tmp_path, kind, rows)[0]) == 2
    with pytest.raises(ValueError, match="Row 1 of the ratings: score is 6, outside the score_range from 1 to 5"):
        cleaned(tmp_path, kind, rows, FeedbackSettings(score_range=(1, 5)))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_completions_that_are_numbers_are_refused_and_in_a_csv_they_are_texts(kind, tmp_path):
    rows = [rated(12, 1.0), rated(13, 2.0)]
    with pytest.raises(ValueError, match="Row 0 of the ratings: Column 'completion' holds neither .* but a int"):
        cleaned(tmp_path, kind, rows)
    assert cleaned(tmp_path, "csv", rows)[0]["completion"][:] == ["12", "13"]


@pytest.mark.parametrize("kind", FORMATS)
def test_one_nan_is_treated_as_one_null_is_and_infinity_is_refused(kind, tmp_path):
    rows = [rated(), rated("b", float("nan")), rated("c", 2.0)]
    left, found = cleaned(tmp_path, kind, rows)
    assert (found.left_out, left["completion"][:]) == ({"missing value": 1}, ["a", "c"])
    assert cleaned(tmp_path, kind, [rated(), rated("b", None), rated("c", 2.0)])[1].left_out == found.left_out
    with pytest.raises(ValueError, match="Row 1 of the ratings: score is inf, and must be a finite number"):
        cleaned(tmp_path, kind, [rated(), rated("b", float("inf")), rated("c", 2.0)])


# --- Defined ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("labels", "label_map"),
    [
        (["good", "bad"], {"good": 1, "bad": 0}),
        ([1, -1], {"1": 1, "-1": 0}),  # as a command line gives it
        ([5, 1], {5: 1, 1: 0}),
    ],
)
def test_a_label_map_says_what_labels_count(labels, label_map, kind, tmp_path):
    rows = [labelled("a", labels[0]), labelled("b", labels[1])]
    left, _ = cleaned(tmp_path, kind, rows, FeedbackSettings(label_map=label_map))
    assert left["label"][:] == [1.0, 0.0]


LISTED = {
    "rankings": [ranked(['Red, "dark"', "No."], [1, 2]), ranked(["a", "b", "c"], [1, 2, 2])],
    "best_worst": [{"completions": ["a", "b"], "best": 0, "worst": 1}],
    "ratings": [rated(votes=[1, None, 2]), rated("b", 2.0, votes=[])],
    "objectives": [{"completion": "a", "scores": {"x": 1.0, "y": None}}, {"completion": "b", "scores": {"x": 2.0}}],
    "steps": [{"completions": ["a", "b"], "labels": [True, False]}],
}


@pytest.mark.parametrize("name", LISTED)
def test_lists_in_the_cells_of_a_csv_are_read_as_in_jsonl(name, tmp_path):
    of_jsonl, found = cleaned(tmp_path, "jsonl", LISTED[name])
    of_csv, _ = cleaned(tmp_path, "csv", LISTED[name])
    assert found.format.kind == name
    assert of_csv.to_list() == of_jsonl.to_list()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_text_that_looks_like_a_list_stays_a_text_and_messages_as_text_are_counted(kind, tmp_path):
    as_text = json.dumps([{"role": "assistant", "content": "Hi."}])
    left, found = cleaned(tmp_path, kind, [rated('["a", "b"]'), rated(as_text, 2.0)])
    assert left["completion"][:] == ['["a", "b"]', as_text]
    assert found.noted == {"a text that looks like messages in JSON": 1}


@pytest.mark.parametrize(
    "rows",
    [
        [pair(), pair([{"role": "assistant", "content": "c"}], [{"role": "assistant", "content": "d"}])],
        [pair("a", [{"role": "assistant", "content": "d"}])],
    ],
)
def test_texts_and_messages_do_not_mix(rows, tmp_path):
    with pytest.raises(ValueError, match=r"an answer is messages, and those before it are text\. Make all"):
        cleaned(tmp_path, "jsonl", rows)


def test_a_prompt_may_be_text_where_the_answer_is_messages_but_not_now_and_then(tmp_path):
    answer = [{"role": "assistant", "content": "x"}]
    rows = [rated(answer, prompt="q"), rated(answer[:], 2.0, prompt="r")]
    assert len(cleaned(tmp_path, "jsonl", rows)[0]) == 2
    rows[1]["prompt"] = [{"role": "user", "content": "r"}]
    with pytest.raises(ValueError, match="Row 1 of the ratings: a prompt is messages, and those before it are text"):
        cleaned(tmp_path, "jsonl", rows)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_messages_that_hold_their_prompt_are_split_though_there_is_a_prompt_column_of_nothing(kind, tmp_path):
    question = {"role": "user", "content": "q"}
    answers = [[question, {"role": "assistant", "content": text}] for text in ("a", "b")]
    left, _ = cleaned(tmp_path, kind, [pair(*answers, prompt=None)])
    assert left.to_list() == [{"prompt": [question], "chosen": answers[0][1:], "rejected": answers[1][1:]}]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_words_that_pandas_takes_for_nothing_are_texts(kind, tmp_path):
    rows = [rated("None"), rated("NA", 2.0), rated("007", 3.0), rated("null", 4.0)]
    left, found = cleaned(tmp_path, kind, rows)
    assert (found.left_out, left["completion"][:]) == ({}, ["None", "NA", "007", "null"])


def test_a_column_that_stands_twice_is_refused(tmp_path):
    (tmp_path / "twice.csv").write_text("completion,score,score\na,1,5\nb,2,4\n")
    with pytest.raises(ValueError, match=r"twice\.csv', line 1: there are two columns 'score'\. Remove or rename"):
        load_rows(str(tmp_path / "twice.csv"), "train")
    (tmp_path / "twice.jsonl").write_text('{"completion": "a", "score": 1, "score": 2}\n')
    with pytest.raises(ValueError, match="twice.jsonl', line 1: 'score' is specified twice in one object"):
        load_rows(str(tmp_path / "twice.jsonl"), "train")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_csv_without_commas_is_refused(separator, tmp_path):
    (tmp_path / "rows.csv").write_text(f"completion{separator}score\na{separator}1\nb{separator}2\n")
    with pytest.raises(ValueError, match="not separated by commas"):
        normalize(load_rows(str(tmp_path / "rows.csv"), "train"))


def test_pairs_that_an_edit_makes_equal_are_left_out_and_counted(tmp_path):
    rows = load_rows(write(tmp_path, "jsonl", [pair("Yes!", "yes"), pair("Yes!", "No.")]), "train")
    args = CleaningArguments(lowercase=True, remove_punctuation=True)
    left, table = clean_splits({"train": normalize(rows)[0]}, args)["train"]
    assert left.to_list() == [{"chosen": "yes", "rejected": "no"}]
    assert dict(table.steps)["blank"].notes == {"chosen and rejected the same": 1}


@pytest.mark.parametrize("kind", FORMATS)
def test_very_long_texts_go_through_every_step_and_conversion(kind, tmp_path):
    rows = [rated(LONG), rated(LONG.upper(), 2.0), rated("short", 3.0), rated(LONG[::-1], 5.0)]
    options = {"tidy": "full", "remove_punctuation": True, "deduplicate": True, "near_duplicates": 0.8}
    left, found = cleaned(tmp_path, kind, rows, **options)
    assert (found.noted, left["score"][:]) == ({"very long text": 3}, [1.0, 3.0, 5.0])
    pairs, _ = convert(left, "pairs")
    assert len(pairs) == 1


# --- Splits that leak -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_what_is_in_two_splits_stays_where_it_is_measured(kind, tmp_path):
    texts = {
        "train": ["alone in train", "In All.", "train and test", "train and validation"],
        "validation": ["alone in validation", "in all", "In all. ", "validation  and test", "train and validation"],
        "test": ["alone in test", "in all.", "train and test", "Validation and test"],
    }
    splits = {}
    for name, of_split in texts.items():
        rows = [rated(text, float(place)) for place, text in enumerate(of_split)]
        splits[name] = normalize(load_rows(write(tmp_path, kind, rows, name), "train"))[0]
    left = clean_splits(splits, CleaningArguments())
    assert {name: rows["completion"][:] for name, (rows, _) in left.items()} == {
        "train": ["alone in train"],
        "validation": ["alone in validation", "in all", "train and validation"],
        "test": texts["test"],
    }
    counts = dict(left["train"][1].steps)
    assert counts["leakage (test)"].notes == {"exact copies": 2, "near copies": 0, "held-out texts met": 2}
    assert counts["leakage (validation)"].notes["exact copies"] == 1


def test_a_split_that_is_all_in_another_is_refused_by_name():
    same = Dataset.from_dict({"completion": ["a", "b"], "score": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"Split 'train': The step 'leakage \(test\)' leaves no row"):
        clean_splits({"train": same, "test": same}, CleaningArguments())


# --- What a row is about ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FORMATS)
def test_a_row_is_about_its_prompt_or_else_about_its_text(kind, tmp_path):
    rows = load_rows(write(tmp_path, kind, [rated(prompt="q"), rated("b", 2.0, prompt=None)]), "train")
    assert row_keys(rows) == ["q", "b"]


def test_rows_of_each_format_have_a_key():
    assert row_keys(Dataset.from_dict({"chosen": ["a"], "rejected": ["b"]})) == ["a"]
    assert row_keys(Dataset.from_dict({"completions": [["a", "b"]], "labels": [[1, 0]]})) == ['["a", "b"]']
    messages = [{"role": "user", "content": "q"}]
    assert row_keys(Dataset.from_dict({"prompt": [messages], "completion": ["a"]})) == [json.dumps(messages)]
    assert row_keys(Dataset.from_dict({"prompt": ["q"]})) == ["q"]
    with pytest.raises(ValueError, match="Telling rows apart needs the columns 'chosen', or 'completion'"):
        row_keys(Dataset.from_dict({"id": [1]}))
