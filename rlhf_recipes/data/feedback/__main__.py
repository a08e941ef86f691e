r"""Human feedback from a shell: what it is, whether it is sound, and how one format becomes another.

    python -m rlhf_recipes.data.feedback --dataset_name my-rows
    python -m rlhf_recipes.data.feedback --dataset_name my-rows --convert_to pairs --output_dir my-pairs

The first says what each split is and what is odd about it. The second writes a folder of pairs; what a conversion
needs goes into `convert_args`, and what the columns do not say into the other options (`--help` lists them).
"""

import sys
from collections.abc import Sequence

from rlhf_recipes import filenames
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run as run_command
from rlhf_recipes.data.feedback.files import SplitArguments, in_split, read_splits, write_splits
from rlhf_recipes.data.feedback.formats import WEIGHT, FeedbackArguments
from rlhf_recipes.data.feedback.read import read_rows
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.outputs import prepare_output_dir, write_json


def main(argv: Sequence[str] | None = None) -> None:
    """Say what the feedback of a dataset is, and write it, in another format if asked."""
    parser = RecipeParser((SplitArguments, FeedbackArguments), description=__doc__)
    args, feedback = parser.parse(argv)
    splits = read_splits(args)
    output_dir = None
    if args.output_dir is not None:
        output_dir = prepare_output_dir(args.output_dir, "feedback", args.overwrite_output_dir)
        save_config(output_dir / filenames.CONFIG, args, feedback)
    made, facts = {}, {}
    for name, rows in splits.items():
        with in_split(name):
            read = read_rows(rows, feedback)
        made[name] = read.rows
        facts[name] = {**read.check.as_dict(), "written": len(read.rows)}
        sys.stdout.write(f"{name}: {read.check}\n")
        if feedback.weights is not None:
            least, most = min(made[name][WEIGHT]), max(made[name][WEIGHT])
            sys.stdout.write(f"  weights   {least:7.3g}  to {most:.3g}, 1 on average\n")
        if read.kind != read.check.format.kind:
            as_what = recognize(read.rows, read.kind)
            sys.stdout.write(f"  converted {len(made[name]):7d}  rows of {as_what}\n")
    if output_dir is not None:
        files = write_splits(output_dir, made, args.output_format)
        write_json(output_dir / "feedback.json", facts)
        sys.stdout.write(f"Saved in {output_dir}: {', '.join(files.values())}\n")
    elif feedback.convert_to is not None:
        sys.stdout.write("Nothing was written. Name a folder with --output_dir.\n")


if __name__ == "__main__":
    run_command(main)
