"""A reward model that can be read: a regression on named features of the text.

```
score(x) = base + sum_k w_k (f_k(x) - c_k)      f_k feature k, c_k its mean in training (0 for words), w_k its weight
```
From ratings the weights are those of a regression (ridge by default). From pairs they are those of a logistic
regression on differences of features, without intercept: `P(chosen > rejected) = sigmoid(score(chosen) -
score(rejected))`, which is the Bradley-Terry model (Bradley and Terry 1952) on linear scores, and what neural reward
models are trained with.

```python
model = LinearRewardModel(["Length", "Sentiment", {"BagOfWords": {"max_n": 2}}])
model.fit_ratings(prompts, completions, ratings)
print(model.read_aloud("", "A warm, funny film."))
model.save("runs/linear")  # LinearReward("runs/linear") is the reward
```
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes import filenames
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.reward_modeling.linear import regressors
from rlhf_recipes.reward_modeling.linear.card import card
from rlhf_recipes.reward_modeling.linear.features import (
    NAMED,
    Coefficient,
    Contribution,
    FeatureGroup,
    FeatureSet,
    Matrix,
    dense,
)
from rlhf_recipes.reward_modeling.linear.standardize import Standardization
from rlhf_recipes.statistics import percentile_interval
from rlhf_recipes.texts import Text

ARRAYS_FILE = "linear_reward.npz"
FORMAT = 1


class LinearRewardModel:
    """A regression on named features, fitted to ratings or to pairs.

    Any scikit-learn regressor will do. Where its predictions are a weighted sum of its inputs, as with ridge, lasso,
    elastic net or a linear SVR, it can be read in full, and a saved model is numbers alone. Of all others (gradient
    boosting, a kernel SVR, ...) contributions are by taking one feature away at a time, which need not add up.

    Features are held within what training has seen, so that scores have bounds.

    Args:
        features (`Sequence` or [`~rlhf_recipes.reward_modeling.linear.features.FeatureSet`], *optional*):
            Groups of features, as objects or as `rlhf_recipes.reward_modeling.linear.features.make_group` takes them.
            Default: all that are named and need nothing else.
        regressor (`str` or scikit-learn regressor, *optional*):
            An import path such as `"sklearn.svm:SVR"`, or an object. Default: for ratings RidgeCV, for pairs
            LogisticRegression with a penalty chosen by cross-validation. For pairs it must be a linear classifier
            without intercept; `"sklearn.svm:LinearSVC"` makes it a ranking SVM (Joachims 2002).
        regressor_args (`Mapping`, *optional*):
            Its settings, with an import path.

    Raises:
        `ValueError`: if settings are given without a regressor, or a group of features does not exist.
    """

    def __init__(
        self,
        features: FeatureSet | Sequence[FeatureGroup | str | Mapping[str, Any]] = NAMED,
        regressor: Any = None,
        regressor_args: Mapping[str, Any] | None = None,
    ) -> None:
        if regressor_args and not isinstance(regressor, str):
            raise ValueError("regressor_args are for a regressor given by its import path, package.module:Class.")
        self.features = features if isinstance(features, FeatureSet) else FeatureSet(tuple(features))  # type: ignore[arg-type]
        self.regressor, self.regressor_args = regressor, dict(regressor_args or {})
        self.trained_on: str | None = None
        self.rows = 0
        self.standardization: Standardization | None = None
        self.intercept = 0.0
        self.coefficients: NDArray[np.float64] | None = None  # (F,)  of standardized features; None if not linear
        self.estimator: Any = None
        self.intervals: NDArray[np.float64] | None = None  # (F, 2)  of the coefficients per standard deviation
        self.calibration: LogisticCalibration | None = None
        self._training: tuple[Matrix, NDArray[np.float64]] | None = None
        self._loaded = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_training": None}  # a pickle is for judging, and stays small

    def __repr__(self) -> str:
        size = len(self.features.features) if self.trained_on else "?"
        return f"LinearRewardModel({size} features, regressor={self.regressor_name()}, trained_on={self.trained_on})"

    def regressor_name(self) -> str:
        """What was fitted, as a person calls it."""
        return regressors.name_of(self.regressor, self.regressor_args, self.trained_on)

    # --- Fitting ---------------------------------------------------------------------------------

    def fit_ratings(
        self, prompts: Sequence[Text], completions: Sequence[Text], ratings: ArrayLike
    ) -> "LinearRewardModel":
        """Fit the ratings of texts. The scores are then in their unit.

        Raises:
            `ValueError`: if the lengths differ, a rating is not finite, or all ratings are the same.
        """
        y = np.asarray(ratings, dtype=np.float64)
        if y.shape != (len(completions),) or not np.isfinite(y).all() or len(np.unique(y)) < 2:
            raise ValueError(
                f"Ratings have shape {y.shape} for {len(completions)} texts. Give one finite number for each, and not "
                "the same for all."
            )
        z = self._learn_features(prompts, completions)
        estimator = regressors.for_ratings(self.regressor, self.regressor_args, z).fit(z, y)
        self.coefficients, self.intercept = regressors.linear_parts(estimator, z, estimator.predict)
        return self._keep(estimator, "ratings", z, y)

    def fit_pairs(
        self, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text]
    ) -> "LinearRewardModel":
        """Fit which of two texts people prefer: Bradley-Terry on linear scores.

        The scores are log-odds, and 0 is that of a text whose features are all at their centres.

        Raises:
            `ValueError`: if the lengths differ, there is no pair whose features differ, or the regressor is not a
                linear classifier without intercept.
        """
        count = len(chosen)
        if not len(prompts) == count == len(rejected) or not count:
            raise ValueError(
                f"There are {len(prompts)} prompts, {count} chosen and {len(rejected)} rejected texts; give one of "
                "each for every pair."
            )
        both = self._learn_features([*prompts, *prompts], [*chosen, *rejected])
        difference = both[:count] - both[count:]
        if not abs(difference).sum():
            raise ValueError(f"In all {count} pairs the features of both texts are the same: nothing to learn.")
        # Without intercept a pair says the same either way round; a classifier needs both to be there.
        rows = np.arange(max(count, 2))
        y = np.where(rows % 2, -1.0, 1.0)
        turned = difference[rows % count]
        z = turned * y[:, None] if isinstance(turned, np.ndarray) else turned.multiply(y[:, None]).tocsr()
        estimator = regressors.for_pairs(self.regressor, self.regressor_args, len(y)).fit(z, y)
        says = getattr(estimator, "decision_function", estimator.predict)
        self.coefficients, self.intercept = regressors.linear_parts(estimator, z, says)
        if self.coefficients is None or self.intercept != 0.0:
            raise ValueError(
                "Pairs need a linear classifier without intercept, such as sklearn.linear_model:LogisticRegression "
                f"with fit_intercept False; {self.regressor_name()} is not."
            )
        return self._keep(estimator, "pairs", z, y)

    def calibrate(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ratings: ArrayLike,
        low: float | None = None,
        high: float | None = None,
    ) -> LogisticCalibration:
        """Fit the curve from scores to ratings on rows that the model was not trained on; see LogisticCalibration.

        Args:
            low, high (`float`, *optional*): Ends of the rating scale. Default: the lowest and highest of `ratings`.
        """
        y = np.asarray(ratings, dtype=np.float64)
        ends = float(y.min() if low is None else low), float(y.max() if high is None else high)
        self.calibration = LogisticCalibration.fit(self.scores(prompts, completions), y, *ends)
        return self.calibration

    def bootstrap(self, samples: int = 200, seed: int = 0) -> NDArray[np.float64]:
        """95% intervals of the coefficients per standard deviation: the regression again on rows drawn with
        replacement (percentile bootstrap, Efron 1979). Features, vocabulary and penalty stay as they are.

        Returns:
            `numpy.ndarray` of shape `(F, 2)`: also kept, saved and shown with the coefficients.

        Raises:
            `ValueError`: if the model is not linear, or was loaded and so has no training rows.
        """
        if self._training is None or self.coefficients is None:
            raise ValueError(
                "Intervals need a linear model and its training rows: call bootstrap right after the fit."
            )
        z, y = self._training
        estimator, generator = regressors.with_chosen_penalty(self.estimator), np.random.default_rng(seed)
        draws = [generator.integers(len(y), size=len(y)) for _ in range(samples)]
        fits = [estimator.fit(z[rows], y[rows]).coef_ for rows in draws if len(np.unique(y[rows])) > 1]
        scaled = self._fitted()
        columns = np.stack([np.ravel(dense(fit)) for fit in fits]).T * (scaled.std / scaled.scale)[:, None]  # (F, S)
        self.intervals = np.array([percentile_interval(column) for column in columns])
        return self.intervals

    # --- Judging ---------------------------------------------------------------------------------

    def scores(self, prompts: Sequence[Text], completions: Sequence[Text]) -> NDArray[np.float64]:
        """What the regression says, before calibration. `(B,)`"""
        if not len(completions):
            return np.zeros(0)
        return self.predict(self.standardized(prompts, completions))

    def standardized(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Matrix:
        """The features of texts as the regression reads them. `(B, F)`"""
        return self._fitted()(self.features.blocks(prompts, completions))

    def predict(self, z: Matrix) -> NDArray[np.float64]:
        """What the regression says of standardized features. `(B, F) -> (B,)`"""
        if self.coefficients is not None:
            return np.ravel(z @ self.coefficients) + self.intercept
        return np.ravel(self.estimator.predict(z))

    def explain(self, prompt: Text, completion: Text, top: int | None = None) -> list[Contribution]:
        """What each feature did to the score of one text, the strongest first.

        Of a bag of words only the words that are there are told, and an embedding as a whole. Of a linear model the
        contributions and `base()` add up to the score. Of any other, each is the score less what it would be with that
        feature at its centre.

        Args:
            top (`int`, *optional*): How many. Default: all.
        """
        blocks = self.features.blocks([prompt], [completion])
        z = self._fitted()(blocks)
        columns = self.units(blocks)
        if self.coefficients is not None:
            row = dense(z)[0] * self.coefficients
            moved = [float(row[own].sum()) for own in columns.values()]
        else:
            without = np.repeat(dense(z), len(columns) + 1, axis=0)
            for index, own in enumerate(columns.values()):
                without[index, own] = 0.0
            said = self.predict(without if isinstance(z, np.ndarray) else type(z)(without))
            moved = (said[-1] - said[:-1]).tolist()
        values = np.concatenate([np.ravel(dense(block)) for block in blocks])
        told = [
            Contribution(name, float(values[own[0]]) if len(own) == 1 else None, amount)
            for (name, own), amount in zip(columns.items(), moved, strict=True)
        ]
        return sorted(told, key=lambda item: -abs(item.contribution))[:top]

    def units(self, blocks: Sequence[Matrix] | None = None) -> dict[str, NDArray[np.int64]]:
        """By name, the columns that are told as one. With the blocks of one row: of words only those it has."""
        units: dict[str, NDArray[np.int64]] = {}
        start = 0
        for index, group in enumerate(self.features.groups):
            features = group.features
            columns = np.arange(start, start + len(features))
            start += len(features)
            if group.opaque or (group.from_zero and blocks is None):
                units[f"{type(group).__name__} ({len(features)} numbers)"] = columns
                continue
            told = columns - columns[:1]
            if group.from_zero and blocks is not None:
                told = np.flatnonzero(dense(blocks[index]))
            units |= {features[place].name: columns[[place]] for place in told}
        return units

    def base(self) -> float:
        """The score of a text whose features are all at their centres: an average text without known words."""
        return float(self.predict(np.zeros((1, len(self.features.features))))[0])

    def read_aloud(self, prompt: Text, completion: Text, top: int = 8) -> str:
        """One score in plain words: where it starts, and what raised and lowered it."""
        units = {feature.name: feature.unit for feature in self.features.features}
        told = self.explain(prompt, completion)
        score = float(self.scores([prompt], [completion])[0])
        lines = [f"Score {score:.2f}, from {self.base():.2f} for an average text:"]
        for name, value, amount in told[:top]:
            what = name if value is None else f"{name} = {value:.3g} {units[name]}"
            lines.append(f"  {amount:+.2f}  {what}")
        rest = told[top:]
        if rest:
            left = math.fsum(item.contribution for item in rest)
            lines.append(f"  {left:+.2f}  {len(rest)} other features")
        if self.calibration is not None:
            lines.append(f"On the rating scale: {float(self.calibration(score)):.2f}")
        return "\n".join(lines)

    def table(self) -> list[Coefficient]:
        """All coefficients, the strongest per standard deviation first.

        Raises:
            `ValueError`: if the model is not linear.
        """
        if self.coefficients is None:
            raise ValueError(f"{self.regressor_name()} has no coefficients; permutation importance works for it.")
        per_unit = self.coefficients / self._fitted().scale
        per_std = per_unit * self._fitted().std
        ends = [(None, None)] * len(per_unit) if self.intervals is None else self.intervals.tolist()
        columns = zip(self.features.features, per_unit.tolist(), per_std.tolist(), ends, strict=True)
        rows = [Coefficient(feature, unit, std, *end) for feature, unit, std, end in columns]
        return sorted(rows, key=lambda row: -abs(row.per_std))

    # --- Saving ----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> Path:
        """Write the model into a folder, which is made if needed: JSON and arrays, and a `README.md`.

        A regressor that is not linear goes into `regressor.joblib`, which is a pickle and runs code when it is read.
        """
        from rlhf_recipes.outputs import write_json  # which needs torch; judging does not

        if self.trained_on is None:
            raise ValueError("There is nothing to save yet: fit the model first.")
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        numbers = {"coefficients": self.coefficients, "intervals": self.intervals, **vars(self._fitted())}
        arrays = {name: array for name, array in numbers.items() if array is not None}
        np.savez_compressed(target / ARRAYS_FILE, allow_pickle=False, **arrays)
        if self.coefficients is None:
            import joblib

            joblib.dump(self.estimator, target / regressors.REGRESSOR_FILE)
        (target / filenames.README).write_text(card(self), encoding="utf-8", errors="replace")
        data = {
            "format": FORMAT,
            "trained_on": self.trained_on,
            "rows": self.rows,
            "regressor": self.regressor_name(),
            "linear": self.coefficients is not None,
            "intercept": self.intercept,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "features": self.features.to_json(),
        }
        write_json(target / filenames.LINEAR_REWARD, data)
        return target

    @classmethod
    def load(cls, folder: str | Path, trust: bool = False) -> "LinearRewardModel":
        """Read a model that `save` has written.

        Args:
            trust (`bool`, *optional*, defaults to `False`):
                Whether to read a pickled regressor, and to import feature groups that are not of this project: both
                run code of whoever made the folder. Models with coefficients and this project's features need neither.

        Raises:
            `FileNotFoundError`: if there is no such model in the folder.
            `ValueError`: if its files cannot be read, or would run code and `trust` is not given.
        """
        path = Path(folder) / filenames.LINEAR_REWARD
        if not path.is_file():
            raise FileNotFoundError(
                f"There is no {filenames.LINEAR_REWARD} in {str(folder)!r}; a linear reward model has one."
            )
        data = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        if data.get("format") != FORMAT:
            raise ValueError(f"{path} has format {data.get('format')!r}; this version reads format {FORMAT}.")
        if not data["linear"] and not trust:
            raise ValueError(
                f"The regressor {data['regressor']} in {str(folder)!r} is a pickle, which runs code when it is read. "
                "Give trust=True if you know who made it."
            )
        model = cls(FeatureSet.from_json(data["features"], trust))
        model.regressor, model.trained_on, model.rows = data["regressor"], data["trained_on"], data["rows"]
        model.intercept, model._loaded = data["intercept"], True
        if data["calibration"] is not None:
            model.calibration = LogisticCalibration(**data["calibration"])
        with np.load(path.parent / ARRAYS_FILE, allow_pickle=False) as arrays:
            model.intervals, model.coefficients = arrays.get("intervals"), arrays.get("coefficients")
            scaled = Standardization(*(arrays[name] for name in ("center", "scale", "std", "low", "high")))
        sizes = {len(model.features.features), *map(len, vars(scaled).values())}
        if len(sizes) > 1:
            raise ValueError(f"The files in {str(folder)!r} do not belong together: {sorted(sizes)} features.")
        model.standardization = scaled
        if not data["linear"]:
            import joblib

            model.estimator = joblib.load(path.parent / regressors.REGRESSOR_FILE)
        return model

    # --- Inside ----------------------------------------------------------------------------------

    def _learn_features(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Matrix:
        """Fit the features and their standardization to all texts, and return the standardized matrix."""
        if self._loaded:
            raise ValueError("A model that was loaded is for judging. Make a new LinearRewardModel to fit.")
        self.features = self.features.fit(prompts, completions)
        blocks = self.features.blocks(prompts, completions)
        self.standardization = Standardization.fit(self.features, blocks)
        return self.standardization(blocks)

    def _keep(self, estimator: Any, trained_on: str, z: Matrix, y: NDArray[np.float64]) -> "LinearRewardModel":
        self.estimator, self.trained_on, self.rows = estimator, trained_on, len(y)
        self._training, self.intervals, self.calibration = (z, y), None, None
        return self

    def _fitted(self) -> Standardization:
        if self.standardization is None:
            raise ValueError("The model has not been fitted yet: call fit_ratings or fit_pairs, or load one.")
        return self.standardization
