"""The first second of a command: libraries that only training needs wait, and two lines that tell nobody anything go.

`--help`, a wrong option and a missing file are answered with torch, transformers' arguments and datasets alone. What
trains (peft, bitsandbytes, the models and trainers of transformers and TRL) is imported where it is used.
"""

import contextlib
import importlib.util
import logging
import sys
import types
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

# Of bitsandbytes, on a CPU with AVX512-BF16: it goes on with its own kernel, and 4 bit works.
OF_BITSANDBYTES = "Failed to load CPU gemm_4bit_forward from kernels-community"

# Of DeepSpeed, which accelerate imports wherever it is installed, on a machine where torch sees no GPU either.
OF_DEEPSPEED = "Setting accelerator to CPU."
TRAINER_UTILS = "transformers.trainer_utils"


def prepare() -> None:
    """Called once, when this library is imported, and before one of Hugging Face's is."""
    for name, beginning in (("bitsandbytes.backends.cpu.ops", OF_BITSANDBYTES), ("DeepSpeed", OF_DEEPSPEED)):
        logging.getLogger(name).addFilter(_Without(beginning))
    if TRAINER_UTILS not in sys.modules and "peft" not in sys.modules:
        sys.meta_path.insert(0, _FindTrainerUtils())


class _Without(logging.Filter):
    """Leaves out one message, told by how it begins."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


# --- peft, when it is needed ----------------------------------------------------------------------
# All training arguments rest on `transformers.trainer_utils`, which imports peft for two classes that it compares
# models with; and peft imports models, bitsandbytes and torch's compiler, more than half of what `--help` took.


class _ClassOfPeft(type):
    """Of a class that stands for peft's class of the same name: nothing is one of these before peft is there."""

    def __instancecheck__(cls, instance: object) -> bool:
        theirs = getattr(sys.modules.get("peft"), cls.__name__, None)
        return theirs is not None and isinstance(instance, theirs)


@contextlib.contextmanager
def _stand_in_for_peft() -> Iterator[None]:
    spec = importlib.util.find_spec("peft")
    if spec is None or "peft" in sys.modules:
        yield
        return
    stand_in: Any = types.ModuleType("peft")
    stand_in.__spec__ = spec  # by which transformers finds out whether there is a peft
    for name in ("PeftModel", "PeftMixedModel"):
        setattr(stand_in, name, _ClassOfPeft(name, (), {}))
    sys.modules["peft"] = stand_in
    try:
        yield
    finally:
        del sys.modules["peft"]


class _FindTrainerUtils(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != TRAINER_UTILS:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LoadWithoutPeft(spec.loader)
        return spec


class _LoadWithoutPeft(Loader):
    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        try:
            with _stand_in_for_peft():
                self.loader.exec_module(module)
        except ImportError:  # of a release that takes more of peft
            self.loader.exec_module(module)
