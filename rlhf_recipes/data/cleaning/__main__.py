"""Clean a dataset from a shell, all splits of it.

    python -m rlhf_recipes.data.cleaning --dataset_name my-rows --deduplicate --near_duplicates 0.8 --output_dir clean

cleans each split, takes out of the others what is in `test` or `validation`, and writes them and `cleaning.json`,
which has all counts. Without an output folder it only shows them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from datasets import Dataset, concatenate_datasets

from rlhf_recipes import filenames
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run as run_command
from rlhf_recipes.data.cleaning.duplicates import split_by_group
from rlhf_recipes.data.cleaning.steps import CleaningArguments, Table, run, steps_from
from rlhf_recipes.data.feedback.files import SplitArguments, in_split, read_splits, write_splits
from rlhf_recipes.data.feedback.formats import FeedbackArguments
from rlhf_recipes.data.feedback.read import read_rows
from rlhf_recipes.data.preprocessing import SPLITS
from rlhf_recipes.outputs import prepare_output_dir, write_json
from rlhf_recipes.starting.options import option


@dataclass
class SplitCleaningArguments:
    """Which splits are held out, and whether rows are divided anew.

    Raises:
        `ValueError`: if shares are given without a column to divide by.
    """

    help_title = "Splits"

    held_out_splits: list[str] = option(
        ["test", "validation"],
        "Splits to measure on, the one that must stay whole first: what is in one is taken out of those behind it and "
        "out of all others. No rows are added to them, swapped in them or balanced.",
    )
    group_column: str | None = option(
        None, "Divide the rows of all splits anew, those with one value of this column on one side."
    )
    split_shares: dict | None = option(
        None, 'Names and shares of the new splits. Default: {"train": 0.8, "validation": 0.1, "test": 0.1}.'
    )

    def __post_init__(self) -> None:
        if self.split_shares is not None and self.group_column is None:
            raise ValueError("split_shares is given without group_column. Name the column to divide by.")


def clean_splits(
    splits: Mapping[str, Dataset], args: CleaningArguments, held_out: Sequence[str] = ("test", "validation")
) -> dict[str, tuple[Dataset, Table]]:
    """Clean all splits such that none has what is held out in another.

    With the defaults, rows of `test` are taken out of all other splits, and rows of `validation` out of all others but
    `test`. Balancing, swapping and word dropout are for training, and are not done to held-out splits.

    Names in `held_out` of splits that are not there do not count.

    Returns:
        `dict[str, tuple[Dataset, Table]]`: for each split what is left, and what each step did.

    Raises:
        `ValueError`: as [`run`], with the name of the split.
    """
    order = [name for name in held_out if name in splits]
    to_measure = replace(args, balance_labels=False, swap_pairs=False, word_dropout=0.0)
    cleaned = {}
    for name, rows in splits.items():
        kept_whole = order[: order.index(name)] if name in order else order
        others = {other: splits[other] for other in kept_whole}
        steps = steps_from(to_measure if name in order else args, held_out=others)
        with in_split(name):
            cleaned[name] = run(steps, rows)
    return cleaned


def main(argv: Sequence[str] | None = None) -> None:
    """Check and clean each split of a dataset, and write what is left."""
    parser = RecipeParser(
        (SplitArguments, SplitCleaningArguments, CleaningArguments, FeedbackArguments), description=__doc__
    )
    args, split_args, cleaning_args, feedback = parser.parse(argv)
    splits = read_splits(args)
    output_dir = None
    if args.output_dir is not None:
        output_dir = prepare_output_dir(args.output_dir, "cleaning", args.overwrite_output_dir)
        save_config(output_dir / filenames.CONFIG, args, split_args, cleaning_args, feedback)

    facts: dict[str, Any] = {"dataset_name": args.dataset_name, "checks": {}, "cleaning": {}, "rows": {}}
    for name, rows in splits.items():
        with in_split(name):
            read = read_rows(rows, feedback)
        splits[name], facts["checks"][name] = read.rows, read.check.as_dict()
        sys.stdout.write(f"{name}: {read.check}\n")
    if split_args.group_column is not None:
        splits, facts["groups"] = _divided(splits, split_args)
        sys.stdout.write("".join(f"{name}: {what}\n" for name, what in facts["groups"].items()))
    for name, (rows, table) in clean_splits(splits, cleaning_args, split_args.held_out_splits).items():
        splits[name] = rows
        facts["cleaning"][name], facts["rows"][name] = json.loads(table.as_json()), len(rows)
        sys.stdout.write(f"\n{name}: {len(rows)} rows are left\n{table}\n")
    if output_dir is None:
        sys.stdout.write("\nNothing was written. Name a folder with --output_dir.\n")
        return
    facts["files"] = write_splits(output_dir, splits, args.output_format)
    write_json(output_dir / "cleaning.json", facts)
    sys.stdout.write(f"\nSaved in {output_dir}: {', '.join(facts['files'].values())}, cleaning.json\n")


def _divided(
    splits: Mapping[str, Dataset], args: SplitCleaningArguments
) -> tuple[dict[str, Dataset], Mapping[str, int | str]]:
    features = [rows.features for rows in splits.values()]
    if any(each.keys() != features[0].keys() for each in features):
        raise ValueError(
            "The splits have different columns, so they cannot be put together: "
            + "; ".join(f"{name}: {', '.join(rows.column_names)}" for name, rows in splits.items())
        )
    assert args.group_column is not None
    new, counts = split_by_group(
        concatenate_datasets(list(splits.values())), args.group_column, args.split_shares or SPLITS
    )
    return {name: rows for name, rows in new.items() if len(rows)}, counts.notes


if __name__ == "__main__":
    run_command(main)
