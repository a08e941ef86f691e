import math
import pickle

import pytest
import torch

from rlhf_recipes.rewards import Acceptability, RewardError, Spelling, WeightedSum
from tests.tiny import save_tiny, tiny_causal_lm, tiny_tokenizer


def score(rule, *completions):
    return rule(
        prompts=[""] * len(completions), completions=list(completions), completion_ids=[[1]] * len(completions)
    )


def test_spelling_is_the_share_of_words_that_the_dictionary_has():
    assert score(Spelling(), "The film is good.", "Teh film is good", "Teh flim") == [1.0, 0.75, 0.0]
    assert score(Spelling(), "It's a WELL-known film's plot", "It’s", "dont", "ﬁlm") == [1.0, 1.0, 0.0, 1.0]


def test_what_cannot_be_judged_is_left_out():
    completions = [
        "...",
        "静かな映画。",
        "😀",
        "1995 film2 1990s 3.14",
        "http://flim.example/teh",
        "me@flim.de",
    ]
    assert score(Spelling(), *completions) == [None] * len(completions)
    assert score(Spelling(), "", " ", "\u200b") == [0.0] * 3  # nothing to see is the worst answer
    assert score(Spelling(), "静かな film 😀 2", "teh 静か", "a me@flim.de\nwww.flim.de film") == [1.0, 0.0, 1.0]
    assert score(Spelling("ru"), "film Тихий фильм", "film") == [1.0, None]


def test_letters_of_another_script_inside_a_word_make_it_wrong():
    assert score(Spelling(), "f\u0456lm") == [0.0]  # a Ukrainian i


def test_names_are_left_out_inside_a_sentence():
    text = "Zorbax said that Zorbax met Brother Zorbax. Zorbax left."
    # Judged are "Zorbax" at the two beginnings, and "said that met Brother left".
    assert score(Spelling(), text) == pytest.approx([5 / 7])
    assert score(Spelling(skip_names=False), text) == pytest.approx([5 / 9])
    assert score(Spelling("de"), "Das Haxx ist schön") == [0.75]
    assert score(Spelling("de", skip_names=True), "Das Haxx ist schön") == [1.0]


def test_extra_words_are_right(tmp_path):
    (tmp_path / "words.txt").write_text("Flim\n\nzorbax\n", encoding="utf-8")
    for extra in (["flim", "Zorbax"], tmp_path / "words.txt", str(tmp_path / "words.txt")):
        assert score(Spelling(extra=extra), "teh flim zorbax") == pytest.approx([2 / 3])
    rule = Spelling(extra=tmp_path / "words.txt")
    packed = pickle.dumps(rule)
    (tmp_path / "words.txt").unlink()
    assert pickle.loads(packed) == rule
    assert score(pickle.loads(packed), "flim") == [1.0]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("fr", "L'homme qu'il aime est là, aujourd'hui."),
        ("it", "L'uomo dell'anno è qui."),
        ("de", "Das Haus steht auf dem Hügel."),
        ("ru", "Он пошёл домой вчера."),
        ("ar", "ذَهَبَ الولد إلى المدرسة"),
        ("fa", "من به خانه می\u200cروم"),
    ],
)
def test_other_languages_have_their_own_dictionaries(language, text):
    assert score(Spelling(language), text) == [1.0]
    assert score(Spelling(), text)[0] in (None, pytest.approx(0.0, abs=0.5))


def test_spelling_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(ValueError, match="no dictionary of 'zh'. It has ar, de, en"):
        Spelling("zh")
    with pytest.raises(FileNotFoundError, match="no text file at"):
        Spelling(extra=tmp_path / "none.txt")


def test_spelling_judges_each_row_alone_and_adds_up():
    completions = ["teh film", "", "Good Zorbax", "flim " * 10_000, "a'" * 10_000]
    together = score(Spelling(), *completions)
    assert together == [score(Spelling(), text)[0] for text in completions]
    assert together[:4] == [0.5, 0.0, 1.0, 0.0]
    assert score(pickle.loads(pickle.dumps(Spelling())), *completions) == together
    assert score(WeightedSum([Spelling()], weights=[2.0]), "teh film") == [1.0]
    assert Spelling()(completions=[[{"role": "assistant", "content": "teh film"}]]) == [0.5]


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
        ({"measure": "norm"}, "'slor', 'mean' or 'pen', not 'norm'"),
        ({"measure": "mean", "corpus": ["a"]}, "corpus is for 'slor'; 'mean' has no use"),
        ({"corpus": [""]}, "no text to count tokens in"),
        ({"alpha": -1}, "alpha is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_acceptability_refuses_what_measures_nothing(settings, words):
    model, tokenizer = language_model()
    with pytest.raises(ValueError, match=words):
        Acceptability(model, processing_class=tokenizer, **settings)
