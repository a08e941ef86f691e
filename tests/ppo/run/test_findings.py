"""What a log shows of reward hacking, on made-up histories: what is found, when, and that noise alone is not."""

import math
import re

import numpy as np
import pytest

from rlhf_recipes.ppo.run.findings import Change, Finding, findings, noise, quantile
from tests.ppo.run.histories import history, rising


def found(log, watched=("judge",), holding=("prose",)):
    return {(finding.kind, finding.about): finding for finding in findings(log, watched, holding)}


# ---- the statistics, by hand


def test_noise_comes_from_the_differences_of_neighbours():
    # Differences 1, -1, 1: mean 1/3, squared distances 4/9 + 16/9 + 4/9 = 8/3; times 3, over 2 * 4 * 2, is 1/2.
    assert noise(np.array([0.0, 1.0, 0.0, 1.0])) == pytest.approx(math.sqrt(1 / 2))


def test_a_straight_trend_is_no_noise():
    values = np.array([0.3, -0.1, 0.2, 0.5, 0.1])
    assert noise(values + 7 * np.arange(5)) == pytest.approx(noise(values))
    assert noise(3.0 * np.arange(9)) == pytest.approx(0.0, abs=1e-12)


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
    assert quantile(2.3263, count) == pytest.approx(of_a_table, abs=0.02)


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


def test_a_finding_is_one_of_a_kind():
    assert Finding("kl", "gain", 3, "x").key == Finding("kl", "gain", 9, "y").key
