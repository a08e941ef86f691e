"""`recipes/ppo.py`, run in process on tiny models; what it leaves behind, and what it says when something is wrong."""

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.rewards import RewardError
from tests.recipes.tiny_runs import check_page
from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
# 3 rollouts of 8 episodes, 2 x 2 optimizer steps each.
SMALL = {
    "total_episodes": 24,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "max_completion_length": 6,
    "learning_rate": 1e-2,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
MY_REWARDS = '''
def brevity(completion_ids, limit=4, **kwargs):
    """1 for a completion of at most `limit` tokens."""
    return [float(len(ids) <= limit) for ids in completion_ids]


def broken(completions, **kwargs):
    raise ZeroDivisionError("no stars")


def short(completions, **kwargs):
    return [1.0]


def nan(completions, **kwargs):
    return [float("nan")] * len(completions)
'''


def load_main(name):
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(scope="module")
def main():
    return load_main("ppo")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What a user would have: a policy, a reward model, prompts, and rewards of their own in a file."""
    folder = tmp_path_factory.mktemp("place")
    llama, bert = tiny_tokenizer("llama"), tiny_tokenizer("bert")
    save_tiny(folder / "policy", tiny_causal_lm(llama), llama)
    save_tiny(folder / "judge", tiny_classifier(bert), bert)
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    write_rows(folder / "prompts/train.jsonl", [{"prompt": f"The film {i} is", "stars": i} for i in range(16)])
    write_rows(folder / "prompts/test.jsonl", [{"prompt": f"A dull script {i}", "stars": i} for i in range(5)])
    return folder


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def flags(place, out, *more, **changed):
    """A command line; `changed` replaces options by name, and `None` leaves one out."""
    options = {
        "dataset_name": place / "prompts",
        "model_name_or_path": place / "policy",
        "reward_funcs": [place / "judge", "EndsWithSentence", f"{place}/my_rewards.py:brevity"],
        "output_dir": out,
        **SMALL,
        **changed,
    }
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [] if value is None else [f"--{name}", *map(str, values)]
    return [*words, *more]


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


METRICS = {
    *("episodes", "train_seconds", "seconds", "peak_memory_gb"),
    *("objective/scores", "objective/kl", "loss/policy_avg", "loss/value_avg", "rollout/completion_length"),
    *("reward/judge", "reward/EndsWithSentence", "reward/brevity"),
}


def check_outputs(out):
    check_page(
        out, "objective/scores", "reward/judge", says=("PPO: the score went from", "share", "All 8 completions")
    )
    metrics, history = read(out, "metrics.json"), read(out, "log_history.json")
    assert set(metrics) >= METRICS
    assert metrics["episodes"] == 24
    rollouts = [entry for entry in history if "objective/scores" in entry]
    assert [entry["episode"] for entry in rollouts] == [8, 16, 24]
    assert rollouts[0]["objective/kl"] == pytest.approx(0, abs=1e-5)  # nothing has been learned yet
    assert abs(rollouts[-1]["objective/kl"]) > 1e-4
    for entry in rollouts:  # the weights are 1, 0.5 and 2
        parts = entry["reward/judge"] + 0.5 * entry["reward/EndsWithSentence"] + 2 * entry["reward/brevity"]
        assert entry["objective/scores"] == pytest.approx(parts, abs=1e-4)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["total_episodes"], config["reward_weights"]) == (24, [1.0, 0.5, 2.0])
    critic = load_file(out / "critic/value_head.safetensors")
    assert any(tensor.abs().max() > 0 for tensor in critic.values())  # it starts at 0
    assert AutoTokenizer.from_pretrained(out).pad_token == "<pad>"


def weights_of(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()


def test_the_whole_model_is_trained_and_saved_as_any_other(main, place, tmp_path):
    main(flags(place, tmp_path / "out", "--reward_weights", "1", "0.5", "2"))
    check_outputs(tmp_path / "out")
    assert not (tmp_path / "out/adapter_config.json").exists()
    before, after = weights_of(place / "policy"), weights_of(tmp_path / "out")
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_adapters_are_trained_and_saved_alone(main, place, tmp_path):
    main(flags(place, tmp_path / "out", *LORA, "--reward_weights", "1", "0.5", "2"))
    check_outputs(tmp_path / "out")
    assert not (tmp_path / "out/model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(place / "policy", dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, tmp_path / "out")
    outer = [parameter for name, parameter in policy.named_parameters() if "lora_B" in name]
    assert outer
    assert all(parameter.abs().max() > 0 for parameter in outer)


def test_what_a_run_leaves_repeats_it_and_flags_override_the_file(main, place, tmp_path):
    main(flags(place, tmp_path / "first", *LORA))
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "second")])
    first, second = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    # The file says 24 episodes and no seed.
    main(
        ["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "third")]
        + ["--total_episodes", "8", "--seed", "1"]
    )
    assert read(tmp_path / "third", "metrics.json")["episodes"] == 8
    assert yaml.safe_load((tmp_path / "third/config.yaml").read_text())["seed"] == 1


def test_rewards_with_names_weights_and_settings_come_from_the_file(main, place, tmp_path):
    rewards = [
        {"func": str(place / "judge"), "name": "people", "weight": 0.25},
        {"func": f"{place}/my_rewards.py:brevity", "name": "long", "weight": -1.0, "args": {"limit": 6}},
    ]
    options = SMALL | {
        "dataset_name": str(place / "prompts"),
        "model_name_or_path": str(place / "policy"),
        "output_dir": str(tmp_path / "out"),
        "reward_funcs": rewards,
        "total_episodes": 8,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(options))
    main(["--config", str(tmp_path / "run.yaml")])
    metrics = read(tmp_path / "out", "metrics.json")
    assert metrics["reward/long"] == 1.0  # no completion has more than 6 tokens
    assert metrics["objective/scores"] == pytest.approx(0.25 * metrics["reward/people"] - 1.0, abs=1e-5)


def test_openings_of_texts_and_evaluation_while_it_trains(main, place, tmp_path):
    for split, count in (("train", 16), ("test", 4)):
        rows = [{"completion": f"It was {row} or so years of a quiet film"} for row in range(count)]
        write_rows(tmp_path / f"texts/{split}.jsonl", rows)
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "2"]
    options = {"dataset_name": tmp_path / "texts", "prompt_column": "completion", "prompt_words": 3}
    main(flags(place, tmp_path / "out", *evaluation, **options))
    evaluated = [entry for entry in read(tmp_path / "out", "log_history.json") if "eval_objective/scores" in entry]
    # After 2 rollouts of 4 optimizer steps, and at the end.
    assert [entry["step"] for entry in evaluated] == [8, 12]
    assert "eval_reward/judge" in evaluated[0]


def test_figures_are_kept_when_the_last_rollout_was_not_logged(main, place, tmp_path):
    main(flags(place, tmp_path / "out", logging_steps=2))
    assert read(tmp_path / "out", "metrics.json")["episodes"] == 24
    main(flags(place, tmp_path / "silent", logging_strategy="no"))
    assert set(read(tmp_path / "silent", "metrics.json")) >= {"episodes", "seconds", "peak_memory_gb"}


# ---- going on


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(main, place, tmp_path):
    main(flags(place, tmp_path / "whole", *LORA))
    saving = {"save_strategy": "steps", "save_steps": 1}
    main(flags(place, tmp_path / "cut", *LORA, **saving))
    # As if it had been killed in the second rollout: what was written later is not there.
    for entry in (tmp_path / "cut").iterdir():
        if entry.name not in (".recipe", "config.yaml", "checkpoint-4"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    assert not (tmp_path / "cut/metrics.json").exists()
    main(flags(place, tmp_path / "cut", *LORA, "--resume_from_checkpoint", "auto", **saving))
    whole, cut = (load_file(tmp_path / run / "adapter_model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    assert [e["episode"] for e in read(tmp_path / "cut", "log_history.json") if "episode" in e] == [8, 16, 24]


def test_auto_after_a_completed_run_changes_nothing(main, place, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    main(flags(place, tmp_path / "out", *LORA, **saving))
    before = load_file(tmp_path / "out/adapter_model.safetensors")
    metrics = read(tmp_path / "out", "metrics.json")
    main(flags(place, tmp_path / "out", *LORA, "--resume_from_checkpoint", "auto", **saving))
    after = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    again = read(tmp_path / "out", "metrics.json")
    assert {name: again[name] for name in again if "/" in name} == {
        name: metrics[name] for name in metrics if "/" in name
    }
    assert again["episodes"] == 24


@pytest.mark.parametrize("state", [None, '{"global_step": 1'], ids=["missing", "half written"])
def test_a_checkpoint_whose_writing_was_cut_off_is_passed_over(main, place, tmp_path, state):
    saving = {"save_strategy": "steps", "save_steps": 1}
    main(flags(place, tmp_path / "out", *LORA, **saving))
    whole = load_file(tmp_path / "out/adapter_model.safetensors")
    cut = tmp_path / "out/checkpoint-12"
    (cut / "trainer_state.json").unlink()
    (cut / "optimizer.pt").write_bytes(b"half")
    if state is not None:
        (cut / "trainer_state.json").write_text(state)
    assert find_checkpoint(tmp_path / "out", "auto") == str(tmp_path / "out/checkpoint-8")
    main(flags(place, tmp_path / "out", *LORA, "--resume_from_checkpoint", "auto", **saving))
    again = load_file(tmp_path / "out/adapter_model.safetensors")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert find_checkpoint(tmp_path / "out", "auto") == str(cut)


def test_the_last_checkpoint_is_that_of_the_highest_number(tmp_path):
    for name in ("checkpoint-8", "checkpoint-12", "checkpoint-best", "checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text('{"global_step": 1}')
    assert find_checkpoint(tmp_path, "auto") == str(tmp_path / "checkpoint-12")
    assert find_checkpoint(tmp_path, str(tmp_path / "checkpoint-8")) == str(tmp_path / "checkpoint-8")


def test_auto_without_a_checkpoint_begins_at_the_beginning(main, place, tmp_path):
    main(flags(place, tmp_path / "out", *LORA, "--resume_from_checkpoint", "auto", total_episodes=8))
    assert read(tmp_path / "out", "metrics.json")["episodes"] == 8


def test_a_new_run_does_not_mix_its_checkpoints_with_those_of_an_earlier_one(main, place, tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    main(flags(place, tmp_path / "out", *LORA, **saving))
    config = (tmp_path / "out/config.yaml").read_text()
    with pytest.raises(FileExistsError, match=r"checkpoint-12 is .* --resume_from_checkpoint auto"):
        main(flags(place, tmp_path / "out", *LORA, "--learning_rate", "1e-3", **saving))
    assert (tmp_path / "out/config.yaml").read_text() == config
    assert (tmp_path / "out/checkpoint-12/trainer_state.json").exists()


def test_a_checkpoint_that_is_none_is_refused_with_the_last_there_is(main, place, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint-99' is no checkpoint. The last in .* is none"):
        main(flags(place, tmp_path / "out", "--resume_from_checkpoint", str(tmp_path / "checkpoint-99")))


# ---- bad input


def test_an_unknown_flag_or_key_is_refused_with_the_nearest_name(main, place, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(flags(place, tmp_path / "out", "--kl_coeff", "0.1"))
    assert stopped.value.code == 2
    assert "unknown option --kl_coeff" in (said := capsys.readouterr().err)
    assert "'--kl_coef'" in said
    (tmp_path / "run.yaml").write_text("total_episode: 8\n")
    with pytest.raises(SystemExit) as stopped:
        main(flags(place, tmp_path / "out", "--config", str(tmp_path / "run.yaml")))
    assert stopped.value.code == 2
    assert "line 1: unknown key 'total_episode'. Did you mean 'total_episodes'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_mini_batches": 3}, "A rollout has 8 episodes .* which num_mini_batches 3 does not divide"),
        (
            {"gradient_accumulation_steps": 3},
            "A mini-batch has 6 episodes .* which per_device_train_batch_size 4 does not divide",
        ),
        ({"temperature": 0}, "temperature is 0.0; give a number above 0"),
        ({"total_episodes": 0}, "total_episodes is 0; give 1 or more"),
        ({"prompt_words": 0}, "prompt_words is 0; give 1 or more"),
        ({"dataset_name": None}, "missing: --dataset_name"),
        ({"reward_funcs": None}, "missing: --reward_funcs"),
    ],
)
def test_numbers_that_do_not_fit_are_refused_before_a_folder_is_made(main, place, tmp_path, capsys, changed, message):
    with pytest.raises(SystemExit) as stopped:
        main(flags(place, tmp_path / "out", **changed))
    assert stopped.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
        ({"model_name_or_path": None}, ValueError, "give --model_name_or_path"),
        ({"dataset_name": "./nowhere"}, FileNotFoundError, r"No dataset at '\./nowhere'"),
        ({"dataset_train_split": "trian"}, ValueError, "no split 'trian'; it has: train, test.*'train'"),
        ({"prompt_column": "question"}, ValueError, "'question'. The dataset has: prompt, stars"),
        ({"max_completion_length": 510}, ValueError, "longest prompt has .* more than the 512 tokens of the policy's"),
        ({"max_train_samples": 7}, ValueError, "has 7 prompts, but one rollout takes 8"),
        ({"reward_funcs": ["EndWithSentence"]}, ValueError, "did you mean 'EndsWithSentence'"),
        ({"reward_funcs": ["./judge-of-nobody"]}, FileNotFoundError, "judge-of-nobody"),
        (
            {"reward_weights": [1, 2]},
            ValueError,
            r"2 weights were given for 3 rewards \(judge, EndsWithSentence, brevity",
        ),
        ({"lora_num_layers": 9, "use_peft": True}, ValueError, "lora_num_layers is 9.* has 2 layers"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(main, place, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        main(flags(place, tmp_path / "out", **changed))
    assert not (tmp_path / "out/model.safetensors").exists()
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("broken", r"Reward 'broken' raised ZeroDivisionError: no stars.*row 0 \(prompt 'The film"),
        ("short", "Reward 'short' returned 1 values for 8 completions"),
        ("nan", r"Reward 'nan' returned nan, for row 0 \(prompt 'The film"),
    ],
)
def test_a_reward_that_fails_stops_the_run_and_is_named(main, place, tmp_path, name, message):
    rewards = [place / "judge", f"{place}/my_rewards.py:{name}"]
    with pytest.raises(RewardError, match=message):
        main(flags(place, tmp_path / "out", reward_funcs=rewards))
    assert not (tmp_path / "out/metrics.json").exists()


def test_empty_and_blank_datasets_are_refused(main, place, tmp_path):
    with pytest.raises(ValueError, match="is empty"):
        main(flags(place, tmp_path / "out", dataset_name=write_rows(tmp_path / "empty.jsonl", [])))
    blank = write_rows(tmp_path / "blank.jsonl", [{"prompt": " "}] * 3)
    with pytest.raises(ValueError, match="All 3 rows are empty or blank"):
        main(flags(place, tmp_path / "out", dataset_name=blank))


def test_a_folder_that_holds_something_else_is_left_untouched(main, place, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="thesis.txt.*--output_dir"):
        main(flags(place, tmp_path))
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.txt"]
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


# ---- as a command


def raises(error):
    def main():
        raise error

    return main


@pytest.mark.parametrize("error", [FileNotFoundError("no such file"), ValueError("odd"), RewardError("named")])
def test_run_turns_a_users_mistake_into_a_message(error, capsys, monkeypatch):
    monkeypatch.delenv("RLHF_RECIPES_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stopped:
        run(raises(error))
    assert stopped.value.code == 1
    assert f"error: {error}\n" in capsys.readouterr().err
    monkeypatch.setenv("RLHF_RECIPES_DEBUG", "1")
    with pytest.raises(type(error)):
        run(raises(error))


def test_run_lets_our_own_mistakes_show_their_traceback():
    for error in (TypeError("ours"), KeyError("ours"), AssertionError("ours")):
        with pytest.raises(type(error)):
            run(raises(error))


def test_run_says_after_an_interruption_how_to_go_on(capsys):
    with pytest.raises(SystemExit) as stopped:
        run(raises(KeyboardInterrupt()), to_go_on="Add --resume_from_checkpoint auto.")
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nInterrupted. Add --resume_from_checkpoint auto.\n"


def test_the_help_begins_with_how_to_run_it_and_then_ppos_own_options(main, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert " --use_peft \\\n        --reward_funcs" in text  # the command can be pasted as it stands
    places = [text.index(title) for title in ("\nPPO:", "\nRewards:", "\nData:", "\nOften used options")]
    assert places == sorted(places)
