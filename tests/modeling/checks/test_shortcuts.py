"""Shortcuts to log-probabilities against the plain forward, on every architecture that can be built small."""

import logging

import pytest
import torch

from rlhf_recipes.modeling.checks.shortcuts import TOKENS, check_shortcuts, few_rows, in_full_precision
from rlhf_recipes.modeling.roles import ActorCritic
from tests.architectures import BUILT, each, tiny_model

# Three prompts of 4, 2 and 3 tokens; completions of 6, 3 and 5.
GENERATOR = torch.Generator().manual_seed(0)
BATCH = {
    "prompt_ids": torch.randint(3, 300, (3, 4), generator=GENERATOR),
    "prompt_mask": torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]),
    "completion_ids": torch.randint(3, 300, (3, 6), generator=GENERATOR),
    "mask": torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]),
}
REAL = BATCH["mask"].bool()
TEMPERATURE = 0.7


@torch.no_grad()
def plain_logprobs(model):
    """`log softmax(logits / temperature)` of each completion token, from all logits that the model gives."""
    mask = torch.cat([BATCH["prompt_mask"], BATCH["mask"]], dim=1)
    ids = torch.cat([BATCH["prompt_ids"], BATCH["completion_ids"]], dim=1).masked_fill(mask == 0, 0)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    logprobs = torch.log_softmax(logits[:, 3:-1].float() / TEMPERATURE, dim=-1)
    return logprobs.gather(-1, BATCH["completion_ids"][..., None])[..., 0][REAL]


def checked(model, **options):
    roles = ActorCritic(model, model, logits_chunk_size=5, **options)
    check_shortcuts(roles, BATCH, TEMPERATURE)
    return roles


@pytest.mark.parametrize("name", each(BUILT))
def test_after_the_check_the_log_probabilities_are_those_of_the_plain_forward(name):
    model = tiny_model(name)
    roles, expected = checked(model), plain_logprobs(model)
    with torch.no_grad():
        policy = roles(**BATCH, temperature=TEMPERATURE)["logprobs"][REAL]
    reference = roles.reference_logprobs(**BATCH, temperature=TEMPERATURE)[REAL]
    torch.testing.assert_close(policy, expected, atol=1e-5, rtol=2e-6)
    torch.testing.assert_close(reference, expected, atol=1e-5, rtol=2e-6)


@pytest.mark.parametrize(
    ("name", "aside"),
    [
        ("llama", set()),  # goes through its body
        ("gemma2", set()),  # bounds its logits
        ("granite", set()),  # divides them
        ("opt", {"chunks"}),  # asks a part of its body
        ("llama4_text", {"chunks"}),  # names its body otherwise
        ("bart", {"chunks", "trimming"}),  # counts positions from the padding on
        ("rwkv", {"trimming"}),  # reads padding as text
    ],
)
def test_what_is_put_aside_is_said_in_one_line_each(name, aside, caplog):
    with caplog.at_level(logging.WARNING, logger="rlhf_recipes"):
        roles = checked(tiny_model(name))
    assert roles.put_aside == {"policy": aside, "reference": aside}
    assert {line.split(":")[0].lower() for line in caplog.messages} == aside
    assert len(caplog.messages) == len(aside)
    assert all("put aside for policy" in line and "and reference" in line for line in caplog.messages)


@pytest.mark.parametrize("name", ["minicpm3", "modernbert-decoder", "gpt2"])
def test_values_are_read_from_the_states_that_the_head_reads_in_chunks_too(name):
    """MiniCPM scales what its head reads, ModernBERT has a layer before it: the body's own states are others."""
    model, values = tiny_model(name), []
    for chunk in (None, 5):
        roles = ActorCritic(model, model, logits_chunk_size=chunk)
        torch.nn.init.normal_(roles.critic.weight, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            values.append(roles(**BATCH, temperature=1.0)["values"][REAL])
    assert values[0].std() > 0.01
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)


def test_gradients_go_through_chunks_as_through_the_plain_forward():
    gradients = []
    for chunk, keep in ((None, False), (5, True)):
        model = tiny_model("gemma2")
        roles = ActorCritic(model, model.eval(), reference_is_base=True, logits_chunk_size=chunk)
        roles.put_aside["policy"] = set() if keep else {"chunks", "kept logits"}
        model.requires_grad_(True)
        torch.nn.init.ones_(roles.critic.weight)
        said = roles(**BATCH, temperature=1.0)
        (said["logprobs"][REAL].sum() + said["values"][REAL].sum()).backward()
        gradients.append({name: parameter.grad for name, parameter in roles.named_parameters()})
    assert all(torch.allclose(gradients[0][name], gradients[1][name], atol=1e-4) for name in gradients[0])


def test_a_head_that_reads_narrower_states_has_a_value_head_of_that_width():
    model = tiny_model("opt", word_embed_proj_dim=16)  # as OPT-350m
    assert ActorCritic(model, model).critic.in_features == 16
    assert checked(model).put_aside["policy"] == {"chunks"}


@pytest.mark.parametrize(
    ("batch", "prompt", "completion", "rows"), [(64, 7, 53, 4), (64, 200, 500, 2), (3, 9, 4, 3), (8, 5000, 5000, 1)]
)
def test_few_rows_are_at_most_four_and_2048_tokens(batch, prompt, completion, rows):
    tokens = {name: torch.arange(prompt).repeat(batch, 1) for name in ("prompt_ids", "prompt_mask")}
    tokens |= {name: torch.arange(completion).repeat(batch, 1) for name in ("completion_ids", "mask")}
    few = few_rows(tokens)
    assert len(few["mask"]) == rows
    assert few["prompt_ids"].numel() + few["mask"].numel() <= TOKENS
    assert few["prompt_ids"][0, -1] == prompt - 1  # what stands before the completion is kept
    assert few["completion_ids"][0, 0] == 0


def test_precision_is_that_of_weights_and_of_autocast():
    model, device = tiny_model("llama"), torch.device("cpu")
    assert in_full_precision(model, device)
    with torch.autocast("cpu", torch.bfloat16):
        assert not in_full_precision(model, device)
    assert not in_full_precision(model.to(torch.bfloat16), device)
