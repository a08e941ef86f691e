"""docs/adding.md, carried out: a format of feedback is added to a copy of the library, and rows of it are used."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

PROJECT = Path(__file__).parents[1]
SECTION = re.search(r"^## A feedback format$.*?(?=^## |\Z)", (PROJECT / "docs/adding.md").read_text(), re.M | re.S)[0]
ROWS = [
    {"completion": "a fine film", "likes": 3, "dislikes": 0},
    {"completion": "a dull film", "likes": 0, "dislikes": 1},
    {"completion": "nobody saw it", "likes": 0, "dislikes": 0},
]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A copy of the library with the new file of the page, and the change that it shows."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(PROJECT / "rlhf_recipes", folder / "rlhf_recipes", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(PROJECT / "recipes", folder / "recipes")
    for name, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```", SECTION, re.M | re.S):
        assert not (folder / name).exists()
        (folder / name).write_text(code)
    ((name, diff),) = re.findall(r"^```diff\n# (\S+)\n(.*?)^```", SECTION, re.M | re.S)
    text = (folder / name).read_text()
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
        assert text.count(before) == 1
        text = text.replace(before, after)
    (folder / name).write_text(text)
    (folder / "rows").mkdir()
    for split in ("train", "test"):
        rows = [row | {"completion": f"{split}: {row['completion']}"} for row in ROWS]
        (folder / "rows" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(library, *command):
    environment = os.environ | {"PYTHONPATH": str(library), "HF_DATASETS_CACHE": str(library / "cache")}
    done = subprocess.run([sys.executable, *command], cwd=library, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_rows_of_the_new_format_are_recognized_checked_and_converted(library):
    said = run(
        library, "-m", "rlhf_recipes.data.feedback", "--dataset_name", "rows", "--splits", "train",
        "--convert_to", "unpaired", "--convert_args", '{"prior": 1}', "--output_dir", "labels",
    )  # fmt: skip
    assert "train: reactions (completion, likes, dislikes; text, without prompt)\n2 of 3 rows can be used." in said
    assert "left out        1  never shown" in said
    made = [json.loads(line) for line in (library / "labels/train.jsonl").read_text().splitlines()]
    assert made == [
        {"completion": "train: a fine film", "label": pytest.approx(4 / 5)},
        {"completion": "train: a dull film", "label": pytest.approx(1 / 3)},
    ]


@pytest.mark.slow
def test_a_reward_model_is_trained_on_the_new_format(library):
    tokenizer = tiny_tokenizer("bert")
    save_tiny(library / "tiny", tiny_classifier(tokenizer), tokenizer)
    rows = ["--dataset_name", "rows", "--convert_to", "unpaired", "--validation_split", "none"]
    model = ["--model_name_or_path", "tiny", "--output_dir", "out", "--use_cpu", "--num_train_epochs", "1"]
    run(library, "recipes/reward.py", *rows, *model, "--card", "false")
    assert json.loads((library / "out/metrics.json").read_text())["loss"] == "binary_cross_entropy"
