"""`recipes/reward.py`, run in process on tiny models and data; what it leaves behind is looked at as a user would."""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlhf_recipes.rewards.learned import LearnedReward
from tests.hub_double import HubDouble
from tests.recipes.tiny_runs import check_page
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

RECIPE = Path(__file__).parents[2] / "recipes/reward.py"
VALUES = {"good": 2, "great": 3, "fine": 1, "bad": -2, "dull": -1, "awful": -3, "film": 0, "plot": 0, "cast": 0}
BRISK = ["--use_cpu", "--disable_tqdm", "true", "--learning_rate", "1e-2", "--num_train_epochs", "2"]
FAST = [*BRISK, "--loss", "bradley_terry", "--card", "false"]
CLICKS = '{"false_click": 0.05}'
LORA = ["--use_peft", "--lora_target_modules", "all-linear", "--lora_r", "4"]


@pytest.fixture(scope="module")
def main():
    spec = importlib.util.spec_from_file_location("reward_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Nothing is probed, and tiny models do not wait for threads that another program keeps busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """An encoder with a head, and a decoder that is a language model, as they come from the Hub."""
    folder = tmp_path_factory.mktemp("models")
    bert, llama = tiny_tokenizer("bert"), tiny_tokenizer("llama", chat_template=True)
    return {
        "bert": str(save_tiny(folder / "bert", tiny_classifier(bert), bert)),
        "llama": str(save_tiny(folder / "llama", tiny_causal_lm(llama), llama)),
    }


def write_split(folder, split, rows):
    folder.mkdir(exist_ok=True)
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def draw_rating(generator):
    words = [generator.choice(list(VALUES)) for _ in range(5)]
    score = max(-4, min(4, sum(VALUES[word] for word in words) / 2))
    return {"completion": " ".join(words), "score": score, "votes": [max(-4, score - 1), score, min(4, score + 1)]}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("data") / "ratings", random.Random(0)
    for split, count in (("train", 160), ("validation", 24), ("test", 24)):
        write_split(folder, split, [draw_rating(generator) for _ in range(count)])
    return str(folder)


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_what_is_saved_gives_the_scores_that_were_measured(main, models, ratings, kind, lora, tmp_path):
    out = tmp_path / "out"
    flags = ["--dataset_name", ratings, "--model_name_or_path", models[kind], "--output_dir", str(out), *FAST]
    main([*flags, *(LORA if lora else [])])

    metrics = read(out, "metrics.json")
    assert {"pairwise_accuracy", "pairwise_accuracy_ci95", "pairs", "pearson", "single_rater_accuracy"} <= set(metrics)
    assert {"vader_accuracy", "length_accuracy", "seconds", "peak_memory_gb", "threads"} <= set(metrics)
    assert (metrics["train_pairs"], metrics["train_texts"]) == (79, 159)  # one of 160 rows is in the test split too
    assert (out / "adapter/adapter_config.json").exists() == lora

    # By hand, with nothing of ours: one text at a time, so without padding.
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [row["split"] for row in predictions] == ["validation"] * 24 + ["test"] * 24
    end = tokenizer.eos_token_id if kind == "llama" else tokenizer.sep_token_id
    with torch.no_grad():
        inputs = [tokenizer(row["text"], return_tensors="pt") for row in predictions[20:28]]
        logits = [model(**of_text).logits.item() for of_text in inputs]
    assert [of_text.input_ids[0].tolist().count(end) for of_text in inputs] == [1] * 8
    assert logits == pytest.approx([row["logit"] for row in predictions[20:28]], abs=1e-5)
    assert max(logits) - min(logits) > 1e-3

    # Through the reward, calibrated.
    settings = read(out, "reward_config.json")
    assert not settings["append_eos"]  # the tokenizer does it
    scores = LearnedReward(out)([""] * 8, [row["text"] for row in predictions[20:28]])
    assert scores == pytest.approx([row["score"] for row in predictions[20:28]], abs=1e-5)


def test_it_learns_and_repeats_itself(main, models, ratings, tmp_path):
    flags = [
        "--dataset_name",
        ratings,
        "--model_name_or_path",
        models["bert"],
        *FAST,
        "--passes",
        "8",
        "--learning_rate",
        "3e-3",
    ]
    main([*flags, "--output_dir", str(tmp_path / "first")])
    metrics = read(tmp_path / "first", "metrics.json")
    assert metrics["train_pairs"] == 632
    assert metrics["pairwise_accuracy"] > 0.75
    assert metrics["pearson"] > 0.6
    assert read(tmp_path / "first", "reward_config.json")["calibration"]["low"] == -4.0
    # The same again, from the file that it left.
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "second")])
    assert (tmp_path / "first/predictions.jsonl").read_text() == (tmp_path / "second/predictions.jsonl").read_text()


def test_pairs_of_plain_text_with_a_prompt(main, models, tmp_path):
    for split, films in (("train", range(8, 24)), ("test", range(8))):
        rows = [{"prompt": f"Film {row}: ", "chosen": "great plot", "rejected": "awful plot"} for row in films]
        write_split(tmp_path / "pairs", split, rows)
    out = tmp_path / "out"
    flags = ["--dataset_name", str(tmp_path / "pairs"), "--model_name_or_path", models["bert"], *FAST]
    main([*flags, "--num_train_epochs", "6", "--output_dir", str(out)])
    metrics = read(out, "metrics.json")
    assert (metrics["pairs"], metrics["pairwise_accuracy"], metrics["vader_accuracy"]) == (8, 1.0, 1.0)
    assert metrics["train_texts"] == 32
    assert read(out, "reward_config.json")["calibration"] is None
    assert not {"pearson", "single_rater_accuracy"} & set(metrics)


def test_pairs_of_conversations(main, models, tmp_path):
    def talk(answer):
        return [{"role": "user", "content": "Is it good?"}, {"role": "assistant", "content": answer}]

    for split, count in (("train", 16), ("test", 8)):
        rows = [{"chosen": talk(f"yes, {row}"), "rejected": talk(f"no, {row}")} for row in range(count)]
        write_split(tmp_path / "pairs", split, rows)
    out = tmp_path / "out"
    flags = ["--dataset_name", str(tmp_path / "pairs"), "--model_name_or_path", models["llama"], *FAST]
    main([*flags, "--num_train_epochs", "6", "--eval_strategy", "epoch", "--output_dir", str(out)])
    assert read(out, "metrics.json")["pairwise_accuracy"] == 1.0
    reward = LearnedReward(out)
    yes, no = reward([talk("")[:1]] * 2, [talk("yes, 3")[1:], talk("no, 3")[1:]])
    assert yes > no


WORDS = list(VALUES)


@pytest.mark.parametrize("form", ["raw dialogues of HH-RLHF", "ShareGPT"])
def test_dialogues_of_others_are_learned_without_a_chat_template(main, models, form, tmp_path, capsys):
    def row(better, worse):
        if form == "ShareGPT":
            turns = [{"from": "human", "value": "How is it?"}]
            sides = ({"from": "gpt", "value": text} for text in (better, worse))
            return {"conversations": turns, **dict(zip(("chosen", "rejected"), sides, strict=True))}
        head = "\n\nHuman: How is it?\n\nAssistant: "
        return {"chosen": head + better, "rejected": head + worse}

    for split, count in (("train", 160), ("test", 60)):
        drawn = [sorted(texts, key=worth) for texts in lists(count, 2, seed=count)]
        write_split(tmp_path / "talks", split, [row(b, a) for a, b in drawn if worth(a) < worth(b)])
    flags = ["--dataset_name", str(tmp_path / "talks"), "--model_name_or_path", models["bert"], *FAST]
    main([*flags, "--learning_rate", "3e-3", "--num_train_epochs", "4", "--output_dir", str(tmp_path / "out")])
    assert "Feedback      pairs (chosen, rejected; " in capsys.readouterr().out
    assert read(tmp_path / "out", "metrics.json")["pairwise_accuracy"] > 0.65
    better, worse = "great great great great great", "awful awful awful awful awful"
    asked = [[{"role": "user", "content": "How is it?"}]] * 2
    score = LearnedReward(tmp_path / "out")
    as_messages = score(asked, [better, worse])
    assert as_messages == score(["", ""], [f"\n\nHuman: How is it?\n\nAssistant: {text}" for text in (better, worse)])
    assert as_messages[0] > as_messages[1]


def worth(text):
    return sum(VALUES[word] for word in text.split()) / 2


def lists(count, size, seed=0):
    generator = random.Random(seed)
    return [[draw_rating(generator)["completion"] for _ in range(size)] for _ in range(count)]


def ranks(texts):
    return [1 + sum(worth(other) > worth(text) for other in texts) for text in texts]


def rows_of(kind, count, seed=0):
    """Feedback on made-up texts, from what their words are worth."""
    fours, singles = lists(count, 4, seed), [texts[0] for texts in lists(count, 1, seed)]
    labels = [worth(text) > 0 for text in singles]
    return {
        "votes": [
            {"chosen": a, "rejected": b, "chosen_votes": votes, "rejected_votes": 8 - votes}
            for a, b, *_ in fours
            for votes in [max(0, min(8, 4 + round(2 * (worth(a) - worth(b)))))]
        ],
        "rankings": [{"completions": texts, "ranks": ranks(texts)} for texts in fours if len(set(ranks(texts))) > 1],
        "best_worst": [
            {"completions": texts, "best": ranks(texts).index(1), "worst": ranks(texts).index(max(ranks(texts)))}
            for texts in fours
            if len(set(ranks(texts))) > 1
        ],
        "unpaired": [{"completion": text, "label": label} for text, label in zip(singles, labels, strict=True)],
        "clicks": [{"completion": text, "clicks": 9 if label else 1, "views": 10}
                   for text, label in zip(singles, labels, strict=True)],
        "objectives": [{"completion": text, "scores": {"kind": worth(text), "short": -len(text)}} for text in singles],
        "steps": [{"prompt": "Go.", "completions": texts, "labels": [worth(text) > 0 for text in texts]}
                  for texts in fours],
    }[kind]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "options", "loss"),
    [
        ("votes", [], "bradley_terry"),
        ("rankings", [], "plackett_luce"),
        ("rankings", ["--loss", "info_nce"], "info_nce"),
        ("best_worst", [], "best_worst"),
        ("unpaired", ["--loss_args", '{"balanced": true}'], "binary_cross_entropy"),
        ("clicks", ["--convert_to", "unpaired", "--convert_args", CLICKS], "binary_cross_entropy"),
        ("objectives", ["--loss_args", '{"weights": {"kind": 1.0}}'], "multi_objective"),
        ("steps", ["--loss_args", '{"step_token": "[SEP]"}'], "process"),
    ],
)
def test_every_kind_of_feedback_is_recognized_and_learned(main, models, kind, options, loss, tmp_path, capsys):
    for split, count in (("train", 160), ("validation", 40), ("test", 60)):
        write_split(tmp_path / kind, split, rows_of(kind, count, seed=count))
    out = tmp_path / "out"
    flags = ["--dataset_name", str(tmp_path / kind), "--model_name_or_path", models["bert"], *BRISK, *options]
    main([*flags, "--num_train_epochs", "4", "--learning_rate", "3e-3", "--card", "false", "--output_dir", str(out)])
    said = capsys.readouterr().out
    assert f"Feedback      {kind} (" in said
    assert f"Loss          {loss}" in said
    metrics = read(out, "metrics.json")
    assert metrics["loss"] == loss
    if kind == "steps":  # the tiny model does not find out which words are those of a step
        assert metrics["steps"] == 240
    else:
        assert metrics["pairwise_accuracy"] > 0.65, metrics


@pytest.mark.parametrize("loss", ["pairs_in_batch", "mse", "mae", "huber", "ordinal", "classification"])
def test_every_loss_of_ratings_learns(main, models, ratings, loss, tmp_path):
    flags = ["--dataset_name", ratings, "--model_name_or_path", models["bert"], *BRISK, "--loss", loss]
    main([*flags, "--num_train_epochs", "6", "--learning_rate", "3e-3", "--card", "false",
          "--output_dir", str(tmp_path)])  # fmt: skip
    assert read(tmp_path, "metrics.json")["pairwise_accuracy"] > 0.65


def test_the_card_says_what_was_learned_and_what_it_leans_on_and_is_pushed(main, models, tmp_path, monkeypatch):
    generator = random.Random(1)
    for split, count in (("train", 120), ("validation", 40), ("test", 80)):
        rows = [draw_rating(generator) | {"side": "ab"[row % 2]} for row in range(count)]
        write_split(tmp_path / "data", split, rows)
    out = tmp_path / "out"
    flags = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", models["bert"], *BRISK, "--loss", "mse"]
    flags += ["--debias", "length", "--group_column", "side", "--group_penalty", "0.5", "--output_dir", str(out)]
    with HubDouble() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        main([*flags, "--push_to_hub", "--hub_model_id", "me/judge", "--hub_token", hub.token])
        pushed = hub.repos["me/judge"].files
    assert {"model.safetensors", "reward_config.json", "README.md", "report.html", "evaluation.json"} <= set(pushed)
    assert pushed["README.md"] == (out / "README.md").read_bytes()
    assert not {"training_args.bin", "config.yaml", "predictions.jsonl"} & set(pushed)
    bias = read(out, "bias.json")
    assert {"length", "format", "repetition"} == set(bias["covariates"])
    assert {"a", "b"} == set(bias["groups"]["groups"])
    page = (out / "report.html").read_text()
    check_page(out, "pairwise_accuracy", "train_seconds", says=("Data", "What it is worth", "Bias", "Training"))
    for what in ("What it gets wrong", "How to use it"):
        assert what in page
    assert "src=" not in page  # nothing is fetched
    card = (out / "README.md").read_text()
    assert "reward_funcs" in card
    assert "held-out" in card


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(main, models, ratings, lora, tmp_path):
    whole, again = tmp_path / "whole", tmp_path / "again"
    flags = ["--dataset_name", ratings, "--model_name_or_path", models["bert"], *BRISK, "--loss", "ordinal", "--card"]
    flags += ["false", "--save_strategy", "steps", "--save_steps", "15", *(LORA if lora else [])]
    main([*flags, "--output_dir", str(whole)])
    again.mkdir()
    for kept in (".recipe", "config.yaml", "checkpoint-15"):  # as if killed after 15 of 40 steps
        copy = shutil.copytree if (whole / kept).is_dir() else shutil.copy
        copy(whole / kept, again / kept)
    main([*flags, "--output_dir", str(again), "--resume_from_checkpoint", "auto"])
    for name in ("reward_config.json", "predictions.jsonl"):
        assert (whole / name).read_text() == (again / name).read_text()
    with pytest.raises(FileExistsError, match="--resume_from_checkpoint auto"):
        main([*flags, "--output_dir", str(again)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--loss", "plackett_luce"], "The loss plackett_luce does not read ratings"),
        (["--loss", "pairs_in_batch", "--loss_args", '{"gap": 1}'], "no setting 'gap'.*min_gap"),
        (
            ["--loss", "pairs_in_batch", "--group_column", "completion", "--group_penalty", "1"],
            "Take the loss mse, mae",
        ),
        (["--group_column", "topic"], "group_column is 'topic'; the columns are"),
        (["--score_range", "-1", "1"], "Row 0 of the ratings|outside"),
        (["--loss", "ordinal", "--loss_args", '{"levels": [1, 2]}'], "none of the levels 1, 2"),
    ],
)
def test_options_that_do_not_fit_the_feedback_are_refused(main, models, ratings, options, message, tmp_path):
    flags = ["--dataset_name", ratings, "--model_name_or_path", models["bert"], *BRISK, "--output_dir", str(tmp_path)]
    with pytest.raises(ValueError, match=message):
        main([*flags, *options])
    assert not (tmp_path / "model.safetensors").exists()


def test_frozen_layers_stay_as_they_were(main, models, ratings, tmp_path):
    flags = ["--dataset_name", ratings, "--model_name_or_path", models["bert"], "--output_dir", str(tmp_path / "out")]
    main([*flags, *FAST, "--num_frozen_layers", "1", "--train_share", "0:0.6"])
    before, after = (
        AutoModelForSequenceClassification.from_pretrained(folder).state_dict()
        for folder in (models["bert"], tmp_path / "out")
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert not any(name.startswith(("bert.embeddings.", "bert.encoder.layer.0.")) for name in changed)
    assert read(tmp_path / "out", "metrics.json")["train_texts"] < 160


def test_without_a_validation_split_scores_stay_logits(main, models, ratings, tmp_path, caplog):
    flags = ["--dataset_name", ratings, "--model_name_or_path", models["bert"], "--output_dir", str(tmp_path / "out")]
    main([*flags, *FAST, "--max_steps", "1", "--validation_split", "dev"])
    assert "scores will not be calibrated" in caplog.text
    assert "it has: " in caplog.text
    assert read(tmp_path / "out", "reward_config.json")["calibration"] is None
    assert "mae" not in read(tmp_path / "out", "metrics.json")


def test_bad_input_is_refused_before_anything_is_trained(main, models, ratings, tmp_path):
    def run(dataset=ratings, model="bert", out="out"):
        name = models.get(model, model)
        main(
            ["--dataset_name", str(dataset), "--model_name_or_path", name, "--output_dir", str(tmp_path / out), *FAST]
        )

    with pytest.raises(FileNotFoundError, match="No dataset at"):
        run(dataset="./nowhere")
    with pytest.raises(FileNotFoundError, match="No model at"):
        run(model="./nowhere")
    write_split(tmp_path / "columns", "train", [{"review": "text", "stars": 1}])
    with pytest.raises(ValueError, match="Feedback needs the columns .* The dataset has: review, stars"):
        run(dataset=tmp_path / "columns")
    write_split(tmp_path / "empty", "train", [])
    with pytest.raises(ValueError, match="is empty|no rows"):
        run(dataset=tmp_path / "empty")
    write_split(tmp_path / "train_only", "train", [{"completion": "a", "score": 1}, {"completion": "b", "score": 2}])
    with pytest.raises(ValueError, match="no split 'test'"):
        run(dataset=tmp_path / "train_only")
    for split in ("train", "test"):
        write_split(tmp_path / "ties", split, [{"completion": "a", "score": 1}, {"completion": "b", "score": 1}])
    with pytest.raises(ValueError, match="There is one class only: in all 2 rows the score is 1"):
        run(dataset=tmp_path / "ties")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis.txt"):
        run(out="foreign")
    assert (tmp_path / "foreign/thesis.txt").read_text() == "years of work"
    assert not (tmp_path / "out/model.safetensors").exists()


def test_columns_of_another_format_do_not_count(main, models, tmp_path):
    """Votes for the worse text decide, though there is a score that says otherwise."""
    for split, films in (("train", range(8, 40)), ("test", range(8))):
        rows = [
            {"prompt": f"Film {row}: ", "chosen": "awful", "rejected": "great", "chosen_votes": 1, "rejected_votes": 4,
             "completion": "great", "score": row}
            for row in films
        ]  # fmt: skip
        write_split(tmp_path / "data", split, rows)
    flags = ["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", models["bert"], *BRISK]
    flags += ["--card", "false", "--num_train_epochs", "4"]
    main([*flags, "--feedback_format", "votes", "--output_dir", str(tmp_path / "votes")])
    assert read(tmp_path / "votes", "metrics.json")["pairwise_accuracy"] == 1.0
    great, awful = LearnedReward(tmp_path / "votes")(["Film 1: "] * 2, ["great", "awful"])
    assert great > awful
    main([*flags, "--feedback_format", "pairs", "--output_dir", str(tmp_path / "pairs")])
    great, awful = LearnedReward(tmp_path / "pairs")(["Film 1: "] * 2, ["great", "awful"])
    assert awful > great


def test_pictures_are_not_passed_over_in_silence(main, models, tmp_path):
    for split in ("train", "test"):
        write_split(tmp_path / "data", split, [{"chosen": "a", "rejected": "b", "image": "a.png"}] * 2)
    with pytest.raises(ValueError, match="The rows have pictures \\(image\\), which this recipe would not look at"):
        main(["--dataset_name", str(tmp_path / "data"), "--model_name_or_path", models["bert"], *BRISK,
              "--output_dir", str(tmp_path / "out")])  # fmt: skip


def test_the_recipe_can_be_read_in_one_sitting():
    assert len(RECIPE.read_text().splitlines()) <= 120


@pytest.mark.parametrize("name", ["quickstart_reward", "quickstart_judge"])
def test_the_quickstart_files_are_understood(name):
    text = (RECIPE.parent / f"configs/{name}.yaml").read_text()
    for what in ("Hardware:", "Time:", "Expect:", "Before:"):
        assert what in text
    assert yaml.safe_load(text)["dataset_name"] == "starter/movie-ratings"


def test_the_reward_model_and_the_judge_learn_from_different_rows():
    shares = [
        yaml.safe_load((RECIPE.parent / f"configs/quickstart_{name}.yaml").read_text())["train_share"]
        for name in ("reward", "judge")
    ]
    assert shares[0].split(":")[1] == shares[1].split(":")[0]
