"""Credit worked out by hand: every option between scores and advantages, on rollouts of two or three completions."""

import math

import numpy as np
import pytest
import torch

from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.ppo.credit import Credit
from rlhf_recipes.ppo.rollout import Rollout
from tests.ppo.helpers import (
    TOKENIZER,
    AtStep,
    largest_difference,
    logged,
    many_short_tokens,
    same_log,
    tiny_policy,
    trainer,
    weights,
)

PLAIN = {"kl_coef": 0.0, "whiten_advantages": False, "lam": 1.0}


def credit(has_critic=True, **options):
    return Credit(PPOConfig(output_dir="unused", use_cpu=True, **options), has_critic)


def rollout(scores, lengths=None, kl=0.0, values=None, finished=None, width=4, **per_token):
    """Completions of these lengths; every token has the same log-ratio `kl` to the reference; padding holds junk."""
    count = len(scores)
    lengths = [width] * count if lengths is None else lengths
    mask = torch.tensor([[int(t < length) for t in range(width)] for length in lengths])
    junk = torch.full((count, width), 77.0)

    def on_tokens(rows):
        rows = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])
        return torch.where(mask.bool(), rows, junk)

    logprobs = torch.where(mask.bool(), -1.5, junk)
    return Rollout(
        prompt_ids=torch.ones(count, 2, dtype=torch.long),
        prompt_mask=torch.ones(count, 2, dtype=torch.long),
        completion_ids=torch.ones(count, width, dtype=torch.long),
        mask=mask,
        logprobs=logprobs,
        ref_logprobs=logprobs - kl,
        values=on_tokens([[0.0] * width] * count if values is None else values),
        finished=torch.tensor([True] * count if finished is None else finished),
        scores=torch.tensor(scores, dtype=torch.float32),
        **{name: on_tokens(rows) for name, rows in per_token.items()},
    )


def assert_rows(tensor, rows):
    """Equal on the real tokens of each row, and 0 behind them."""
    width = tensor.shape[1]
    expected = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])
    torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=0)


def gae(rewards, values, gamma, lam):
    """Equation 16 of arXiv 1506.02438 for one completion, token by token."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


# --- Scores -------------------------------------------------------------------------------------

SCORES = [[1.0, 2.0, 6.0], [0.5, -3.0, 4.0], [10.0, 11.0, 12.0]]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("clip", [None, 1.2])
def test_scores_are_scaled_by_all_scores_so_far_and_then_clipped(norm, clip):
    assigning = credit(use_score_scaling=True, use_score_norm=norm, score_clip=clip, **PLAIN)
    seen = []
    for scores in SCORES:
        seen += scores
        scaled = (np.array(scores) - (np.mean(seen) if norm else 0.0)) / np.std(seen, ddof=1)
        if clip is not None:
            scaled = np.clip(scaled, -clip, clip)
        given = rollout(scores, lengths=[2, 1, 3])
        done, figures = assigning.assign(given)
        # With lambda and gamma 1 and no values, every token's advantage is what the completion earns.
        assert_rows(done.advantages, [[s] * n for s, n in zip(scaled.tolist(), [2, 1, 3], strict=True)])
        assert figures["objective/scores"] == pytest.approx(np.mean(scores))  # as the rewards gave them
        assert figures["objective/scores_std"] == pytest.approx(np.std(scores))


def test_clipping_alone_needs_no_scaling():
    done, _ = credit(score_clip=2.0, **PLAIN).assign(rollout([5.0, -7.0, 1.0], lengths=[1, 1, 1]))
    assert_rows(done.advantages, [[2.0], [-2.0], [1.0]])


def test_evaluating_moves_neither_moments_nor_the_kl_coefficient():
    assigning = credit(use_score_scaling=True, kl_target=1.0, kl_coef=0.1)
    assigning.assign(rollout(SCORES[0], kl=0.9))
    before = assigning.state_dict()
    assigning.assign(rollout(SCORES[1], kl=-0.9), learn=False)
    assert assigning.state_dict() == before


# --- The KL penalty -----------------------------------------------------------------------------


def test_kl_coef_adapts_to_the_target_rollout_by_rollout():
    assigning = credit(kl_target=2.0, kl_horizon=10, **PLAIN | {"kl_coef": 0.5})
    # Four tokens each, so that the KL of a completion is four times that of a token; 3 episodes of a horizon of 10.
    coefs = [0.5]
    for nats in (2.2, 2.2, 0.4, 40.0):
        done, figures = assigning.assign(rollout([0.0, 0.0, 0.0], kl=nats / 4))
        assert figures["objective/kl"] == pytest.approx(nats, rel=1e-5)
        assert figures["objective/kl_coef"] == pytest.approx(coefs[-1])  # this rollout is priced at the old one
        assert figures["objective/non_score_reward"] == pytest.approx(-coefs[-1] * nats, rel=1e-5)
        assert_rows(done.advantages, [[-coefs[-1] * nats * left / 4 for left in (4, 3, 2, 1)]] * 3)
        error = min(max(nats / 2.0 - 1.0, -0.2), 0.2)
        coefs.append(coefs[-1] * (1 + error * 3 / 10))
    assert coefs[1:] == pytest.approx([0.515, 0.53045, 0.498623, 0.52854038])
    assert assigning.state_dict()["kl"]["value"] == pytest.approx(coefs[-1])


def test_kl_coef_and_moments_are_in_log_and_checkpoint_and_go_on_from_there(tmp_path):
    options = {"kl_target": 0.01, "kl_horizon": 8, "use_score_scaling": True, "use_score_norm": True, "kl_coef": 0.2,
               "total_episodes": 24}  # fmt: skip
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    coefs = [entry["objective/kl_coef"] for entry in logged(whole)]
    errors = [min(max(entry["objective/kl"] / 0.01 - 1, -0.2), 0.2) for entry in logged(whole)]
    assert coefs[0] == 0.2
    assert coefs[1:] == pytest.approx([coefs[0] * (1 + errors[0]), coefs[1] * (1 + errors[1])])
    assert coefs[1] != coefs[0]

    trainer(tmp_path / "cut", kept=[AtStep("should_save", 8), AtStep("should_training_stop", 8)], **options).train()
    state = torch.load(tmp_path / "cut" / "checkpoint-8" / "ppo_state.pt", weights_only=True)["credit"]
    assert state["kl"]["value"] == pytest.approx(coefs[2])
    assert state["moments"]["count"] == 16
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7
    same_log(resumed, whole)


def test_with_use_kl_loss_the_rewards_hold_no_kl():
    assigning = credit(use_kl_loss=True, kl_estimator="k2", **PLAIN | {"kl_coef": 0.5})
    done, figures = assigning.assign(rollout([1.0, 2.0], lengths=[3, 1], kl=0.7))
    assert_rows(done.advantages, [[1.0, 1.0, 1.0], [2.0]])
    assert figures["objective/kl"] == pytest.approx(0.5 * 0.7**2 * (3 + 1) / 2)  # k2: half the square


def test_the_loss_holds_kl_coef_times_k2_at_the_coefficient_that_is_logged(tmp_path):
    # One mini-batch, so that all steps are over the same tokens and means of parts add up to the mean of the loss.
    run = trainer(tmp_path, use_kl_loss=True, kl_estimator="k2", kl_coef=3.0, kl_target=1e-9, kl_horizon=8,
                  num_mini_batches=1, ref_model=tiny_policy(seed=1))  # fmt: skip
    run.train()
    assert [entry["objective/kl_coef"] for entry in logged(run)] == pytest.approx([3.0, 3.6])
    for entry in logged(run):
        parts = entry["loss/policy_avg"] + entry["objective/kl_coef"] * entry["loss/kl_avg"]
        assert entry["loss/kl_avg"] > 0.1
        assert entry["loss"] == pytest.approx(parts + 0.1 * entry["loss/value_avg"], rel=1e-5)


@pytest.mark.slow  # test_update_options.py has it among other options
def test_a_kl_loss_in_the_middle_of_a_rollout_goes_on_with_its_coefficient(tmp_path):
    options = {"use_kl_loss": True, "kl_estimator": "k2", "kl_coef": 3.0, "kl_target": 1e-9, "kl_horizon": 8,
               "ref_model": tiny_policy(seed=1)}  # fmt: skip
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    trainer(tmp_path / "cut", kept=[AtStep("should_save", 6), AtStep("should_training_stop", 6)], **options).train()
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    assert largest_difference(weights(resumed), weights(whole)) < 1e-7


def test_the_gradient_of_the_kl_loss_is_that_of_the_exact_kl(tmp_path):
    """All tokens of the vocabulary as completions of one token, drawn from the uniform distribution.

    The ratio to it weighs each token with its probability, so that the mean over the batch is an expectation.
    """
    reference, size = tiny_policy(seed=1), len(TOKENIZER)
    run = trainer(tmp_path, use_kl_loss=True, kl_estimator="k2", kl_coef=0.3, max_completion_length=1, vf_coef=0.0,
                  cliprange=None, ref_model=reference)  # fmt: skip
    prompt = TOKENIZER("The film is")["input_ids"]
    with torch.no_grad():
        q = torch.log_softmax(reference(torch.tensor([prompt])).logits[0, -1], dim=0)
    zeros = torch.zeros(size, 1)
    batch = {
        "prompt_ids": torch.tensor([prompt] * size),
        "prompt_mask": torch.ones(size, len(prompt), dtype=torch.long),
        "completion_ids": torch.arange(size)[:, None],
        "mask": torch.ones(size, 1, dtype=torch.long),
        "loss_mask": torch.ones(size, 1, dtype=torch.long),
        "logprobs": torch.full((size, 1), -math.log(size)),
        "ref_logprobs": q[:, None],
        "advantages": zeros, "returns": zeros, "values": zeros, "scores": zeros[:, 0],
    }  # fmt: skip
    parameters = list(run.roles.policy.parameters())
    loss = run.compute_loss(run.model, batch, num_items_in_batch=size)
    got = torch.autograd.grad(loss, parameters)
    p = torch.log_softmax(run.roles.policy(torch.tensor([prompt])).logits[0, -1], dim=0)
    exact = torch.autograd.grad(0.3 * (p.exp() * (p - q)).sum(), parameters)
    assert max(float(gradient.abs().max()) for gradient in exact) > 0.01
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


# --- Rewards of tokens, and potentials ----------------------------------------------------------


def test_rewards_of_tokens_stand_where_they_are_paid_beside_the_score():
    given = rollout([10.0, 20.0], lengths=[3, 2], token_rewards=[[1.0, 2.0, 3.0], [4.0, 5.0]])
    done, figures = credit(**PLAIN | {"gamma": 0.5}).assign(given)
    assert_rows(done.advantages, [[1 + 0.5 * 2 + 0.25 * 13, 2 + 0.5 * 13, 13.0], [4 + 0.5 * 25, 25.0]])
    assert figures["objective/scores"] == (10 + 6 + 20 + 9) / 2


def test_rewards_of_tokens_reach_their_tokens_in_a_run(tmp_path):
    def token_value(completion_ids, **kwargs):
        return [[float(token) for token in ids] for ids in completion_ids]

    token_value.per_token = True

    def ten(prompts, **kwargs):
        return [10.0] * len(prompts)

    run = trainer(tmp_path, reward=[token_value, ten], kl_coef=0.0, lam=0.0, gamma=1.0, whiten_advantages=False,
                  critic="none", total_episodes=8, stop_token_id=list(range(5, 400, 5)))  # fmt: skip
    run.train()
    done = run.rollout
    lengths = done.mask.sum(dim=1)
    assert 1 <= lengths.min() < lengths.max()
    for row, length in enumerate(lengths.tolist()):
        ids = done.completion_ids[row, :length].double()
        to_go = ids.flip(0).cumsum(0).flip(0) + 10.0
        torch.testing.assert_close(done.returns[row, :length].double(), to_go)
        assert not done.returns[row, length:].any()


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_potentials_take_their_own_value_from_every_reward_to_go_and_telescope(gamma):
    phi = [[0.3, -1.0, 2.0], [5.0]]
    options = PLAIN | {"gamma": gamma}
    plain, _ = credit(**options).assign(rollout([1.0, 2.0], lengths=[3, 1]))
    shaped, figures = credit(**options).assign(rollout([1.0, 2.0], lengths=[3, 1], potentials=phi))
    discounted = [[1.0 * gamma**2, 1.0 * gamma, 1.0], [2.0]]
    assert_rows(plain.advantages, discounted)
    # From token t on, shaping pays sum_k gamma^(k-t) (gamma Phi_(k+1) - Phi_k) = -Phi_t.
    pairs = zip(discounted, phi, strict=True)
    assert_rows(shaped.advantages, [[g - f for g, f in zip(*pair, strict=True)] for pair in pairs])
    assert figures["objective/scores"] == 1.5  # no part of the score


def test_shaping_comes_after_whitening_of_rewards():
    phi = [[0.5, -1.0, 0.25]]
    options = PLAIN | {"whiten_rewards": True}
    plain, _ = credit(**options).assign(rollout([3.0], lengths=[3]))
    shaped, _ = credit(**options).assign(rollout([3.0], lengths=[3], potentials=phi))
    # Rewards 0, 0, 3 have mean 1 and variance 3; the mean stays, so that they still add up to 3.
    low, high = 1 - 1 / math.sqrt(3), 1 + 2 / math.sqrt(3)
    assert_rows(plain.advantages, [[3.0, low + high, high]])
    assert_rows(shaped.advantages, [[3.0 - 0.5, low + high + 1.0, high - 0.25]])


# --- Truncated completions ----------------------------------------------------------------------


def test_truncated_completions_are_kept_unless_asked_otherwise():
    given = rollout([1.0, 3.0], lengths=[2, 4], finished=[True, False])
    done, figures = credit(**PLAIN).assign(given)
    assert torch.equal(done.loss_mask, done.mask)
    assert figures["rollout/finished"] == 0.5
    done, _ = credit(mask_truncated_completions=True, **PLAIN | {"whiten_advantages": True}).assign(given)
    assert done.loss_mask.tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert_rows(done.advantages, [[0.0, 0.0], []])  # whitened over the first completion alone, which is constant


def truncated(**options):
    """A run in which no completion ends by itself."""
    return {"stop_token": "none", "total_episodes": 8} | options


def test_the_penalty_is_for_truncated_completions(tmp_path):
    run = trainer(tmp_path, missing_eos_penalty=2.5, **truncated())
    run.train()
    (entry,) = logged(run)
    assert entry["objective/scores"] == pytest.approx(entry["reward/many_short_tokens"] - 2.5)


@pytest.mark.parametrize("optim", ["sgd", "adamw_torch"])
def test_where_all_are_masked_nothing_is_nan_and_nothing_moves(tmp_path, optim):
    run = trainer(tmp_path, mask_truncated_completions=True, optim=optim, weight_decay=0.5, entropy_coef=0.1,
                  **truncated())  # fmt: skip
    before = weights(run)
    run.train()
    assert run.state.global_step == 4
    assert largest_difference(before, weights(run)) == 0
    (entry,) = logged(run)
    assert entry["loss"] == 0
    assert all(math.isfinite(value) for value in entry.values())


def test_a_step_without_tokens_leaves_momentum_alone(tmp_path):
    """The first rollout moves weights, the second is masked: an optimizer would coast on."""

    def policy_that_ends(completion_ids, **kwargs):
        return many_short_tokens(completion_ids)

    run = trainer(tmp_path, reward=policy_that_ends, mask_truncated_completions=True, optim="adamw_torch",
                  weight_decay=0.1, learning_rate=0.01, stop_token_id=list(range(3, 400, 3)))  # fmt: skip
    assign, moments = run.credit.assign, []

    def second_is_truncated(given, learn=True):
        moments.append(weights(run))
        if len(moments) == 2:
            given = given.map(lambda name, tensor: torch.zeros_like(tensor) if name == "finished" else tensor)
        return assign(given, learn)

    run.credit.assign = second_is_truncated
    run.train()
    assert largest_difference(*moments) > 1e-3
    assert largest_difference(moments[1], weights(run)) == 0


# --- Advantages ---------------------------------------------------------------------------------

REWARDS, VALUES = [[1.0, -2.0, 0.5, 3.0], [0.0, 4.0]], [[0.2, 0.1, -0.3, 0.6], [1.0, -1.0]]


def with_values(**options):
    given = rollout([0.0, 0.0], lengths=[4, 2], values=VALUES, token_rewards=REWARDS)
    return credit(kl_coef=0.0, whiten_advantages=False, gamma=0.9, **options).assign(given)[0]


def test_lam_value_is_for_the_targets_of_the_critic_alone():
    done = with_values(lam=0.7, lam_value=1.0)
    assert_rows(done.advantages, [gae(r, v, 0.9, 0.7) for r, v in zip(REWARDS, VALUES, strict=True)])
    targets = [
        [a + own for a, own in zip(gae(r, v, 0.9, 1.0), v, strict=True)] for r, v in zip(REWARDS, VALUES, strict=True)
    ]
    assert_rows(done.returns, targets)
    assert targets[1] == pytest.approx([3.6, 4.0])  # with lambda 1 what was really earned


@pytest.mark.parametrize(("lam_value", "of_targets"), [(None, 0.7), (1.0, 1.0), (0.5, 0.5)])
def test_lam_length_alpha_makes_a_lambda_of_each_length(lam_value, of_targets):
    done = with_values(lam=0.7, lam_value=lam_value, lam_length_alpha=0.6)
    lams = [1 - 1 / (0.6 * 4), 1 - 1 / (0.6 * 2)]
    rows = list(zip(REWARDS, VALUES, lams, strict=True))
    assert_rows(done.advantages, [gae(r, v, 0.9, lam) for r, v, lam in rows])
    assert_rows(
        done.returns,
        [[a + own for a, own in zip(gae(r, v, 0.9, of_targets), v, strict=True)] for r, v, _ in rows],
    )


def test_without_a_critic_the_baseline_is_the_mean_of_what_is_still_earned():
    given = rollout([6.0, 1.0], lengths=[3, 1], kl=0.5)
    done, figures = credit(has_critic=False, gamma=0.5, kl_coef=2.0, whiten_advantages=False).assign(given)
    # Every token pays 2.0 * 0.5 = 1: rewards -1, -1, 5 and 0.
    to_go = [[-1 - 0.5 + 1.25, -1 + 2.5, 5.0], [0.0]]
    mean = (-0.25 + 1.5 + 5.0 + 0.0) / 4
    assert_rows(done.returns, to_go)
    assert_rows(done.advantages, [[g - mean for g in row] for row in to_go])
    assert not {"value/mean", "value/explained_variance"} & set(figures)


def test_without_a_critic_masked_completions_have_no_part_in_the_baseline():
    given = rollout([6.0, 100.0], lengths=[2, 4], finished=[True, False])
    done, _ = credit(has_critic=False, mask_truncated_completions=True, **PLAIN).assign(given)
    assert_rows(done.advantages[:1], [[0.0, 0.0]])


def test_whitening_of_advantages_can_be_left_out():
    given = rollout([1.0, 2.0, 6.0], lengths=[1, 1, 1])
    raw, _ = credit(**PLAIN).assign(given)
    assert_rows(raw.advantages, [[1.0], [2.0], [6.0]])
    whitened, _ = credit(**PLAIN | {"whiten_advantages": True}).assign(given)
    scaled = (np.array([1.0, 2.0, 6.0]) - 3.0) / np.std([1.0, 2.0, 6.0], ddof=1)
    assert_rows(whitened.advantages, [[a] for a in scaled.tolist()])
    assert torch.equal(raw.returns, whitened.returns)


def test_a_diagnosis_of_a_negative_kl_is_never_by_chance(caplog):
    assigning, noise = credit(), torch.Generator().manual_seed(0)
    for _ in range(1000):  # a KL of 0 with the scatter that a policy near its reference has
        drawn = rollout([0.0] * 4, lengths=[1] * 4)
        ratios = 0.5 * torch.randn(4, 4, generator=noise)
        assigning.assign(drawn.map(lambda name, x, ratios=ratios: -1.5 - ratios if name == "ref_logprobs" else x))
    assert caplog.text == ""
