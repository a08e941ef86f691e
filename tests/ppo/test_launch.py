"""The PPO recipe under `accelerate launch` with accelerate_configs/: two processes on a CPU against one."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.launching import run_whole
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).parents[2]
LORA = ("--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj")
NO_GATHER = ("--ds3_gather_for_generation", "false")
# 3 rollouts of 8 episodes, 2 x 2 optimizer steps each. SGD, because Adam turns rounding into steps of full size; a
# gradient norm above max_grad_norm, so that clipping is a part of it; long completions, so that some processes have
# written theirs before others.
RUN = {
    "total_episodes": 24,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "max_completion_length": 12,
    "temperature": 1.0,
    "optim": "sgd",
    "learning_rate": 0.1,
    "max_grad_norm": 0.1,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}
MY_REWARDS = """
def low_ids(completion_ids, **kwargs):
    return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A policy that ends about one completion in ten at each token, prompts, and a reward."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = tiny_tokenizer()
    policy = tiny_causal_lm(tokenizer, hidden_size=16, initializer_range=0.3)
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, *range(340, 376)]
    save_tiny(folder / "policy", policy, tokenizer)
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    for split, count in (("train", 16), ("test", 4)):
        (folder / "prompts").mkdir(exist_ok=True)
        rows = [json.dumps({"prompt": f"The film {row} is"}) + "\n" for row in range(count)]
        (folder / f"prompts/{split}.jsonl").write_text("".join(rows))
    return folder


def run_recipe(place, out, config, *more, **changed):
    """Run the recipe on one process (`config` None) or as one of accelerate_configs/ starts it; return its folder."""
    processes = 2 if config else 1
    options = {
        "dataset_name": place / "prompts",
        "model_name_or_path": place / "policy",
        "reward_funcs": f"{place}/my_rewards.py:low_ids",
        "output_dir": out,
        "per_device_train_batch_size": 8 // processes,
        **RUN,
        **changed,
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    start = [sys.executable]
    if config:
        file = f"accelerate_configs/{config}.yaml"
        start += ["-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", file]
        start += ["--main_process_port", "0"]  # any that is free
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RLHF_RECIPES_DEBUG": "1", "DS_ACCELERATOR": "cpu"}
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = run_whole(
        [*start, "recipes/ppo.py", *words, *more], 280, cwd=ROOT, env={**os.environ, **own, "PYTHONPATH": path}
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
    return out


def weights(folder):
    """What the run has saved: policy or adapters, and critic."""
    file = next(
        folder / name for name in ("adapter_model.safetensors", "model.safetensors") if (folder / name).exists()
    )
    critic = {f"critic.{part}": load_file(part) for part in sorted((folder / "critic").glob("*.safetensors"))}
    flat = {f"critic.{name}": tensor for part in critic.values() for name, tensor in part.items()}
    return {**load_file(file), **flat}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one)  # under ZeRO-3 a share has the shape (0,)
    return max((one[name].float() - other[name].float()).abs().max().item() for name in one)


def logged(folder):
    """All figures that are no times, in the order in which they were logged."""
    history = json.loads((folder / "log_history.json").read_text())
    entries = [entry for entry in history if any("objective/" in name for name in entry)]
    return [{name: value for name, value in entry.items() if "time/" not in name} for entry in entries]


def check_equal(folder, whole):
    """The same run on one process and on two: weights, and every figure that was logged."""
    assert largest_difference(weights(folder), weights(whole)) < 1e-6
    assert [entry["step"] for entry in logged(whole)] == [4, 4, 8, 8, 12, 12]  # training and evaluation
    for one, other in zip(logged(folder), logged(whole), strict=True):
        assert one.keys() == other.keys()
        for name in other:
            assert one[name] == pytest.approx(other[name], rel=1e-5, abs=2e-5), name


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    return run_recipe(place, tmp_path_factory.mktemp("whole") / "out", None)


@pytest.fixture(scope="module")
def whole_lora(place, tmp_path_factory):
    return run_recipe(place, tmp_path_factory.mktemp("whole_lora") / "out", None, *LORA)


@pytest.mark.slow
def test_the_run_that_is_compared_with_has_learned_and_its_completions_end_at_different_tokens(place, whole):
    before = load_file(place / "policy/model.safetensors")
    after = weights(whole)
    assert max((after[name] - before[name]).abs().max().item() for name in before) > 1e-3
    first = logged(whole)[0]
    assert 0 < first["rollout/finished"] < 1
    assert first["grad_norm"] > RUN["max_grad_norm"]


@pytest.mark.slow
def test_two_processes_on_the_cpu_give_what_one_process_gives(place, whole, tmp_path):
    check_equal(run_recipe(place, tmp_path / "out", "cpu_2", "--expect_processes", "2"), whole)


@pytest.mark.slow
def test_ddp_gives_what_one_process_gives(place, whole, tmp_path):
    check_equal(run_recipe(place, tmp_path / "out", "ddp"), whole)


@pytest.mark.slow
def test_a_critic_on_the_policy_s_base_is_what_it_is_on_one_process(place, tmp_path):
    words = (*LORA, "--critic", "adapter")
    check_equal(run_recipe(place, tmp_path / "two", "ddp", *words), run_recipe(place, tmp_path / "one", None, *words))


# --- DeepSpeed. The first start on a CPU compiles for a minute or two. --------------------------


@pytest.fixture
def deepspeed():
    pytest.importorskip("deepspeed")


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(("config", "more"), [("zero2", ()), ("zero3", ()), ("zero3", NO_GATHER)])
def test_zero_gives_what_one_process_gives(place, whole, tmp_path, config, more):
    check_equal(run_recipe(place, tmp_path / "out", config, *more), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize(("config", "more"), [("zero2", ()), ("zero3", ()), ("zero3", NO_GATHER)])
def test_zero_with_adapters_gives_what_one_process_gives(place, whole_lora, tmp_path, config, more):
    check_equal(run_recipe(place, tmp_path / "out", config, *LORA, *more), whole_lora)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
def test_micro_batches_under_zero3_change_nothing(place, whole, tmp_path):
    small = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, "rollout_forward_batch_size": 3}
    check_equal(run_recipe(place, tmp_path / "out", "zero3", **small), whole)


@pytest.mark.slow
@pytest.mark.usefixtures("deepspeed")
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3"])
def test_an_interrupted_run_goes_on_as_if_it_had_not_stopped(place, tmp_path, config):
    saving = {"save_strategy": "steps", "save_steps": 0.25, "optim": "adamw_torch", "learning_rate": 0.01}
    out = run_recipe(place, tmp_path / "out", config, **saving)
    expected, figures = weights(out), logged(out)
    # As if it had been killed after 3 steps, in the middle of a rollout: what was written later is not there.
    keep = {".recipe", "config.yaml", "checkpoint-3"}
    for entry in out.iterdir():
        if entry.name not in keep:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    run_recipe(place, out, config, "--resume_from_checkpoint", "auto", **saving)
    again = weights(out)
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert logged(out) == figures
