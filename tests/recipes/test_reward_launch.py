"""`recipes/reward.py` on two processes against one: the same weights, whatever the rows weigh."""

import json
import os
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.launching import run_whole
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Lists of 2 to 5 texts with weights, so that the two processes have different shares of the loss."""
    folder = tmp_path_factory.mktemp("place")
    tokenizer = tiny_tokenizer("bert")
    save_tiny(folder / "model", tiny_classifier(tokenizer), tokenizer)
    (folder / "rankings").mkdir()
    for split, first in (("train", 0), ("test", 100)):
        rows = [
            {
                "completions": [f"film {first + row} {place}" for place in range(2 + row % 4)],
                "ranks": [1 + place for place in range(2 + row % 4)],
                "weight": 1.0 + row % 3,
            }
            for row in range(16)
        ]
        (folder / f"rankings/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def train(place, out, processes):
    options = {
        "dataset_name": place / "rankings",
        "model_name_or_path": place / "model",
        "validation_split": "null",
        "per_device_train_batch_size": 8 // processes,
        "train_sampling_strategy": "sequential",
        "num_train_epochs": 2,
        "optim": "sgd",
        "learning_rate": 0.5,
        "max_grad_norm": 0.05,
        "bf16": False,
        "use_cpu": True,
        "card": False,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "output_dir": out,
    }
    start = [sys.executable]
    if processes > 1:
        start += [
            "-m",
            "accelerate.commands.accelerate_cli",
            "launch",
            "--config_file",
            "accelerate_configs/cpu_2.yaml",
        ]
        start += ["--main_process_port", "0"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    own = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "RLHF_RECIPES_DEBUG": "1", "PYTHONPATH": str(ROOT)}
    done = run_whole([*start, "recipes/reward.py", *words], 280, cwd=ROOT, env={**os.environ, **own})
    assert done.returncode == 0, done.stderr[-5000:]
    return load_file(out / "model.safetensors")


@pytest.mark.slow
def test_two_processes_give_what_one_gives(place, tmp_path):
    one, two = train(place, tmp_path / "one", 1), train(place, tmp_path / "two", 2)
    before = load_file(place / "model/model.safetensors")
    assert max((one[name] - before[name]).abs().max().item() for name in one) > 1e-3
    assert max((one[name] - two[name]).abs().max().item() for name in one) < 2e-6
