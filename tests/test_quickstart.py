"""The order of the quickstart's stages, what is skipped, what goes on, and its figures; no stage is really run.

`subprocess.call` is a double in these tests: it notes the command and leaves the files that a stage would leave.
`tests/test_quickstart_figures.py` looks at a real run.
"""

import json
import sys
from pathlib import Path

import pytest

from rlhf_recipes import quickstart
from rlhf_recipes.quickstart import STAGES, Stage, collect_metrics, fingerprint, is_done, run_stage, write_stamp

PROJECT = Path(__file__).parents[1]
REWARD, JUDGE, BEFORE, PPO, AFTER = STAGES


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A project folder of its own, with the YAML files and nothing that has run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Path("recipes/configs").mkdir(parents=True)
    for stage in STAGES:
        stage.config.write_text(f"output_dir: runs/quickstart/{stage.name}\n")
    return tmp_path


class Processes:
    """A double for `subprocess.call`. `ends` gives the exit code of a stage by name; 0 leaves its metrics.json."""

    def __init__(self):
        self.commands, self.ends = [], {}

    def __call__(self, command):
        self.commands.append(command)
        name = Path(command[3]).stem.removeprefix("quickstart_")
        run = quickstart.RUN_DIR / name
        run.mkdir(parents=True, exist_ok=True)
        if name == "ppo":
            (run / "checkpoint-40").mkdir(exist_ok=True)
        code = self.ends.get(name, 0)
        if isinstance(code, BaseException):
            raise code
        if code == 0:
            (run / "metrics.json").write_text("{}")
        return code

    @property
    def names(self):
        return [Path(command[3]).stem.removeprefix("quickstart_") for command in self.commands]


@pytest.fixture
def processes(monkeypatch):
    double = Processes()
    monkeypatch.setattr("rlhf_recipes.quickstart.subprocess.call", double)
    return double


@pytest.fixture
def main(monkeypatch):
    """`quickstart.main` up to the report; the starter kit and what comes after the stages are doubles too."""
    monkeypatch.setattr("rlhf_recipes.data.starter.__main__.main", lambda argv: 0)
    monkeypatch.setattr(quickstart, "collect_metrics", lambda: {"total_seconds": 1.0})
    monkeypatch.setattr("rlhf_recipes.report.ending.describe_environment", dict)
    monkeypatch.setattr(quickstart, "print_figures", lambda metrics, page: None)
    monkeypatch.setattr("rlhf_recipes.report.write_report", lambda run: run / "report.html")
    return lambda: quickstart.main([])


def stamps():
    found = {}
    for stage in STAGES:
        found[stage.name] = fingerprint(stage, found)
    return found


# ---- what a result depends on


def test_a_fingerprint_repeats_itself_and_no_two_stages_share_one():
    assert stamps() == stamps()
    assert len(set(stamps().values())) == len(STAGES)


@pytest.mark.parametrize(
    ("edited", "changed"),
    [
        (REWARD, {"reward", "before", "ppo", "after"}),
        (JUDGE, {"judge", "before", "after"}),
        (BEFORE, {"before"}),
        (PPO, {"ppo", "after"}),
        (AFTER, {"after"}),
    ],
)
def test_a_changed_yaml_changes_its_stage_and_those_that_rest_on_it(edited, changed):
    before = stamps()
    edited.config.write_text(edited.config.read_text() + "seed: 1\n")
    assert {name for name, stamp in stamps().items() if stamp != before[name]} == changed


def test_another_version_of_a_package_changes_all(monkeypatch):
    before = stamps()
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{package} of tomorrow")
    assert all(stamp != before[name] for name, stamp in stamps().items())


def test_a_stage_needs_what_its_yaml_reads():
    """The real YAML files: a folder of another stage that one of them reads is in `needs`, and nothing else is."""
    for stage in STAGES:
        lines = (PROJECT / stage.config).read_text().splitlines()
        settings = "\n".join(line for line in lines if not line.startswith("#"))
        read = {other.name for other in STAGES if other != stage and f"runs/quickstart/{other.name}" in settings}
        assert read == set(stage.needs)
        assert f"output_dir: runs/quickstart/{stage.name}" in settings


# ---- one stage


def test_a_stage_is_done_when_it_has_ended_with_these_inputs_and_left_its_figures():
    assert not is_done(REWARD, "abc")
    write_stamp(REWARD, {"begun": "abc"})
    assert not is_done(REWARD, "abc")
    write_stamp(REWARD, {"done": "abc"})
    assert not is_done(REWARD, "abc")  # somebody deleted the folder
    (quickstart.RUN_DIR / "reward").mkdir()
    (quickstart.RUN_DIR / "reward/metrics.json").write_text("{}")
    assert is_done(REWARD, "abc")
    assert not is_done(REWARD, "xyz")


def test_the_stamp_stands_beside_the_stages_folder_which_the_recipe_must_find_empty(processes):
    run_stage(REWARD, "abc")
    assert sorted(entry.name for entry in quickstart.RUN_DIR.iterdir()) == [".reward.stage.json", "reward"]


def test_a_stage_runs_the_command_that_it_shows(processes):
    run_stage(BEFORE, "abc")
    recipe = ["recipes/evaluate.py", "--config", "recipes/configs/quickstart_before.yaml"]
    assert BEFORE.command == ["python", *recipe]
    assert processes.commands == [[sys.executable, *recipe]]
    assert is_done(BEFORE, "abc")


def test_a_stage_killed_midway_is_not_done_and_goes_on_from_its_checkpoint(processes):
    processes.ends["ppo"] = -9
    with pytest.raises(SystemExit):
        run_stage(PPO, "abc")
    assert not is_done(PPO, "abc")
    processes.ends["ppo"] = 0
    run_stage(PPO, "abc")
    first, second = processes.commands
    assert "--resume_from_checkpoint" not in first
    assert second == [*first, "--resume_from_checkpoint", "auto"]
    assert is_done(PPO, "abc")


def test_after_a_power_cut_too(processes):
    processes.ends["ppo"] = KeyboardInterrupt()  # what stands for never coming back
    with pytest.raises(KeyboardInterrupt):
        run_stage(PPO, "abc")
    assert not is_done(PPO, "abc")
    processes.ends["ppo"] = 0
    run_stage(PPO, "abc")
    assert processes.commands[1][-2:] == ["--resume_from_checkpoint", "auto"]


def test_checkpoints_of_other_inputs_are_not_gone_on_from(processes):
    processes.ends["ppo"] = 1
    with pytest.raises(SystemExit):
        run_stage(PPO, "abc")
    checkpoint = quickstart.RUN_DIR / "ppo/checkpoint-40"
    (checkpoint / "old").touch()
    (quickstart.RUN_DIR / "ppo/notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        run_stage(PPO, "xyz")
    assert "--resume_from_checkpoint" not in processes.commands[1]
    assert not (checkpoint / "old").exists()
    assert (quickstart.RUN_DIR / "ppo/notes.txt").read_text() == "mine"


def test_checkpoints_are_gone_once_the_stage_is_done(processes):
    run_stage(PPO, "abc")
    assert not list((quickstart.RUN_DIR / "ppo").glob("checkpoint-*"))
    assert (quickstart.RUN_DIR / "ppo/metrics.json").exists()


def test_a_stage_that_does_not_resume_begins_again(processes):
    processes.ends["reward"] = 1
    for _ in range(2):
        with pytest.raises(SystemExit):
            run_stage(REWARD, "abc")
    assert processes.commands[0] == processes.commands[1]


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [(3, 3, "exit code 3"), (-9, 137, "ended by signal 9; perhaps memory ran out"), (-15, 143, "ended by signal 15")],
)
def test_a_failed_stage_stops_with_its_exit_code_and_says_how_to_try_again(processes, capsys, end, code, said):
    processes.ends["judge"] = end
    with pytest.raises(SystemExit) as stopped:
        run_stage(JUDGE, "abc")
    assert stopped.value.code == code
    printed = capsys.readouterr().out
    assert f"The stage 'judge' failed ({said})" in printed
    assert "python recipes/reward.py --config recipes/configs/quickstart_judge.yaml" in printed
    assert "`make quickstart` goes on from here" in printed


def test_ctrl_c_in_a_stage_is_not_called_a_failure(processes, capsys):
    processes.ends["ppo"] = 130
    with pytest.raises(SystemExit) as stopped:
        run_stage(PPO, "abc")
    assert stopped.value.code == 130
    assert "failed" not in capsys.readouterr().out


# ---- all stages


def test_a_first_call_runs_all_stages_in_order_and_a_second_none(main, processes, capsys):
    main()
    assert processes.names == ["reward", "judge", "before", "ppo", "after"]
    capsys.readouterr()
    main()
    assert len(processes.commands) == 5
    assert capsys.readouterr().out.count(": done before") == 5


def test_a_call_after_a_failure_begins_with_the_stage_that_failed(main, processes):
    processes.ends["ppo"] = 1
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert processes.names == ["reward", "judge", "before", "ppo"]
    assert not (quickstart.RUN_DIR / "metrics.json").exists()
    processes.ends.clear()
    main()
    assert processes.names[4:] == ["ppo", "after"]
    assert processes.commands[4][-2:] == ["--resume_from_checkpoint", "auto"]
    assert json.loads((quickstart.RUN_DIR / "metrics.json").read_text()) == {"total_seconds": 1.0}


def test_an_edited_yaml_runs_its_stage_again_and_those_that_rest_on_it(main, processes):
    main()
    PPO.config.write_text(PPO.config.read_text() + "kl_coef: 0.2\n")
    main()
    assert processes.names[5:] == ["ppo", "after"]
    assert "--resume_from_checkpoint" not in processes.commands[5]


def test_without_the_starter_kit_nothing_is_run(main, processes, monkeypatch):
    monkeypatch.setattr("rlhf_recipes.data.starter.__main__.main", lambda argv: 4)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 4
    assert processes.commands == []


def test_outside_of_the_projects_folder_it_says_where_to_go(main, processes, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(SystemExit, match=r"No folder recipes/configs here. Run it in the folder of the project"):
        main()
    assert list(elsewhere.iterdir()) == []
    assert processes.commands == []


# ---- the figures


def leave(name, metrics, completions=()):
    run = quickstart.RUN_DIR / name
    run.mkdir(parents=True, exist_ok=True)
    (run / "metrics.json").write_text(json.dumps(metrics))
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in completions]
    (run / "completions.jsonl").write_text("".join(lines), encoding="utf-8")


def written(prompt, reward_model, judge, vader, completion="fine"):
    scores = {"reward_model": reward_model, "judge": judge, "vader": vader}
    return {"prompt": prompt, "completion": completion, "scores": scores}


@pytest.fixture
def ended():
    """What five stages would leave, with numbers that can be added up in the head."""
    cost = {"seconds": 100.0, "peak_memory_gb": 1.5}
    quality = {"pairwise_accuracy": 0.82, "single_rater_accuracy": 0.89, "vader_accuracy": 0.69}
    leave("reward", {**quality, **cost, "pearson": 0.7})
    leave("judge", {**quality, **cost, "peak_memory_gb": 3.25})
    leave("before", {**cost, "seconds": 40.5, "kl": 0.0, "distinct_2": 0.75}, [
        written("The film", -1.0, 0.0, 0.25),
        written("It was", 1.0, -1.0, -0.25, "a line\u2028and\x85another\n"),
    ])  # fmt: skip
    leave("after", {**cost, "seconds": 60.0, "kl": 4.5, "distinct_2": 0.625}, [
        written("The film", 0.5, 0.5, 0.75),
        written("It was", 2.5, -0.5, 0.25),
    ])  # fmt: skip
    leave("ppo", {"seconds": 400.0, "peak_memory_gb": 2.5, "episodes": 640, "objective/kl": 4.0})


def test_figures_by_hand(ended):
    metrics = collect_metrics()
    assert metrics["reward_model"] == {
        "pairwise_accuracy": 0.82,
        "single_rater_accuracy": 0.89,
        "vader_accuracy": 0.69,
        "seconds": 100.0,
        "peak_memory_gb": 1.5,
    }
    assert metrics["ppo"] == {
        "prompts": 2,
        "score_before": 0.0,
        "score_after": 1.5,
        "gain": 1.5,
        "gain_ci95": [1.5, 1.5],  # both prompts gained as much
        "judge_before": -0.5,
        "judge_after": 0.0,
        "judge_gain": 0.5,
        "judge_gain_ci95": [0.5, 0.5],
        "vader_before": 0.0,
        "vader_after": 0.5,
        "vader_gain": 0.5,
        "vader_gain_ci95": [0.5, 0.5],
        "kl": 4.5,
        "distinct2_before": 0.75,
        "distinct2_after": 0.625,
        "episodes": 640,
        "seconds": 400.0,
        "peak_memory_gb": 2.5,
    }
    assert metrics["total_seconds"] == 100 + 100 + 40.5 + 400 + 60
    assert metrics["peak_memory_gb"] == 3.25
    assert metrics["commands"][0] == "make quickstart"
    assert metrics["commands"][4] == "python recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml"


def test_the_figures_are_printed_in_words(ended, capsys):
    quickstart.print_figures(collect_metrics(), Path("runs/quickstart/report.html"))
    printed = capsys.readouterr().out
    for words in (
        "orders 82.0% of held-out pairs",
        "+0.00 -> +1.50: gain +1.50, 95% interval [+1.50, +1.50], on 2 held-out prompts",
        "-0.50 -> +0.00: gain +0.50",
        "4.50 nats per completion; distinct-2 0.750 -> 0.625",
        "640 episodes; 11.7 minutes for all stages, 3.2 GB at most",
        "Report: runs/quickstart/report.html",
    ):
        assert words in printed


def test_two_measurements_of_different_prompts_are_not_compared(ended):
    leave("after", {"seconds": 1, "peak_memory_gb": 1, "kl": 0, "distinct_2": 1}, [written("Other", 1, 1, 1)])
    with pytest.raises(SystemExit, match="different prompts"):
        collect_metrics()


def test_stages_name_recipes_that_exist():
    for stage in STAGES:
        assert isinstance(stage, Stage)
        assert (PROJECT / "recipes" / f"{stage.recipe}.py").is_file()
        assert (PROJECT / stage.config).is_file()
