"""Sampling in this process, and what is kept on the way: it equals what a plain forward of the whole text says."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from rlhf_recipes.modeling.generation import LocalGenerator, sampling_config, stable_key, token_lists, write
from tests.architectures import DECODERS, NOT_SAMPLED, each, tiny_model
from tests.tiny import tiny_causal_lm, tiny_tokenizer

CPU = torch.device("cpu")
TOKENIZER = tiny_tokenizer()
TEXTS = ("The film", "The film is a quiet, funny and moving story about two", "It", "A dull script and a tired")
PROMPTS = TOKENIZER(list(TEXTS))["input_ids"]
KEYS = [stable_key("local", row) for row in range(len(PROMPTS))]


def policy(**config):
    return tiny_causal_lm(TOKENIZER, initializer_range=0.3, num_layers=3, **config)


def sample(model, temperature=0.7, length=6, watch=None, chunk=64, thin=True, **options):
    config = sampling_config(TOKENIZER, model, length, temperature, **options)
    generator = LocalGenerator(model, TOKENIZER, watch, watch is not None, thin)
    return write(generator, PROMPTS, KEYS, config, CPU, chunk, TOKENIZER)


def assert_own_logprobs(model, written, temperature=0.7, prompts=PROMPTS):
    """Against a forward of each text alone, without padding or cache."""
    for row, (prompt, completion) in enumerate(zip(prompts, token_lists(written), strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        expected = torch.log_softmax(logits / temperature, dim=-1).gather(1, torch.tensor(completion)[:, None])
        n = len(completion)
        torch.testing.assert_close(written.logprobs[row, :n], expected.squeeze(1), atol=2e-5, rtol=1e-5)
        assert not written.logprobs[row, n:].any()


@pytest.mark.parametrize(
    "options",
    [
        {}, {"top_k": 7}, {"top_p": 0.5, "min_p": 0.01}, {"repetition_penalty": 2.0}, {"min_new_tokens": 5},
        {"repetition_penalty": 1.5, "top_k": 9}, {"no_repeat_ngram_size": 1}, {"use_cache": False},
        {"stop_strings": ["e", "a"]},
    ],
    ids=str,
)  # fmt: skip
def test_logprobs_are_the_policys_own_whatever_the_sampling(options):
    model = policy()
    assert_own_logprobs(model, sample(model, **options))


@pytest.mark.parametrize(
    ("options", "chunk", "adapters"),
    [({}, 64, False), ({}, 1, False), ({}, 3, True), ({"use_cache": False}, 3, False),
     ({"repetition_penalty": 1.5}, 64, True)],
)  # fmt: skip
def test_the_trunk_and_what_the_head_read_are_those_of_a_plain_forward(options, chunk, adapters):
    model = policy()
    layers = model.model.layers
    if adapters:
        config = LoraConfig(target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        model = get_peft_model(model, config).eval()
    written = sample(model, watch=layers[1], chunk=chunk, **options)
    assert_own_logprobs(model, written)
    width = written.prompt_ids.shape[1]
    for row, (prompt, completion) in enumerate(zip(PROMPTS, token_lists(written), strict=True)):
        with torch.no_grad():
            said = model(torch.tensor([prompt + completion]), output_hidden_states=True).hidden_states
        first, read = width - len(prompt), width + len(completion) - 1
        torch.testing.assert_close(written.trunk[row, first:read], said[2][0, :-1], atol=5e-5, rtol=1e-4)
        assert not written.trunk[row, :first].any()
        assert not written.trunk[row, read:].any()
        expected = said[-1][0, len(prompt) - 1 : -1]
        torch.testing.assert_close(written.head_inputs[row, : len(completion)], expected, atol=5e-5, rtol=1e-4)
        assert not written.head_inputs[row, len(completion) :].any()


@pytest.mark.parametrize(
    "name", each(["bloom", "cohere", "gemma2", "gpt2", "gpt_neox", "granite", "llama4_text", "mamba", "opt"])
)
def test_architectures_tell_the_logprobs_and_the_layers_that_they_have(name):
    model = tiny_model(name)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    prompts = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
    config = sampling_config(TOKENIZER, model, 5, 1.0, stop_token="none")
    written = write(LocalGenerator(model, None, layers[0], True), prompts, KEYS[:3], config, CPU)
    assert_own_logprobs(model, written, 1.0, prompts)
    for row, (prompt, completion) in enumerate(zip(prompts, token_lists(written), strict=True)):
        seen = []
        hook = layers[0].register_forward_hook(lambda layer, args, out, seen=seen: seen.append(out))
        with torch.no_grad():
            model(torch.tensor([prompt + completion]))
        hook.remove()
        expected = seen[0][0] if isinstance(seen[0], torch.Tensor) else seen[0][0][0]
        first = written.prompt_ids.shape[1] - len(prompt)
        torch.testing.assert_close(written.trunk[row, first:-1], expected[:-1], atol=2e-5, rtol=1e-4)


def test_without_a_layer_to_watch_nothing_but_logprobs_is_kept_and_no_hook_stays():
    model = policy()
    written = sample(model)
    assert written.trunk is written.head_inputs is None
    sample(model, watch=model.model.layers[0], repetition_penalty=1.5)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_layer_that_did_not_run_tells_nothing():
    model = policy()
    written = sample(model, watch=policy().model.layers[0])
    assert written.trunk is None
    assert written.head_inputs is not None


def test_the_head_is_given_no_slices():
    model, whole = policy(), []
    model.lm_head.register_forward_hook(lambda head, args, output: whole.append(args[0].is_contiguous()))
    sample(model, length=3)
    assert whole == [True] * 3
    with torch.no_grad():
        model(torch.tensor([PROMPTS[0]] * 2), logits_to_keep=1)  # as it is without: a slice, and slow
    assert whole[-1] is False


@pytest.mark.parametrize("name", ["hrm_text", "gemma3n_text"])
def test_a_layer_that_runs_twice_or_gives_another_shape_tells_nothing(name):
    model = tiny_model(name)
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    config = sampling_config(TOKENIZER, model, 4, 1.0, stop_token="none")
    written = write(LocalGenerator(model, None, layers[0], True), [[5, 6, 7], [8]], KEYS[:2], config, CPU)
    assert written.trunk is None
    assert_own_logprobs(model, written, 1.0, [[5, 6, 7], [8]])


def test_watching_changes_no_completion():
    model = policy()
    assert torch.equal(sample(model).completion_ids, sample(model, watch=model.model.layers[0]).completion_ids)


# --- Rows that have ended -----------------------------------------------------------------------


def rows_read(model):
    """How many rows each forward had, once the model has run."""
    counts = []
    model.register_forward_pre_hook(
        lambda model, args, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    return counts


def ends_of(ids, count):
    """Tokens that end some completions early: those that stand at place 1, 2, ... of the first ones."""
    return sorted({int(ids[row, row + 1]) for row in range(count)})


FAMILIES = ["bloom", "gemma2", "gemma3_text", "gpt2", "lfm2", "llama4_text", "mamba", "mixtral"]


@pytest.mark.parametrize("name", each(DECODERS, FAMILIES))
def test_going_on_without_rows_that_have_ended_changes_nothing(name):
    if name in NOT_SAMPLED:
        pytest.skip(NOT_SAMPLED[name])
    model = tiny_model(name)
    prompts = [[5, 6, 7], [8, 9], [9, 10, 11, 12, 13], [4, 5], [7, 7, 7, 7], [20, 21]]
    layers = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    keys = list(range(6))

    def run(ends, thin):
        config = sampling_config(TOKENIZER, model, 8, 1.0, stop_token="none", stop_token_id=ends)
        return write(LocalGenerator(model, None, layers[0], True, thin), prompts, keys, config, CPU)

    ends = ends_of(run([], False).completion_ids, 4)
    plain, thinned = run(ends, False), run(ends, True)
    assert plain.finished.sum() >= 4
    assert torch.equal(plain.completion_ids, thinned.completion_ids)
    for told in ("logprobs", "trunk", "head_inputs"):
        one, other = getattr(plain, told), getattr(thinned, told)
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [{"top_k": 20}, {"stop_strings": ["a", "e", "i"]}, {}], ids=str)
def test_rows_that_have_ended_are_read_no_more(options):
    model = policy()
    ends = ends_of(sample(model, length=8, stop_token="none").completion_ids, 2)
    options = options | {"stop_token": "none", "stop_token_id": ends, "length": 8}
    counts = rows_read(model)
    thinned = sample(model, **options)
    lengths = thinned.mask.sum(dim=1)
    # One forward for the prompts, then one for each token but a row's last: rows are left out as soon as they end.
    assert counts == [int((lengths > step).sum()) for step in range(int(lengths.max()))]
    assert min(counts) < 4
    counts.clear()
    plain = sample(model, thin=False, **options)
    assert set(counts) == {4}
    assert torch.equal(plain.completion_ids, thinned.completion_ids)


@pytest.mark.parametrize(
    "options",
    [{"min_new_tokens": 3}, {"repetition_penalty": 1.5}, {"use_cache": False}, {"cache_implementation": "static"}],
    ids=str,
)  # fmt: skip
def test_where_more_than_the_cache_goes_from_step_to_step_all_rows_stay(options):
    model = policy()
    ends = ends_of(sample(model, length=8, stop_token="none", **options).completion_ids, 2)
    counts = rows_read(model)
    sample(model, length=8, stop_token="none", stop_token_id=ends, **options)
    assert set(counts) == {4}


def test_where_processes_share_the_weights_all_rows_stay():
    """Each process must run as many forwards as the others, whose completions end elsewhere."""
    model = policy()
    ends = ends_of(sample(model, length=8, stop_token="none").completion_ids, 2)
    model.lm_head.weight.ds_id = 0  # DeepSpeed's mark of a weight that ZeRO-3 has divided
    counts = rows_read(model)
    sample(model, length=8, stop_token="none", stop_token_id=ends)
    assert set(counts) == {4}
