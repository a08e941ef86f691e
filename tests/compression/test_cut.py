"""The cut beside the mask, on every family: same logits, saved, loaded, generating, trained."""

import contextlib
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.integrations.heterogeneity import AmbiguousGlobalPerLayerAttributeError

from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.families import FAMILIES
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.structure import Layer, Structure
from tests.compression.models import DECODERS, ENCODERS, even, logits, texts, tiny, uneven

IDS = texts()


def close(one, other, bound=1e-5):
    assert (one - other).abs().max() <= bound * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_even_cut_says_what_the_mask_says_and_so_does_what_is_saved(kind, tmp_path):
    model = tiny(kind)
    structure = even(model, FAMILIES[kind].prunes_heads)
    before = logits(model, IDS)
    with masked(model, structure):
        wanted = logits(model, IDS)
    assert torch.equal(logits(model, IDS), before)
    smaller = cut(model, structure)
    close(logits(smaller, IDS), wanted)
    assert (wanted - before).abs().max() > 0.05
    assert type(smaller) is type(model)
    assert len(smaller.base_model.get_submodule(FAMILIES[kind].layers)) == 2

    smaller.save_pretrained(tmp_path)
    auto = AutoModelForMaskedLM if kind in ENCODERS else AutoModelForCausalLM
    again, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(again, IDS), logits(smaller, IDS))


@pytest.mark.parametrize("kind", FAMILIES)
def test_an_uneven_cut_says_what_the_mask_says_and_is_not_saved(kind, tmp_path):
    model = tiny(kind)
    structure = uneven(model)
    with pytest.raises(ValueError, match=r"evened"):
        cut(model, structure)
    with masked(model, structure):
        wanted = logits(model, IDS)
    smaller = cut(model, structure, uneven=True)
    close(logits(smaller, IDS), wanted)
    with pytest.raises(ValueError, match="cannot be saved"):
        smaller.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("shapes", ["even", "uneven"])
def test_mask_and_cut_write_the_same(kind, shapes):
    model = tiny(kind)
    structure = even(model, FAMILIES[kind].prunes_heads) if shapes == "even" else uneven(model)
    smaller = cut(model, structure, uneven=shapes == "uneven")
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 1}
    mask = torch.ones_like(IDS)
    mask[0, :4] = 0
    with masked(model, structure):
        wanted = model.generate(IDS, attention_mask=mask, **options)
    assert torch.equal(smaller.generate(IDS, attention_mask=mask, **options), wanted)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "granite"])  # which has none
def test_a_classifier_is_cut_and_trained(kind):
    model = tiny(kind, head="classifier")
    structure = even(model, FAMILIES[kind].prunes_heads)
    with masked(model, structure):
        wanted = logits(model, IDS)
    smaller = cut(model, structure)
    close(logits(smaller, IDS), wanted)
    before = logits(model, IDS)
    optimizer = torch.optim.SGD(smaller.parameters(), lr=0.1)
    smaller(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    unread = {n for n, p in smaller.named_parameters() if p.grad is None}
    assert not {name for name in unread if "pooler" not in name and "position" not in name}
    optimizer.step()
    assert torch.equal(logits(model, IDS), before)  # nothing is shared with the original
    assert not torch.equal(logits(smaller, IDS), wanted)


@pytest.mark.parametrize("kept", [(1, 2, 3), (0, 1, 2), (3,)])
def test_layers_are_dropped_anywhere(kept):
    """Against a model put together by hand out of the layers that are kept."""
    model = tiny("llama")
    whole = Structure.whole(model)
    structure = replace(whole, layers=tuple(whole.layers[i] if i in kept else None for i in range(4)))
    smaller = cut(model, structure)
    by_hand = tiny("llama")
    by_hand.model.layers = torch.nn.ModuleList(by_hand.model.layers[i] for i in kept)
    by_hand.config.num_hidden_layers = len(kept)
    ids = texts()
    assert torch.equal(logits(smaller, ids), logits(by_hand, ids, use_cache=False))


WINDOWS = {
    "gemma2": {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2},
    "gemma3_text": {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"] * 2},
    "mistral": {"sliding_window": 4},
    "qwen2": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 2},
    "qwen3": {"sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1},
    "smollm3": {"no_rope_layers": [1, 0, 0, 1]},
    "gpt2": {"scale_attn_by_inverse_layer_idx": True},
    "gpt_neox": {"use_parallel_residual": False},
    "granite": {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0},
    "llama": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("dropped", [(0,), (1, 2), (0, 3)])
def test_what_belongs_to_a_layer_goes_with_it(kind, dropped, tmp_path):
    """Windows, positions, and scores that are scaled by the number of the layer."""
    model = tiny(kind, **WINDOWS[kind])
    whole = Structure.whole(model)
    layers = tuple(None if number in dropped else layer for number, layer in enumerate(whole.layers))
    with masked(model, replace(whole, layers=layers)):
        wanted = logits(model, IDS)
    smaller = cut(model, replace(whole, layers=layers))
    close(logits(smaller, IDS), wanted)
    smaller.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), IDS), logits(smaller, IDS))


def test_the_cut_is_as_the_original_was():
    model = tiny("llama").bfloat16().train()
    model.lm_head.float()
    model.config.use_cache = False
    model.generation_config.temperature = 0.5
    smaller = cut(model, even(model, True))
    assert smaller.training
    assert {name: p.dtype for name, p in smaller.named_parameters()}["lm_head.weight"] == torch.float32
    assert smaller.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    assert torch.equal(smaller.lm_head.weight, model.lm_head.weight)
    assert not smaller.config.use_cache
    assert smaller.generation_config.temperature == 0.5
    assert all(p.requires_grad for p in smaller.parameters())
    assert not cut(model.eval(), even(model, True)).training


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "bert"])
def test_heads_that_a_config_cannot_say_are_refused_with_what_is_possible(kind):
    model = tiny(kind)
    with pytest.raises(ValueError, match=r"2 of 4 heads are kept.*layers dropped or merged.*fewer words"):
        cut(model, replace(Structure.whole(model), layers=(Layer((0, 1), (0, 5)),) * 4))


@pytest.mark.parametrize("skip", [{"intermediate_size": 48}, {"num_key_value_heads": 1}, {"skip": ["attention"]}])
def test_why_shapes_must_be_even(skip):
    """A config with layers of their own is not what this transformers builds: once it is, uneven cuts can be saved."""
    config = tiny("llama").config
    config.per_layer_config = {1: skip}
    with contextlib.suppress(AmbiguousGlobalPerLayerAttributeError):
        layers = AutoModelForCausalLM.from_config(config).model.layers
        assert layers[1].mlp.up_proj.out_features == 64
        assert layers[1].self_attn.k_proj.out_features == 16
