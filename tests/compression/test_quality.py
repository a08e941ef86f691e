"""Qualities, worked out by hand from what a model says."""

import math

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax

from rlhf_recipes.compression.quality import accuracy, likelihood, preference, rewarded
from tests.compression.toys import deep_model, token_batches
from tests.tiny import tiny_classifier, tiny_tokenizer


def test_likelihood_is_one_over_the_perplexity_of_real_tokens():
    model, batches = deep_model("llama"), token_batches()
    logprobs = []
    for batch in batches:
        with torch.no_grad():
            said = log_softmax(model(**batch).logits.numpy().astype(float), axis=-1)
        for row, length in enumerate(batch["attention_mask"].sum(dim=1).tolist()):
            ids = batch["input_ids"][row].tolist()
            logprobs += [said[row, t, ids[t + 1]] for t in range(length - 1)]
    assert likelihood().of(model, batches) == pytest.approx(math.exp(np.mean(logprobs)), rel=1e-5)
    loss = likelihood().loss(model, batches[0])
    expected = -np.mean(logprobs[:13])  # 8 and 5 tokens
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()


@pytest.mark.parametrize("labels", [1, 3])
def test_accuracy_and_preferences_are_those_of_the_logits(labels):
    model = tiny_classifier(tiny_tokenizer("bert"), num_labels=labels)
    batches = token_batches(rows=4)
    for batch in batches:
        batch["input_ids"] = batch["input_ids"] % 200
    with torch.no_grad():
        said = [model(**batch).logits.numpy().astype(float) for batch in batches]
    for batch in batches:
        batch["labels"] = torch.tensor([0, 1, 1, 0])
    found = [logits.argmax(1) if labels > 1 else (logits[:, 0] > 0).astype(int) for logits in said]
    assert accuracy().of(model, batches) == pytest.approx(np.mean(np.array(found) == [0, 1, 1, 0]))
    accuracy().loss(model, batches[0]).backward()
    if labels == 1:
        margins = np.concatenate([logits[::2, 0] - logits[1::2, 0] for logits in said])
        assert preference().of(model, batches) == pytest.approx(np.exp(np.mean(np.log(expit(margins)))), rel=1e-5)
        assert preference(likelihood=False).of(model, batches) == np.mean(margins > 0)


def test_any_reward_is_a_mean_over_what_the_model_writes():
    tokenizer = tiny_tokenizer()

    def letters(prompts, completions, completion_ids, wanted, **kwargs):
        return [None if w is None else float(len(c) - w) for c, w in zip(completions, wanted, strict=True)]

    def write(model, batch):
        return tokenizer([prompt + "!" for prompt in batch["prompts"]]).input_ids

    quality = rewarded(letters, write, tokenizer)
    batches = [{"prompts": ["ab", "abc", "a"], "wanted": [1, 9, None]}, {"prompts": ["x"], "wanted": [0]}]
    assert quality.of(None, batches) == pytest.approx((2 - 5 + 2) / 3)
    assert not quality.nonnegative
    assert not quality.one_pass


def test_a_constant_reward_is_refused():
    def always(prompts, completions, completion_ids, **kwargs):
        return [1.0] * len(prompts)

    always.constant = True
    with pytest.raises(ValueError, match="'always' is the same for all completions"):
        rewarded(always, lambda model, batch: [], tiny_tokenizer())
