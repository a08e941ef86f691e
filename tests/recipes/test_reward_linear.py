"""`recipes/reward_linear.py`, run in process."""

import importlib.util
import json
from pathlib import Path

import pytest

from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from tests.recipes.tiny_runs import check_page
from tests.reward_modeling.linear.rated_words import COUNTS, VALUES, pairs, rated

RECIPE = Path(__file__).parents[2] / "recipes/reward_linear.py"


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("reward_linear_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_rows(folder, **splits):
    folder.mkdir()
    for split, columns in splits.items():
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def as_ratings(count, seed):
    _, texts, ratings = rated(count, seed)
    return {"completion": texts, "score": ratings.tolist(), "votes": [[r - 1, r, r + 1] for r in ratings.tolist()]}


def test_the_recipe_on_ratings(main, tmp_path, capsys):
    splits = {name: as_ratings(count, seed) for seed, (name, count) in
              enumerate({"train": 200, "validation": 80, "test": 80}.items())}  # fmt: skip
    data, output = write_rows(tmp_path / "data", **splits), tmp_path / "run"
    features = ["Length", json.dumps({"BagOfWords": {"min_texts": 1}})]
    main(["--dataset_name", data, "--output_dir", str(output), "--features", *features, "--bootstrap_samples", "5"])
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["pairwise_accuracy"] > 0.97
    assert metrics["r2"] > 0.9
    assert metrics["single_rater_accuracy"] > 0.9
    assert metrics["features"] == 5 + len(VALUES)
    assert {"coefficients.json", "coefficients.png", "importance.json", "importance.png", "config.yaml"} <= {
        file.name for file in output.iterdir()
    }
    check_page(output, "pairwise_accuracy", "r2", says=("What it is worth",))
    assert json.loads((output / "coefficients.json").read_text())[0]["low"] is not None
    good, bad = LinearReward(output)(["", ""], ["good great film", "bad awful film"])
    assert -9 < bad < -1 < 1 < good < 9
    assert "from" in capsys.readouterr().out


def test_the_recipe_on_pairs_and_without_a_validation_split(main, tmp_path):
    splits = {}
    for seed, name in enumerate(("train", "test")):
        _, chosen, rejected = pairs(100, seed)
        splits[name] = {"chosen": chosen, "rejected": rejected}
    data, output = write_rows(tmp_path / "data", **splits), tmp_path / "run"
    main(["--dataset_name", data, "--output_dir", str(output), "--features", json.dumps(COUNTS)])
    assert json.loads((output / "metrics.json").read_text())["pairwise_accuracy"] > 0.97
    good, bad = LinearReward(output)(["", ""], ["good film", "bad film"])
    assert good > bad
