"""`recipes/evaluate.py`, run in process on what `recipes/ppo.py` leaves and on models as they come."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml

from rlhf_recipes.rewards import RewardError
from tests.recipes.test_ppo import LORA, MY_REWARDS, flags, load_main, read, write_rows
from tests.recipes.tiny_runs import check_page
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

KEYS = {
    *("prompts", "score", "kl", "completion_length", "finished", "distinct_1", "distinct_2"),
    *("reward/judge", "reward/brevity", "seconds", "peak_memory_gb"),
}


@pytest.fixture(scope="module")
def main():
    return load_main("evaluate")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A policy before PPO and two after it, one of them adapters; a reward model; prompts."""
    folder = tmp_path_factory.mktemp("place")
    llama, bert = tiny_tokenizer("llama"), tiny_tokenizer("bert")
    save_tiny(folder / "policy", tiny_causal_lm(llama), llama)
    save_tiny(folder / "judge", tiny_classifier(bert), bert)
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    write_rows(folder / "prompts/train.jsonl", [{"prompt": f"The film {i} is"} for i in range(16)])
    write_rows(folder / "prompts/test.jsonl", [{"prompt": f"A dull script {i}"} for i in range(7)])
    ppo = load_main("ppo")
    ppo(flags(folder, folder / "full"))
    ppo(flags(folder, folder / "lora", *LORA))
    return folder


def command(place, out, *more, model="policy", **changed):
    options = {
        "dataset_name": place / "prompts",
        "model_name_or_path": place / model,
        "reward_funcs": [place / "judge", f"{place}/my_rewards.py:brevity"],
        "max_completion_length": 6,
        "output_dir": out,
        **changed,
    }
    words = []
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return [*words, *more]


def completions(folder):
    text = (Path(folder) / "completions.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n") if line]


def test_every_completion_is_kept_with_every_score(main, place, tmp_path, capsys):
    main(command(place, tmp_path / "out", "--reward_weights", "1", "-2"))
    rows, metrics = completions(tmp_path / "out"), read(tmp_path / "out", "metrics.json")
    assert [row["prompt"] for row in rows] == [f"A dull script {i}" for i in range(7)]
    assert set(rows[0]) == {"prompt", "completion", "finished", "tokens", "kl", "score", "scores"}
    for row in rows:
        assert row["score"] == pytest.approx(row["scores"]["judge"] - 2 * row["scores"]["brevity"])
    assert set(metrics) == KEYS
    assert metrics["prompts"] == 7
    assert metrics["score"] == pytest.approx(sum(row["score"] for row in rows) / 7)
    assert metrics["kl"] == 0
    assert "score" in capsys.readouterr().out
    assert (tmp_path / "out/config.yaml").exists()
    check_page(tmp_path / "out", "score", "reward/judge", says=("over ", "All 7 completions", rows[3]["prompt"]))


@pytest.mark.parametrize("trained", ["full", "lora"])
def test_what_ppo_saved_is_measured_against_what_it_started_from(main, place, tmp_path, trained):
    main(command(place, tmp_path / "out", model=trained, ref_model_name_or_path=place / "policy"))
    rows = completions(tmp_path / "out")
    assert any(abs(row["kl"]) > 1e-3 for row in rows)
    assert read(tmp_path / "out", "metrics.json")["kl"] == pytest.approx(sum(row["kl"] for row in rows) / 7, abs=1e-4)


def test_adapters_know_their_base(main, place, tmp_path):
    main(command(place, tmp_path / "named", model="lora", ref_model_name_or_path=place / "policy"))
    main(command(place, tmp_path / "own", model="lora"))
    assert [row["completion"] for row in completions(tmp_path / "own")] == [
        row["completion"] for row in completions(tmp_path / "named")
    ]
    assert [row["kl"] for row in completions(tmp_path / "own")] == pytest.approx(
        [row["kl"] for row in completions(tmp_path / "named")], abs=2e-4
    )


def test_without_adapters_and_without_a_reference_it_says_that_kl_is_0(main, place, tmp_path, caplog):
    caplog.set_level("INFO", logger="rlhf_recipes")
    main(command(place, tmp_path / "out", model="full"))
    assert read(tmp_path / "out", "metrics.json")["kl"] == 0
    assert "KL is 0" in caplog.text
    assert "ref_model_name_or_path" in caplog.text


def test_a_file_describes_a_run_and_flags_override_it(main, place, tmp_path):
    main(command(place, tmp_path / "first", max_eval_samples=3, seed=5))
    config = yaml.safe_load((tmp_path / "first/config.yaml").read_text())
    assert (config["seed"], config["max_eval_samples"]) == (5, 3)
    main(
        [
            "--config",
            str(tmp_path / "first/config.yaml"),
            "--output_dir",
            str(tmp_path / "second"),
            "--batch_size",
            "2",
        ]
    )
    first, second = completions(tmp_path / "first"), completions(tmp_path / "second")
    written = [{name: row[name] for name in ("prompt", "completion", "tokens")} for row in first]
    assert [{name: row[name] for name in ("prompt", "completion", "tokens")} for row in second] == written
    assert [row["score"] for row in second] == pytest.approx([row["score"] for row in first], abs=1e-5)
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "third"), "--seed", "6"])
    third, first = completions(tmp_path / "third"), completions(tmp_path / "first")
    assert [row["prompt"] for row in third] == [row["prompt"] for row in first]
    assert [row["completion"] for row in third] != [row["completion"] for row in first]


def test_the_same_command_again_measures_again_in_the_same_folder(main, place, tmp_path):
    main(command(place, tmp_path / "out"))
    first = completions(tmp_path / "out")
    main(command(place, tmp_path / "out"))
    assert completions(tmp_path / "out") == first


def test_a_reward_that_applies_to_no_row_leaves_figures_that_json_can_hold(main, place, tmp_path):
    (tmp_path / "extra.py").write_text("def never(completions, **kwargs):\n    return [None] * len(completions)\n")
    main(command(place, tmp_path / "out", reward_funcs=[place / "judge", f"{tmp_path}/extra.py:never"]))
    metrics = read(tmp_path / "out", "metrics.json")
    assert "reward/never" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert completions(tmp_path / "out")[0]["scores"]["never"] is None


def test_unknown_names_are_refused_with_the_nearest(main, place, tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("reward_func: [Vader]\n")
    for extra, nearest in (
        (["--ref_model", "x"], "'--ref_model_name_or_path'"),
        (["--config", str(tmp_path / "run.yaml")], "Did you mean 'reward_funcs'?"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main(command(place, tmp_path / "out", *extra))
        assert stopped.value.code == 2
        assert nearest in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
        ({"ref_model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
        ({"model_name_or_path": None}, ValueError, "give --model_name_or_path"),
        ({"dataset_name": "./nowhere"}, FileNotFoundError, r"No dataset at '\./nowhere'"),
        ({"dataset_test_split": "dev"}, ValueError, "no split 'dev'; it has: train, test"),
        ({"prompt_column": "question"}, ValueError, "'question'. The dataset has: prompt"),
        ({"max_completion_length": 510}, ValueError, "longest prompt has .* more than the 512 tokens of the policy's"),
        ({"reward_weights": [1]}, ValueError, "1 weights were given for 2 rewards"),
    ],
)
def test_bad_input_stops_before_anything_is_written(main, place, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        main(command(place, tmp_path / "out", **changed))
    assert not (tmp_path / "out/completions.jsonl").exists()


@pytest.mark.parametrize("changed", [{"temperature": 0}, {"batch_size": 0}, {"max_completion_length": 0}])
def test_numbers_out_of_range_are_refused(main, place, tmp_path, capsys, changed):
    with pytest.raises(SystemExit) as stopped:
        main(command(place, tmp_path / "out", **changed))
    assert stopped.value.code == 2
    assert next(iter(changed)) in capsys.readouterr().err


def test_a_reward_that_raises_is_named_and_nothing_half_measured_is_kept(main, place, tmp_path):
    with pytest.raises(RewardError, match="Reward 'broken' raised ZeroDivisionError: no stars"):
        main(command(place, tmp_path / "out", reward_funcs=[f"{place}/my_rewards.py:broken"]))
    assert not (tmp_path / "out/completions.jsonl").exists()


def test_a_run_of_another_recipe_is_left_untouched(main, place):
    before = sorted(str(entry) for entry in (place / "lora").rglob("*"))
    with pytest.raises(FileExistsError, match="holds a run of the recipe 'ppo'"):
        main(command(place, place / "lora"))
    assert sorted(str(entry) for entry in (place / "lora").rglob("*")) == before
