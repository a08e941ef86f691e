"""Files of rows on this machine: which kind each is, packed or not, and its rows, read once and kept as Arrow.

CSV, TSV and JSON are read here, strictly and whole (`tables.py`, `json_rows.py`); parquet and plain text are read by
`datasets`.
"""

import bz2
import gzip
import hashlib
import itertools
import lzma
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import datasets
import pyarrow as pa
from datasets import Dataset, Features, Value

from rlhf_recipes.data.json_rows import parse_json
from rlhf_recipes.data.tables import Columns, parse_table
from rlhf_recipes.texts import sentence

# The kind of file by its ending; parquet and text are also the names of what reads them in `datasets`.
KINDS: Mapping[str, str] = {
    ".jsonl": "json",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
    ".tsv": "tsv",
    ".ndjson": "json",
}
OWN = ("json", "csv", "tsv")  # those read here
DELIMITERS = {"csv": ",", "tsv": "\t"}
PACKED: Mapping[str, Callable[[Path], Any]] = {
    ".gz": gzip.GzipFile,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: pa.input_stream(str(file), compression="zstd"),
}
UNPACKING_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)

# A new number makes files be read anew that an earlier version of this module has read.
READING = 1


def ending_of(file: str | Path) -> str:
    """The ending of a file's name before that of its packing: `".csv"` of `rows.csv` and of `rows.csv.gz`."""
    suffixes = Path(str(file).lower()).suffixes
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def kind_of(file: str | Path) -> str | None:
    """The kind of a file by its ending, `None` of a kind that holds no rows or is not read here."""
    return KINDS.get(ending_of(file))


def is_empty(file: Path) -> bool:
    """Whether a file, unpacked, has nothing but white space. Of one that cannot be unpacked reading it will tell."""
    try:
        with _opened(file) as stream:
            return not any(line.strip() for line in stream)
    except UNPACKING_ERRORS:
        return False


def read_text(file: Path, encoding: str = "utf-8") -> str:
    """A whole file as text: UTF-8, with or without a mark at its beginning, or UTF-16, which such a mark must tell.

    Raises:
        `ValueError`: if it is none, or cannot be unpacked.
    """
    try:
        with _opened(file) as stream:
            data: bytes = stream.read()
    except UNPACKING_ERRORS as error:
        raise ValueError(f"it cannot be unpacked ({error or type(error).__name__}).") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = data.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"not UTF-8 text (byte {data[error.start]:#04x} in line {line}). Save it as UTF-8, for instance with "
            "`iconv -f latin1 -t utf-8`, where Latin-1 is what it is."
        ) from None
    if "\0" in text:
        raise ValueError(
            "it holds characters of the code 0, so it is no text, or UTF-16 without a mark. Save it as UTF-8."
        )
    return text


def read_local(
    files: Mapping[str, Sequence[Path]], split: str, delimiter: str | None = None, encoding: str = "utf-8"
) -> Dataset:
    """Rows of CSV, TSV or JSON files, those of a split one after the other.

    Args:
        files (`Mapping[str, Sequence[Path]]`): The files of each split.
        split (`str`): A split, or slices of several, such as `train[:10%]+test`.
        delimiter (`str`, *optional*): Of tables; by default a comma in CSV and a tab in TSV.

    Raises:
        `ValueError`: if a file cannot be read; it names the file, and the line where it can.
    """
    parts = {name: _read_split(of_split, name, delimiter, encoding) for name, of_split in files.items()}
    _check_splits(files, parts)
    lengths = {name: len(rows) for name, rows in parts.items()}
    ranges = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
    taken = [parts[part.splitname].select(range(part.from_ or 0, part.to)) for part in ranges]
    whole = len(ranges) == 1 and len(taken[0]) == lengths[ranges[0].splitname]
    return parts[ranges[0].splitname] if whole else datasets.concatenate_datasets(taken)


def _check_splits(files: Mapping[str, Sequence[Path]], parts: Mapping[str, Dataset]) -> None:
    """Splits may differ in some columns; those that share none are no splits of one dataset."""
    (first, rows), *others = parts.items()
    for name, other in others:
        if not set(rows.column_names) & set(other.column_names):
            shown = "; ".join(f"{split} has {', '.join(parts[split].column_names)}" for split in (first, name))
            folder = files[first][0].parent
            raise ValueError(f"Cannot read the dataset folder {str(folder)!r}: column names don't match: {shown}.")


def cache_folder(files: Sequence[Path], *settings: Any) -> Path:
    """A folder for what was made of these files, which is another one after every change of them.

    `datasets` looks at paths and modification times alone, and serves stale rows if a file was replaced by one of the
    same date (`cp -p`, `rsync -t`, unpacked archives). No copy keeps the time of the inode's last change, so that is
    asked too.
    """
    states = [(str(file.absolute()), file.stat()) for file in files]
    key = repr([(name, state.st_size, state.st_mtime_ns, state.st_ctime_ns) for name, state in states] + [*settings])
    return Path(datasets.config.HF_DATASETS_CACHE) / "rlhf_recipes" / hashlib.sha256(key.encode()).hexdigest()[:16]


def without_decimals(dataset: Dataset) -> Dataset:
    """Decimal numbers, as databases export them to parquet, as floats; also inside lists and mappings."""
    features = {name: _as_float(feature) for name, feature in dataset.features.items()}
    return dataset if features == dict(dataset.features) else dataset.cast(Features(features))


def _as_float(feature: Any) -> Any:
    if isinstance(feature, Value):
        return Value("float64") if feature.dtype.startswith("decimal") else feature
    if isinstance(feature, dict):
        return {name: _as_float(part) for name, part in feature.items()}
    if isinstance(feature, datasets.List):
        return datasets.List(_as_float(feature.feature), length=feature.length)
    return feature


def _opened(file: Path) -> Any:
    unpack = PACKED.get(file.suffix.lower())
    return file.open("rb") if unpack is None else unpack(file)


def _read_split(files: Sequence[Path], split: str, delimiter: str | None, encoding: str) -> Dataset:
    arrow = cache_folder(files, split, delimiter, encoding, READING) / "rows.arrow"
    if not arrow.is_file():
        columns: Columns = {}
        count = 0
        for file in files:
            try:
                of_file = _read_columns(file, delimiter, encoding)
            except ValueError as error:
                raise ValueError(f"Cannot read {str(file)!r}{joint(str(error))}") from error
            _append(columns, count, of_file, file)
            count += len(next(iter(of_file.values()), []))
        if not count:
            raise ValueError(f"Cannot read {str(files[0])!r}: it has no rows in split {split!r}.")
        _write_arrow(arrow, _as_dataset(columns, files[0]))
    return Dataset.from_file(str(arrow), split=datasets.NamedSplit(split))


def joint(reason: str) -> str:
    """A reason as it goes on after the name of a file: `, line 2: ...`, or `: not UTF-8 text`."""
    return f", {reason}" if reason.startswith(("line ", "row ")) else f": {reason}"


def _read_columns(file: Path, delimiter: str | None, encoding: str) -> Columns:
    text, kind = read_text(file, encoding), kind_of(file)
    if kind != "json":
        return parse_table(text, delimiter or DELIMITERS[str(kind)])
    rows = parse_json(text, lines=ending_of(file) != ".json")
    names = dict.fromkeys(itertools.chain.from_iterable(rows))
    return {name: [row.get(name) for row in rows] for name in names}


def _append(columns: Columns, count: int, more: Columns, file: Path) -> None:
    """Put the rows of a further file below those read so far; JSON may leave out a column, a table may not."""
    if count and more and not set(more) & set(columns):
        raise ValueError(f"Cannot read {str(file)!r}: its column names don't match. {_differing(columns, more)}")
    if count and kind_of(file) != "json" and set(more) != set(columns):
        raise ValueError(f"Cannot read {str(file)!r}: its header is another one. {_differing(columns, more)}")
    length = len(next(iter(more.values()), []))
    for name in {**columns, **more}:
        columns.setdefault(name, [None] * count).extend(more.get(name, [None] * length))


def _differing(columns: Columns, more: Columns) -> str:
    return f"It has {', '.join(more)}; the files of the split before it have {', '.join(columns)}."


def _as_dataset(columns: Columns, file: Path) -> Dataset:
    made = {}
    for name, values in columns.items():
        try:
            # one column at a time, so that the error can name it
            made[name] = Dataset.from_dict({name: values}, on_mixed_types="use_json")
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError, ValueError) as error:
            raise ValueError(
                f"Cannot read {str(file)!r}: column {name!r} cannot be held: {sentence(error)}"
            ) from error
    return datasets.concatenate_datasets(list(made.values()), axis=1)


def _write_arrow(file: Path, dataset: Dataset) -> None:
    """At once, since other processes may read the same files at the same time."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f".{os.getpid()}.{file.name}")
    sink: BinaryIO
    with unfinished.open("wb") as sink, pa.ipc.new_stream(sink, dataset.data.schema) as writer:
        writer.write_table(dataset.data.table, max_chunksize=1000)
    os.replace(unfinished, file)
