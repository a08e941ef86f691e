r"""Measure any reward model on any dataset with human feedback, which is how transfer is seen:

    python -m rlhf_recipes.reward_modeling.evaluation --model runs/quickstart/reward --dataset_name my-pairs

The model is a folder of a reward model (also a linear one), or any sequence classifier: a folder or an id of the Hub.
It writes metrics.json, evaluation.json and report.html.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_recipes import filenames
from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.cli import run
from rlhf_recipes.data.feedback.formats import FeedbackArguments
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.evaluation.labels import step_evaluation
from rlhf_recipes.reward_modeling.evaluation.measure import (
    Known,
    calibration_of,
    evaluate,
    logger,
    of_same_kind,
    prediction_rows,
    summary,
    write_evaluation,
)
from rlhf_recipes.reward_modeling.examples import read_feedback
from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from rlhf_recipes.reward_modeling.scored import Scored, score_rows, score_steps
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.rewards.process import StepModel
from rlhf_recipes.starting.options import option


@dataclass
class EvaluationArguments:
    """Which model is measured, and how.

    Raises:
        `ValueError`: if a number is out of range.
    """

    help_title = "Evaluation"

    model: str = field(metadata={"help": "Folder of a reward model, or any sequence classifier: a folder or Hub id."})
    output_dir: str | None = option(None, "Where the figures go. Default: runs/evaluation/MODEL_on_DATASET.")
    validation_split: str | None = option(
        None, "Split to fit curves to (ratings, labels). Default: what the model has."
    )
    label: str | None = option(None, "Which output of a classifier is the score, by name.")
    labels: dict | None = option(None, "What each output counts: {positive: 1, negative: -1}.")
    step_token: str | None = option(None, "Steps: the mark behind each, as in training. Default: what the model has.")
    min_gap: float = option(0.5, "Ratings: compare texts that are at least this far apart.")
    dwell_seconds: float = option(30.0, "Seconds from which on a reader has stayed.")
    batch_size: int = option(32, "Texts in one forward pass.")

    def __post_init__(self) -> None:
        if self.min_gap < 0 or self.batch_size < 1 or self.dwell_seconds <= 0:
            raise ValueError(
                f"min_gap is {self.min_gap}, batch_size {self.batch_size}, dwell_seconds {self.dwell_seconds}; give 0 "
                "or more, 1 or more, and more than 0."
            )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure one model on one split of a dataset."""
    parser = RecipeParser((EvaluationArguments, DataArguments, FeedbackArguments), description=__doc__)
    args, data_args, feedback_args = parser.parse(argv)
    how = {"feedback_args": feedback_args}
    read = read_feedback(data_args, data_args.dataset_test_split, data_args.max_eval_samples, **how)
    test, kind, found = read.rows, read.kind, read.check
    if kind == "steps":
        scored = score_steps(_step_model(args), test)
        result = step_evaluation(scored, scored.dataset["labels"])
    else:
        reward = _reward(args)
        held_out = None
        if args.validation_split is not None:
            validation = read_feedback(data_args, args.validation_split, data_args.max_eval_samples, **how).rows
            held_out = of_same_kind(reward, validation, kind)
        scored = score_rows(reward, test, kind)
        result = evaluate(scored, _known(reward, held_out, scored, args))
    name = f"{Path(args.model).name}_on_{Path(data_args.dataset_name).stem}"
    folder = Path(args.output_dir or Path("runs/evaluation") / name)
    metrics = write_evaluation(folder, result, prediction_rows("test", scored, None))
    write_json(folder / filenames.METRICS, metrics)

    from rlhf_recipes.report.reward_card import write_page

    data = {"splits": {data_args.dataset_test_split: found.as_dict()}}
    page = write_page(folder, title=name, data=data)
    sys.stdout.write(f"{found}\n\n{summary(metrics)}\nSaved in {folder}; the page is {page}\n")


def _reward(args: EvaluationArguments) -> Any:
    if (Path(args.model) / filenames.LINEAR_REWARD).is_file():
        return LinearReward(args.model, calibrate=False)
    return LearnedReward(args.model, batch_size=args.batch_size, calibrate=False, label=args.label, labels=args.labels)


def _step_model(args: EvaluationArguments) -> StepModel:
    from transformers import AutoConfig

    count = AutoConfig.from_pretrained(args.model).num_labels
    # TRL's process reward models have two labels, wrong and right.
    label = args.label if args.label is not None or args.labels else 1 if count == 2 else None
    return StepModel(args.model, args.step_token, label, args.labels, batch_size=args.batch_size)


def _known(reward: Any, held_out: Scored | None, scored: Scored, args: EvaluationArguments) -> Known:
    """The model's own calibration, where the ratings lie within its ends, or one fitted to the validation rows."""
    settings = getattr(reward, "settings", RewardModelSettings())
    calibration = reward.model.calibration if isinstance(reward, LinearReward) else calibration_of(settings)
    if scored.kind == "ratings":
        ratings = list(scored.dataset["score"])
        if held_out is not None:
            ratings_there = list(held_out.dataset["score"])
            ends = min(ratings + ratings_there), max(ratings + ratings_there)
            calibration = LogisticCalibration.fit(held_out.column(0), ratings_there, *ends)
        elif calibration is not None and not _covers(calibration, ratings):
            logger.warning("The ratings leave the scale of the model's calibration: distances are not measured.")
            calibration = None
    weights = args.labels or settings.labels
    return Known(None, held_out, calibration, weights, args.min_gap, args.dwell_seconds)


def _covers(calibration: Any, ratings: Sequence[float]) -> bool:
    of_scale = isinstance(calibration, LogisticCalibration)
    return not of_scale or (calibration.low <= min(ratings) and max(ratings) <= calibration.high)


if __name__ == "__main__":
    run(main)
