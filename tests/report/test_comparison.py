"""Several runs on one page: curves in the same axes, figures side by side, what differs, and the same prompts."""

from pathlib import Path

import pytest

from rlhf_recipes.report import ReportError, write_report
from rlhf_recipes.report.__main__ import main
from rlhf_recipes.statistics import paired_gain
from tests.report.quickstart.test_page import Page
from tests.report.runs import evaluate_run, ppo_run

pytestmark = pytest.mark.usefixtures("undrawn")


def page_of(*folders: Path) -> Page:
    page = Page(write_report(*folders).read_text(encoding="utf-8"))
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    return page


def test_curves_figures_and_settings_of_two_runs(tmp_path: Path) -> None:
    one, other = ppo_run(tmp_path / "one"), ppo_run(tmp_path / "other", lift=2.0, kl_coef=0.2)
    page = page_of(one, other)
    words = page.spaced()
    assert (tmp_path / "comparison.html").is_file()
    assert "2 runs side by side" in words
    assert "Score weighted sum of all rewards, mean over a rollout 1.50 2.50" in words
    assert "Time 1 min 1 s 1 min 1 s" in words
    assert "kl_coef 0.05 0.2" in words
    assert "dataset_name" not in words  # it is the same
    labels = [attributes["aria-label"] or "" for tag, attributes in page.tags if tag == "svg"]
    assert any("one from 0.5 to 1.5; other from 0.5 to 2.5" in label for label in labels)
    assert any("one from 0 to 3; other from 0 to 3" in label for label in labels)  # KL


def test_the_same_prompts_before_and_after(tmp_path: Path) -> None:
    before, after = [0.0, 1.0, 2.0, 1.5], [1.0, 1.5, 4.0, 1.0]
    page = page_of(evaluate_run(tmp_path / "before", before), evaluate_run(tmp_path / "after", after))
    words = page.spaced()
    low, high = (f"{bound:+.2f}".replace("-", "−") for bound in paired_gain(before, after)["gain_ci95"])
    assert f"judge 1.12 1.88 +0.75 [{low}, {high}]" in words
    assert "seldom – – – –" in words
    best = words[words.index("Best changes") : words.index("Worst changes")]
    assert best.index("The film 2") < best.index("The film 0")
    assert "+2.00" in best
    assert "All 4 prompts" in words
    assert "No option differs." in words


def test_other_prompts_have_no_intervals(tmp_path: Path) -> None:
    three = evaluate_run(tmp_path / "three", [0.0, 1.0, 2.0])
    two = evaluate_run(tmp_path / "two", [0.0, 1.0])
    words = page_of(three, two).spaced()
    assert "judge 1.00 0.50 −0.50 –" in words
    assert "2 prompts" in words  # those that both have answered
    assert "Best changes" not in words
    assert "no such prompt" in page_of(three, two, evaluate_run(tmp_path / "again", [0.0, 1.0, 2.0])).spaced()


def test_more_than_two_runs_and_folders_of_one_name(tmp_path: Path) -> None:
    folders = [evaluate_run(tmp_path / name / "run", [float(place), 1.0]) for place, name in enumerate("abc")]
    words = page_of(*folders).spaced()
    assert "3 runs side by side" in words
    assert "figure a/run b/run c/run" in words
    assert "judge 0.50 1.00 1.50" in words


def test_the_command_takes_several_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(evaluate_run(tmp_path / name, [1.0, 2.0])) for name in ("a", "b")]
    assert main([*runs, "--output", str(tmp_path / "new/page.html")]) == 0
    assert capsys.readouterr().out.startswith(f"Report: {tmp_path}/new/page.html (")
    with pytest.raises(SystemExit):
        main([runs[0], str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err
    with pytest.raises(ReportError, match="There is no run to write a page of"):
        write_report()
