"""What a person reads of a linear reward model: which features matter, as numbers, pictures and a page."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.reward_modeling.linear.features import Coefficient, Matrix, beside
from rlhf_recipes.reward_modeling.linear.model import LinearRewardModel
from rlhf_recipes.texts import Text


@dataclass(frozen=True)
class Importance:
    """How much a measure falls when a feature is shuffled: mean and standard deviation over the shuffles."""

    name: str
    mean: float
    std: float


def importance(
    model: LinearRewardModel,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    ratings: ArrayLike,
    min_gap: float = 0.5,
    repeats: int = 10,
    seed: int = 0,
) -> list[Importance]:
    """Permutation importance on held-out ratings (Breiman 2001): how much the pairwise accuracy falls when the values
    of one feature are shuffled over the rows. A bag of words and an embedding are each shuffled as a whole.

    Two features that say the same stand in for each other, so that both look unimportant.

    Args:
        min_gap (`float`, *optional*, defaults to 0.5): Pairs of ratings at least this far apart are asked.
        repeats (`int`, *optional*, defaults to 10), seed (`int`, *optional*, defaults to 0): Of the shuffles.
    """
    y = np.asarray(ratings, dtype=np.float64)
    return _shuffle(model, prompts, completions, lambda said: all_pairs_accuracy(said, y, min_gap)[0], repeats, seed)


def importance_for_pairs(
    model: LinearRewardModel,
    prompts: Sequence[Text],
    chosen: Sequence[Text],
    rejected: Sequence[Text],
    repeats: int = 10,
    seed: int = 0,
) -> list[Importance]:
    """As `importance`, on pairs: how much the share of pairs in the right order falls."""

    def right(said: NDArray[np.float64]) -> float:
        return float(np.mean(0.5 + 0.5 * np.sign(said[: len(chosen)] - said[len(chosen) :])))

    return _shuffle(model, [*prompts, *prompts], [*chosen, *rejected], right, repeats, seed)


def _shuffle(
    model: LinearRewardModel,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    measure: Callable[[NDArray[np.float64]], float],
    repeats: int,
    seed: int,
) -> list[Importance]:
    from sklearn.inspection import permutation_importance

    z, units = model.standardized(prompts, completions), model.units()
    rows = np.repeat(np.arange(z.shape[0])[:, None], len(units), axis=1)
    found = permutation_importance(
        _ShuffledUnits(model, z, list(units.values())),
        rows,
        np.zeros(len(rows)),
        scoring=lambda estimator, rows, _: measure(estimator.predict(rows)),
        n_repeats=repeats,
        random_state=seed,
    )
    values = zip(units, found.importances_mean, found.importances_std, strict=True)
    return sorted((Importance(name, float(m), float(s)) for name, m, s in values), key=lambda one: -one.mean)


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
        return self.model.predict(beside(parts)[:, self.order])


def r2(said: ArrayLike, wanted: ArrayLike) -> float:
    """The share of the variance that is explained: 1 is all; a guess of the mean has 0, and a worse one less.

    Raises:
        `ValueError`: if all that is wanted is the same, which leaves nothing to explain.
    """
    from sklearn.metrics import r2_score

    if not np.ptp(wanted) > 0:
        raise ValueError(f"All of {np.size(wanted)} values are the same, so there is no variance to explain.")
    return float(r2_score(wanted, said))


# --- Files and pictures --------------------------------------------------------------------------


def write_explanation(model: LinearRewardModel, found: Sequence[Importance], folder: str | Path) -> None:
    """Write what a person reads of a model: `importance.json`, and of a linear one `coefficients.json`, each with a
    picture of the same name (PNG).

    Args:
        found (`Sequence[Importance]`): As `importance` gives it, on held-out rows.
    """
    from rlhf_recipes.outputs import write_json  # which needs torch; judging does not

    target = Path(folder)
    write_json(target / "importance.json", [asdict(one) for one in found])
    plot_importance(found, target / "importance.png")
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


def plot_importance(found: Sequence[Importance], path: str | Path, top: int = 20) -> Path:
    """Draw how much pairwise accuracy falls when a feature is shuffled, with one standard deviation to both sides."""
    shown = list(found)[:top]
    ends = [(one.mean - one.std, one.mean + one.std) for one in shown]
    label = "fall of pairwise accuracy when shuffled"
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
