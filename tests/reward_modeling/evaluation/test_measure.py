"""A saved model, measured on every kind of feedback, and the command that does it."""

import json
import random
from types import SimpleNamespace

import pytest
from datasets import Dataset

from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.reward_modeling.evaluation.__main__ import main
from rlhf_recipes.reward_modeling.evaluation.measure import measure, rating_scale, summary
from rlhf_recipes.rewards.learned import LearnedReward
from tests.reward_modeling.tiny_models import tiny_step_model
from tests.tiny import SENTENCES, save_tiny, tiny_classifier, tiny_tokenizer

ARGS = SimpleNamespace(per_device_eval_batch_size=8, min_gap=0.5, rating_low=None, rating_high=None, loss_args=None)
WORDS = [word for sentence in SENTENCES for word in sentence.split()]


def texts(count, seed=0):
    generator = random.Random(seed)
    return [" ".join(generator.sample(WORDS, 6)) for _ in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    tokenizer = tiny_tokenizer("bert")
    return save_tiny(tmp_path_factory.mktemp("reward"), tiny_classifier(tokenizer), tokenizer)


@pytest.fixture
def own(folder, tmp_path):
    """The model in a folder of this test's own, because measuring writes into it."""
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def columns_of(kind, seed=0):
    """Twelve rows of a kind, with what people say drawn at random."""
    generator = random.Random(seed)
    some, others = texts(12, seed), texts(12, seed + 100)
    ranks = [generator.sample([1.0, 2.0, 3.0], 3) for _ in range(4)]
    lists = [some[start : start + 3] for start in range(0, 12, 3)]
    return {
        "ratings": {"completion": some, "score": [generator.uniform(-3, 3) for _ in some]},
        "pairs": {"chosen": some, "rejected": others},
        "votes": {
            "chosen": some,
            "rejected": others,
            "chosen_votes": [float(generator.randint(1, 9)) for _ in some],
            "rejected_votes": [float(generator.randint(0, 9)) for _ in some],
        },
        "rankings": {"completions": lists, "ranks": ranks},
        "best_worst": {"completions": lists, "best": [0, 1, 2, 0], "worst": [1, 2, 0, 2]},
        "unpaired": {"completion": some, "label": [float(row % 3 == 0) for row in range(12)]},
        "clicks": {"completion": some, "clicks": [float(row % 4) for row in range(12)], "views": [5.0] * 12},
        "dwell": {"completion": some, "dwell_seconds": [float(5 * row) for row in range(12)]},
        "objectives": {
            "completion": some,
            "scores": [{"kind": generator.uniform(1, 5), "true": generator.uniform(1, 5)} for _ in some],
        },
    }[kind]


def read(folder, name):
    return json.loads((folder / name).read_text(encoding="utf-8"))


def test_scales():
    train = Dataset.from_dict({"completion": ["a", "b"], "score": [1.0, 2.0], "votes": [[0, None, 2], [1, 4, 5]]})
    assert rating_scale(train, ARGS) == (0.0, 5.0)
    assert rating_scale(train.remove_columns("votes"), ARGS) == (1.0, 2.0)
    assert rating_scale(train, SimpleNamespace(rating_low=-1, rating_high=9)) == (-1.0, 9.0)


def test_ratings_are_calibrated_on_validation_rows_and_measured_on_test_rows(own):
    plain = LearnedReward(own, calibrate=False)
    logits = {seed: plain([""] * 12, texts(12, seed)) for seed in (0, 1)}
    validation = Dataset.from_dict({"completion": texts(12, 1), "score": logits[1]})
    test = Dataset.from_dict({"completion": texts(12, 0), "score": [-logit for logit in logits[0]]})
    train = Dataset.from_dict({"completion": ["a", "b"], "score": [-9.0, 9.0]})
    metrics = measure(own, train, validation, test, ARGS)
    # People say the opposite of the model: every pair is turned.
    assert metrics["pairwise_accuracy"] == 0.0
    curve = LogisticCalibration.fit(logits[1], logits[1], -9, 9)
    assert RewardModelSettings.load(own).calibration == curve
    said = curve(logits[0])
    assert metrics["mae"] == pytest.approx(
        sum(abs(s + x) for s, x in zip(said, logits[0], strict=True)) / 12, abs=1e-4
    )
    rows = [json.loads(line) for line in (own / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["split"] for row in rows] == ["validation"] * 12 + ["test"] * 12
    assert [row["score"] for row in rows[12:]] == pytest.approx(list(said), abs=1e-4)
    assert read(own, "evaluation.json")["accuracy"]["model"] == 0.0


@pytest.mark.parametrize(
    "kind",
    ["pairs", "votes", "rankings", "best_worst", "unpaired", "clicks", "dwell", "objectives"],
)
def test_every_kind_is_measured_in_one_pass_of_each_split(own, kind, monkeypatch):
    asked = []
    call = LearnedReward.scores
    monkeypatch.setattr(LearnedReward, "scores", lambda self, ids: asked.append(len(ids)) or call(self, ids))
    test, validation = (Dataset.from_dict(columns_of(kind, seed)) for seed in (0, 1))
    metrics = measure(own, validation, validation, test, ARGS)
    distinct = 24 if kind in ("pairs", "votes") else 12
    fitted = kind in ("unpaired", "clicks", "dwell", "objectives")
    assert sorted(asked) == sorted([distinct, *([12] if fitted else [])])
    assert 0 <= metrics["pairwise_accuracy"] <= 1
    assert metrics["pairs"] > 0
    nested = read(own, "evaluation.json")
    assert nested["kind"] == kind
    assert nested["accuracy"]["model"] == metrics["pairwise_accuracy"]
    assert "missing" not in nested or kind == "objectives"  # one output for two objectives
    assert "Held-out pairs in the right order" in summary(metrics)


def test_what_people_say_of_pairs_decides(own):
    columns = columns_of("pairs")
    reward = LearnedReward(own, calibrate=False)
    first, second = reward([""] * 12, columns["chosen"]), reward([""] * 12, columns["rejected"])
    right = sum(a > b for a, b in zip(first, second, strict=True)) / 12
    rows = Dataset.from_dict(columns)
    assert measure(own, rows, None, rows, ARGS)["pairwise_accuracy"] == right


def test_objectives_with_an_output_each(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    names = {0: "kind", 1: "true"}
    model = tiny_classifier(tokenizer, num_labels=2, id2label=names, label2id={"kind": 0, "true": 1})
    save_tiny(tmp_path, model, tokenizer)
    RewardModelSettings(labels={"kind": 0.5, "true": 0.5}).save(tmp_path)
    outputs = {name: LearnedReward(tmp_path, label=name)([""] * 12, texts(12)) for name in names.values()}
    # Ratings are lines of what the model says: 3 + 2 k and 1 - 5 t, so that the second is turned.
    scores = [{"kind": 3 + 2 * k, "true": 1 - 5 * t} for k, t in zip(outputs["kind"], outputs["true"], strict=True)]
    rows = Dataset.from_dict({"completion": texts(12), "scores": scores})
    measure(tmp_path, rows, rows, rows, ARGS)
    found = read(tmp_path, "evaluation.json")["objectives"]
    assert found["kind"]["mae"] == pytest.approx(0.0, abs=1e-3)
    assert found["kind"]["pairwise_accuracy"] == 1.0
    assert found["true"]["pairwise_accuracy"] == 0.0
    assert "mae" not in found["true"]  # no rising line fits


def test_steps_of_a_token_classifier(tmp_path, capsys):
    tokenizer, model = tiny_step_model()
    folder = save_tiny(tmp_path / "process", model, tokenizer)
    steps = [texts(3, seed) for seed in range(6)]
    labels = [[1.0, float(row % 2), None] for row in range(6)]
    rows = Dataset.from_dict({"prompt": ["Why? "] * 6, "completions": steps, "labels": labels})
    metrics = measure(folder, rows, None, rows, ARGS)
    assert metrics["steps"] == 12
    nested = read(folder, "evaluation.json")
    assert nested["steps"]["answers_with_error"] == 3
    # The scores of the file decide: below one half is flagged.
    predictions = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    flagged = {(row["row"], row["place"]): row["logit"] < 0.5 for row in predictions}
    right = sum(flagged[row, place] == (labels[row][place] == 0) for row in range(6) for place in range(2))
    assert metrics["step_accuracy"] == pytest.approx(right / 12)
    assert "Held-out steps told right from wrong (12 steps)" in summary(metrics)

    rows.to_json(str(tmp_path / "steps.jsonl"))
    out = tmp_path / "out"
    main(
        ["--model", str(folder), "--dataset_name", str(tmp_path / "steps.jsonl"), "--dataset_test_split", "train"]
        + ["--output_dir", str(out)]
    )
    assert read(out, "metrics.json") == metrics
    assert "steps told right" in capsys.readouterr().out


def test_the_command_measures_any_model_on_any_feedback(own, tmp_path, capsys):
    data = tmp_path / "my-votes"
    data.mkdir()
    Dataset.from_dict(columns_of("votes")).to_json(str(data / "test.jsonl"))
    out = tmp_path / "out"
    main(["--model", str(own), "--dataset_name", str(data), "--output_dir", str(out), "--batch_size", "8"])
    said = capsys.readouterr().out
    assert "12 of 12 rows can be used." in said
    assert f"Saved in {out}" in said
    rows = Dataset.from_dict(columns_of("votes"))
    assert read(out, "metrics.json") == measure(own, rows, None, rows, ARGS)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "my-votes" in page
    assert "How to use it" not in page  # there is no model in this folder


def test_the_command_uses_the_models_own_scale_only_where_it_fits(own, tmp_path, caplog):
    RewardModelSettings(calibration=LogisticCalibration(1.0, 0.0, -4.0, 4.0)).save(own)
    scores = {"within": 1.0, "outside": 5.0}
    for name, factor in scores.items():
        (tmp_path / name).mkdir()
        columns = columns_of("ratings")
        rows = Dataset.from_dict(columns | {"score": [factor * value for value in columns["score"]]})
        rows.to_json(str(tmp_path / name / "test.jsonl"))
        main(
            [
                "--model",
                str(own),
                "--dataset_name",
                str(tmp_path / name),
                "--output_dir",
                str(tmp_path / f"{name}_out"),
            ]
        )
    assert "mae" in read(tmp_path / "within_out", "metrics.json")
    assert "mae" not in read(tmp_path / "outside_out", "metrics.json")
    assert "leave the scale" in caplog.text


def test_summaries_name_what_there_is():
    text = summary({"log_loss": 0.5, "base_log_loss": 0.6, "base_rate": 0.25, "train_texts": 1200, "seconds": 3.2})
    assert "Log loss 0.500 nats" in text
    assert "saying the mean label of every text, 0.250, has 0.600" in text
    assert text.endswith("1,200 training texts, 3 s")
    assert summary({"kendall": 0.25, "top1_accuracy": 0.5, "top1_chance": 0.2}).splitlines() == [
        "Rank correlation within a list (Kendall's tau) 0.250",
        "Best text of a list found 0.500, by chance 0.200",
    ]
