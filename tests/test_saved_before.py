"""What version 0.1.0 left on people's disks still loads, and means what it meant.

`saved_by_0_1_0/` was written by that version on tiny models: a reward model, a linear one, and a run of PPO that was
stopped after its second rollout, with the weights that the same run had when it went on to its end. Tokens are drawn
in another way now, and so a run of 0.1.0 is not gone on with.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LogitsProcessor

from rlhf_recipes.ppo.run.checkpoint import refuse_other_settings
from rlhf_recipes.rewards import load_reward
from tests.recipes.tiny_runs import load_main

SAVED = Path(__file__).with_name("saved_by_0_1_0")


@pytest.mark.parametrize("kind", ["reward", "linear"])
def test_a_reward_model_gives_the_scores_that_it_gave(kind):
    expected = json.loads((SAVED / "scores.json").read_text())
    texts = expected["completions"]
    batch = {"prompts": [""] * len(texts), "completions": texts, "completion_ids": [[1]] * len(texts)}
    assert load_reward(str(SAVED / kind))(**batch) == pytest.approx(expected["scores"][kind], abs=1e-4)


class GumbelDraw(LogitsProcessor):
    """How 0.1.0 drew: the largest of logits and Gumbel noise, from a stream of its own for each row."""

    def __init__(self, row_keys, prompt_width, temperature, warpers, own_logits):
        assert not warpers
        self.temperature, self.logprobs = temperature, []
        self.streams = [torch.Generator().manual_seed(key) for key in row_keys]

    def __call__(self, input_ids, scores):
        scores = scores / self.temperature
        noise = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=stream) for stream in self.streams])
        drawn = scores - noise.clamp(min=torch.finfo(torch.float32).tiny).log()
        self.logprobs.append(scores.log_softmax(dim=-1).gather(1, drawn.argmax(dim=-1, keepdim=True)).squeeze(1))
        return drawn


@pytest.fixture
def place(tmp_path, monkeypatch):
    place = shutil.copytree(SAVED, tmp_path / "place")
    monkeypatch.chdir(place)
    return place


def test_a_run_goes_on_from_its_checkpoint_to_the_same_end(place, monkeypatch):
    """All but the draw: what is restored is enough for the end that 0.1.0 came to, if tokens are drawn alike."""
    monkeypatch.setattr("rlhf_recipes.modeling.generation.local.KeyedDraw", GumbelDraw)
    monkeypatch.setattr("rlhf_recipes.modeling.generation.DRAW", "Gumbel noise")
    load_main("ppo")(["--config", "ppo/config.yaml", "--resume_from_checkpoint", "auto"])
    after, expected = load_file(place / "ppo/model.safetensors"), load_file(SAVED / "ppo_at_the_end.safetensors")
    assert after.keys() == expected.keys()
    for name, tensor in expected.items():
        assert after[name] == pytest.approx(tensor, abs=2e-5), name
    before = load_file(SAVED / "ppo/checkpoint-2/model.safetensors")
    assert all((before[name] - tensor).abs().max() > 2e-4 for name, tensor in expected.items())


def test_a_run_whose_tokens_were_drawn_otherwise_is_not_gone_on_with_but_its_weights_begin_another(place):
    with pytest.raises(
        ValueError, match="how tokens are drawn: Gumbel noise in the checkpoint, inverse CDF now"
    ) as no:
        load_main("ppo")(["--config", "ppo/config.yaml", "--resume_from_checkpoint", "auto"])
    assert "name the checkpoint as the model" in str(no.value)
    options = ["--model_name_or_path", "ppo/checkpoint-2", "--output_dir", "another", "--total_episodes", "4"]
    load_main("ppo")(["--config", "ppo/config.yaml", *options])
    assert (place / "another/model.safetensors").is_file()


def test_where_a_generator_of_the_users_own_draws_a_run_goes_on():
    refuse_other_settings("run", {"seed": 1}, {"seed": 1, "draw": None})
    refuse_other_settings("run", {"seed": 1, "draw": None}, {"seed": 1, "draw": "inverse CDF"})
    with pytest.raises(ValueError, match="how tokens are drawn") as no:
        refuse_other_settings("run", {"seed": 1}, {"seed": 1, "draw": "inverse CDF"})
    assert "seed" not in str(no.value)
