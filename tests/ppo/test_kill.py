"""Stopped in whatever way, a run goes on as if nothing had been: killed, interrupted, or by a number that is none.

Child processes are real ones and the signals too. They come from a server that has imported everything once, so that a
child starts in no time.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from rlhf_recipes.cli import run as run_as_command
from tests.launching import started
from tests.ppo.helpers import (
    CARRIED,
    FORKS,
    OPENINGS,
    TOKENIZER,
    AtStep,
    carried_run,
    largest_difference,
    logged,
    many_short_tokens,
    same_log,
    tiny_policy,
    torchrun,
    torchrun_command,
    trainer,
    weights,
    write_output_into,
)
from tests.tiny import save_tiny

ROOT = Path(__file__).parents[2]
PATIENCE = 120  # seconds for what takes one or two; no figure of the library's


@pytest.fixture(scope="module")
def never_stopped(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("never-stopped"), **CARRIED)
    run.train()
    return run


def wait_for(condition, of=None):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        assert of is None or of.is_alive(), "the child ended before it was killed"
        time.sleep(0.001)


def in_child(folder, place=None):
    write_output_into(folder / "output")
    started = is_whole(folder / "run" / "checkpoint-1")
    carried_run(folder / "run", place).train(resume_from_checkpoint=started)


@contextlib.contextmanager
def child(folder, place=None):
    process = FORKS.Process(target=in_child, args=(folder, place))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def equal_optimizers(one, other):
    """Every tensor and number of two optimizers, to 1e-7."""
    assert one["state"].keys() == other["state"].keys()
    assert one["state"]
    for number, state in one["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(other["state"][number][name]),
                                       atol=1e-7, rtol=0)  # fmt: skip
    assert [group["lr"] for group in one["param_groups"]] == [group["lr"] for group in other["param_groups"]]


def goes_on_as(folder, whole, **options):
    resumed = trainer(folder, **CARRIED | options)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 12
    assert resumed.roles.critic.weight.any()
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    equal_optimizers(resumed.optimizer.state_dict(), whole.optimizer.state_dict())
    assert resumed.credit.state_dict() == whole.credit.state_dict()
    same_log(resumed, whole)


def checkpoints(folder):
    return sorted(int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*"))


def is_whole(folder):
    return (folder / "trainer_state.json").is_file()


# --- kill -9 ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [pytest.param("rollout", marks=pytest.mark.slow), pytest.param("update", marks=pytest.mark.slow), "save"],
)
def test_killed_it_goes_on_as_if_it_never_was(tmp_path, never_stopped, place):
    with child(tmp_path, place) as process:
        wait_for((tmp_path / f"still-{process.pid}").exists, process)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert process.exitcode == -signal.SIGKILL
    last = {"rollout": 8, "update": 6, "save": 7}[place]
    assert checkpoints(tmp_path / "run")[-1] == last
    assert is_whole(tmp_path / "run" / f"checkpoint-{last}") == (place != "save")
    goes_on_as(tmp_path / "run", never_stopped)


@pytest.mark.slow
def test_killed_wherever_a_checkpoint_was_being_written_and_again(tmp_path, never_stopped):
    """Each time a checkpoint's folder is there and not yet whole, the process dies; the next one goes on."""
    folder, cut_off = tmp_path / "run", 0
    for _ in range(4):
        seen = {1, *checkpoints(folder)}  # with the first one alone cut off there would be nothing to go on from

        def unfinished(seen=seen):
            return [n for n in checkpoints(folder) if n not in seen and not is_whole(folder / f"checkpoint-{n}")]

        with child(tmp_path) as process:
            until = time.monotonic() + PATIENCE
            while process.is_alive() and not unfinished() and time.monotonic() < until:
                pass  # a checkpoint is written within milliseconds
            process.kill()
            process.join()
        cut_off += bool(unfinished())
    assert cut_off >= 1
    goes_on_as(folder, never_stopped)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5, 2.0])
def test_killed_at_any_moment(tmp_path, never_stopped, seconds):
    with child(tmp_path) as process:
        wait_for(lambda: is_whole(tmp_path / "run" / "checkpoint-1"), process)
        time.sleep(seconds)
        process.kill()
        process.join()
    goes_on_as(tmp_path / "run", never_stopped)


def test_killed_after_the_last_step_it_makes_no_other(tmp_path, never_stopped):
    trainer(tmp_path, kept=[AtStep("should_save", 12)], **CARRIED).train()  # and its end was not reached
    goes_on_as(tmp_path, never_stopped)


# --- Ctrl-C and SIGTERM -------------------------------------------------------------------------


def sends(number, step):
    """A reward that sends its own process a signal in the rollout after `step`."""

    def reward(completion_ids, trainer_state, **kwargs):
        if trainer_state.global_step == step:
            os.kill(os.getpid(), number)
            time.sleep(0.01)  # the handler runs before the next line
        return many_short_tokens(completion_ids)

    reward.__name__ = many_short_tokens.__name__
    return reward


class Sends(AtStep):
    """Sends its own process signals in the middle of the optimizer step after `step`."""

    def __init__(self, step, *numbers):
        super().__init__("")
        self.step, self.numbers = step, numbers

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for number in self.numbers:
                os.kill(os.getpid(), number)
                time.sleep(0.01)


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("rollout", signal.SIGINT),
        ("update", signal.SIGTERM),
        ("first rollout", signal.SIGINT),
        pytest.param("rollout", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("update", signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_interrupted_it_saves_where_it_is_and_goes_on(tmp_path, never_stopped, place, number):
    before = signal.getsignal(number)
    step = {"rollout": 4, "first rollout": 0, "update": 5}[place]
    how = {"kept": [Sends(step, number)]} if place == "update" else {"reward": sends(number, step)}
    run = trainer(tmp_path, **how, **CARRIED)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    # A rollout leaves no trace; an optimizer step is brought to its end.
    assert checkpoints(tmp_path) == [step + (place == "update")]
    assert signal.getsignal(number) == before
    goes_on_as(tmp_path, never_stopped)


def test_a_second_interrupt_ends_at_once_and_unsaved(tmp_path, caplog):
    run = trainer(tmp_path, kept=[Sends(5, signal.SIGINT, signal.SIGINT)], **CARRIED)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert "saving after this optimizer step. Once more ends the run at once, unsaved" in caplog.text
    assert run.state.global_step == 5
    assert checkpoints(tmp_path) == []
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_not_kept_waiting_by_an_evaluation(tmp_path):
    data = trainer(tmp_path / "data").train_dataset
    run = trainer(tmp_path, kept=[Sends(3, signal.SIGINT)], eval_dataset=data, eval_strategy="steps", eval_steps=1)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert checkpoints(tmp_path) == [4]
    assert not any("eval_objective/scores" in entry for entry in run.state.log_history)


def test_an_interrupt_in_the_last_step_leaves_a_run_that_is_complete(tmp_path, never_stopped):
    run = trainer(tmp_path, kept=[Sends(11, signal.SIGINT)], **CARRIED)
    run.train()
    assert largest_difference(weights(run), weights(never_stopped)) == 0


def test_an_interrupted_trainer_can_train_again(tmp_path, never_stopped):
    run = trainer(tmp_path, reward=sends(signal.SIGINT, 4), **CARRIED)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    run.reward = trainer(tmp_path / "other").reward
    run.train(resume_from_checkpoint=True)
    assert largest_difference(weights(run), weights(never_stopped)) < 1e-7


def test_as_a_command_it_ends_with_130_and_says_how_to_go_on(tmp_path, capsys):
    for place in ({"reward": sends(signal.SIGINT, 4)}, {"kept": [Sends(5, signal.SIGINT)]}):
        run = trainer(tmp_path / str(len(str(place))), **place, **CARRIED)
        with pytest.raises(SystemExit) as stopped:
            run_as_command(run.train, to_go_on="Add --resume_from_checkpoint auto to go on.")
        assert stopped.value.code == 130
        assert "Interrupted. Add --resume_from_checkpoint auto to go on." in capsys.readouterr().err


RECIPE_REWARD = """
import time
from pathlib import Path

def slow(completion_ids, trainer_state, **kwargs):
    Path(__file__).with_name("step").write_text(str(trainer_state.global_step))
    time.sleep(0.3)
    return [float(len(ids)) for ids in completion_ids]
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_the_recipe_is_interrupted_and_goes_on_with_the_command_it_names(tmp_path, number):
    save_tiny(tmp_path / "policy", tiny_policy(), TOKENIZER)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in OPENINGS * 2))
    (tmp_path / "rewards.py").write_text(RECIPE_REWARD)
    command = [
        sys.executable, ROOT / "recipes" / "ppo.py", "--dataset_name", tmp_path / "prompts.jsonl",
        "--model_name_or_path", tmp_path / "policy", "--reward_funcs", f"{tmp_path / 'rewards.py'}:slow",
        "--output_dir", tmp_path / "run", "--per_device_train_batch_size", 8, "--total_episodes", 400,
        "--max_completion_length", 6, "--use_cpu", "true", "--num_ppo_epochs", 2,
    ]  # fmt: skip
    command, env = list(map(str, command)), os.environ | {"OMP_NUM_THREADS": "1"}
    with started(command, env=env, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        wait_for(lambda: (tmp_path / "step").exists() and (tmp_path / "step").read_text() >= "4")
        process.send_signal(number)
        _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said[-3000:]
    assert "Interrupted. Add --resume_from_checkpoint auto to go on from the last checkpoint" in said
    (last,) = checkpoints(tmp_path / "run")
    assert is_whole(tmp_path / "run" / f"checkpoint-{last}")
    assert not (tmp_path / "run" / "model.safetensors").exists()  # the run is not complete
    assert not (tmp_path / "run" / "metrics.json").exists()
    (tmp_path / "rewards.py").write_text(RECIPE_REWARD.replace("0.3", "0"))
    done = subprocess.run([*command, "--resume_from_checkpoint", "auto"], env=env, capture_output=True, text=True,
                          cwd=ROOT, timeout=PATIENCE)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "model.safetensors").exists()


# --- What cannot be gone on from ----------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_at_6(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    trainer(folder, kept=[AtStep("should_save", 3, 6), AtStep("should_training_stop", 6)], **CARRIED).train()
    return folder


def test_other_settings_are_refused_each_by_name(stopped_at_6):
    other = CARRIED | {"kl_horizon": 99, "lam": 0.5, "use_score_norm": False, "num_mini_batches": 1, "top_k": 7}
    with pytest.raises(ValueError, match="belongs to a run with other settings") as refused:
        trainer(stopped_at_6, **other).train(resume_from_checkpoint=True)
    lines = str(refused.value).splitlines()[1:-1]
    assert [line.strip() for line in lines] == [
        "episodes of a mini-batch: 4 in the checkpoint, 8 now",
        "kl_horizon: 16 in the checkpoint, 99 now",
        "lam: 0.95 in the checkpoint, 0.5 now",
        "top_k: None in the checkpoint, 7 now",
        "use_score_norm: True in the checkpoint, False now",
    ]
    assert "name the checkpoint as the model" in str(refused.value)


def test_another_reward_or_other_weights_of_rewards_are_another_run(stopped_at_6):
    def other(prompts, **kwargs):
        return [0.0] * len(prompts)

    with pytest.raises(ValueError, match="rewards: .*many_short_tokens.* in the checkpoint, .*other.* now"):
        trainer(stopped_at_6, reward=other, **CARRIED).train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "damage",
    ["optimizer.pt", "model.safetensors", "ppo_state.pt", "critic/value_head.safetensors", "trainer_state.json"],
)
def test_a_broken_newest_checkpoint_is_passed_over_and_named(stopped_at_6, tmp_path, never_stopped, caplog, damage):
    folder = tmp_path / "run"
    shutil.copytree(stopped_at_6, folder)
    file = folder / "checkpoint-6" / damage
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    caplog.set_level(logging.WARNING, logger="rlhf_recipes")
    goes_on_as(folder, never_stopped)
    assert f"checkpoint-6 is not whole: {damage}" in caplog.text
    assert "going on from checkpoint-3" in caplog.text


# --- Not a number -------------------------------------------------------------------------------


def test_a_loss_that_is_nan_leaves_the_batch_and_the_weights_before_the_step(tmp_path):
    run = trainer(tmp_path, kept=[AtStep("should_save", 5)], **CARRIED)
    compute_loss = run.compute_loss

    def spoilt(model, inputs, *args, **kwargs):
        if run.state.global_step == 5:
            inputs["advantages"][0, 0] = float("nan")
        return compute_loss(model, inputs, *args, **kwargs)

    run.compute_loss = spoilt
    with pytest.raises(
        FloatingPointError, match=r"The loss is nan at step 5\. .*nan-step-5.*scores of the batch from"
    ):
        run.train()
    folder = tmp_path / "nan-step-5"
    batch = torch.load(folder / "batch-of-process-0.pt", weights_only=True)
    assert batch["advantages"].isnan().sum() == 1
    before, after = trainer(tmp_path / "a", **CARRIED), trainer(tmp_path / "b", **CARRIED)
    before.roles.load_weights(tmp_path / "checkpoint-5")
    after.roles.load_weights(folder)
    assert largest_difference(weights(before), weights(after)) == 0
    assert largest_difference(weights(before), weights(run)) == 0
    assert checkpoints(tmp_path) == [5]  # what was left behind is not taken for a checkpoint


# --- Two processes ------------------------------------------------------------------------------

SCRIPT = "two_processes_stopped.py"


def of_two(folder):
    return (
        torch.load(folder / "weights.pt"),
        torch.load(folder / "optimizer.pt"),
        json.loads((folder / "log.json").read_text()),
    )


@pytest.fixture(scope="module")
def two_never_stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(SCRIPT, folder, "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    return of_two(folder)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill one", "interrupt the launcher"])
def test_of_two_processes_stopped_and_resumed_equals_never_stopped(tmp_path, never_stopped, two_never_stopped, how):
    command, env = torchrun_command(SCRIPT, tmp_path, "stand still")
    with (
        open(tmp_path / "output", "w") as output,
        started(command, env=env, stdout=output, stderr=output) as launcher,
    ):
        wait_for(lambda: len(list(tmp_path.glob("still-*"))) == 2)
        pids = [int(path.name.split("-")[1]) for path in tmp_path.glob("still-*")]
        if how == "kill one":
            os.kill(pids[0], signal.SIGKILL)
        else:
            launcher.send_signal(signal.SIGINT)
        assert launcher.wait(timeout=PATIENCE) != 0
    assert checkpoints(tmp_path / "run")[-1] == (6 if how == "kill one" else 7)
    done = torchrun(SCRIPT, tmp_path, "go on")
    assert done.returncode == 0, done.stderr[-3000:]
    (states, optimizer, log), (other_states, other_optimizer, other_log) = of_two(tmp_path), two_never_stopped
    assert largest_difference(states, other_states) < 1e-7
    equal_optimizers(optimizer, other_optimizer)
    for one, other in zip(log, other_log, strict=True):
        for name in (name for name in other if not name.startswith("time/")):
            assert one[name] == pytest.approx(other[name], rel=1e-7, abs=1e-7), name
    assert [entry["step"] for entry in log] == [entry["step"] for entry in logged(never_stopped)]


@pytest.mark.slow
def test_where_one_of_two_processes_has_nan_both_stop_and_each_leaves_its_batch(tmp_path):
    done = torchrun(SCRIPT, tmp_path, "nan", timeout=PATIENCE)  # a process that waits for the other would hang
    assert done.returncode != 0
    assert "The loss is nan at step 2" in done.stderr
    assert "The loss is not finite on another process at step 2" in done.stderr
    folder = tmp_path / "run" / "nan-step-2"
    with_nan = [
        bool(torch.load(folder / f"batch-of-process-{rank}.pt", weights_only=True)["advantages"].isnan().any())
        for rank in (0, 1)
    ]
    assert with_nan == [False, True]
    assert checkpoints(tmp_path / "run") == [1, 2]
