"""What a reward model is worth on each kind of human feedback: flat figures, and what belongs into `evaluation.json`.

| part of `evaluation.json` | what it is |
|---|---|
| `kind`, `rows`, `unscored` | the format, the rows measured, and those without a score, which are left out |
| `accuracy` | share of pairs in people's order, of the `model` (with interval), a `single_rater`, `vader`, `length` |
| `by_margin` | the same by how clear the case is: `margin` says of what, `model` and `vader` are lists of buckets |
| `errors`, `baseline_errors` | distances and correlations of score and rating, [`figures.rating_errors`] |
| `reliability` | bins of equally many texts: mean score, mean rating and its standard error |
| `calibration` | ECE, Brier score and bins of probability against what came true; `of` says of what |
| `win_rate` | best of n on paper, [`figures.win_rate_curve`] |
| `subsets` | accuracy of each subset, [`figures.subset_accuracy`], and whole sections of RewardBench |
| `ceiling` | what the disagreement of raters leaves: one rater, a perfect model, the least log loss |
| `lists`, `labels`, `objectives`, `steps` | figures of these formats, with intervals |
| `worst` | the cases that the model gets most wrong, as text |
| `missing` | parts that could not be made, and why |

Functions here and in `comparisons.py` (pairs, votes, lists) and `labels.py` (labels, steps) take the
scores of one kind, and return both. A part that needs a library which is not installed is named under `missing`; the
flat figures need nothing but numpy.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.data.pairs import TOLERANCE
from rlhf_recipes.data.raters.agreement import correlation_ceiling, pairwise_ceiling, single_rater_accuracy
from rlhf_recipes.data.raters.votes import RatingModel, numeric_votes
from rlhf_recipes.reward_modeling.evaluation.baselines import baseline_accuracies, baseline_scores, fit_baselines
from rlhf_recipes.reward_modeling.evaluation.figures import (
    accuracy_by_margin,
    calibration,
    pairwise_accuracy,
    rating_errors,
    win_rate_curve,
)
from rlhf_recipes.reward_modeling.evaluation.metrics import rating_metrics
from rlhf_recipes.reward_modeling.scored import Scored
from rlhf_recipes.statistics import Metrics, strata_of

logger = logging.getLogger(__name__)
WORST = 10  # cases that are kept as text
BINS = 10


@dataclass
class Evaluation:
    """What is known of a model after it was measured: `flat` for metrics.json, `nested` for evaluation.json."""

    flat: Metrics = field(default_factory=dict)
    nested: Metrics = field(default_factory=dict)

    def part(self, name: str, made: Callable[[], Any]) -> None:
        """Add a nested part; where it cannot be made, say why instead."""
        try:
            value = made()
        except (ImportError, ValueError) as error:
            logger.info("No %s in the evaluation: %s", name, error)
            self.nested.setdefault("missing", {})[name] = str(error)
            return
        if value is not None:
            self.nested[name] = value

    def accuracies(self) -> None:
        """Repeat the flat accuracies, model first, as the part `accuracy`; where no pair was asked, say so."""
        if "pairwise_accuracy" not in self.flat:
            self.flat |= {"pairwise_accuracy": None, "pairwise_accuracy_ci95": None, "pairs": 0}
            return
        names = {"model": "pairwise", "single_rater": "single_rater", "vader": "vader", "length": "length"}
        known = {name: f"{key}_accuracy" for name, key in names.items() if f"{key}_accuracy" in self.flat}
        self.nested["accuracy"] = {name: self.flat[key] for name, key in known.items()} | {
            "model_ci95": self.flat["pairwise_accuracy_ci95"],
            "pairs": self.flat["pairs"],
        }

    def calibrated(self, of: str, probabilities: Any, outcomes: Any, **options: Any) -> None:
        """The part `calibration`, of rows of some sort, and its ECE among the flat figures."""
        self.part("calibration", lambda: {"of": of} | calibration(probabilities, outcomes, BINS, **options))
        if "calibration" in self.nested:
            self.flat["ece"] = self.nested["calibration"]["ece"]


def started(scored: Scored) -> Evaluation:
    """An evaluation that knows how much was measured."""
    return Evaluation({}, {"kind": scored.kind, "rows": len(scored.scores), "unscored": scored.unscored})


def worst(cases: Iterable[tuple[float, Metrics]]) -> list[Metrics]:
    """The cases that are missed by most; of equal ones the first."""
    return [case for _, case in sorted(cases, key=lambda case: -case[0])[:WORST]]


# --- Ratings ---------------------------------------------------------------------------------------------


def rating_evaluation(
    scored: Scored,
    ratings: Sequence[float],
    curve: Callable[[Sequence[float]], Any] | None = None,
    votes: Sequence[Any] | None = None,
    min_gap: float = 0.5,
    train: tuple[Sequence[str], Sequence[float]] | None = None,
) -> Evaluation:
    """Texts with a number each: ratings, or the weighted sum of objectives.

    Args:
        scored ([`Scored`]): One score a row, before calibration.
        ratings (`Sequence[float]` of length N): What people say.
        curve (callable, *optional*): From scores to ratings. Distances are measured with it alone.
        votes (`Sequence[Sequence[float]]` of length N, *optional*): Every rater's; `None` is one that was not given.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two texts that are compared.
        train (`tuple`, *optional*): Texts and ratings to fit the baselines' distances to.
    """
    result = started(scored)
    logits, texts, prompts = scored.column(0), scored.texts(), scored.shared_prompts()
    said = None if curve is None else np.asarray(curve(logits), dtype=np.float64).tolist()
    given = None if votes is None else [of_text.tolist() for of_text in numeric_votes(votes)]
    if np.ptp(ratings) < max(min_gap - TOLERANCE, TOLERANCE):
        logger.warning("No two of the ratings are %g or more apart (min_gap): pairs are not asked.", min_gap)
    else:
        result.flat |= rating_metrics(texts, ratings, logits, said, None, min_gap, prompts)
        if given is not None:
            rater = functools.partial(single_rater_accuracy, given, min_gap)
            result.part("single_rater", lambda: result.flat.update(single_rater_accuracy=rater()))
        result.part("by_margin", lambda: _rating_margins(logits, texts, ratings, min_gap, prompts))
    result.accuracies()
    if prompts is not None:
        result.part("within_prompts", lambda: accuracy_by_margin(logits, ratings, [min_gap], prompts)[0])
    result.part("errors", lambda: _distances(logits if said is None else said, ratings, said is not None, prompts))
    if said is not None and train is not None:
        result.part("baseline_errors", lambda: _baseline_errors(texts, ratings, *train))
    if said is not None:
        result.nested["reliability"] = reliability(said, ratings)
    result.part("win_rate", lambda: win_rate_curve(logits, ratings, prompts))
    if given is not None:
        result.part("ceiling", lambda: _rating_ceiling(given, min_gap))
    result.nested["worst"] = _worst_ratings(scored, ratings, said)
    return result


def reliability(scores: Sequence[float], ratings: Sequence[float], bins: int = BINS) -> list[Metrics]:
    """Mean score and mean rating of bins of equally many texts, with the rating's standard error.

    Texts of equal score are never put apart. A bin of one text has no standard error (`None`).
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    of_bin = strata_of(s, bins, len(s))
    table = []
    for place in range(of_bin.max() + 1):
        own = y[of_bin == place]
        error = float(own.std(ddof=1) / np.sqrt(len(own))) if len(own) > 1 else None
        mean = float(s[of_bin == place].mean())
        table.append({"score": mean, "rating": float(own.mean()), "error": error, "texts": len(own)})
    return table


def _rating_margins(
    logits: Sequence[float],
    texts: Sequence[str],
    ratings: Sequence[float],
    min_gap: float,
    prompts: Sequence[str] | None,
) -> Metrics:
    spread = float(np.std(ratings))
    edges = [edge * min_gap for edge in (1, 2, 4)] if min_gap > 0 else [0.0, 0.5 * spread, spread]
    vader = baseline_scores(texts)["vader"]
    return {
        "margin": "difference of the ratings",
        "model": accuracy_by_margin(logits, ratings, edges, units=prompts),
        "vader": accuracy_by_margin(vader, ratings, edges, units=prompts),
    }


def _distances(
    scores: Sequence[float], ratings: Sequence[float], in_units: bool, prompts: Sequence[str] | None
) -> Metrics:
    errors = rating_errors(scores, ratings, prompts)
    distances = ("mae", "rmse", "r2")
    return {key: value for key, value in errors.items() if in_units or key.removesuffix("_ci95") not in distances}


def _baseline_errors(
    texts: Sequence[str], ratings: Sequence[float], train_texts: Sequence[str], train_ratings: Sequence[float]
) -> Metrics:
    fitted = fit_baselines(texts, train_texts, train_ratings)
    return {name: rating_errors(values, ratings, intervals=False) for name, values in fitted.items()}


def _rating_ceiling(votes: Sequence[Sequence[float]], min_gap: float) -> Metrics:
    model = RatingModel.fit(votes)
    count = float(np.mean([len(of_text) for of_text in votes if of_text]))
    return {
        "votes_per_text": count,
        "reliability": model.reliability(count),
        "correlation": correlation_ceiling(model.reliability(count)),
        "pairwise": pairwise_ceiling(votes, min_gap, model),
    }


def _worst_ratings(scored: Scored, ratings: Sequence[float], said: Sequence[float] | None) -> list[Metrics]:
    """Texts whose score is farthest from the rating; without a common scale, in standard deviations of each."""
    y, s = np.asarray(ratings, dtype=np.float64), np.asarray(scored.column(0) if said is None else said)
    distance = np.abs(s - y if said is not None else _standardized(s) - _standardized(y))
    texts = [of_row[0] for of_row in scored.completions]
    return worst(zip(distance.tolist(), map(text_case, scored.prompts, texts, y, s), strict=True))


def text_case(prompt: str, text: str, human: float, score: float) -> Metrics:
    """A text that the model gets wrong, as the part `worst` has it."""
    return {"prompt": prompt, "text": text, "human": float(human), "score": float(score)}


def _standardized(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return (values - values.mean()) / (values.std() or 1.0)


# --- Objectives ------------------------------------------------------------------------------------------

Curves = Mapping[str, Callable[[Sequence[float]], Any]]


def objective_evaluation(
    scored: Scored,
    table: Sequence[Mapping[str, float | None]],
    weights: Mapping[str, float],
    scales: Mapping[str, tuple[float, float]] | None = None,
    curves: Curves | None = None,
) -> Evaluation:
    """Several scores for each text: the total, and each objective where the model has an output of its name.

    The total is `sum_o w_o (y_o - m_o) / s_o`, in which the objectives weigh as they do in the model's score. All
    pairs that differ are asked.

    Args:
        scored ([`Scored`]): One score a row, and the model's outputs by name.
        table (`Sequence[Mapping]` of length N): For each row its objectives; `None` is missing.
        weights (`Mapping[str, float]`): What each counts in the total. Rows that lack one have no total.
        scales (`Mapping[str, tuple[float, float]]`, *optional*): `m_o` and `s_o`. Default: 0 and 1.
        curves (`Mapping[str, callable]`, *optional*):
            From an output to the unit of its objective. Distances are measured with it alone.
    """
    of = {name: (scales or {}).get(name, (0.0, 1.0)) for name in weights}
    whole = [row for row, own in enumerate(table) if all(own.get(name) is not None for name in weights)]
    totals = [
        float(sum(w * (float(table[row][name] or 0.0) - of[name][0]) / of[name][1] for name, w in weights.items()))
        for row in whole
    ]
    if whole:
        kept: Any = {key: [getattr(scored, key)[row] for row in whole] for key in ("scores", "prompts", "completions")}
        some: Scored = replace(scored, dataset=scored.dataset.select(whole), outputs={}, **kept)
        result = rating_evaluation(some, totals, min_gap=0.0)
    else:
        result = started(scored)
        result.nested["missing"] = {"total": f"No row has all of the objectives {', '.join(weights)}."}
    result.nested |= {"rows": len(scored.scores), "rows_with_total": len(whole), "weights": dict(weights)}
    names = list(dict.fromkeys(name for own in table for name in own))
    result.part("objectives", lambda: _each_objective(scored, table, names, curves or {}) or None)
    without = [name for name in names if name not in scored.outputs]
    if without:
        reason = f"The model has no output of the name {', '.join(without)}."
        result.nested.setdefault("missing", {})["objectives"] = reason
    return result


def _each_objective(
    scored: Scored, table: Sequence[Mapping[str, float | None]], names: Sequence[str], curves: Curves
) -> Metrics:
    figures: Metrics = {}
    all_texts, keys = scored.texts(), scored.shared_prompts()
    for name in names:
        rows = [row for row, own in enumerate(table) if own.get(name) is not None]
        if name not in scored.outputs or not rows:
            continue
        said = [scored.outputs[name][row] for row in rows]
        wanted = [float(table[row][name] or 0.0) for row in rows]
        prompts = None if keys is None else [keys[row] for row in rows]
        in_units = name in curves
        figures[name] = _distances(curves[name](said) if in_units else said, wanted, in_units, prompts)
        if np.ptp(wanted) > TOLERANCE:
            figures[name] |= pairwise_accuracy(said, wanted, 0, units=prompts)
            figures[name] |= baseline_accuracies([all_texts[row] for row in rows], wanted, 0.0)
    return figures
