r"""Human feedback in all the forms in which it comes: what it is, whether it is sound, and how one becomes another.

```
pairs       [prompt,] chosen, rejected [, margin] [, target]       one is better
votes       [prompt,] chosen, rejected, chosen_votes, rejected_votes
ratings     [prompt,] completion, score [, votes]                  continuous, or 1 to K
rankings    [prompt,] completions, ranks                           1 is best, ties share a rank
best_worst  [prompt,] completions, best, worst                     places in the list, from 0
unpaired    [prompt,] completion, label                            true or false, or a chance from 0 to 1
clicks      [prompt,] completion, clicks, views                    what readers did
dwell       [prompt,] completion, dwell_seconds
objectives  [prompt,] completion, scores                           {"helpful": 4, "honest": 2}
steps       [prompt,] completions, labels                          a list of steps, and one label for each
```

Prompts and completions are texts or lists of messages. The prompt may also stand inside both answers of a pair, as in
the raw dialogues of HH-RLHF ("\n\nHuman: ... \n\nAssistant: ..."). [`recognize`] tells the format from the columns,
[`check`] counts what is odd and refuses what is wrong, [`normalize`] gives clean rows, [`convert`] changes formats.

Rows are left out only where they can say nothing; how many, and why, is in the log and in [`Check`].

    python -m rlhf_recipes.data.feedback --dataset_name my-rows
    python -m rlhf_recipes.data.feedback --dataset_name my-rows --convert_to pairs --output_dir my-pairs

The first says what each split is and what is odd about it. The second writes a folder of pairs; what a conversion
needs goes into `convert_args`, and what the columns do not say into the other options (`--help` lists them).
"""

import sys
from collections.abc import Sequence
from functools import partial

from datasets import Dataset

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run as run_command
from rlhf_recipes.data.conversions import CONVERSIONS, convert
from rlhf_recipes.data.feedback_checks import check, normalize, recognize, row_keys
from rlhf_recipes.data.feedback_files import SplitArguments, in_split, read_splits, write_splits
from rlhf_recipes.data.feedback_formats import (
    COLUMNS,
    WEIGHT,
    Check,
    FeedbackArguments,
    FeedbackFormat,
    FeedbackSettings,
    Kind,
)
from rlhf_recipes.data.weights import add_weights
from rlhf_recipes.outputs import prepare_output_dir, write_json

__all__ = [
    "COLUMNS",
    "CONVERSIONS",
    "Check",
    "FeedbackArguments",
    "FeedbackFormat",
    "FeedbackSettings",
    "Kind",
    "check",
    "convert",
    "normalize",
    "read_rows",
    "recognize",
    "row_keys",
]


def read_rows(rows: Dataset, args: FeedbackArguments) -> tuple[Dataset, Check]:
    """Check and clean rows as the options say, give them weights, and put them into another format.

    Votes are counted before a conversion takes them away; labels and groups after it, which may make them.

    Raises:
        `ValueError`: as [`normalize`], [`convert`] and [`~rlhf_recipes.data.weights.add_weights`].
    """
    clean, found = normalize(rows, args.settings())
    if args.weights == "votes":
        clean = add_weights(clean, "votes")
    if args.wanted is not None:
        clean, _ = convert(clean, args.wanted, FeedbackSettings(found.format.kind), **(args.convert_args or {}))
    if args.weights == "votes" and WEIGHT not in clean.column_names:
        raise ValueError(f"{found.format.kind} become {args.wanted} without their weights. Leave out weights.")
    if args.weights in ("labels", "groups"):
        clean = add_weights(clean, "labels" if args.weights == "labels" else "groups")
    return clean, found


def main(argv: Sequence[str] | None = None) -> None:
    """Say what the feedback of a dataset is, and write it, in another format if asked."""
    parser = RecipeParser((SplitArguments, FeedbackArguments), description=__doc__)
    args, feedback = parser.parse(argv)
    splits = read_splits(args)
    output_dir = None
    if args.output_dir is not None:
        output_dir = prepare_output_dir(args.output_dir, "feedback", args.overwrite_output_dir)
        save_config(output_dir / "config.yaml", args, feedback)
    made, facts = {}, {}
    for name, rows in splits.items():
        made[name], found = in_split(name, partial(read_rows, rows, feedback))
        facts[name] = {**found.as_dict(), "written": len(made[name])}
        sys.stdout.write(f"{name}: {found}\n")
        if feedback.weights is not None:
            least, most = min(made[name][WEIGHT]), max(made[name][WEIGHT])
            sys.stdout.write(f"  weights   {least:7.3g}  to {most:.3g}, 1 on average\n")
        if feedback.convert_to not in (None, found.format.kind):
            as_what = recognize(made[name], feedback.wanted)
            sys.stdout.write(f"  converted {len(made[name]):7d}  rows of {as_what}\n")
    if output_dir is not None:
        files = write_splits(output_dir, made, args.output_format)
        write_json(output_dir / "feedback.json", facts)
        sys.stdout.write(f"Saved in {output_dir}: {', '.join(files.values())}\n")
    elif feedback.convert_to is not None:
        sys.stdout.write("Nothing was written. Name a folder with --output_dir.\n")


if __name__ == "__main__":
    run_command(main)
