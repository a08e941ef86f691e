"""Lay down the starter kit: a small language model, a small encoder and human ratings, as plain folders.

    python -m rlhf_recipes.data.starter                   # ./starter, from wheels of the package index
    python -m rlhf_recipes.data.starter --source hub      # the same models, from the Hugging Face Hub

Each part of `starter_manifest.json` becomes one folder. On its way a part passes these stages, each one function:

    is_ready -> fetch_wheel | fetch_from_hub -> extract -> convert_causal_lm | copy_files | build_ratings
             -> write_card -> write_marker -> publish

Everything is made in `OUTPUT_DIR/.staging` and moved to its place by one rename, with the marker `.complete.json`
already inside. So a folder is either whole or not there, whenever the process is killed. The wheels are only archives
here: they are never installed and nothing in them is run.
"""

import argparse
import errno
import functools
import hashlib
import importlib.util
import io
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlhf_recipes.data.preprocessing import SPLITS, deduplicate, split_of, tidy_text

logger = logging.getLogger(__name__)

MARKER = ".complete.json"
LAYOUT = 1  # raise it when the code below lays down other content from the same files: every part is then made anew
PAD_TOKEN = "<|endoftext|>"
Say = Callable[[str], None]


class StarterKitError(Exception):
    """The kit could not be laid down; the message says what was found, what was expected and what to do."""


@dataclass(frozen=True)
class Member:
    """One file inside a wheel: where it is, what it must hash to, and its name in the folder that is made."""

    path: str
    save_as: str
    sha256: str


@dataclass(frozen=True)
class Part:
    """One folder of the kit, as the manifest describes it."""

    name: str  # of the folder
    kind: str  # "causal-lm", "files" or "ratings": picks the builder
    title: str
    package: str
    version: str
    wheel_sha256: str
    wheel_bytes: int
    members: tuple[Member, ...]
    disk_bytes: int  # needed at the worst moment: wheel (pip holds it twice), extracted files and result
    hub_id: str | None  # None: only the wheel has it
    licence: str
    licence_id: str  # for the card's header
    origin: str
    caveats: dict[str, str]  # by source

    def identity(self, source: str) -> dict[str, Any]:
        """What decides the folder's content; a folder made from anything else is out of date."""
        if source == "hub" and self.hub_id:
            return {"layout": LAYOUT, "source": "hub", "kind": self.kind, "hub_id": self.hub_id}
        wheel = {"package": self.package, "version": self.version, "wheel_sha256": self.wheel_sha256}
        members = [asdict(member) for member in self.members]
        return {"layout": LAYOUT, "source": "pypi", "kind": self.kind, **wheel, "members": members}


def load_manifest(path: Path | None = None) -> list[Part]:
    """Read the parts of the kit from `path`, or from the manifest that comes with the package."""
    source = path or files("rlhf_recipes.data").joinpath("starter_manifest.json")
    entries = json.loads(source.read_text(encoding="utf-8"))
    return [Part(**{**entry, "members": tuple(Member(**member) for member in entry["members"])}) for entry in entries]


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
    needed = sum(part.disk_bytes for part in pending)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(output_dir).free < needed:
            raise no_space(output_dir, needed)
        with only_run(output_dir, say):
            staging = clean_staging(output_dir)
            for part in pending:
                if not is_ready(part, output_dir / part.name, source, say):  # another run may just have made it
                    make_part(part, output_dir / part.name, source or "pypi", staging, say)
            shutil.rmtree(staging, ignore_errors=True)
    except Exception as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            shutil.rmtree(output_dir / ".staging", ignore_errors=True)
            raise no_space(output_dir, needed) from error
        if isinstance(error, OSError):
            raise StarterKitError(
                f"Cannot write to {output_dir}: {error}. Name another folder with --output_dir."
            ) from error
        raise


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
    wheel_file(part, staging).unlink(missing_ok=True)
    say(f"{part.name}: done, {size / 1e6:,.0f} MB in {folder}, {time.monotonic() - begun:.0f} s")


# --- fetching --------------------------------------------------------------------------------------------


def wheel_file(part: Part, staging: Path) -> Path:
    """Where a checked wheel waits; it outlives a killed run, so the next one need not fetch it again."""
    return staging / f"{part.package}-{part.version}.whl"


def fetch_wheel(part: Part, work: Path, staging: Path, say: Say) -> Path:
    """Fetch the part's wheel with `pip download`, which checks its hash, and return the file.

    pip is run as a process, so the user's own index, proxy and certificates (pip.conf, `PIP_*`) are obeyed.

    Raises:
        StarterKitError: If pip is missing, finds no such file, cannot reach its index, or the hash is another.
    """
    wheel = wheel_file(part, staging)
    if file_sha256(wheel) == part.wheel_sha256:
        say(f"{part.name}: {part.package} {part.version} was fetched by an earlier run")
        return wheel
    if importlib.util.find_spec("pip") is None:
        raise StarterKitError(
            f"pip is missing from {sys.executable}, and it fetches the starter kit. Add it with `{sys.executable} -m"
            " ensurepip --upgrade` (in a uv environment: `uv pip install pip`), or take the models with --source hub."
        )
    say(f"{part.name}: fetching {part.package} {part.version} ({part.wheel_bytes / 1e6:.0f} MB)")
    inbox = work / "inbox"
    inbox.mkdir()
    wanted = work / "requirement.txt"
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--require-hashes", "--disable-pip-version-check", "--no-input", "-r", str(wanted), "-d", str(inbox)]
    # pip's own temporary files go into our folder too: the bar watches them grow, and a killed run leaks none in /tmp
    environment = {**os.environ, "TMPDIR": str(work)}
    with progress("  fetching", part.wheel_bytes, lambda: largest_file(work)):
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode != 0:
        raise pip_failure(part, result.stderr)
    os.replace(next(inbox.glob("*.whl")), wheel)
    return wheel


def pip_failure(part: Part, stderr: str) -> Exception:
    """Turn pip's words into one paragraph for the user."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    wanted = f"{part.package}=={part.version}"
    if "No space left" in stderr:
        return OSError(errno.ENOSPC, "No space left on device")
    if "DO NOT MATCH THE HASHES" in stderr:
        got = next((line.split()[-1] for line in lines if line.startswith("Got")), "another")
        return StarterKitError(
            f"The wheel of {wanted} has SHA-256 {got}, but the manifest expects {part.wheel_sha256}, so it was thrown"
            " away. The file was replaced, or damaged on its way. Try again; if it stays so, do not use it."
        )
    if any(sign in stderr for sign in ("Retrying (", "NewConnectionError", "SSLError", "ProxyError")):
        return StarterKitError(
            f"pip could not reach its package index to fetch {wanted}. Check the network, the proxy and pip's settings"
            f" (`{sys.executable} -m pip config list`), then run this again: what is done is kept."
            f" pip said: {lines[-1]}"
        )
    if "No matching distribution" in stderr:
        return StarterKitError(
            f"pip found no {wanted}. Its package index does not have it, or it is set to ask none (PIP_NO_INDEX)."
            f" Check `{sys.executable} -m pip config list`, then run this again. pip said: {lines[-1]}"
        )
    return StarterKitError(f"pip could not fetch {wanted}. pip said: {' '.join(lines[-3:]) or 'nothing'}")


def extract(part: Part, wheel: Path, folder: Path, say: Say) -> None:
    """Copy the part's members out of the wheel and check the hash of each.

    Raises:
        StarterKitError: If the wheel lacks a member, or a member's hash is another.
    """
    say(f"{part.name}: extracting and checking {len(part.members)} file(s)")
    wanted = f"{part.package}=={part.version}"
    with zipfile.ZipFile(wheel) as archive:
        for member in part.members:
            if member.path not in archive.namelist():
                raise StarterKitError(
                    f"The wheel of {wanted} has no member {member.path}; it has"
                    f" {', '.join(archive.namelist()[:5])}, ... Correct the entry '{part.name}' of the manifest."
                )
            target = folder / member.save_as
            target.parent.mkdir(parents=True, exist_ok=True)
            size = archive.getinfo(member.path).file_size
            grown = functools.partial(size_of, target)
            with (
                progress(f"  {target.name}", size, grown),
                archive.open(member.path) as packed,
                target.open("wb") as out,
            ):
                shutil.copyfileobj(packed, out, 1 << 20)
            if (found := file_sha256(target)) != member.sha256:
                raise StarterKitError(
                    f"{member.path} in {wanted} has SHA-256 {found}, but the manifest expects {member.sha256}. Nothing"
                    f" was kept of it. If you changed the manifest, correct its entry '{part.name}'; else do not use"
                    " this wheel."
                )


def fetch_from_hub(part: Part, say: Say) -> Path:
    """Take the part's repository from the Hub, through the user's own Hub cache, and return the snapshot's folder.

    Raises:
        StarterKitError: If the Hub cannot be reached or does not have it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    assert part.hub_id is not None
    say(f"{part.name}: fetching {part.hub_id} from the Hub")
    wanted = (
        [member.save_as for member in part.members] if part.kind == "files" else ["*.json", "*.txt", "*.safetensors"]
    )
    # its base classes are OSError and the HTTP library's own error, whichever library huggingface_hub uses by now
    hub_errors: tuple[type[BaseException], ...] = (ValueError, OSError, *HfHubHTTPError.__bases__)
    try:
        return Path(snapshot_download(part.hub_id, allow_patterns=wanted))
    except hub_errors as error:
        raise StarterKitError(
            f"The Hub did not give {part.hub_id}: {str(error).splitlines()[0]} Check the network, HF_ENDPOINT and"
            " HF_HUB_OFFLINE, then run this again; or use --source pypi, which takes it from the package index."
        ) from error


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
    """Join sentences and votes, drop copies, and write `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    sentences, votes = ((fetched / member.save_as).read_text(encoding="utf-8") for member in part.members)
    joined, notes = join_ratings(sentences, votes)
    rows, notes["duplicates_removed"] = deduplicate(joined, "completion")
    splits: dict[str, list[str]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(row["completion"])].append(json.dumps(row, ensure_ascii=False))
    for name, lines in splits.items():
        (made / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    notes |= {f"rows_{name}": len(lines) for name, lines in splits.items()}
    say(f"{part.name}: " + ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in notes.items()))
    return notes


def join_ratings(sentences: str, votes: str) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Join the two files by id; a row whose votes do not average to its published rating is left out and counted.

    Args:
        sentences (`str`): A header, then lines `id <tab> mean rating <tab> text`.
        votes (`str`): Lines `id <tab> mean <tab> standard deviation <tab> [vote, vote, ...]`, in any order.

    Returns:
        `tuple[list[dict], dict[str, int]]`: Rows with `completion`, `score`, `votes`, in order of id (so that neither
        file's order decides which copy of a sentence stays), and counts of what was read and left out.
    """
    truth = {
        fields[0]: fields for fields in (line.split("\t", 2) for line in sentences.splitlines()[1:] if line.strip())
    }
    voted = {fields[0]: json.loads(fields[-1]) for fields in (line.split("\t") for line in votes.splitlines() if line)}
    notes: Counter[str] = Counter(
        sentences=len(truth), in_one_file_only=len(truth.keys() ^ voted.keys()), mean_mismatches=0
    )
    rows = []
    for key in sorted(truth.keys() & voted.keys(), key=lambda key: (len(key), key)):
        score = statistics.fmean(voted[key])
        if abs(score - float(truth[key][1])) > 1e-6:  # the file prints 11 digits
            notes["mean_mismatches"] += 1
        else:
            rows.append({"completion": tidy_text(truth[key][2]), "score": score, "votes": voted[key]})
    return rows, dict(notes)


BUILDERS: dict[str, Callable[[Part, Path, Path, Say], dict[str, Any]]] = {
    "causal-lm": convert_causal_lm,
    "files": copy_files,
    "ratings": build_ratings,
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
    (made / "README.md").write_text(text, encoding="utf-8")


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


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal; empty if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def size_of(path: Path) -> int:
    """Size of a file that may not be there yet, or no longer."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def largest_file(folder: Path) -> int:
    """How far pip has come: it holds the wheel in up to three files at once, so their sum would be too much."""
    return max((size_of(path) for path in folder.rglob("*")), default=0)


@contextmanager
def progress(label: str, total: int, measure: Callable[[], int], unit: str = "B") -> Iterator[None]:
    """Show a bar on a terminal (nothing in a log), which a thread keeps at `measure()` until the block ends."""
    from tqdm import tqdm

    # bytes get a bar; steps of very different length get a count and a clock
    shape = None if unit == "B" else "{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed}"
    bar = tqdm(total=total, desc=label, unit=unit, unit_scale=not shape, bar_format=shape, leave=False, disable=None)
    finished = threading.Event()

    def follow() -> None:
        while not finished.wait(0.2):
            bar.n = min(measure(), total)
            bar.refresh()

    thread = threading.Thread(target=follow, daemon=True)
    if not bar.disable:
        thread.start()
    try:
        yield
    finally:
        finished.set()
        if not bar.disable:
            thread.join()
        bar.close()


def main(argv: Sequence[str] | None = None, manifest: Path | None = None) -> int:
    """Run the command line; returns the exit code. `manifest` is for tests and mirrors."""
    parts = load_manifest(manifest)
    parser = argparse.ArgumentParser(prog="python -m rlhf_recipes.data.starter", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--output_dir", type=Path, default=Path("starter"), help="where the folders go (default: starter)"
    )
    parser.add_argument(
        "--source",
        choices=["pypi", "hub"],
        help="pypi: everything out of wheels from the package index (what happens by default; the language model's"
        " weights are then dequantized 4-bit ones). hub: the two models from the Hugging Face Hub; the ratings still"
        " come out of their wheel. A part that is there from the other source is made anew if you name one here.",
    )
    names = [part.name for part in parts]
    parser.add_argument("--parts", nargs="+", choices=names, default=names, help="only these parts (default: all)")
    args = parser.parse_args(argv)
    try:
        chosen = [part for part in parts if part.name in args.parts]
        lay_down(args.output_dir, chosen, args.source, say=lambda line: print(line, flush=True))  # noqa: T201
    except StarterKitError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("Stopped. Finished parts are kept; run the same command to go on.\n")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
