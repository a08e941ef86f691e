"""Large buffers stay with the process: fewer pages are asked of the system for the same work."""

import os
import platform
import subprocess
import sys

import pytest

from rlhf_recipes.starting.allocator import ASKED, keep_large_buffers

# Twenty times 40 MB from malloc, written and freed: the pages that the system had to bring.
FAULTS = """
import ctypes, resource, sys
from rlhf_recipes.starting.allocator import keep_large_buffers
if sys.argv[1] == "kept":
    assert keep_large_buffers()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    buffer = ctypes.c_void_p(libc.malloc(40_000_000))
    libc.memset(buffer, 1, 40_000_000)
    libc.free(buffer)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_a_freed_buffer_is_used_again():
    env = {name: value for name, value in os.environ.items() if name not in ASKED}
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", FAULTS, how], env=env, capture_output=True, check=True).stdout)
        for how in ("kept", "as it is")
    )
    assert kept < given_back / 5


@pytest.mark.parametrize("name", ASKED)
def test_who_has_chosen_otherwise_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "1")
    assert not keep_large_buffers()


# A buffer below one that stays is freed: what of 200 MB the process still has, before and after it gives back.
HELD = """
import ctypes
from rlhf_recipes.starting.allocator import give_back_freed, keep_large_buffers

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

assert keep_large_buffers()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype = ctypes.c_void_p
without = resident()
large, above = (ctypes.c_void_p(libc.malloc(size)) for size in (200_000_000, 1_000_000))
libc.memset(large, 1, 200_000_000)
libc.free(large)
held = resident() - without
assert give_back_freed()
print(held, resident() - without)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's")
def test_what_lies_free_between_others_can_be_given_back():
    env = {name: value for name, value in os.environ.items() if name not in ASKED}
    done = subprocess.run([sys.executable, "-c", HELD], env=env, capture_output=True, check=True)
    held, given_back = map(int, done.stdout.split())
    assert held > 190_000_000
    assert given_back < 10_000_000
