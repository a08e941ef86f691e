"""A saved policy says the same as the one in training, which saving leaves alone to the last bit."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GenerationConfig

from rlhf_recipes.modeling.saving import merged_copy, save_policy
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

IDS = torch.tensor([[5, 17, 300, 42, 8, 99], [261, 262, 7, 7, 31, 2]])


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def adapted(tokenizer, base=None, targets="all-linear", **settings) -> PeftModel:
    """A policy whose adapters have learned something: their outer matrices are not zero."""
    model = get_peft_model(
        tiny_causal_lm(tokenizer) if base is None else base,
        LoraConfig(task_type="CAUSAL_LM", target_modules=targets, r=4, **settings),
    )
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.normal_(std=0.3, generator=noise)
    return model.eval()


def bits(model) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(input_ids=IDS).logits


def assert_equal_logits(model, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


def test_a_merged_policy_loads_as_a_plain_model_and_training_goes_on_undisturbed(tokenizer, tmp_path):
    policy = adapted(tokenizer).train()
    before = bits(policy)
    state = {name: (p.requires_grad, p.device) for name, p in policy.named_parameters()}

    save_policy(policy, tmp_path / "merged", merge=True)

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert_equal_logits(loaded, logits(policy.eval()))
    # The adapters do count: without them the logits are others.
    with policy.disable_adapter():
        assert not torch.allclose(logits(loaded), logits(policy), atol=1e-2)
    assert bits(policy) == before
    assert {name: (p.requires_grad, p.device) for name, p in policy.named_parameters()} == state
    assert not any(module.merged for module in policy.modules() if hasattr(module, "lora_A"))
    assert not (tmp_path / "merged/adapter_config.json").exists()
    assert (tmp_path / "merged/generation_config.json").is_file()


@pytest.mark.parametrize(
    "settings",
    [
        {"use_dora": True},
        {"modules_to_save": ["lm_head"]},
        {"targets": ["embed_tokens", "q_proj"]},
        {"targets": ["lm_head", "q_proj"]},
        {"bias": "lora_only", "use_rslora": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("tied", [False, True])
def test_every_kind_of_adapter_is_merged(tokenizer, tmp_path, settings, tied):
    base = tiny_causal_lm(tokenizer, tie_word_embeddings=tied)
    policy = adapted(tokenizer, base, **settings)
    if "modules_to_save" in settings:
        with torch.no_grad():
            policy.get_base_model().lm_head.modules_to_save["default"].weight.add_(0.1)
    before = bits(policy)
    save_policy(policy, tmp_path, merge=True)
    assert_equal_logits(AutoModelForCausalLM.from_pretrained(tmp_path), logits(policy))
    assert bits(policy) == before


def test_adapters_are_saved_alone_and_load_on_their_base(tokenizer, tmp_path):
    base = tiny_causal_lm(tokenizer)
    save_tiny(tmp_path / "base", base, tokenizer)
    policy = adapted(tokenizer, AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    policy.get_base_model().generation_config = GenerationConfig(do_sample=True, temperature=0.7, eos_token_id=2)
    before = bits(policy)

    save_policy(policy, tmp_path / "run")

    names = sorted(file.name for file in (tmp_path / "run").iterdir())
    assert names == ["adapter_config.json", "adapter_model.safetensors", "generation_config.json"]
    assert json.loads((tmp_path / "run/generation_config.json").read_text())["temperature"] == 0.7
    assert_equal_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run"), logits(policy))
    assert bits(policy) == before


def test_only_the_adapters_in_use_are_saved(tokenizer, tmp_path):
    policy = adapted(tokenizer)
    policy.add_adapter("reward", LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    save_policy(policy, tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    assert not (tmp_path / "reward").exists()


def test_a_readme_that_was_there_stays_as_it_was(tokenizer, tmp_path):
    (tmp_path / "README.md").write_bytes(b"---\ntags: [mine]\n---\nwritten by me\r\n")
    save_policy(adapted(tokenizer), tmp_path)
    assert (tmp_path / "README.md").read_bytes() == b"---\ntags: [mine]\n---\nwritten by me\r\n"


@pytest.mark.parametrize("merge", [False, True])
def test_a_policy_without_adapters_is_written_whole(tokenizer, tmp_path, merge):
    policy = tiny_causal_lm(tokenizer)
    save_policy(policy, tmp_path, merge=merge)
    assert_equal_logits(AutoModelForCausalLM.from_pretrained(tmp_path), logits(policy))


def test_the_precision_stays(tokenizer, tmp_path):
    policy = adapted(tokenizer, tiny_causal_lm(tokenizer).to(torch.bfloat16))
    save_policy(policy, tmp_path, merge=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(logits(loaded), logits(policy), rtol=0, atol=0.05)


def test_the_two_forms_do_not_share_a_folder(tokenizer, tmp_path):
    save_policy(adapted(tokenizer), tmp_path / "adapter")
    save_policy(adapted(tokenizer), tmp_path / "merged", merge=True)
    with pytest.raises(FileExistsError, match=r"holds adapter_config\.json, so a whole model beside it"):
        save_policy(adapted(tokenizer), tmp_path / "adapter", merge=True)
    with pytest.raises(FileExistsError, match=r"holds model\.safetensors, so adapters beside it"):
        save_policy(adapted(tokenizer), tmp_path / "merged")
    save_policy(adapted(tokenizer), tmp_path / "merged", merge=True)  # the same form again is a newer version


def test_a_4_bit_base_is_not_merged_but_its_adapters_are_saved(tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes")
    save_tiny(tmp_path / "base", tiny_causal_lm(tokenizer, hidden_size=64), tokenizer)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    base = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", quantization_config=four_bits, device_map={"": "cpu"}
    )
    policy = adapted(tokenizer, base)
    with pytest.raises(ValueError, match=r"quantized \(bitsandbytes\).*push the adapters alone"):
        save_policy(policy, tmp_path / "run", merge=True)
    assert not (tmp_path / "run").exists()
    save_policy(policy, tmp_path / "run")
    assert (tmp_path / "run/adapter_model.safetensors").is_file()


def test_a_learned_prompt_cannot_be_merged(tokenizer, tmp_path):
    policy = get_peft_model(tiny_causal_lm(tokenizer), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="PROMPT_TUNING learns a prompt"):
        save_policy(policy, tmp_path, merge=True)
    assert list(Path(tmp_path).iterdir()) == []


def test_a_part_of_the_weights_cannot_be_merged(tokenizer):
    policy = adapted(tokenizer)
    policy.get_base_model().model.norm.weight.data = torch.empty(0)  # what ZeRO-3 leaves of a weight between steps
    with pytest.raises(ValueError, match="only a part of the weights"):
        merged_copy(policy)
