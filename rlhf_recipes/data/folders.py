"""Folders of data files, as `datasets` reads them: which file belongs to which split, and what would read it."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from huggingface_hub import metadata_load

from rlhf_recipes import filenames
from rlhf_recipes.data.local_files import kind_of

logger = logging.getLogger(__name__)


def folder_builder(folder: Path, config: str | None = None) -> Any:
    """What `datasets` finds in a folder: which files belong to which split, and what would read them."""
    with quiet_cards():
        return datasets.load_dataset_builder(str(folder), name=config)


def check_one_kind(folder: Path) -> None:
    """Refuse files of two formats: `datasets` would read those of one, and say nothing of the others."""
    card = folder / filenames.README
    if card.is_file() and "configs" in (metadata_load(card) or {}):
        return  # it says which files are read
    try:
        found = DataFilesDict.from_patterns(get_data_patterns(str(folder)), base_path=str(folder))
    except FileNotFoundError:
        return  # nothing there
    kinds: dict[str, str] = {}
    for files in found.values():
        for file in files:
            kind, name = kind_of(file), Path(file).name
            if kind == "text" and not any(str(split) in name for split in found):
                continue  # a LICENSE.txt, or notes
            if kind is not None:
                kinds.setdefault(kind, name)
    if len(kinds) > 1:
        named = " and ".join(f"{kind} ({name})" for kind, name in kinds.items())
        raise ValueError(
            f"The folder {str(folder)!r} has files of {len(kinds)} formats: {named}. All files of a dataset are of "
            "one: bring them into one, or move away what does not belong to it."
        )


def listed_splits(name: str, config: str | None = None) -> list[str]:
    """The splits that a folder or a dataset of the Hub names; none where that cannot be told."""
    try:
        if Path(name).is_dir():
            return [str(split) for split in folder_builder(Path(name), config).config.data_files]
        return list(datasets.get_dataset_split_names(name, config))
    except Exception:  # of as many kinds as there are places; loading raises it again, and says what to do
        logger.debug("Cannot list the splits of %s.", name, exc_info=True)
        return []


def visible_files(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    return [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]


@contextlib.contextmanager
def quiet_cards() -> Iterator[None]:
    """Inside, nothing is said of a README.md without a YAML header."""
    card_logger = logging.getLogger("huggingface_hub.repocard")
    level = card_logger.level
    card_logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        card_logger.setLevel(level)
