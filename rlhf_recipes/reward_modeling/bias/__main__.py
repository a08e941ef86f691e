r"""What a reward model leans on besides what people said: length, format, repetition, place, form, and groups.

    python -m rlhf_recipes.reward_modeling.bias --model runs/quickstart/reward \
        --dataset_name starter/movie-ratings --output_dir runs/bias

It prints the table and writes bias.json and pictures. A correction for length and format, fitted on another split, is
measured beside it, and kept in correction.json for `ResidualReward`:

    python -m rlhf_recipes.reward_modeling.bias --model runs/quickstart/reward \
        --dataset_name starter/movie-ratings --output_dir runs/bias --correct length format --correct_on validation

[`measure_bias`] is the same in Python, for any reward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from rlhf_recipes import filenames
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.feedback.formats import FeedbackSettings, Kind
from rlhf_recipes.data.feedback.read import normalize
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.outputs import prepare_output_dir, write_json
from rlhf_recipes.reward_modeling.bias.changes import NEUTRAL
from rlhf_recipes.reward_modeling.bias.correction import ResidualReward
from rlhf_recipes.reward_modeling.bias.measure import fit_correction, measure_bias, table
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.starting.options import option
from rlhf_recipes.statistics import Metrics


@dataclass
class BiasArguments:
    """Which model is measured, and how."""

    help_title = "Bias"

    model: str = field(metadata={"help": "Folder or Hub id of a reward model."})
    output_dir: str = field(metadata={"help": "Folder for bias.json and the pictures."})
    correct: list[str] = option([], "Measure with these taken off, too: length, format, repetition.")
    correct_on: str = option("validation", "Split to fit that correction on.")
    feedback_format: str | None = option(None, "Format of the rows, if columns fit several.")
    group_column: str | None = option(None, "Column that tells groups.")
    min_group: int = option(30, "Groups with fewer texts are named and not judged.")
    min_gap: float = option(0.5, "Ratings: compare texts that are at least this far apart.")
    changed_texts: int = option(200, "Try edits on that many texts; 0: on none.")
    neutral_sentence: str = option(NEUTRAL, "Sentence to append that says nothing.")
    seed: int = option(0, "Of what is drawn.")
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things.")


def main(argv: Sequence[str] | None = None) -> None:
    data_args, args = RecipeParser((DataArguments, BiasArguments), description=__doc__).parse(argv)
    output_dir = prepare_output_dir(args.output_dir, "bias", args.overwrite_output_dir)
    save_config(output_dir / filenames.CONFIG, data_args, args)

    def load(split: str) -> tuple[Dataset, Kind]:
        rows = load_rows(data_args.dataset_name, split, data_args.dataset_config)
        settings = FeedbackSettings(format=args.feedback_format)
        dataset, check = normalize(sample_rows(rows, data_args.max_eval_samples), settings)
        return dataset, check.format.kind

    def measured(reward: Callable[..., Any], calibration: Any) -> Metrics:
        return measure_bias(
            reward,
            *load(data_args.dataset_test_split),
            args.group_column,
            calibration=calibration,
            min_gap=args.min_gap,
            min_group=args.min_group,
            changed_texts=args.changed_texts,
            neutral_sentence=args.neutral_sentence,
            seed=args.seed,
        )

    reward = LearnedReward(args.model, calibrate=False)
    reports = {"": measured(reward, reward.settings.calibration)}
    if args.correct:
        correction = fit_correction(reward, *load(args.correct_on), args.correct)
        correction.save(output_dir / "correction.json")
        reports = {"as it is": reports[""], "corrected": measured(ResidualReward(reward, correction), None)}
    for name, report in reports.items():
        write_json(output_dir / ("bias_corrected.json" if name == "corrected" else filenames.BIAS), report)
        print(f"{name.upper()}\n{table(report)}\n".lstrip())  # noqa: T201
    from rlhf_recipes.report.reward_figures import save_pictures  # after --help and wrong names

    save_pictures(reports, output_dir)
    print(f"Saved in {output_dir}")  # noqa: T201


if __name__ == "__main__":
    run(main)
