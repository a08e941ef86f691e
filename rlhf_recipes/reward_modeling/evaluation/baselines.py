"""What costs nothing, to be put beside every figure of a model: the length of a text, a lexicon, a constant."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.reward_modeling.evaluation.figures import accuracy_by_margin
from rlhf_recipes.rewards.sentiment import Vader
from rlhf_recipes.statistics import Keys, Metrics, check_length, numbers
from rlhf_recipes.words import is_blank


def baseline_scores(texts: Sequence[str]) -> dict[str, list[float]]:
    """Scores that cost nothing: the text's length in characters, VADER's sentiment (English), and a constant.

    A text that VADER cannot read counts as neutral, because a baseline has to say something of every text.
    """
    return {
        "length": [float(len(text)) for text in texts],
        "vader": vader_scores(texts),
        "constant": [0.0] * len(texts),
    }


def fit_baselines(
    texts: Sequence[str], train_texts: Sequence[str], train_ratings: ArrayLike
) -> dict[str, list[float]]:
    """[`baseline_scores`] in units of the rating, by a least-squares line through the training rows: for distances.

    The constant is the mean training rating.
    """
    y = numbers(train_ratings, "ratings")
    check_length(train_texts, len(y), "training texts")
    if not len(y):
        raise ValueError("There are no training rows to fit baselines to.")
    given, wanted = baseline_scores(train_texts), baseline_scores(texts)
    fitted = {}
    for name, column in given.items():
        x = np.array(column) - np.mean(column)
        slope = float(x @ (y - y.mean()) / (x @ x)) if x.any() else 0.0
        fitted[name] = (y.mean() + slope * (np.array(wanted[name]) - np.mean(column))).tolist()
    return fitted


def baseline_accuracies(
    texts: Sequence[str], quality: ArrayLike, min_gap: float, prompts: Keys | None = None
) -> Metrics:
    """`vader_accuracy` and `length_accuracy` over pairs of texts, of one prompt if given, `min_gap` apart."""
    columns = baseline_scores(texts)
    return {
        f"{name}_accuracy": accuracy_by_margin(columns[name], quality, [min_gap], prompts)[0]["accuracy"]
        for name in ("vader", "length")
    }


def beside_baselines(
    measure: Callable[[Sequence[float]], Any], scores: Sequence[float], baselines: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """`measure(scores)` of the model under `"model"`, and of each baseline under its name.

    ```python
    beside_baselines(lambda s: accuracy_by_margin(s, ratings), scores, baseline_scores(texts))
    ```
    """
    return {"model": measure(scores), **{name: measure(column) for name, column in baselines.items()}}


def vader_scores(texts: Sequence[str]) -> list[float]:
    """What VADER thinks of each text; of a blank one it is neutral, as of words that it does not know."""
    said = Vader()([""] * len(texts), texts)
    return [0.0 if is_blank(text) else float(score or 0.0) for text, score in zip(texts, said, strict=True)]
