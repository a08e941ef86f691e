"""The copy to sample with: it is what peft's own merging gives, rounded once, and follows the policy as it learns."""

import copy

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model

from rlhf_recipes.modeling.generation import LocalGenerator, SamplingCopy, sampling_config, write
from rlhf_recipes.modeling.generation import copies as module_of_copies
from rlhf_recipes.modeling.saving import merged_copy
from tests.tiny import tiny_causal_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[5, 6, 7, 8, 9, 10]])
RANDOM = {"init_lora_weights": False}
ADAPTERS = {
    "lora": LoraConfig(target_modules=["q_proj", "down_proj"], **RANDOM),
    "rslora": LoraConfig(target_modules=["q_proj"], r=16, use_rslora=True, **RANDOM),
    "dora": LoraConfig(target_modules=["q_proj", "v_proj"], use_dora=True, **RANDOM),
    "biases and some layers": LoraConfig(target_modules=["q_proj"], layers_to_transform=[1], bias="all", **RANDOM),
    "whole modules": LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head", "norm"], **RANDOM),
    "embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"], **RANDOM),
    "head": LoraConfig(target_modules=["lm_head"], **RANDOM),
    "tokens": LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 6], **RANDOM),
    "ia3": IA3Config(
        target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], init_ia3_weights=False
    ),
}


def policy(adapters=None, **config):
    torch.manual_seed(0)
    model = tiny_causal_lm(TOKENIZER, initializer_range=0.3, **config)
    return model if adapters is None else get_peft_model(model, copy.deepcopy(ADAPTERS[adapters])).eval()


def learn(model, steps=2):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(steps):
        model(IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("adapters", ADAPTERS)
def test_it_follows_the_policy_as_peft_would_merge_it(adapters, tied):
    model = policy(adapters, tie_word_embeddings=tied)
    at_hand = SamplingCopy(model, torch.float32)
    for _ in range(2):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        at_hand.refresh()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        torch.testing.assert_close(logits(at_hand.model), logits(model), atol=1e-4, rtol=1e-4)
        merged = merged_copy(model).state_dict()
        assert merged.keys() == at_hand.model.state_dict().keys()
        for name, weight in at_hand.model.state_dict().items():
            torch.testing.assert_close(weight, merged[name], atol=1e-6, rtol=1e-6)
        learn(model)
        assert (logits(at_hand.model) - logits(model)).abs().max() > 1e-3  # so that there is something to take over


@pytest.mark.parametrize("tied", [False, True])
def test_weights_that_are_trained_themselves_are_taken_over(tied):
    model = policy(tie_word_embeddings=tied)
    model.model.layers[0].requires_grad_(False)
    at_hand = SamplingCopy(model, torch.float32)
    learn(model)
    at_hand.refresh()
    assert torch.equal(logits(at_hand.model), logits(model))
    assert not any(p.requires_grad for p in at_hand.model.parameters())
    # What stays frozen is not copied again: no write has touched it.
    of_frozen = at_hand.model.model.layers[0].mlp.up_proj.weight
    before = of_frozen._version
    at_hand.refresh()
    assert of_frozen._version == before
    assert at_hand.model.model.layers[1].mlp.up_proj.weight._version > before


@pytest.mark.parametrize("adapters", [None, "lora", "dora"])
def test_in_half_precision_sums_are_rounded_once(adapters, monkeypatch):
    monkeypatch.setattr(module_of_copies, "cpu_has_bfloat16", lambda: True)
    model = policy(adapters)
    at_hand = SamplingCopy(model, torch.bfloat16)
    learn(model)
    at_hand.refresh()
    whole = model if adapters is None else merged_copy(model)
    for name, weight in at_hand.model.named_parameters():
        assert torch.equal(weight, whole.get_parameter(name).to(torch.bfloat16)), name
    assert model.dtype == torch.float32
    assert at_hand.model.dtype == torch.bfloat16


def test_logprobs_of_its_completions_are_its_own(monkeypatch):
    monkeypatch.setattr(module_of_copies, "cpu_has_bfloat16", lambda: True)
    model = SamplingCopy(policy("lora"), torch.bfloat16).model
    config = sampling_config(TOKENIZER, model, 6, 0.7, stop_token="none")
    written = write(LocalGenerator(model), IDS.tolist(), [3], config, torch.device("cpu"))
    with torch.no_grad():
        said = model(torch.cat([IDS, written.completion_ids], dim=1)).logits[:, 5:-1].float() / 0.7
    expected = said.log_softmax(dim=-1).gather(2, written.completion_ids[..., None]).squeeze(2)
    torch.testing.assert_close(written.logprobs, expected, atol=0.05, rtol=0)  # eight bits of a logit of some units
    assert written.logprobs.dtype == torch.float32


def test_what_cannot_be_copied_is_refused_with_what_to_do(monkeypatch):
    monkeypatch.setattr(module_of_copies, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="no instructions for bfloat16.*Leave the precision"):
        SamplingCopy(policy(), torch.bfloat16)
    with pytest.raises(ValueError, match="float16 more slowly.*Give bfloat16"):
        SamplingCopy(policy(), torch.float16)
    with pytest.raises(ValueError, match="Sampling in torch.int8 is not known. Give one of bfloat16"):
        SamplingCopy(policy(), torch.int8)
    learned = get_peft_model(policy(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="PROMPT_TUNING.*learns a prompt"):
        SamplingCopy(learned, torch.float32)
    quantized = policy()
    quantized.hf_quantizer = object()
    with pytest.raises(ValueError, match="quantized.*sampled from as it is"):
        SamplingCopy(quantized, torch.float32)
    divided = policy()
    divided.lm_head.weight = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ValueError, match="only a part of the weights"):
        SamplingCopy(divided, torch.float32)
