"""Does it help each user: a personal head beside the shared one, user by user.

A mean over all rows would hide it: it is led by users of many rows, and a gain for most can pay for a loss of some.
Here each user is measured alone, on held-out texts, and then users are averaged; intervals are over users.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from rlhf_recipes.data.pairs import compare_all
from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.reward_modeling.personal.model import PersonalRewardModel
from rlhf_recipes.reward_modeling.personal.simulated import Ratings
from rlhf_recipes.statistics import Floats, Units, correlation, numbers, ratio_interval, rows_by_key, same_length

logger = logging.getLogger(__name__)
Metrics = dict[str, Any]
LINES = ("#2361a5", "#bd5416", "#4f7d3a", "#596271", "#1c232e")


def user_metrics(scores: ArrayLike, ratings: ArrayLike, users: Sequence[Any], min_gap: float = 0.5) -> Metrics:
    """How well scores order and follow the ratings of each user on held-out rows, averaged over users.

    Args:
        min_gap (`float`, *optional*, defaults to 0.5): Pairs of one user's texts at least this far apart are asked.

    Returns:
        `dict`: `pairwise_accuracy` and `pearson`, each with `_ci95`, and `users`. A user without two ratings that far
        apart, or for whom one side does not vary, is left out of the figure that cannot be had; `None` where that
        leaves nobody.

    Raises:
        `ValueError`: if lengths differ or a number is not finite.
    """
    accuracy, pearson = of_each_user(scores, ratings, users, min_gap)
    figures: Metrics = {"users": len(accuracy)}
    for name, values, low in (("pairwise_accuracy", accuracy, 0.0), ("pearson", pearson, -1.0)):
        known = values[np.isfinite(values)]
        figures[name] = float(known.mean()) if len(known) else None
        figures[f"{name}_ci95"] = ratio_interval(known, np.ones(len(known)), low)
    return figures


def of_each_user(
    scores: ArrayLike, ratings: ArrayLike, users: Sequence[Any], min_gap: float = 0.5
) -> tuple[Floats, Floats]:
    """Pairwise accuracy and Pearson's correlation of each user, in the order in which they first come. `(U,), (U,)`

    NaN where a figure does not exist.
    """
    s, y = numbers(scores, "scores"), numbers(ratings, "ratings")
    same_length(scores=s, ratings=y, users=users)
    accuracy, pearson = [], []
    for rows in rows_by_key(users, len(users)):
        own, wanted = s[rows], y[rows]
        asked = float(np.ptp(wanted)) >= max(min_gap, 1e-9)
        accuracy.append(all_pairs_accuracy(own, wanted, min_gap)[0] if asked else np.nan)
        pearson.append(correlation(own, wanted))
    return np.array(accuracy), np.array(pearson)


def gains(
    personal: ArrayLike,
    shared: ArrayLike,
    ratings: ArrayLike,
    users: Sequence[Any],
    min_gap: float = 0.5,
) -> Metrics:
    """Who gains and who loses by a personal head, in pairwise accuracy on the same held-out texts.

    A user loses where the 95% interval of the difference, over the user's own held-out texts, lies below 0 as a whole.
    Of users for whom nothing changes, at most about one in forty is found to lose and one to gain.

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
    groups = rows_by_key(users, len(users))
    ends = [_difference(ours[rows], theirs[rows], y[rows], min_gap) for rows in (groups[index] for index in known)]
    difference = (first - second)[known]
    return {
        "gain": float(difference.mean()),
        "gain_ci95": ratio_interval(difference, np.ones(len(difference)), -1),
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
        matrix (`(N, F)`), asked (`(M, F)`): Features of the rated texts, and of the others.

    Returns:
        `dict`: by user, `(M,)`.
    """
    from sklearn.linear_model import RidgeCV  # takes a second

    y, said = numbers(ratings, "ratings"), {}
    for rows in rows_by_key(users, len(users)):
        if np.ptp(y[rows]) == 0:
            said[users[rows[0]]] = np.full(len(asked), y[rows[0]])
            continue
        head = RidgeCV(np.logspace(0, 6, 13)).fit(matrix[rows], y[rows])
        said[users[rows[0]]] = np.asarray(head.predict(asked), dtype=np.float64)
    return said


def learning_curve(
    model: PersonalRewardModel,
    matrix: Tensor,
    train: Ratings,
    asked: Tensor,
    test: Ratings,
    sizes: Sequence[int],
    others: Sequence[float | None] | None = None,
    truth: ArrayLike | None = None,
    tastes: ArrayLike | None = None,
    min_gap: float = 0.5,
) -> tuple[PersonalRewardModel, list[Metrics]]:
    """Fit heads to the first 5, 10, ... ratings of each user, and measure each on the users' held-out ratings.

    Args:
        model (`PersonalRewardModel`): One that has learned its features; it is copied.
        matrix (`Tensor` of shape `(T, F + 1)`), train ([`Ratings`]): Training texts and ratings of them.
        asked (`Tensor` of shape `(M, F + 1)`), test ([`Ratings`]): Held-out texts and ratings.
        sizes (`Sequence[int]`): Ratings of each user to fit to.
        others (`Sequence`, *optional*): For each training rating the mean of others.
        truth (`ArrayLike`, *optional*), tastes (`ArrayLike`, *optional*):
            Of simulated raters what each truly thinks of each test row's text (`oracle`: what no model can beat, as
            ratings are noisy), and how far that is from the mean rating (`known_tastes`: added to the shared head).

    Returns:
        `tuple`: the model that was fitted to most, and for each size `ratings_per_user`, `heads` (the figures of
        [`user_metrics`] for `shared`, `personal`, `separate` and the two of the truth), `gains` of personal over
        shared, and the model's `facts`.
    """
    curve: list[Metrics] = []
    users, y, fitted = test.users, test.ratings, model
    for size in sizes:
        kept = train.first(size)
        texts, own = train.texts[kept], [train.users[row] for row in kept]
        means = None if others is None else [others[row] for row in kept]
        fitted = copy.copy(model).fit_matrix(matrix, texts, train.ratings[kept], own, means)
        z = asked[test.texts]
        said = separate_heads(matrix[texts].numpy(), train.ratings[kept], own, asked.numpy())
        shared = fitted.scores_of(z)
        nothing = np.zeros(len(asked))  # a user without training ratings has no head
        scores: dict[str, ArrayLike] = {
            "shared": shared,
            "personal": fitted.scores_of(z, users),
            "separate": [said.get(user, nothing)[text] for user, text in zip(users, test.texts, strict=True)],
        }
        scores |= {} if tastes is None else {"known_tastes": shared + np.asarray(tastes)}
        scores |= {} if truth is None else {"oracle": truth}
        gained = gains(scores["personal"], scores["shared"], y, users, min_gap)
        heads = {name: user_metrics(values, y, users, min_gap) for name, values in scores.items()}
        curve.append({"ratings_per_user": size, "heads": heads, "gains": gained, **fitted.facts()})
        logger.info("%d ratings of each user: %s", size, summary(curve[-1]))
    return fitted, curve


def summary(point: Mapping[str, Any]) -> str:
    """One size of a learning curve as a line."""
    heads, gained = point["heads"], point["gains"]
    shown = ", ".join(f"{name} {figures['pairwise_accuracy']:.3f}" for name, figures in heads.items())
    return f"pairwise accuracy {shown}; {gained['win']:.0%} of users gain beyond noise, {gained['lose']:.0%} lose."


def flat(point: Mapping[str, Any]) -> Metrics:
    """One size of a learning curve under flat names, such as `personal_pairwise_accuracy`."""
    figures = {f"{head}_{name}": value for head, own in point["heads"].items() for name, value in own.items()}
    rest = {name: value for name, value in point.items() if name not in ("heads", "gains")}
    return figures | point["gains"] | rest


def plot_curve(curve: Sequence[Mapping[str, Any]], path: str | Path, measure: str = "pairwise_accuracy") -> Path:
    """Draw one of the figures of [`user_metrics`] over ratings per user, one line for each head, with its interval
    over users (PNG)."""
    from matplotlib.figure import Figure

    from rlhf_recipes.figures import DASHES, draw_png

    counts = [point["ratings_per_user"] for point in curve]

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, name in enumerate(curve[0]["heads"]):
            figures = [point["heads"][name] for point in curve]
            color = LINES[index % len(LINES)]
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


def _difference(ours: Floats, theirs: Floats, y: Floats, min_gap: float) -> list[float]:
    """95% interval of the difference of two accuracies on the same texts; a single pair says nothing."""
    first, second = compare_all(ours, y, min_gap), compare_all(theirs, y, min_gap)
    spread = Units.of(len(y)).spread_of_pairs(first.influences - second.influences, first.asked)
    return spread.bounded(first.share - second.share, -1, 1) or [-1.0, 1.0]
