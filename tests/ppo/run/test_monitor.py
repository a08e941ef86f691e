"""The monitor of reward hacking, on made-up histories: what it finds, when, and that noise alone is not found."""

import json
import logging
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from transformers import TrainerControl

from rlhf_recipes.ppo.run import monitor
from rlhf_recipes.ppo.run.monitor import Change, Finding, HackingMonitor, findings, held_out_of, held_out_rewards
from rlhf_recipes.rewards import PlainProse, Repetition, WeightedSum

EPISODES = 64  # in a rollout; standard deviations over completions are 1, so a mean has a noise of 1/8


def rising(count, size=1.5, pace=12):
    """Fast at first, then flat, as most scores do."""
    return size * (1 - np.exp(-np.arange(count) / pace))


def history(count=40, seed=0, std=True, **curves):
    """A log. Figures that are not given stay where they are; all but the deviations get noise, some of it common.

    Rewards that rise together also vary together: half of the variance of `judge` is the score's.
    """
    dice = np.random.default_rng(seed)
    shared = dice.normal(size=count)

    def noisy(curve, size, common=0.0):
        return np.asarray(curve) + size * (common * shared + math.sqrt(1 - common**2) * dice.normal(size=count))

    flat = np.zeros(count)
    series = {
        "objective/scores": noisy(curves.get("score", flat), 1 / 8, common=1.0),
        "reward/judge": noisy(curves.get("judge", flat), 1 / 8, common=0.7),
        "reward/prose": np.clip(noisy(0.9 + curves.get("prose", flat), 0.03), 0, 1),
        "objective/kl": noisy(curves.get("kl", flat + 5), 0.3),
        "rollout/completion_length": noisy(curves.get("length", flat + 40), 2),
        "rollout/length_correlation": noisy(curves.get("correlation", flat), 1 / 8),
        "rollout/repetition": np.clip(noisy(curves.get("repetition", flat + 0.02), 0.006), 0, 1),
    }
    if std:
        series |= {"objective/scores_std": flat + 1, "reward/judge/std": flat + 1}
    return [
        {"episode": EPISODES * (row + 1), "loss": 0.1} | {name: float(values[row]) for name, values in series.items()}
        for row in range(count)
    ]


def found(log, watched=("judge",), holding=("prose",)):
    return {(finding.kind, finding.about): finding for finding in findings(log, watched, holding)}


# ---- the statistics, by hand


def test_noise_comes_from_the_differences_of_neighbours():
    # Differences 1, -1, 1: mean 1/3, squared distances 4/9 + 16/9 + 4/9 = 8/3; times 3, over 2 * 4 * 2, is 1/2.
    assert monitor.noise(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(math.sqrt(1 / 2))


def test_a_straight_trend_is_no_noise():
    values = np.array([0.3, -0.1, 0.2, 0.5, 0.1])
    assert monitor.noise(values + 7 * np.arange(5)) == pytest.approx(monitor.noise(values))
    assert monitor.noise(3.0 * np.arange(9)) == pytest.approx(0.0, abs=1e-12)


def test_a_change_is_that_of_the_line_of_least_squares():
    # Slope of (0, 1), (1, 0), (2, 2), (3, 3): (-1.5*1 - 0.5*0 + 0.5*2 + 1.5*3) / 5 = 0.8, over three steps 2.4.
    assert Change.of(np.array([1.0, 0.0, 2.0, 3.0])).size == pytest.approx(2.4)


def test_the_error_of_a_change_is_what_repeating_it_shows():
    dice = np.random.default_rng(0)
    changes = [Change.of(dice.normal(size=20)) for _ in range(2000)]
    assert np.std([change.size for change in changes]) == pytest.approx(
        np.sqrt(np.mean([change.error**2 for change in changes])), rel=0.05
    )


@pytest.mark.parametrize(("count", "of_a_table"), [(16, 2.764), (31, 2.528), (46, 2.457)])
def test_quantiles_are_those_of_student(count, of_a_table):
    """Freedom is 2 (n - 1)^2 / (3 n - 4): 10.2 for 16 values, 20.2 for 31, 30.2 for 46; a table has 10, 20 and 30."""
    assert monitor.quantile(2.3263, count) == pytest.approx(of_a_table, abs=0.02)


# ---- each finding


def test_a_healthy_run_gets_no_finding():
    log = history(score=rising(40), judge=rising(40, 0.8), prose=rising(40, 0.08), kl=rising(40, 8))
    assert findings(log, ["judge"], ["prose"]) == []


def test_a_held_out_reward_that_does_not_follow():
    finding = found(history(score=rising(40)))[("held-out", "judge")]
    assert 8 <= finding.since <= 30
    assert "the score went from" in finding.text
    assert "judge, which is watched and not rewarded, from" in finding.text
    assert "raise kl_coef" in finding.text


def test_a_held_out_reward_that_falls_while_the_score_rises():
    finding = found(history(score=rising(40), judge=-rising(40)))[("held-out", "judge")]
    assert "standard errors" in finding.text or "a rise of -" in finding.text


def test_a_held_out_reward_that_rises_first_and_falls_later_is_found_when_it_falls():
    """As in arXiv 2210.10760: over the whole run it has gained, over the last rollouts it loses."""
    turn = np.concatenate([rising(30, 1.5), rising(30, 1.5)[-1] - 0.06 * np.arange(30)])
    finding = found(history(60, score=rising(60, 2.5, 20), judge=turn))[("held-out", "judge")]
    assert finding.since > 30
    assert re.search(rf"Over rollouts (?!1 )\d+ to {finding.since} ", finding.text)


def test_a_held_out_reward_that_follows_by_half_is_not_found():
    assert found(history(score=rising(40), judge=rising(40, 0.75))) == {}


def test_what_is_to_be_expected_is_in_units_of_each_reward():
    """The same curves with a judge in units 100 times as large."""
    log = history(score=rising(40), judge=rising(40, 0.75))
    larger = [entry | {"reward/judge": 100 * entry["reward/judge"], "reward/judge/std": 100.0} for entry in log]
    assert found(larger) == found(log) == {}
    stays = history(score=rising(40))
    larger = [entry | {"reward/judge": 100 * entry["reward/judge"], "reward/judge/std": 100.0} for entry in stays]
    assert found(larger)[("held-out", "judge")].since == found(stays)[("held-out", "judge")].since


def test_without_logged_deviations_noise_is_the_unit():
    assert ("held-out", "judge") in found(history(score=rising(40), std=False))
    assert found(history(score=rising(40), judge=rising(40, 1.2), std=False)) == {}


def test_a_rule_of_form_may_stay_but_not_fall():
    stays = history(score=rising(40), judge=rising(40))
    assert found(stays) == {}
    falls = history(score=rising(40), judge=rising(40), prose=-rising(40, 0.4))
    assert list(found(falls)) == [("held-out", "prose")]
    assert "standard errors" in found(falls)[("held-out", "prose")].text


def test_when_score_and_held_out_reward_fall_together_it_is_no_hacking():
    log = history(60, score=np.concatenate([rising(30), rising(30)[::-1]]),
                  judge=np.concatenate([rising(30), rising(30)[::-1]]))  # fmt: skip
    assert found(log) == {}


def test_length_that_grows_with_the_score():
    grows = {"length": 40 + rising(40, 40), "correlation": np.full(40, 0.4)}
    finding = found(history(**grows))[("length", "growth")]
    assert "the correlation of score and length is 0.4" in finding.text
    assert found(history(length=grows["length"])) == {}  # longer, but not because it pays
    assert found(history(correlation=grows["correlation"])) == {}  # it would pay, but nothing grows


def test_length_that_collapses():
    finding = found(history(length=40 - rising(40, 35)))[("length", "collapse")]
    assert "have become short" in finding.text


def test_repetition_that_rises():
    finding = found(history(repetition=0.02 + rising(40, 0.3)))[("repetition", "")]
    first, last = (float(share) for share in re.findall(r"([\d.]+)% of the pairs.*?, ([\d.]+)% in", finding.text)[0])
    assert first < 10
    assert last > first + 5
    assert found(history(repetition=0.02 + rising(40, 0.03))) == {}  # real, and too little to matter


def test_kl_above_the_budget():
    """40 tokens, 1 nat each."""
    finding = found(history(kl=1.5 * np.arange(40)))[("kl", "budget")]
    assert 27 <= finding.since <= 30  # the mean of three rollouts passes 40 nats at the 29th
    assert found(history(kl=rising(40, 30))) == {}


def test_kl_that_grows_and_buys_nothing():
    log = history(60, score=rising(60, 1.5, 5), judge=rising(60, 1.5, 5), kl=0.5 * np.arange(60))
    assert ("kl", "gain") in found(log)
    pays = history(60, score=0.05 * np.arange(60), judge=0.05 * np.arange(60), kl=0.5 * np.arange(60))
    assert found(pays) == {}


# ---- false alarms, counted


def healthy(seed):
    """One of four kinds of sound runs, 40 rollouts; the judge gains half of what the score gains."""
    count, kind = 40, seed % 4
    curve = [rising(count), 0.03 * np.arange(count), np.zeros(count), rising(count, pace=3)]
    grows = curve[kind]
    return history(count, seed, score=grows, judge=0.5 * grows, prose=0.04 * grows, kl=5 + 6 * grows,
                   length=40 + 2 * grows, correlation=np.full(count, 0.1), std=seed % 8 < 4)  # fmt: skip


def test_of_200_sound_runs_at_most_two_get_a_finding():
    """Each is looked at 33 times, after every rollout, for seven findings."""
    alarms = [seed for seed in range(200) if findings(healthy(seed), ["judge"], ["prose"])]
    assert len(alarms) <= 2, alarms


def test_of_50_exploited_runs_nearly_all_are_found_in_time():
    ours = [found(history(40, seed, score=rising(40), prose=-rising(40, 0.3))) for seed in range(50)]
    for name in ("judge", "prose"):
        since = [of_run[("held-out", name)].since for of_run in ours if ("held-out", name) in of_run]
        assert len(since) >= 48
        assert np.median(since) <= 20


# ---- what a log may lack


def test_entries_of_evaluations_and_missing_figures_are_left_out():
    log = history(score=rising(40))
    mixed = [entry for row in log for entry in (row, {"eval_objective/scores": 9.0}, {"train_runtime": 3.0})]
    assert found(mixed) == found(log)
    bare = [{name: entry[name] for name in ("objective/scores", "reward/judge")} for entry in log]
    assert list(found(bare)) == [("held-out", "judge")]
    assert "episodes" not in found(bare)[("held-out", "judge")].text
    assert findings([], ["judge"]) == []


def test_a_reward_that_did_not_apply_to_some_rollouts():
    log = history(60, score=rising(60, 1.5, 24))
    for entry in log[::2]:
        del entry["reward/judge"]
    assert ("held-out", "judge") in found(log)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_series_without_any_noise_are_no_finding(value):
    entry = {"objective/scores": value, "objective/kl": 0.0, "reward/judge": value, "reward/prose": 1.0,
             "rollout/completion_length": 20.0, "rollout/repetition": 0.0}  # fmt: skip
    assert found([entry] * 30) == {}


def test_nothing_is_said_before_eight_rollouts():
    log = history(7, score=3 * np.arange(7), judge=-3 * np.arange(7), kl=100 * np.arange(7))
    assert findings(log, ["judge"]) == []


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


# ---- the command


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


def test_the_command_tells_what_is_found_and_since_when(exploited, tmp_path, capsys):
    assert monitor.main([str(run_folder(tmp_path / "run", exploited))]) == 0
    out = capsys.readouterr().out
    assert out.startswith("40 rollouts. Held out: judge, prose.\n")
    for finding in findings(exploited, ["judge"], ["prose"]):
        assert f"Rollout {finding.since}: {finding.text}" in out


def test_the_command_reads_the_last_checkpoint_of_a_run_that_is_not_done(exploited, tmp_path, capsys):
    folder = run_folder(tmp_path / "run", exploited[:9], checkpoint=72)
    run_folder(folder, exploited[:16], checkpoint=128)
    monitor.main([str(folder)])
    assert capsys.readouterr().out.startswith("16 rollouts. Held out: judge, prose.")
    monitor.main([str(folder / "checkpoint-72")])
    assert capsys.readouterr().out.startswith("9 rollouts. Held out: judge, prose.")


def test_the_command_takes_other_names(exploited, tmp_path, capsys):
    folder = run_folder(tmp_path / "run", exploited)
    monitor.main([str(folder), "--watched", "--holding", "judge"])
    assert capsys.readouterr().out.startswith("40 rollouts. Held out: judge.")
    with pytest.raises(SystemExit):
        monitor.main([str(folder), "--watched", "jugde"])
    assert "The log has no reward jugde; it has judge, prose." in capsys.readouterr().err


def test_a_sound_run_gets_that_said(tmp_path, capsys):
    log = history(score=rising(40), judge=rising(40))
    monitor.main([str(run_folder(tmp_path / "run", log))])
    assert capsys.readouterr().out.endswith("Nothing found.\n")


def test_a_finding_that_is_over_is_told_as_such(tmp_path, capsys):
    there_and_back = 20 + np.concatenate([np.full(20, 30.0), np.full(40, -15.0)])
    monitor.main([str(run_folder(tmp_path / "run", history(60, kl=there_and_back)))])
    assert "(no more at the end): The policy is far from the reference" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has neither log_history.json nor a checkpoint"),
        ({"log_history.json": "[{}]"}, "holds no entry with objective/scores"),
        ({"log_history.json": "[{"}, "error: "),
    ],
)
def test_a_folder_without_a_log_is_an_error(files, said, tmp_path, capsys):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(SystemExit) as exit:
        monitor.main([str(tmp_path)])
    assert exit.value.code == 1
    assert said in capsys.readouterr().err


def test_a_finding_is_one_of_a_kind():
    assert Finding("kl", "gain", 3, "x").key == Finding("kl", "gain", 9, "y").key


def test_a_cost_that_is_only_logged_is_neither_watched_nor_to_hold():
    names, kinds = ["tokens_written", "judge", "prose"], ["TokenCount", "LearnedReward", "PlainProse"]
    assert held_out_rewards(names, [0.0, 0.0, 0.0], kinds) == {"watched": ["judge"], "holding": ["prose"]}


def test_the_command_finds_rewards_under_the_names_they_are_logged_with(tmp_path):
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
