import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.linear_model import LogisticRegression, Ridge

from rlhf_recipes.reward_modeling.personal.coefficients import (
    RandomCoefficients,
    Rows,
    choose_penalties,
    deviance,
    fit,
    fit_shared,
)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def drawn(texts=150, features=6, users=20, each=30, noise=0.5, seed=0):
    """Ratings by users who differ in the first feature (variance 1) and in leniency (variance 0.49)."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    z = torch.cat([normal(texts, features), torch.ones(texts, 1, dtype=torch.float64)], dim=1)
    theta, tastes = normal(features + 1), normal(users, 2) * numbers(1.0, 0.7)
    first = torch.randint(texts, (users * each,), generator=generator)
    of = torch.arange(users).repeat_interleave(each)
    truth = (z @ theta)[first] + tastes[of, 0] * z[first, 0] + tastes[of, 1]
    return Rows(z, first, None, truth + noise * normal(users * each), of), theta, tastes


# ---- one user


def test_the_posterior_after_one_rating_by_hand():
    # b = 2 * 1 = 2; P = 1 + 2 * 2 / 4 = 2; q = 2 * (3 - 0) / 4 = 1.5; so e = 0.75
    model = RandomCoefficients(shared=numbers(0, 0), loadings=numbers([1.0], [0.0]), noise=4.0)
    precision, information = model.evidence(numbers([2.0, 1.0]), numbers(3.0), numbers(0.25))
    assert 1 + precision.item() == 2.0
    assert information.item() == 1.5


def test_the_posterior_after_pairs_is_laplace_s():
    """One number for the user: the most likely one by a grid, the curvature there by differences."""
    model = RandomCoefficients(shared=numbers(0.5, 0.0), loadings=numbers([1.5], [0.0]), noise=1.0)
    features = np.array([1.0, 2.0, -0.5, 1.0, 0.3])
    e = np.linspace(-8, 8, 160_001)
    minus_log = e**2 / 2 + np.logaddexp(0, -(0.5 * features + 1.5 * features * e[:, None])).sum(axis=1)
    place, step = minus_log.argmin(), e[1] - e[0]
    precision, information = model.evidence_of_pairs(torch.from_numpy(np.stack([features, 0 * features], axis=1)))
    mean = (information[0] / (1 + precision[0, 0])).item()
    assert mean == pytest.approx(e[place], abs=2 * step)
    curvature = (minus_log[place + 100] - 2 * minus_log[place] + minus_log[place - 100]) / (100 * step) ** 2
    assert 1 + precision.item() == pytest.approx(curvature, rel=1e-4)
    exact = np.exp(-minus_log)
    assert mean == pytest.approx((e * exact).sum() / exact.sum(), rel=0.25)  # it is an approximation


# ---- all users


def test_the_likelihood_is_that_of_a_normal_distribution():
    """Against scipy: the ratings of one user are jointly normal, with covariance `noise I + B B^T`."""
    rows, theta, _ = drawn(users=3, each=5)
    loadings = torch.linspace(-0.5, 1.0, 14, dtype=torch.float64).reshape(7, 2)
    noise = 0.7
    want = 0.0
    for user in range(3):
        own = rows.users == user
        z, y = rows.z[rows.first[own]].numpy(), rows.targets[own].numpy()
        b = z @ loadings.numpy()
        want -= multivariate_normal(z @ theta.numpy(), noise * np.eye(5) + b @ b.T).logpdf(y)
    want -= 15 / 2 * math.log(2 * math.pi)
    said = deviance(rows, [theta, loadings, torch.tensor(math.log(noise), dtype=torch.float64)], 3)
    assert said.item() == pytest.approx(want, rel=1e-10)


def test_tastes_leniency_and_noise_are_found():
    rows, theta, tastes = drawn()
    model, (precision, information) = fit(rows, 2, 20, shared_penalty=0.1, taste_penalty=1.0)
    covariance = model.loadings @ model.loadings.T
    assert covariance[0, 0].item() == pytest.approx(tastes[:, 0].var().item(), rel=0.2)
    assert covariance[-1, -1].item() == pytest.approx(tastes[:, 1].var().item(), rel=0.2)
    assert model.noise == pytest.approx(0.25, rel=0.1)
    deviations = torch.linalg.solve(precision, information) @ model.loadings.T
    assert np.corrcoef(deviations[:, 0], tastes[:, 0])[0, 1] > 0.98
    assert np.corrcoef(deviations[:, -1], tastes[:, 1])[0, 1] > 0.98


def test_the_unit_of_the_ratings_changes_the_scale_alone():
    rows, _, _ = drawn()
    model, _ = fit(rows, 2, 20, 0.1, 10.0)
    other, _ = fit(Rows(rows.z, rows.first, None, 10 * rows.targets + 3, rows.users), 2, 20, 0.1, 10.0)
    assert torch.allclose(10 * model.shared + 3 * (torch.arange(7) == 6), other.shared, atol=1e-3)
    assert other.noise == pytest.approx(100 * model.noise, rel=1e-4)
    assert torch.allclose(100 * model.loadings @ model.loadings.T, other.loadings @ other.loadings.T, atol=0.1)


def test_where_users_agree_tastes_stay_small():
    rows, theta, _ = drawn()
    noise = torch.randn(600, generator=torch.Generator().manual_seed(2)).double() / 2
    alike = Rows(rows.z, rows.first, None, (rows.z @ theta)[rows.first] + noise, rows.users)
    model, _ = fit(alike, 2, 20, 0.1, 10.0)
    assert (model.loadings @ model.loadings.T).diagonal().max() < 0.05


def test_more_directions_than_users_do_no_harm():
    rows, _, _ = drawn(users=2)
    model, (precision, _) = fit(rows, 5, 2, 0.1, 1.0)
    assert precision.shape == (2, 5, 5)
    assert torch.isfinite(model.loadings).all()


def test_ratings_without_any_noise_are_told():
    rows, _, tastes = drawn(noise=0.0)
    model, (precision, information) = fit(rows, 2, 20, shared_penalty=1e-6, taste_penalty=1e-6)
    said = rows.of(rows.z @ model.shared)
    deviations = (torch.linalg.solve(precision, information) @ model.loadings.T)[rows.users]
    said = said + (rows.z[rows.first] * deviations).sum(dim=1)
    assert torch.allclose(said, rows.targets, atol=1e-2)


def test_rows_of_an_unknown_user_move_the_shared_head_alone():
    rows, _, _ = drawn()
    unknown = Rows(rows.z, rows.first, None, rows.targets, torch.full_like(rows.users, 20))
    model, (precision, information) = fit(unknown, 2, 20, 0.1, 1.0)
    assert torch.equal(information, torch.zeros(20, 2, dtype=torch.float64))
    assert torch.equal(precision, torch.eye(2, dtype=torch.float64).expand(20, 2, 2))
    assert model.noise > 1.0  # 0.25, and all tastes


def test_with_the_mean_of_others_the_shared_head_is_fitted_to_that():
    rows, theta, tastes = drawn()
    others = (rows.z @ theta)[rows.first]
    shifted = Rows(rows.z, rows.first, None, rows.targets, rows.users, others)
    model, _ = fit(shifted, 2, 20, 1e-6, 1.0)
    assert torch.allclose(model.shared, theta, atol=1e-4)


# ---- the shared head


def test_the_shared_head_of_ratings_is_ridge_regression():
    rows, _, _ = drawn()
    theta = fit_shared(rows, 7.0)
    want = Ridge(alpha=7.0).fit(rows.z[rows.first, :-1], rows.targets)
    assert np.allclose(theta[:-1], want.coef_)
    assert theta[-1].item() == pytest.approx(want.intercept_)


def test_the_shared_head_of_pairs_is_logistic_regression():
    rows, theta, _ = drawn()
    second = rows.first.roll(1)
    swap = torch.rand(len(second), generator=torch.Generator().manual_seed(1)) > torch.sigmoid(
        ((rows.z[rows.first] - rows.z[second]) @ theta).float()
    )
    pairs = Rows(
        rows.z, torch.where(swap, second, rows.first), torch.where(swap, rows.first, second), None, rows.users
    )
    found = fit_shared(pairs, 3.0)
    d = pairs.of(rows.z)[:, :-1].numpy()
    want = LogisticRegression(C=1 / 3, fit_intercept=False, tol=1e-10, max_iter=1000)
    want.fit(np.concatenate([d, -d]), [1] * len(d) + [0] * len(d), sample_weight=[0.5] * 2 * len(d))
    assert np.allclose(found[:-1], want.coef_[0], atol=1e-4)
    assert found[-1] == 0


# ---- penalties


def test_penalties_that_are_given_stay_and_few_rows_are_not_split():
    rows, _, _ = drawn(users=3, each=30)
    assert choose_penalties(rows, 2, 3, 0.5, 7.0) == (0.5, 7.0)
    assert choose_penalties(rows.select(torch.arange(90) < 10), 2, 3, None, None) == (10.0, 100.0)


def test_users_who_are_alike_get_a_larger_penalty_than_users_who_differ():
    rows, theta, _ = drawn(each=15)
    noise = torch.randn(len(rows.users), generator=torch.Generator().manual_seed(2)).double()
    alike = Rows(rows.z, rows.first, None, (rows.z @ theta)[rows.first] + noise, rows.users)
    different = choose_penalties(rows, 2, 20, 0.1, None)[1]
    assert choose_penalties(alike, 2, 20, 0.1, None)[1] >= different
