"""Adapters beside each other: switching leaves nothing behind, and gradients are those of a base of one's own."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.adapters import active_adapter, adapter_parameters, add_adapter, in_evaluation
from rlhf_recipes.modeling.critics import build_critic
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.saving import merged_copy, save_policy
from tests.architectures import each, tiny_model
from tests.modeling.test_roles import BATCH, REAL, lora, scramble
from tests.tiny import tiny_causal_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CONFIG = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
ARCHITECTURES = ("gpt2", "gpt_neox", "gemma2", "opt", "cohere", "granite")
IDS = torch.tensor([[11, 12, 13, 21]])


@pytest.fixture
def policy():
    """With three adapters: the policy's, one that is trained too, and one that is frozen; each says something else."""
    model = lora(tiny_causal_lm(TOKENIZER, initializer_range=0.3), trained=True)
    for name, trains in (("critic", True), ("reward_x", False)):
        add_adapter(model, name, CONFIG, trains)
        generator = torch.Generator().manual_seed(len(name))
        with torch.no_grad():
            for parameter in adapter_parameters(model, name).values():
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def said(model):
    with torch.no_grad():
        return model(IDS).logits


def state(model):
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    modes = {name: module.training for name, module in model.named_modules()}
    return flags, modes, model.active_adapters, model.active_adapter


def alone(model, name):
    """What the base says with one adapter, on a copy that has no other; by peft's own merging."""
    duplicate = copy.deepcopy(model)
    if name is None:
        return said(duplicate.unload())
    duplicate.set_adapter(name)
    return said(duplicate.merge_and_unload())


@pytest.mark.parametrize("name", ["default", "critic", "reward_x", None])
def test_inside_it_is_that_adapter_and_outside_all_is_as_before(policy, name):
    before, logits = state(policy), said(policy)
    trained = {path for path, flag in before[0].items() if flag}
    assert trained == {path for path in before[0] if ".default" in path or ".critic" in path}
    with active_adapter(policy, name) as model:
        torch.testing.assert_close(said(model), alone(policy, name), atol=1e-4, rtol=1e-4)
        assert state(policy)[0] == before[0]  # requires_grad
    assert state(policy) == before
    assert torch.equal(said(policy), logits)


@pytest.mark.parametrize("name", ["critic", None])
def test_an_error_inside_leaves_nothing_behind(policy, name):
    before, logits = state(policy), said(policy)
    with pytest.raises(ZeroDivisionError), active_adapter(policy, name):
        raise ZeroDivisionError
    assert state(policy) == before
    assert torch.equal(said(policy), logits)


def test_one_inside_the_other_gives_back_what_was_there(policy):
    with active_adapter(policy, None):
        bare = said(policy)
        with active_adapter(policy, "critic"):
            torch.testing.assert_close(said(policy), alone(policy, "critic"), atol=1e-4, rtol=1e-4)
            with active_adapter(policy, None):
                assert torch.equal(said(policy), bare)
        assert torch.equal(said(policy), bare)
        assert not torch.equal(bare, alone(policy, "default"))


def test_a_name_that_is_not_there_changes_nothing(policy):
    before = state(policy)
    with (
        pytest.raises(ValueError, match="no adapter 'nobody'; there are default, critic, reward_x"),
        active_adapter(policy, "nobody"),
    ):
        pass
    assert state(policy) == before


def test_each_module_has_its_own_mode_again(policy):
    policy.train()
    still = next(module for module in policy.modules() if isinstance(module, torch.nn.Dropout | torch.nn.Linear))
    still.training = False
    before = state(policy)
    with in_evaluation(policy):
        assert not any(module.training for module in policy.modules())
    assert state(policy) == before


def test_adding_an_adapter_changes_neither_the_policy_nor_random_numbers(policy):
    before, logits, drawn = state(policy), said(policy), torch.get_rng_state()
    add_adapter(policy, "more", CONFIG, trains=True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert torch.equal(said(policy), logits)
    flags, _, active, _ = state(policy)
    assert active == before[2]
    assert {name: flags[name] for name in before[0]} == before[0]
    assert all(flags[name] for name in flags if ".more" in name)
    with pytest.raises(ValueError, match=r"'critic' on the policy's base, but .* has one of that name already"):
        add_adapter(policy, "critic", CONFIG, trains=True)


def test_what_the_policy_trains_whole_belongs_to_it_alone():
    """An adapter on the output layer, and embeddings of its own: the critic reads the base's."""
    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], modules_to_save=["embed_tokens"],
                        task_type="CAUSAL_LM")  # fmt: skip
    model = get_peft_model(tiny_causal_lm(TOKENIZER, initializer_range=0.3), config)
    bare = said(model)
    critic = build_critic("adapter", model)
    scramble(model, "modules_to_save.default")
    names = [name for name, _ in model.named_parameters() if ".critic" in name]
    assert names
    assert not any("lm_head" in name or "embed_tokens" in name for name in names)
    with active_adapter(model, "critic"):
        torch.testing.assert_close(said(model), bare)
    roles = ActorCritic(model, reference_is_base=True, critic=critic)
    torch.nn.init.ones_(critic.score.weight)
    out = roles(**BATCH, temperature=1.0)
    (out["logprobs"][REAL].sum() + out["values"][REAL].sum()).backward()
    missing = {name for name, p in roles.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing  # DistributedDataParallel would wait for it


def gradients(policy, checkpointing):
    critic = build_critic("adapter", policy)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(0))
    roles = ActorCritic(policy, reference_is_base=True, critic=critic).train()
    if checkpointing:
        roles.gradient_checkpointing_enable(**checkpointing)
    scramble(policy, "lora_B.critic")
    out = roles(**BATCH, temperature=1.0)
    (out["logprobs"][REAL].sum() + (out["values"][REAL] ** 2).sum()).backward()
    return {name: p.grad for name, p in roles.named_parameters() if p.requires_grad}


def test_layers_that_are_computed_again_take_the_adapter_of_the_first_time():
    """With the policy's adapter in the critic's layers the critic's own would get no gradient, or a wrong one."""
    model = lora(tiny_causal_lm(TOKENIZER, initializer_range=0.3), trained=True)
    plain = gradients(copy.deepcopy(model), None)
    again = gradients(copy.deepcopy(model), {"gradient_checkpointing_kwargs": {"use_reentrant": False}})
    default = gradients(copy.deepcopy(model), {"gradient_checkpointing_kwargs": None})
    assert all(grad is not None and grad.any() for name, grad in plain.items() if "lora_B" in name)
    for name, grad in plain.items():
        torch.testing.assert_close(again[name], grad)
        torch.testing.assert_close(default[name], grad)
    with pytest.raises(ValueError, match="use_reentrant.*wrong adapter.*critic: policy"):
        gradients(model, {"gradient_checkpointing_kwargs": {"use_reentrant": True}})


def test_the_critic_s_gradient_stays_in_its_adapter_and_its_layer(policy):
    policy.delete_adapter("critic")
    critic = build_critic("adapter", policy)
    torch.nn.init.ones_(critic.score.weight)
    roles = ActorCritic(policy, reference_is_base=True, critic=critic)
    roles(**BATCH, temperature=1.0)["values"].sum().backward()
    got = {name for name, p in roles.named_parameters() if p.grad is not None and p.grad.any()}
    assert got == {name for name, _ in roles.named_parameters() if ".critic." in name or name.startswith("critic.")}
    of_policy = {id(parameter) for parameter in roles.parameters_of_policy()}
    assert not of_policy & {id(p) for name, p in roles.named_parameters() if ".critic." in name}
    assert of_policy >= {id(p) for name, p in roles.named_parameters() if ".default." in name}


def test_saved_and_merged_is_the_policy_s_adapter_alone(policy, tmp_path):
    save_policy(policy, tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "generation_config.json",
    }  # fmt: skip
    torch.testing.assert_close(said(merged_copy(policy)), alone(policy, "default"), atol=1e-4, rtol=1e-4)


def test_a_base_that_moves_is_not_shared():
    biased = get_peft_model(
        tiny_causal_lm(TOKENIZER, attention_bias=True),
        LoraConfig(r=2, target_modules=["q_proj"], bias="lora_only", task_type="CAUSAL_LM"),
    )
    with pytest.raises(ValueError, match=r"trains weights of the base itself \(model.layers.0.*bias, 2 in all\)"):
        build_critic("adapter", biased)
    begun = get_peft_model(
        tiny_causal_lm(TOKENIZER),
        LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"),
    )
    with pytest.raises(ValueError, match="init_lora_weights 'pissa', which takes a part out of the base"):
        build_critic("adapter", begun)


# Also those of which transformers has no sequence classifier, and states that are narrower than the model (OPT-350m).
@pytest.mark.parametrize(
    "name", each(("gpt2", "gpt_neox", "gemma2", "opt", "cohere", "granite"), by_default=("gpt2", "cohere"))
)
def test_a_critic_of_any_architecture_is_an_adapter_on_its_base(name, tmp_path):
    model = get_peft_model(tiny_model(name), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    critic = build_critic("adapter", model)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(10, 18)[None]
    with torch.no_grad():
        values = critic(ids, torch.ones_like(ids), torch.arange(8)[None])
        hidden = tiny_model(name).base_model(ids, use_cache=False).last_hidden_state
        expected = (hidden.float() @ critic.score.weight.T.float())[..., 0]
    torch.testing.assert_close(values, expected, atol=1e-4, rtol=1e-4)
    ActorCritic(model, reference_is_base=True, critic=critic).save_pretrained(tmp_path)
    critic.load_weights(tmp_path / "critic")
