"""What glibc does with large buffers that are freed: it keeps them for the next one, in place of giving them back."""

import ctypes
import os
import sys

# From malloc.h: the parameters of mallopt, each an int.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
ASKED = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


def keep_large_buffers() -> bool:
    """Have glibc keep buffers of up to a gigabyte that are freed; whether it does.

    By default it asks the system for each and gives it back, and the system clears every page of it before. A model on
    a CPU allocates buffers of megabytes at each layer: with this, the kernel's share of PPO's time halves. Nothing is
    done where a user has chosen otherwise by an environment variable, or where the allocator is another.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in ASKED):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def give_back_freed() -> bool:
    """Have glibc give all pages back that hold nothing, once; whether it did.

    What lies between buffers that stay is too small for larger ones, and is kept for nothing otherwise.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL("libc.so.6").malloc_trim(0))
    except (OSError, AttributeError):  # musl
        return False
