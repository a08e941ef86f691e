"""The learning benchmarks run and say what they promise; that every method learns is shown by the slow test."""

import importlib
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

PROJECT = Path(__file__).parents[2]
METHODS = ("ppo", "actor_critic", "policy_gradient")


@pytest.fixture(scope="module")
def script():
    """Imports a benchmark as `python benchmarks/NAME.py` does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module
    for name in ("learning", "breaking", "tiny_tasks"):
        sys.modules.pop(name, None)


def printed(module, capsys, *arguments):
    module.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    (line,) = out.splitlines()  # all else goes to stderr
    return json.loads(line), err


# ---- the rewards, by hand


def test_emit_is_the_share_of_the_token(script):
    emit = script("tiny_tasks").EmitToken(5)
    assert emit(completion_ids=[[5, 5, 5, 5], [5, 6, 7, 5], [6, 7]]) == [1.0, 0.5, 0.0]


def test_reverse_pays_a_third_for_each_right_position(script):
    reverse = script("tiny_tasks").reverse
    third = 1 / 3
    assert reverse.per_token
    assert reverse(completion_ids=[[7, 6, 5], [5, 6, 7]], wanted=[[7, 6, 5], [7, 6, 5]]) == [
        [third] * 3,
        [0, third, 0],
    ]


def test_the_wanted_completion_is_the_prompt_backwards(script):
    tiny_tasks = script("tiny_tasks")
    task, tokenizer = tiny_tasks.TASKS["reverse"](), tiny_tasks.build_tokenizer()
    assert len(task.train) + len(task.held_out) == 6**3
    assert not set(task.train["prompt"]) & set(task.held_out["prompt"])
    for row in task.held_out:
        assert tokenizer.decode(row["wanted"]).split() == row["prompt"].split()[::-1]


def test_stop_is_best_where_the_first_token_is_the_end(script):
    stop = script("tiny_tasks").StopEarly(end=2, limit=4)
    assert stop(completion_ids=[[2], [9, 2], [9, 9, 9, 2], [9, 9, 9, 9]]) == [1.0, 0.75, 0.25, 0.0]


def test_praise_can_be_had_without_sentences(script):
    breaking = script("breaking")
    completions = ["good . the film was good", "good good good good", "fine . the end"]
    rows = {"prompts": ["the plot was"] * 3, "completions": completions}
    assert breaking.Praise()(**rows) == [2 / 6, 1.0, 0.0]
    assert breaking.WellFormed()(**rows) == [1.0, 0.25, 1.0]  # the first "good" may follow "was"


# ---- when the goal was reached


def test_episodes_of_the_rollout_that_shows_the_goal_were_not_learned_from(script):
    episodes_to = script("tiny_tasks").episodes_to
    history = [{"episode": 64 * (n + 1), "objective/scores": score} for n, score in enumerate([0.5, 0.94, 0.96, 0.9])]
    assert episodes_to(history, 0.95) == 128
    assert episodes_to(history, 0.5) == 0
    assert episodes_to(history, 0.97) is None


def test_a_seed_that_does_not_get_there_is_no_number_in_the_summary(script):
    learning = script("learning")
    task = script("tiny_tasks").TASKS["emit"]()

    def run(scores, final):
        history = [{"episode": 64 * (n + 1), "objective/scores": score} for n, score in enumerate(scores)]
        return learning.Run(history, {"objective/scores": final}, [], {}, 2.0, 1.0)

    runs = [run([0.1, 0.96], 0.97), run([0.1, 0.2, 0.95], 0.94), run([0.1, 0.2], 0.3)]
    found = learning.summary(task, runs)
    assert found["episodes"] == {"median": 128, "min": 64, "max": None, "all": [64, 128, None]}
    assert found["seeds_reached"] == 1  # the second did not keep what it had
    assert found["final_score"] == {"mean": 0.7367, "min": 0.3, "max": 0.97}


# ---- the scripts


@pytest.mark.parametrize("method", METHODS)
def test_the_settings_of_a_run_are_those_of_the_preset_and_of_the_task(script, method, tmp_path):
    tiny_tasks = script("tiny_tasks")
    args = tiny_tasks.settings_of(tiny_tasks.TASKS["stop"](), method, 3, str(tmp_path), total_episodes=64)
    assert (args.num_ppo_epochs, args.num_mini_batches) == ((4, 4) if method == "ppo" else (1, 1))
    assert args.cliprange == (0.2 if method == "ppo" else None)
    assert args.critic == ("none" if method == "policy_gradient" else "head")
    assert (args.max_completion_length, args.total_episodes, args.seed) == (16, 64, 3)


def test_learning_prints_one_line_of_json_with_all_figures(script, capsys, tmp_path):
    report, err = printed(
        script("learning"), capsys, "--tasks", "stop", "--methods", *METHODS, "--seeds", 0, "--episodes", 128,
        "--output", tmp_path / "kept.json", "--plot", tmp_path / "curves.png",
    )  # fmt: skip
    assert set(report["results"]["stop"]) == set(METHODS)
    for method, found in report["results"]["stop"].items():
        assert set(found) == {
            "best_score", "settings", "episodes", "final_score", "seeds_reached", "wall_seconds", "cpu_seconds",
        }  # fmt: skip
        assert found["settings"]["total_episodes"] == 128
        assert f"| stop | {method} |" in err
    kept = json.loads((tmp_path / "kept.json").read_text())
    curves = kept.pop("curves")["stop"]
    assert kept == report
    assert [episodes for episodes, _ in curves["ppo"][0]] == [0, 64]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_breaking_prints_one_line_of_json_with_both_runs(script, capsys, tmp_path):
    report, _ = printed(
        script("breaking"), capsys, "--seeds", 0, "--episodes", 64, "--plot", tmp_path / "curves.png"
    )  # fmt: skip
    lr, kl = (report["results"][case] for case in ("learning_rate", "kl_coef"))
    rates = [lr[kind]["settings"]["learning_rate"] for kind in ("sound", "broken")]
    assert rates[1] == pytest.approx(30 * rates[0])
    assert kl["sound"]["settings"]["kl_coef"] > 0 == kl["broken"]["settings"]["kl_coef"]
    for case, kind in itertools.product((lr, kl), ("sound", "broken")):
        assert {"objective/scores", "objective/kl", "policy/approxkl_avg"} <= set(case[kind]["figures"])
    # Until the first update both runs of a case are one.
    for name in ("objective/scores", "reward/well_formed"):
        assert kl["sound"]["figures"][name] == kl["broken"]["figures"][name]
    assert (tmp_path / "curves.png").stat().st_size < 100_000


# ---- the claim


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_method_learns_to_reverse_prompts_that_it_was_not_trained_on(script, capsys, method):
    """Two of three seeds: one that is slow here may be too slow where sums round otherwise."""
    report, _ = printed(script("learning"), capsys, "--tasks", "reverse", "--methods", method, "--seeds", 0, 1, 2)
    found = report["results"]["reverse"][method]
    assert found["seeds_reached"] >= 2
    assert found["final_score"]["max"] >= 0.95
    assert found["episodes"]["median"] is not None


@pytest.mark.slow
def test_half_precision_does_not_hurt_what_is_learned(script, capsys):
    report, err = printed(
        script("learning"), capsys, "--tasks", "reverse", "--methods", "ppo", "--against", "rollout_dtype=bfloat16"
    )  # fmt: skip
    found = report["results"]["reverse"]["ppo"]["against"]
    assert found["rollout_dtype"] == "bfloat16"
    assert len(found["difference"]["all"]) == 5
    assert found["difference"]["low"] > -0.1
    assert "rollout_dtype=bfloat16:" in err


def test_a_difference_in_standard_deviations_by_hand(script):
    def run(score, spread):
        return SimpleNamespace(held_out={"objective/scores": score}, history=[{"objective/scores_std": spread}])

    sides = [run(0.5, 0.2), run(0.7, 0.6)], [run(0.6, 9.0), run(0.7, 9.0)]
    found = script("learning").difference(*sides)
    # gains 0.1 / 0.4 and 0; Student's t of one degree of freedom has its 97.5% point at 12.706
    assert found["all"] == [0.25, 0.0]
    assert found["mean"] == 0.125
    assert (found["low"], found["high"]) == pytest.approx((0.125 - 12.7062 * 0.125, 0.125 + 12.7062 * 0.125), abs=1e-3)
