"""The comparison of methods runs cell by cell, goes on, and says what it promises."""

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

from tests.recipes.tiny_runs import make_place

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(PROJECT / "benchmarks")
        yield importlib.import_module("compression")
    sys.modules.pop("compression", None)


def test_cells_are_kept_and_pooled_over_seeds(script, tmp_path, capsys):
    place = make_place(tmp_path / "place")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f"model_name_or_path: {place / 'policy'}\ndataset_name: {place / 'ratings'}\noutput_dir: unused\n"
        "use_cpu: true\nbf16: false\nlatency_seconds: 0.0\nlearning_rate: 1.0e-2\nper_device_train_batch_size: 4\n"
        "disable_tqdm: true\n"
    )
    words = [
        "--config",
        str(config),
        "--methods",
        "shortgpt",
        "magnitude",
        "--budgets",
        "0.6",
        "--seeds",
        "0",
        "1",
        "--output",
        str(tmp_path / "out"),
    ]
    script.main(words)
    said = capsys.readouterr()
    report = json.loads(said.out)
    assert "| budget | method |" in said.err
    assert [(row["budget"], row["method"]) for row in report["results"]] == [(0.6, "shortgpt"), (0.6, "magnitude")]
    of_seeds = [
        json.loads((tmp_path / f"out/seed-{seed}/cells/magnitude-60/cell.json").read_text())["after"]["perplexity"]
        for seed in (0, 1)
    ]
    assert of_seeds[0] != of_seeds[1]
    healed = report["results"][1]["after"]["perplexity"]
    assert (healed["min"], healed["max"]) == (min(of_seeds), max(of_seeds))
    low, high = report["results"][1]["first_against_this"]["perplexity_ci95"]
    assert low <= report["results"][1]["first_against_this"]["perplexity"] <= high
    # A cell that is missing is made again, the others stay.
    kept = tmp_path / "out/seed-0/cells/shortgpt-60/cell.json"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out/seed-1/cells/magnitude-60")
    script.main(words)
    again = json.loads(capsys.readouterr().out)
    assert kept.stat().st_mtime_ns == before
    assert [row["after"] for row in again["results"]] == [row["after"] for row in report["results"]]
