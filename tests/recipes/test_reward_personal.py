"""`recipes/reward_personal.py`, run in process on a few texts; what it leaves behind is looked at as a user would."""

import json
import random

import pytest

from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.reward import PersonalReward
from tests.recipes.tiny_runs import check_page, load_main
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

WORDS = ("good", "loud", "slow", "red", "funny")
LOUD = {"ann": 1, "bob": -1, "7": 1, "eve": -1}  # what each "loud" is worth to a user


@pytest.fixture(scope="module")
def main():
    return load_main("reward_personal")


def sentences(count, seed):
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=6)) for _ in range(count)]


def write(folder, **splits):
    folder.mkdir()
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def of_users(count, seed):
    generator = random.Random(seed)
    rows = []
    for text in sentences(count, seed):
        for user, loud in LOUD.items():
            score = text.split().count("good") + loud * text.split().count("loud") + generator.gauss(0, 0.2)
            rows.append({"completion": text, "score": score, "user": user, "mean": text.split().count("good")})
    return [*rows, {"completion": "good", "score": 1.0, "user": None, "mean": None}]


def of_crowd(count, seed):
    rows = []
    for text in sentences(count, seed):
        votes = [text.split().count("good") + error for error in (-1, 0, 1)]
        rows.append({"completion": text, "score": sum(votes) / 3, "votes": votes})
    return rows


OPTIONS = ["--features", *(json.dumps({"Keywords": {"keywords": [word], "label": word}}) for word in WORDS)]


def test_ratings_of_named_users(main, tmp_path, capsys):
    data = write(tmp_path / "data", train=of_users(20, 0), test=of_users(30, 1))
    folder = tmp_path / "run"
    main(["--dataset_name", str(data), "--output_dir", str(folder), "--ratings_per_user", "5", "20", "--rank", "2",
          "--others_column", "mean", *OPTIONS])  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    curve = json.loads((folder / "curve.json").read_text())
    assert [point["ratings_per_user"] for point in curve] == [5, 20]
    assert metrics["personal_pairwise_accuracy"] > 0.95 > metrics["shared_pairwise_accuracy"]
    assert metrics["users"] == 4
    assert metrics["win"] >= 0.5
    assert metrics["lose"] == 0.0
    assert metrics["simulated"] is False
    assert metrics["reload_difference"] < 1e-6
    assert "oracle_pairwise_accuracy" not in metrics
    assert (folder / "curve.png").is_file()
    check_page(folder, "personal_pairwise_accuracy", "users", says=("The curve", "ratings per user"))
    said = PersonalReward(folder)([""] * 3, ["loud loud"] * 3, user=["ann", "bob", "nobody"])
    assert said[0] > said[2] > said[1]
    assert "20 ratings of each user: pairwise accuracy shared" in capsys.readouterr().out


def test_simulated_raters_on_hidden_features_of_a_reward_model(main, tmp_path):
    data = write(tmp_path / "data", train=of_crowd(60, 0), test=of_crowd(20, 1))
    tokenizer = tiny_tokenizer("bert")
    judge = save_tiny(tmp_path / "judge", tiny_classifier(tokenizer), tokenizer)
    folder = tmp_path / "run"
    main(["--dataset_name", str(data), "--output_dir", str(folder), "--model_name_or_path", str(judge),
          "--features", "Length", "--simulated_users", "5", "--test_ratings_per_user", "15", "--ratings_per_user",
          "10", "--rank", "2", "--train_share", "0:0.8"])  # fmt: skip
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["users"] == 5
    assert metrics["train_rows"] == 50
    assert metrics["simulated"] is True
    heads = ("shared", "personal", "separate", "known_tastes", "oracle")
    assert all(0 <= metrics[f"{head}_pairwise_accuracy"] <= 1 for head in heads)
    assert metrics["oracle_pairwise_accuracy"] > metrics["separate_pairwise_accuracy"]
    model = PersonalRewardModel.load(folder)
    assert model.users == [f"simulated-{index}" for index in range(5)]
    assert model.features.features[0].name == "hidden[0]"


def test_data_without_users(main, tmp_path):
    data = write(tmp_path / "data", train=of_crowd(5, 0), test=of_crowd(5, 1))
    with pytest.raises(ValueError, match="needs the columns 'completion' and 'score' and 'user'"):
        main(["--dataset_name", str(data), "--output_dir", str(tmp_path / "run")])
