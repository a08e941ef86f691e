"""The monitor of reward hacking: what it says of a run, when, and what it reads of one that is over."""

import json
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from transformers import TrainerControl

from rlhf_recipes.ppo.run import monitor
from rlhf_recipes.ppo.run.findings import findings
from rlhf_recipes.ppo.run.monitor import HackingMonitor, held_out_of, held_out_rewards, read_history
from rlhf_recipes.rewards import PlainProse, Repetition, WeightedSum
from tests.ppo.run.histories import history, rising

# ---- the callback


def replay(log, monitor, start=0):
    """What the Trainer does: append an entry, then call; returns after which entries it was asked to stop."""
    state = SimpleNamespace(log_history=log[:start], is_world_process_zero=True)
    stops = []
    for entry in log[start:]:
        state.log_history.append(entry)
        control = TrainerControl()
        monitor.on_log(None, state, control, logs=entry)
        assert control.should_save == control.should_training_stop
        stops += [len(state.log_history)] * control.should_training_stop
    return stops


@pytest.fixture
def exploited():
    return history(40, score=rising(40), kl=3 * np.arange(40), repetition=0.02 + rising(40, 0.3))


def messages(caplog):
    texts = [record.getMessage() for record in caplog.records if record.name == monitor.__name__]
    caplog.clear()
    return texts


def test_it_warns_once_of_each_finding_when_it_is_new(exploited, caplog):
    with caplog.at_level(logging.WARNING):
        assert replay(exploited, HackingMonitor(["judge"], ["prose"])) == []
    expected = findings(exploited, ["judge"], ["prose"])
    assert {finding.kind for finding in expected} == {"held-out", "repetition", "kl"}
    assert messages(caplog) == [f"Rollout {finding.since}: {finding.text}" for finding in expected]


def test_a_resumed_run_says_what_was_left_to_say(exploited, caplog):
    with caplog.at_level(logging.WARNING):
        replay(exploited, HackingMonitor(["judge"]))
        whole = messages(caplog)
        for cut in (5, 17, 30):
            replay(exploited[:cut], HackingMonitor(["judge"]))
            replay(exploited, HackingMonitor(["judge"]), start=cut)
            assert messages(caplog) == whole


def test_stop_saves_and_stops_and_the_run_can_go_on_from_there(exploited):
    stops = replay(exploited, HackingMonitor(["judge"], action="stop"))
    assert stops == sorted({finding.since for finding in findings(exploited, ["judge"])})
    assert replay(exploited, HackingMonitor(["judge"], action="stop"), start=stops[0]) == stops[1:]


def test_off_says_nothing(exploited, caplog):
    assert replay(exploited, HackingMonitor(["judge"], action="off")) == []
    assert messages(caplog) == []


def test_an_action_that_is_none_is_refused():
    with pytest.raises(ValueError, match="action of a monitor is 'halt'; give 'warn', 'stop' or 'off'"):
        HackingMonitor(action="halt")


def test_what_is_watched_comes_from_the_weights():
    def judge(completions, **kwargs):
        return [0.0] * len(completions)

    rewards = WeightedSum([PlainProse(name="prose"), judge, Repetition(), PlainProse(name="paid"), len, str],
                          weights=[0, 0.0, 0, 1.0, -0.5, lambda progress: 0.0])  # fmt: skip
    made = HackingMonitor.of_rewards(rewards)
    assert (made.watched, made.holding) == (("judge",), ("prose", "Repetition"))


# ---- reading a run


def run_folder(folder, log, checkpoint=None):
    folder.mkdir(parents=True, exist_ok=True)
    rewards = [{"func": "Vader", "weight": 1.0}, {"func": "runs/reward", "name": "judge", "weight": 0.0},
               {"func": "PlainProse", "name": "prose", "weight": 0}]  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"reward_funcs": rewards}))
    if checkpoint is None:
        (folder / "log_history.json").write_text(json.dumps(log))
    else:
        (folder / f"checkpoint-{checkpoint}").mkdir()
        (folder / f"checkpoint-{checkpoint}/trainer_state.json").write_text(json.dumps({"log_history": log}))
    return folder


def test_the_log_of_a_finished_run_is_read(exploited, tmp_path):
    folder = run_folder(tmp_path / "run", exploited)
    assert read_history(folder) == exploited
    assert held_out_of(folder, exploited) == {"watched": ["judge"], "holding": ["prose"]}


def test_of_a_run_that_is_not_done_the_last_checkpoint_is_read(exploited, tmp_path):
    folder = run_folder(tmp_path / "run", exploited[:9], checkpoint=72)
    run_folder(folder, exploited[:16], checkpoint=128)
    assert len(read_history(folder)) == 16
    assert len(read_history(folder / "checkpoint-72")) == 9
    assert held_out_of(folder / "checkpoint-72", exploited) == {"watched": ["judge"], "holding": ["prose"]}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has neither log_history.json nor a checkpoint"),
        ({"log_history.json": "[{}]"}, "holds no entry with objective/scores"),
        ({"log_history.json": "[{"}, "Expecting"),
    ],
)
def test_a_folder_without_a_log_is_an_error(files, said, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises((FileNotFoundError, ValueError), match=said):
        read_history(tmp_path)


def test_a_cost_that_is_only_logged_is_neither_watched_nor_to_hold():
    names, kinds = ["tokens_written", "judge", "prose"], ["TokenCount", "LearnedReward", "PlainProse"]
    assert held_out_rewards(names, [0.0, 0.0, 0.0], kinds) == {"watched": ["judge"], "holding": ["prose"]}


def test_rewards_are_found_under_the_names_they_are_logged_with(tmp_path):
    config = {
        "reward_funcs": [
            {"func": "runs/gold/reward", "weight": 0},
            {"func": "Scale", "weight": 0, "args": {"reward": {"func": "Vader"}, "scale": 2.0}},
            {"func": "mine.py:kindness", "weight": 0},
            "EndsWithSentence",
        ]
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    history = [{"reward/reward": 1.0, "reward/Vader": 0.0, "reward/kindness": 0.0, "reward/EndsWithSentence": 1.0}]
    assert held_out_of(tmp_path, history) == {"watched": ["reward", "Vader", "kindness"], "holding": []}
