"""Features of all kinds on one scale, and none beyond what the training texts have shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.reward_modeling.linear.features import FeatureSet, Matrix, beside, dense


@dataclass(frozen=True)
class Standardization:
    """`z = (clip(f, low, high) - center) / scale`, each `(F,)`; `std` is the standard deviation over training texts.

    A straight line goes on for ever, and a policy would follow it: a value beyond those of the training texts counts
    as the lowest or highest of them, unless the group is bounded.
    """

    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def fit(cls, features: FeatureSet, blocks: Sequence[Matrix], together: bool = False) -> "Standardization":
        """Learn it from the features of training texts, group by group.

        Args:
            features ([`~rlhf_recipes.reward_modeling.linear.features.FeatureSet`]), blocks: As it gives them.
            together (`bool`, *optional*, defaults to `False`):
                Whether groups that are not standardized, such as an encoder's numbers, get variance 1 as a whole
                instead of staying as they are; what does not vary is 0 then.
        """
        parts = []
        for group, block in zip(features.groups, blocks, strict=True):
            mean, std = _moments(block)
            low, high = (np.ravel(dense(end(axis=0))) for end in (block.min, block.max))
            # The mean of equal numbers is rounded; what is left of them must not be blown up.
            std = np.where(high - low <= 1e-12 * np.maximum(np.abs(low), np.abs(high)), 0.0, std)
            size = std if group.standardize else np.full_like(std, math.sqrt((std**2).sum()) if together else 1.0)
            unvaried = math.inf if together else 1.0
            ends = (np.full_like(std, -math.inf), np.full_like(std, math.inf)) if group.bounded else (low, high)
            center = np.zeros_like(mean) if group.from_zero else mean
            parts.append((center, np.where(std > 0, size, unvaried), std, *ends))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def __call__(self, blocks: Sequence[Matrix]) -> Matrix:
        """Standardized features of N texts, side by side. `[(N, F_group)] -> (N, F)`"""
        made, start = [], 0
        for block in blocks:
            own = slice(start, start + block.shape[1])
            center, scale, low, high = self.center[own], self.scale[own], self.low[own], self.high[own]
            if isinstance(block, np.ndarray):
                made.append((np.clip(block, low, high) - center) / scale)
            else:  # a bag of words: what is not there is 0, which is the lowest and the centre
                block = block.copy()
                block.data = np.minimum(block.data, high[block.indices]) / scale[block.indices]
                made.append(block)
            start = own.stop
        return beside(made)


def _moments(block: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column."""
    if isinstance(block, np.ndarray):
        return block.mean(axis=0), block.std(axis=0)
    from sklearn.utils.sparsefuncs import mean_variance_axis

    mean, variance = mean_variance_axis(block, axis=0)
    return mean, np.sqrt(variance)
