"""From logits to ratings: curves that are fitted to labelled rows, and what they say."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit


@dataclass(frozen=True)
class LogisticCalibration:
    """`rating = low + (high - low) * sigmoid(scale * logit + offset)`: within the rating scale, and never turns.

    A straight line would leave the scale for extreme logits, which is where a policy under optimization goes.

    Args:
        scale (`float`):
            Steepness, above 0, so that the order of two texts stays what the model says.
        offset (`float`):
            Shift, in units of `scale * logit`.
        low (`float`, *optional*, defaults to -4.0), high (`float`, *optional*, defaults to 4.0):
            Ends of the rating scale.
    """

    scale: float
    offset: float
    low: float = -4.0
    high: float = 4.0

    def __post_init__(self) -> None:
        values = (self.scale, self.offset, self.low, self.high)
        if not all(math.isfinite(value) for value in values) or self.scale <= 0 or self.low >= self.high:
            raise ValueError(f"{self} is no calibration: all must be finite, scale above 0, and low below high.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The ratings that belong to the logits, in the same shape."""
        return self.low + (self.high - self.low) * expit(
            self.scale * np.asarray(logits, dtype=np.float64) + self.offset
        )

    @classmethod
    def fit(cls, logits: ArrayLike, ratings: ArrayLike, low: float = -4.0, high: float = 4.0) -> "LogisticCalibration":
        """The curve with the least squared error on held-out texts, by steps of Levenberg and Marquardt (1963).

        Args:
            logits (`ArrayLike` of shape `(N,)`):
                What the model says.
            ratings (`ArrayLike` of shape `(N,)`):
                What people say, from `low` to `high`.

        Raises:
            `ValueError`: if there are not two different logits, a value is not finite, a rating lies outside of the
                scale, or ratings do not rise with the logits.
        """
        from scipy.optimize import least_squares  # takes a third of a second

        x, y = _checked(logits, ratings, low, high)
        mean, std = x.mean(), x.std()
        z = (x - mean) / std
        target = (y - low) / (high - low)
        inner = np.clip(target, 0.01, 0.99)
        slope, intercept = np.polyfit(z, np.log(inner / (1 - inner)), 1)
        if slope <= 1e-8:
            raise ValueError(
                f"The ratings do not rise with the logits (slope {slope:.3g} over {len(x)} texts), so no rising curve "
                "fits them. Check that a higher logit means a better text, and that rows of both belong together."
            )

        def misses(parameters: NDArray[np.float64]) -> NDArray[np.float64]:
            return expit(np.exp(parameters[0]) * z + parameters[1]) - target

        # The logarithm keeps the slope above 0.
        found = least_squares(misses, [math.log(slope), intercept], method="lm", xtol=1e-12, ftol=1e-12, gtol=1e-12)
        log_slope, shift = found.x
        scale = math.exp(log_slope) / std
        return cls(scale=float(scale), offset=float(shift - scale * mean), low=float(low), high=float(high))


def _checked(
    logits: ArrayLike, ratings: ArrayLike, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"Logits have shape {x.shape} and ratings {y.shape}; give one of each for every text.")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("A logit or a rating is NaN or infinite; calibration needs finite numbers.")
    if len(np.unique(x)) < 2:
        raise ValueError(f"The {len(x)} logits hold fewer than two different values; no curve can be fitted to them.")
    if y.min() < low or y.max() > high:
        raise ValueError(
            f"Ratings run from {y.min():g} to {y.max():g}, outside of the scale from {low:g} to {high:g}."
        )
    return x, y


@dataclass(frozen=True)
class LinearCalibration:
    """`rating = scale * logit + offset`: the way back for a model that has learned standardized ratings.

    Args:
        scale (`float`): Above 0.
        offset (`float`): In units of the rating.
    """

    scale: float
    offset: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or not math.isfinite(self.offset) or self.scale <= 0:
            raise ValueError(f"{self} is no calibration: both must be finite, and scale above 0.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The ratings that belong to the logits, in the same shape."""
        return self.scale * np.asarray(logits, dtype=np.float64) + self.offset


@dataclass(frozen=True)
class OrdinalCalibration:
    """The expected level under proportional odds (McCullagh 1980), `P(y <= k) = sigmoid(threshold_k - logit)`.

    Args:
        thresholds (`tuple[float, ...]` of length K - 1): Rising.
        levels (`tuple[float, ...]` of length K): The ratings, rising.
    """

    thresholds: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))  # a list, out of a JSON file
        object.__setattr__(self, "levels", tuple(self.levels))
        fits = len(self.levels) == len(self.thresholds) + 1 >= 2
        if not fits or any(list(values) != sorted(set(values)) for values in (self.thresholds, self.levels)):
            raise ValueError(f"{self} is no calibration: give K levels and K - 1 thresholds, both rising.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The expected ratings, in the same shape."""
        x = np.asarray(logits, dtype=np.float64)
        above = expit(x[..., None] - np.asarray(self.thresholds))  # P(y > k)
        return self.levels[0] + above @ np.diff(self.levels)


Calibration = LogisticCalibration | LinearCalibration | OrdinalCalibration
