"""Does it help each user: a personal head beside the shared one, user by user.

A mean over all rows would hide it: it is led by users of many rows, and a gain for most can pay for a loss of some.
Here each user is measured alone, on held-out texts, and then users are averaged; intervals draw users, with
replacement.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from rlhf_recipes.data.pairs import all_pairs_accuracy, percentile_interval
from rlhf_recipes.data.votes import Floats, numbers
from rlhf_recipes.rewards.optional import optional

Metrics = dict[str, Any]


def user_metrics(
    scores: ArrayLike,
    ratings: ArrayLike,
    users: Sequence[Any],
    min_gap: float = 0.5,
    samples: int = 1000,
    seed: int = 0,
) -> Metrics:
    """How well scores order and follow the ratings of each user, averaged over users.

    Args:
        scores, ratings (`ArrayLike` of shape `(N,)`): Of held-out rows.
        users (`Sequence` of length N): Whose ratings they are.
        min_gap (`float`, *optional*, defaults to 0.5): Pairs of one user's texts at least this far apart are asked.
        samples (`int`, *optional*, defaults to 1000), seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict`: `pairwise_accuracy` and `pearson`, each with `_ci95`, and `users`. A user without two ratings that far
        apart, or for whom one side does not vary, is left out of the figure that cannot be had; `None` where that
        leaves nobody.

    Raises:
        `ValueError`: if lengths differ or a number is not finite.
    """
    accuracy, pearson = of_each_user(scores, ratings, users, min_gap)
    figures: Metrics = {"users": len(accuracy)}
    for name, values in (("pairwise_accuracy", accuracy), ("pearson", pearson)):
        known = values[np.isfinite(values)]
        figures[name] = float(known.mean()) if len(known) else None
        figures[f"{name}_ci95"] = _interval(known, samples, seed)
    return figures


def of_each_user(
    scores: ArrayLike, ratings: ArrayLike, users: Sequence[Any], min_gap: float = 0.5
) -> tuple[Floats, Floats]:
    """Pairwise accuracy and Pearson's correlation of each user, in the order in which they first come. `(U,), (U,)`

    NaN where a figure does not exist.
    """
    s, y = numbers(scores, "scores"), numbers(ratings, "ratings")
    if not len(s) == len(y) == len(users) or not len(y):
        raise ValueError(f"There are {len(s)} scores, {len(y)} ratings and {len(users)} users; give one of each.")
    accuracy, pearson = [], []
    for rows in _groups(users):
        own, wanted = s[rows], y[rows]
        asked = float(np.ptp(wanted)) >= max(min_gap, 1e-9)
        accuracy.append(all_pairs_accuracy(own, wanted, min_gap)[0] if asked else np.nan)
        varies = np.ptp(own) > 0 and np.ptp(wanted) > 0
        pearson.append(float(np.corrcoef(own, wanted)[0, 1]) if varies else np.nan)
    return np.array(accuracy), np.array(pearson)


def gains(
    personal: ArrayLike,
    shared: ArrayLike,
    ratings: ArrayLike,
    users: Sequence[Any],
    min_gap: float = 0.5,
    samples: int = 200,
    seed: int = 0,
) -> Metrics:
    """Who gains and who loses by a personal head, in pairwise accuracy on the same held-out texts.

    A user loses where the 95% interval of the difference, over bootstrap samples of the user's own held-out texts,
    lies below 0 as a whole. Of users for whom nothing changes, one in forty is found to lose and one to gain.

    Args:
        personal, shared (`ArrayLike` of shape `(N,)`): Scores of both heads.
        ratings (`ArrayLike` of shape `(N,)`), users (`Sequence` of length N), min_gap (`float`, *optional*):
            As in [`user_metrics`].
        samples (`int`, *optional*, defaults to 200), seed (`int`, *optional*, defaults to 0): Of the bootstrap.

    Returns:
        `dict`: `gain`, the mean over users, with `gain_ci95`; `lower`, the share of users whose accuracy is lower at
        all; `lose` and `win`, the shares of those for whom it is so beyond noise; `largest_loss`, of one user; and
        `users`. `None` where no user has two ratings that far apart.
    """
    ours, theirs, y = numbers(personal, "scores"), numbers(shared, "shared scores"), numbers(ratings, "ratings")
    first, _ = of_each_user(ours, y, users, min_gap)
    second, _ = of_each_user(theirs, y, users, min_gap)
    known = np.flatnonzero(np.isfinite(first))
    if not len(known):
        return dict.fromkeys(("gain", "gain_ci95", "lower", "lose", "win", "largest_loss")) | {"users": 0}
    groups, generator = _groups(users), np.random.default_rng(seed)
    ends = []
    for index in known:
        rows = groups[index]
        drawn = [_difference(ours, theirs, y, rows[generator.integers(len(rows), size=len(rows))], min_gap)
                 for _ in range(samples)]  # fmt: skip
        ends.append(percentile_interval([value for value in drawn if value is not None] or [0.0]))
    difference = (first - second)[known]
    return {
        "gain": float(difference.mean()),
        "gain_ci95": _interval(difference, 1000, seed),
        "lower": float((difference < 0).mean()),
        "lose": float(np.mean([high < 0 for _, high in ends])),
        "win": float(np.mean([low > 0 for low, _ in ends])),
        "largest_loss": max(0.0, -float(difference.min())),
        "users": len(known),
    }


def separate_heads(matrix: Floats, ratings: ArrayLike, users: Sequence[Any], asked: Floats) -> dict[Any, Floats]:
    """What each user's own ridge regression says of other texts, nothing shared: the other end of the scale.

    The penalty is chosen by leave-one-out (scikit-learn's RidgeCV). A user of a single rating gets it everywhere.

    Args:
        matrix (`numpy.ndarray` of shape `(N, F)`): Features of the rated texts.
        ratings (`ArrayLike` of shape `(N,)`), users (`Sequence` of length N): One user's rating each.
        asked (`numpy.ndarray` of shape `(M, F)`): Features of the other texts.

    Returns:
        `dict`: by user, `(M,)`.
    """
    models = optional("sklearn.linear_model", "separate_heads", package="scikit-learn", extra="feedback")
    y, said = numbers(ratings, "ratings"), {}
    for rows in _groups(users):
        if np.ptp(y[rows]) == 0:
            said[users[rows[0]]] = np.full(len(asked), y[rows[0]])
            continue
        head = models.RidgeCV(np.logspace(0, 6, 13)).fit(matrix[rows], y[rows])
        said[users[rows[0]]] = np.asarray(head.predict(asked), dtype=np.float64)
    return said


def plot_curve(curve: Sequence[Mapping[str, Any]], path: str | Path, measure: str = "pairwise_accuracy") -> Path:
    """Draw a figure over ratings per user, one line for each head, with its interval over users (PNG).

    Args:
        curve (`Sequence[Mapping]`): For each number of ratings `{"ratings_per_user": n, "heads": {name: figures}}`.
        measure (`str`, *optional*): Which of the figures of [`user_metrics`].
    """
    from matplotlib.figure import Figure

    from rlhf_recipes.report.plots import DASHES, SERIES
    from rlhf_recipes.rewards.balance import COLORS, draw_png

    counts = [point["ratings_per_user"] for point in curve]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, name in enumerate(curve[0]["heads"]):
            figures = [point["heads"][name] for point in curve]
            color = COLORS[SERIES[index % len(SERIES)]]
            line = [one[measure] for one in figures]
            ends = np.array([one[f"{measure}_ci95"] or [np.nan, np.nan] for one in figures], dtype=float).T
            axes.fill_between(counts, *ends, color=color, alpha=0.15, linewidth=0)
            axes.plot(counts, line, color=color, marker="o", markersize=4, linestyle=DASHES[index % len(DASHES)],
                      label=name.replace("_", " "))  # fmt: skip
        axes.set_xscale("log")
        axes.set_xticks(counts, [str(count) for count in counts])
        axes.minorticks_off()
        axes.set_xlabel("ratings of each user in training")
        axes.set_ylabel(measure.replace("_", " "))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9.5)

    return draw_png(path, (8.4, 4.2), paint)


# --- inside ----------------------------------------------------------------------------------------------


def _groups(users: Sequence[Any]) -> list[np.ndarray]:
    rows: dict[Any, list[int]] = {}
    for row, user in enumerate(users):
        rows.setdefault(user, []).append(row)
    return [np.array(own) for own in rows.values()]


def _difference(ours: Floats, theirs: Floats, y: Floats, rows: np.ndarray, min_gap: float) -> float | None:
    if np.ptp(y[rows]) < max(min_gap, 1e-9):
        return None
    return all_pairs_accuracy(ours[rows], y[rows], min_gap)[0] - all_pairs_accuracy(theirs[rows], y[rows], min_gap)[0]


def _interval(values: Floats, samples: int, seed: int) -> list[float] | None:
    if len(values) < 2:
        return None
    drawn = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    return percentile_interval(values[drawn].mean(axis=1))
