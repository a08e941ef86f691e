"""`recipes/label.py`, run in process with rewards that a test can follow; on the starter kit where it is slow."""

import json

import numpy as np
import pytest

from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.loading import load_rows
from tests.recipes.test_ppo import load_main, read, write_rows
from tests.recipes.tiny_runs import check_page

REWARDS = """
def marks(completions, **kwargs):
    return [float(text.count("!") - text.count("?")) for text in completions]

def loud(completions, **kwargs):
    return [float(text.count("!")) for text in completions]
"""


def noisy(rows, seed):
    """Texts with -5 to 5 marks and a rating that is above 0 the more surely, the more marks there are."""
    generator = np.random.default_rng(seed)
    marks = generator.integers(-5, 6, rows)
    good = generator.random(rows) < 1 / (1 + np.exp(-marks))
    return [
        {"completion": f"{number} {'!' * max(mark, 0)}{'?' * max(-mark, 0)}", "score": 1.5 if is_good else -0.5}
        for number, (mark, is_good) in enumerate(zip(marks.tolist(), good.tolist(), strict=True))
    ]


@pytest.fixture(scope="module")
def main():
    return load_main("label")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    (folder / "my_rewards.py").write_text(REWARDS)
    write_rows(folder / "ratings/validation.jsonl", noisy(600, seed=0))
    write_rows(folder / "ratings/test.jsonl", noisy(400, seed=1))
    write_rows(folder / "pairs.jsonl", [{"first": "a!", "second": "a"}, {"first": "b?", "second": "b!"}])
    return folder


def command(place, out, *more, rewards=("marks",), **options):
    words = ["--output_dir", str(out), "--reward_funcs", *(f"{place}/my_rewards.py:{name}" for name in rewards)]
    for name, value in options.items():
        words += [f"--{name}", str(value)]
    return [*words, *more]


def test_a_threshold_is_chosen_and_the_accuracy_told(main, place, tmp_path, capsys):
    options = {"dataset_name": place / "ratings", "dataset_split": "test", "validation_split": "validation"}
    main(command(place, tmp_path, wanted_accuracy=0.9, **options))
    metrics = read(tmp_path, "metrics.json")
    assert metrics["guaranteed_accuracy"] >= 0.9
    assert metrics["rows"] == 400
    assert metrics["labelled"] + metrics["abstained"] == 400
    rows = load_rows(str(tmp_path / "labeled.jsonl"), "train")
    spoken = [row for row in rows if not row["abstained"]]
    right = sum((row["label"] == 1) == (row["given_score"] > 0) for row in spoken)
    assert (metrics["accuracy_rows"], metrics["accuracy"]) == (len(spoken), pytest.approx(right / len(spoken)))
    assert min(row["confidence"] for row in spoken) >= metrics["threshold"]
    assert len(normalize(rows)[0]) == len(spoken)
    assert read(tmp_path, "coverage.json")[-1]["rows"] > 400
    assert (tmp_path / "coverage.png").read_bytes().startswith(b"\x89PNG")
    assert "rows labelled" in capsys.readouterr().out
    check_page(
        tmp_path, "labelled", "threshold", "accuracy", says=("rows have a label", "The first 300 of 400", "The curve")
    )


def test_pairs_without_labels_in_parquet(main, place, tmp_path):
    main(command(place, tmp_path, dataset_name=place / "pairs.jsonl", output_file="pairs.parquet", threshold=0.8))
    rows = load_rows(str(tmp_path / "pairs.parquet"), "train")
    assert rows["chosen"] == ["a!", "b!"]
    assert rows["target"] == [None, pytest.approx(0.880797)]
    metrics = read(tmp_path, "metrics.json")
    assert (metrics["confidence_method"], metrics["temperature"], metrics["labelled"]) == ("sigmoid", 1.0, 1)
    assert not (tmp_path / "coverage.png").exists()


def test_an_ensemble_abstains_where_its_members_differ(main, place, tmp_path):
    more = ("--ensemble", "--confidence", "agreement", "--min_agreement", "1")
    main(command(place, tmp_path, *more, rewards=("marks", "loud"), dataset_name=place / "pairs.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "labeled.jsonl").read_text().splitlines()]
    assert [row["agreement"] for row in rows] == [1.0, 1.0]
    assert [row["spread"] for row in rows] == [0.0, 0.5]
    assert [row["swapped"] for row in rows] == [False, True]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dataset_name": "ratings", "dataset_split": "test"}, "name a validation_split"),
        ({"dataset_name": "pairs.jsonl", "output_file": "labels.xlsx"}, "can be written as"),
        ({"dataset_name": "pairs.jsonl", "wanted_accuracy": 0.9}, "give validation_split"),
    ],
)
def test_options_that_do_not_fit_are_refused(main, place, tmp_path, capsys, options, said):
    options["dataset_name"] = place / options["dataset_name"]
    with pytest.raises((SystemExit, ValueError)) as refused:
        main(command(place, tmp_path, **options))
    assert said in str(refused.value) + capsys.readouterr().err
