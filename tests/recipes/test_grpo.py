"""`recipes/grpo.py`, run in process on tiny models: what it leaves behind, and what it says when it cannot."""

import re

import pytest
import yaml

from rlhf_recipes.rewards import RewardError
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
    return load_main("grpo")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return make_place(tmp_path_factory.mktemp("place"))


def command(place, out, *more, **changed):
    options = {
        "dataset_name": place / "prompts",
        "model_name_or_path": place / "policy",
        "reward_funcs": [place / "judge", f"{place}/my_rewards.py:stars", f"{place}/my_rewards.py:brevity"],
        "reward_weights": [1, 0.5, 2],
        "output_dir": out,
        "gradient_accumulation_steps": 2,
        "num_generations": 4,
        "max_completion_length": 6,
        **SMALL,
        **changed,
    }
    return flags(options, *more)


def check_figures(out):
    metrics, history = read(out, "metrics.json"), read(out, "log_history.json")
    assert set(metrics) >= {"reward", "loss", "step", "train_seconds", "seconds", "peak_memory_gb"}
    steps = [entry for entry in history if "reward" in entry]
    assert [entry["step"] for entry in steps] == [1, 2, 3, 4]
    for entry in steps:  # the weights are 1, 0.5 and 2
        parts = [entry[f"rewards/{name}/mean"] for name in ("judge", "stars", "brevity")]
        assert entry["reward"] == pytest.approx(parts[0] + 0.5 * parts[1] + 2 * parts[2], abs=1e-4)
        # Two prompts of a step, with 0 to 5 stars each, four times: only the row's own column can say that.
        assert entry["rewards/stars/mean"] in [half / 2 for half in range(11)]
    assert metrics["reward"] == steps[-1]["reward"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert (config["num_generations"], config["reward_weights"]) == (4, [1.0, 0.5, 2.0])
    return steps


def test_the_whole_model_is_trained_and_saved_as_any_other(main, place, tmp_path):
    main(command(place, tmp_path / "out"))
    steps = check_figures(tmp_path / "out")
    says = ("GRPO: the reward went from", "rewards", "brevity", "recipes/grpo.py --config")
    check_page(tmp_path / "out", "reward", "rewards/stars/mean", says=says)
    assert "kl" not in steps[0]  # TRL's default, beta 0, needs no reference
    check_full(place, tmp_path / "out")


@pytest.mark.parametrize("base", [[], ["--load_in_4bit"]], ids=["full precision", "4-bit"])
def test_adapters_are_trained_and_saved_alone(main, place, tmp_path, base):
    main(command(place, tmp_path / "out", *base, *LORA, "--beta", "0.04"))
    steps = check_figures(tmp_path / "out")
    assert steps[0]["kl"] == pytest.approx(0, abs=1e-6)  # nothing has been learned yet
    assert steps[-1]["kl"] > 1e-5
    check_adapters(tmp_path / "out")


def test_what_a_run_leaves_repeats_it_and_flags_override_the_file(main, place, tmp_path):
    main(command(place, tmp_path / "first", *LORA))
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "second")])
    assert equal(adapters(tmp_path / "first"), adapters(tmp_path / "second"))
    # The sizes that TRL worked out for the first run do not stand in the way of another.
    changed = ["--gradient_accumulation_steps", "1", "--max_steps", "1"]
    main(["--config", str(tmp_path / "first/config.yaml"), "--output_dir", str(tmp_path / "third"), *changed])
    assert (
        read(tmp_path / "third", "metrics.json")["num_tokens"] < read(tmp_path / "first", "metrics.json")["num_tokens"]
    )


def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(main, place, tmp_path):
    lora = [*LORA, "--beta", "0.04"]
    main(command(place, tmp_path / "whole", *lora))
    main(command(place, tmp_path / "cut", *lora, **SAVING))
    cut_back(tmp_path / "cut", "checkpoint-2")
    main(command(place, tmp_path / "cut", *lora, "--resume_from_checkpoint", "auto", **SAVING))
    assert equal(adapters(tmp_path / "whole"), adapters(tmp_path / "cut"))
    assert [e["step"] for e in read(tmp_path / "cut", "log_history.json") if "reward" in e] == [1, 2, 3, 4]


def test_a_reward_that_does_not_apply_leaves_the_others(main, place, tmp_path):
    rewards = [f"{place}/my_rewards.py:sometimes", f"{place}/my_rewards.py:stars"]
    main(command(place, tmp_path / "out", *LORA, reward_funcs=rewards, reward_weights=None))
    means = [e["rewards/sometimes/mean"] for e in read(tmp_path / "out", "log_history.json") if "reward" in e]
    assert set(means) <= {1.0, None}


def test_openings_of_texts_and_evaluation_while_it_trains(main, place, tmp_path):
    openings = {"dataset_name": place / "ratings", "prompt_column": "completion", "prompt_words": 2}
    rewards = {"reward_funcs": ["EndsWithSentence"], "reward_weights": None}
    evaluation = ["--eval_strategy", "steps", "--eval_steps", "2"]
    main(command(place, tmp_path / "out", *LORA, *evaluation, **openings, **rewards))
    evaluated = [e for e in read(tmp_path / "out", "log_history.json") if "eval_reward" in e]
    assert [entry["step"] for entry in evaluated] == [2, 4]
    assert "eval_reward" in read(tmp_path / "out", "metrics.json")


# ---- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_generations": 3}, r"generation_batch_size \(8\) must be divisible by num_generations \(3\)"),
        ({"num_generations": 1}, "GRPO requires at least 2 generations per prompt"),
        ({"remove_unused_columns": True}, "unknown option --remove_unused_columns"),
        ({"reward_funcs": None}, "missing: --reward_funcs"),
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
        ({"prompt_column": "question"}, ValueError, "'question'. The dataset has: prompt, stars"),
        ({"reward_weights": [1, 2]}, ValueError, r"2 weights were given for 3 rewards \(judge, stars, brevity"),
        ({"model_name_or_path": "./nowhere"}, FileNotFoundError, r"No model at '\./nowhere'"),
        ({"max_train_samples": 1}, ValueError, "There are 1 prompts, but a rollout takes 2"),
    ],
)
def test_bad_input_stops_before_anything_is_trained(main, place, tmp_path, changed, error, message):
    with pytest.raises(error, match=message):
        main(command(place, tmp_path / "out", **changed))
    assert not (tmp_path / "out/metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("broken", RewardError, r"Reward 'broken' raised ZeroDivisionError: no stars.*\(prompt 'The film"),
        ("PerToken", ValueError, "Reward 'PerToken' gives one number for each token"),
    ],
)
def test_a_reward_that_fails_or_does_not_fit_is_named(main, place, tmp_path, name, error, message):
    with pytest.raises(error, match=message):
        main(command(place, tmp_path / "out", reward_funcs=[f"{place}/my_rewards.py:{name}"], reward_weights=None))
    assert not (tmp_path / "out/metrics.json").exists()


def test_a_new_run_does_not_mix_its_checkpoints_with_those_of_an_earlier_one(main, place, tmp_path):
    main(command(place, tmp_path / "out", *LORA, **SAVING))
    with pytest.raises(FileExistsError, match=r"checkpoint-4 is .* --resume_from_checkpoint auto"):
        main(command(place, tmp_path / "out", *LORA, **SAVING))


def test_settings_that_trl_refuses_are_told_in_one_message(main, place, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(command(place, tmp_path / "out", num_generations=3))
    assert stopped.value.code == 2
    assert "must be divisible by num_generations (3)" in capsys.readouterr().err


BEGUN = '''
def whole(prompts, completions, chat_template_kwargs, **kwargs):
    """Fails unless each answer is whole, and the options are those of the command line."""
    for prompt, completion, options in zip(prompts, completions, chat_template_kwargs, strict=True):
        assert [message["role"] for message in prompt + completion] == ["user", "assistant"]
        assert completion[0]["content"].startswith("Well, ")
        assert options == {"think": False}
    return [float(len(completion[0]["content"])) for completion in completions]
'''


def test_an_answer_that_the_prompt_begins_is_gone_on_with(main, place, tmp_path):
    rows = [
        {"prompt": [{"role": "user", "content": f"Film {n}?"}, {"role": "assistant", "content": "Well, "}]}
        for n in range(4)
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "whole.py").write_text(BEGUN)
    more = {"reward_funcs": f"{tmp_path}/whole.py:whole", "reward_weights": None, "max_steps": 1}
    options = ["--chat_template_kwargs", '{"think": false}']
    main(command(place, tmp_path / "out", *options, dataset_name=data, **more))
    assert yaml.safe_load((tmp_path / "out/config.yaml").read_text())["chat_template_kwargs"] == {"think": False}
