"""Lay down the starter kit: a small language model, a small encoder and human ratings, as plain folders.

Each part of `manifest.json` becomes one folder. On its way a part passes these stages, each one function:

    is_ready -> fetch_wheel | fetch_from_hub -> extract -> convert_causal_lm | copy_files | build_ratings
             -> write_card -> write_marker -> publish

Fetching is in `fetch.py`, and what becomes of rated sentences in `sentences.py`.

Everything is made in `OUTPUT_DIR/.staging` and moved to its place by one rename, with the marker `.complete.json`
already inside. So a folder is either whole or not there, whenever the process is killed. The wheels are only archives
here: they are never installed and nothing in them is run.
"""

import errno
import io
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

from rlhf_recipes import filenames
from rlhf_recipes.data.starter.fetch import (
    Part,
    Say,
    StarterKitError,
    extract,
    fetch_from_hub,
    fetch_wheel,
    file_sha256,
    progress,
    wheel_file,
)
from rlhf_recipes.data.starter.sentences import build_splits
from rlhf_recipes.texts import sentence

logger = logging.getLogger(__name__)
MARKER = ".complete.json"
PAD_TOKEN = "<|endoftext|>"


def lay_down(output_dir: Path, parts: Sequence[Part], source: str | None = None, say: Say = logger.info) -> None:
    """Make every part that is not there yet; parts that are there cost a look at their marker and no network.

    Args:
        output_dir (`Path`): Where the folders go. Made if missing.
        parts (`Sequence[Part]`): What to make.
        source (`str`, *optional*): `"pypi"` or `"hub"`. A complete part from the other source is then made anew; with
            `None` a complete part from either counts, and a missing one comes from the package index.
        say (`Callable`): Takes each line of progress.

    Raises:
        StarterKitError: If a part cannot be made, or a folder of its name is not ours to replace.
    """
    if output_dir.exists() and not output_dir.is_dir():
        raise StarterKitError(f"--output_dir {output_dir} is a file; name a folder, or one to be made.")
    pending = [part for part in parts if not is_ready(part, output_dir / part.name, source, say)]
    if not pending:
        return
    needed = space_needed(pending)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(output_dir).free < needed:
            raise no_space(output_dir, needed)
        with only_run(output_dir, say):
            staging = clean_staging(output_dir)
            for number, part in enumerate(pending, start=1):
                if not is_ready(part, output_dir / part.name, source, say):  # another run may just have made it
                    make_part(part, output_dir / part.name, source or "pypi", staging, say)
                if all(later.wheel_sha256 != part.wheel_sha256 for later in pending[number:]):
                    wheel_file(part, staging).unlink(missing_ok=True)
            shutil.rmtree(staging, ignore_errors=True)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            shutil.rmtree(output_dir / ".staging", ignore_errors=True)
            raise no_space(output_dir, needed) from error
        if isinstance(error, OSError):
            raise StarterKitError(
                f"Cannot write to {output_dir}: {sentence(error)} Name another folder with --output_dir."
            ) from error
        raise


def space_needed(parts: Sequence[Part]) -> int:
    """Bytes on disk while the parts are made; a wheel that holds several parts is fetched, and counted, once."""
    of_wheel: dict[str, int] = {}
    for part in parts:
        of_wheel[part.wheel_sha256] = max(part.disk_bytes, of_wheel.get(part.wheel_sha256, 0))
    return sum(of_wheel.values())


def is_ready(part: Part, folder: Path, source: str | None, say: Say) -> bool:
    """Say whether `folder` holds this part, whole and from a source that will do.

    Raises:
        StarterKitError: If the folder is not ours, or is ours but holds changes that making it anew would lose.
    """
    marker = read_marker(folder)
    if marker is None:
        if folder.is_symlink() or (folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))):
            raise StarterKitError(
                f"{folder} is there already and was not made by the starter kit (it has no {MARKER}), so it is left"
                " alone. Move or rename it, or name another folder with --output_dir."
            )
        return False
    sizes = {name: (folder / name).stat().st_size for name in marker["files"] if (folder / name).is_file()}
    known = [part.identity(one) for one in ([source] if source else ["pypi", "hub"])]
    if marker["made_from"] in known and len(sizes) == len(marker["files"]):
        edited = [name for name, size in sizes.items() if size != marker["files"][name]["bytes"]]
        note = f"; changed since it was made, and kept: {', '.join(edited)}" if edited else ""
        say(f"{part.name}: ready in {folder} (from {marker['made_from']['source']}){note}")
        return True
    refuse_to_lose_changes(folder, marker)
    return False


def refuse_to_lose_changes(folder: Path, marker: dict[str, Any]) -> None:
    """Raise `StarterKitError` if a folder that is to be made anew holds anything but what the kit once put there."""
    ours = {MARKER, *(name for name, kept in marker["files"].items() if file_sha256(folder / name) == kept["sha256"])}
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    if folder.is_symlink() or found - ours:
        raise StarterKitError(
            f"{folder} must be made anew (files are missing, or it was made from something else), but it holds files"
            f" added or changed since: {', '.join(sorted(found - ours)[:5]) or 'it is a link'}. Nothing was touched."
            " Move the folder away, or name another with --output_dir."
        )


def make_part(part: Part, folder: Path, source: str, staging: Path, say: Say) -> None:
    """Fetch, build and publish one part, in a folder of its own inside `staging`."""
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f"{part.name}.", dir=staging))
    made = work / "made"
    made.mkdir()
    notes: dict[str, Any] = {}
    if source == "hub" and part.hub_id:
        fetched = fetch_from_hub(part, say)
        notes["hub_revision"] = fetched.name
    else:
        source, fetched = "pypi", work / "members"
        extract(part, fetch_wheel(part, work, staging, say), fetched, say)
    notes |= BUILDERS[part.kind](part, fetched, made, say)
    write_card(part, source, made, notes)
    size = write_marker(part, source, made, notes)
    publish(made, folder, work)
    shutil.rmtree(work)
    say(f"{part.name}: done, {size / 1e6:,.0f} MB in {folder}, {time.monotonic() - begun:.0f} s")


# --- building --------------------------------------------------------------------------------------------


def convert_causal_lm(part: Part, fetched: Path, made: Path, say: Say) -> dict[str, Any]:
    """Save model and tokenizer as float32 safetensors with a pad token that is not EOS.

    float32, though it takes twice the disk: a Q4_1 value is `scale * q + offset` with float16 scale and offset, which
    float32 holds and bfloat16 would round again, silently; bfloat16 weights from the Hub are only widened by it.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = next(fetched.glob("*.gguf"), None)
    options: dict[str, Any] = {"gguf_file": gguf.name} if gguf else {}
    dequantize = {"quantization_config": GgufConfig(dequantize=True)} if gguf else {}
    say(f"{part.name}: converting to safetensors, float32 (about 30 s on 2 cores)")
    step = 1  # weights, then tokenizer, then saving
    # transformers draws several bars, also in logs, and all of them cover 3 of the 20 seconds: ours stands for them
    with progress("  converting", 3, lambda: step, unit="step"), redirect_stderr(io.StringIO()):
        model = AutoModelForCausalLM.from_pretrained(fetched, dtype=torch.float32, **options, **dequantize)
        step = 2
        tokenizer = AutoTokenizer.from_pretrained(fetched, **options)
        step = 3
        if gguf:
            mend_gguf_tokenizer(tokenizer)
        mend_pad_token(model, tokenizer)
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)
    return {"dtype": "float32", "pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token}


def mend_pad_token(model: Any, tokenizer: Any) -> None:
    """Set pad to `<|endoftext|>` in tokenizer, config and generation config, and EOS alike in all three.

    Where pad is EOS, a mask made from pad hides the end of every answer: EOS is then never trained and never scored.

    Raises:
        StarterKitError: If the vocabulary has no `<|endoftext|>`, or it is the EOS token itself.
    """
    if PAD_TOKEN not in tokenizer.get_vocab() or tokenizer.eos_token in (None, PAD_TOKEN):
        raise StarterKitError(
            f"The tokenizer's EOS token is {tokenizer.eos_token!r} and its pad token {tokenizer.pad_token!r}; the pad"
            f" token should become {PAD_TOKEN}, which must be in the vocabulary and must not be EOS. This is another"
            " model than the manifest describes: correct its entry."
        )
    tokenizer.pad_token = PAD_TOKEN
    tokenizer.model_max_length = model.config.max_position_embeddings
    for config in (model.config, model.generation_config):
        config.pad_token_id, config.eos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id


def mend_gguf_tokenizer(tokenizer: Any) -> None:
    """Split digits one by one, as this model was trained: transformers does not read it from `tokenizer.ggml.pre`."""
    from tokenizers import pre_tokenizers

    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def copy_files(part: Part, fetched: Path, made: Path, say: Say) -> dict[str, Any]:
    """Lay the members down as they are."""
    for member in part.members:
        (made / member.save_as).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fetched / member.save_as, made / member.save_as)
    return {}


def build_ratings(part: Part, fetched: Path, made: Path, say: Say) -> dict[str, Any]:
    """Make rows of sentences and votes, and write `train.jsonl`, `validation.jsonl` and `test.jsonl`.

    Sentences of one document stay together where the part's kind says that there are documents.
    """
    # some of the files begin with a byte order mark
    sentences, votes = ((fetched / member.save_as).read_text(encoding="utf-8-sig") for member in part.members)
    documents = part.name.partition("-")[0] if part.kind == "document-ratings" else None
    splits, notes = build_splits(sentences, votes, documents)
    for name, rows in splits.items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        (made / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    say(f"{part.name}: " + ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in notes.items()))
    return dict(notes)


BUILDERS: dict[str, Callable[[Part, Path, Path, Say], dict[str, Any]]] = {
    "causal-lm": convert_causal_lm,
    "files": copy_files,
    "ratings": build_ratings,
    "document-ratings": build_ratings,
}


# --- publishing ------------------------------------------------------------------------------------------


def write_card(part: Part, source: str, made: Path, notes: dict[str, Any]) -> None:
    """Write the folder's README: what it is, where it comes from, under which licence, and what it is not."""
    wheel = f"the wheel {part.package} {part.version} (SHA-256 {part.wheel_sha256})"
    facts = "".join(f"\n- {key.replace('_', ' ')}: {value}" for key, value in notes.items())
    text = f"""---
license: {part.licence_id}
---

# {part.name}

{part.title}.

- Origin: {part.origin}.
- Fetched from: {wheel if source == "pypi" else f"the Hub repository {part.hub_id}"}.
- Licence: {part.licence}.{facts}

**What to know.** {part.caveats[source]}

Laid down by `python -m rlhf_recipes.data.starter`; `{MARKER}` holds the hash of every file.
"""
    (made / filenames.README).write_text(text, encoding="utf-8")


def write_marker(part: Part, source: str, made: Path, notes: dict[str, Any]) -> int:
    """Record what the folder was made from and each file's size and hash; return the size of all."""
    paths = sorted(path for path in made.rglob("*") if path.is_file())
    recorded = {
        str(path.relative_to(made)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in paths
    }
    for path in paths:
        path.chmod(0o644)  # safetensors files come out private
    marker = {"made_from": part.identity(source), "notes": notes, "files": recorded}
    (made / MARKER).write_text(json.dumps(marker, indent=1), encoding="utf-8")
    return sum(path.stat().st_size for path in paths)


def read_marker(folder: Path) -> dict[str, Any] | None:
    """Return what `write_marker` recorded, or `None` where there is no such record."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return marker if {"made_from", "files"} <= marker.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def publish(made: Path, folder: Path, work: Path) -> None:
    """Move the finished folder to its place; `is_ready` has seen that what may be there is ours and unchanged."""
    if folder.exists():
        os.replace(folder, work / "outdated")
    os.replace(made, folder)


# --- small helpers ---------------------------------------------------------------------------------------


def clean_staging(output_dir: Path) -> Path:
    """Return the staging folder, emptied of what killed runs left, but for checked wheels."""
    staging = output_dir / ".staging"
    staging.mkdir(exist_ok=True)
    for leftover in staging.iterdir():
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)  # a pip that outlived its killed parent may still write
    return staging


@contextmanager
def only_run(output_dir: Path, say: Say) -> Iterator[None]:
    """Hold the folder's lock; the system drops it when a process dies, so it cannot go stale."""
    from filelock import FileLock, Timeout

    lock = FileLock(output_dir / ".staging.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another run is at work in {output_dir}; waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def no_space(output_dir: Path, needed: int) -> StarterKitError:
    free = shutil.disk_usage(output_dir).free
    return StarterKitError(
        f"No space for the starter kit in {output_dir}: {free / 1e6:,.0f} MB are free, and {needed / 1e6:,.0f} MB are"
        " needed while it is made. Make room, or name a folder on another disk with --output_dir."
    )
