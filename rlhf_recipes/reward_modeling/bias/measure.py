"""What a reward model leans on besides what people said: length, format, repetition, place, form, and groups.

[`measure_bias`] takes any reward.
"""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike

from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.data.raters.votes import RatingModel
from rlhf_recipes.reward_modeling.bias.changes import (
    NEUTRAL,
    check_exact,
    measure_changes,
    measure_encodings,
    scores_of,
    text_changes,
)
from rlhf_recipes.reward_modeling.bias.correction import Correction
from rlhf_recipes.reward_modeling.bias.material import Material
from rlhf_recipes.reward_modeling.bias.statistics import (
    group_preferences,
    group_residuals,
    matched_accuracy,
    partial_correlation,
)
from rlhf_recipes.reward_modeling.debias import COVARIATES, covariates
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.statistics import Floats, Metrics, rows_by_key

logger = logging.getLogger(__name__)
MIN_VARYING = 10  # texts that must differ from the commonest value of a covariate, for it to be judged


# --- Measuring -------------------------------------------------------------------------------------------


def measure_bias(
    reward: Callable[..., Any],
    dataset: Dataset,
    kind: Kind,
    group_column: str | None = None,
    names: Sequence[str] = tuple(COVARIATES),
    calibration: Callable[[ArrayLike], Any] | None = None,
    min_gap: float = 0.5,
    min_group: int = 30,
    changed_texts: int = 200,
    exact_texts: int = 20,
    neutral_sentence: str = NEUTRAL,
    seed: int = 0,
) -> Metrics:
    """Measure what a score leans on besides people's judgement.

    Args:
        reward (callable): `f(prompts=..., completions=...) -> list[float | None]`. Texts without a score are counted.
        dataset ([`~datasets.Dataset`]), kind (`str`):
            Clean rows and their format, as `normalize` and `Check.format.kind` give them: pairs, votes, ratings,
            unpaired, clicks, dwell, rankings or best_worst.
        group_column (`str`, *optional*): A column that tells groups, such as topic, author or dialect.
        names (`Sequence[str]`, *optional*, defaults to all): Covariates of `debias.covariates`.
        calibration (callable, *optional*):
            From scores to ratings, for the groups. Default: the straight line of least squares on these rows.
        min_gap (`float`, *optional*, defaults to 0.5): Of ratings: least difference of two texts to be compared.
        min_group (`int`, *optional*, defaults to 30): Groups with fewer texts are named and not judged.
        changed_texts (`int`, *optional*, defaults to 200), exact_texts (`int`, *optional*, defaults to 20):
            On how many texts, drawn by chance, edits are tried, and identities checked; 0 leaves them out.
        neutral_sentence (`str`, *optional*): See `changes.text_changes`.
        seed (`int`, *optional*, defaults to 0): Of what is drawn.

    Returns:
        `dict`, which JSON can hold:

        - `kind`, `texts`, `unscored`, `pairs`, `accuracy` (on the pairs), `score_std`.
        - `covariates`: for each name, and for `place` in lists: `mean`, `std`, `varying` (texts that differ from the
          commonest value); the keys of `statistics.partial_correlation` (of lists, of what is above the mean of the
          list) and of `matched_accuracy`, `None` where fewer than 10 texts vary.
        - `changes`: `changes.measure_changes`, `encodings` those of a [`LearnedReward`]; `exact`: `check_exact`.
        - `groups`: `None`, or `column`, `min_group`, `too_small` (name and number of texts), and `groups`, for each
          name `texts` and the keys of `statistics.group_residuals` (of ratings) and `group_preferences`.

    Raises:
        `ValueError`: if the kind cannot be measured, a column or a covariate is unknown, or nothing is scored.
    """
    material, scores, unscored = _scored(reward, Material.of(dataset, kind, group_column, min_gap, seed))
    if unscored:
        logger.warning("%d of %d texts get no score, and are left out.", unscored, unscored + len(scores))
    if len(scores) < 2 or not len(material.pairs):
        raise ValueError("Fewer than two texts that can be compared are scored, so nothing can be measured.")
    report: Metrics = {
        "kind": kind,
        "unscored": unscored,
        **_of_scores(material, scores),
        "covariates": _covariate_figures(material, scores, names),
        "groups": _group_figures(material, scores, group_column, calibration, min_group),
    }
    report |= _of_changed(reward, _some(material, changed_texts, seed), report["score_std"], neutral_sentence)
    return report | {"exact": _exact(reward, _some(material, exact_texts, seed))}


def _exact(reward: Callable[..., Any], some: Material) -> Metrics:
    return check_exact(reward, some.prompts, some.completions)


def _of_scores(material: Material, scores: Floats) -> Metrics:
    better, other = material.pairs.T
    return {
        "texts": len(scores),
        "pairs": len(material.pairs),
        "accuracy": float((0.5 + 0.5 * np.sign(scores[better] - scores[other])).mean()),
        "score_std": float(scores.std()),
    }


def _of_changed(reward: Callable[..., Any], changing: Material, std: float, neutral_sentence: str) -> Metrics:
    """What the reward says of texts that were edited, and of the same texts encoded in another way."""
    common: dict[str, Any] = {"std": std, "units": changing.units}
    edits = text_changes(neutral_sentence)
    changes = measure_changes(reward, changing.prompts, changing.completions, edits, **common)
    encodings: Metrics = {}
    if isinstance(reward, LearnedReward) and changing.completions:
        encodings = measure_encodings(reward, changing.prompts, changing.completions, **common)
    return {"changes": changes, "encodings": encodings}


def fit_correction(reward: Callable[..., Any], dataset: Dataset, kind: Kind, names: Sequence[str]) -> Correction:
    """What to take off a score, of labelled rows of any kind: by ratings where there are any, else by pairs.

    Args:
        reward, dataset, kind: As in [`measure_bias`]; rows that the model was not trained on.
        names (`Sequence[str]`): Covariates.
    """
    material, scores, _ = _scored(reward, Material.of(dataset, kind))
    if material.ratings is not None and not material.within:
        return Correction.fit(scores, material.ratings, material.completions, names)
    better, other = material.pairs.T
    chosen, rejected = ([material.completions[row] for row in side] for side in (better, other))
    return Correction.fit_pairs(scores[better], scores[other], chosen, rejected, names)


def _scored(reward: Callable[..., Any], material: Material) -> tuple[Material, Floats, int]:
    """The texts that have a score, the scores, and how many have none."""
    scores = scores_of(reward, material.prompts, material.completions)
    known = np.flatnonzero(np.isfinite(scores))
    return material.select(known.tolist()), scores[known], len(scores) - len(known)


def _some(material: Material, count: int, seed: int) -> Material:
    rows = np.random.default_rng(seed).permutation(len(material.completions))[:count]
    return material.select(np.sort(rows).tolist())


def _pair_units(material: Material) -> tuple[list[Hashable], list[Hashable] | None]:
    """The texts of each pair; or its prompt or list, where both are of one."""
    better, other = ([material.units[row] for row in side] for side in material.pairs.T)
    return better, None if better == other else other


def _covariate_figures(material: Material, scores: Floats, names: Sequence[str]) -> dict[str, Metrics]:
    x = covariates(material.completions, names)
    columns = {name: x[:, index] for index, name in enumerate(names)}
    if material.places is not None:
        columns["place"] = material.places
    s, y, reliability = scores, material.ratings, _reliability(material.votes)
    better, other = material.pairs.T
    units, others = _pair_units(material)
    figures = {}
    for name, column in columns.items():
        inside = column
        if material.within:
            s, y, inside = (_above_list(values, material.units) for values in (scores, material.ratings, column))
        differences = scores[better] - scores[other], column[better] - column[other]
        found = {
            **partial_correlation(s, inside, y, reliability, material.units),
            **matched_accuracy(*differences, material.gaps, units=units, other_units=others),
        }
        _, counts = np.unique(column, return_counts=True)
        varying = len(column) - int(counts.max())
        if varying < MIN_VARYING:  # a figure, and its interval, would be those of a handful of texts
            found = {key: value if key.startswith("pairs_") else None for key, value in found.items()}
        figures[name] = {"mean": float(column.mean()), "std": float(column.std()), "varying": varying, **found}
    return figures


def _above_list(values: Any, units: Sequence[Hashable]) -> Floats:
    result = np.array(values, dtype=np.float64)
    for rows in rows_by_key(units, len(result)):
        result[rows] -= result[rows].mean()
    return result


def _reliability(votes: list[Any] | None) -> float | None:
    """Of the mean of as many votes as a text has on average; `None` where votes cannot say."""
    if votes is None:
        return None
    try:
        model = RatingModel.fit(votes)
    except ValueError as error:
        logger.info("No reliability of the ratings: %s", error)
        return None
    reliability = model.reliability(float(np.mean([len(of_text) for of_text in votes])))
    return reliability if 0 < reliability <= 1 else None


def _group_figures(
    material: Material,
    scores: Floats,
    column: str | None,
    calibration: Callable[[ArrayLike], Any] | None,
    min_group: int,
) -> Metrics | None:
    if material.groups is None:
        return None
    names = [None if group is None else str(group) for group in material.groups]
    counts = Counter(sorted(name for name in names if name is not None))
    small = {name: count for name, count in counts.items() if count < min_group}
    judged: list[Hashable] = [None if name in small else name for name in names]
    figures: dict[Hashable, Metrics] = {name: {"texts": counts[name]} for name in counts if name not in small}
    y = material.ratings
    if y is not None and not material.within:
        residuals = _calibrated(scores, y, calibration) - y
        for group, said in group_residuals(residuals, judged, material.units).items():
            figures[group] |= said
    better, other = material.pairs.T
    sides = [judged[row] for row in better], [judged[row] for row in other]
    for group, said in group_preferences(scores[better] - scores[other], *sides, *_pair_units(material)).items():
        figures[group] |= said
    return {"column": column, "groups": figures, "too_small": small, "min_group": min_group}


def _calibrated(scores: Floats, ratings: Floats, calibration: Callable[[ArrayLike], Any] | None) -> Floats:
    if calibration is not None:
        return np.asarray(calibration(scores), dtype=np.float64)
    if np.ptp(scores) == 0:
        return np.full(len(scores), ratings.mean())
    slope, level = np.polyfit(scores, ratings, 1)
    return np.asarray(slope * scores + level, dtype=np.float64)


# --- Telling ---------------------------------------------------------------------------------------------


def table(report: Metrics) -> str:
    """The report as a few tables of text, 95% intervals in brackets."""
    lines = [
        f"{report['texts']} texts, {report['pairs']} pairs, {report['accuracy']:.3f} of them in people's order",
        "",
        "What the score goes with, beyond what people say",
        f"  {'':<12}{'with score':>11}{'with rating':>12}  {'at equal rating':<24}accuracy more/less",
    ]
    for name, of in report["covariates"].items():
        accuracy = f"{_number(of['accuracy_more'])} / {_number(of['accuracy_less'])}"
        lines.append(
            f"  {name:<12}{_number(of['with_score'], '+.2f'):>11}{_number(of.get('with_rating'), '+.2f'):>12}  "
            f"{_ranged(of, 'partial'):<24}{accuracy}"
        )
    for title, key in (("The same text, edited", "changes"), ("The same text, read in another way", "encodings")):
        if report[key]:
            lines += ["", f"{title}: change of the score, in its standard deviations"]
            lines += [
                f"  {name:<22}{_ranged(of, 'effect'):<24}mean size {_number(of['size'])}, {of['texts']} texts"
                for name, of in report[key].items()
            ]
    lines += ["", "What must be so: largest difference"]
    for name, of in report["exact"].items():
        holds = {True: "holds", False: "DOES NOT HOLD", None: "not known"}[of["holds"]]
        lines.append(f"  {name:<22}{_number(of['largest'], '.2g'):<12}{holds}")
    return "\n".join(lines + _group_lines(report["groups"]))


def _group_lines(groups: Metrics | None) -> list[str]:
    if groups is None:
        return []
    head = f"  {'':<20}{'texts':>6}  {'score - rating, beyond others':<32}{'accuracy':<24}favoured more than by people"
    lines = ["", f"Groups of {groups['column']!r}", head]
    for name, of in groups["groups"].items():
        cells = f"{_ranged(of, 'beyond_others'):<32}{_ranged(of, 'accuracy', '.2f'):<24}{_ranged(of, 'favoured')}"
        lines.append(f"  {name[:19]:<20}{of['texts']:>6}  {cells}")
    if groups["too_small"]:
        small = ", ".join(f"{name} ({count})" for name, count in groups["too_small"].items())
        lines.append(f"  Not judged, fewer than {groups['min_group']} texts: {small}")
    return lines


def _number(value: float | None, form: str = "z.2f") -> str:
    return "-" if value is None else format(value, form)


def _ranged(figures: Metrics, key: str, form: str = "+z.2f") -> str:
    value, ends = figures.get(key), figures.get(f"{key}_ci95")
    return _number(value, form) + ("" if ends is None else f" ({ends[0]:{form}} to {ends[1]:{form}})")
