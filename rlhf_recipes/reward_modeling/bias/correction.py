"""A linear correction that takes away what scores owe to length and style, and the reward that applies it."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.debias import covariates
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import is_per_token, reward_name
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.statistics import Floats, numbers
from rlhf_recipes.texts import Text, sentence


@dataclass(frozen=True)
class Correction:
    """What is taken off a score: `sum_c coefficient_c (x_c - mean_c)`, each `x_c` held within what the fit saw.

    A text longer than all that were seen is corrected like the longest of them, because nothing is known beyond.

    Args:
        names (`tuple[str, ...]`): Covariates, of [`covariates`].
        coefficients, means, low, high (`tuple[float, ...]`): One for each; coefficients in scores for one unit more.
    """

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    means: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        parts = [getattr(self, name) for name in ("coefficients", "means", "low", "high")]
        if any(len(part) != len(self.names) for part in parts) or not np.isfinite(np.array(parts, dtype=float)).all():
            raise ValueError(f"{self} is no correction: give finite numbers, one of each for every covariate.")

    @classmethod
    def fit(
        cls, scores: ArrayLike, ratings: ArrayLike, completions: Sequence[Text], names: Sequence[str] = ("length",)
    ) -> "Correction":
        """`s = a + c y + sum b x` by least squares, on rated texts: b is the effect that ratings do not explain.

        A covariate that people reward keeps that effect: where longer texts are rated higher, and scored higher to
        the same degree, b is 0. Fit it on rows that the model was not trained on.

        Args:
            scores, ratings (`ArrayLike` of shape `(N,)`): s and y.
            completions (`Sequence` of length N), names (`Sequence[str]`): What [`covariates`] counts.

        Raises:
            `ValueError`: if lengths differ, a number is not finite, or rows are fewer than coefficients.
        """
        s, y = numbers(scores, "scores"), numbers(ratings, "ratings")
        x = covariates(completions, names)
        if not len(s) == len(y) == len(x) or len(s) < len(names) + 2:
            raise ValueError(
                f"There are {len(s)} scores, {len(y)} ratings and {len(x)} texts; give one of each for every row, and "
                f"{len(names) + 2} rows or more."
            )
        from sklearn.linear_model import LinearRegression
        from sklearn.preprocessing import StandardScaler

        # Columns of one size: characters are many, and shares are small. One that does not vary gets nothing.
        scaler = StandardScaler()
        fitted = LinearRegression().fit(scaler.fit_transform(np.column_stack([y, x])), s)
        return cls._of((fitted.coef_ / scaler.scale_)[1:], x, names)

    @classmethod
    def fit_pairs(
        cls,
        chosen_scores: ArrayLike,
        rejected_scores: ArrayLike,
        chosen: Sequence[Text],
        rejected: Sequence[Text],
        names: Sequence[str] = ("length",),
    ) -> "Correction":
        """`P(chosen) = sigma(a ds + sum c dx)` by logistic regression, on labelled pairs: b is `-c / a`.

        With that the score says with `ds - b dx` what score and covariates together say best of people's choices.

        Args:
            chosen_scores, rejected_scores (`ArrayLike` of shape `(N,)`), chosen, rejected (`Sequence` of length N):
                Both sides of each pair; `names` as in [`fit`].

        Raises:
            `ValueError`: if lengths differ, or scores do not rise with people's choices.
        """
        s = numbers(chosen_scores, "chosen scores") - numbers(rejected_scores, "rejected scores")
        both = covariates(chosen, names), covariates(rejected, names)
        if not len(s) == len(both[0]) == len(both[1]) > 0:
            raise ValueError(f"There are {len(s)} pairs of scores, {len(chosen)} chosen and {len(rejected)} texts.")
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler

        # Each pair in both orders, for a fit that needs both outcomes.
        design = np.column_stack([s, both[0] - both[1]])
        mirrored, said = np.concatenate([design, -design]), np.repeat([1, 0], len(s))
        scaler = StandardScaler(with_mean=False)
        # Hardly any prior: it pulls what people say of length towards 0.
        model = LogisticRegression(C=50.0, fit_intercept=False, solver="newton-cholesky", tol=1e-9)
        fitted = model.fit(scaler.fit_transform(mirrored), said).coef_[0] / scaler.scale_
        if fitted[0] <= 0:
            raise ValueError("The scores do not rise with people's choices, so there is nothing to correct in them.")
        return cls._of(-fitted[1:] / fitted[0], np.concatenate(both), names)

    @classmethod
    def _of(cls, coefficients: Floats, x: Floats, names: Sequence[str]) -> "Correction":
        columns = (coefficients, x.mean(axis=0), x.min(axis=0), x.max(axis=0))
        return cls(tuple(names), *(tuple(map(float, column)) for column in columns))

    def __call__(self, completions: Sequence[Text]) -> Floats:
        """What is to be taken off each score. `(N,)`"""
        x = np.clip(covariates(completions, self.names), self.low, self.high)
        return np.asarray((x - self.means) @ np.array(self.coefficients), dtype=np.float64)

    def save(self, path: str | Path) -> Path:
        """As JSON."""
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: str | Path) -> "Correction":
        """What `save` has written; `ValueError` if the file holds something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(**{key: tuple(values) for key, values in data.items()})
        except (TypeError, AttributeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{str(path)!r} holds no correction: {sentence(error)} `Correction.save` writes one."
            ) from error


class ResidualReward:
    """A reward less what it gives for length and the like beyond what people do; see [`Correction`].

    What the people of the fit reward stays. It is `None` where the reward is. Its unit is that of the reward: fit the
    correction to the same scores, calibrated or not.

    Args:
        reward (`str`, `Path` or callable): A reward, or the folder of a reward model.
        correction ([`Correction`], `str` or `Path`): What to take off, or the JSON file that holds it.
        name (`str`, *optional*): What logs show. Default: the reward's own name with `-debiased`.
        calibrate (`bool`, *optional*, defaults to `False`): Of a folder: whether the reward is a rating.

    Raises:
        `ValueError`: if the reward is one for each token.

    Example:

    ```python
    reward = LearnedReward("runs/quickstart/reward", calibrate=False)
    correction = Correction.fit(reward(prompts, completions), ratings, completions, ["length", "format"])
    correction.save("runs/quickstart/length.json")
    ResidualReward("runs/quickstart/reward", "runs/quickstart/length.json")
    ```
    """

    def __init__(
        self,
        reward: str | Path | Callable[..., Any],
        correction: Correction | str | Path,
        name: str | None = None,
        calibrate: bool = False,
    ) -> None:
        self._arguments = (reward, correction, name, calibrate)
        self.reward: Any = LearnedReward(reward, calibrate=calibrate) if isinstance(reward, str | Path) else reward
        self.correction = correction if isinstance(correction, Correction) else Correction.load(correction)
        if is_per_token(self.reward):
            raise ValueError("A reward for each token cannot be corrected for the length of the whole text.")
        self.__name__ = name or f"{reward_name(self.reward)}-debiased"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._arguments

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> Series:
        """Score each prompt with its completion. `(B,)`"""
        values = self.reward(prompts=prompts, completions=completions, **kwargs)
        taken = self.correction(completions).tolist()
        return [None if value is None else value - off for value, off in zip(values, taken, strict=True)]
