"""Scores of heads, neurons and layers, worked out again with numpy and loops."""

import numpy as np
import pytest
import torch

from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.importance import block_influence, importance_of, input_norms
from tests.compression.toys import FAMILIES, deep_model, token_batches


@pytest.mark.parametrize("name", FAMILIES)
def test_block_influence_is_one_less_the_mean_cosine_of_hidden_states(name):
    model, batches = deep_model(name), token_batches()
    cosines = [[] for _ in range(4)]
    last = {}
    parts = parts_of(model)
    hook = parts.layers[-1].register_forward_hook(lambda m, a, out: last.update(out=out))
    for batch in batches:
        with torch.no_grad():
            states = model(**batch, output_hidden_states=True).hidden_states
        # The last of these has a norm behind it in some families.
        states = [s.numpy().astype(float) for s in (*states[:4], last["out"])]
        for row, real in enumerate(batch["attention_mask"].bool().tolist()):
            for t in np.flatnonzero(real):
                for layer in range(4):
                    x, y = states[layer][row, t], states[layer + 1][row, t]
                    cosines[layer].append(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    hook.remove()
    assert block_influence(model, batches) == pytest.approx([1 - np.mean(c) for c in cosines], abs=1e-6)


@pytest.mark.parametrize("name", FAMILIES)
def test_wanda_adds_up_the_scores_of_single_weights(name):
    model, batches = deep_model(name), token_batches()
    parts, found = parts_of(model), importance_of(model, "wanda", batches)
    norms = input_norms(model, batches)
    for layer in (0, 3):
        for name_of, scores, units in (
            (parts.family.out, found.heads[layer], parts.heads),
            (parts.family.down, found.neurons[layer], parts.neurons),
        ):
            module = parts.at(layer, name_of)
            weight = module.weight.detach().numpy().astype(float)
            weight = weight if isinstance(module, torch.nn.Linear) else weight.T
            single = np.abs(weight) * norms[layer, name_of].numpy()[None]
            width = weight.shape[1] // units
            expected = [single[:, u * width : (u + 1) * width].sum() for u in range(units)]
            np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_norms_are_those_of_real_tokens_over_all_batches():
    model, batches = deep_model("llama"), token_batches()
    seen = []
    module = model.model.layers[1].mlp.down_proj
    hook = module.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach().numpy().astype(float)))
    for batch in batches:
        model(**batch)
    hook.remove()
    rows = np.concatenate([x[b["attention_mask"].bool().numpy()] for x, b in zip(seen, batches, strict=True)])
    found = input_norms(model, batches)[1, "mlp.down_proj"].numpy()
    np.testing.assert_allclose(found, np.linalg.norm(rows, axis=0), rtol=1e-6)


def test_magnitude_is_the_norm_of_all_weights_of_a_unit():
    model = deep_model("qwen2")  # 4 query heads of 8 in 2 groups, with biases
    layer = model.model.layers[2]
    found = importance_of(model, "magnitude")
    w = {name: p.detach().numpy().astype(float) for name, p in layer.named_parameters()}
    for group in range(2):
        q, kv = slice(16 * group, 16 * group + 16), slice(8 * group, 8 * group + 8)
        squares = (w["self_attn.o_proj.weight"][:, q] ** 2).sum()
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            squares += (w[f"self_attn.{name}_proj.weight"][rows] ** 2).sum()
            squares += (w[f"self_attn.{name}_proj.bias"][rows] ** 2).sum()
        assert found.heads[2][group] == pytest.approx(squares**0.5, rel=1e-9)
    gate, up, down = (w[f"mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    expected = np.sqrt((gate**2).sum(1) + (up**2).sum(1) + (down**2).sum(0))
    np.testing.assert_allclose(found.neurons[2], expected, rtol=1e-9)


def test_random_scores_are_those_of_the_seed():
    model = deep_model("gpt2")
    one, same, other = (importance_of(model, "random", seed=seed) for seed in (1, 1, 2))
    assert one == same != other
    assert (len(one.heads), len(one.heads[0]), len(one.neurons[0])) == (4, 4, 64)


def test_errors_say_what_is_wrong():
    model = deep_model("llama")
    with pytest.raises(ValueError, match="can be magnitude, wanda, random"):
        importance_of(model, "taylor")
    for call in (lambda b: importance_of(model, "wanda", b), lambda b: block_influence(model, b)):
        with pytest.raises(ValueError, match="has 1 rows"):
            call([{"input_ids": torch.ones(1, 5, dtype=torch.long)}])
    empty = token_batches(1)[0]
    empty["attention_mask"] = torch.tensor([[1] * 9, [0] * 9])
    with pytest.raises(ValueError, match="Row 1 of calibration batch 0 has no token"):
        block_influence(model, [empty])
