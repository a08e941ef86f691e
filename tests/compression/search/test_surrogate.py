"""Guesses from what was measured, beside a direct solve and what is left out one by one."""

import itertools

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from rlhf_recipes.compression.search.surrogate import NOISES, SIMILARITIES, Surrogate

ALL = list(itertools.product(range(3), range(2), range(4)))


def values(generator):
    effects = [generator.normal(size=n) for n in (3, 2, 4)]
    return {choice: 2 + sum(e[o] for e, o in zip(effects, choice, strict=True)) for choice in ALL}


def kernel(first, second, similarity):
    return np.array([[similarity ** sum(a != b for a, b in zip(x, y, strict=True)) for y in second] for x in first])


def test_it_is_kernel_ridge_with_the_least_error_of_those_left_out():
    of = values(np.random.default_rng(0))
    known, asked = ALL[::2], ALL[1::2]
    y = np.array([of[c] for c in known])
    errors = {}
    for similarity, noise in itertools.product(SIMILARITIES, NOISES):
        left_out = []
        for out in range(len(known)):
            rest = [i for i in range(len(known)) if i != out]
            others = [known[i] for i in rest]
            weights = np.linalg.solve(
                kernel(others, others, similarity) + noise * np.eye(len(rest)), y[rest] - y.mean()
            )
            left_out.append(y[out] - y.mean() - kernel([known[out]], others, similarity)[0] @ weights)
        errors[similarity, noise] = np.mean(np.square(left_out))
    similarity, noise = min(errors, key=errors.get)
    made = Surrogate(known, y)
    assert (made.similarity, made.error) == (similarity, pytest.approx(errors[similarity, noise], rel=1e-9))
    # Another library: one number for each option, so that d gates of difference are a distance of sqrt(2 d).
    one_hot = [np.concatenate([np.eye(n)[o] for n, o in zip((3, 2, 4), c, strict=True)]) for c in ALL]
    rbf = RBF(length_scale=(-1 / np.log(similarity)) ** 0.5, length_scale_bounds="fixed")
    process = GaussianProcessRegressor(rbf, alpha=noise, optimizer=None).fit(one_hot[::2], y - y.mean())
    np.testing.assert_allclose(made(asked), y.mean() + process.predict(one_hot[1::2]), rtol=1e-8)


def test_it_guesses_effects_that_add_up_and_nothing_from_noise():
    generator = np.random.default_rng(1)
    of = values(generator)
    known = [ALL[i] for i in generator.permutation(len(ALL))[:16]]
    asked = [choice for choice in ALL if choice not in known]
    truth = np.array([of[c] for c in asked])
    assert np.mean((Surrogate(known, [of[c] for c in known])(asked) - truth) ** 2) < 0.3 * truth.var()
    noise = generator.normal(size=16)
    assert np.std(Surrogate(known, noise)(asked)) < 0.7 * noise.std()
