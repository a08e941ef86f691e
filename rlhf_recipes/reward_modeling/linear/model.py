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
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.imports import find_function, optional
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.reward_modeling.linear.features import NAMED, Feature, FeatureGroup, FeatureSet, Matrix, beside
from rlhf_recipes.statistics import percentile_interval
from rlhf_recipes.texts import Text

logger = logging.getLogger(__name__)
MODEL_FILE = "linear_reward.json"
ARRAYS_FILE = "linear_reward.npz"
REGRESSOR_FILE = "regressor.joblib"
ARRAYS = ("center", "scale", "std", "low", "high")
FORMAT = 1
PENALTIES = tuple(float(f"{10**power:.3g}") for power in np.linspace(-2, 5, 15))
FOLDS_PENALTIES = PENALTIES[2:11]  # 0.1 to 1000: a sparse matrix is wide, and each takes a fit for each fold
FOLDS = 5
FEW_ROWS = 4 * FOLDS  # fewer are not cut into folds
LINEAR = 1e-6  # how near its coefficients must come to what a regressor says, to be taken at their word

# What a search over penalties becomes once the penalty is chosen: class, and the attributes that hold the choice.
CHOSEN = {
    "RidgeCV": ("sklearn.linear_model:Ridge", {"alpha": "alpha_"}),
    "LassoCV": ("sklearn.linear_model:Lasso", {"alpha": "alpha_"}),
    "ElasticNetCV": ("sklearn.linear_model:ElasticNet", {"alpha": "alpha_", "l1_ratio": "l1_ratio_"}),
}


class Contribution(NamedTuple):
    """What one feature did to one score: its value (`None` for an embedding), and what it added or took away."""

    feature: str
    value: float | None
    contribution: float


@dataclass(frozen=True)
class Coefficient:
    """The weight of one feature, in two units: score for one unit of it, and score for one standard deviation.

    Only the second can be compared between features. `low` and `high` are its 95% interval, where `bootstrap` was
    called.
    """

    feature: Feature
    per_unit: float
    per_std: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Importance:
    """How much a measure falls when a feature is shuffled: mean and standard deviation over the shuffles."""

    name: str
    mean: float
    std: float


class LinearRewardModel:
    """A regression on named features, fitted to ratings or to pairs.

    Any scikit-learn regressor will do. Where its predictions are a weighted sum of its inputs, as with ridge, lasso,
    elastic net or a linear SVR, it can be read in full, and a saved model is numbers alone. Of all others (gradient
    boosting, a kernel SVR, ...) contributions are by taking one feature away at a time, which need not add up.

    A value beyond the lowest or highest of the training texts counts as that: a straight line goes on for ever, and a
    policy would follow it. So scores have bounds.

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
        self.regressor = regressor
        self.regressor_args = dict(regressor_args or {})
        self.trained_on: str | None = None
        self.rows = 0
        self.intercept = 0.0
        self.coefficients: NDArray[np.float64] | None = None  # (F,)  of standardized features; None if not linear
        self.estimator: Any = None
        self.arrays: dict[str, NDArray[np.float64]] = {}  # (F,) each
        self.intervals: NDArray[np.float64] | None = None  # (F, 2)  of the coefficients per standard deviation
        self.calibration: LogisticCalibration | None = None
        self._training: tuple[Matrix, NDArray[np.float64]] | None = None
        self._loaded = False

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_training": None}  # a pickle is for judging, and stays small

    def __repr__(self) -> str:
        size = len(self.features.features) if self.trained_on else "?"
        return f"LinearRewardModel({size} features, regressor={self._regressor_name()}, trained_on={self.trained_on})"

    # --- Fitting ---------------------------------------------------------------------------------

    def fit_ratings(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ratings: ArrayLike,
        weights: ArrayLike | None = None,
    ) -> "LinearRewardModel":
        """Fit the ratings of texts. The scores are then in their unit.

        Args:
            prompts, completions (`Sequence` of length N): Text or messages.
            ratings (`ArrayLike` of shape `(N,)`): Mean rating of each.
            weights (`ArrayLike` of shape `(N,)`, *optional*): How much each row counts, if the regressor can tell.

        Raises:
            `ValueError`: if the lengths differ, a rating is not finite, or all ratings are the same.
        """
        y = np.asarray(ratings, dtype=np.float64)
        if y.shape != (len(completions),) or not np.isfinite(y).all() or len(np.unique(y)) < 2:
            raise ValueError(
                f"Ratings have shape {y.shape} for {len(completions)} texts. Give one finite number for each, and not "
                "the same for all."
            )
        z = self._learn_features([(prompts, completions)])
        estimator = self._make_regressor(z, len(y))
        estimator.fit(z, y, **({} if weights is None else {"sample_weight": np.asarray(weights, dtype=np.float64)}))
        parts = _linear_parts(estimator, z, estimator.predict)
        self._keep(estimator, parts, "ratings", z, y)
        return self

    def fit_pairs(
        self, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text]
    ) -> "LinearRewardModel":
        """Fit which of two texts people prefer: Bradley-Terry on linear scores.

        The scores are log-odds, and 0 is that of a text whose features are all at their centres.

        Raises:
            `ValueError`: if the lengths differ, there is no pair whose features differ, or the regressor is not a
                linear classifier without intercept.
        """
        if not len(prompts) == len(chosen) == len(rejected) or not len(chosen):
            raise ValueError(
                f"There are {len(prompts)} prompts, {len(chosen)} chosen and {len(rejected)} rejected texts; give one "
                "of each for every pair."
            )
        both = self._learn_features([(prompts, chosen), (prompts, rejected)])
        difference = both[: len(chosen)] - both[len(chosen) :]
        if not abs(difference).sum():
            raise ValueError(f"In all {len(chosen)} pairs the features of both texts are the same: nothing to learn.")
        # Without intercept a pair says the same either way round; a classifier needs both to be there.
        y = np.where(np.arange(len(chosen)) % 2, -1.0, 1.0)
        if len(chosen) == 1:
            y, difference = np.array([1.0, -1.0]), _stacked([difference, difference])
        z = _signed(difference, y)
        estimator = self._make_classifier(len(y))
        estimator.fit(z, y)
        parts = _linear_parts(estimator, z, getattr(estimator, "decision_function", estimator.predict))
        if parts is None or parts[1] != 0.0:
            raise ValueError(
                f"Pairs need a linear classifier without intercept, such as sklearn.linear_model:LogisticRegression "
                f"with fit_intercept False; {self._regressor_name()} is not."
            )
        self._keep(estimator, parts, "pairs", z, y)
        return self

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
        estimator = _with_chosen_penalty(self.estimator)
        generator = np.random.default_rng(seed)
        drawn = []
        for _ in range(samples):
            rows = generator.integers(len(y), size=len(y))
            if len(np.unique(y[rows])) < 2:
                continue
            drawn.append(_coefficients_of(_clone(estimator).fit(z[rows], y[rows])))
        factor = self.arrays["std"] / self.arrays["scale"]
        columns = np.stack(drawn).T * factor[:, None]  # (F, S)
        self.intervals = np.array([percentile_interval(column) for column in columns])
        return self.intervals

    # --- Judging ---------------------------------------------------------------------------------

    def scores(self, prompts: Sequence[Text], completions: Sequence[Text]) -> NDArray[np.float64]:
        """What the regression says, before calibration. `(B,)`"""
        if not len(completions):
            return np.zeros(0)
        return self._predict(self._standardized(self.features.blocks(prompts, completions)))

    def contributions(self, prompts: Sequence[Text], completions: Sequence[Text]) -> NDArray[np.float64]:
        """What each feature adds to each score: coefficient times standardized feature. `(B, F)`

        `base + contributions.sum(axis=1)` are the scores, with `base` the attribute `intercept`.

        Raises:
            `ValueError`: if the model is not linear.
        """
        if self.coefficients is None:
            raise ValueError(
                f"The scores of {self._regressor_name()} are no sum over features; explain takes one row."
            )
        z = self._standardized(self.features.blocks(prompts, completions))
        dense = z if isinstance(z, np.ndarray) else z.toarray()
        result: NDArray[np.float64] = dense * self.coefficients
        return result

    def explain(self, prompt: Text, completion: Text, top: int | None = None) -> list[Contribution]:
        """What each feature did to the score of one text, the strongest first.

        Of a bag of words only the words that are there are told, and an embedding as a whole. Of a linear model the
        contributions and `base()` add up to the score. Of any other, each is the score less what it would be with that
        feature at its centre.

        Args:
            top (`int`, *optional*): How many. Default: all.
        """
        blocks = self.features.blocks([prompt], [completion])
        z = self._standardized(blocks)
        columns = self._columns_of_units(blocks)
        if self.coefficients is not None:
            row = (z if isinstance(z, np.ndarray) else z.toarray())[0] * self.coefficients
            moved = [float(row[own].sum()) for own in columns.values()]
        else:
            without = np.repeat(z if isinstance(z, np.ndarray) else z.toarray(), len(columns) + 1, axis=0)
            for index, own in enumerate(columns.values()):
                without[index, own] = 0.0
            said = self._predict(without if isinstance(z, np.ndarray) else type(z)(without))
            moved = (said[-1] - said[:-1]).tolist()
        values = np.concatenate([np.ravel(b if isinstance(b, np.ndarray) else b.toarray()) for b in blocks])
        told = [
            Contribution(name, float(values[own[0]]) if len(own) == 1 else None, amount)
            for (name, own), amount in zip(columns.items(), moved, strict=True)
        ]
        return sorted(told, key=lambda item: -abs(item.contribution))[:top]

    def base(self) -> float:
        """The score of a text whose features are all at their centres: an average text without known words."""
        if self.coefficients is not None:
            return self.intercept
        return float(self._predict(np.zeros((1, len(self.features.features))))[0])

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
            raise ValueError(f"{self._regressor_name()} has no coefficients; permutation importance works for it.")
        per_unit = self.coefficients / self.arrays["scale"]
        per_std = per_unit * self.arrays["std"]
        rows = []
        for index, feature in enumerate(self.features.features):
            ends = (None, None) if self.intervals is None else tuple(map(float, self.intervals[index]))
            rows.append(Coefficient(feature, float(per_unit[index]), float(per_std[index]), *ends))
        return sorted(rows, key=lambda row: -abs(row.per_std))

    def importance(
        self,
        prompts: Sequence[Text],
        completions: Sequence[Text],
        ratings: ArrayLike,
        measure: str = "pairwise_accuracy",
        min_gap: float = 0.5,
        repeats: int = 10,
        seed: int = 0,
    ) -> list[Importance]:
        """Permutation importance on held-out ratings (Breiman 2001): how much a measure falls when the values of one
        feature are shuffled over the rows. A bag of words and an embedding are each shuffled as a whole.

        Two features that say the same stand in for each other, so that both look unimportant.

        Args:
            measure (`"pairwise_accuracy"` or `"r2"`, *optional*): What falls.
            min_gap (`float`, *optional*, defaults to 0.5): Of `"pairwise_accuracy"`.
            repeats (`int`, *optional*, defaults to 10), seed (`int`, *optional*, defaults to 0): Of the shuffles.
        """
        y = np.asarray(ratings, dtype=np.float64)
        if measure not in ("pairwise_accuracy", "r2"):
            raise ValueError(f"The measure is 'pairwise_accuracy' or 'r2', not {measure!r}.")

        def score(estimator: Any, rows: NDArray, target: NDArray) -> float:
            said = estimator.predict(rows)
            return r2(said, target) if measure == "r2" else all_pairs_accuracy(said, target, min_gap)[0]

        return self._importance(self.features.blocks(prompts, completions), y, score, repeats, seed)

    def importance_for_pairs(
        self,
        prompts: Sequence[Text],
        chosen: Sequence[Text],
        rejected: Sequence[Text],
        repeats: int = 10,
        seed: int = 0,
    ) -> list[Importance]:
        """As `importance`, on pairs: how much the share of pairs in the right order falls."""

        def score(estimator: Any, rows: NDArray, target: NDArray) -> float:
            said = estimator.predict(rows)
            first, second = said[: len(chosen)], said[len(chosen) :]
            return float(np.mean(0.5 + 0.5 * np.sign(first - second)))

        blocks = self.features.blocks([*prompts, *prompts], [*chosen, *rejected])
        return self._importance(blocks, np.zeros(2 * len(chosen)), score, repeats, seed)

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
        linear = self.coefficients is not None
        data = {
            "format": FORMAT,
            "trained_on": self.trained_on,
            "rows": self.rows,
            "regressor": self._regressor_name(),
            "linear": linear,
            "intercept": self.intercept,
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "features": self.features.to_json(),
        }
        arrays = dict(self.arrays)
        if self.coefficients is not None:
            arrays["coefficients"] = self.coefficients
        if self.intervals is not None:
            arrays["intervals"] = self.intervals
        np.savez_compressed(target / ARRAYS_FILE, allow_pickle=False, **arrays)
        if not linear:
            optional("joblib", "LinearRewardModel", extra="feedback").dump(self.estimator, target / REGRESSOR_FILE)
        (target / "README.md").write_text(self._card(), encoding="utf-8", errors="replace")
        write_json(target / MODEL_FILE, data)
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
        path = Path(folder) / MODEL_FILE
        if not path.is_file():
            raise FileNotFoundError(f"There is no {MODEL_FILE} in {str(folder)!r}; a linear reward model has one.")
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
            model.arrays = {name: arrays[name] for name in ARRAYS}
            model.intervals = arrays.get("intervals")
            model.coefficients = arrays["coefficients"] if data["linear"] else None
        sizes = {len(model.features.features), *(len(array) for array in model.arrays.values())}
        if len(sizes) > 1:
            raise ValueError(f"The files in {str(folder)!r} do not belong together: {sorted(sizes)} features.")
        if not data["linear"]:
            joblib = optional("joblib", "LinearRewardModel", extra="feedback")
            model.estimator = joblib.load(path.parent / REGRESSOR_FILE)
        return model

    # --- Inside ----------------------------------------------------------------------------------

    def _learn_features(self, texts: Sequence[tuple[Sequence[Text], Sequence[Text]]]) -> Matrix:
        """Fit the features to all texts, note what standardization needs, and return the standardized matrix."""
        if self._loaded:
            raise ValueError("A model that was loaded is for judging. Make a new LinearRewardModel to fit.")
        prompts = [prompt for some, _ in texts for prompt in some]
        completions = [completion for _, some in texts for completion in some]
        self.features = self.features.fit(prompts, completions)
        blocks = self.features.blocks(prompts, completions)
        gathered: dict[str, list[NDArray]] = {name: [] for name in ARRAYS}
        for group, block in zip(self.features.groups, blocks, strict=True):
            mean, std = _moments(block)
            low, high = (np.ravel(_dense(f(axis=0))) for f in (block.min, block.max))
            # The mean of equal numbers is rounded; what is left of them must not be blown up.
            std[high - low <= 1e-12 * np.abs(high)] = 0.0
            if group.bounded:
                low, high = np.full_like(mean, -np.inf), np.full_like(mean, np.inf)
            gathered["center"].append(np.zeros_like(mean) if group.from_zero else mean)
            gathered["scale"].append(np.where((std > 0) & group.standardize, std, 1.0))
            for name, values in (("std", std), ("low", low), ("high", high)):
                gathered[name].append(values)
        self.arrays = {name: np.concatenate(parts) for name, parts in gathered.items()}
        return self._standardized(blocks)

    def _standardized(self, blocks: Sequence[Matrix]) -> Matrix:
        """`(f clipped to what training has seen - center) / scale`, side by side. `(N, F)`"""
        if not self.arrays:
            raise ValueError("The model has not been fitted yet: call fit_ratings or fit_pairs, or load one.")
        made, start = [], 0
        for block in blocks:
            own = slice(start, start + block.shape[1])
            center, scale, _, low, high = (self.arrays[name][own] for name in ARRAYS)
            if isinstance(block, np.ndarray):
                made.append((np.clip(block, low, high) - center) / scale)
            else:  # a bag of words: what is not there is 0, which is the lowest and the centre
                block = block.copy()
                block.data = (np.minimum(block.data, high[block.indices])) / scale[block.indices]
                made.append(block)
            start = own.stop
        return beside(made)

    def _predict(self, z: Matrix) -> NDArray[np.float64]:
        if self.coefficients is not None:
            return np.ravel(z @ self.coefficients) + self.intercept
        return np.ravel(self.estimator.predict(z))

    def _keep(
        self,
        estimator: Any,
        parts: tuple[NDArray[np.float64], float] | None,
        trained_on: str,
        z: Matrix,
        y: NDArray[np.float64],
    ) -> None:
        self.estimator, self.trained_on, self.rows = estimator, trained_on, len(y)
        self.coefficients, self.intercept = parts if parts is not None else (None, 0.0)
        self._training, self.intervals, self.calibration = (z, y), None, None

    def _make_regressor(self, z: Matrix, rows: int) -> Any:
        if self.regressor is not None:
            return self._made_regressor()
        models = optional("sklearn.linear_model", "LinearRewardModel", package="scikit-learn", extra="feedback")
        if isinstance(z, np.ndarray):
            return models.RidgeCV(PENALTIES)  # leave-one-out, in closed form
        return models.RidgeCV(FOLDS_PENALTIES, cv=_folds()) if rows >= FEW_ROWS else models.Ridge()

    def _make_classifier(self, rows: int) -> Any:
        if self.regressor is not None:
            return self._made_regressor()
        models = optional("sklearn.linear_model", "LinearRewardModel", package="scikit-learn", extra="feedback")
        plain = models.LogisticRegression(fit_intercept=False, max_iter=1000)
        if rows < FEW_ROWS:
            return plain
        selection = optional("sklearn.model_selection", "LinearRewardModel", package="scikit-learn", extra="feedback")
        strengths = {"C": [1 / penalty for penalty in PENALTIES]}
        return selection.GridSearchCV(plain, strengths, scoring="neg_log_loss", cv=_folds())

    def _made_regressor(self) -> Any:
        if not isinstance(self.regressor, str):
            return _clone(self.regressor)
        if ":" not in self.regressor:
            raise ValueError(
                f"A regressor is named package.module:Class, as sklearn.svm:SVR; given: {self.regressor}."
            )
        return find_function(self.regressor)(**self.regressor_args)

    def _regressor_name(self) -> str:
        if self.regressor is None:
            default = {"ratings": "ridge regression", "pairs": "logistic regression on differences"}
            return default.get(self.trained_on or "", "the default")
        if not isinstance(self.regressor, str):
            return repr(self.regressor)
        args = ", ".join(f"{key}={value!r}" for key, value in self.regressor_args.items())
        return f"{self.regressor}({args})" if args else self.regressor

    def _columns_of_units(self, blocks: Sequence[Matrix] | None = None) -> dict[str, NDArray[np.int64]]:
        """By name, the columns that are told as one. With the blocks of one row: of words only those it has."""
        units: dict[str, NDArray[np.int64]] = {}
        start = 0
        for index, group in enumerate(self.features.groups):
            features = group.features
            columns = np.arange(start, start + len(features))
            start += len(features)
            as_one = group.opaque or (group.from_zero and blocks is None)
            if as_one:
                units[f"{type(group).__name__} ({len(features)} numbers)"] = columns
                continue
            there = list(range(len(features)))
            if group.from_zero and blocks is not None:
                there = np.flatnonzero(_dense(blocks[index])).tolist()
            units |= {features[position].name: columns[[position]] for position in there}
        return units

    def _importance(
        self,
        blocks: Sequence[Matrix],
        y: NDArray[np.float64],
        score: Callable[[Any, NDArray, NDArray], float],
        repeats: int,
        seed: int,
    ) -> list[Importance]:
        inspection = optional("sklearn.inspection", "importance", package="scikit-learn", extra="feedback")
        units = self._columns_of_units()
        rows = np.repeat(np.arange(len(y))[:, None], len(units), axis=1)
        shuffled = _ShuffledUnits(self, self._standardized(blocks), list(units.values()))
        found = inspection.permutation_importance(
            shuffled, rows, y, scoring=score, n_repeats=repeats, random_state=seed
        )
        values = zip(units, found.importances_mean, found.importances_std, strict=True)
        return sorted((Importance(name, float(m), float(s)) for name, m, s in values), key=lambda one: -one.mean)

    def _card(self) -> str:
        lines = [
            "# A reward model that can be read",
            "",
            f"{self._regressor_name()} on {len(self.features.features):,} named features of the text, fitted to "
            f"{self.rows:,} {self.trained_on}. Made with rlhf-recipes.",
            "",
            "```python",
            "from rlhf_recipes.reward_modeling.linear.reward import LinearReward",
            "",
            f'reward = LinearReward("this/folder"{"" if self.coefficients is not None else ", trust=True"})',
            'reward(prompts=["The film is"], completions=[" a delight."])',
            'reward.explain("The film is", " a delight.")  # what moved the score',
            "```",
            "",
        ]
        if self.coefficients is None:
            return "\n".join([
                *lines,
                f"**`{REGRESSOR_FILE}` is a pickle: reading it runs code of whoever made it, and another version of "
                "scikit-learn may read it wrongly or not at all.** It is read with `trust=True` only. A linear "
                "regressor is saved as numbers instead.",
                "",
            ])  # fmt: skip
        lines += ["The strongest coefficients:", "", "| feature | meaning | unit | per unit | per std |", "|---|" * 1]
        lines[-1] = "|---|---|---|---|---|"
        for row in self.table()[:20]:
            cells = (row.feature.name, row.feature.meaning, row.feature.unit)
            shown = " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells)
            lines.append(f"| {shown} | {row.per_unit:.3g} | {row.per_std:.3g} |")
        return "\n".join([*lines, ""])


class _ShuffledUnits:
    """A model over row numbers, one column for each unit: what scikit-learn shuffles are these, not wide matrices."""

    def __init__(self, model: LinearRewardModel, z: Matrix, units: Sequence[NDArray[np.int64]]) -> None:
        self.model = model
        self.order = np.argsort(np.concatenate(units))
        self.parts = [z[:, own] for own in units]

    def fit(self, rows: NDArray, y: NDArray) -> "_ShuffledUnits":
        return self

    def predict(self, rows: NDArray) -> NDArray[np.float64]:
        parts = [part[rows[:, index].astype(int)] for index, part in enumerate(self.parts)]
        return self.model._predict(beside(parts)[:, self.order])


def r2(said: ArrayLike, wanted: ArrayLike) -> float:
    """The share of the variance that is explained: `1 - sum (y - s)^2 / sum (y - mean y)^2`. 1 is all; a guess of the
    mean has 0, and a worse one less.

    Raises:
        `ValueError`: if all that is wanted is the same, which leaves nothing to explain.
    """
    s, y = np.asarray(said, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    total = float(((y - y.mean()) ** 2).sum())
    if not total > 0:
        raise ValueError(f"All of {len(y)} values are the same, so there is no variance to explain.")
    return 1.0 - float(((y - s) ** 2).sum()) / total


# --- Files and pictures --------------------------------------------------------------------------


def write_explanation(
    model: LinearRewardModel, importance: Sequence[Importance], folder: str | Path, measure: str = "pairwise accuracy"
) -> None:
    """Write what a person reads of a model: `importance.json`, and of a linear one `coefficients.json`, each with a
    picture of the same name (PNG).

    Args:
        importance (`Sequence[Importance]`): As `model.importance` gives it, on held-out rows.
        measure (`str`, *optional*): What fell.
    """
    from rlhf_recipes.outputs import write_json  # which needs torch; judging does not

    target = Path(folder)
    write_json(target / "importance.json", [asdict(one) for one in importance])
    plot_importance(importance, target / "importance.png", measure=measure)
    if model.coefficients is not None:
        table = model.table()
        write_json(target / "coefficients.json", [asdict(row) for row in table])
        plot_coefficients(table, target / "coefficients.png")


def plot_coefficients(table: Sequence[Coefficient], path: str | Path, top: int = 20) -> Path:
    """Draw the strongest coefficients per standard deviation as bars, with their intervals where there are any."""
    shown = list(table)[:top]
    ends = [None if row.low is None or row.high is None else (row.low, row.high) for row in shown]
    label = "change of the score for one standard deviation more"
    return _bars([row.feature.name for row in shown], [row.per_std for row in shown], ends, label, path)


def plot_importance(importances: Sequence[Importance], path: str | Path, top: int = 20, measure: str = "") -> Path:
    """Draw how much a measure falls when a feature is shuffled, with one standard deviation to both sides."""
    shown = list(importances)[:top]
    ends = [(one.mean - one.std, one.mean + one.std) for one in shown]
    label = f"fall of {measure or 'the measure'} when shuffled"
    return _bars([one.name for one in shown], [one.mean for one in shown], ends, label, path)


def _bars(
    names: Sequence[str],
    values: Sequence[float],
    ends: Sequence[tuple[float, float] | None],
    label: str,
    path: str | Path,
) -> Path:
    # Drawing needs matplotlib, judging does not.
    from matplotlib.figure import Figure

    from rlhf_recipes.figures import COLORS, INK, SERIES, draw_png

    blue, orange = COLORS[SERIES[0]], COLORS[SERIES[1]]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        rows = range(len(values))
        axes.barh(rows, values, height=0.6, color=[blue if v >= 0 else orange for v in values], alpha=0.75)
        for row, end in enumerate(ends):
            if end is not None:
                axes.plot(end, (row, row), color=COLORS[INK], linewidth=1.4, marker="|", markersize=5)
        axes.axvline(0, color=COLORS[INK], linewidth=0.9)
        axes.set_yticks(rows, [name if len(name) <= 32 else f"{name[:31]}…" for name in names])
        axes.set_ylim(len(values) - 0.4, -0.6)
        axes.set_xlabel(label)
        axes.grid(visible=False, axis="y")

    return draw_png(path, (7.2, 1.2 + 0.26 * len(values)), paint)


# --- Arithmetic ----------------------------------------------------------------------------------


def _dense(matrix: Matrix) -> NDArray[np.float64]:
    array: NDArray[np.float64] = matrix if isinstance(matrix, np.ndarray) else matrix.toarray()
    return array


def _moments(block: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each column."""
    if isinstance(block, np.ndarray):
        return block.mean(axis=0), block.std(axis=0)
    mean = np.ravel(block.mean(axis=0))
    square = np.ravel(block.multiply(block).mean(axis=0))
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _stacked(parts: Sequence[Matrix]) -> Matrix:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return (
        optional("scipy.sparse", "LinearRewardModel", package="scikit-learn", extra="feedback").vstack(parts).tocsr()
    )


def _signed(matrix: Matrix, signs: NDArray[np.float64]) -> Matrix:
    return matrix * signs[:, None] if isinstance(matrix, np.ndarray) else matrix.multiply(signs[:, None]).tocsr()


def _folds() -> Any:
    selection = optional("sklearn.model_selection", "LinearRewardModel", package="scikit-learn", extra="feedback")
    return selection.KFold(FOLDS, shuffle=True, random_state=0)  # files are often sorted


def _clone(estimator: Any) -> Any:
    return optional("sklearn.base", "LinearRewardModel", package="scikit-learn", extra="feedback").clone(estimator)


def _with_chosen_penalty(estimator: Any) -> Any:
    """A regressor with the penalty that a search has found, to be fitted again without the search."""
    if hasattr(estimator, "best_estimator_"):
        return estimator.best_estimator_
    path, attributes = CHOSEN.get(type(estimator).__name__, ("", {}))
    if not path:
        return estimator
    settings = {name: getattr(estimator, attribute) for name, attribute in attributes.items()}
    return find_function(path)(**settings, fit_intercept=estimator.fit_intercept)


def _coefficients_of(estimator: Any) -> NDArray[np.float64]:
    coefficients = getattr(estimator, "best_estimator_", estimator).coef_
    return np.ravel(_dense(coefficients)).astype(np.float64)


def _linear_parts(
    estimator: Any, z: Matrix, predict: Callable[[Matrix], Any]
) -> tuple[NDArray[np.float64], float] | None:
    """Coefficients and intercept, if they are all there is to a regressor: what it says is held against them."""
    inner = getattr(estimator, "best_estimator_", estimator)
    if not hasattr(inner, "coef_"):
        return None
    coefficients = _coefficients_of(estimator)
    intercept = float(np.ravel(getattr(inner, "intercept_", 0.0))[0])
    if len(coefficients) != z.shape[1]:
        return None
    said = np.ravel(predict(z))
    computed = np.ravel(z @ coefficients) + intercept
    near = np.allclose(said, computed, rtol=LINEAR, atol=LINEAR * max(1.0, float(np.abs(said).max())))
    return (coefficients, intercept) if near else None
