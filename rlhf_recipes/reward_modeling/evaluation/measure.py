"""After training: from logits to ratings on the validation rows, and the held-out figures on the test rows.

Everything is measured on the folder that was saved, loaded as a reward: the figures are those of the model that others
will load.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset

from rlhf_recipes import filenames
from rlhf_recipes.data.feedback.formats import Kind
from rlhf_recipes.data.feedback.labels import clicks_to_unpaired, dwell_to_unpaired
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.calibration import Calibration, LinearCalibration, LogisticCalibration, OrdinalCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.outputs import write_json, write_jsonl
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.evaluation.comparisons import best_worst_quality, list_evaluation, pair_evaluation
from rlhf_recipes.reward_modeling.evaluation.labels import label_evaluation, step_evaluation
from rlhf_recipes.reward_modeling.evaluation.ratings import Curves, Evaluation, objective_evaluation, rating_evaluation
from rlhf_recipes.reward_modeling.examples import load_feedback
from rlhf_recipes.reward_modeling.scored import Scored, Scorer, Texts, kind_of, score_rows, score_steps
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.process import StepModel
from rlhf_recipes.statistics import Metrics

logger = logging.getLogger(__name__)
LABELLED = ("unpaired", "clicks", "dwell")
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """What is known besides the test rows.

    Args:
        train ([`~datasets.Dataset`], *optional*): For the ends of scales, and baselines.
        validation ([`Scored`], *optional*): Rows to fit curves to.
        calibration (callable, *optional*): From scores to ratings.
        weights (`Mapping[str, float]`, *optional*): What each objective counts in the score.
        min_gap (`float`): Least difference of two ratings that are compared.
        dwell_seconds (`float`): From how many seconds on a reader stayed.
        standardized (`bool`): Whether objectives weigh in units of their standard deviation.
    """

    train: Dataset | None = None
    validation: Scored | None = None
    calibration: Calibration | None = None
    weights: Mapping[Any, float] | None = None
    min_gap: float = 0.5
    dwell_seconds: float = 30.0
    standardized: bool = True


def load_validation(data_args: DataArguments, args: Any) -> Dataset | None:
    """The rows to calibrate on, or `None`, with a warning, where the dataset has no such split."""
    if args.validation_split is None:
        return None
    return _or_warn(
        lambda: load_feedback(data_args, args.validation_split, data_args.max_eval_samples),
        "No validation rows, so scores will not be calibrated to ratings",
    )


def _or_warn(made: Callable[[], T], what: str) -> T | None:
    try:
        return made()
    except ValueError as error:
        logger.warning("%s: %s", what, error)
        return None


def measure(
    folder: str | Path,
    train: Dataset,
    validation: Dataset | None,
    test: Dataset,
    args: RewardConfig,
    kind: Kind | None = None,
) -> Metrics:
    """Calibrate the reward model in a folder, and measure it on rows that it has not seen.

    Writes `evaluation.json` and `predictions.jsonl` into the folder, and the calibration to ratings into its
    `reward_config.json`. Each split goes through the model once.

    Args:
        folder (`str` or `Path`): The saved model: a sequence classifier, or of steps a token classifier.
        train ([`~datasets.Dataset`]): What it was trained on; here it tells where the rating scale ends.
        validation ([`~datasets.Dataset`], *optional*): Rows to fit the calibration to.
        test ([`~datasets.Dataset`]): Rows to measure on, in any format of `rlhf_recipes.data.feedback`.
        args ([`RewardConfig`]): `min_gap`, the rating scale, the loss's settings and the batch size are used.
        kind (`str`, *optional*): The format of the test rows. Default: what their columns say.

    Returns:
        `dict`: the keys of `rlhf_recipes.reward_modeling.evaluation.metrics`.
    """
    kind = kind_of(test, kind)
    options, batch_size = getattr(args, "loss_args", None) or {}, args.per_device_eval_batch_size
    if kind == "steps":
        limit = RewardModelSettings.load(folder).max_length
        scored = score_steps(StepModel(str(folder), batch_size=batch_size, max_length=limit), test)
        result = step_evaluation(scored, scored.dataset["labels"])
        return write_evaluation(folder, result, prediction_rows("test", scored, None))
    reward = LearnedReward(folder, batch_size=batch_size, calibrate=False)
    held_out = None if validation is None else of_same_kind(reward, validation, kind)
    known = Known(
        train,
        held_out,
        calibration_of(reward.settings),
        # A gate was trained on one of the objectives, the overall judgement.
        {options["gate"]: 1.0} if options.get("gate") else reward.settings.labels,
        args.min_gap,
        standardized=options.get("kind") != "bce",
    )
    predictions = []
    if held_out is not None and kind == "ratings":
        known = dataclasses.replace(known, calibration=_calibrated(folder, reward.settings, held_out, train, args))
        predictions += prediction_rows("validation", held_out, known.calibration)
    scored = score_rows(reward, test, kind)
    predictions += prediction_rows("test", scored, known.calibration if kind == "ratings" else None)
    return write_evaluation(folder, evaluate(scored, known), predictions)


def evaluate(scored: Scored, known: Known = Known()) -> Evaluation:
    """Measure scores of any kind of feedback but steps. The calibration is used for ratings alone.

    Args:
        scored ([`~rlhf_recipes.reward_modeling.scored.Scored`]): The test rows with their scores.
        known ([`Known`], *optional*): What is known besides.
    """
    rows, kind = scored.dataset, scored.kind
    if kind == "ratings":
        votes = list(rows["votes"]) if "votes" in rows.column_names else None
        return rating_evaluation(
            scored, list(rows["score"]), known.calibration, votes, known.min_gap, _texts_and_ratings(known.train)
        )
    if kind == "pairs":
        return pair_evaluation(scored, list(rows["target"]) if "target" in rows.column_names else None)
    if kind == "votes":
        votes_of = zip(rows["chosen_votes"], rows["rejected_votes"], strict=True)
        return pair_evaluation(scored, [a / (a + b) for a, b in votes_of])
    if kind == "rankings":
        return list_evaluation(scored, [[-rank for rank in ranks] for ranks in rows["ranks"]])
    if kind == "best_worst":
        columns = zip(scored.scores, rows["best"], rows["worst"], strict=True)
        return list_evaluation(scored, [best_worst_quality(len(own), *ends) for own, *ends in columns])
    if kind in LABELLED:
        order = list(rows["dwell_seconds"]) if kind == "dwell" else None
        held_out, curve = known.validation, None
        if held_out is not None:
            curve = _or_warn(
                lambda: LogisticCalibration.fit(held_out.column(0), _labels(held_out, known), 0.0, 1.0),
                "Scores are read as logits, because no curve fits the validation labels",
            )
        return label_evaluation(scored, _labels(scored, known), order, curve)
    if kind == "objectives":
        return _measure_objectives(scored, known)
    raise ValueError(f"Rows of {kind} are measured by step_evaluation, on what score_steps gives.")


def rating_scale(dataset: Dataset, args: Any) -> tuple[float, float]:
    """Ends of the scale: what was given, else the lowest and the highest vote, or mean rating, that there is."""
    low, high = args.rating_low, args.rating_high
    values: list[Any] = []
    if "votes" in dataset.column_names:
        values = [vote for votes in dataset["votes"] for vote in votes or () if vote is not None]
    if not values and "score" in dataset.column_names:
        values = list(dataset["score"])
    values = values or [0.0, 1.0]
    return float(min(values) if low is None else low), float(max(values) if high is None else high)


def summary(metrics: Mapping[str, Any]) -> str:
    """The figures of a run, to be read by a person: those of the kind of feedback that there was."""
    lines = []
    if metrics.get("pairwise_accuracy") is not None:
        lines.append(f"Held-out pairs in the right order ({metrics['pairs']:,} pairs)")
        lines.append(_with_interval("reward model", "pairwise_accuracy", metrics))
        lines += [f"  {name:<17} {metrics[key]:.3f}" for key, name in BESIDE.items() if key in metrics]
    if metrics.get("step_accuracy") is not None:
        lines.append(f"Held-out steps told right from wrong ({metrics['steps']:,} steps)")
        lines.append(_with_interval("reward model", "step_accuracy", metrics))
        lines.append(f"  the more frequent {metrics['step_base_accuracy']:.3f}")
    lines += [text.format(metrics[key], **metrics) for key, text in SENTENCES if metrics.get(key) is not None]
    rows = next((f"{metrics[key]:,} training {key[6:]}" for key in TRAINED_ON if key in metrics), None)
    cost = [rows] if rows else []
    cost += [f"{metrics['seconds']:.0f} s"] if "seconds" in metrics else []
    cost += [f"{metrics['peak_memory_gb']:.1f} GB"] if "peak_memory_gb" in metrics else []
    return "\n".join(lines + ([", ".join(cost)] if cost else []))


BESIDE = {"single_rater_accuracy": "one human rater", "vader_accuracy": "VADER", "length_accuracy": "longer text"}
TRAINED_ON = ("train_pairs", "train_rows", "train_texts")
SENTENCES = (
    ("pearson", "Correlation with the mean rating {0:.3f}"),
    ("mae", "Mean distance from it {0:.2f} rating points"),
    ("kendall", "Rank correlation within a list (Kendall's tau) {0:.3f}"),
    ("top1_accuracy", "Best text of a list found {0:.3f}, by chance {top1_chance:.3f}"),
    ("worst_accuracy", "Worst text of a list found {0:.3f}"),
    ("step_f1", "F1 of the wrong steps {0:.3f}"),
    ("first_error_rate", "First wrong step of an answer found {0:.3f}"),
    ("log_loss", "Log loss {0:.3f} nats"),
    ("base_log_loss", "  saying the mean label of every text, {base_rate:.3f}, has {0:.3f}"),
    ("ece", "Expected calibration error {0:.3f}"),
)


def _with_interval(name: str, key: str, metrics: Mapping[str, Any]) -> str:
    bounds = metrics.get(f"{key}_ci95")
    interval = "" if bounds is None else f"   95% interval {bounds[0]:.3f} to {bounds[1]:.3f}"
    return f"  {name:<17} {metrics[key]:.3f}{interval}"


# --- What each kind needs ----------------------------------------------------------------------------------


def of_same_kind(reward: Scorer, rows: Dataset, kind: Kind) -> Scored | None:
    """Validation rows with scores, where a curve is fitted to their kind."""
    if kind not in ("ratings", "objectives", *LABELLED):
        return None
    return _or_warn(
        lambda: score_rows(reward, rows, kind), f"The validation rows are no {kind}, so nothing is fitted to them"
    )


def calibration_of(settings: RewardModelSettings) -> Calibration | None:
    """What the folder says; scores of a model of levels are ratings as they are."""
    if settings.calibration is None and settings.probabilities:
        return LinearCalibration(scale=1.0, offset=0.0)
    return settings.calibration


def _calibrated(
    folder: str | Path, settings: RewardModelSettings, held_out: Scored, train: Dataset, args: RewardConfig
) -> Calibration | None:
    """Fit a curve with ends to the ratings and save it, unless the loss has learned one that has ends itself."""
    if isinstance(settings.calibration, OrdinalCalibration):
        return settings.calibration
    columns = held_out.column(0), list(held_out.dataset["score"])
    fitted = _or_warn(
        lambda: LogisticCalibration.fit(*columns, *rating_scale(train, args)),
        "Scores stay logits, because they cannot be calibrated to the ratings",
    )
    if fitted is None:
        return calibration_of(settings)
    settings = dataclasses.replace(settings, calibration=fitted)
    settings.save(folder)
    from rlhf_recipes.reward_modeling.saving import ADAPTER_FOLDER  # it brings trainers, which --help needs not

    if (Path(folder) / ADAPTER_FOLDER).is_dir():
        settings.save(Path(folder) / ADAPTER_FOLDER)
    return fitted


def _texts_and_ratings(train: Dataset | None) -> tuple[list[str], list[float]] | None:
    """What the baselines learn from: training rows of ratings."""
    if train is None or not {"completion", "score"} <= set(train.column_names):
        return None
    return Texts.of(train, "completion").plain(), list(train["score"])


def _labels(scored: Scored, known: Known) -> list[float]:
    rows = scored.dataset
    if scored.kind == "clicks":
        rows = clicks_to_unpaired(rows)
    elif scored.kind == "dwell":
        rows = dwell_to_unpaired(rows, known.dwell_seconds)
    return [float(label) for label in rows["label"]]


def _measure_objectives(scored: Scored, known: Known) -> Evaluation:
    table = list(scored.dataset["scores"])
    names = list(dict.fromkeys(name for own in table for name in own))
    weights = {name: w for name, w in (known.weights or {}).items() if name in names and w != 0}
    told = list(known.train["scores"]) if known.train is not None and "scores" in known.train.column_names else table
    scales = {}
    for name in names:
        values = [own[name] for own in told if own.get(name) is not None]
        if known.standardized and values:
            scales[name] = float(np.mean(values)), float(np.std(values)) or 1.0
    curves = {} if known.validation is None else _objective_curves(known.validation)
    return objective_evaluation(scored, table, weights or dict.fromkeys(names, 1 / len(names)), scales, curves)


def _objective_curves(validation: Scored) -> Curves:
    """For each objective the least-squares line from the model's output to it; none where it does not rise."""
    curves = {}
    for name, column in validation.outputs.items():
        wanted = [own.get(name) for own in validation.dataset["scores"]]
        pairs = [(said, value) for said, value in zip(column, wanted, strict=True) if value is not None]
        x, y = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
        slope, offset = np.polyfit(x, y, 1) if len(x) > 1 and np.ptp(x) > 0 else (0.0, 0.0)
        if slope > 0:
            curves[name] = LinearCalibration(float(slope), float(offset))
    return curves


# --- What is written ---------------------------------------------------------------------------------------


def write_evaluation(folder: str | Path, result: Evaluation, predictions: Sequence[Mapping[str, Any]]) -> Metrics:
    write_jsonl(Path(folder) / filenames.PREDICTIONS, predictions)
    write_json(Path(folder) / filenames.EVALUATION, result.nested)
    return result.flat


def prediction_rows(split: str, scored: Scored, calibration: Calibration | None) -> list[dict[str, Any]]:
    """A row for each text: of ratings as they stand beside the rating, of others its row and place in it."""
    if scored.kind == "ratings":
        logits = scored.column(0)
        scores = logits if calibration is None else calibration(logits).tolist()
        columns = zip(scored.texts(), scored.dataset["score"], logits, scores, strict=True)
        return [
            {"split": split, "text": text, "rating": rating, "logit": logit, "score": score}
            for text, rating, logit, score in columns
        ]
    return [
        {"split": split, "row": row, "place": place, "text": scored.prompts[row] + text, "logit": score}
        for row, (texts, scores) in enumerate(zip(scored.completions, scored.scores, strict=True))
        for place, (text, score) in enumerate(zip(texts, scores, strict=True))
    ]
