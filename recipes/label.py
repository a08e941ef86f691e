r"""Label data with a reward model: a label where it is sure, and none where it is not.

Sentences about films as good or bad, on the starter kit, with a threshold above which 95% of the labels are right:

    python recipes/label.py --config recipes/configs/starter_label.yaml

Which of two texts is better (columns chosen and rejected, or first and second, and perhaps prompt), as parquet:

    python recipes/label.py --dataset_name my-pairs.jsonl --reward_funcs my-org/my-reward-model --threshold 0.8 \
        --output_file labeled.parquet --output_dir runs/labels

The output folder gets the labelled rows (labeled.jsonl, .csv or .parquet; all rows, also those without a label), where
labelled rows were given coverage.json and coverage.png (accuracy over the share that is labelled), metrics.json,
config.yaml and report.html.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.uses import labeling
from rlhf_recipes.reward_modeling.uses import thresholds as selective
from rlhf_recipes.reward_modeling.uses.confidence import DoubtArguments, draw_line, reasons, verdicts
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.loading import RewardArguments


@dataclass
class LabelArguments:
    """What is labelled, and what is written."""

    help_title = "Labels"

    dataset_name: str = field(metadata={"help": "What is labelled: a folder, a file or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for the labelled rows."})
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split to label. A single file is all train."})
    max_samples: int | None = field(default=None, metadata={"help": "Label N rows drawn at random. Default: all."})
    output_file: str = field(default="labeled.jsonl", metadata={"help": "In output_dir: .jsonl, .csv or .parquet."})
    label_as: Literal["unpaired", "ratings"] = field(
        default="unpaired", metadata={"help": "Of texts: a label, 1 or 0, or the score as a rating."}
    )
    ensemble: bool = field(default=False, metadata={"help": "The rewards are models on one scale: their mean counts."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})

    def __post_init__(self) -> None:
        labeling.check_suffix(self.output_file)


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    args, doubt_args, reward_args = RecipeParser((LabelArguments, DoubtArguments, RewardArguments), __doc__).parse(
        argv
    )
    output_dir = prepare_output_dir(args.output_dir, "label", args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", args, doubt_args, reward_args)
    decision = doubt_args.decision_threshold

    # Data and rewards.
    rows = labeling.read_rows(args.dataset_name, args.dataset_split, args.dataset_config, args.max_samples)
    label_as = "pairs" if len(labeling.sides_of(rows)) == 2 else args.label_as
    rewards = load_rewards(reward_args.reward_funcs, reward_args.reward_weights)

    # Scores, and those of rows that people have labelled.
    evidence, known = labeling.evidence_of(rewards, rows, args.ensemble), None
    if doubt_args.validation_split is not None:
        name = doubt_args.validation_name or args.dataset_name
        labelled = labeling.read_rows(name, doubt_args.validation_split, args.dataset_config)
        known = labeling.known_rows(rewards, labelled, decision, doubt_args.fit_share, args.ensemble)

    # Labels.
    line = draw_line(doubt_args, evidence, known)
    labeling.warn_of_ratings(rewards, line.method)
    found = verdicts(evidence, line.method, line.sigmoid)
    why = reasons(found, line.threshold, doubt_args.min_agreement)
    made = labeling.labelled_rows(rows, evidence, found, why, label_as, args.ensemble)

    # Save.
    file = labeling.write_labelled(output_dir / args.output_file, made)
    metrics = labeling.counts(made, label_as) | line.figures() | labeling.accuracy_of(found, why, rows, decision)
    if line.curve:
        write_json(output_dir / "coverage.json", [point.figures() for point in selective.thinned(line.curve)])
        selective.draw_coverage({"labelled rows": line.curve}, output_dir / "coverage.png", line.choice)
    metrics |= {"seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()}
    end_run(output_dir, metrics)
    print(f"\n{line}\n{labeling.summary(metrics)}\nSaved in {file}")


if __name__ == "__main__":
    run(main)
