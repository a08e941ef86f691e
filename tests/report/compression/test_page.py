"""What the page of a compression shows of its plain data; a real run is in `tests/recipes/test_compress.py`."""

import json

import pytest

from rlhf_recipes.errors import ReportError
from rlhf_recipes.report import write_report

LAYER = {"heads": [0, 1], "neurons": [0, 1, 2, 3], "bits": 16}
HALF = {"heads": [1], "neurons": [0, 2], "bits": 4}
COSTS = {"parameters": 200, "non_embedding_prefill_flops": 1000, "bytes": 800}


def cell(method, layers, merged=(), **more):
    figures = {
        "perplexity": 40.0,
        "perplexity_ci95": [30.0, 50.0],
        "token_accuracy": 0.25,
        "token_accuracy_ci95": None,
    }
    return {
        "method": method,
        "budget": 0.5,
        "structure": {"layers": layers, "merged": list(merged), "vocabulary": None},
        "cost": 0.4321,
        "costs": {name: value / 4 for name, value in COSTS.items()},
        "quality": 0.03,
        "reward": 0.02,
        "evaluations": 7,
        "search_log": [],
        "front": [],
        "before": figures | {"perplexity": 90.5},
        "after": figures,
        "latency": {"seconds": {}, "ratio": 0.625, "rounds": 5},
        "seconds": {"choosing": 1.0, "healing": 2.0, "all": 3.0},
        "samples": [{"prompt": "The <b>film</b>", "completion": f" by {method}"}],
        "log": [
            {"loss": 3.5, "step": 1, "epoch": 0.5},
            {"quality": 0.031, "cost": 0.4321, "reward": 0.027, "step": 2, "epoch": 1.0},
        ],
    } | more


@pytest.fixture
def folder(tmp_path):
    whole = {
        "costs": COSTS,
        "figures": {"perplexity": 20.0, "perplexity_ci95": None, "token_accuracy": 0.5, "token_accuracy_ci95": None},
        "samples": [{"prompt": "The <b>film</b>", "completion": " as it was"}],
        "heads": 2,
        "neurons": 4,
        "layers": 3,
        "quality": 0.05,
        "quality_name": "likelihood",
    }
    search = [{"evaluations": 3, "best_reward": 0.01, "reward": 0.005, "entropy": 4.0},
              {"evaluations": 7, "best_reward": 0.02, "reward": 0.015, "entropy": 3.0}]  # fmt: skip
    cells = [cell("search", [LAYER, None, HALF], search_log=search, front=[{"cost": 0.4, "quality": 0.03}]),
             cell("shortgpt", [LAYER, None, LAYER], [{"layers": [0, 1], "weights": [0.0, 1.0]}],
                  first_against_this={"perplexity": 0.875, "perplexity_ci95": [0.75, 0.9375], "token_accuracy": 0.0,
                                      "token_accuracy_ci95": None})]  # fmt: skip
    found = {"original": whole, "cells": cells, "cost": {"bytes": 1.0}, "delta": ["hinge", 20.0]}
    (tmp_path / "compression.json").write_text(json.dumps(found))
    (tmp_path / "metrics.json").write_text('{"healed_perplexity": 40.0}')
    (tmp_path / ".recipe").write_text("compress\n")
    (tmp_path / "config.yaml").write_text("budgets: [0.5]\n")
    return tmp_path


def test_figures_stand_there_as_in_the_file(folder):
    page = write_report(folder).read_text()
    for value in (0.4321, 40.0, 90.5, 20.0, 0.625, 0.25, 0.875, 0.9375, 0.031, 0.027):
        assert f'<data value="{value}">' in page, value
    for words in ("Quality against cost", "Dropped: 1", "merged: 1 into 0", "layer 2: 1 heads, 2 neurons, 4 bits",
                  "search against the others", "Best R", "by shortgpt", "as it was", "How to repeat it"):  # fmt: skip
        assert words in page, words
    assert "<b>film</b>" not in page  # what a model reads and writes is text
    assert "&lt;b&gt;film" in page


def test_a_file_that_is_not_whole_is_named(folder):
    (folder / "compression.json").write_text('{"original": {}, "cells": []}')
    with pytest.raises(ReportError, match=r"compression\.json lacks what the page shows .*Mend"):
        write_report(folder)
