"""`recipes/sft.py`, run in process on tiny models: what it leaves behind, and what it says when it cannot."""

import re

import pytest
import torch
import yaml

from tests.recipes.tiny_runs import (
    LORA,
    RECIPES,
    SAVING,
    SMALL,
    adapters,
    check_adapters,
    check_full,
    check_page,
    cut_back,
    equal,
    flags,
    load_main,
    make_place,
    read,
    write_rows,
)
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer


@pytest.fixture(scope="module")
def main():
    return load_main("sft")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def command(place, out, *more, **changed):
    options = {"dataset_name": place / "ratings", "model_name_or_path": place / "policy", "output_dir": out}
    return flags({**options, **SMALL, **changed}, *more)


def check_figures(out):
    metrics, history = read(out, "metrics.json"), read(out, "log_history.json")
    assert set(metrics) >= {"loss", "step", "num_tokens", "train_seconds", "seconds", "peak_memory_gb"}
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == metrics["step"] == 4
    assert losses[-1] < losses[0]
    assert yaml.safe_load((out / "config.yaml").read_text())["max_steps"] == 4


def test_the_whole_model_is_trained_and_saved_as_any_other(main, place, tmp_path):
    main(command(place, tmp_path / "out"))
    check_figures(tmp_path / "out")
    check_page(tmp_path / "out", "loss", "train_seconds", says=("Fine-tuning: the loss went from", "Training"))
    check_full(place, tmp_path / "out")


@pytest.mark.parametrize("base", [[], ["--load_in_4bit"]], ids=["full precision", "4-bit"])
def test_adapters_are_trained_and_saved_alone(main, place, tmp_path, base):
    main(command(place, tmp_path / "out", *base, *LORA))
    check_figures(tmp_path / "out")
    check_adapters(tmp_path / "out")


def tokens_of_one_epoch(main, place, out, **changed):
    main(command(place, out, *LORA, max_steps=None, num_train_epochs=1, **changed))
    return read(out, "metrics.json")["num_tokens"]


def test_rows_with_a_low_score_or_nothing_to_say_are_left_out(main, place, tmp_path):
    # Of one length, so that counting tokens counts rows: each text has 5 words, 5 tokens or more, and an end.
    rows = [{"completion": "The film is good now", "score": score} for score in (-1.0, 0.5, 1.0, 2.0)]
    one = tokens_of_one_epoch(main, place, tmp_path / "1", dataset_name=write_rows(tmp_path / "1.jsonl", rows[:1]))
    data = write_rows(tmp_path / "all.jsonl", [*rows, {"completion": " ", "score": 2.0}])
    assert tokens_of_one_epoch(main, place, tmp_path / "4", dataset_name=data) == 4 * one
    assert tokens_of_one_epoch(main, place, tmp_path / "2", dataset_name=data, min_score=1.0) == 2 * one


@pytest.mark.parametrize(
    "row",
    [
        {"text": "The film is good", "prompt": "not used"},
        {"prompt": "The film is", "completion": " good", "score": 1.0},
        {
            "messages": [{"role": "user", "content": "The film?"}, {"role": "assistant", "content": "good"}],
            "prompt": "x",
        },
    ],
    ids=["text", "prompt and completion", "messages"],
)
def test_texts_demonstrations_and_conversations_are_learned(main, place, tmp_path, row):
    main(command(place, tmp_path / "out", *LORA, dataset_name=write_rows(tmp_path / "rows.jsonl", [row] * 8)))
    check_figures(tmp_path / "out")


def test_evaluation_on_the_held_out_split_while_it_trains(main, place, tmp_path):
    main(command(place, tmp_path / "out", *LORA, "--eval_strategy", "steps", "--eval_steps", "2"))
    evaluated = [entry for entry in read(tmp_path / "out", "log_history.json") if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluated] == [2, 4]
    assert read(tmp_path / "out", "metrics.json")["eval_loss"] == evaluated[-1]["eval_loss"]


def test_what_a_run_leaves_repeats_it_and_flags_override_the_file(main, place, tmp_path):
    main(command(place, tmp_path / "first", *LORA))
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "second")])
    assert equal(adapters(tmp_path / "first"), adapters(tmp_path / "second"))
    main(
        ["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "third"), "--max_steps", "1"]
    )
    assert read(tmp_path / "third", "metrics.json")["step"] == 1


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(main, place, tmp_path):
    main(command(place, tmp_path / "whole", *LORA))
    main(command(place, tmp_path / "cut", *LORA, **SAVING))
    cut_back(tmp_path / "cut", "checkpoint-2")
    main(command(place, tmp_path / "cut", *LORA, "--resume_from_checkpoint", "auto", **SAVING))
    assert equal(adapters(tmp_path / "whole"), adapters(tmp_path / "cut"))


def test_a_figure_that_is_no_number_is_null(main, place, tmp_path):
    tokenizer = tiny_tokenizer("llama")
    model = tiny_causal_lm(tokenizer)
    model.lm_head.weight.data[0, 0] = torch.inf  # which makes of every gradient NaN, as an overflow in fp16 does
    save_tiny(tmp_path / "broken", model, tokenizer)
    main(command(place, tmp_path / "out", model_name_or_path=tmp_path / "broken"))
    norms = [entry["grad_norm"] for entry in read(tmp_path / "out", "log_history.json") if "grad_norm" in entry]
    assert norms == [None] * 4


# ---- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset_name": None}, "missing: --dataset_name"),
        ({"min_scores": 1}, "unknown option --min_scores.*'--min_score'"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_folder_is_made(main, place, tmp_path, capsys, changed, message):
    with pytest.raises(SystemExit) as stopped:
        main(command(place, tmp_path / "out", **changed))
    assert stopped.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"min_score": 9}, ValueError, "No row of split 'train' has a score of 9 or more"),
        ({"dataset_train_split": "trian"}, ValueError, "no split 'trian'; it has: train, test"),
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(main, place, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        main(command(place, tmp_path / "out", **changed))
    assert not (tmp_path / "out/metrics.json").exists()


def test_columns_that_are_missing_are_named(main, place, tmp_path):
    with pytest.raises(ValueError, match="SFT needs the columns .*'messages'.* The dataset has: prompt, stars"):
        main(command(place, tmp_path / "out", dataset_name=place / "prompts"))
    texts = write_rows(tmp_path / "texts.jsonl", [{"text": "The film is good"}] * 4)
    with pytest.raises(ValueError, match="min_score needs the columns 'score'. The dataset has: text"):
        main(command(place, tmp_path / "out", dataset_name=texts, min_score=1))


# ---- all recipes on TRL's trainers


@pytest.mark.parametrize("name", ["sft", "dpo", "rloo", "grpo"])
def test_a_recipe_on_a_trainer_of_trl_has_fewer_than_100_lines(name):
    assert len((RECIPES / f"{name}.py").read_text().splitlines()) < 100
