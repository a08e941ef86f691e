"""The regressions of scikit-learn below a linear reward model: which one, its penalty, and whether it is linear."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.imports import find_function
from rlhf_recipes.reward_modeling.linear.features import Matrix, dense

# Judging does not wait for scikit-learn: it is imported where something is fitted.
REGRESSOR_FILE = "regressor.joblib"  # one that is not linear is saved whole
PENALTIES = tuple(float(f"{10**power:.3g}") for power in np.linspace(-2, 5, 15))
FOLDS_PENALTIES = PENALTIES[2:11]  # 0.1 to 1000: a sparse matrix is wide, and each takes a fit for each fold
FOLDS = 5
FEW_ROWS = 4 * FOLDS  # fewer are not cut into folds
LINEAR = 1e-6  # how near its coefficients must come to what a regressor says, to be taken at their word


def for_ratings(regressor: Any, settings: Mapping[str, Any], z: Matrix) -> Any:
    """The regressor that is asked for; else ridge regression, with a penalty chosen by cross-validation."""
    from sklearn.linear_model import Ridge, RidgeCV

    if regressor is not None:
        return _asked(regressor, settings)
    if isinstance(z, np.ndarray):
        return RidgeCV(PENALTIES)  # leave-one-out, in closed form
    return RidgeCV(FOLDS_PENALTIES, cv=_folds()) if z.shape[0] >= FEW_ROWS else Ridge()


def for_pairs(regressor: Any, settings: Mapping[str, Any], rows: int) -> Any:
    """The classifier that is asked for; else logistic regression, with a penalty chosen by cross-validation."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV

    if regressor is not None:
        return _asked(regressor, settings)
    plain = LogisticRegression(fit_intercept=False, max_iter=1000)
    if rows < FEW_ROWS:
        return plain
    return GridSearchCV(plain, {"C": [1 / value for value in PENALTIES]}, scoring="neg_log_loss", cv=_folds())


def _asked(regressor: Any, settings: Mapping[str, Any]) -> Any:
    from sklearn.base import clone

    if not isinstance(regressor, str):
        return clone(regressor)
    if ":" not in regressor:
        raise ValueError(f"A regressor is named package.module:Class, as sklearn.svm:SVR; given: {regressor}.")
    return find_function(regressor)(**settings)


def _folds() -> Any:
    from sklearn.model_selection import KFold

    return KFold(FOLDS, shuffle=True, random_state=0)  # files are often sorted


def with_chosen_penalty(estimator: Any) -> Any:
    """A regressor with the penalty that a search has found, to be fitted again without the search."""
    from sklearn import linear_model
    from sklearn.base import clone

    name = type(estimator).__name__
    if name not in ("RidgeCV", "LassoCV", "ElasticNetCV"):
        return clone(getattr(estimator, "best_estimator_", estimator))
    chosen = {key: getattr(estimator, f"{key}_") for key in ("alpha", "l1_ratio") if hasattr(estimator, f"{key}_")}
    return getattr(linear_model, name.removesuffix("CV"))(**chosen, fit_intercept=estimator.fit_intercept)


def name_of(regressor: Any, settings: Mapping[str, Any], trained_on: str | None) -> str:
    """What is fitted, as a person calls it."""
    if regressor is None:
        default = {"ratings": "ridge regression", "pairs": "logistic regression on differences"}
        return default.get(trained_on or "", "the default")
    if not isinstance(regressor, str):
        return repr(regressor)
    args = ", ".join(f"{key}={value!r}" for key, value in settings.items())
    return f"{regressor}({args})" if args else regressor


def linear_parts(
    estimator: Any, z: Matrix, predict: Callable[[Matrix], Any]
) -> tuple[NDArray[np.float64] | None, float]:
    """Coefficients and intercept, if they are all there is to a regressor: what it says is held against them."""
    inner = getattr(estimator, "best_estimator_", estimator)
    if not hasattr(inner, "coef_"):
        return None, 0.0
    coefficients = np.ravel(dense(inner.coef_)).astype(np.float64)
    intercept = float(np.ravel(getattr(inner, "intercept_", 0.0))[0])
    if len(coefficients) != z.shape[1]:
        return None, 0.0
    said = np.ravel(predict(z))
    computed = np.ravel(z @ coefficients) + intercept
    near = np.allclose(said, computed, rtol=LINEAR, atol=LINEAR * max(1.0, float(np.abs(said).max())))
    return (coefficients, intercept) if near else (None, 0.0)
