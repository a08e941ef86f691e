"""Killed while its first checkpoint is written, every recipe begins anew and says so."""

import json
import logging

import pytest

from rlhf_recipes.checkpoints import find_checkpoint, why_broken
from tests.recipes.tiny_runs import flags, load_main, make_place, write_splits

SHORT = {
    "per_device_train_batch_size": 2, "learning_rate": 0.01, "seed": 0, "use_cpu": True, "bf16": False,
    "save_strategy": "steps", "save_steps": 1, "logging_steps": 1, "disable_tqdm": True,
}  # fmt: skip
PROMPTS = {"max_completion_length": 4, "reward_funcs": "EndsWithSentence"}
BY_RECIPE = {
    "ppo": PROMPTS | {"dataset_name": "prompts", "total_episodes": 4, "num_ppo_epochs": 1},
    "grpo": PROMPTS | {"dataset_name": "prompts", "max_steps": 2, "num_generations": 2},
    "rloo": PROMPTS | {"dataset_name": "prompts", "max_steps": 2, "num_generations": 2},
    "sft": {"dataset_name": "ratings", "max_steps": 2},
    "dpo": {"dataset_name": "pairs", "max_steps": 2},
    "reward": {"dataset_name": "ratings", "max_steps": 2, "card": False, "loss": "mse"},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = make_place(tmp_path_factory.mktemp("place"))
    rows = [{"chosen": f"The film {row} is good", "rejected": f"The film {row} is bad"} for row in range(16)]
    write_splits(folder / "pairs", rows)
    return folder


@pytest.mark.parametrize("recipe", BY_RECIPE)
def test_it_begins_anew_and_says_so(recipe, place, tmp_path, caplog):
    model = place / ("judge" if recipe == "reward" else "policy")
    options = SHORT | BY_RECIPE[recipe] | {"model_name_or_path": model, "output_dir": tmp_path / "out"}
    options["dataset_name"] = place / options["dataset_name"]
    # What lies there when the process is killed in the middle: some files whole, one cut off, the last not there.
    first = tmp_path / "out/checkpoint-1"
    first.mkdir(parents=True)
    (tmp_path / "out/.recipe").write_text(f"{recipe}\n")
    (first / "config.json").write_text("{}")
    (first / "optimizer.pt").write_bytes(b"PK\x03\x04 cut off")
    caplog.set_level(logging.WARNING, "rlhf_recipes")
    load_main(recipe)(flags(options, "--resume_from_checkpoint", "auto"))
    assert "No checkpoint was ever finished (checkpoint-1 is not whole: it has no trainer_state.json" in caplog.text
    assert json.loads((first / "trainer_state.json").read_text())["global_step"] == 1
    assert why_broken(first) is None  # nothing of the interrupted one is among its files
    assert (tmp_path / "out/interrupted-checkpoint-1/optimizer.pt").read_bytes() == b"PK\x03\x04 cut off"
    assert find_checkpoint(tmp_path / "out", "auto") == str(tmp_path / "out/checkpoint-2")
