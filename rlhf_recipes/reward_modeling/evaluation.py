"""After training: from logits to ratings on the validation rows, and the held-out figures on the test rows.

Everything is measured on the folder that was saved, loaded as a reward: the figures are those of the model that others
will load.
"""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.formats import DataArguments, detect_format
from rlhf_recipes.outputs import write_jsonl
from rlhf_recipes.reward_modeling.data import Texts, load_feedback
from rlhf_recipes.reward_modeling.metrics import Metrics, pair_metrics, rating_metrics
from rlhf_recipes.reward_modeling.trainer import RewardConfig
from rlhf_recipes.rewards.calibration import LogisticCalibration
from rlhf_recipes.rewards.learned import LearnedReward, RewardModelSettings

logger = logging.getLogger(__name__)


def load_validation(data_args: DataArguments, args: RewardConfig) -> Dataset | None:
    """The rows to calibrate on, or `None`, with a warning, where the dataset has no such split."""
    if args.validation_split is None:
        return None
    try:
        return load_feedback(data_args, args.validation_split, data_args.max_eval_samples)
    except ValueError as error:
        logger.warning("No validation rows, so scores will not be calibrated to ratings: %s", error)
        return None


def measure(
    folder: str | Path, train: Dataset, validation: Dataset | None, test: Dataset, args: RewardConfig
) -> Metrics:
    """Calibrate the reward model in a folder, and measure it on rows that it has not seen.

    Writes `predictions.jsonl` (of ratings) into the folder, and the calibration into its `reward_config.json`.

    Args:
        folder (`str` or `Path`): The saved model.
        train ([`~datasets.Dataset`]): What it was trained on; here it tells where the rating scale ends.
        validation ([`~datasets.Dataset`], *optional*): Ratings to fit the calibration to.
        test ([`~datasets.Dataset`]): Ratings or pairs to measure on.
        args ([`RewardConfig`]): `min_gap`, the rating scale and the batch size are used.

    Returns:
        `dict`: the keys of `rlhf_recipes.reward_modeling.metrics`.
    """
    reward = LearnedReward(folder, batch_size=args.per_device_eval_batch_size, calibrate=False)
    if detect_format(test.column_names) == "pairs":
        chosen, rejected = Texts.of(test, "chosen"), Texts.of(test, "rejected")
        scores_of_both = reward(chosen.prompts, chosen.completions), reward(rejected.prompts, rejected.completions)
        return pair_metrics(chosen.plain(), rejected.plain(), *scores_of_both)
    predictions, calibration = [], None
    if validation is not None and detect_format(validation.column_names) == "ratings":
        logits = _logits(reward, validation)
        calibration = _calibrate(logits, validation["score"], rating_scale(train, args))
        settings = dataclasses.replace(RewardModelSettings.load(folder), calibration=calibration)
        settings.save(folder)
        predictions += _predictions("validation", validation, logits, calibration)
    logits = _logits(reward, test)
    texts, votes = Texts.of(test, "completion").plain(), list(test["votes"]) if "votes" in test.column_names else None
    scores = None if calibration is None else calibration(logits).tolist()
    predictions += _predictions("test", test, logits, calibration)
    write_jsonl(Path(folder) / "predictions.jsonl", predictions)
    return rating_metrics(texts, list(test["score"]), logits, scores, votes, args.min_gap)


def rating_scale(dataset: Dataset, args: RewardConfig) -> tuple[float, float]:
    """Ends of the scale: what was given, else the lowest and the highest vote, or mean rating, that there is."""
    low, high = args.rating_low, args.rating_high
    values = [0.0, 1.0]
    if "votes" in dataset.column_names:
        values = [vote for votes in dataset["votes"] for vote in votes]
    elif "score" in dataset.column_names:
        values = list(dataset["score"])
    return float(min(values) if low is None else low), float(max(values) if high is None else high)


def summary(metrics: Mapping[str, Any]) -> str:
    """The figures of a run, to be read by a person."""
    low, high = metrics["pairwise_accuracy_ci95"]
    lines = [
        f"Held-out pairs in the right order ({metrics['pairs']:,} pairs)",
        f"  reward model      {metrics['pairwise_accuracy']:.3f}   95% interval {low:.3f} to {high:.3f}",
    ]
    beside = {"single_rater_accuracy": "one human rater", "vader_accuracy": "VADER", "length_accuracy": "longer text"}
    lines += [f"  {name:<17} {metrics[key]:.3f}" for key, name in beside.items() if key in metrics]
    if "pearson" in metrics:
        lines.append(f"Correlation with the mean rating {metrics['pearson']:.3f}")
    if "mae" in metrics:
        lines.append(f"Mean distance from it {metrics['mae']:.2f} rating points")
    lines.append(
        f"{metrics['train_pairs']:,} training pairs, {metrics['seconds']:.0f} s, {metrics['peak_memory_gb']:.1f} GB"
    )
    return "\n".join(lines)


def _logits(reward: LearnedReward, dataset: Dataset) -> list[float]:
    texts = Texts.of(dataset, "completion")
    return reward(texts.prompts, texts.completions)


def _calibrate(logits: list[float], ratings: list[float], scale: tuple[float, float]) -> LogisticCalibration | None:
    try:
        return LogisticCalibration.fit(logits, ratings, *scale)
    except ValueError as error:
        logger.warning("Scores stay logits, because they cannot be calibrated to the ratings: %s", error)
        return None


def _predictions(
    split: str, dataset: Dataset, logits: list[float], calibration: LogisticCalibration | None
) -> list[dict[str, Any]]:
    texts = Texts.of(dataset, "completion").plain()
    scores = logits if calibration is None else calibration(logits).tolist()
    columns = zip(texts, dataset["score"], logits, scores, strict=True)
    return [
        {"split": split, "text": text, "rating": rating, "logit": logit, "score": score}
        for text, rating, logit, score in columns
    ]
