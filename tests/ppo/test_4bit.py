"""4-bit for real: bitsandbytes quantizes on a CPU too. Adapters of policy and critic learn on a base that stays."""

import pytest
import torch

from rlhf_recipes.modeling.critics import build_critic
from rlhf_recipes.modeling.loading import ModelArguments, load_policy
from tests.ppo.helpers import AtStep, largest_difference, logged, trainer
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

pytest.importorskip("bitsandbytes")
TOKENIZER = tiny_tokenizer()


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model on disk whose layers are large enough to be quantized."""
    folder = tmp_path_factory.mktemp("base")
    save_tiny(folder, tiny_causal_lm(TOKENIZER, hidden_size=64, initializer_range=0.3), TOKENIZER)
    return str(folder)


def policy(base):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load_policy(ModelArguments(model_name_or_path=base, load_in_4bit=True, use_peft=True, lora_r=4,
                                          lora_target_modules=["q_proj", "v_proj"], dtype="float32"))  # fmt: skip


def run(base, folder, **kwargs):
    return trainer(folder, policy(base), tokenizer=TOKENIZER, optim="adamw_torch", learning_rate=0.01, **kwargs)


def trained(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def frozen(module):
    return {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("critic", ["head", "adapter", "policy"])
def test_adapters_of_policy_and_critic_learn_on_a_4_bit_base_that_stays(base, tmp_path, critic):
    ppo = run(base, tmp_path, critic=critic)
    kinds = {type(p).__name__ for p in ppo.roles.parameters()}
    assert "Params4bit" in kinds
    if critic == "policy":
        assert "Params4bit" in {type(p).__name__ for p in ppo.roles.critic.parameters()}
    before, still = trained(ppo.roles), frozen(ppo.roles)
    assert all("lora_" in name or "score" in name or name.startswith("critic.") for name in before)
    ppo.train()
    after = trained(ppo.roles)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("policy." in name and "lora_B" in name for name in moved)
    assert any(name.startswith("critic.") for name in moved)
    assert critic != "adapter" or any("lora_B.critic" in name for name in moved)
    assert all(torch.equal(tensor, frozen(ppo.roles)[name]) for name, tensor in still.items())
    first = logged(ppo)[0]
    assert first["objective/kl"] == pytest.approx(0, abs=1e-5)


def test_adapters_of_policy_and_critic_learn_on_an_8_bit_base_that_stays(base, tmp_path, caplog):
    caplog.set_level("ERROR", "bitsandbytes.autograd._functions")  # else one line for each product
    args = ModelArguments(model_name_or_path=base, load_in_8bit=True, use_peft=True, lora_r=4,
                          lora_target_modules=["q_proj", "v_proj"], dtype="float32")  # fmt: skip
    ppo = trainer(tmp_path, load_policy(args), tokenizer=TOKENIZER, optim="adamw_torch", learning_rate=0.01,
                  critic="adapter", total_episodes=8)  # fmt: skip
    assert "Int8Params" in {type(p).__name__ for p in ppo.roles.parameters()}
    before, still = trained(ppo.roles), frozen(ppo.roles)
    ppo.train()
    moved = {name for name, tensor in trained(ppo.roles).items() if not torch.equal(before[name], tensor)}
    assert any("lora_B.default" in name for name in moved)
    assert any("lora_B.critic" in name for name in moved)
    assert all(torch.equal(tensor, frozen(ppo.roles)[name]) for name, tensor in still.items())


@pytest.mark.parametrize(
    ("step", "critic"),
    [(4, "policy"), *(pytest.param(*of, marks=pytest.mark.slow) for of in ((4, "head"), (6, "head"), (6, "policy")))],
)
def test_it_resumes_exactly_and_reloads_with_the_same_outputs(base, tmp_path, critic, step):
    whole = run(base, tmp_path / "whole", critic=critic)
    whole.train()
    stopped = [AtStep("should_save", step), AtStep("should_training_stop", step)]
    run(base, tmp_path / "run", critic=critic, kept=stopped).train()
    resumed = run(base, tmp_path / "run", critic=critic)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(trained(resumed.roles), trained(whole.roles)) < 1e-6

    resumed.save_model(str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "adapter_model.safetensors").is_file()
    # Through plain from_pretrained the weights are the same, but in evaluation mode bitsandbytes multiplies them in
    # bfloat16 on CPUs that can.
    saved = ModelArguments(model_name_or_path=str(tmp_path / "saved"), load_in_4bit=True, dtype="float32")
    reloaded = load_policy(saved, is_trainable=False).eval()
    ids = torch.tensor([TOKENIZER("It was a dull film")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(reloaded(ids).logits, resumed.roles.policy.eval()(ids).logits, atol=1e-5)


def test_a_critic_that_is_read_from_a_folder_is_in_4_bit_too(base, tmp_path):
    first = build_critic("policy", policy(base))
    with torch.no_grad():
        first.model.base_model.model.score.modules_to_save["default"].weight.fill_(0.5)
    first.save_pretrained(tmp_path)
    second = build_critic(str(tmp_path), policy(base))
    assert "Params4bit" in {type(p).__name__ for p in second.parameters()}
    assert trained(second).keys() == trained(first).keys()
    assert largest_difference(trained(second), trained(first)) == 0
