"""Sampling: the right distribution, the same completions however they are batched, and what counts as a token."""

import pytest
import torch
from transformers import GenerationConfig

from rlhf_recipes.modeling.generation import (
    LocalGenerator,
    sampling_config,
    stable_key,
    token_lists,
    write,
)
from rlhf_recipes.modeling.generation.draw import uniform
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.ppo.rollout import Rollout, read
from tests.tiny import tiny_causal_lm, tiny_tokenizer

CPU = torch.device("cpu")
T = 8


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


@pytest.fixture
def policy(tokenizer):
    # Wide enough weights that the next token depends on all tokens before it.
    return tiny_causal_lm(tokenizer, initializer_range=0.3)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    words = [
        "The",
        "film",
        "is",
        "a",
        "quiet",
        ",",
        "funny",
        "and",
        "moving",
        "story",
        "about",
        "two",
        "brothers",
        ".",
    ]
    return tokenizer([" ".join(words[: n + 1]) for n in (0, 7, 3, 12, 1, 5, 2, 9)])["input_ids"]


KEYS = [stable_key(7, "train", episode) for episode in range(8)]


def draw(policy, tokenizer, prompts, keys=KEYS, chunk=64, temperature=1.0, length=T):
    config = sampling_config(tokenizer, policy, length, temperature)
    roles = ActorCritic(policy)
    written = write(LocalGenerator(policy), prompts, keys, config, CPU, chunk)
    return read(roles, written, temperature, chunk)


def test_token_lists_are_without_padding_and_keep_the_end():
    zeros = torch.zeros(2, 3)
    rollout = Rollout(
        prompt_ids=zeros,
        prompt_mask=zeros,
        completion_ids=torch.tensor([[5, 2, 0], [5, 6, 7]]),
        mask=torch.tensor([[1, 1, 0], [1, 1, 1]]),
        logprobs=zeros,
        ref_logprobs=zeros,
        values=zeros,
        finished=torch.tensor([True, False]),
    )
    assert token_lists(rollout) == [[5, 2], [5, 6, 7]]
    assert len(rollout) == 2
    assert rollout[torch.tensor([1])]["completion_ids"].tolist() == [[5, 6, 7]]
    assert "scores" not in rollout.tensors()


# --- Whole completions --------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [4, 3, 1])
def test_the_split_into_batches_changes_no_completion(policy, tokenizer, prompts, chunk):
    whole, split = (draw(policy, tokenizer, prompts, chunk=c) for c in (8, chunk))
    assert torch.equal(whole.completion_ids, split.completion_ids)
    assert torch.equal(whole.mask, split.mask)
    real = whole.mask.bool()
    for name in ("logprobs", "ref_logprobs", "values"):
        torch.testing.assert_close(getattr(whole, name)[real], getattr(split, name)[real], atol=1e-5, rtol=0)


def test_left_padding_changes_no_completion(policy, tokenizer, prompts):
    together = draw(policy, tokenizer, prompts)
    for row, prompt in enumerate(prompts):
        alone = draw(policy, tokenizer, [prompt], KEYS[row : row + 1])
        assert torch.equal(together.completion_ids[row], alone.completion_ids[0])


def test_the_order_of_rows_moves_completions_along_with_their_keys(policy, tokenizer, prompts):
    forward, backward = draw(policy, tokenizer, prompts), draw(policy, tokenizer, prompts[::-1], KEYS[::-1])
    assert torch.equal(forward.completion_ids, backward.completion_ids.flip(0))


def test_the_same_key_repeats_a_completion_and_another_does_not(policy, tokenizer, prompts):
    again, other = [[stable_key(seed, e) for e in range(8)] for seed in (0, 1)]
    first = draw(policy, tokenizer, prompts, again).completion_ids
    torch.manual_seed(123)  # the global generator has no part in it
    assert torch.equal(first, draw(policy, tokenizer, prompts, again).completion_ids)
    assert not torch.equal(first, draw(policy, tokenizer, prompts, other).completion_ids)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_plain_forward_of_the_unpadded_text(policy, tokenizer, prompts, temperature):
    rollout = draw(policy, tokenizer, prompts, temperature=temperature)
    for row, (prompt, completion) in enumerate(zip(prompts, token_lists(rollout), strict=True)):
        with torch.no_grad():
            logits = policy(torch.tensor([prompt + completion])).logits[0]
        expected = [
            torch.log_softmax(logits[len(prompt) + t - 1] / temperature, dim=0)[token].item()
            for t, token in enumerate(completion)
        ]
        torch.testing.assert_close(rollout.logprobs[row, : len(completion)], torch.tensor(expected), atol=1e-5, rtol=0)
        torch.testing.assert_close(rollout.ref_logprobs[row], rollout.logprobs[row])


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_first_token_is_drawn_from_the_softmax_of_the_models_logits(policy, tokenizer, prompts, temperature):
    n, prompt = 3000, prompts[1]
    rollout = draw(
        policy,
        tokenizer,
        [prompt] * n,
        [stable_key("first", i) for i in range(n)],
        chunk=500,
        temperature=temperature,
        length=1,
    )
    with torch.no_grad():
        p = torch.softmax(policy(torch.tensor([prompt])).logits[0, -1] / temperature, dim=0)
    # Tokens expected 20 times or more, the rest together: each count within 4.5 standard deviations.
    counts = torch.bincount(rollout.completion_ids[:, 0], minlength=len(p))
    often = n * p >= 20
    assert often.sum() > 10
    p = torch.cat([p[often], p[~often].sum()[None]])
    counts = torch.cat([counts[often], counts[~often].sum()[None]])
    assert ((counts - n * p).abs() < 4.5 * (n * p * (1 - p)).sqrt() + 1).all()


def test_an_end_as_the_first_token_leaves_a_completion_of_one_token(policy, tokenizer, prompts):
    torch.nn.init.zeros_(policy.lm_head.weight)  # all tokens are equally likely
    share = tokenizer.eos_token_id / len(tokenizer)  # where the end-of-sequence token begins
    numbers = uniform(torch.arange(9999), 0)
    key = next(k for k, u in enumerate(numbers.tolist()) if share <= u < share + 1 / len(tokenizer))
    rollout = draw(policy, tokenizer, prompts[:1], [key])
    assert token_lists(rollout) == [[tokenizer.eos_token_id]]
    assert rollout.finished.tolist() == [True]
    assert rollout.completion_ids.shape == (1, T)


def model_defaults(tokenizer):
    """One at a time: defaults that a model's generation_config.json may bring along."""
    all_but_few = [[token] for token in range(10, 60)]
    return {
        "nothing": {},
        "top_k": {"do_sample": True, "top_k": 5},
        "top_p": {"do_sample": True, "top_p": 0.3, "min_p": 0.2},
        "temperature": {"do_sample": True, "temperature": 0.1},
        "repetition_penalty": {"repetition_penalty": 3.0},
        "no_repeat_ngram_size": {"no_repeat_ngram_size": 1},
        "min_new_tokens": {"min_new_tokens": T},
        "min_length": {"min_length": 100},
        "suppress_tokens": {"suppress_tokens": list(range(10, 60))},
        "begin_suppress_tokens": {"begin_suppress_tokens": list(range(10, 60))},
        "bad_words_ids": {"bad_words_ids": all_but_few},
        "forced_bos_token_id": {"forced_bos_token_id": 7},
        "forced_eos_token_id": {"forced_eos_token_id": tokenizer.eos_token_id},
        "sequence_bias": {"sequence_bias": [[[token], 50.0] for token in range(10, 20)]},
        "exponential_decay_length_penalty": {"exponential_decay_length_penalty": (1, 5.0)},
        "num_beams": {"num_beams": 3},
        "num_return_sequences": {"do_sample": True, "num_return_sequences": 2},
        "encoder_repetition_penalty": {"encoder_repetition_penalty": 2.0},
        "max_length": {"max_length": 3},
        "prompt_lookup": {"prompt_lookup_num_tokens": 3},
        "use_cache": {"use_cache": False},
        "return_dict": {"return_dict_in_generate": True, "output_scores": True},
    }


@pytest.mark.parametrize("case", model_defaults(tiny_tokenizer()))
def test_generation_defaults_of_the_model_change_nothing(policy, tokenizer, prompts, case):
    plain = draw(policy, tokenizer, prompts)
    settings = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    policy.generation_config = GenerationConfig(**settings | model_defaults(tokenizer)[case])
    brought = policy.generation_config.to_dict()
    assert torch.equal(plain.completion_ids, draw(policy, tokenizer, prompts).completion_ids)
    assert policy.generation_config.to_dict() == brought  # the model keeps its own


def test_several_end_tokens_of_the_model_are_all_heeded(policy, tokenizer, prompts):
    plain = draw(policy, tokenizer, prompts)
    second_end = int(plain.completion_ids[3, 2])
    policy.generation_config.eos_token_id = [tokenizer.eos_token_id, second_end]
    rollout = draw(policy, tokenizer, prompts)
    assert token_lists(rollout)[3] == plain.completion_ids[3, :3].tolist()
    assert bool(rollout.finished[3])
    assert (rollout.completion_ids[3, 3:] == tokenizer.pad_token_id).all()
