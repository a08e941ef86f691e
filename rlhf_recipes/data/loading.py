"""From a name to rows with known columns: where a dataset lies, which format it has, and which rows say nothing."""

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
from datasets import Dataset
from datasets.exceptions import DatasetNotFoundError

logger = logging.getLogger(__name__)

# The builder of `datasets` that reads each kind of file.
FILE_BUILDERS: Mapping[str, str] = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}

# Endings that no Hub id has, so that a name with one of them is a file, also where we cannot read it.
OTHER_FILE_ENDINGS = (
    ".tsv",
    ".xlsx",
    ".xls",
    ".arrow",
    ".gz",
    ".zip",
    ".zst",
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

    Args:
        dataset_name (`str`):
            A local folder (data files, or made by `save_to_disk`), a local file (.jsonl, .json, .csv, .parquet, .txt),
            or the id of a dataset on the Hugging Face Hub. What exists locally comes first.
        dataset_config (`str`, *optional*):
            The configuration, of a dataset that has several.
        dataset_train_split (`str`, *optional*, defaults to `"train"`):
            The split to train on. A single file is all one split, `train`.
        dataset_test_split (`str`, *optional*, defaults to `"test"`):
            The split to evaluate on.
        max_train_samples (`int`, *optional*):
            Train on that many rows, drawn by [`sample_rows`]. `None` means all.
        max_eval_samples (`int`, *optional*):
            Evaluate on that many rows, drawn likewise.

    Raises:
        `ValueError`: if a number of rows is less than 1.
    """

    help_title = "Data"

    dataset_name: str = field(
        metadata={
            "help": "A local folder, a local file (.jsonl .json .csv .parquet .txt), or a dataset id of the Hugging "
            "Face Hub."
        }
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Which configuration, of a dataset that has several."}
    )
    dataset_train_split: str = field(
        default="train", metadata={"help": "Split to train on. A single file is all one split, `train`."}
    )
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Train on N rows drawn at random, always the same ones. Default: all."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Evaluate on N rows drawn at random, always the same ones. Default: all."}
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
    even if its date was kept.

    Args:
        name (`str`): The folder, file or id, as in [`DataArguments`].
        split (`str`): The split, or a slice of it such as `train[:10%]` (not for folders made by `save_to_disk`).
        config (`str`, *optional*): The configuration, of a dataset that has several.

    Returns:
        [`~datasets.Dataset`]: At least one row.

    Raises:
        `FileNotFoundError`: if there is nothing of that name.
        `ConnectionError`: if the name is none of a local path, and the Hub cannot be reached.
        `ValueError`: if the split does not exist, a file cannot be read, or there are no rows.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        dataset = _load_folder(path, split, config)
    elif path.is_file():
        dataset = _load_file(path, split)
    elif _must_be_local(name):
        raise FileNotFoundError(
            f"No dataset at {name!r} (looked in {path.absolute()}). Give a local folder, a local file "
            f"({' '.join(FILE_BUILDERS)}) or a dataset id of the Hugging Face Hub. The folders under starter/ are "
            "made by `python -m rlhf_recipes.data.starter`."
        )
    else:
        dataset = _load_from_hub(name, split, config)
    if len(dataset) == 0:
        raise ValueError(f"The dataset {name!r} has no rows in split {split!r}. At least one is needed.")
    return dataset


def _must_be_local(name: str) -> bool:
    return (
        name.startswith((".", "/", "~"))
        or name.count("/") > 1
        or name.lower().endswith((*FILE_BUILDERS, *OTHER_FILE_ENDINGS))
        or name.split("/")[0] in ("starter", "runs")
    )


def _load_folder(folder: Path, split: str, config: str | None) -> Dataset:
    if (folder / "dataset_dict.json").is_file():
        saved = datasets.load_from_disk(str(folder))
        if split not in saved:
            raise _no_such_split(str(folder), split, list(saved))
        return saved[split]
    if (folder / "state.json").is_file():
        single = cast(Dataset, datasets.load_from_disk(str(folder)))
        only = str(single.split or "train")
        if split != only:
            raise _no_such_split(str(folder), split, [only])
        return single
    files = _visible_files(folder)
    try:
        return _load(str(folder), files, split, name=config)
    except FileNotFoundError as error:
        raise ValueError(
            f"The folder {str(folder)!r} holds no data files ({' '.join(FILE_BUILDERS)}), so it is no dataset. "
            "Name the folder in which the files lie."
        ) from error
    except Exception as error:  # as many kinds as there are file formats; each is raised again with what to do
        splits = listed_splits(str(folder), config)
        if splits and not set(_base_splits(split)) <= set(splits):
            raise _no_such_split(str(folder), split, splits) from error
        for file in files:
            if file.suffix.lower() in FILE_BUILDERS:
                _load_file(file, "train")  # raises for the file that cannot be read, and names it
        raise ValueError(f"Cannot read the dataset folder {str(folder)!r}: {_reason(error)}") from error


def _load_file(file: Path, split: str) -> Dataset:
    builder = FILE_BUILDERS.get(file.suffix.lower())
    if builder is None:
        raise ValueError(
            f"Cannot read {str(file)!r}: files may end in {', '.join(FILE_BUILDERS)}. Convert it to one of these."
        )
    if _base_splits(split) != ["train"]:
        raise ValueError(
            f"{str(file)!r} is a single file, which is all one split, 'train': there is no split {split!r} in it. Put "
            f"the rows for it in a file of their own, in one folder with this one (train{file.suffix}, "
            f"{(_base_splits(split) or ['test'])[0]}{file.suffix}), and name the folder."
        )
    if file.stat().st_size == 0 or (builder != "parquet" and not _has_text(file)):
        raise ValueError(f"The file {str(file)!r} is empty. A dataset needs at least one row.")
    try:
        return _load(builder, [file], split, data_files=str(file))
    except Exception as error:  # as above
        mistake = _json_mistake(file) if builder == "json" else ""
        raise ValueError(f"Cannot read {str(file)!r}{mistake or f': {_reason(error)}'}.") from error


def _load(path: str, files: Sequence[Path], split: str, **kwargs: Any) -> Dataset:
    """`load_dataset` for local files, with a cache that notices every change of them.

    `datasets` looks at paths and modification times alone, and serves stale rows if a file was replaced by one of the
    same date (`cp -p`, `rsync -t`, unpacked archives). No copy keeps the time of the inode's last change, so that is
    asked too, and each state of the files gets a cache folder of its own.
    """
    states = [(str(file.absolute()), file.stat()) for file in files]
    key = repr([(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states])
    cache = Path(datasets.config.HF_DATASETS_CACHE) / "rlhf_recipes" / hashlib.sha256(key.encode()).hexdigest()[:16]
    card_logger = logging.getLogger("huggingface_hub.repocard")
    level = card_logger.level
    card_logger.setLevel(logging.ERROR)  # it warns of every README.md without a YAML header
    try:
        dataset = cast(Dataset, datasets.load_dataset(path, split=split, cache_dir=str(cache), **kwargs))
        dataset.data.validate(full=True)  # the JSON reader lets bytes pass that are no UTF-8, until one is looked at
        return dataset
    except ValueError as error:
        if "corresponds to no data" not in str(error):
            raise
        raise ValueError(f"it has no rows in split {split!r}") from None
    finally:
        card_logger.setLevel(level)


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
            f"be reached: {error}. If you meant a local path, begin it with './'."
        ) from error
    except ValueError as error:
        if not str(error).startswith("Unknown split"):
            raise
        raise _no_such_split(name, split, datasets.get_dataset_split_names(name, config)) from error


def _visible_files(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


def listed_splits(name: str, config: str | None = None) -> list[str]:
    """The splits that a folder or a dataset of the Hub names; none where that cannot be told."""
    try:
        return list(datasets.get_dataset_split_names(name, config))
    except Exception:  # of as many kinds as there are places; loading raises it again, and says what to do
        logger.debug("Cannot list the splits of %s.", name, exc_info=True)
        return []


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


def _has_text(file: Path) -> bool:
    with file.open("rb") as stream:
        return any(line.strip() for line in stream)


def _json_mistake(file: Path) -> str:
    """Where a JSON file goes wrong. The reader of `datasets` counts rows from the middle of a block.

    Returns:
        `str`: Such as `", line 2, column 7: Expecting value"`, or nothing if all of it is JSON.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return f": not UTF-8 text ({error})"
    # A file that opens with a bracket is one list of rows; any other has one row per line.
    parts = [text] if text.lstrip().startswith("[") else text.split("\n")
    for line, part in enumerate(parts):
        try:
            json.loads(part if part.strip() else "{}")
        except json.JSONDecodeError as error:
            return f", line {line + error.lineno}, column {error.colno}: {error.msg}"
    return ""


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
