"""Finishing an ensemble, and measuring it: its order of texts beside that of its members, and what disagreement tells.

Flat figures for `metrics.json` are those of `evaluation/metrics.py` for the mean of the members, and:

| key | meaning |
|---|---|
| `members` | K |
| `member_accuracy` | mean over the members of their `pairwise_accuracy` |
| `gain_over_member`, `gain_over_member_ci95` | `pairwise_accuracy` of the mean less `member_accuracy` |
| `disagreement` | mean over the test texts of the members' standard deviation, in standard deviations of a score |
| `ece_member`, `ece_ensemble` | calibration error of P(better) of one member (mean over them), and of their mean P |

The rest is in `uncertainty.json`; [`measure_ensemble`] says what.
"""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_recipes import filenames
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.outputs import write_json, write_jsonl
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.ensemble.measure import (
    Comparisons,
    Floats,
    Metrics,
    Read,
    by_disagreement,
    comparisons,
    error_by_disagreement,
    pair_calibration,
    read_rows,
)
from rlhf_recipes.reward_modeling.evaluation.figures import rating_errors
from rlhf_recipes.reward_modeling.evaluation.measure import Known, evaluate, rating_scale
from rlhf_recipes.reward_modeling.scored import kind_of
from rlhf_recipes.reward_modeling.splits import Splits
from rlhf_recipes.rewards.combine.ensemble import reduced
from rlhf_recipes.rewards.combine.shared_ensemble import (
    EnsembleSettings,
    SharedBaseEnsemble,
    load_members,
    member_folder,
    score_members,
)
from rlhf_recipes.rewards.learned import LearnedReward

logger = logging.getLogger(__name__)
AVERAGE_FOLDER = "average"
REDUCTIONS = ("mean", "min", "mean_minus_std", "mean_minus_variance")


def finish_ensemble(folder: str | Path, count: int, splits: Splits, args: RewardConfig) -> Read:
    """Standardize the members on the validation rows, calibrate them where there are ratings, and write
    `ensemble.json`.

    Without validation rows the training rows are used, 2,000 at most. What the members said of them is returned.

    Raises:
        `ValueError`: if a member gives all texts the same score.
    """
    rows = splits.validation
    if rows is None:
        rows = splits.train.select(range(min(2000, len(splits.train))))
        logger.warning("No validation rows: the members are standardized on %d training rows.", len(rows))
    reader = load_members(folder, count, batch_size=args.per_device_eval_batch_size)
    name = Path(folder).name
    read = read_rows(lambda p, c: score_members(reader, count, p, c, name), rows, kind_of(rows, splits.kind))
    settings = EnsembleSettings.of(read.raw)
    if splits.kind == "ratings":
        _calibrate(folder, read, list(rows["score"]), rating_scale(splits.train, args))
    settings.save(folder)
    return read


def _calibrate(folder: str | Path, read: Read, ratings: Sequence[float], scale: tuple[float, float]) -> None:
    for index, raw in enumerate(read.raw):
        place = member_folder(folder, index)
        settings = RewardModelSettings.load(place)
        if settings.probabilities:
            continue  # an expected level is a rating
        try:
            fitted = LogisticCalibration.fit(read.by_row(raw), ratings, *scale)
        except ValueError as error:
            logger.warning("The scores of %s stay logits: %s", place.name, error)
            continue
        dataclasses.replace(settings, calibration=fitted).save(place)


def measure_ensemble(
    folder: str | Path, splits: Splits, args: RewardConfig, held_out: Read | None = None
) -> tuple[Metrics, Metrics]:
    """Measure a finished ensemble on the test rows, and write `uncertainty.json` and `predictions.jsonl`.

    Args:
        folder (`str` or `Path`): As `recipes/reward_ensemble.py` writes it; a model in `average/` is measured too.
        splits ([`~rlhf_recipes.reward_modeling.splits.Splits`]): The test rows are measured on.
        args ([`RewardConfig`]): `min_gap`, the rating scale and the batch size are used.
        held_out ([`~rlhf_recipes.reward_modeling.ensemble.measure.Read`], *optional*): Rows of ratings that the mean
            of the members is fitted to, as [`finish_ensemble`] gives them. Without, there are no errors in units of
            the rating.

    Returns:
        `tuple[dict, dict]`: the flat keys of the table above, and what `uncertainty.json` holds:

        - `scorers`: accuracy over pairs (and of ratings Pearson's correlation) of each member, of `mean`, `min`,
          `mean_minus_std`, `mean_minus_variance` (penalty 1, members standardized) and of `average`, with intervals.
        - `error`: correlation of disagreement and distance from the rating; that distance by tenth of disagreement.
        - `pairs`: accuracy of the mean by third of the members' disagreement over a pair, and where all agree.
        - `calibration`: ECE, Brier score and log loss of P(better) by each member and by their mean.
    """
    size = args.per_device_eval_batch_size
    ensemble = SharedBaseEnsemble(folder, scale="none", batch_size=size)
    test = read_rows(ensemble.members, splits.test, kind_of(splits.test, splits.kind))
    z = ensemble.scaled(test.raw, "standard")
    scores = _scorers(z)
    if (Path(folder) / AVERAGE_FOLDER / filenames.MODEL_CONFIG).is_file():
        one = LearnedReward(Path(folder) / AVERAGE_FOLDER, batch_size=size, calibrate=False)
        scores["average"] = np.array(one(test.prompts, test.completions))
        del one
    report: Metrics = {"members": len(z), "texts": len(test.prompts)}
    curve = None
    if test.scored.kind == "ratings" and held_out is not None:
        curve = _curve(ensemble, held_out, splits, args)
    if curve is not None:
        errors = np.abs(curve(test.by_row(scores["mean"])) - np.array(test.scored.dataset["score"]))
        report["error"] = error_by_disagreement(test.by_row(z.std(axis=0)), errors)
    flat: Metrics = {"members": len(z), "disagreement": float(z.std(axis=0).mean())}
    asked = comparisons(test, args.min_gap)
    if asked is not None:
        known = Known(splits.train, calibration=curve, min_gap=args.min_gap)
        report |= _orders(test, scores, asked)
        report["pairs"], report["calibration"] = by_disagreement(asked, z), pair_calibration(asked, test.raw)
        flat = evaluate(test.with_scores(scores["mean"]), known).flat | flat | _flat(report)
    write_json(Path(folder) / filenames.UNCERTAINTY, report)
    write_jsonl(Path(folder) / filenames.PREDICTIONS, _predictions(test, z))
    return flat, report


def _scorers(z: Floats) -> dict[str, Floats]:
    """Each member, and each way to make one number of all. `(U,)`"""
    rows: list[list[float]] = z.T.tolist()
    scores = {f"adapter_{index}": own for index, own in enumerate(z)}
    how: Any
    for how in REDUCTIONS:
        scores[how] = np.array([reduced(row, how, 1.0) for row in rows])
    return scores


def _curve(
    ensemble: SharedBaseEnsemble, held_out: Read, splits: Splits, args: RewardConfig
) -> LogisticCalibration | None:
    """From the mean of the members to ratings, fitted to held-out rows."""
    mean = held_out.by_row(ensemble.scaled(held_out.raw, "standard").mean(axis=0))
    try:
        return LogisticCalibration.fit(mean, list(held_out.scored.dataset["score"]), *rating_scale(splits.train, args))
    except ValueError as error:
        logger.warning("The mean of the members is not fitted to ratings: %s", error)
        return None


def _orders(test: Read, scores: dict[str, Floats], asked: Comparisons) -> Metrics:
    """The accuracy of each scorer, and how much better it is than a member alone (mean over them), pair by pair."""
    right = {name: asked.right(own) for name, own in scores.items()}
    alone = np.mean([own for name, own in right.items() if name.startswith("adapter_")], axis=0)
    scorers: Metrics = {}
    gain: Metrics = {"member_accuracy": float(alone.mean())}
    for name, own in scores.items():
        accuracy, ends = asked.mean(right[name])
        scorers[name] = {"pairwise_accuracy": accuracy, "pairwise_accuracy_ci95": ends, "pairs": len(alone)}
        if test.scored.kind == "ratings":
            errors = rating_errors(test.by_row(own), list(test.scored.dataset["score"]))
            scorers[name] |= {key: errors[key] for key in ("pearson", "pearson_ci95")}
        if not name.startswith("adapter_"):
            gain[name], gain[f"{name}_ci95"] = asked.mean(right[name] - alone, low=-1.0)
    return {"scorers": scorers, "gain": gain}


def _predictions(read: Read, z: Floats) -> list[Metrics]:
    columns = zip(read.texts(), z.mean(axis=0).tolist(), z.std(axis=0).tolist(), z.T.tolist(), strict=True)
    return [
        {"split": "test", "text": text, "score": mean, "disagreement": spread, "members": own}
        for text, mean, spread, own in columns
    ]


def _flat(report: Metrics) -> Metrics:
    gain, ece = report["gain"], report["calibration"]
    return {
        "member_accuracy": gain["member_accuracy"],
        "gain_over_member": gain["mean"],
        "gain_over_member_ci95": gain["mean_ci95"],
        "ece_member": ece["mean_of_members"]["ece"],
        "ece_ensemble": ece["ensemble"]["ece"],
    }


def describe_ensemble(metrics: Metrics, report: Metrics) -> str:
    """The figures of a run, to be read by a person."""
    lines = []
    if "scorers" in report:
        lines.append(f"Held-out pairs in the right order ({next(iter(report['scorers'].values()))['pairs']:,} pairs)")
        for name, own in report["scorers"].items():
            pearson = f"   Pearson {own['pearson']:.3f}" if own.get("pearson") is not None else ""
            lines.append(f"  {name:<20} {own['pairwise_accuracy']:.3f}{_ends(own['pairwise_accuracy_ci95'])}{pearson}")
        gain = report["gain"]
        lines.append(f"  mean less a member   {gain['mean']:+.3f}{_ends(gain['mean_ci95'], '+')}")
        for name, part in zip(("least", "middle", "most"), report["pairs"]["parts"], strict=False):
            if part["accuracy"] is not None:
                lines.append(f"  {name + ' disagreement':<20} {part['accuracy']:.3f}{_ends(part['accuracy_ci95'])}")
        ece = report["calibration"]
        lines.append(
            f"Calibration error of P(better): a member {ece['mean_of_members']['ece']:.3f}, the ensemble "
            f"{ece['ensemble']['ece']:.3f}"
        )
    if report.get("error"):
        lines.append(f"Disagreement and error of a text: rank correlation {report['error']['spearman'] or 0:.3f}")
    lines.append(f"{metrics['members']} members, {metrics['seconds']:.0f} s, {metrics['peak_memory_gb']:.1f} GB")
    return "\n".join(lines)


def _ends(bounds: Sequence[float] | None, sign: str = "") -> str:
    return "" if bounds is None else f"   95% interval {bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f}"
