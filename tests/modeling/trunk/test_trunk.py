"""The trunk read once, and the model on top of what it said: the numbers of the whole model, on many architectures."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.checks.shortcuts import check_shortcuts
from rlhf_recipes.modeling.checks.trunk import check_trunk
from rlhf_recipes.modeling.logprobs import texts_of
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.trunk.split import split_of, stack_of
from tests.architectures import BUILT, each, tiny_model
from tests.modeling.test_logprobs import THREE

REAL = THREE["mask"].bool()
# Families whose layers must be found, and which must say the same with the trunk apart.
FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gemma2", "gemma3_text", "gpt_neox", "gpt2")


def upper_half(name, **options):
    """A model of which only the upper half of the layers is trained."""
    model = tiny_model(name, **options).requires_grad_(False)
    layers = stack_of(model)
    if layers is not None:
        for layer in layers[len(layers) // 2 :]:
            layer.requires_grad_(True)
    return model


def checked(policy, reference=None):
    roles = ActorCritic(policy, reference, logits_chunk_size=5, reuse_trunk=True).eval()
    torch.nn.init.normal_(roles.critic.weight, generator=torch.Generator().manual_seed(1))
    check_shortcuts(roles, THREE, 0.7)
    check_trunk(roles, THREE, 0.7)
    return roles


@pytest.mark.parametrize("name", each(BUILT, by_default=FAMILIES))
def test_after_the_check_all_roles_say_what_the_whole_model_says(name):
    roles = checked(upper_half(name))
    if name in FAMILIES:
        assert all(roles.trunks.values())
    with torch.no_grad():
        states = roles.read_trunk(THREE)
        whole, apart = (roles(**THREE, temperature=0.7, states=s) for s in (None, states))
        of_reference = [roles.reference_logprobs(**THREE, temperature=0.7, states=s)[REAL] for s in (None, states)]
    for figure in ("logprobs", "values", "entropy"):
        torch.testing.assert_close(apart[figure][REAL], whole[figure][REAL], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*of_reference, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_are_those_of_the_whole_model_and_lower_layers_are_not_run(checkpointing):
    gradients, calls = [], []
    for apart in (False, True):
        roles = checked(upper_half("llama", num_hidden_layers=4))
        states = roles.read_trunk(THREE) if apart else None
        roles.train()
        if checkpointing:
            roles.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        hook = roles.policy.model.layers[0].mlp.register_forward_hook(lambda *_, apart=apart: calls.append(apart))
        roles(**THREE, temperature=0.7, states=states)["logprobs"].sum().backward()
        hook.remove()
        gradients.append({name: p.grad for name, p in roles.named_parameters() if p.grad is not None})
    assert calls == [False]
    assert gradients[0].keys() == gradients[1].keys()
    for name, plain in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], plain, atol=1e-5, rtol=1e-4)


def test_adapters_on_the_upper_layers_share_it_with_the_reference_below_them():
    base = tiny_model("llama", num_hidden_layers=4)
    policy = get_peft_model(base, LoraConfig(r=2, layers_to_transform=[2, 3], init_lora_weights=False))
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    expected = ActorCritic(policy, reference_is_base=True).eval()
    roles = ActorCritic(policy, reference_is_base=True, reuse_trunk=True, logits_chunk_size=64).eval()
    check_trunk(roles, THREE, 1.0)
    assert len(roles.trunks["policy"].layers) == 2
    states = roles.read_trunk(THREE)
    with torch.no_grad():
        torch.testing.assert_close(
            roles(**THREE, temperature=1.0, states=states)["logprobs"][REAL],
            expected(**THREE, temperature=1.0)["logprobs"][REAL], atol=1e-5, rtol=1e-5,
        )  # fmt: skip
    torch.testing.assert_close(
        roles.reference_logprobs(**THREE, temperature=1.0, states=states)[REAL],
        expected.reference_logprobs(**THREE, temperature=1.0)[REAL], atol=1e-5, rtol=1e-5,
    )  # fmt: skip


def test_a_reference_with_other_lower_layers_reads_them_itself_and_it_is_said(caplog):
    policy = upper_half("llama", num_hidden_layers=4)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        roles = checked(policy, other)
    assert [bool(trunk) for trunk in roles.trunks.values()] == [True, False]
    assert "Trunk: put aside for reference (LlamaForCausalLM), because its log-probabilities are" in caplog.text


def test_a_model_that_goes_back_to_its_embeddings_above_is_left_whole(caplog):
    policy = upper_half("llama", num_hidden_layers=4)
    first, last = policy.model.layers[0], policy.model.layers[-1]
    seen = []
    first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    first.mlp.register_forward_hook(lambda _, args, out: seen.append(out))
    last.register_forward_hook(lambda _, args, out: out + seen[-1] if seen[-1].shape == out.shape else out)
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        roles = checked(policy, tiny_model("llama", num_hidden_layers=4))
    assert roles.trunks == {"policy": None, "reference": None}
    assert "Trunk: put aside for policy" in caplog.text


def test_layers_that_are_freed_while_a_run_goes_on_leave_the_trunk():
    roles = checked(upper_half("llama", num_hidden_layers=4))
    assert not roles.divide_again()
    roles.policy.model.layers[1].requires_grad_(True)
    assert roles.divide_again()
    assert len(roles.trunks["policy"].layers) == 1
    roles.policy.model.layers[0].requires_grad_(True)
    assert roles.divide_again()
    assert roles.trunks["policy"] is None


def test_padding_of_a_batch_does_not_change_what_the_trunk_says():
    roles = checked(upper_half("llama"))
    alone = {name: tensor[1:2] for name, tensor in THREE.items()}
    together = roles.read_trunk(THREE)[1:2]
    real = torch.cat([alone["prompt_mask"], alone["mask"]], dim=1).bool()
    torch.testing.assert_close(roles.read_trunk(alone)[real], together[real], atol=1e-5, rtol=1e-5)
    assert not together[~real].any()
    assert texts_of(**alone).arranged(together).shape[1] == int(real.sum())


def test_without_frozen_layers_there_is_none():
    roles = ActorCritic(tiny_model("llama"), reuse_trunk=True)
    assert roles.trunks == {"policy": None, "reference": None}
    assert split_of(roles.policy).reason
