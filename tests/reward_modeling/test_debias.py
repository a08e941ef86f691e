import json
import logging
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from rlhf_recipes.reward_modeling.bias.correction import Correction, ResidualReward
from rlhf_recipes.reward_modeling.bias.statistics import partial_correlation
from rlhf_recipes.reward_modeling.debias import COVARIATES, balance_pairs, covariates, group_penalty, residual_scores
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer


def word_count(prompts, completions, **kwargs):
    return [float(len(text.split())) if text else None for text in completions]


# --- covariates ------------------------------------------------------------------------------------------


def test_covariates_worked_out_by_hand():
    texts = [
        " one two \n",
        "# Top\n- **two** words\n",  # marks: #, -, ** and **; 17 visible characters
        "a b c a b c",  # four runs of three, one of them again
        "",
    ]
    found = covariates(texts, ["length", "format", "repetition"])
    assert found[:, 0].tolist() == [7, 21, 11, 0]
    assert found[:, 1] == pytest.approx([0, 6 / 17, 0, 0])
    assert found[:, 2] == pytest.approx([0, 0, 1 / 4, 0])


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("well-known - a dash, 3. not a list", 0),
        ("1. one\n2) two", 4 / 10),
        ("> said", 1 / 5),
        ("`f(x)` | y", 3 / 8),
        ("---", 1),
        ("#hashtag", 0),
        ("5 * 3", 0),
        ("*so*", 2 / 4),
    ],
)
def test_what_is_formatting(text, share):
    assert covariates([text], ["format"])[0, 0] == pytest.approx(share)


def test_covariates_of_messages_are_those_of_their_texts():
    message = [{"role": "assistant", "content": "- four"}]
    assert covariates([message]).tolist() == covariates(["- four"]).tolist()
    assert covariates([], ["length"]).shape == (0, 1)


@pytest.mark.parametrize("names", [["size"], [], ["length", "length"], "length"])
def test_unknown_covariates_are_refused(names):
    with pytest.raises(ValueError, match="length, format, repetition"):
        covariates(["text"], names)


# --- in the loss -----------------------------------------------------------------------------------------


def test_residual_scores_worked_out_by_hand():
    # Two covariates that have nothing to do with each other: s = 1 + 2 a + 3 b + e, with e orthogonal to all.
    a, b = torch.tensor([-1.0, -1.0, 1.0, 1.0]), torch.tensor([-1.0, 1.0, -1.0, 1.0])
    e = torch.tensor([0.5, -0.5, -0.5, 0.5])
    x = torch.stack([a, b], dim=-1)
    assert residual_scores(1 + 2 * a + 3 * b + e, x).tolist() == pytest.approx(e.tolist(), abs=1e-6)
    assert residual_scores(1 + 2 * a + 3 * b + e, x, keep_mean=True).tolist() == pytest.approx((1 + e).tolist())


def test_residual_scores_are_those_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, generator=generator)
    x = torch.randn(50, 3, generator=generator) * torch.tensor([1.0, 100.0, 1e-3]) + torch.tensor([0.0, 500.0, 1.0])
    fitted = linear_model.LinearRegression().fit(x.numpy(), scores.numpy())
    wanted = scores.numpy() - fitted.predict(x.numpy())
    assert residual_scores(scores, x).numpy() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("keep_mean", [False, True])
def test_padding_of_lists_counts_nothing(keep_mean):
    generator = torch.Generator().manual_seed(0)
    scores, x = torch.randn(6, 4, generator=generator), 100 + 30 * torch.randn(6, 4, generator=generator)
    mask = torch.rand(6, 4, generator=generator) > 0.3
    alone = residual_scores(scores[mask], x[mask][:, None], keep_mean=keep_mean)
    x[~mask] = math.nan
    found = residual_scores(scores, x[..., None], mask, keep_mean)
    assert torch.allclose(found[mask], alone, atol=1e-5)
    assert (found[~mask] == 0).all()


def test_neither_scores_nor_gradient_go_along_the_covariates():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 2, generator=generator)
    scores = torch.randn(40, generator=generator, requires_grad=True)
    left = residual_scores(scores, x)
    (left**3).sum().backward()
    centered = x - x.mean(dim=0)
    assert (centered.T @ left.detach()).abs().max() < 1e-4
    assert (centered.T @ scores.grad).abs().max() < 1e-4
    assert scores.grad.abs().max() > 0.1


def test_the_gradient_is_right():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    scores = torch.randn(7, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: residual_scores(s, x), (scores,))


def test_constant_and_repeated_covariates_take_nothing_more_out():
    generator = torch.Generator().manual_seed(0)
    scores, a = torch.randn(20, generator=generator), torch.randn(20, generator=generator)
    alone = residual_scores(scores, a[:, None])
    together = residual_scores(scores, torch.stack([a, torch.full_like(a, 0.1), 3 * a + 2], dim=-1))
    assert torch.allclose(alone, together, atol=1e-5)
    constant = residual_scores(scores, torch.ones(20, 1))
    assert torch.allclose(constant, scores - scores.mean(), atol=1e-6)


def test_residual_scores_of_one_text_and_bfloat16():
    assert residual_scores(torch.tensor([3.0]), torch.tensor([[2.0, 1.0]])).tolist() == [0.0]
    assert residual_scores(torch.randn(4).bfloat16(), torch.randn(4, 1)).dtype == torch.float32
    with pytest.raises(ValueError, match="one more dimension"):
        residual_scores(torch.zeros(4), torch.zeros(4))


def test_group_penalty_worked_out_by_hand():
    scores = torch.tensor([1.0, 3.0, 0.0, 5.0, 9.0, 9.0])
    targets = torch.tensor([0.0, 2.0, 1.0, 2.0, math.nan, 0.0])
    groups = torch.tensor([0, 0, 7, 2, 2, -1])
    # Mean residuals: 1, -1 and 3; squared differences 4, 4 and 16. The row without a rating or a group counts nothing.
    assert group_penalty(scores, targets, groups).item() == pytest.approx(8.0)
    assert group_penalty(scores[:3], targets[:3], groups[:3]).item() == pytest.approx(4.0)


def test_the_gradient_of_the_group_penalty():
    # (m_0 - m_1)^2 with means of two and one rows: 2 (m_0 - m_1) times 1/2, 1/2 and -1; m_0 - m_1 = 2.
    scores = torch.tensor([1.0, 3.0, 0.0], requires_grad=True)
    group_penalty(scores, torch.zeros(3), torch.tensor([0, 0, 1])).backward()
    assert scores.grad.tolist() == pytest.approx([2.0, 2.0, -4.0])


def test_a_batch_with_one_group_has_no_penalty():
    scores = torch.tensor([1.0, 3.0], requires_grad=True)
    penalty = group_penalty(scores, torch.zeros(2), torch.tensor([4, 4]))
    penalty.backward()
    assert penalty.item() == 0.0
    assert scores.grad.tolist() == [0.0, 0.0]


def test_bad_groups_are_refused():
    with pytest.raises(ValueError, match="one of each"):
        group_penalty(torch.zeros(2), torch.zeros(2), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="integer"):
        group_penalty(torch.zeros(2), torch.zeros(2), torch.zeros(2))


# --- before training -------------------------------------------------------------------------------------


def pairs(longer=8, shorter=2, equal=1, margin=None):
    chosen = ["a longer text"] * longer + ["short"] * shorter + ["same"] * equal
    rejected = ["short"] * longer + ["a longer text"] * shorter + ["same"] * equal
    columns = {"chosen": chosen, "rejected": rejected}
    return Dataset.from_dict(columns if margin is None else {**columns, "margin": margin})


def signs(dataset):
    return [np.sign(len(a) - len(b)) for a, b in zip(dataset["chosen"], dataset["rejected"], strict=True)]


def test_pairs_are_dropped_until_they_balance(caplog):
    with caplog.at_level(logging.INFO):
        balanced = balance_pairs(pairs())
    assert sorted(signs(balanced)) == [-1, -1, 0, 1, 1]
    assert "had more of the covariate in 8 and less in 2; now in 2 and 2" in caplog.text
    assert balance_pairs(pairs(), seed=3)["chosen"] == balance_pairs(pairs(), seed=3)["chosen"]


def test_pairs_are_weighed_so_that_they_balance(caplog):
    with caplog.at_level(logging.INFO):
        balanced = balance_pairs(pairs(), how="weigh")
    assert balanced["weight"][:] == pytest.approx([10 / 16] * 8 + [10 / 4] * 2 + [1.0])
    # (sum w)^2 / sum w^2 = 11^2 / (8 * 0.390625 + 2 * 6.25 + 1)
    assert "worth 7 pairs" in caplog.text
    again = balance_pairs(pairs().add_column("weight", [2.0] * 11), how="weigh")
    assert again["weight"][:] == pytest.approx([10 / 8] * 8 + [10 / 2] * 2 + [2.0])


def test_each_stratum_of_the_margin_is_balanced():
    # At margin 1: three longer, one shorter; at margin 2: one longer, three shorter. As a whole it looks balanced.
    rows = pairs(4, 4, 0, margin=[1.0, 1.0, 1.0, 2.0, 1.0, 2.0, 2.0, 2.0])
    balanced = balance_pairs(rows, strata=2)
    found = sorted(zip(balanced["margin"], signs(balanced), strict=True))
    assert found == [(1.0, -1), (1.0, 1), (2.0, -1), (2.0, 1)]
    assert len(balance_pairs(rows, strata=1)) == 8


def test_pairs_without_a_margin_are_a_stratum_of_their_own():
    rows = pairs(4, 2, 0, margin=[1.0, 1.0, None, None, 1.0, None])
    balanced = balance_pairs(rows)
    assert sorted(zip([m is None for m in balanced["margin"]], signs(balanced), strict=True)) == [
        (False, -1), (False, 1), (True, -1), (True, 1)
    ]  # fmt: skip


def test_a_covariate_of_ones_own():
    balanced = balance_pairs(pairs(), covariate=[1.0] * 5 + [-1.0] * 5 + [0.0])
    assert len(balanced) == 11


def test_what_cannot_be_balanced_is_refused():
    with pytest.raises(ValueError, match="has more of the covariate in all"):
        balance_pairs(pairs(5, 0, 0))
    with pytest.raises(ValueError, match="needs pairs"):
        balance_pairs(Dataset.from_dict({"completion": ["a"], "score": [1.0]}))
    with pytest.raises(ValueError, match="'halve'"):
        balance_pairs(pairs(), how="halve")
    with pytest.raises(ValueError, match="3 covariate differences for 11 pairs"):
        balance_pairs(pairs(), covariate=[1.0, 2.0, 3.0])


# --- after training --------------------------------------------------------------------------------------


def rated(leaning, rows=300, seed=0):
    """Texts, ratings that go with length, and scores that lean on it by `leaning` for each character."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, 100, size=rows)
    ratings = 0.02 * lengths + generator.normal(size=rows)
    texts = ["x" * length for length in lengths]
    return ratings + leaning * lengths, ratings, texts


@pytest.mark.parametrize("leaning", [0.0, 0.03, -0.01])
def test_the_correction_finds_what_ratings_do_not_explain(leaning):
    correction = Correction.fit(*rated(leaning))
    assert correction.coefficients == pytest.approx([leaning], abs=1e-9)


def test_corrected_scores_have_no_partial_correlation_left():
    scores, ratings, texts = rated(0.03)
    scores = scores + np.random.default_rng(1).normal(size=len(scores))
    correction = Correction.fit(scores, ratings, texts)
    lengths = [len(text) for text in texts]
    left = partial_correlation(scores - correction(texts), lengths, ratings)
    assert left["partial"] == pytest.approx(0.0, abs=1e-9)
    assert left["with_score"] > 0.2  # what people mean by length stays
    assert np.mean(correction(texts)) == pytest.approx(0.0, abs=1e-9)


def test_a_covariate_that_does_not_vary_is_left_alone():
    correction = Correction.fit(*rated(0.03), names=["format", "length"])
    assert correction.coefficients == pytest.approx([0.0, 0.03], abs=1e-9)


def test_pairs_tell_it_too():
    # People choose by sigma(2 q); the score is q + 0.05 length, so that 0.05 for each character is too much.
    generator = np.random.default_rng(0)
    quality, length = generator.normal(size=(20000, 2)), generator.integers(1, 60, size=(20000, 2))
    first = generator.random(20000) < 1 / (1 + np.exp(-2 * (quality[:, 0] - quality[:, 1])))
    order = np.where(first[:, None], [0, 1], [1, 0])
    quality, length = (np.take_along_axis(column, order, axis=1) for column in (quality, length))
    scores = quality + 0.05 * length
    chosen, rejected = (["x" * int(n) for n in column] for column in length.T)
    correction = Correction.fit_pairs(scores[:, 0], scores[:, 1], chosen, rejected)
    assert correction.coefficients == pytest.approx([0.05], abs=0.003)
    with pytest.raises(ValueError, match="do not rise"):
        Correction.fit_pairs(-quality[:, 0], -quality[:, 1], chosen, rejected)


def test_texts_beyond_what_was_seen_are_corrected_like_the_longest():
    correction = Correction(("length",), (0.1,), (10.0,), (5.0,), (20.0,))
    texts = ["x" * 12, "x" * 20, "x" * 500, "x"]
    assert correction(texts) == pytest.approx([0.2, 1.0, 1.0, -0.5])


def test_a_residual_reward_is_the_reward_less_the_correction(tmp_path):
    correction = Correction(("length",), (0.5,), (3.0,), (0.0,), (10.0,))
    path = correction.save(tmp_path / "length.json")
    assert Correction.load(path) == correction
    reward = ResidualReward(word_count, path)
    assert reward(["", "", ""], ["a b", "abcdefg", ""]) == [2.0 - 0.0, 1.0 - 2.0, None]
    assert reward.__name__ == "word_count-debiased"
    assert pickle.loads(pickle.dumps(reward))([""], ["a b"]) == [2.0]
    # As a trainer calls it: by keyword, with columns of the dataset.
    assert reward(prompts=[""], completions=["a b"], completion_ids=[[1]], topic=["cats"]) == [2.0]


def test_a_residual_reward_of_a_folder(tmp_path):
    tokenizer = tiny_tokenizer("bert")
    folder = save_tiny(tmp_path / "model", tiny_classifier(tokenizer), tokenizer)
    correction = Correction(("length",), (1.0,), (0.0,), (0.0,), (100.0,))
    nothing = Correction(("length",), (0.0,), (0.0,), (0.0,), (100.0,))
    plain, corrected = (ResidualReward(str(folder), c)([""], ["A dull script."])[0] for c in (nothing, correction))
    assert corrected == pytest.approx(plain - 14)


def test_what_is_no_correction_is_refused(tmp_path):
    (tmp_path / "other.json").write_text(json.dumps({"scale": [1.0]}))
    with pytest.raises(ValueError, match="holds no correction"):
        Correction.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="finite"):
        Correction(("length",), (math.nan,), (0.0,), (0.0,), (1.0,))
    with pytest.raises(ValueError, match="3 rows or more"):
        Correction.fit([1.0, 2.0], [1.0, 2.0], ["a", "bb"])
    for_tokens = SimpleNamespace(per_token=True)
    with pytest.raises(ValueError, match="each token"):
        ResidualReward(for_tokens, Correction(("length",), (0.0,), (0.0,), (0.0,), (1.0,)))


def test_all_covariates_have_a_name_that_the_readme_of_the_module_knows():
    assert list(COVARIATES) == ["length", "format", "repetition"]
