"""Preparing rows for training in named steps, each of which returns rows and counts.

    steps = steps_from(CleaningArguments(deduplicate=True, near_duplicates=0.8), held_out=test_rows)
    rows, table = run(steps, rows)
    print(table)

A step is any callable `step(dataset) -> (dataset, counts)` with a `name`. Those here are frozen dataclasses. What
they do depends on the rows, their settings and a seed, never on the time or the machine. No step leaves out or changes
a row without counting it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.cleaning.duplicates import Deduplicate, Leakage, NearDuplicates
from rlhf_recipes.data.cleaning.edits import (
    EditTexts,
    SwapPairs,
    WordDropout,
    read_stop_words,
    remove_punctuation,
    tidy_light,
)
from rlhf_recipes.data.cleaning.filters import BalanceLabels, Counts, DropBlank, InLanguage, Length, Step
from rlhf_recipes.data.preprocessing import tidy_text
from rlhf_recipes.starting.options import check_choice, option


@dataclass
class CleaningArguments:
    """What is done to rows before training. Without options only line ends and Unicode are made alike.

    Raises:
        `ValueError`: if a number is out of its range.
    """

    help_title = "Cleaning"

    tidy: str = option(
        "light",
        "light: line ends and composed accents (Unicode NFC) alike, no NUL. full: also HTML entities decoded, and "
        "every run of white space, line breaks too, one space. off: nothing.",
    )
    lowercase: bool = option(False, "Make texts lower case.")
    remove_punctuation: bool = option(
        False, "Take out punctuation of all scripts, but not apostrophes and hyphens inside words."
    )
    stop_words: str | None = option(
        None, "Words to take out: a file with one on each line, or `english` for the list of scikit-learn."
    )
    min_characters: int | None = option(None, "Leave out rows with a shorter text; prompts do not count.")
    max_characters: int | None = option(None, "Leave out rows with a longer text; prompts do not count.")
    language: str | None = option(None, "Leave out rows in another language, an ISO 639-1 code such as `en`.")
    language_threshold: float = option(0.5, "Probability from which on a text is taken to be in the language.")
    deduplicate: bool = option(False, "Keep the first of all rows with the same texts.")
    near_duplicates: float | None = option(
        None, "Keep the first of all rows with this similarity or more, such as 0.8."
    )
    key_columns: list[str] | None = option(None, "Columns by which rows are the same. Default: all texts.")
    leakage_columns: list[str] | None = option(
        None,
        "Columns by which rows are in a held-out split too: `prompt` takes out all rows about a held-out prompt. "
        "Default: key_columns.",
    )
    balance_labels: bool = option(False, "Leave out rows of the more frequent label until both are equal.")
    swap_pairs: bool = option(False, "Swap chosen and rejected in half of the rows with a soft label, and the label.")
    word_dropout: float = option(0.0, "Add a copy of each row in which this share of words is missing.")
    cleaning_seed: int = option(0, "Seed of all that is drawn.")

    def __post_init__(self) -> None:
        check_choice("tidy", self.tidy, ("off", "light", "full"))
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
    """Take rows through steps, as [`steps_from`] makes them or of your own, one after the other.

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
