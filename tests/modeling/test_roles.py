"""Which weights stand for policy, reference and critic, and whether they come back from a folder."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from rlhf_recipes.modeling.logprobs import completion_logits, texts_of
from rlhf_recipes.modeling.roles import ActorCritic, has_fresh_adapters
from tests.tiny import tiny_causal_lm, tiny_tokenizer

# Two prompts of 3 and 1 tokens, completions of 4 and 2.
BATCH = {
    "prompt_ids": torch.tensor([[11, 12, 13], [0, 0, 14]]),
    "prompt_mask": torch.tensor([[1, 1, 1], [0, 0, 1]]),
    "completion_ids": torch.tensor([[21, 22, 23, 2], [24, 2, 0, 0]]),
    "mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}
TEXTS = [[11, 12, 13, 21, 22, 23, 2], [14, 24, 2]]  # the same without padding
PROMPT_LENGTHS = [3, 1]
REAL = BATCH["mask"].bool()


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def base(tokenizer):
    return tiny_causal_lm(tokenizer, initializer_range=0.3)


def lora(model, trained=False):
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    if trained:
        scramble(peft_model, "lora_B")
    return peft_model


def scramble(module, part=""):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if part in name and parameter.requires_grad:
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)


def plain_logprobs(model):
    """Log-probabilities of the completions by an ordinary forward of each text on its own."""
    rows = torch.zeros(BATCH["mask"].shape)
    for row, (text, start) in enumerate(zip(TEXTS, PROMPT_LENGTHS, strict=True)):
        with torch.no_grad():
            logprobs = torch.log_softmax(model(torch.tensor([text])).logits[0], dim=-1)
        for t, token in enumerate(text[start:]):
            rows[row, t] = logprobs[start + t - 1, token]
    return rows[REAL]


def same(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)
    return True


@torch.no_grad()
def logprobs(roles):
    return roles(**BATCH, temperature=1.0)["logprobs"][REAL]


def reference(roles):
    return roles.reference_logprobs(**BATCH, temperature=1.0)[REAL]


# --- The reference ------------------------------------------------------------------------------


def test_with_fresh_adapters_the_reference_is_the_policy_without_them(base):
    expected = plain_logprobs(base)
    roles = ActorCritic(lora(base))
    assert has_fresh_adapters(roles.policy)
    assert roles.ref_model is None  # no second copy in memory
    assert torch.equal(reference(roles), logprobs(roles))  # KL 0
    scramble(roles.policy, "lora_B")
    assert (logprobs(roles) - expected).abs().max() > 0.01
    assert same(reference(roles), expected)


def test_with_trained_adapters_the_reference_is_a_frozen_copy_and_not_the_base(base):
    without = plain_logprobs(base)
    policy = lora(base, trained=True)
    expected = plain_logprobs(policy)
    assert (expected - without).abs().max() > 0.01
    roles = ActorCritic(policy)
    assert not has_fresh_adapters(policy)
    scramble(roles.policy, "lora_B")
    assert same(reference(roles), expected)
    assert (logprobs(roles) - expected).abs().max() > 0.01
    assert any(p.requires_grad for p in roles.policy.parameters())  # the policy itself is not frozen


def test_without_adapters_the_reference_stays_put_while_the_policy_moves(base):
    expected = plain_logprobs(base)
    roles = ActorCritic(base)
    scramble(roles.policy)
    assert same(reference(roles), expected)
    assert (logprobs(roles) - expected).abs().max() > 0.01
    assert not any(p.requires_grad for p in roles.ref_model.parameters())
    assert all(p.requires_grad for p in roles.policy.parameters())


def test_a_given_reference_is_used(base, tokenizer):
    other = tiny_causal_lm(tokenizer, seed=1, initializer_range=0.3)
    assert same(reference(ActorCritic(base, other)), plain_logprobs(other))


def test_for_measuring_the_reference_is_the_base_below_trained_adapters(base):
    expected = plain_logprobs(base)
    roles = ActorCritic(lora(base, trained=True), reference_is_base=True)
    assert same(reference(roles), expected)
    assert (logprobs(roles) - expected).abs().max() > 0.01


def test_for_measuring_a_plain_model_is_its_own_reference(base):
    roles = ActorCritic(base, reference_is_base=True)
    assert roles.ref_model is base
    assert same(reference(roles), plain_logprobs(base))


def test_the_reference_is_neither_trained_nor_saved_nor_moved_by_train(base):
    roles = ActorCritic(base).train()
    assert {name.split(".")[0] for name, _ in roles.named_parameters()} == {"policy", "critic"}
    assert not roles.ref_model.training


# --- Log-probabilities and values ---------------------------------------------------------------


def test_logprobs_are_those_of_a_plain_forward_without_padding(base):
    assert same(logprobs(ActorCritic(base)), plain_logprobs(base))


def test_values_are_read_at_the_position_that_predicts_the_token(base):
    roles = ActorCritic(base)
    torch.nn.init.normal_(roles.critic.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.constant_(roles.critic.bias, 0.5)
    with torch.no_grad():
        values = roles(**BATCH, temperature=1.0)["values"]
        for row, (text, start) in enumerate(zip(TEXTS, PROMPT_LENGTHS, strict=True)):
            hidden = base(torch.tensor([text]), output_hidden_states=True).hidden_states[-1][0]
            for t in range(len(text) - start):
                expected = hidden[start + t - 1] @ roles.critic.weight[0] + 0.5
                assert values[row, t].item() == pytest.approx(expected.item(), abs=1e-5)


def test_the_critic_starts_at_zero(base):
    assert not ActorCritic(base)(**BATCH, temperature=1.0)["values"].any()


def test_the_critic_s_gradient_reaches_the_policy_s_trunk_and_its_own_layer(base):
    roles = ActorCritic(base)
    torch.nn.init.normal_(roles.critic.weight)
    roles(**BATCH, temperature=1.0)["values"].sum().backward()
    assert roles.critic.weight.grad.any()
    assert base.model.layers[0].self_attn.q_proj.weight.grad.any()


def test_reading_leaves_no_hook_behind(base):
    beyond = BATCH | {"prompt_ids": torch.full_like(BATCH["prompt_ids"], 99999)}
    with pytest.raises(IndexError):
        completion_logits(base, texts_of(**beyond))
    assert not base.get_output_embeddings()._forward_pre_hooks


def test_gradient_checkpointing_changes_no_gradient(base):
    policy, gradients = lora(base, trained=True), []
    for checkpointing in (False, True):
        roles = ActorCritic(copy.deepcopy(policy)).train()
        if checkpointing:
            roles.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        roles(**BATCH, temperature=1.0)["logprobs"][REAL].sum().backward()
        gradients.append({n: p.grad for n, p in roles.policy.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(same(gradients[0][name], gradients[1][name]) for name in gradients[0])


# --- Saving -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["full", "tied", "lora"])
def test_what_is_saved_comes_back_with_the_critic(base, tokenizer, tmp_path, kind):
    def build(seed):
        model = tiny_causal_lm(tokenizer, seed=seed, initializer_range=0.3, tie_word_embeddings=kind == "tied")
        return ActorCritic(lora(tiny_causal_lm(tokenizer, initializer_range=0.3)) if kind == "lora" else model)

    saved = build(0)
    scramble(saved)  # policy or adapters, and the value head
    saved.save_pretrained(tmp_path)
    loaded = build(1)
    before = reference(loaded)
    loaded.load_weights(tmp_path)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name
    assert torch.equal(reference(loaded), before)  # the reference stays as it was
    assert loaded.critic.weight.any()
    if kind == "tied":
        assert loaded.policy.lm_head.weight is loaded.policy.model.embed_tokens.weight


def test_the_folder_is_one_that_any_hugging_face_code_loads(base, tmp_path):
    roles = ActorCritic(base)
    scramble(roles.policy)
    roles.save_pretrained(tmp_path)
    assert same(plain_logprobs(AutoModelForCausalLM.from_pretrained(tmp_path)), logprobs(roles))
    assert sorted(p.name for p in (tmp_path / "critic").iterdir()) == ["value_head.safetensors"]


def test_only_the_adapters_are_saved_of_a_policy_with_adapters(base, tmp_path):
    ActorCritic(lora(base)).save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "model.safetensors").exists()
