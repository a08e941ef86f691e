"""Where a run writes: a folder of its own, nothing of the user's deleted, and no file half written."""

import json
import math
import os
import resource
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

# Names the recipe whose run a folder holds; written first, so that an interrupted run is known too.
RUN_MARKER = ".recipe"


def prepare_output_dir(path: str | Path, recipe: str, overwrite: bool = False) -> Path:
    """Make the folder of a run, or accept it if it is empty or holds a run of the same recipe. Nothing is deleted.

    Args:
        path (`str` or `Path`):
            The folder. Its parents are made too.
        recipe (`str`):
            Name of the recipe, such as `"reward"`. It is noted in the folder, in a file `.recipe`.
        overwrite (`bool`, *optional*, defaults to `False`):
            Write into the folder whatever it holds. Files of the same names are replaced, all others stay.

    Returns:
        `Path`: the folder.

    Raises:
        `NotADirectoryError`: if there is a file of that name.
        `FileExistsError`: if the folder holds something else, or a run of another recipe.
    """
    folder = Path(path).expanduser()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"The output directory {str(path)!r} is a file. Name a folder with --output_dir.")
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / RUN_MARKER
    found = sorted(entry.name for entry in folder.iterdir())
    holds = marker.read_text(encoding="utf-8").strip() if marker.is_file() else None
    if found and holds != recipe and not overwrite:
        shown = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        what = f"a run of the recipe {holds!r}" if holds else f"other things ({shown})"
        raise FileExistsError(
            f"The output directory {str(path)!r} holds {what}, and not an earlier run of {recipe!r}. Name a new or "
            "empty folder with --output_dir, or give --overwrite_output_dir to write among them: nothing is deleted, "
            "but files of the same names are replaced."
        )
    if holds != recipe:  # else another process may be reading it just now
        marker.write_text(recipe + "\n", encoding="utf-8")
    return folder


def write_json(path: str | Path, data: Any) -> Path:
    """Write one JSON document, at once: whoever looks finds the old file or the new one, never half of it.

    Raises:
        `ValueError`: if a number is NaN or infinite, which JSON cannot say.
    """
    return _write_at_once(path, json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write one JSON object per line, at once (see [`write_json`])."""
    return _write_at_once(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _write_at_once(path: str | Path, text: str) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, because a file can only be renamed at once within one file system.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogatepass") as stream:
            stream.write(text)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # a temporary file is for its owner alone; this one is not temporary
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise
    return target


def peak_memory_gb() -> dict[str, float]:
    """Most memory that this process has used so far, in GB of 10^9 bytes.

    Returns:
        `dict[str, float]`: `peak_memory_gb`, of the process (resident set), and with a GPU `peak_gpu_memory_gb`, the
        most that torch has reserved on any of them.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bytes_used = peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
    memory = {"peak_memory_gb": round(bytes_used / 1e9, 3)}
    if torch.cuda.is_available():
        devices = range(torch.cuda.device_count())
        memory["peak_gpu_memory_gb"] = round(
            max(torch.cuda.max_memory_reserved(device) for device in devices) / 1e9, 3
        )
    return memory


def json_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that JSON can say: it has no NaN, which an fp16 gradient may be, and knows no numpy or torch."""
    values = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in row.items()}
    return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}
