"""A guess at the quality of structures that were not measured, from those that were: kernel ridge regression."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.compression.search.gates import Choice

Floats = NDArray[np.float64]

SIMILARITIES = (0.4, 0.7, 0.9)  # of two choices that differ in one gate
NOISES = (1e-4, 1e-2, 0.1, 1.0)  # the ridge; the last is for what cannot be guessed
FEWEST, MOST = 4, 512  # measured structures that a guess is made from, the last ones


class Surrogate:
    """`f(c) = mean + sum_i a_i s^d(c, c_i)`, d being the number of gates in which two choices differ.

    The kernel `s^d` is a product over gates, and so knows effects of single gates and of several together. Of s and
    the ridge those are taken that leave the least squared error of each structure guessed from all others, which has a
    closed form, `a_i / (K + ridge)^-1_ii` (Rasmussen and Williams 2006, Gaussian Processes for Machine Learning,
    eq. 5.12).

    Args:
        choices, values (length M): Measured; at least [`FEWEST`] of them.
    """

    def __init__(self, choices: Sequence[Choice], values: Sequence[float]) -> None:
        self.choices = np.asarray(choices[-MOST:])
        known = np.asarray(values[-MOST:], dtype=np.float64)
        self.mean = float(known.mean())
        distances = _distances(self.choices, self.choices)
        best: tuple[float, float, Floats] | None = None
        for similarity in SIMILARITIES:
            spectrum, vectors = np.linalg.eigh(similarity**distances)
            rotated = vectors.T @ (known - self.mean)
            for noise in NOISES:
                inverse = 1 / (spectrum.clip(min=0) + noise)
                weights = vectors @ (inverse * rotated)
                error = float(np.mean((weights / (vectors**2 @ inverse)) ** 2))
                if best is None or error < best[0]:
                    best = error, similarity, weights
        assert best is not None
        self.error, self.similarity, self.weights = best  # the mean squared error of a structure left out

    def __call__(self, choices: Sequence[Choice]) -> Floats:
        """Guesses, one for each choice."""
        kernel = self.similarity ** _distances(np.asarray(choices), self.choices)
        return np.asarray(self.mean + kernel @ self.weights, dtype=np.float64)


def _distances(first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    return np.asarray((first[:, None] != second[None]).sum(axis=2), dtype=np.float64)
