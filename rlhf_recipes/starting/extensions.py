"""The extensions that DeepSpeed compiles when it first needs them: said while it does, and no waiting for nobody.

torch builds each in a folder of its own, one process at a time: whoever has made the file `lock` there, and keeps it
open, builds, and all others wait until it is gone. A build that was killed leaves it behind, and then every later
start would wait for ever, without a word.
"""

import logging
import os
import re
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

logger = logging.getLogger(__name__)
EVERY = 2.0  # seconds between two looks

# Where another machine may hold a lock that no process here has open. After that long without a change nobody does.
NETWORK = ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "afs", "fuse.sshfs")
FORGOTTEN = 30 * 60.0
COMPILERS = re.compile(r"ninja|cc1|[cg]\+\+|clang|nvcc|hipcc|cicc|ptxas|fatbinary|cudafe|collect2|^(as|ld|icpx)$")


def watch_extensions() -> threading.Thread | None:
    """Look for locks until this process ends, in a thread beside it: extensions are built at many places of a run.

    Only the first process of a machine does.

    Returns:
        `Thread`: which does not keep the process alive; `None` in the other processes.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    thread = threading.Thread(target=_watch, args=(extensions_folder(),), name="watch-extensions", daemon=True)
    thread.start()
    return thread


def extensions_folder() -> Path:
    """Where torch keeps what it compiles: `TORCH_EXTENSIONS_DIR`, or a folder of this version in the user's cache."""
    given = os.environ.get("TORCH_EXTENSIONS_DIR")
    if given is not None:
        return Path(given)
    from torch.utils.cpp_extension import get_default_build_root

    kinds = (("rocm", torch.version.hip), ("cu", torch.version.cuda))
    built_for = next((kind + version.replace(".", "") for kind, version in kinds if version is not None), "cpu")
    version = f"py{sys.version_info.major}{sys.version_info.minor}{getattr(sys, 'abiflags', '')}"
    return Path(get_default_build_root()) / f"{version}_{built_for}"


def _watch(root: Path) -> None:
    began: dict[Path, float] = {}
    while True:
        locks = set(root.glob("*/lock"))
        for lock in sorted(locks - began.keys()):
            if not free_if_left(lock):
                began[lock] = time.monotonic()
        for lock in sorted(began.keys() - locks):
            logger.info("Compiled %s in %.0f s.", lock.parent.name, time.monotonic() - began.pop(lock))
        for lock in sorted(began):  # its process may be killed while others wait
            if free_if_left(lock, say=False):
                del began[lock]
        time.sleep(EVERY)


def free_if_left(lock: Path, say: bool = True) -> bool:
    """Take away a lock that nobody holds, and say so; of one that is held, or may be, say what is going on.

    Args:
        lock (`Path`): The file.
        say (`bool`, *optional*, defaults to `True`): Whether to say so of one that stays, too.

    Returns:
        `bool`: whether it was taken away.
    """
    try:
        seen = lock.stat()
        holders = builders(lock)
        age = time.time() - max(entry.stat().st_mtime for entry in (lock, *lock.parent.iterdir()))
        elsewhere = on_network(lock) and age < FORGOTTEN
        left = not holders and not elsewhere and seen.st_uid == os.getuid() and lock.stat().st_ino == seen.st_ino
        if left:
            lock.unlink()
    except FileNotFoundError:  # a build is done, or about to be
        return False
    if left:
        logger.warning(
            "%s was left behind by a start that was interrupted: no process builds there. It is taken away, as this "
            "start would wait for it for ever.", lock
        )  # fmt: skip
    elif say and holders:
        logger.info(
            "DeepSpeed's extension %s is compiled, by process %s. That takes a minute or two, once; it is kept in %s.",
            *(lock.parent.name, holders[0], lock.parent),
        )
    elif say:
        logger.warning(
            "DeepSpeed waits for %s, which no process of this machine holds. If no other machine compiles in that "
            "folder, delete the file.", lock
        )  # fmt: skip
    return left


def builders(lock: Path) -> list[int]:
    """The processes that have the lock open, and compilers at work in its folder: they outlive a parent's kill."""
    path, folder, found = os.path.realpath(lock), os.path.realpath(lock.parent), []
    for process in psutil.process_iter():
        try:
            compiles = COMPILERS.search(process.name()) and process.cwd() == folder
            if compiles or any(opened.path == path for opened in process.open_files()):
                found.append(process.pid)
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
    return found


def on_network(file: Path) -> bool:
    """Whether a file lies where other machines may write too."""
    path = os.path.realpath(file)
    mounts = [disk for disk in psutil.disk_partitions(all=True) if _is_below(path, disk.mountpoint)]
    return bool(mounts) and max(mounts, key=lambda disk: len(disk.mountpoint)).fstype in NETWORK


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip("/") + "/")
