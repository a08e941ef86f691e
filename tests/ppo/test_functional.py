"""Every formula of functional.py against numbers worked by hand, or against an exact source outside the project."""

import ast
import math
from pathlib import Path

import pytest
import torch

from rlhf_recipes.modeling.logprobs import token_logprobs
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


def test_masked_whiten_of_no_token_is_zero():
    assert close(F.masked_whiten(rows([NAN, 3.0]), rows([0, 0])), [0, 0])
    assert close(F.masked_whiten(rows([NAN, 3.0]), rows([0, 0]), center=False), [0, 0])


# --- Log-probabilities --------------------------------------------------------------------------


def test_token_logprobs_of_two_tokens_in_closed_form():
    # Logits log 1 and log 3: probabilities 1/4 and 3/4.
    logits = torch.tensor([[[0.0, math.log(3.0)], [0.0, math.log(3.0)]]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([[0, 1]]))
    assert close(logprobs, [math.log(0.25), math.log(0.75)])
    h = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert close(entropy, [h, h])


def test_token_logprobs_at_a_temperature():
    # At temperature 1/2 the logits double: log 1 and log 9, so probabilities 1/10 and 9/10.
    logits = torch.tensor([[[0.0, math.log(3.0)]]])
    logprobs, entropy = token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    assert close(logprobs, [math.log(0.9)])
    assert close(entropy, [-0.1 * math.log(0.1) - 0.9 * math.log(0.9)])


def test_token_logprobs_are_exact_for_large_logits_and_half_precision():
    logits = torch.tensor([[[1000.0, 1000.0, -1000.0]]], dtype=torch.bfloat16)
    logprobs, entropy = token_logprobs(logits, torch.tensor([[0]]))
    assert logprobs.dtype == torch.float32
    assert close(logprobs, [-math.log(2)], atol=1e-4)
    assert close(entropy, [math.log(2)], atol=1e-3)


def test_the_gradient_of_a_logprob_is_one_hot_minus_softmax_over_the_temperature():
    logits = torch.tensor([[[0.0, math.log(3.0)]]], requires_grad=True)
    logprobs, entropy = token_logprobs(logits, torch.tensor([[1]]), temperature=0.5)
    logprobs.sum().backward()
    # d log p_1 / d logits = ([0, 1] - [0.1, 0.9]) / 0.5
    torch.testing.assert_close(logits.grad, torch.tensor([[[-0.2, 0.2]]]))
    assert not entropy.requires_grad


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_gradient_of_the_entropy_is_that_of_the_exact_one(temperature):
    logits = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(1)).requires_grad_()
    tokens = torch.zeros(2, 3, dtype=torch.long)
    weights = torch.arange(6.0).view(2, 3)
    _, entropy = token_logprobs(logits, tokens, temperature, entropy_grad=True)
    (actual,) = torch.autograd.grad((weights * entropy).sum(), logits)
    exact = torch.distributions.Categorical(logits=logits / temperature).entropy()
    (expected,) = torch.autograd.grad((weights * exact).sum(), logits)
    torch.testing.assert_close(entropy, exact)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    assert float(expected.abs().max()) > 0.1


def test_asked_for_without_gradients_the_entropy_has_none():
    logits = torch.randn(1, 1, 6, requires_grad=True)
    with torch.no_grad():
        _, entropy = token_logprobs(logits, torch.tensor([[0]]), entropy_grad=True)
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


# --- Gradients of KL, every outcome weighted with its probability -------------------------------

LOGITS = POLICY.logits[:6]
REF_LOGPROBS = torch.log_softmax(REFERENCE.logits[:6], 0)
OLD_LOGPROBS = torch.log_softmax(torch.linspace(1.0, -1.0, 6, dtype=torch.float64), 0)


def gradient(of):
    """Gradient of `of(logprobs of the policy)` by the policy's six logits."""
    logits = LOGITS.clone().requires_grad_()
    return torch.autograd.grad(of(torch.log_softmax(logits, 0)), logits)[0]


def exact_kl(p, q):
    return (p.exp() * (p - q)).sum()


KL_GRADIENT = gradient(lambda logprobs: exact_kl(logprobs, REF_LOGPROBS))
SWAPPED_GRADIENT = gradient(lambda logprobs: exact_kl(REF_LOGPROBS, logprobs))


def same(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)
    return True


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, dim=0))


def loss_gradient(estimator, old_logprobs=None):
    """Expected gradient of the loss term over tokens of the old policy (the policy itself by default)."""

    def expected(logprobs):
        old = logprobs.detach() if old_logprobs is None else old_logprobs
        return (old.exp() * F.kl_loss(logprobs, REF_LOGPROBS, torch.exp(logprobs - old), estimator)).sum()

    return gradient(expected)


def reward_gradient(estimator):
    """Expected policy gradient with the reward -kl: every token's reward times the gradient of its log-probability."""

    def expected(logprobs):
        reward = -F.kl_per_token(logprobs, REF_LOGPROBS, estimator)
        return (logprobs.exp().detach() * reward.detach() * logprobs).sum()

    return gradient(expected)


def test_the_two_directions_have_gradients_far_apart():
    # Else the tests below could not tell one from the other, nor from 0.
    assert cosine(KL_GRADIENT, SWAPPED_GRADIENT) < 0.9
    assert min(float(KL_GRADIENT.norm()), float(SWAPPED_GRADIENT.norm())) > 0.1


@pytest.mark.parametrize("old_logprobs", [None, OLD_LOGPROBS], ids=["on-policy", "off-policy"])
def test_k2_in_the_loss_has_the_gradient_of_kl(old_logprobs):
    assert same(loss_gradient("k2", old_logprobs), KL_GRADIENT)


@pytest.mark.parametrize("old_logprobs", [None, OLD_LOGPROBS], ids=["on-policy", "off-policy"])
def test_k3_in_the_loss_has_the_gradient_of_the_other_kl(old_logprobs):
    assert same(loss_gradient("k3", old_logprobs), SWAPPED_GRADIENT)


def test_without_the_weight_a_term_off_policy_has_another_gradient():
    plain = gradient(lambda logprobs: (OLD_LOGPROBS.exp() * 0.5 * (logprobs - REF_LOGPROBS) ** 2).sum())
    assert float((plain - KL_GRADIENT).abs().max()) > 0.1


def test_k1_in_the_loss_has_no_gradient_and_is_refused():
    plain = gradient(lambda logprobs: (logprobs.exp().detach() * (logprobs - REF_LOGPROBS)).sum())
    assert same(plain, torch.zeros(6, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"'k1' cannot be used in the loss: its expected gradient is 0\. Use 'k2'"):
        F.kl_loss(rows([0.0]), rows([0.0]), rows([1.0]), "k1")
    with pytest.raises(ValueError, match="'k4'.*k1, k2, k3"):
        F.kl_loss(rows([0.0]), rows([0.0]), rows([1.0]), "k4")


def test_k1_in_the_reward_has_the_gradient_of_kl():
    assert same(reward_gradient("k1"), -KL_GRADIENT)


def test_k2_and_k3_in_the_reward_have_not():
    assert same(reward_gradient("k3"), SWAPPED_GRADIENT - KL_GRADIENT)
    for estimator in ("k2", "k3"):
        assert float((reward_gradient(estimator) + KL_GRADIENT).norm() / KL_GRADIENT.norm()) > 0.1
        assert cosine(reward_gradient(estimator), -KL_GRADIENT) < 0.99  # nor is it a multiple


def test_kl_loss_of_one_token_by_hand():
    # d = log(1/2) - log(1/4) = log 2, ratio 3. k2: 3 * (log 2)^2 / 2, gradient 3 * log 2.
    # k3: 3 * (1/2 - 1 + log 2), gradient 3 * (1 - 1/2).
    for estimator, loss, slope in (("k2", 0.720680, 2.079442), ("k3", 0.579442, 1.5)):
        logprobs, ref_logprobs, ratio = rows([math.log(0.5)]), rows([math.log(0.25)]), rows([3.0])
        for tensor in (logprobs, ref_logprobs, ratio):
            tensor.requires_grad_()
        value = F.kl_loss(logprobs, ref_logprobs, ratio, estimator)
        value.sum().backward()
        assert close(value.detach(), [loss])
        assert close(logprobs.grad, [slope])
        assert ref_logprobs.grad is None
        assert ratio.grad is None


class TwoTokens:
    """All completions of two tokens out of three, from a table of logits: row 0 for the first token, 1 + a after a."""

    first, second = torch.tensor([(a, b) for a in range(3) for b in range(3)]).T
    table = torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64)
    reference = torch.log_softmax(torch.randn(4, 3, generator=GENERATOR, dtype=torch.float64), 1)

    @classmethod
    def of(cls, table):
        """Log-probabilities of the nine completions, `(9, 2)`."""
        return torch.stack([table[0, cls.first], table[1 + cls.first, cls.second]], dim=1)

    @classmethod
    def gradient(cls, of):
        table = cls.table.clone().requires_grad_()
        return torch.autograd.grad(of(torch.log_softmax(table, 1)), table)[0]


def test_of_whole_completions_k1_in_the_reward_has_the_gradient_and_k2_in_the_loss_that_of_each_token_alone():
    ref_logprobs = TwoTokens.of(TwoTokens.reference)
    mask = torch.ones(9, 2)

    def whole(table):
        logprobs = TwoTokens.of(table).sum(1)
        return exact_kl(logprobs, ref_logprobs.sum(1))

    def each_token_alone(table):  # what came before counts with its probability, without gradient
        later = [exact_kl(table[1 + a], TwoTokens.reference[1 + a]) for a in range(3)]
        return exact_kl(table[0], TwoTokens.reference[0]) + (table[0].exp().detach() * torch.stack(later)).sum()

    def in_the_reward(table):
        logprobs = TwoTokens.of(table)
        rewards = -F.kl_per_token(logprobs, ref_logprobs, "k1").detach()
        weights = logprobs.sum(1).exp().detach()
        return (weights * (F.rewards_to_go(rewards, mask, gamma=1.0) * logprobs).sum(1)).sum()

    def in_the_loss(table):
        logprobs = TwoTokens.of(table)
        weights = logprobs.sum(1).exp().detach()
        return (weights * F.kl_loss(logprobs, ref_logprobs, torch.ones(9, 2), "k2").sum(1)).sum()

    assert same(TwoTokens.gradient(in_the_reward), -TwoTokens.gradient(whole))
    assert same(TwoTokens.gradient(in_the_loss), TwoTokens.gradient(each_token_alone))
    assert float((TwoTokens.gradient(whole) - TwoTokens.gradient(each_token_alone)).abs().max()) > 0.01


def test_at_ratio_1_the_policy_loss_has_the_gradient_of_the_expected_reward():
    reward = torch.tensor([3.0, -1.0, 0.5, 2.0, -4.0, 0.0], dtype=torch.float64)
    baseline = 0.7  # shifts every advantage and no gradient

    def expected(logprobs):
        loss, ratio, clipped = F.policy_loss(logprobs, logprobs.detach(), reward - baseline, 0.2, 0.3, dual_clip=3.0)
        assert same(ratio, torch.ones(6, dtype=torch.float64))
        assert not clipped.any()
        return (logprobs.exp().detach() * loss).sum()

    assert same(gradient(expected), -gradient(lambda logprobs: (logprobs.exp() * reward).sum()))


# --- Rewards and advantages ---------------------------------------------------------------------


def test_the_score_lands_on_the_last_real_token_and_the_penalty_on_all():
    mask = rows([1, 1, 1], [1, 0, 0], [1, 1, 0])
    kl = rows([0.1, -0.2, 0.3], [0.5, NAN, NAN], [1.0, 2.0, NAN])
    rewards = F.rewards_per_token(torch.tensor([5.0, -1.0, 0.5]), kl, mask, kl_coef=0.1)
    assert F.last_token(mask).tolist() == [2, 0, 1]
    # Row 0: -0.1 * 0.1, -0.1 * -0.2, -0.1 * 0.3 + 5. Row 1: -0.1 * 0.5 - 1. Row 2: -0.1 * 1, -0.1 * 2 + 0.5.
    assert close(rewards, [-0.01, 0.02, 4.97], [-1.05, 0, 0], [-0.1, 0.3, 0])


def test_rewards_of_single_tokens_stand_where_they_are_given():
    mask, kl = rows([1, 1, 0], [1, 0, 0]), rows([1, 2, NAN], [3, NAN, NAN])
    given = rows([10, 20, NAN], [30, NAN, NAN])
    rewards = F.rewards_per_token(torch.tensor([0.5, 0.25]), kl, mask, kl_coef=0.1, token_rewards=given)
    assert close(rewards, [9.9, 20.3, 0], [29.95, 0, 0])  # 10 - 0.1, 20 - 0.2 + 0.5; 30 - 0.3 + 0.25
    assert close(given[:, :1], [10], [30])  # as it was


def test_rewards_to_go_by_hand():
    rewards, mask = rows([1, 2, 4], [8, 1, NAN]), rows([1, 1, 1], [1, 1, 0])
    # 1 + 0.5 * (2 + 0.5 * 4), 2 + 0.5 * 4, 4; 8 + 0.5 * 1, 1
    assert close(F.rewards_to_go(rewards, mask, gamma=0.5), [3, 4, 4], [8.5, 1, 0])


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


def test_gae_with_lambda_1_is_the_rewards_to_go_minus_the_values():
    generator = torch.Generator().manual_seed(2)
    rewards, values = torch.randn(2, 4, 6, generator=generator)
    mask = (torch.arange(6) < torch.tensor([[6], [1], [4], [3]])).long()
    advantages, returns = F.generalized_advantages(rewards, values, mask, gamma=0.9, lam=1.0)
    for row, length in enumerate([6, 1, 4, 3]):
        for t in range(length):
            expected = sum(0.9 ** (k - t) * float(rewards[row, k]) for k in range(t, length))
            assert float(returns[row, t]) == pytest.approx(expected, abs=1e-5)
            assert float(advantages[row, t]) == pytest.approx(expected - float(values[row, t]), abs=1e-5)
            assert float(F.rewards_to_go(rewards, mask, 0.9)[row, t]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gae_with_a_lambda_for_each_row_is_that_of_each_row_alone(dtype):
    generator = torch.Generator().manual_seed(3)
    rewards, values = torch.randn(2, 3, 5, generator=generator)
    mask = rows([1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0])
    lams = [0.0, 0.5, 0.95]
    advantages, returns = F.generalized_advantages(rewards, values, mask, 0.9, torch.tensor(lams, dtype=dtype))
    assert advantages.dtype == torch.float32
    for row, lam in enumerate(lams):
        only = slice(row, row + 1)
        one, target = F.generalized_advantages(rewards[only], values[only], mask[only], 0.9, lam)
        torch.testing.assert_close(advantages[only], one)
        torch.testing.assert_close(returns[only], target)


def test_length_adaptive_lambda_by_hand():
    mask = torch.zeros(4, 200)
    for row, length in enumerate([200, 40, 20, 3]):
        mask[row, :length] = 1
    # 1 - 1/10, 1 - 1/2, 1 - 1, and 1 - 1/0.15 is below 0
    torch.testing.assert_close(F.length_adaptive_lam(mask, alpha=0.05), torch.tensor([0.9, 0.5, 0.0, 0.0]))
    # Masks of whole numbers or truth values count alike; a row without a token has no length to divide by.
    assert F.length_adaptive_lam(torch.tensor([[True, True], [False, False]]), alpha=1.0).tolist() == [0.5, 0.0]


# --- Shaping ------------------------------------------------------------------------------------


def test_shaping_rewards_by_hand():
    potentials, mask = rows([1, 3, 10], [4, NAN, NAN], [2, 6, 1e9]), rows([1, 1, 1], [1, 0, 0], [1, 1, 0])
    # 0.5 * 3 - 1, 0.5 * 10 - 3, 0 - 10; 0 - 4; 0.5 * 6 - 2, 0 - 6
    assert close(F.shaping_rewards(potentials, mask, gamma=0.5), [0.5, 2, -10], [-4, 0, 0], [1, -6, 0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_discounted_sum_of_shaping_is_minus_the_potential_of_the_prompt(gamma):
    potentials = torch.randn(4, 6, generator=torch.Generator().manual_seed(4))
    mask = (torch.arange(6) < torch.tensor([[6], [1], [4], [3]])).long()
    total = (gamma ** torch.arange(6) * F.shaping_rewards(potentials, mask, gamma)).sum(1)
    torch.testing.assert_close(total, -potentials[:, 0])


END = 0


def completions_of(start=()):
    """Every completion of at most 3 tokens out of END, 1 and 2 that begins with `start`. It stops at END or is cut."""
    if start and (start[-1] == END or len(start) == 3):
        return [start]
    return [whole for token in (END, 1, 2) for whole in completions_of((*start, token))]


EVERY = completions_of()
EVERY_MASK = torch.tensor([[1] * len(whole) + [0] * (3 - len(whole)) for whole in EVERY])
SCORES = dict(zip(EVERY, torch.randn(len(EVERY), generator=torch.Generator().manual_seed(5)).tolist(), strict=True))


def potential(prefix):
    """Some number for every prefix, complete or not, several times as large as the scores."""
    return 5.0 * math.sin(1 + sum((token + 1) * 7**place for place, token in enumerate(prefix)))


def action_values(rewards, gamma):
    """The best discounted return of each action in each state, by looking at every completion that contains it."""
    best = {}
    for whole, row in zip(EVERY, rewards.tolist(), strict=True):
        for t in range(len(whole)):
            to_go = sum(gamma ** (k - t) * row[k] for k in range(t, len(whole)))
            best[whole[: t + 1]] = max(best.get(whole[: t + 1], -math.inf), to_go)
    return best


def best_policy(rewards, gamma):
    best = action_values(rewards, gamma)
    states = {action[:-1] for action in best}
    return {state: max((END, 1, 2), key=lambda token: best[(*state, token)]) for state in states}


def scored():
    rewards = torch.zeros(len(EVERY), 3)
    for row, whole in enumerate(EVERY):
        rewards[row, len(whole) - 1] = SCORES[whole]
    return rewards


def potentials_of_every_state():
    return torch.tensor([[potential(whole[:t]) if t < len(whole) else NAN for t in range(3)] for whole in EVERY])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_the_best_policy_is_the_same_with_shaping_and_without(gamma):
    assert len(EVERY) == 1 + 2 + 4 * 3
    plain, shaped = scored(), scored() + F.shaping_rewards(potentials_of_every_state(), EVERY_MASK, gamma)
    assert best_policy(shaped, gamma) == best_policy(plain, gamma)
    # Every action of a state loses the same, its potential, which is why.
    values, shaped_values = action_values(plain, gamma), action_values(shaped, gamma)
    for action, value in values.items():
        assert shaped_values[action] == pytest.approx(value - potential(action[:-1]), abs=1e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_a_potential_that_is_not_0_at_the_end_changes_the_best_policy(gamma):
    wrong = scored()
    for row, whole in enumerate(EVERY):
        for t in range(len(whole)):
            wrong[row, t] += gamma * potential(whole[: t + 1]) - potential(whole[:t])
    assert best_policy(wrong, gamma) != best_policy(scored(), gamma)
    assert best_policy(wrong, gamma)[()] != best_policy(scored(), gamma)[()]


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


def policy_loss_of(ratio, advantage, *clips):
    """Loss, clip flag, and gradient by the log-probability, of one token."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    new = (old + math.log(ratio)).requires_grad_()
    loss, seen_ratio, clipped = F.policy_loss(new, old, torch.tensor([[advantage]], dtype=torch.float64), *clips)
    loss.sum().backward()
    assert seen_ratio.item() == pytest.approx(ratio)
    assert not seen_ratio.requires_grad
    return loss.item(), clipped.item(), new.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (1.25, 2.0, -2.5, 0, -2.5),  # above 1.2, but the upper end is 1.3
        (1.5, 2.0, -2.6, 1, 0.0),  # -2 * 1.3
        (0.75, -2.0, 1.6, 1, 0.0),  # the lower end is 0.8, not 0.7
        (0.85, -2.0, 1.7, 0, 1.7),
        (1.5, -2.0, 3.0, 0, 3.0),
    ],
)
def test_policy_loss_with_a_higher_upper_end(ratio, advantage, loss, clipped, gradient):
    assert policy_loss_of(ratio, advantage, 0.2, 0.3) == pytest.approx((loss, clipped, gradient))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        (5.0, -2.0, 6.0, 1, 0.0),  # at most 3 * |A|, without a pull
        (2.5, -2.0, 5.0, 0, 5.0),  # below that, the plain loss
        (0.5, -2.0, 1.6, 1, 0.0),  # the ordinary clip, 2 * 0.8, is below the bound
        (5.0, 2.0, -2.4, 1, 0.0),  # a good token: the ordinary clip
        (0.1, 2.0, -0.2, 0, -0.2),  # a good token has no bound
    ],
)
def test_dual_clip_bounds_the_loss_of_a_bad_token(ratio, advantage, loss, clipped, gradient):
    assert policy_loss_of(ratio, advantage, 0.2, None, 3.0) == pytest.approx((loss, clipped, gradient))


@pytest.mark.parametrize(("ratio", "advantage"), [(5.0, 2.0), (5.0, -2.0), (0.1, 2.0), (0.1, -2.0)])
def test_without_a_range_nothing_is_clipped_but_by_the_dual_bound(ratio, advantage):
    plain = -advantage * ratio
    assert policy_loss_of(ratio, advantage, None) == pytest.approx((plain, 0, plain))
    bounded = (6.0, 1, 0.0) if (ratio, advantage) == (5.0, -2.0) else (plain, 0, plain)
    assert policy_loss_of(ratio, advantage, None, None, 3.0) == pytest.approx(bounded)


def test_an_upper_end_without_a_range_is_refused():
    with pytest.raises(ValueError, match=r"cliprange_high is 0.3, but cliprange is None.*both or neither"):
        policy_loss_of(1.0, 1.0, None, 0.3)


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


def test_value_loss_without_clipping_is_half_the_squared_error():
    values = rows([0.5, 1.5]).requires_grad_()
    loss, clipped = F.value_loss(values, rows([1.0, 1.0]), rows([2.0, 2.0]), cliprange_value=None)
    loss.sum().backward()
    assert close(loss.detach(), [1.125, 0.125])
    assert close(clipped, [0, 0])
    assert close(values.grad, [-1.5, -0.5])


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


def test_weights_of_tokens_that_another_policy_drew():
    logprobs = torch.tensor([[0.5, 0.2, 0.9]]).log()
    sampled = torch.tensor([[0.25, 0.4, 0.1]]).log()
    weights = F.truncated_weights(logprobs, sampled, cap=3.0)
    torch.testing.assert_close(weights, torch.tensor([[2.0, 0.5, 3.0]]))  # the last is 9


def test_without_a_cap_weights_make_the_sampler_s_mean_the_policy_s():
    """E_q[pi/q f] = E_pi[f], enumerated over four tokens."""
    pi, q = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    f = torch.tensor([1.0, -2.0, 3.0, 0.5])
    weighted = (q * F.truncated_weights(pi.log(), q.log(), cap=1e6) * f).sum()
    torch.testing.assert_close(weighted, (pi * f).sum())
