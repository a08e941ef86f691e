"""`recipes/dpo.py`, run in process on tiny models: what it leaves behind, and what it says when it cannot."""

import math
import re

import pytest
import yaml

from rlhf_recipes.data.pairs import preferences
from tests.recipes.tiny_runs import (
    LORA,
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


@pytest.fixture(scope="module")
def main():
    return load_main("dpo")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def command(place, out, *more, **changed):
    options = {"dataset_name": place / "ratings", "model_name_or_path": place / "policy", "output_dir": out}
    return flags({**options, **SMALL, **changed}, *more)


def check_figures(out):
    metrics, history = read(out, "metrics.json"), read(out, "log_history.json")
    assert set(metrics) >= {"rewards/accuracies", "loss", "step", "train_seconds", "seconds", "peak_memory_gb"}
    steps = [entry for entry in history if "rewards/margins" in entry]
    assert len(steps) == metrics["step"] == 4
    # The policy still is the reference, so each pair is a toss-up.
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert abs(steps[-1]["rewards/margins"]) > 1e-3
    assert yaml.safe_load((out / "config.yaml").read_text())["max_steps"] == 4


def test_the_whole_model_is_trained_against_itself_as_it_was(main, place, tmp_path):
    main(command(place, tmp_path / "out"))
    check_figures(tmp_path / "out")
    check_page(tmp_path / "out", "loss", "rewards/margins", says=("DPO: the loss went from", "Margin"))
    check_full(place, tmp_path / "out")


@pytest.mark.parametrize("base", [[], ["--load_in_4bit"]], ids=["full precision", "4-bit"])
def test_adapters_are_trained_and_saved_alone(main, place, tmp_path, base):
    main(command(place, tmp_path / "out", *base, *LORA))
    check_figures(tmp_path / "out")
    check_adapters(tmp_path / "out")


MESSAGES = {
    "prompt": [{"role": "user", "content": "The film?"}],
    "chosen": [{"role": "assistant", "content": "good"}],
    "rejected": [{"role": "assistant", "content": "bad"}],
}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "The film is", "chosen": " good", "rejected": " bad"},
        {"chosen": "The film is good", "rejected": "The film is bad"},
        MESSAGES,
    ],
    ids=["prompts", "no prompts", "messages"],
)
def test_what_was_chosen_becomes_more_likely_than_what_was_rejected(main, place, tmp_path, row):
    main(command(place, tmp_path / "out", dataset_name=write_rows(tmp_path / "rows.jsonl", [row] * 8)))
    check_figures(tmp_path / "out")
    metrics = read(tmp_path / "out", "metrics.json")
    assert metrics["rewards/margins"] > 0.1
    assert metrics["rewards/accuracies"] == 1.0


def test_adapters_that_were_saved_go_on_and_their_reference_is_what_they_were(main, place, tmp_path):
    main(command(place, tmp_path / "first", *LORA))
    main(command(place, tmp_path / "second", model_name_or_path=tmp_path / "first"))
    check_figures(tmp_path / "second")  # at its first step, still the reference
    check_adapters(tmp_path / "second")
    assert not equal(adapters(tmp_path / "first"), adapters(tmp_path / "second"))


def test_evaluation_on_held_out_pairs_while_it_trains(main, place, tmp_path):
    main(command(place, tmp_path / "out", *LORA, "--eval_strategy", "steps", "--eval_steps", "2"))
    evaluated = [e for e in read(tmp_path / "out", "log_history.json") if "eval_rewards/accuracies" in e]
    assert [entry["step"] for entry in evaluated] == [2, 4]


def test_what_a_run_leaves_repeats_it_and_flags_override_the_file(main, place, tmp_path):
    main(command(place, tmp_path / "first", *LORA, "--min_gap", "1"))
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


# ---- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dataset_name": None}, "missing: --dataset_name"),
        ({"betas": 1}, "unknown option --betas.*'--beta'"),
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
        ({"min_gap": 9}, ValueError, "No pairs can be drawn: all ratings lie between -2 and 2"),
        ({"dataset_test_split": "tets", "eval_strategy": "steps"}, ValueError, "no split 'tets'; it has: train, test"),
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(main, place, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        main(command(place, tmp_path / "out", **changed))
    assert not (tmp_path / "out/metrics.json").exists()


def test_columns_that_are_missing_are_named(main, place, tmp_path):
    with pytest.raises(ValueError, match="DPO needs the columns 'chosen' and 'rejected', or 'completion' and 'score'"):
        main(command(place, tmp_path / "out", dataset_name=place / "prompts"))


# ---- from ratings to preferences


def test_completions_of_one_prompt_meet_and_no_others():
    rows = {
        "prompt": ["a", "b", "a", "b", "c"],
        "completion": ["a low", "b high", "a high", "b low", "c alone"],
        "score": [1.0, 4.0, 3.0, 2.0, 5.0],
    }
    assert preferences(rows) == {
        "prompt": ["a", "b"],
        "chosen": ["a high", "b high"],
        "rejected": ["a low", "b low"],
    }


def test_without_prompts_any_two_texts_meet_and_the_prompt_is_empty():
    rows = {"completion": ["low", "high"], "score": [-1.0, 1.0]}
    assert preferences(rows) == {"prompt": [""], "chosen": ["high"], "rejected": ["low"]}


def test_messages_are_kept_as_they_are():
    good, bad = MESSAGES["chosen"], MESSAGES["rejected"]
    rows = {"prompt": [MESSAGES["prompt"]] * 2, "completion": [bad, good], "score": [0.0, 1.0]}
    assert preferences(rows) == {"prompt": [MESSAGES["prompt"]], "chosen": [good], "rejected": [bad]}


def test_prompts_with_one_completion_each_give_no_pairs():
    rows = {"prompt": ["a", "b"], "completion": ["x", "y"], "score": [0.0, 4.0]}
    with pytest.raises(ValueError, match="none of 2 prompts has two completions that are 0.5 or more apart"):
        preferences(rows)
