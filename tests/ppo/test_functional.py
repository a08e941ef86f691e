"""Every formula of functional.py against numbers worked by hand, or against an exact source outside the project."""

import ast
import math
from pathlib import Path

import pytest
import torch

from rlhf_recipes.ppo import functional as F

NAN = math.nan


def rows(*values):
    return torch.tensor(values, dtype=torch.float32)


def close(actual, *expected, atol=1e-6):
    torch.testing.assert_close(actual, rows(*expected), atol=atol, rtol=0)
    return True


# --- Means over real tokens ---------------------------------------------------------------------


def test_masked_mean_is_over_the_tokens_of_all_rows_together():
    x, mask = rows([1, 2, 3], [10, NAN, NAN]), rows([1, 1, 1], [1, 0, 0])
    assert F.masked_sum(x, mask) == 16
    assert F.masked_mean(x, mask) == 4  # (1 + 2 + 3 + 10) / 4; the mean of the row means would be 6


def test_masked_whiten_by_hand():
    # Real tokens 1, 3, 5, 7: mean 4, squared distances 9 + 1 + 1 + 9 = 20, unbiased variance 20 / 3.
    x, mask = rows([1, 3, NAN], [5, 7, 1e9]), rows([1, 1, 0], [1, 1, 0])
    std = math.sqrt(20 / 3)
    assert close(F.masked_whiten(x, mask), [-3 / std, -1 / std, 0], [1 / std, 3 / std, 0])


def test_masked_whiten_without_centering_keeps_the_mean():
    x, mask = rows([1, 3, NAN], [5, 7, 1e9]), rows([1, 1, 0], [1, 1, 0])
    std = math.sqrt(20 / 3)
    kept = F.masked_whiten(x, mask, center=False)
    assert close(kept, [4 - 3 / std, 4 - 1 / std, 0], [4 + 1 / std, 4 + 3 / std, 0])


def test_masked_whiten_of_a_single_token_is_finite():
    assert close(F.masked_whiten(rows([5, NAN]), rows([1, 0])), [0, 0])


# --- Log-probabilities --------------------------------------------------------------------------


def test_token_logprobs_of_two_tokens_in_closed_form():
    # Logits log 1 and log 3: probabilities 1/4 and 3/4.
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]])
    logprobs, entropy = F.token_logprobs(logits, torch.tensor([[0, 1]]))
    assert close(logprobs, [math.log(0.25), math.log(0.75)])
    h = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert close(entropy, [h, h])


def test_token_logprobs_at_a_temperature():
    # At temperature 1/2 the logits double: log 1 and log 9, so probabilities 1/10 and 9/10.
    logits = torch.tensor([[[0.0, math.log(3.0)]]])
    logprobs, entropy = F.token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    assert close(logprobs, [math.log(0.9)])
    assert close(entropy, [-0.1 * math.log(0.1) - 0.9 * math.log(0.9)])


def test_token_logprobs_are_exact_for_large_logits_and_half_precision():
    logits = torch.tensor([[[1000.0, 1000.0, -1000.0]]], dtype=torch.bfloat16)
    logprobs, entropy = F.token_logprobs(logits, torch.tensor([[0]]))
    assert logprobs.dtype == torch.float32
    assert close(logprobs, [-math.log(2)], atol=1e-4)
    assert close(entropy, [math.log(2)], atol=1e-3)


def test_the_gradient_of_a_logprob_is_one_hot_minus_softmax_over_the_temperature():
    logits = torch.tensor([[[0.0, math.log(3.0)]]], requires_grad=True)
    logprobs, entropy = F.token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    logprobs.sum().backward()
    # d log p_1 / d logits = ([0, 1] - [0.1, 0.9]) / 0.5
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.2, 0.2]]]))
    assert not entropy.requires_grad


# --- KL -----------------------------------------------------------------------------------------

GENERATOR = torch.Generator().manual_seed(0)
POLICY = torch.distributions.Categorical(logits=torch.randn(20, generator=GENERATOR, dtype=torch.float64))
REFERENCE = torch.distributions.Categorical(logits=torch.randn(20, generator=GENERATOR, dtype=torch.float64))
# The exact answers come from torch.distributions, not from us.
EXACT = float(torch.distributions.kl_divergence(POLICY, REFERENCE))
SWAPPED = float(torch.distributions.kl_divergence(REFERENCE, POLICY))


def expected_kl(estimator, policy=POLICY, reference=REFERENCE):
    """The estimator's expectation under the policy: exact, because every one of the 20 outcomes is weighted."""
    return float((policy.probs * F.kl_per_token(policy.logits, reference.logits, estimator)).sum())


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_the_expectation_of_an_unbiased_estimator_is_the_exact_kl(estimator):
    assert expected_kl(estimator) == pytest.approx(EXACT, abs=1e-6)


def test_k2_is_biased():
    assert abs(expected_kl("k2") - EXACT) > 0.01


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_swapping_policy_and_reference_gives_the_other_direction(estimator):
    assert abs(EXACT - SWAPPED) > 0.01  # else this test could not tell
    assert expected_kl(estimator, REFERENCE, POLICY) == pytest.approx(SWAPPED, abs=1e-6)


def test_estimators_of_one_token_by_hand():
    # d = log 2: k1 = log 2, k2 = (log 2)^2 / 2, k3 = 1/2 - 1 + log 2.
    logprobs, ref_logprobs = rows([math.log(0.5)]), rows([math.log(0.25)])
    assert close(F.kl_per_token(logprobs, ref_logprobs, "k1"), [0.693147])
    assert close(F.kl_per_token(logprobs, ref_logprobs, "k2"), [0.240227])
    assert close(F.kl_per_token(logprobs, ref_logprobs, "k3"), [0.193147])


def test_k3_is_never_negative_where_k1_is():
    logprobs, ref_logprobs = rows([-3.0, -1e-4]), rows([-1.0, 0.0])
    assert (F.kl_per_token(logprobs, ref_logprobs, "k1") < 0).all()
    assert (F.kl_per_token(logprobs, ref_logprobs, "k3") >= 0).all()


def test_an_unknown_estimator_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="'k4'.*k1, k2, k3"):
        F.kl_per_token(rows([0.0]), rows([0.0]), "k4")


# --- Rewards and advantages ---------------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token_and_the_penalty_on_all():
    mask = rows([1, 1, 1], [1, 0, 0], [1, 1, 0])
    kl = rows([0.1, -0.2, 0.3], [0.5, NAN, NAN], [1.0, 2.0, NAN])
    rewards = F.rewards_per_token(torch.tensor([5.0, -1.0, 0.5]), kl, mask, kl_coef=0.1)
    assert F.last_token(mask).tolist() == [2, 0, 1]
    # Row 0: -0.1 * 0.1, -0.1 * -0.2, -0.1 * 0.3 + 5. Row 1: -0.1 * 0.5 - 1. Row 2: -0.1 * 1, -0.1 * 2 + 0.5.
    assert close(rewards, [-0.01, 0.02, 4.97], [-1.05, 0, 0], [-0.1, 0.3, 0])


def test_gae_with_gamma_and_lambda_1_is_reward_to_go_minus_value():
    rewards, values, mask = rows([1, 2, 4]), rows([10, 20, 30]), rows([1, 1, 1])
    advantages, returns = F.generalized_advantages(rewards, values, mask, gamma=1.0, lam=1.0)
    assert close(returns, [7, 6, 4])  # 1 + 2 + 4, 2 + 4, 4
    assert close(advantages, [-3, -14, -26])


def test_gae_with_lambda_0_is_the_td_error():
    rewards, values, mask = rows([1, 2, 4]), rows([10, 20, 30]), rows([1, 1, 1])
    advantages, returns = F.generalized_advantages(rewards, values, mask, gamma=0.5, lam=0.0)
    assert close(advantages, [1, -3, -26])  # 1 + 0.5 * 20 - 10, 2 + 0.5 * 30 - 20, 4 - 30
    assert close(returns, [11, 17, 4])  # 1 + 0.5 * 20, 2 + 0.5 * 30, 4


def test_gae_of_three_tokens_by_hand():
    rewards, values, mask = rows([0.1, -0.2, 1.0]), rows([0.5, 0.4, 0.6]), rows([1, 1, 1])
    advantages, returns = F.generalized_advantages(rewards, values, mask, gamma=0.9, lam=0.8)
    # delta_2 = 1.0 - 0.6 = 0.4                    A_2 = 0.4
    # delta_1 = -0.2 + 0.9 * 0.6 - 0.4 = -0.06     A_1 = -0.06 + 0.72 * 0.4 = 0.228
    # delta_0 = 0.1 + 0.9 * 0.4 - 0.5 = -0.04      A_0 = -0.04 + 0.72 * 0.228 = 0.12416
    assert close(advantages, [0.12416, 0.228, 0.4])
    assert close(returns, [0.62416, 0.628, 1.0])  # A + V


def test_padding_changes_no_advantage_and_nan_on_it_does_not_leak():
    alone = [([0.1, -0.2, 1.0], [0.5, 0.4, 0.6]), ([2.0], [0.3]), ([-1.0, 0.5], [0.2, -0.7])]
    padded = [[x + [NAN] * (5 - len(x)) for x in row] for row in alone]
    mask = rows(*[[1] * len(r) + [0] * (5 - len(r)) for r, _ in alone])
    rewards, values = (rows(*[row[i] for row in padded]) for i in (0, 1))
    advantages, returns = F.generalized_advantages(rewards, values, mask, 0.9, 0.8)
    assert not advantages[mask == 0].any()
    assert not returns[mask == 0].any()
    for i, (r, v) in enumerate(alone):
        one, target = F.generalized_advantages(rows(r), rows(v), rows([1] * len(r)), 0.9, 0.8)
        torch.testing.assert_close(advantages[i, : len(r)], one[0], atol=0, rtol=0)
        torch.testing.assert_close(returns[i, : len(r)], target[0], atol=0, rtol=0)
    # The row of one token by hand: 2.0 - 0.3.
    assert advantages[1, 0].item() == pytest.approx(1.7)


# --- Losses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # Inside 0.8..1.2 the loss is -A * ratio, whose derivative by the log-probability is -A * ratio as well.
        (1.0, 2.0, -2.0, 0, -2.0),
        (1.1, -2.0, 2.2, 0, 2.2),
        # A good token that is likely enough already: -2 * 1.2, and nothing pushes it further.
        (1.5, 2.0, -2.4, 1, 0.0),
        # A bad token that is unlikely enough already: 2 * 0.8.
        (0.5, -2.0, 1.6, 1, 0.0),
        # The pessimistic side is not clipped: a good token that became unlikely, a bad one that became likely.
        (0.5, 2.0, -1.0, 0, -1.0),
        (1.5, -2.0, 3.0, 0, 3.0),
    ],
)
def test_policy_loss_clips_by_the_sign_of_the_advantage(ratio, advantage, loss, clipped, gradient):
    old = rows([-1.0])
    new = (old + math.log(ratio)).requires_grad_()
    value, seen_ratio, was_clipped = F.policy_loss(new, old, rows([advantage]), cliprange=0.2)
    value.sum().backward()
    assert close(value.detach(), [loss])
    assert close(seen_ratio, [ratio])
    assert close(was_clipped, [clipped])
    assert close(new.grad, [gradient])


def test_the_first_policy_gradient_is_the_plain_one():
    # At ratio 1 the gradient is that of -A * log p, textbook REINFORCE.
    logprobs = rows([-1.0, -2.0]).requires_grad_()
    F.policy_loss(logprobs, logprobs.detach(), rows([3.0, -4.0]), 0.2)[0].sum().backward()
    assert close(logprobs.grad, [-3.0, 4.0])


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "clipped", "gradient"),
    [
        (1.1, 1.0, 2.0, 0.405, 0, -0.9),  # inside: (1.1 - 2)^2 / 2
        (1.5, 1.0, 2.0, 0.32, 1, 0.0),  # moved 0.5 towards the target; only 0.2 of it counts: (1.2 - 2)^2 / 2
        (0.5, 1.0, 2.0, 1.125, 0, -1.5),  # moved away: the larger error counts, (0.5 - 2)^2 / 2
        (0.5, 1.0, 0.0, 0.32, 1, 0.0),  # the lower side: (0.8 - 0)^2 / 2
    ],
)
def test_value_loss_keeps_values_near_the_old_ones(value, old, target, loss, clipped, gradient):
    values = rows([value]).requires_grad_()
    result, was_clipped = F.value_loss(values, rows([old]), rows([target]), cliprange_value=0.2)
    result.sum().backward()
    assert close(result.detach(), [loss])
    assert close(was_clipped, [clipped])
    assert close(values.grad, [gradient])


def test_explained_variance_of_a_perfect_critic_of_the_mean_and_of_a_worse_one():
    returns, mask = rows([1, 3, NAN], [5, 7, NAN]), rows([1, 1, 0], [1, 1, 0])
    assert float(F.explained_variance(returns, returns, mask)) == pytest.approx(1, abs=1e-6)
    assert float(F.explained_variance(torch.full((2, 3), 4.0), returns, mask)) == pytest.approx(0, abs=1e-6)
    # Only the variance of the error counts: a constant offset costs nothing.
    assert float(F.explained_variance(returns + 9, returns, mask)) == pytest.approx(1, abs=1e-6)
    # values = -returns: the error is 2 * returns, of 4 times the variance.
    assert float(F.explained_variance(-returns, returns, mask)) == pytest.approx(-3, abs=1e-5)


# --- The module ---------------------------------------------------------------------------------


def test_functional_imports_nothing_but_torch():
    imported = set()
    for node in ast.walk(ast.parse(Path(F.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported == {"torch"}
