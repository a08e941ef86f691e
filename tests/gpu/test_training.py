"""PPO on a GPU: it learns, it resumes exactly, and an adapter learns on a base in 4 bit."""

import pytest
import torch

from rlhf_recipes.modeling.loading import ModelArguments, load_policy
from tests.gpu.readings import TOKENIZER, policy_of
from tests.ppo.helpers import AtStep, largest_difference, logged, trainer, weights
from tests.tiny import save_tiny

pytestmark = pytest.mark.gpu


def run(folder, model=None, **options):
    options = {"use_cpu": False, "bf16": False, "optim": "adamw_torch", "learning_rate": 0.01} | options
    return trainer(folder, policy_of() if model is None else model, tokenizer=TOKENIZER, **options)


@pytest.mark.parametrize("bf16", [False, True])
def test_it_learns(tmp_path, bf16):
    ppo = run(tmp_path, bf16=bf16, total_episodes=8 * 20, kl_coef=0.0)
    ppo.train()
    assert ppo.roles.policy.device.type == "cuda"
    scores = [entry["objective/scores"] for entry in logged(ppo)]
    assert sum(scores[-5:]) > sum(scores[:5])


def test_stopped_and_resumed_equals_never_stopped(tmp_path):
    plain = {
        "optim": "sgd",
        "learning_rate": 0.1,
    }  # Adam makes steps of what atomic additions leave of a gradient of 0
    whole = run(tmp_path / "whole", **plain)
    start = weights(whole)
    whole.train()
    run(tmp_path / "cut", kept=[AtStep("should_save", 3), AtStep("should_training_stop", 3)], **plain).train()
    resumed = run(tmp_path / "cut", **plain)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-5
    assert largest_difference(start, weights(whole)) > 1e-3


@pytest.mark.parametrize("critic", ["head", "policy"])
def test_adapters_learn_on_a_4_bit_base_that_stays(tmp_path, critic):
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: nothing was tried in 4 bit")
    save_tiny(tmp_path / "base", policy_of(), TOKENIZER)
    policy = load_policy(ModelArguments(str(tmp_path / "base"), load_in_4bit=True, use_peft=True, lora_r=4,
                                        lora_target_modules=["q_proj", "v_proj"]))  # fmt: skip
    ppo = run(tmp_path / "run", policy, bf16=True, critic=critic)
    before = {name: p.detach().clone() for name, p in ppo.roles.named_parameters()}
    assert any(p.dtype == torch.uint8 for p in before.values())
    ppo.train()
    for name, parameter in ppo.roles.named_parameters():
        if "lora_B" in name:
            assert not torch.equal(parameter, before[name].to(parameter.device)), name
        elif not parameter.requires_grad:
            assert torch.equal(parameter, before[name].to(parameter.device)), name
