"""What version 0.1.0 left on people's disks still loads, and means what it meant.

`saved_by_0_1_0/` was written by that version on tiny models: a reward model, a linear one, and a run of PPO that was
stopped after its second rollout, with the weights that the same run had when it went on to its end.
"""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rlhf_recipes.rewards import load_reward
from tests.recipes.tiny_runs import load_main

SAVED = Path(__file__).with_name("saved_by_0_1_0")


@pytest.mark.parametrize("kind", ["reward", "linear"])
def test_a_reward_model_gives_the_scores_that_it_gave(kind):
    expected = json.loads((SAVED / "scores.json").read_text())
    texts = expected["completions"]
    batch = {"prompts": [""] * len(texts), "completions": texts, "completion_ids": [[1]] * len(texts)}
    assert load_reward(str(SAVED / kind))(**batch) == pytest.approx(expected["scores"][kind], abs=1e-4)


def test_a_run_goes_on_from_its_checkpoint_to_the_same_end(tmp_path, monkeypatch):
    place = shutil.copytree(SAVED, tmp_path / "place")
    monkeypatch.chdir(place)
    load_main("ppo")(["--config", "ppo/config.yaml", "--resume_from_checkpoint", "auto"])
    after, expected = load_file(place / "ppo/model.safetensors"), load_file(SAVED / "ppo_at_the_end.safetensors")
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert after[name] == pytest.approx(tensor, abs=2e-5), name
    before = load_file(SAVED / "ppo/checkpoint-2/model.safetensors")
    assert all((before[name] - tensor).abs().max() > 2e-4 for name, tensor in expected.items())
