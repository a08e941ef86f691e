"""Weights laid out for decoding: the same numbers, up to how sums are rounded, and the model as it was afterwards."""

import contextlib

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM

from rlhf_recipes.modeling.generation import LocalGenerator, sampling_config, stable_key, write
from rlhf_recipes.modeling.generation import packed as module
from rlhf_recipes.modeling.generation.packed import packed
from tests.architectures import DECODERS, each, tiny_model
from tests.tiny import tiny_causal_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [3, 4, 5, 6]])
ADAPTERS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "some layers": {"layers_to_transform": [1]},
    "with a bias": {"bias": "lora_only", "lora_bias": True},
}


def policy(dtype=torch.float32, **config):
    config = {"hidden_size": 64, "initializer_range": 0.2} | config
    return tiny_causal_lm(TOKENIZER, **config).to(dtype).eval()


def adapted(model, **options):
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"]} | options
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options))
    return model.eval()


def replaced(model):
    return [name for name, layer in model.named_modules() if "forward" in vars(layer)]


@torch.no_grad()
def said(model, which="none"):
    with packed(model, len(IDS), which):
        return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", each(DECODERS))
def test_every_architecture_says_the_same(name, monkeypatch):
    monkeypatch.setattr(module, "NARROW", 1)
    model = tiny_model(name).eval()
    torch.testing.assert_close(said(model, "all"), said(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_added_to_the_copies(name):
    model = adapted(policy(), **ADAPTERS[name])
    with packed(model, len(IDS)):
        inside = replaced(model)
    layers = [1] if name == "some layers" else [0, 1]
    whole = {f"base_model.model.model.layers.{index}.self_attn.q_proj" for index in layers}
    # peft merges no bias into a layer that has none: such adapters stay apart
    assert whole & set(inside) == (set() if name == "with a bias" else whole)
    assert not any("lora_" in where for where in inside)
    plain = said(model)
    torch.testing.assert_close(said(model, "all"), plain, atol=2e-5, rtol=1e-5)
    with torch.no_grad(), model.disable_adapter():
        bare = model(input_ids=IDS).logits
        assert not torch.allclose(bare, plain, atol=1e-2)
        with packed(model, len(IDS)):
            torch.testing.assert_close(model(input_ids=IDS).logits, bare, atol=2e-5, rtol=1e-5)


def test_half_precision_and_training_leave_adapters_apart():
    for model in (adapted(policy(torch.bfloat16)), adapted(policy()).train()):
        with packed(model, len(IDS)):
            inside = replaced(model)
        assert "base_model.model.model.layers.0.self_attn.q_proj" not in inside
        assert "base_model.model.model.layers.0.self_attn.q_proj.base_layer" in inside
    half = adapted(policy(torch.bfloat16))
    exact = said(half.float())
    half.to(torch.bfloat16)
    near = (said(half) - exact).abs().mean()
    assert (said(half, "all") - exact).abs().mean() < 1.5 * near


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_alone(tied):
    model = policy(tie_word_embeddings=tied)
    with packed(model, len(IDS), "output"):
        assert replaced(model) == ["lm_head"]
    torch.testing.assert_close(said(model, "output"), said(model), atol=1e-5, rtol=1e-5)


def test_nothing_stays_behind_also_after_an_error():
    model = adapted(policy())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with contextlib.suppress(KeyError), packed(model, len(IDS)):
        assert replaced(model)
        raise KeyError
    assert replaced(model) == []
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


def test_what_another_has_put_in_place_of_a_forward_stays():
    model = policy()
    model.lm_head.forward = lambda states: states.new_full((*states.shape[:2], 3), 7.0)
    assert (said(model, "all") == 7).all()
    assert replaced(model) == ["lm_head"]


@pytest.mark.parametrize("reason", ["wrong", "missing", "autocast", "off", "narrow"])
def test_left_plain(reason, monkeypatch):
    model = policy()
    module._is_sound.cache_clear()
    if reason == "wrong":
        monkeypatch.setattr(
            module, "_linear", lambda weight, bias, states: nn.functional.linear(states, weight) * 1.001
        )
        monkeypatch.setattr(module, "_laid_out", lambda weight, rows: weight)
    elif reason == "missing":
        monkeypatch.setattr(module, "_laid_out", lambda weight, rows: torch.ops.mkldnn.there_is_no_such)
    elif reason == "narrow":
        model = policy(hidden_size=32)
    context = torch.autocast("cpu", torch.bfloat16) if reason == "autocast" else contextlib.nullcontext()
    with context, packed(model, len(IDS), "none" if reason == "off" else "all"):
        assert replaced(model) == []
    module._is_sound.cache_clear()


@pytest.mark.parametrize("adapters", [False, True])
def test_completions_and_their_logprobs_are_those_of_plain_weights(adapters):
    model = adapted(policy()) if adapters else policy()
    prompts = TOKENIZER(["The film", "The film is a quiet, funny and moving story about two", "It"])["input_ids"]
    keys = [stable_key("packed", row) for row in range(len(prompts))]
    config = sampling_config(TOKENIZER, model, 12, 0.8)

    def written(pack):
        generator = LocalGenerator(model, TOKENIZER, keep_head_inputs=True, pack=pack)
        return write(generator, prompts, keys, config, torch.device("cpu"), 64, TOKENIZER)

    plain, quick = written("none"), written("all")
    assert torch.equal(plain.completion_ids, quick.completion_ids)
    torch.testing.assert_close(quick.logprobs, plain.logprobs, atol=2e-5, rtol=1e-5)


def test_a_saved_model_is_that_of_plain_weights(tmp_path):
    model = policy()
    with packed(model, len(IDS)):
        model.save_pretrained(tmp_path)
    torch.testing.assert_close(said(AutoModelForCausalLM.from_pretrained(tmp_path).eval()), said(model))
