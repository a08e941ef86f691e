"""Which checkpoint a run goes on from: the last that is whole, judged by its files and without loading a tensor.

A run that is killed while it saves, or a disk that fills up, leaves a folder that looks like a checkpoint. Reading it
would end in a traceback of a library, hours into a queue. So every file is looked at first: headers, sizes and the
directories at the end of zip files, which is fast whatever the model.
"""

import itertools
import json
import logging
import math
import os
import pickletools
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from rlhf_recipes import filenames
from rlhf_recipes.texts import readable_bytes

logger = logging.getLogger(__name__)

# How torch.save began before it wrote zip files: a pickled magic number, then four more pickles, then raw numbers.
LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
ABSENT = object()


def find_checkpoint(output_dir: str | Path, asked: str | None, required: Sequence[str] = ()) -> str | None:
    """Find the checkpoint from which a run goes on. Nothing is deleted.

    Args:
        output_dir (`str` or `Path`):
            The folder of the run.
        asked (`str`, *optional*):
            A checkpoint, or `"auto"` for the last whole one in the folder, if there are any. Each newer one that is
            not whole is named in a warning. Where none was ever finished, as after a kill during the first save, the
            run begins anew and says so; what was begun is kept under the name `interrupted-checkpoint-*`, so that
            the files of two runs do not mix.
        required (`Sequence[str]`, *optional*):
            Files that a checkpoint of this recipe has besides those of the Trainer; see [`why_broken`].

    Returns:
        `str`: the checkpoint, or `None` for a run from the beginning.

    Raises:
        `FileNotFoundError`: if the checkpoint that was named is none.
        `ValueError`: if the checkpoint that was named is not whole, or, with `"auto"`, if some were finished and none
            is whole any more: beginning anew would hide that the run is lost.
        `FileExistsError`: if none was named and an earlier run left some, whole or not. Checkpoints are told apart by
            their step alone: the Trainer would keep the old ones, delete the new, and go on from the wrong one later.
    """
    if asked not in (None, "auto"):
        return _named(Path(output_dir), str(asked), required)
    last, broken = _last_whole(Path(output_dir), required)
    if asked is None and (last is not None or broken):
        found = str(last) if last is not None else str(next(iter(broken)))
        raise FileExistsError(
            f"{found} is a checkpoint of an earlier run. Go on from it with --resume_from_checkpoint auto, or, to "
            "start anew, name another --output_dir or delete the checkpoints."
        )
    reasons = "; ".join(f"{folder.name} is not whole: {why}" for folder, why in broken.items())
    if last is not None and broken:
        logger.warning("%s; going on from %s", reasons, last.name)
    elif broken and not any(_was_finished(folder) for folder in broken):
        _put_aside(broken, reasons)
    elif broken:
        raise ValueError(
            f"No checkpoint in {str(output_dir)!r} is whole: {reasons}. To start anew, name another --output_dir or "
            "delete the checkpoints."
        )
    return str(last) if last is not None else None


def why_broken(folder: str | Path, required: Sequence[str] = ()) -> str | None:
    """Say what is wrong with a checkpoint, or `None` if it is whole as far as can be seen without loading it.

    Seen are, in the folder and those below it (`critic/`, DeepSpeed's `global_step*/`): missing files, shards and
    folders that an index names, empty files, JSON that does not parse, safetensors shorter or longer than their header
    says, and torch files without their end. Not seen are numbers that changed inside a file of the right length.

    Args:
        folder (`str` or `Path`): The checkpoint.
        required (`Sequence[str]`, *optional*): Files that must be there, relative to the folder.

    Returns:
        `str`: such as `"optimizer.pt is cut off after 3 MB"`, of the first fault that is found.
    """
    folder = Path(folder)
    if not (folder / filenames.TRAINER_STATE).is_file():
        return f"it has no {filenames.TRAINER_STATE}, which is written last"
    missing = [name for name in required if not (folder / name).is_file()]
    if missing:
        return f"it has no {', '.join(missing)}"
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder)
        check = CHECKS.get(file.suffix)
        # Hidden files are a writer's temporary ones or a tool's notes; nobody reads them as part of a checkpoint.
        if check is None or any(part.startswith(".") for part in name.parts):
            continue
        try:
            fault = "is empty" if file.stat().st_size == 0 else check(file)
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault:
            return f"{name} {fault}"
    return _fault_of_deepspeed(folder)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any], ignore: Set[str] = frozenset()) -> list[str]:
    """What has changed between the settings in a checkpoint and those of now, one readable line for each.

    ```python
    >>> differences({"learning_rate": 1e-05, "seed": 1}, {"learning_rate": 3e-06, "seed": 1}, {"output_dir"})
    ['learning_rate: 1e-05 in the checkpoint, 3e-06 now']
    ```

    Args:
        saved (`Mapping`): Settings as read from the checkpoint. Mappings inside are compared name by name.
        now (`Mapping`): The settings of this run. A tuple equals the list that JSON has made of it.
        ignore (`set[str]`): Names that may differ; `"a.b"` is the name `b` in the mapping `a`.
    """
    lines: list[str] = []
    for name in dict.fromkeys([*saved, *now]):
        before, after = saved.get(name, ABSENT), now.get(name, ABSENT)
        if name in ignore or _as_json(before) == _as_json(after):
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            inner = {entry.removeprefix(f"{name}.") for entry in ignore if entry.startswith(f"{name}.")}
            lines += [f"{name}.{line}" for line in differences(before, after, inner)]
            continue
        then = "not in the checkpoint" if before is ABSENT else f"{before!r} in the checkpoint"
        lines.append(f"{name}: {then}, {'not given' if after is ABSENT else repr(after)} now")
    return lines


def _named(output_dir: Path, asked: str, required: Sequence[str]) -> str:
    why = why_broken(asked, required)
    if why is None:
        return asked
    last, _ = _last_whole(output_dir, required)
    last_one = f"The last in {str(output_dir)!r} that is whole is {last or 'none'}."
    if not Path(asked).is_dir():
        raise FileNotFoundError(f"{asked!r} is no checkpoint. {last_one}")
    raise ValueError(f"{asked!r} is not whole: {why}. {last_one}")


def _last_whole(folder: Path, required: Sequence[str]) -> tuple[Path | None, dict[Path, str]]:
    """The last whole checkpoint, and those after it with what is wrong with each, newest first."""

    start = len(PREFIX_CHECKPOINT_DIR) + 1
    found = [entry for entry in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if entry.name[start:].isdecimal()]
    broken: dict[Path, str] = {}
    for entry in sorted(found, key=lambda entry: int(entry.name[start:]), reverse=True):
        why = why_broken(entry, required)
        if why is None:
            return entry, broken
        broken[entry] = why
    return None, broken


def _was_finished(folder: Path) -> bool:
    """Whether the Trainer came to the end of it, whatever has become of its files since."""
    return (folder / filenames.TRAINER_STATE).is_file() and _fault_of_json(folder / filenames.TRAINER_STATE) is None


def _put_aside(unfinished: Iterable[Path], reasons: str) -> None:
    """Rename checkpoints that were never finished. The first process does it; the others begin anew all the same."""
    if os.environ.get("RANK", "0") != "0":
        return
    for folder in unfinished:
        place = folder.with_name(f"interrupted-{folder.name}")
        numbers = itertools.count(2)
        while place.exists():
            place = folder.with_name(f"interrupted-{folder.name}-{next(numbers)}")
        folder.rename(place)
        reasons += f"; it is kept as {place.name}"
    logger.warning("No checkpoint was ever finished (%s), so the run begins anew.", reasons)


def _fault_of_json(file: Path) -> str | None:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        return f"is no JSON, {readable_bytes(file.stat().st_size)} long ({error})"
    if file.name == filenames.TRAINER_STATE and not (content and isinstance(content, dict)):
        return "holds no state of a Trainer"
    shards = set(content["weight_map"].values()) if file.name.endswith(".index.json") else set()
    missing = sorted(shard for shard in shards if not (file.parent / shard).is_file())
    return f"names {', '.join(missing)}, which is not there" if missing else None


def _fault_of_safetensors(file: Path) -> str | None:
    """Read the length of the header (8 bytes, little-endian) and the header, which says where each tensor ends."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            return f"is cut off after {readable_bytes(size)}, in its header"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, LookupError, TypeError):
            return "has no header of safetensors"
    whole = 8 + length + max(ends, default=0)
    if size < whole:
        return f"is cut off after {readable_bytes(size)} of {readable_bytes(whole)}"
    return f"has {size - whole} bytes too many" if size > whole else None


def _fault_of_torch(file: Path) -> str | None:
    """A zip file, whose directory is at its end, or the pickles of torch before 1.6; nothing is unpickled."""
    cut = f"is cut off after {readable_bytes(file.stat().st_size)}"
    with file.open("rb") as stream:
        start = stream.read(len(LEGACY_TORCH))
        stream.seek(0)
        if start.startswith(b"PK"):
            try:
                zipfile.ZipFile(stream).close()
            except zipfile.BadZipFile:
                return cut
            return None
        if not start.startswith(b"\x80"):
            # A name ending in .bin may belong to anything, but .pt and .pth are torch's.
            return None if file.suffix == ".bin" else "is neither a zip file nor a pickle, as torch would write it"
        try:
            for _ in range(5 if start == LEGACY_TORCH else 1):
                for _ in pickletools.genops(stream):
                    pass
        except ValueError:
            return cut
    return None


def _fault_of_shard(file: Path) -> str | None:
    """Of torch's distributed checkpoints, whose format has no end that could be missing: it must not be empty."""
    return None


def _fault_of_deepspeed(folder: Path) -> str | None:
    """DeepSpeed reads the folder that the file `latest` names; it writes that file last."""
    steps = sorted(entry.name for entry in folder.glob("global_step*") if entry.is_dir())
    latest = folder / "latest"
    if not steps and not latest.exists():
        return None
    if not latest.is_file() or not latest.read_text(encoding="utf-8", errors="replace").strip():
        return f"{steps[0] if steps else 'latest'} is not finished: the file latest does not name it"
    named = latest.read_text(encoding="utf-8", errors="replace").strip()
    if named not in steps or not any((folder / named).iterdir()):
        return f"latest names {named}, which is not there"
    return None


def _as_json(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, Mapping):
        return {name: _as_json(entry) for name, entry in value.items()}
    # NaN differs from itself, and True equals 1 although a setting that changed from one to the other is another.
    return (type(value) is bool, "nan" if isinstance(value, float) and math.isnan(value) else value)


CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".json": _fault_of_json,
    ".safetensors": _fault_of_safetensors,
    ".pt": _fault_of_torch,
    ".pth": _fault_of_torch,
    ".bin": _fault_of_torch,
    ".distcp": _fault_of_shard,
}


def check_best_metric(args: TrainingArguments, eval_dataset: Any) -> None:
    """Refuse, before training, to look for the best checkpoint by a figure that no evaluation will have.

    Of several named sets the Trainer logs `eval_<set>_<figure>`, and so finds no `eval_<figure>` when it is too late.

    Raises:
        `ValueError`: if the best checkpoint is asked for, and `metric_for_best_model` is a figure of none of the sets.
    """
    wanted = args.load_best_model_at_end or args.save_strategy == "best"
    if not wanted or not isinstance(eval_dataset, Mapping) or not eval_dataset:
        return
    metric = (args.metric_for_best_model or "loss").removeprefix("eval_")
    if any(metric.startswith(f"{name}_") for name in eval_dataset):
        return
    first = next(iter(eval_dataset))
    raise ValueError(
        f"The best checkpoint is wanted, by metric_for_best_model {metric!r}, but there are {len(eval_dataset)} "
        f"evaluation sets with figures of their own: {', '.join(map(repr, eval_dataset))}. Name a figure of one of "
        f"them, such as metric_for_best_model='{first}_{metric}', or give a single eval_dataset."
    )
