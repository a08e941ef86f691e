"""Preparing rows for training in named steps, each of which returns rows and counts.

    steps = steps_from(CleaningArguments(deduplicate=True, near_duplicates=0.8), held_out=test_rows)
    rows, table = run(steps, rows)
    print(table)

    python -m rlhf_recipes.data.cleaning --dataset_name my-rows --deduplicate --near_duplicates 0.8 --output_dir clean

cleans each split, takes out of the others what is in `test` or `validation`, and writes them and `cleaning.json`,
which has all counts. Without an output folder it only shows them.

A step is any callable `step(dataset) -> (dataset, counts)` with a `name`. Those here are frozen dataclasses. What
they do depends on the rows, their settings and a seed, never on the time or the machine. No step leaves out or changes
a row without counting it.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from datasets import Dataset, concatenate_datasets

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run as run_command
from rlhf_recipes.data.augmentation import SwapPairs, WordDropout
from rlhf_recipes.data.duplicates import Deduplicate, Leakage, NearDuplicates, split_by_group
from rlhf_recipes.data.feedback import FeedbackArguments, read_rows
from rlhf_recipes.data.feedback_files import SplitArguments, in_split, read_splits, write_splits
from rlhf_recipes.data.filters import BalanceLabels, DropBlank, InLanguage, Length
from rlhf_recipes.data.preprocessing import SPLITS, tidy_text
from rlhf_recipes.data.row_texts import Counts, Step
from rlhf_recipes.data.text_edits import EditTexts, read_stop_words, remove_punctuation, tidy_light
from rlhf_recipes.outputs import prepare_output_dir, write_json


@dataclass
class CleaningArguments:
    """What is done to rows before training. Without options only line ends and Unicode are made alike.

    Args:
        tidy (`str`, *optional*, defaults to `"light"`):
            `"light"` makes line ends and composed accents alike (Unicode NFC) and takes NUL out. `"full"` also decodes
            HTML entities and makes every run of white space, line breaks too, one space. `"off"` does nothing.
        lowercase (`bool`, *optional*, defaults to `False`):
            Make texts lower case.
        remove_punctuation (`bool`, *optional*, defaults to `False`):
            Take out punctuation of all scripts, but not apostrophes and hyphens inside words.
        stop_words (`str`, *optional*):
            Take these words out: a file with one on each line, or `english` for the list of scikit-learn.
        min_characters (`int`, *optional*), max_characters (`int`, *optional*):
            Leave out rows with a shorter or longer text; prompts do not count.
        language (`str`, *optional*):
            Leave out rows in another language, an ISO 639-1 code such as `en`.
        language_threshold (`float`, *optional*, defaults to 0.5):
            The probability of the language from which on a text is taken to be in it.
        deduplicate (`bool`, *optional*, defaults to `False`):
            Keep the first of all rows with the same texts.
        near_duplicates (`float`, *optional*):
            Keep the first of all rows whose texts have that similarity or more, such as 0.8.
        key_columns (`list[str]`, *optional*):
            The columns by which rows are the same. Default: all texts.
        leakage_columns (`list[str]`, *optional*):
            The columns by which a row is in a held-out split too; `prompt` takes out all rows about a held-out prompt.
            Default: those of `key_columns`.
        balance_labels (`bool`, *optional*, defaults to `False`):
            Leave out rows of the more frequent label until both are equal.
        swap_pairs (`bool`, *optional*, defaults to `False`):
            Let chosen and rejected change places in half of the rows with a soft label, which turns with them.
        word_dropout (`float`, *optional*, defaults to 0):
            Add a copy of each row in which that share of words is missing.
        cleaning_seed (`int`, *optional*, defaults to 0):
            Of all that is drawn.

    Raises:
        `ValueError`: if a number is out of its range.
    """

    help_title = "Cleaning"

    tidy: str = field(
        default="light",
        metadata={"help": "light: line ends and accents alike. full: HTML entities and white space too. off."},
    )
    lowercase: bool = field(default=False, metadata={"help": "Make texts lower case."})
    remove_punctuation: bool = field(default=False, metadata={"help": "Take punctuation out of texts."})
    stop_words: str | None = field(
        default=None, metadata={"help": "Words to take out: a file with one on each line, or `english`."}
    )
    min_characters: int | None = field(default=None, metadata={"help": "Leave out rows with a shorter text."})
    max_characters: int | None = field(default=None, metadata={"help": "Leave out rows with a longer text."})
    language: str | None = field(
        default=None, metadata={"help": "Leave out rows in another language than this, such as `en`."}
    )
    language_threshold: float = field(
        default=0.5, metadata={"help": "Probability from which on a text is taken to be in the language."}
    )
    deduplicate: bool = field(default=False, metadata={"help": "Keep the first of all rows with the same texts."})
    near_duplicates: float | None = field(
        default=None, metadata={"help": "Keep the first of all rows with this similarity or more, such as 0.8."}
    )
    key_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns by which rows are the same. Default: all texts."}
    )
    leakage_columns: list[str] | None = field(
        default=None, metadata={"help": "Columns by which rows are in a held-out split too. Default: key_columns."}
    )
    balance_labels: bool = field(
        default=False, metadata={"help": "Leave out rows of the more frequent label until both are equal."}
    )
    swap_pairs: bool = field(
        default=False, metadata={"help": "Swap chosen and rejected in half of the rows with a soft label."}
    )
    word_dropout: float = field(
        default=0.0, metadata={"help": "Add a copy of each row in which this share of words is missing."}
    )
    cleaning_seed: int = field(default=0, metadata={"help": "Seed of all that is drawn."})

    def __post_init__(self) -> None:
        if self.tidy not in ("off", "light", "full"):
            raise ValueError(f"tidy is {self.tidy!r}; give 'off', 'light' or 'full'.")
        steps_from(self)  # a step refuses settings that it cannot have


# --- Running steps ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """What each step did, in order. Printed it is a table, and [`as_json`] gives the same figures."""

    steps: Sequence[tuple[str, Counts]] = ()

    def __str__(self) -> str:
        head = ["step", "before", "after", "left out", "added", "changed", "notes"]
        figures = [_figures(name, counts) for name, counts in self.steps]
        rows = [head, *([_cell(value) for value in row.values()] for row in figures)]
        widths = [max(len(row[place]) for row in rows) for place in range(len(head) - 1)]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:-1], widths[1:]), row[-1]]).rstrip()
            for row in rows
        )

    def as_json(self) -> str:
        """A list of one object for each step."""
        return json.dumps([_figures(name, counts) for name, counts in self.steps], ensure_ascii=False)


def _figures(name: str, counts: Counts) -> dict[str, Any]:
    return {
        "step": name,
        "before": counts.before,
        "after": counts.after,
        "left_out": max(counts.before - counts.after, 0),
        "added": max(counts.after - counts.before, 0),
        "changed": counts.changed,
        "notes": dict(counts.notes),
    }


def _cell(value: Any) -> str:
    return ", ".join(f"{what}: {count}" for what, count in value.items()) if isinstance(value, dict) else str(value)


def run(steps: Sequence[Step], dataset: Dataset) -> tuple[Dataset, Table]:
    """Take rows through steps, one after the other.

    Args:
        steps (`Sequence`): As [`steps_from`] makes them, or of your own.
        dataset ([`~datasets.Dataset`]): The rows.

    Returns:
        `tuple[Dataset, Table]`: the rows that are left, and what each step did.

    Raises:
        `ValueError`: if a step leaves no row, with the table so far.
    """
    dataset = dataset.with_format(None)
    done: list[tuple[str, Counts]] = []
    for step in steps:
        dataset, counts = step(dataset)
        done.append((step.name, counts))
        if not len(dataset):
            raise ValueError(f"The step {step.name!r} leaves no row. Change its settings.\n{Table(done)}")
    return dataset, Table(done)


def steps_from(args: CleaningArguments, held_out: Dataset | Mapping[str, Dataset] | None = None) -> list[Step]:
    """The steps that the options ask for, in the order in which they are run.

    Texts are changed first, so that rows which have become the same are seen to be. Rows are added last, so that no
    copy is taken for a duplicate.

    Args:
        args ([`CleaningArguments`]): The options.
        held_out ([`~datasets.Dataset`] or a mapping of name and rows, *optional*):
            A test split, or several splits by name. What is in them too is taken out of the rows that are cleaned,
            exact copies always and near ones where `near_duplicates` is set. They are compared after the same changes
            of text, by all texts or by `leakage_columns`.
    """
    tidying = {"light": EditTexts(tidy_light, "tidy (light)"), "full": EditTexts(tidy_text, "tidy (full)")}
    edits: list[Step] = [tidying[args.tidy]] if args.tidy in tidying else []
    edits += [EditTexts(str.lower, "lower case")] if args.lowercase else []
    edits += [EditTexts(remove_punctuation, "punctuation")] if args.remove_punctuation else []
    edits += [EditTexts(read_stop_words(args.stop_words), "stop words")] if args.stop_words else []
    key = None if args.key_columns is None else tuple(args.key_columns)
    steps: list[Step] = [*edits, DropBlank()]
    if args.min_characters is not None or args.max_characters is not None:
        steps.append(Length(args.min_characters, args.max_characters))
    if args.language is not None:
        steps.append(InLanguage(args.language, args.language_threshold))
    if args.deduplicate:
        steps.append(Deduplicate(key))
    if args.near_duplicates is not None:
        steps.append(NearDuplicates(args.near_duplicates, key, seed=args.cleaning_seed))
    key = key if args.leakage_columns is None else tuple(args.leakage_columns)
    for name, rows in ({"": held_out} if isinstance(held_out, Dataset) else held_out or {}).items():
        for edit in edits:
            rows, _ = edit(rows)
        named = f"leakage ({name})" if name else "leakage"
        steps.append(Leakage(rows, args.near_duplicates, key, seed=args.cleaning_seed, name=named))
    steps += [BalanceLabels(args.cleaning_seed)] if args.balance_labels else []
    steps += [SwapPairs(seed=args.cleaning_seed)] if args.swap_pairs else []
    return steps + ([WordDropout(args.word_dropout, args.cleaning_seed)] if args.word_dropout else [])


# --- All splits of a dataset ------------------------------------------------------------------


@dataclass
class SplitCleaningArguments:
    """Which splits are held out, and whether rows are divided anew.

    Args:
        held_out_splits (`list[str]`, *optional*, defaults to `["test", "validation"]`):
            Splits to measure on, the one that must stay whole first. What one of them has is taken out of those behind
            it in the list, and out of all others. No rows are added to them, swapped in them or balanced.
        group_column (`str`, *optional*):
            Put the rows of all splits together and divide them by this column, such that all rows of one value are on
            one side; see [`~rlhf_recipes.data.duplicates.split_by_group`].
        split_shares (`dict`, *optional*):
            Names and shares of these splits. Default: train 0.8, validation 0.1, test 0.1.

    Raises:
        `ValueError`: if shares are given without a column to divide by.
    """

    help_title = "Splits"

    held_out_splits: list[str] = field(
        default_factory=lambda: ["test", "validation"],
        metadata={"help": "Splits to measure on: what is in them is taken out of the others."},
    )
    group_column: str | None = field(
        default=None, metadata={"help": "Divide all rows anew, those with one value of this column on one side."}
    )
    split_shares: dict | None = field(
        default=None, metadata={"help": 'Shares of the new splits. Default: {"train": 0.8, "validation": 0.1, ...}.'}
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

    Args:
        splits (`Mapping[str, Dataset]`): Rows by name.
        args ([`CleaningArguments`]): What is done to each.
        held_out (`Sequence[str]`, *optional*, defaults to `("test", "validation")`):
            As in [`SplitCleaningArguments`]; names of splits that are not there do not count.

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
        cleaned[name] = in_split(name, partial(run, steps, rows))
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
        save_config(output_dir / "config.yaml", args, split_args, cleaning_args, feedback)

    facts: dict[str, Any] = {"dataset_name": args.dataset_name, "checks": {}, "cleaning": {}, "rows": {}}
    for name, rows in splits.items():
        splits[name], found = in_split(name, partial(read_rows, rows, feedback))
        facts["checks"][name] = found.as_dict()
        sys.stdout.write(f"{name}: {found}\n")
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
