"""The glossary, and the meter that refuses what is not in it."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from rlhf_recipes.ppo.metrics import GLOSSARY, Meter, as_markdown, completion_figures, repetition, reward_figures


def test_a_meter_gives_weighted_means_and_is_empty_afterwards():
    meter = Meter()
    meter.add({"loss/policy_avg": 1.0}, weight=3)
    meter.add({"loss/policy_avg": 5.0, "policy/ratio": 2.0}, weight=1)
    assert meter.read() == {"loss/policy_avg": 2.0, "policy/ratio": 2.0}  # (3 * 1 + 1 * 5) / 4
    assert meter.read() == {}


def test_a_name_outside_the_glossary_is_refused():
    with pytest.raises(KeyError, match="objective/score.*define it there"):
        Meter().add({"objective/score": 1.0})


def test_rewards_and_times_may_have_any_name():
    meter = Meter()
    meter.add({"reward/politeness": 0.5, "time/sample": 1.5})
    assert meter.read() == {"reward/politeness": 0.5, "time/sample": 1.5}


def test_a_mean_without_weight_is_left_out_instead_of_dividing_by_zero():
    meter = Meter()
    meter.add({"loss/policy_avg": 1.0}, weight=0)
    assert meter.read() == {}


def test_every_name_has_a_definition():
    assert all(text.endswith(".") and len(text) > 15 for text in GLOSSARY.values())


def test_meters_of_several_processes_add_up_also_where_a_name_is_missing_in_one():
    one, two = Meter(), Meter()
    one.add({"loss/policy_avg": 1.0, "reward/rare": 7.0}, weight=3)
    two.add({"loss/policy_avg": 5.0}, weight=1)
    one.merge(two.state())
    assert one.read() == {"loss/policy_avg": 2.0, "reward/rare": 7.0}


def test_the_page_in_the_docs_is_made_from_the_glossary():
    page = Path(__file__).parents[2] / "docs" / "metrics.md"
    to_do = "run: python -m rlhf_recipes.ppo.metrics > docs/metrics.md"
    assert page.read_text(encoding="utf-8") == as_markdown(), to_do
    assert all(f"| `{name}` |" in as_markdown() for name in GLOSSARY)


# --- figures of completions and rewards -----------------------------------------------------------

NAN = math.nan


def test_mean_spread_and_share_of_each_reward():
    # Weighted: 2 * (1, 3, 1, 3) and -1 * (0, 0, 4, 4); the sum is (2, 6, -2, 2), mean 2, variance 8.
    parts = torch.tensor([[1.0, 0.0], [3.0, 0.0], [1.0, 4.0], [3.0, 4.0]])
    (a, count_a), (b, count_b) = reward_figures(parts, ["a", "b"], {"a": 2.0, "b": -1.0})
    assert (count_a, count_b) == (4, 4)
    assert a == pytest.approx({"reward/a": 2.0, "reward/a/std": 1.0, "reward/a/share": 4 / 8})
    assert b == pytest.approx({"reward/b": 2.0, "reward/b/std": 2.0, "reward/b/share": 4 / 8})


def test_shares_are_covariances_as_numpy_has_them_and_add_up_to_1():
    draws = np.random.default_rng(0).normal(size=(50, 3)) @ np.array([[1, 0.5, 0], [0, 1, -2], [0, 0, 1]])
    weights = {"a": 0.5, "b": -2.0, "c": 1.0}
    figures = {}
    for own, _ in reward_figures(torch.tensor(draws), list(weights), weights):
        figures |= own
    weighted = draws * list(weights.values())
    covariance = np.cov(np.column_stack([weighted, weighted.sum(axis=1)]).T, ddof=0)
    expected = dict(zip(weights, covariance[:3, 3] / covariance[3, 3], strict=True))
    assert {name: figures[f"reward/{name}/share"] for name in weights} == pytest.approx(expected)
    assert sum(figures[f"reward/{name}/share"] for name in weights) == pytest.approx(1.0)


def test_a_reward_that_applies_to_some_rows_or_none():
    parts = torch.tensor([[1.0, NAN, NAN], [3.0, 5.0, NAN]])
    figures = reward_figures(parts, ["a", "b", "c"], {"a": 1.0, "b": 0.0, "c": 1.0})
    assert [count for _, count in figures] == [2, 1]
    assert figures[1][0] == {"reward/b": 5.0, "reward/b/std": 0.0, "reward/b/share": 0.0}  # weight 0 decides nothing


def test_no_share_where_all_sums_are_equal():
    figures = reward_figures(torch.tensor([[0.1], [0.1], [0.1]]), ["a"], {"a": 3.0})
    assert figures == [({"reward/a": pytest.approx(0.1), "reward/a/std": pytest.approx(0.0, abs=1e-9)}, 3)]


def test_repetition_is_the_share_of_token_pairs_seen_before():
    ids = torch.tensor([[1, 2, 1, 2, 1], [1, 1, 1, 1, 9], [1, 2, 3, 9, 9], [7, 9, 9, 9, 9]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    # 12 21 12 21: two of four; 11 11 11: two of three; 12 23: none; a single token: none.
    assert repetition(ids, mask) == pytest.approx((2 / 4 + 2 / 3 + 0 + 0) / 4)


def test_how_the_score_goes_with_the_length():
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
    ids = torch.arange(16).reshape(4, 4)
    figures = completion_figures(ids, mask, torch.tensor([1.0, 3.0, 3.0, 5.0]))
    # Lengths 1, 2, 3, 4: sum of products of the distances 6, of squared lengths 5, of squared scores 8.
    assert figures["rollout/length_slope"] == pytest.approx(6 / 5)
    assert figures["rollout/length_correlation"] == pytest.approx(6 / math.sqrt(5 * 8))
    assert figures["rollout/repetition"] == 0.0


@pytest.mark.parametrize("scores", [[2.0, 2.0], [1.0, 3.0]])
def test_no_slope_without_two_lengths_and_two_scores(scores):
    mask = torch.tensor([[1, 1], [1, 0] if scores[0] == 2.0 else [1, 1]])
    assert set(completion_figures(torch.tensor([[1, 2], [3, 4]]), mask, torch.tensor(scores))) == {
        "rollout/repetition"
    }


def test_the_share_is_of_what_is_paid_where_means_are_taken_away():
    # Reward a, 10 and 12, less its mean of 10, applies to the first two rows; b to all.
    parts = torch.tensor([[10.0, 1.0], [12.0, 1.0], [NAN, 3.0]])
    means = torch.tensor([10.0, 0.0])
    figures = {}
    for own, _ in reward_figures(parts, ["a", "b"], {"a": 1.0, "b": 1.0}, means):
        figures |= own
    paid = np.array([[0.0, 1.0], [2.0, 1.0], [0.0, 3.0]])
    covariance = np.cov(np.column_stack([paid, paid.sum(axis=1)]).T, ddof=0)
    assert figures["reward/a/share"] == pytest.approx(covariance[0, 2] / covariance[2, 2])
    assert figures["reward/a"] == 11.0
