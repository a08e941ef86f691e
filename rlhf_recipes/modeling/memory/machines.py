"""What there is to fit into: this machine, a GPU by its name, a size."""

import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# GB of the makers, of which the cards have some percent more: room for what an allocator leaves between tensors.
GPUS = {
    "GTX 1080 Ti": 11, "RTX 2060": 6, "RTX 2070": 8, "RTX 2080": 8, "RTX 2080 Ti": 11, "RTX 3050": 8, "RTX 3060": 12,
    "RTX 3070": 8, "RTX 3080": 10, "RTX 3090": 24, "RTX 4060": 8, "RTX 4060 Ti": 16, "RTX 4070": 12, "RTX 4080": 16,
    "RTX 4090": 24, "RTX 5070": 12, "RTX 5080": 16, "RTX 5090": 32, "RTX A4000": 16, "RTX A5000": 24, "RTX A6000": 48,
    "RTX 6000 Ada": 48, "T4": 16, "P100": 16, "V100": 16, "V100 32GB": 32, "A10": 24, "A30": 24, "A40": 48, "L4": 24,
    "L40": 48, "L40S": 48, "A100 40GB": 40, "A100": 80, "H100": 80, "H200": 141, "B200": 180, "MI250": 64,
    "MI300X": 192,
}  # fmt: skip
# The context of CUDA and the code of its libraries, as PyTorch's processes show it on a GPU: none of it is a tensor.
CUDA_CONTEXT = 600_000_000


@dataclass(frozen=True)
class Machine:
    """What a run would have, and what the process takes before the first tensor."""

    name: str
    size: int  # bytes
    is_gpu: bool
    process: int  # bytes


def named(gpu: str) -> Machine:
    """A GPU of [`GPUS`]; upper and lower case, spaces and the maker's name make no difference.

    Raises:
        `ValueError`: if there is none of that name.
    """
    found = {_key(name): (name, size) for name, size in GPUS.items()}.get(_key(gpu))
    if found is None:
        raise ValueError(
            f"No GPU {gpu!r} is known here. Known are {', '.join(GPUS)}; of another give the memory: --fits 24GB."
        )
    return Machine(found[0], found[1] * 10**9, True, CUDA_CONTEXT)


def of_size(text: str) -> Machine:
    """A GPU with so much memory, such as `24GB`; a number alone is GB, of 10^9 bytes.

    Raises:
        `ValueError`: if it is no size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB|TB)?\s*", text, re.IGNORECASE)
    if match is None or not float(match[1]):
        raise ValueError(f"--fits {text!r} is no size of memory. Give a number with GB, GiB, MB, MiB or TB: 24GB.")
    units = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20, "tb": 10**12}
    return Machine(text.strip(), int(float(match[1]) * units[(match[2] or "GB").lower()]), True, CUDA_CONTEXT)


def this_one() -> Machine:
    """The GPU of this machine, or its memory where there is none.

    A run on the CPU has its tensors beside Python and the libraries, in the same memory. What these take is measured
    in this process, which has imported them.
    """
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Machine(properties.name, properties.total_memory, True, CUDA_CONTEXT)
    pages, page = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine("this machine's memory", pages * page, False, resident())


def resident() -> int:
    """Bytes that this process has had in memory at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # what `getrusage` says there is of the process that started this one too, if that was larger
        lines = status.read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def _key(name: str) -> str:
    words = re.sub(r"nvidia|geforce|tesla|amd|instinct", "", name.lower())
    return re.sub(r"[^a-z0-9]", "", words)
