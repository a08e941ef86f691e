"""All splits of a dataset, read and written: what the commands for feedback and for cleaning share."""

import contextlib
import datetime
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset

from rlhf_recipes import filenames
from rlhf_recipes.data.folders import listed_splits
from rlhf_recipes.data.loading import NoSuchSplit, load_rows
from rlhf_recipes.outputs import write_jsonl
from rlhf_recipes.starting.options import check_choice, option

FILES = ("jsonl", "parquet")


@dataclass
class SplitArguments:
    """Which dataset is read, and where its splits are written.

    Raises:
        `ValueError`: if the output format is neither, or no split is named.
    """

    help_title = "Dataset"

    dataset_name: str = field(
        metadata={
            "help": "A local folder, a local file (.jsonl .json .csv .tsv .parquet, also packed), or a dataset id of "
            "the Hub."
        }
    )
    dataset_config: str | None = option(None, "Which configuration, of a dataset that has several.")
    splits: list[str] | None = option(
        None, "Which splits. Default: all that there are. A single file is all one split, train."
    )
    output_dir: str | None = option(
        None, "Folder that gets one file for each split: a dataset that every recipe reads."
    )
    output_format: str = option("jsonl", "Kind of file.", choices=list(FILES))
    overwrite_output_dir: bool = option(False, "Write into a folder that holds other things. Nothing is deleted.")

    def __post_init__(self) -> None:
        check_choice("output_format", self.output_format, FILES)
        if self.splits is not None and not self.splits:
            raise ValueError("splits names none. Name one or more, or leave it out for all.")


def read_splits(args: SplitArguments) -> dict[str, Dataset]:
    """The rows of each split, in the order of the dataset.

    Raises:
        `FileNotFoundError`, `ConnectionError`, `ValueError`: as [`~rlhf_recipes.data.loading.load_rows`].
    """
    names = args.splits or split_names(args.dataset_name, args.dataset_config)
    return {name: load_rows(args.dataset_name, name, args.dataset_config) for name in names}


def split_names(name: str, config: str | None = None) -> list[str]:
    """Which splits a dataset has; `["train"]` where that cannot be told, so that loading it says what is wrong."""
    path = Path(name).expanduser()
    if path.is_file():
        return ["train"]
    if (path / filenames.DATASET_DICT).is_file():
        return list(datasets.load_from_disk(str(path)))
    if (path / filenames.DATASET_STATE).is_file():
        return [str(datasets.load_from_disk(str(path)).split or "train")]
    return listed_splits(str(path) if path.is_dir() else name, config) or ["train"]


@contextlib.contextmanager
def in_split(name: str) -> Iterator[None]:
    """Name the split in an error that the user can mend."""
    try:
        yield
    except NoSuchSplit:
        raise  # it names the split itself
    except ValueError as error:
        raise ValueError(f"Split {name!r}: {error}") from error


def write_splits(folder: Path, splits: Mapping[str, Dataset], kind: str = "jsonl") -> dict[str, str]:
    """Write one file for each split, each at once.

    JSON has no NaN and no dates: in JSONL, NaN in other columns than the feedback becomes `null`, and a date its
    ISO form.

    Args:
        folder (`Path`): Where.
        splits (`Mapping[str, Dataset]`): By name.
        kind (`str`, *optional*, defaults to `"jsonl"`): `"jsonl"` or `"parquet"`.

    Returns:
        `dict[str, str]`: The name of each split's file.

    Raises:
        `ValueError`: if a value has no form in JSON; it names the column.
    """
    written = {}
    for name, rows in splits.items():
        file = folder / f"{name}.{kind}"
        if kind == "parquet":
            unfinished = file.with_name(f".{file.name}")
            rows.to_parquet(str(unfinished))
            os.replace(unfinished, file)
        else:
            write_jsonl(file, _json_rows(rows))
        written[name] = file.name
    return written


def _json_rows(rows: Dataset) -> Iterator[dict[str, Any]]:
    for row in rows.with_format(None):
        yield {name: _json_value(value, name) for name, value in row.items()}


def _json_value(value: Any, column: str) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_json_value(one, column) for one in value]
    if isinstance(value, dict):
        return {name: _json_value(one, column) for name, one in value.items()}
    if isinstance(value, datetime.date | datetime.time):  # a datetime is a date
        return value.isoformat()
    raise ValueError(
        f"Column {column!r} holds a {type(value).__name__}, which JSON cannot say. Write parquet (output_format), or "
        "remove the column."
    )
