"""What a pass takes, against what autograd keeps of a real model, and caches counted by hand."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_recipes.modeling.memory.passes import Computing, Texts, cache, reading, update
from rlhf_recipes.modeling.memory.tracked import Pass, Tracked, computing_shapes, tracked

ROWS, PROMPT, COMPLETION = 3, 5, 7
TEXTS = Texts(ROWS, PROMPT, COMPLETION)


def decoder(layers=2, device="meta", dtype=torch.float32):
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device(device):
        return LlamaForCausalLM(config).to(dtype).eval()


# ---- the tracker


def test_storages_are_counted_once_and_taken_off_when_they_are_gone():
    with Tracked() as tracker:
        first = torch.empty(10)  # 40 bytes
        view = first[2:].view(2, 4)
        second = torch.empty(5, dtype=torch.int64)  # 40 more
        assert tracker.alive == 80
        del second
        assert tracker.alive == 40
        del first
        assert tracker.alive == 40, "the view holds it"
        del view
    assert (tracker.alive, tracker.peak) == (0, 80)


def test_what_was_there_before_is_not_counted():
    weight = torch.ones(100)
    with Tracked([weight]) as tracker:
        weight.mul_(2)
        double = weight * 2
    assert tracker.peak == double.nbytes


def test_a_graph_keeps_what_it_needs():
    weight = nn.Parameter(torch.ones(4))

    def forward():
        x = torch.ones(4)  # kept by the product, and by nothing else
        return (weight * x).sum()

    # x and the sum stay, the product does not; the backward pass makes a gradient of the sum, spread over 4 by a view,
    # and the gradient of the weight.
    found = tracked(forward, [weight], backward=True)
    assert found.kept == 16 + 4
    assert found.peak >= found.kept + 4 + 16


def test_passes_one_after_the_other_and_side_by_side():
    assert Pass(3, 10).then(Pass(4, 5)) == Pass(4, 10)
    assert Pass(3, 10).beside(Pass(4, 9)) == Pass(7, 14)


def test_the_model_is_as_before():
    model = decoder()
    before = dict(model.named_parameters())
    with computing_shapes(model):
        assert model.lm_head.weight is not before["lm_head.weight"]
    assert dict(model.named_parameters()) == before
    update(model, 2, TEXTS, Computing(chunk=4))
    assert all(parameter.grad is None and parameter.is_meta for parameter in model.parameters())
    assert len(model.model.layers) == 2


# ---- an update


def kept_by_autograd(model):
    """Bytes of all that autograd keeps of a forward pass through the body, weights and buffers left out."""
    held = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    length = PROMPT + COMPLETION
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.model(
            inputs_embeds=torch.randn(ROWS, length, 32, requires_grad=True),
            attention_mask=torch.ones(ROWS, 1, length, length, dtype=torch.bool),
            position_ids=torch.arange(length).expand(ROWS, -1),
            use_cache=False,
        ).last_hidden_state
        loss = states.float().sum()
    del states
    assert loss.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_kept_is_what_autograd_keeps(layers):
    real = kept_by_autograd(decoder(layers, "cpu"))
    found = update(decoder(layers), layers, TEXTS, Computing(), by="states").kept
    assert found == pytest.approx(real, rel=0.02)  # and a few small tensors that the graph holds otherwise


def test_upper_layers_are_carried_on_to_all():
    # Five layers worked out from two, against a model that has no more than two: each layer adds the same.
    of = {layers: update(decoder(8), layers, TEXTS, Computing(chunk=4)) for layers in (1, 2, 5)}
    assert of[5].kept - of[2].kept == 3 * (of[2].kept - of[1].kept)
    assert of[5].peak - of[2].peak == 3 * (of[2].peak - of[1].peak)


def test_checkpointing_keeps_the_input_of_each_layer_alone():
    of = {layers: update(decoder(8), layers, TEXTS, Computing(checkpointing=True, chunk=4)) for layers in (3, 8)}
    states = ROWS * (PROMPT + COMPLETION) * 32 * 4
    assert of[8].kept - of[3].kept == 5 * states
    assert of[8].peak < update(decoder(8), 8, TEXTS, Computing(chunk=4)).peak


def test_chunks_bound_what_the_output_layer_takes():
    # A frozen output layer: of all 21 tokens at once, or of 3 at a time.
    model = decoder()
    model.lm_head.requires_grad_(False)
    long = Texts(8, 4, 60)
    whole, chunked = (update(model, 1, long, Computing(chunk=chunk)).peak for chunk in (480, 30))
    logits = 480 * 97 * 4
    assert whole - chunked > logits  # of which the whole has several


def test_half_precision_takes_half():
    full = update(decoder(), 2, TEXTS, Computing(), by="states").kept
    half = update(decoder(dtype=torch.bfloat16), 2, TEXTS, Computing(), by="states").kept
    assert 0.4 < half / full < 0.7  # norms compute in float32


def test_reading_takes_one_layer_at_a_time():
    few, many = (reading(decoder(layers), TEXTS, Computing(chunk=4)).peak for layers in (2, 9))
    assert few == many
    assert many < update(decoder(9), 9, TEXTS, Computing(chunk=4)).peak


# ---- keys and values


def test_keys_and_values_by_hand():
    # 9 layers, a key and a value of 2 heads of 8 numbers each, for 12 tokens of 3 texts, 4 bytes each.
    assert cache(decoder(9), TEXTS, Computing()).kept == 9 * 2 * (2 * 8) * (3 * 12) * 4
