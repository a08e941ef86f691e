"""From a name to rows with known columns: where a dataset lies, which format it has, and which rows say nothing."""

import difflib
import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

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

Format = Literal["pairs", "ratings", "prompts"]
FORMAT_COLUMNS: Mapping[Format, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "ratings": ("completion", "score"),
    "prompts": ("prompt",),
}
# What others call these columns where the spelling alone would not tell.
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("question", "query", "instruction", "input", "text"),
    "completion": ("response", "answer", "output", "reply", "text", "review"),
    "chosen": ("preferred", "winner", "accepted", "better"),
    "rejected": ("dispreferred", "loser", "worse"),
    "score": ("rating", "reward", "stars", "grade", "points"),
    "votes": ("ratings", "annotations"),
    "label": ("class", "good", "is_good", "liked", "thumbs_up", "feedback"),
    "completions": ("responses", "answers", "outputs", "replies", "candidates", "texts", "steps"),
    "ranks": ("ranking", "order", "positions"),
    "best": ("best_index", "most"),
    "worst": ("worst_index", "least"),
    "scores": ("aspects", "attributes", "criteria", "rewards"),
    "labels": ("correct", "correctness", "step_labels"),
    "clicks": ("clicked", "click_count"),
    "views": ("impressions", "shown", "displays"),
    "dwell_seconds": ("dwell", "dwell_time", "seconds", "duration", "time_on_page", "reading_time"),
    "chosen_votes": ("wins", "votes_for", "preferred_votes"),
    "rejected_votes": ("losses", "votes_against", "dispreferred_votes"),
}
# A character that a reader would see: no white space, and none of the zero-width ones, which `str.strip` keeps.
_VISIBLE = re.compile(r"[^\s\u200b\u200c\u200d\u2060\ufeff]")


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


def detect_format(column_names: Iterable[str]) -> Format:
    """Tell what kind of data this is from its columns.

    Returns:
        `str`: `"pairs"` (`chosen`, `rejected`), else `"ratings"` (`completion`, `score`, perhaps `votes`), else
        `"prompts"` (`prompt`).

    Raises:
        `ValueError`: if the columns are of no known format.

    Example:
        >>> detect_format(["prompt", "chosen", "rejected"]), detect_format(["prompt", "id"])
        ('pairs', 'prompts')
    """
    present = list(column_names)
    for name, columns in FORMAT_COLUMNS.items():
        if set(columns) <= set(present):
            return name
    raise ValueError(_missing_columns(present, list(FORMAT_COLUMNS.values()), "The data"))


def require_columns(
    dataset: Dataset, needed: Sequence[str] | Sequence[Sequence[str]], what_for: str
) -> tuple[str, ...]:
    """Check that the columns are there before anything is tokenized.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        needed (`Sequence[str]` or `Sequence[Sequence[str]]`):
            The columns, or alternatives of them, the preferred one first.
        what_for (`str`): Who needs them; the first words of the error, such as `"PPO"`.

    Returns:
        `tuple[str, ...]`: The first alternative that is there in full.

    Raises:
        `ValueError`: if none is. It says which exist, which are near, and how to rename.
    """
    alternatives = [needed] if all(isinstance(column, str) for column in needed) else needed
    choices = [tuple(cast(Sequence[str], columns)) for columns in alternatives]
    for columns in choices:
        if set(columns) <= set(dataset.column_names):
            return columns
    raise ValueError(_missing_columns(dataset.column_names, choices, what_for))


def _missing_columns(present: Sequence[str], choices: Sequence[Sequence[str]], what_for: str) -> str:
    wanted = ", or ".join(" and ".join(f"'{column}'" for column in columns) for columns in choices)
    message = f"{what_for} needs the columns {wanted}. The dataset has: {', '.join(present) or 'none'}."
    renames: dict[str, str] = {}
    for column in dict.fromkeys(column for columns in choices for column in columns if column not in present):
        free = [name for name in present if name not in renames and not any(name in columns for columns in choices)]
        near = _nearest_column(column, free)
        if near:
            renames[near] = column
    if renames:
        calls = ", ".join(f"`dataset.rename_column({old!r}, {new!r})`" for old, new in renames.items())
        return f"{message} Perhaps {calls} and save it, or rename them in the file."
    return f"{message} Rename columns with `dataset.rename_column(old, new)` and save it, or in the file."


def _nearest_column(column: str, present: Sequence[str]) -> str | None:
    lowered = {name.lower().strip(): name for name in present}
    synonyms = [word for word in SYNONYMS.get(column, ()) if word in lowered]
    near = difflib.get_close_matches(column, lowered, n=1, cutoff=0.7) or synonyms
    return lowered[near[0]] if near else None


# --- Text -------------------------------------------------------------------------------------


def is_conversational(value: Any) -> bool:
    """Whether one value of a column is a list of messages and not text.

    TRL's function of this name looks at one column of a whole row, of its own choosing.

    Example:
        >>> is_conversational([{"role": "user", "content": "Hello"}]), is_conversational("Hello")
        (True, False)
    """
    return isinstance(value, list) and all(isinstance(message, dict) and "role" in message for message in value)


def drop_blank(dataset: Dataset, columns: Sequence[str]) -> tuple[Dataset, int]:
    """Leave out rows in which one of the columns says nothing, and log how many.

    Text is blank if it is `None` or has nothing but white space and zero-width characters. A conversation is blank if
    it has no messages, or if its last message, which is the one to answer or to learn, has neither text nor tool
    calls.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        columns (`Sequence[str]`): The columns that must say something.

    Returns:
        `tuple[Dataset, int]`: The other rows in their order, and how many were left out.

    Raises:
        `ValueError`: if a column does not exist, or if no row is left.
        `TypeError`: if a column holds neither text nor messages.
    """
    require_columns(dataset, columns, "Looking for blank rows")
    blank_in: Counter[str] = Counter()
    kept, first_blank = [], None
    for row_number, row in enumerate(dataset.select_columns(list(columns))):
        blank = [column for column in columns if is_blank(row[column], column, row_number)]
        blank_in.update(blank)
        if not blank:
            kept.append(row_number)
        elif first_blank is None:
            first_blank = row_number
    dropped = len(dataset) - len(kept)
    if not dropped:
        return dataset, 0
    where = ", ".join(f"{count} in {column!r}" for column, count in blank_in.items())
    if not kept:
        raise ValueError(f"All {dropped} rows are empty or blank ({where}). Look at the data, or name another column.")
    logger.warning(
        "Left out %d of %d rows, empty or blank: %s; the first is row %d.", dropped, len(dataset), where, first_blank
    )
    return dataset.select(kept), dropped


def is_blank(value: Any, column: str, row_number: int) -> bool:
    if value is None:
        return True
    if isinstance(value, str):
        return not _VISIBLE.search(value)
    if is_conversational(value):
        return not value or (_says_nothing(value[-1].get("content")) and not value[-1].get("tool_calls"))
    raise TypeError(
        f"Column {column!r} holds neither text nor messages in row {row_number}, but a {type(value).__name__}: "
        f"{str(value)[:60]}. Make it text, for instance with `dataset.cast_column({column!r}, Value('string'))`."
    )


def _says_nothing(content: Any) -> bool:
    """Content is text, or a list of parts as of a model that sees: a part that is no text says something."""
    if isinstance(content, list):
        return all(part.get("type", "text") == "text" and _says_nothing(part.get("text")) for part in content)
    return not _VISIBLE.search(content or "")
