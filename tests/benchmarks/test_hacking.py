"""The benchmark of reward hacking reads the folders of runs, and says and draws what is in them."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.ppo.run.test_monitor import history, rising

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def hacking():
    """Imported as `python benchmarks/hacking.py` does: its folder comes first on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module("hacking")
    for name in ("hacking", "tiny_tasks"):
        sys.modules.pop(name, None)


def completions(folder, scores, text):
    folder.mkdir(parents=True)
    rows = [{"prompt": f"p{i}", "completion": text, "kl": 2.0, "scores": {"judge": s}} for i, s in enumerate(scores)]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_folder(folder, log):
    folder.mkdir()
    rewards = [{"func": "Vader", "name": "vader"}, {"func": "runs/judge", "name": "judge", "weight": 0.0}]
    (folder / "config.yaml").write_text(yaml.safe_dump({"reward_funcs": rewards}))
    (folder / "log_history.json").write_text(json.dumps(log + [{"train_runtime": 3.0}]))
    return folder


@pytest.fixture
def runs(tmp_path):
    hacked = run_folder(tmp_path / "hacked", history(score=rising(40), kl=2 * np.arange(40)))
    run_folder(tmp_path / "sound", history(score=rising(40), judge=rising(40)))
    completions(tmp_path / "before", [0.0, 1.0, 2.0], "one two three")
    completions(hacked / "after", [0.5, 1.0, 3.0], "two two two")
    return tmp_path


def test_it_prints_one_line_with_figures_findings_and_gains(hacking, runs, capsys):
    hacking.main([str(runs / "hacked"), str(runs / "sound"), "--before", str(runs / "before")])
    (line,) = capsys.readouterr().out.splitlines()
    report = json.loads(line)["runs"]
    hacked, sound = report["hacked"], report["sound"]
    assert {(f["kind"], f["about"]) for f in hacked["findings"]} == {("held-out", "judge"), ("kl", "budget")}
    assert sound["findings"] == []
    assert hacked["episodes"] == 64 * 40
    first, last = hacked["first_and_last_three_rollouts"]["objective/kl"]
    assert (first, last) == (pytest.approx(2, abs=1), pytest.approx(76, abs=1))
    # Gains of 0.5, 0 and 1. Three words have two pairs; those of three texts are all the same, or half of them.
    assert hacked["held_out_prompts"]["judge"]["gain"] == pytest.approx(0.5)
    assert hacked["held_out_prompts"]["distinct_2"] == {"before": pytest.approx(2 / 6), "after": pytest.approx(1 / 6)}
    assert sound["held_out_prompts"] is None


def test_it_draws_the_curves(hacking, runs, capsys):
    hacking.main([str(runs / "hacked"), str(runs / "sound"), "--plot", str(runs / "figure.png")])
    assert 5_000 < (runs / "figure.png").stat().st_size < 60_000


def test_runs_that_were_measured_on_other_prompts_are_refused(hacking, runs):
    file = runs / "before/completions.jsonl"
    file.write_text(file.read_text().replace("p1", "another"))
    with pytest.raises(SystemExit, match="were measured on different prompts"):
        hacking.main([str(runs / "hacked"), "--before", str(runs / "before")])
