"""From a name to rows with known columns: where a dataset lies, which format it has, and which rows say nothing."""

import difflib
import glob
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

from rlhf_recipes import filenames
from rlhf_recipes.data.folders import check_one_kind, folder_builder, listed_splits, quiet_cards, visible_files
from rlhf_recipes.data.local_files import (
    KINDS,
    OWN,
    PACKED,
    cache_folder,
    is_empty,
    kind_of,
    read_local,
    without_decimals,
)
from rlhf_recipes.starting.options import option
from rlhf_recipes.texts import sentence

logger = logging.getLogger(__name__)

# What `datasets` would read CSV, TSV and JSON with, which are read more strictly here.
OWN_BUILDERS = ("csv", "json")

# Endings that no Hub id has, so that a name with one of them is a file, also where we cannot read it.
OTHER_FILE_ENDINGS = (
    ".xlsx",
    ".xls",
    ".arrow",
    ".zip",
    ".pkl",
    ".xml",
    ".yaml",
    ".md",
    ".html",
)

# A character that a reader would see: no white space, and none of the zero-width ones, which `str.strip` keeps.
VISIBLE = re.compile(r"[^\s\u200b\u200c\u200d\u2060\ufeff]")


@dataclass
class DataArguments:
    """Which rows to train and evaluate on.

    A folder may hold data files, or be made by `save_to_disk`. Files may be packed (.gz, .bz2, .xz, .zst), and several
    (`rows/part-*.csv`). What exists locally comes before the Hub. [`sample_rows`] draws the rows.

    Raises:
        `ValueError`: if a number of rows is less than 1.
    """

    help_title = "Data"

    dataset_name: str = field(
        metadata={
            "help": "A local folder, a local file (.jsonl .json .csv .tsv .parquet .txt, also packed), or a dataset "
            "id of the Hugging Face Hub."
        }
    )
    dataset_config: str | None = option(None, "Which configuration, of a dataset that has several.")
    dataset_train_split: str = option("train", "Split to train on. A single file is all one split, `train`.")
    dataset_test_split: str = option("test", "Split to evaluate on.")
    max_train_samples: int | None = option(
        None, "Train on N rows drawn at random, always the same ones. Default: all."
    )
    max_eval_samples: int | None = option(
        None, "Evaluate on N rows drawn at random, always the same ones. Default: all."
    )

    def __post_init__(self) -> None:
        for name in ("max_train_samples", "max_eval_samples"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"{name} is {count}. Give at least 1, or leave it out to take all rows.")


# --- Loading ----------------------------------------------------------------------------------


def load_rows(name: str, split: str, config: str | None = None) -> Dataset:
    """Load one split of a local folder, a local file or a dataset of the Hub.

    A name that can only be a path (it starts with `.`, `/` or `~`, has more than one slash, ends like a data file, or
    begins with `starter/` or `runs/`) is never looked for on the Hub. A local file that was changed is read anew,
    even if its date was kept. Decimal numbers become floats.

    Args:
        name (`str`): The folder, file, files (`rows/part-*.csv`) or id, as in [`DataArguments`].
        split (`str`): The split, or a slice of it such as `train[:10%]` (not for folders made by `save_to_disk`).
        config (`str`, *optional*): The configuration, of a dataset that has several.

    Returns:
        [`~datasets.Dataset`]: At least one row.

    Raises:
        `FileNotFoundError`: if there is nothing of that name.
        `ConnectionError`: if the name is none of a local path, and the Hub cannot be reached.
        `ValueError`: if the split does not exist, a file cannot be read (a row with more or fewer fields than the
            header, say), a folder has files of two formats, or there are no rows.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        dataset = _load_folder(path, split, config)
    elif path.is_file():
        dataset = _load_files(str(path), [path], split)
    elif found := sorted(Path(file) for file in glob.glob(str(path), recursive=True)):
        dataset = _load_files(str(path), found, split)
    elif _must_be_local(name):
        raise FileNotFoundError(
            f"No dataset at {name!r} (looked in {path.absolute()}). Give a local folder, a local file "
            f"({' '.join(KINDS)}) or a dataset id of the Hugging Face Hub. The folders under starter/ are "
            "made by `python -m rlhf_recipes.data.starter`."
        )
    else:
        dataset = _load_from_hub(name, split, config)
    if len(dataset) == 0:
        raise ValueError(f"The dataset {name!r} has no rows in split {split!r}. At least one is needed.")
    return without_decimals(dataset)


def _must_be_local(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or name.lower().endswith((*KINDS, *PACKED, *OTHER_FILE_ENDINGS))
        or name.split("/")[0] in ("starter", "runs")
    )


def _load_folder(folder: Path, split: str, config: str | None) -> Dataset:
    if (folder / filenames.DATASET_DICT).is_file():
        saved = datasets.load_from_disk(str(folder))
        if split not in saved:
            raise _no_such_split(str(folder), split, list(saved))
        return saved[split]
    if (folder / filenames.DATASET_STATE).is_file():
        single = cast(Dataset, datasets.load_from_disk(str(folder)))
        only = str(single.split or "train")
        if split != only:
            raise _no_such_split(str(folder), split, [only])
        return single
    check_one_kind(folder)
    files = visible_files(folder)
    try:
        builder = folder_builder(folder, config)
        if builder.info.builder_name not in OWN_BUILDERS:
            return _load(str(folder), files, split, name=config)
    except FileNotFoundError as error:
        raise ValueError(
            f"The folder {str(folder)!r} holds no data files ({' '.join(KINDS)}), so it is no dataset. "
            "Name the folder in which the files lie."
        ) from error
    except Exception as error:  # as many kinds as there are file formats; each is raised again with what to do
        splits = listed_splits(str(folder), config)
        if splits and not set(_base_splits(split)) <= set(splits):
            raise _no_such_split(str(folder), split, splits) from error
        for file in files:
            if kind_of(file) is not None:
                _load_files(str(file), [file], "train")  # raises for the file that cannot be read, and names it
        raise ValueError(f"Cannot read the dataset folder {str(folder)!r}: {_reason(error)}") from error
    of_splits = {str(name): [Path(file) for file in of_split] for name, of_split in builder.config.data_files.items()}
    if not set(_base_splits(split)) <= set(of_splits):
        raise _no_such_split(str(folder), split, of_splits)
    # A folder's README may say in its YAML what stands between fields (`sep`), and the encoding.
    return read_local(of_splits, split, getattr(builder.config, "sep", None), builder.config.encoding or "utf-8")


def _load_files(name: str, files: Sequence[Path], split: str) -> Dataset:
    """Files that are all one split, `train`."""
    kinds = {kind_of(file): file for file in files}
    if None in kinds:
        raise ValueError(
            f"Cannot read {str(kinds[None])!r}: files may end in {', '.join(KINDS)}, each also packed "
            f"({' '.join(PACKED)}). Convert it to one of these."
        )
    if len(kinds) > 1:
        raise ValueError(f"{name!r} names files of {len(kinds)} formats: {', '.join(map(str, kinds.values()))}.")
    if _base_splits(split) != ["train"]:
        ending = "".join(files[0].suffixes)
        raise ValueError(
            f"{name!r} is a single file, which is all one split, 'train': there is no split {split!r} in it. Put "
            f"the rows for it in a file of their own, in one folder with this one (train{ending}, "
            f"{(_base_splits(split) or ['test'])[0]}{ending}), and name the folder."
        )
    kind = str(next(iter(kinds)))
    for file in files:
        if file.stat().st_size == 0 or (kind != "parquet" and is_empty(file)):
            raise ValueError(f"The file {str(file)!r} is empty. A dataset needs at least one row.")
    if kind in OWN:
        return read_local({"train": files}, split)
    try:
        return _load(kind, files, split, data_files=[str(file) for file in files])
    except Exception as error:  # as above
        raise ValueError(f"Cannot read {name!r}: {sentence(_reason(error))}") from error


def _load(path: str, files: Sequence[Path], split: str, **kwargs: Any) -> Dataset:
    """`load_dataset` for local files, with a cache that notices every change of them."""
    try:
        with quiet_cards():
            cache = str(cache_folder(files))
            dataset = cast(Dataset, datasets.load_dataset(path, split=split, cache_dir=cache, **kwargs))
        dataset.data.validate(full=True)  # text files may hold bytes that are no UTF-8, until one is looked at
        return dataset
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"it has no rows in split {split!r}") from None


def _load_from_hub(name: str, split: str, config: str | None) -> Dataset:
    try:
        return cast(Dataset, datasets.load_dataset(name, config, split=split))
    except DatasetNotFoundError as error:
        raise FileNotFoundError(
            f"No dataset {name!r}: there is no such local folder or file (looked in {Path(name).absolute()}), and the "
            f"Hugging Face Hub says: {error}"
        ) from error
    except ConnectionError as error:
        raise ConnectionError(
            f"No local folder or file {name!r} (looked in {Path(name).absolute()}), and the Hugging Face Hub cannot "
            f"be reached: {sentence(error)} If you meant a local path, begin it with './'."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        raise _no_such_split(name, split, datasets.get_dataset_split_names(name, config)) from error


def _base_splits(split: str) -> list[str]:
    """`train[:10%]+test` is made of train and test."""
    return [part.split("[")[0].strip() for part in split.split("+")]


class NoSuchSplit(ValueError):
    """A dataset has no split of that name; the message names those that it has."""


def _no_such_split(name: str, split: str, existing: Iterable[str]) -> NoSuchSplit:
    near = difflib.get_close_matches(split, list(existing), n=1)
    return NoSuchSplit(
        f"The dataset {name!r} has no split {split!r}; it has: {', '.join(existing)}."
        + (f" Did you mean {near[0]!r}?" if near else "")
        + " Choose with dataset_train_split and dataset_test_split."
    )


def _reason(error: BaseException) -> str:
    """The innermost message: `datasets` wraps what the reader of the format said."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__


# --- Rows and columns -------------------------------------------------------------------------


def sample_rows(dataset: Dataset, count: int | None, seed: int = 0) -> Dataset:
    """Take `count` rows at random, always the same ones for one seed, in the order in which they stand.

    The first rows would be a poor sample, since files are often sorted. A larger count contains the smaller one.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        count (`int`, *optional*): How many. `None`, or as many as there are, means all.
        seed (`int`, *optional*, defaults to 0): Not the seed of the training, so that runs with other seeds compare.
    """
    if count is None or count >= len(dataset):
        return dataset
    drawn = np.random.default_rng(seed).permutation(len(dataset))[:count]
    logger.info("Taking %d of %d rows.", count, len(dataset))
    return dataset.select(np.sort(drawn))
