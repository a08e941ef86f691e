"""The structure policy, beside enumeration, autograd, finite differences and scipy."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch

from rlhf_recipes.compression.search.gates import Gates, PolicySettings, StructurePolicy, expected_reward

SIZES = (3, 2, 4)
ALL = list(itertools.product(*map(range, SIZES)))


@pytest.fixture
def logits():
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()


def rewards():
    generator = np.random.default_rng(2)
    return {choice: float(generator.normal(3.0)) for choice in ALL}


def probabilities(logits):
    return [scipy.special.softmax(row[:n].numpy()) for row, n in zip(logits.detach(), SIZES, strict=True)]


def exact_gradient(logits, of):
    """Of E[R] by the chain rule on the enumeration: `sum_c R(c) pi(c) (1[c_k = o] - pi_k(o))`."""
    tables = probabilities(logits)
    gradient = np.zeros((3, 4))
    for choice, reward in of.items():
        p = np.prod([table[o] for table, o in zip(tables, choice, strict=True)])
        for k, (table, option) in enumerate(zip(tables, choice, strict=True)):
            gradient[k, : SIZES[k]] += reward * p * ((np.arange(SIZES[k]) == option) - table)
    return gradient


def gradient(logits, memory, choices, of):
    gates = Gates(SIZES)
    value = expected_reward(gates, gates.log_probabilities(logits), memory, choices, [of[c] for c in choices])
    return torch.autograd.grad(value, logits)[0].numpy()


def test_the_probability_of_a_choice_is_the_product_of_its_gates(logits):
    gates, tables = Gates(SIZES), probabilities(logits)
    found = gates.of_choices(gates.log_probabilities(logits), ALL).exp().detach().numpy()
    expected = [np.prod([table[o] for table, o in zip(tables, choice, strict=True)]) for choice in ALL]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_entropy_and_divergence_are_those_of_scipy(logits):
    gates = Gates(SIZES)
    prior = torch.randn(3, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    ours, theirs = probabilities(logits), probabilities(prior)
    log_probabilities = gates.log_probabilities(logits)
    assert gates.entropy(log_probabilities).item() == pytest.approx(sum(map(scipy.stats.entropy, ours)), rel=1e-12)
    expected = sum(map(scipy.stats.entropy, ours, theirs))
    found = gates.divergence(log_probabilities, gates.log_probabilities(prior))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_entropy_and_divergence_have_the_gradients_of_finite_differences(logits):
    gates, prior = Gates(SIZES), Gates(SIZES).log_probabilities(torch.zeros(3, 4, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda x: gates.entropy(gates.log_probabilities(x)), logits)
    assert torch.autograd.gradcheck(lambda x: gates.divergence(gates.log_probabilities(x), prior), logits)


def test_with_all_in_memory_the_gradient_is_exact(logits):
    found = gradient(logits, rewards(), [], rewards())
    np.testing.assert_allclose(found, exact_gradient(logits, rewards()), atol=1e-12)


@pytest.mark.parametrize("draws", [1, 2])
@pytest.mark.parametrize("known", [0, 5])
def test_the_expected_gradient_over_all_draws_is_the_exact_one(logits, draws, known):
    of, tables = rewards(), probabilities(logits)
    memory = {choice: of[choice] for choice in ALL[::4][:known]}
    outside = [choice for choice in ALL if choice not in memory]
    mass = {c: float(np.prod([t[o] for t, o in zip(tables, c, strict=True)])) for c in outside}
    total = sum(mass.values())
    mean = sum(
        math.prod(mass[c] / total for c in batch) * gradient(logits, memory, list(batch), of)
        for batch in itertools.product(outside, repeat=draws)
    )
    np.testing.assert_allclose(mean, exact_gradient(logits, of), atol=1e-10)


@pytest.mark.parametrize("known", [0, 5])
def test_a_guess_leaves_the_expected_gradient_as_it_is(logits, known):
    of, tables, gates = rewards(), probabilities(logits), Gates(SIZES)
    memory = {choice: of[choice] for choice in ALL[::4][:known]}
    outside = [choice for choice in ALL if choice not in memory]
    mass = {c: float(np.prod([t[o] for t, o in zip(tables, c, strict=True)])) for c in outside}
    total = sum(mass.values())
    made_up = dict(zip(ALL, np.random.default_rng(7).normal(size=len(ALL)), strict=True))

    def estimate(draw, others):
        value = expected_reward(
            gates, gates.log_probabilities(logits), memory, [draw], [of[draw]], others,
            lambda choices: [made_up[c] for c in choices],
        )  # fmt: skip
        return torch.autograd.grad(value, logits)[0].numpy()

    # Draws and others are independent and enter separate terms: one of the two may stand still in each mean.
    others = [outside[0], outside[3]]
    of_draws = sum(mass[c] / total * estimate(c, others) for c in outside)
    still = estimate(outside[1], others)
    of_others = sum(
        mass[a] * mass[b] / total**2 * estimate(outside[1], [a, b]) for a, b in itertools.product(outside, repeat=2)
    )
    np.testing.assert_allclose(of_draws + of_others - still, exact_gradient(logits, of), atol=1e-10)


def test_a_true_guess_leaves_no_noise_of_the_paid_draws(logits):
    of, gates = rewards(), Gates(SIZES)
    others = ALL[2:9]

    def estimate(draw):
        value = expected_reward(
            gates,
            gates.log_probabilities(logits),
            {},
            [draw],
            [of[draw]],
            others,
            lambda choices: [of[c] for c in choices],
        )
        return torch.autograd.grad(value, logits)[0].numpy()

    np.testing.assert_allclose(estimate(ALL[0]), estimate(ALL[11]), atol=1e-12)


def test_without_memory_it_is_reinforce_with_a_leave_one_out_baseline(logits):
    of, batch = rewards(), [ALL[3], ALL[17], ALL[8]]
    tables, expected = probabilities(logits), np.zeros((3, 4))
    for i, choice in enumerate(batch):
        others = np.mean([of[c] for j, c in enumerate(batch) if j != i])
        for k, option in enumerate(choice):
            score = (np.arange(SIZES[k]) == option) - tables[k]
            expected[k, : SIZES[k]] += (of[choice] - others) * score / len(batch)
    np.testing.assert_allclose(gradient(logits, {}, batch, of), expected, atol=1e-12)


def test_draws_come_from_outside_the_memory_in_proportion(logits):
    policy = StructurePolicy(SIZES, seed=3)
    with torch.no_grad():
        policy.logits.copy_(logits)
    known = ALL[::3]
    policy.remember(known, [0.0] * len(known))
    drawn = policy.draw(8000)
    tables = probabilities(logits)
    outside = [choice for choice in ALL if choice not in known]
    mass = np.array([np.prod([t[o] for t, o in zip(tables, c, strict=True)]) for c in outside])
    counts = np.array([drawn.count(choice) for choice in outside])
    assert counts.sum() == 8000
    assert scipy.stats.chisquare(counts, 8000 * mass / mass.sum()).pvalue > 0.001


def test_a_policy_that_is_sure_of_what_is_known_still_finds_the_rest():
    policy = StructurePolicy(SIZES)
    with torch.no_grad():
        policy.logits[:, 0] = 60.0
    policy.remember(ALL[:-1], [1.0] * (len(ALL) - 1))
    assert policy.draw(2) == [ALL[-1]] * 2
    policy.remember([ALL[-1]], [1.0])
    assert policy.draw(2) == []


def test_entropy_and_kl_alone_lead_to_uniform_and_to_the_prior():
    prior = [[0.7, 0.2, 0.1], [0.5, 0.5], [0.1, 0.2, 0.3, 0.4]]
    held = StructurePolicy(SIZES, PolicySettings(entropy_coef=0, kl_coef=1.0, learning_rate=0.05), prior)
    spread = StructurePolicy(SIZES, PolicySettings(entropy_coef=1.0, learning_rate=0.05), prior)
    with torch.no_grad():
        held.logits.add_(torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    for _ in range(500):
        held.update([], [], spent=0.0)
        spread.update([], [], spent=0.0)
    for row, of_prior in zip(held.probabilities(), prior, strict=True):
        assert row == pytest.approx(of_prior, abs=1e-3)
    for row in spread.probabilities():
        assert row == pytest.approx([1 / len(row)] * len(row), abs=1e-3)


def test_it_goes_on_to_the_bit():
    of = rewards()

    def go(policy, steps):
        for _ in range(steps):
            drawn = policy.draw()
            policy.update(drawn, [of[c] for c in drawn], spent=len(policy.memory) / len(ALL))
        return policy

    whole = go(StructurePolicy(SIZES, seed=4), 4)
    half = go(StructurePolicy(SIZES, seed=4), 2)
    other = StructurePolicy(SIZES, seed=9)
    other.load_state_dict(half.state_dict())
    go(other, 2)
    assert torch.equal(whole.logits, other.logits)
    assert list(whole.memory.items()) == list(other.memory.items())
    assert whole.sample(5) == other.sample(5)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gates(()), "there must be a gate"),
        (lambda: Gates((2, 0)), "1 option or more"),
        (lambda: StructurePolicy((2,), prior=[[1.0, 0.0]]), "never tried"),
        (lambda: StructurePolicy((2,), prior=[[1.0]]), "positive number"),
        (lambda: StructurePolicy((2, 2)).remember([(0, 2)], [1.0]), "is no choice"),
        (lambda: StructurePolicy((2,)).remember([(0,)], [math.nan]), "finite number"),
        (lambda: PolicySettings(draws=0), "draws is 0"),
        (lambda: PolicySettings(learning_rate=0.0), "greater than 0"),
        (lambda: StructurePolicy((2,)).load_state_dict(StructurePolicy((3,)).state_dict()), "begin anew"),
    ],
)
def test_errors_say_what_is_wrong(make, said):
    with pytest.raises(ValueError, match=said):
        make()
