"""What draws at random in training is found, switched off where it can be, and named where it cannot."""

import logging
import random

import pytest
import torch

from rlhf_recipes.modeling.checks.randomness import switch_off_randomness
from rlhf_recipes.modeling.critics import ValueModel
from rlhf_recipes.modeling.loading import disable_dropout
from rlhf_recipes.modeling.roles import ActorCritic
from tests.architectures import tiny_model
from tests.modeling.checks.test_shortcuts import BATCH, REAL
from tests.ppo.helpers import TOKENIZER
from tests.tiny import tiny_classifier

NOISE = {"hidden_dropout": 0.1, "router_jitter_noise": 0.1, "input_jitter_noise": 0.1}


def noisy(name):
    model = tiny_model(name, **NOISE)
    disable_dropout(model)
    roles = ActorCritic(model, model, critic=False)
    with torch.no_grad():
        steady = roles.eval()(**BATCH, temperature=1.0)["logprobs"][REAL]
        drawn = roles.train()(**BATCH, temperature=1.0)["logprobs"][REAL]
    assert (drawn - steady).abs().mean() > 1e-3
    return roles.eval(), steady


@pytest.mark.parametrize(
    ("name", "said"),
    [("falcon", "hidden_dropout 0.1"), ("mixtral", "MixtralSparseMoeBlock"), ("phimoe", "PhimoeTopKRouter")],
)
def test_after_it_training_says_what_evaluation_says(name, said, caplog):
    roles, steady = noisy(name)
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        assert switch_off_randomness(roles, BATCH, 1.0) == []
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]
    roles.train().train()  # as often as a trainer calls it
    with torch.no_grad():
        assert torch.equal(roles(**BATCH, temperature=1.0)["logprobs"][REAL], steady)


def test_layers_that_read_dropout_from_the_configuration_stay_in_training():
    """In evaluation mode they would no longer compute their activations again in the backward pass."""
    roles, _ = noisy("falcon")
    switch_off_randomness(roles, BATCH, 1.0)
    assert roles.policy.config.hidden_dropout == 0
    assert all(module.training for module in roles.train().policy.modules())


def test_a_steady_policy_stays_as_it_is_and_no_random_number_is_taken(caplog):
    roles = ActorCritic(tiny_model("llama"), reference_is_base=True).eval()
    before = torch.get_rng_state()
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        assert switch_off_randomness(roles, BATCH, 1.0) == []
    assert not caplog.messages
    assert torch.equal(torch.get_rng_state(), before)
    assert not roles.training
    assert all(module.training for module in roles.train().modules())


def test_what_cannot_be_switched_off_is_named():
    roles = ActorCritic(tiny_model("llama"), reference_is_base=True).eval()
    noise = random.Random(0)
    norm = roles.policy.model.norm
    hook = norm.register_forward_hook(lambda module, _, out: out + (module.training and noise.random()))
    causes = switch_off_randomness(roles, BATCH, 1.0)
    assert len(causes) == 1
    assert "LlamaForCausalLM computes something else in training mode than in evaluation mode" in causes[0]
    hook.remove()
    norm.register_forward_hook(lambda module, _, out: out + torch.randn(()))
    (cause,) = switch_off_randomness(roles, BATCH, 1.0)
    assert cause == "LlamaForCausalLM draws at random in model.norm, in evaluation mode too"


def test_a_critic_of_its_own_is_made_steady_too():
    critic = ValueModel(tiny_classifier(TOKENIZER, kind="llama"))
    norm = critic.model.model.norm
    norm.register_forward_hook(lambda module, _, out: torch.dropout(out, 0.5, module.training))
    roles = ActorCritic(tiny_model("llama"), reference_is_base=True, critic=critic).eval()
    switch_off_randomness(roles, BATCH, 1.0)
    assert not roles.train().critic.model.model.norm.training
    assert roles.policy.model.norm.training
