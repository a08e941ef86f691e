"""The worked example of a loss in docs/adding.md, carried out on a copy of the library: a model is trained with it."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

from tests.launching import run_whole
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

PROJECT = Path(__file__).parents[1]


def blocks(heading):
    """The code blocks below a heading of the page: language, the path that its first line names, and the rest."""
    section = (PROJECT / "docs/adding.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    for language, body in re.findall(r"^```(\w+)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        first, _, rest = body.partition("\n")
        yield (language, first.removeprefix("# "), rest) if first.startswith("# ") else (language, "", body)


def add_lines(text, diff):
    """Put each line of a diff that begins with a plus behind the line above it, which is in the text once."""
    above = ""
    for line in diff.splitlines():
        if line.startswith("+"):
            assert text.count(f"{above}\n") == 1, above
            text = text.replace(f"{above}\n", f"{above}\n{line[1:]}\n")
        above = line[1:]
    return text


def test_a_model_is_trained_with_a_loss_that_was_added_as_the_page_says(tmp_path):
    for name in ("rlhf_recipes", "recipes"):
        shutil.copytree(PROJECT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = ""
    for language, path, body in blocks("A loss"):
        if language == "python":
            (tmp_path / path).write_text(body)
        elif language == "diff":
            (tmp_path / path).write_text(add_lines((tmp_path / path).read_text(), body))
        else:
            settings += body
    tokenizer = tiny_tokenizer("bert")
    save_tiny(tmp_path / "model", tiny_classifier(tokenizer), tokenizer)
    (tmp_path / "pairs").mkdir()
    for split, word in (("train", "film"), ("test", "plot")):
        rows = [json.dumps({"chosen": f"good {word} {row}", "rejected": f"bad {word} {row}"}) for row in range(8)]
        (tmp_path / f"pairs/{split}.jsonl").write_text("\n".join(rows))
    (tmp_path / "run.yaml").write_text(
        f"{settings}dataset_name: pairs\nmodel_name_or_path: model\noutput_dir: run\nuse_cpu: true\ncard: false\n"
        "disable_tqdm: true\nlearning_rate: 0.01\nnum_train_epochs: 2\n"
    )
    command = [sys.executable, "recipes/reward.py", "--config", "run.yaml"]
    result = run_whole(command, 200, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert result.returncode == 0, result.stderr
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert (metrics["loss"], metrics["pairwise_accuracy"]) == ("exponential", 1.0)
