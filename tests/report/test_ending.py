"""What every recipe leaves behind, and that a page never costs a run."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from rlhf_recipes.report import end_run, write_figures
from rlhf_recipes.report.ending import describe_environment


def test_figures_versions_log_and_page_are_written(tmp_path: Path) -> None:
    log = [{"step": 1, "loss": np.float32(2.0)}, {"step": 2, "loss": float("nan")}]
    end_run(tmp_path, {"loss": 2.0}, log, [{"prompt": "a", "completion": "b", "score": float("inf")}])
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"loss": 2.0}
    assert json.loads((tmp_path / "log_history.json").read_text())[1] == {"step": 2, "loss": None}
    assert json.loads((tmp_path / "completions.jsonl").read_text())["score"] is None
    assert set(json.loads((tmp_path / "environment.json").read_text())["versions"]) >= {"torch", "trl"}
    assert '<data value="2.0">2</data>' in (tmp_path / "report.html").read_text()


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "report.html").mkdir()
    with caplog.at_level(logging.WARNING):
        end_run(tmp_path, {"loss": 2.0})
    assert "The page of this run was not written (ReportError:" in caplog.text
    assert "report.html is a folder" in caplog.text
    assert (tmp_path / "metrics.json").is_file()
    caplog.clear()
    end_run(tmp_path, {"loss": 2.0}, page=False)
    assert not caplog.text


class Trainer:
    """As far as the end of a run looks at one."""

    class state:
        log_history = [{"loss": 1.0, "step": 1}, {"train_runtime": 3.0, "step": 2}]

    def __init__(self, is_main: bool) -> None:
        self.is_main = is_main

    def is_world_process_zero(self) -> bool:
        return self.is_main


def test_the_main_process_alone_writes(tmp_path: Path) -> None:
    assert write_figures(Trainer(False), tmp_path, 0.0) == {}
    assert list(tmp_path.iterdir()) == []
    metrics = write_figures(Trainer(True), tmp_path, 0.0)
    assert (metrics["loss"], metrics["step"], metrics["train_seconds"]) == (1.0, 2, 3.0)
    assert (tmp_path / "report.html").is_file()


def test_the_environment_says_what_a_reader_needs_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = describe_environment()
    assert set(found) == {"versions", "python", "platform", "cpu_count", "device", "processes"}
    assert found["processes"] == 4
