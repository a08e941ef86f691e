"""Locks of torch's extension folder: those that a killed build has left are taken away, all others stay."""

import logging
import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from torch.utils import cpp_extension
from torch.utils.file_baton import FileBaton

from rlhf_recipes.starting import extensions
from rlhf_recipes.starting.extensions import extensions_folder, free_if_left, watch_extensions
from tests.launching import started

HOLDER = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def lock(tmp_path):
    (tmp_path / "deepspeed_shm_comm").mkdir()
    return tmp_path / "deepspeed_shm_comm/lock"


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, "rlhf_recipes")
    return caplog


def test_it_is_the_folder_that_torch_builds_in(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    assert cpp_extension._get_build_directory("one", False) == str(extensions_folder() / "one")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "other"))
    assert cpp_extension._get_build_directory("one", False) == str(extensions_folder() / "one")


def test_a_lock_that_a_killed_build_has_left_is_taken_away(lock, said):
    with started([sys.executable, "-c", HOLDER, str(lock)], stdout=-1, text=True) as builder:
        builder.stdout.readline()
        assert not free_if_left(lock)
        assert f"deepspeed_shm_comm is compiled, by process {builder.pid}." in said.messages[-1]
        assert lock.exists()
    assert lock.exists()  # the builder was killed, and this is what it leaves
    assert free_if_left(lock)
    assert not lock.exists()
    assert "left behind by a start that was interrupted" in said.messages[-1]
    assert FileBaton(str(lock)).try_acquire()  # so the next build goes on


def test_while_a_compiler_of_a_killed_build_still_works_there_the_lock_stays(lock, tmp_path):
    lock.touch()
    compiler = tmp_path / "cc1plus"
    shutil.copy(shutil.which("sleep"), compiler)
    with started([str(compiler), "600"], cwd=lock.parent):
        assert not free_if_left(lock)
    with started([shutil.which("sleep"), "600"], cwd=lock.parent):  # such as a shell that somebody has opened there
        assert free_if_left(lock)


def test_on_a_network_another_machine_may_hold_it_until_nothing_has_changed_for_long(lock, said, monkeypatch):
    monkeypatch.setattr(extensions, "on_network", lambda file: True)
    lock.touch()
    assert not free_if_left(lock)
    assert "no process of this machine holds. If no other machine compiles" in said.messages[-1]
    long_ago = time.time() - extensions.FORGOTTEN - 60
    (lock.parent / "shm.o").touch()
    os.utime(lock, (long_ago, long_ago))
    assert not free_if_left(lock)  # something was written there a moment ago
    os.utime(lock.parent / "shm.o", (long_ago, long_ago))
    assert free_if_left(lock)


def test_which_folders_are_on_a_network(monkeypatch):
    def disk(mountpoint, fstype):
        return type("Disk", (), {"mountpoint": mountpoint, "fstype": fstype})

    disks = [disk("/", "ext4"), disk("/home", "nfs4"), disk("/home/me/scratch", "xfs"), disk("/homeless", "ext4")]
    monkeypatch.setattr(extensions.psutil, "disk_partitions", lambda all: disks)
    monkeypatch.setattr(extensions.os.path, "realpath", str)
    places = ("/root/lock", "/home/me/lock", "/home/me/scratch/lock", "/homeless/lock")
    assert [extensions.on_network(Path(place)) for place in places] == [False, True, False, False]


def test_the_watch_sees_what_comes_and_goes(lock, said, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(lock.parents[1]))
    monkeypatch.setattr(extensions, "EVERY", 0.01)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert watch_extensions() is None  # one process of a machine says it
    monkeypatch.setenv("LOCAL_RANK", "0")
    lock.touch()
    assert watch_extensions().daemon
    until = time.monotonic() + 30
    while lock.exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    baton = FileBaton(str(lock))
    assert baton.try_acquire()
    while not any("is compiled, by process" in message for message in said.messages):
        assert time.monotonic() < until
        time.sleep(0.01)
    baton.release()
    while not any("Compiled deepspeed_shm_comm in" in message for message in said.messages):
        assert time.monotonic() < until
        time.sleep(0.01)
