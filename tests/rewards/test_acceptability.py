import math
import pickle

import pytest
import torch

from rlhf_recipes.rewards import Acceptability, RewardError, WeightedSum
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer

PROMPTS = ["The film is", "A dull script", "It was bad, but", ""]
COMPLETIONS = [" good.", " and a tired cast make this a long evening for us.", " the music was great 😀", "静か"]


def language_model():
    tokenizer = tiny_tokenizer()
    # Drawn wide, so that tokens differ in probability.
    return tiny_causal_lm(tokenizer, initializer_range=0.5), tokenizer


def tokens_and_logprobs(model, tokenizer, prompt, completion):
    """One completion without any batch; the tiny tokenizer puts a boundary between prompt and completion here."""
    before = tokenizer(prompt).input_ids or [tokenizer.bos_token_id]
    after = tokenizer(completion).input_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([before + after])).logits[0].log_softmax(dim=-1)
    return after, [logprobs[len(before) + t - 1, token].item() for t, token in enumerate(after)]


def test_mean_and_penalized_log_probability():
    model, tokenizer = language_model()
    rows = [tokens_and_logprobs(model, tokenizer, *row)[1] for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    mean = Acceptability(model, "mean", processing_class=tokenizer)
    assert mean(PROMPTS, COMPLETIONS) == pytest.approx([sum(row) / len(row) for row in rows], rel=1e-4)
    pen = Acceptability(model, "pen", processing_class=tokenizer, batch_size=1)
    expected = [sum(row) / ((5 + len(row)) / (5 + 1)) ** 0.8 for row in rows]
    assert pen(PROMPTS, COMPLETIONS) == pytest.approx(expected, rel=1e-4)
    total = Acceptability(model, "pen", alpha=0, processing_class=tokenizer)
    assert total(PROMPTS, COMPLETIONS) == pytest.approx([sum(row) for row in rows], rel=1e-4)


def test_slor_takes_the_first_token_of_a_text_for_a_unigram():
    model, tokenizer = language_model()
    with torch.no_grad():
        first = model(torch.tensor([[tokenizer.bos_token_id]])).logits[0, 0].log_softmax(dim=-1).tolist()
    assert sum(math.exp(value) for value in first) == pytest.approx(1.0, rel=1e-4)
    expected = []
    for row in zip(PROMPTS, COMPLETIONS, strict=True):
        tokens, logprobs = tokens_and_logprobs(model, tokenizer, *row)
        expected.append((sum(logprobs) - sum(first[token] for token in tokens)) / len(tokens))
    reward = Acceptability(model, processing_class=tokenizer)
    assert reward(PROMPTS, COMPLETIONS) == pytest.approx(expected, abs=1e-3)
    # A text of one token, read alone, is exactly as probable as it is anywhere.
    alone = Acceptability(model, processing_class=tokenizer, on_prompt=False)
    assert alone(["The film is"], ["!"]) == pytest.approx([0.0], abs=1e-4)


def test_slor_counts_tokens_in_a_corpus(tmp_path):
    model, tokenizer = language_model()
    (tmp_path / "corpus.txt").write_text("!!!\n!?\n", encoding="utf-8")
    vocabulary = model.config.vocab_size
    unigram = {"!": math.log((4 + 1) / (5 + vocabulary)), ".": math.log(1 / (5 + vocabulary))}
    for corpus in (["!!!", "!?"], tmp_path / "corpus.txt"):
        reward = Acceptability(model, corpus=corpus, processing_class=tokenizer)
        for text, expected in unigram.items():
            _, (logprob,) = tokens_and_logprobs(model, tokenizer, "It is", text)
            assert reward(["It is"], [text]) == pytest.approx([logprob - expected], abs=1e-4)


def test_the_prompt_can_be_left_out():
    model, tokenizer = language_model()
    alone = Acceptability(model, "mean", on_prompt=False, processing_class=tokenizer)
    after = Acceptability(model, "mean", processing_class=tokenizer)
    assert alone(PROMPTS, COMPLETIONS) == pytest.approx(after([""] * 4, COMPLETIONS), rel=1e-5)
    assert alone(PROMPTS[:1], COMPLETIONS[:1])[0] != pytest.approx(after(PROMPTS, COMPLETIONS)[0], abs=1e-3)


@pytest.mark.parametrize("measure", ["slor", "mean", "pen"])
def test_a_blank_completion_is_neither_and_a_long_one_is_cut(measure):
    model, tokenizer = language_model()
    values = Acceptability(model, measure, processing_class=tokenizer)(
        ["It is"] * 5, ["", " \n", "...", "😀", "good film " * 2000]
    )
    assert values[:2] == [None, None]
    assert all(math.isfinite(value) for value in values[2:])


def test_of_a_completion_that_is_cut_the_end_is_scored():
    model, tokenizer = language_model()
    tokens, _ = tokens_and_logprobs(model, tokenizer, "", COMPLETIONS[1])
    last = tokens[-6:]  # what is read; the first of these has nothing before it
    with torch.no_grad():
        logprobs = model(torch.tensor([last])).logits[0].log_softmax(dim=-1)
    reward = Acceptability(model, processing_class=tokenizer, max_length=6)
    terms = [logprobs[t, last[t + 1]].item() - reward.unigrams[last[t + 1]] for t in range(5)]
    assert len(tokens) > 6
    assert reward([""], [COMPLETIONS[1]]) == pytest.approx([sum(terms) / 5], abs=1e-3)


def test_a_model_that_gives_nan_is_named():
    model, tokenizer = language_model()
    reward = Acceptability(model, processing_class=tokenizer, name="taste")
    model.lm_head.weight.data[:] = float("nan")
    with pytest.raises(RewardError, match="reward 'taste' gave nan"):
        reward(["It is"], [" good"])


def test_a_saved_model_survives_pickling_and_adds_up(tmp_path):
    folder = save_tiny(tmp_path / "lm", *language_model())
    reward = Acceptability(folder, device="cpu")
    values = reward(PROMPTS, COMPLETIONS)
    assert pickle.loads(pickle.dumps(reward))(PROMPTS, COMPLETIONS) == values
    assert values == pytest.approx([reward([p], [c])[0] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)], abs=1e-4)
    total = WeightedSum([reward], weights=[2.0])
    assert total(PROMPTS, COMPLETIONS, [[1]] * 4) == pytest.approx([2 * value for value in values])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"measure": "norm"}, "measure of Acceptability is 'norm'; it must be one of slor, mean, pen"),
        ({"measure": "mean", "corpus": ["a"]}, "corpus is for 'slor'; 'mean' has no use"),
        ({"corpus": [""]}, "no text to count tokens in"),
        ({"alpha": -1}, "alpha of Acceptability is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_acceptability_refuses_what_measures_nothing(settings, words):
    model, tokenizer = language_model()
    with pytest.raises(ValueError, match=words):
        Acceptability(model, processing_class=tokenizer, **settings)
