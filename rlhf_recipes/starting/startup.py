"""The first second of a command: libraries that only training needs wait, and two lines that tell nobody anything go.

`--help`, a wrong option and a missing file are answered with torch, transformers' arguments and datasets alone. What
trains (peft, bitsandbytes, the models and trainers of transformers and TRL) is imported where it is used.
"""

import contextlib
import functools
import gc
import importlib.util
import logging
import os
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


def prepare() -> None:
    """Called once, when this library is imported, and before one of Hugging Face's is."""
    for name, beginning in (("bitsandbytes.backends.cpu.ops", OF_BITSANDBYTES), ("DeepSpeed", OF_DEEPSPEED)):
        logging.getLogger(name).addFilter(_Without(beginning))
    sys.meta_path.insert(0, _Finder())


class _Without(logging.Filter):
    """Leaves out one message, told by how it begins."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning = beginning

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(self.beginning)


# --- Classes that are only compared with ----------------------------------------------------------
# Two modules on which all training arguments rest import classes for no more than `isinstance(model, ...)`, and with
# them peft, bitsandbytes, torch's compiler and the models: more than half of what `--help` or a wrong file name took.
# While these two are imported, classes of the same names stand in, which know the real ones as soon as they are there.
COMPARED = {
    "transformers.trainer_utils": ("peft", "peft", ("PeftModel", "PeftMixedModel")),
    "transformers.integrations.integration_utils": (
        "transformers", "transformers.modeling_utils", ("PreTrainedModel",)
    ),
}  # fmt: skip


class _StandIn(type):
    """Of a class that stands for that of its name in the module `home`: nothing is one before the module is there."""

    home: str

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> Any:
        if bases:
            raise ImportError(f"{name} is derived from a class that only stands for {bases[0].__name__}.")
        return super().__new__(mcs, name, bases, namespace)

    def __instancecheck__(cls, instance: object) -> bool:
        theirs = getattr(sys.modules.get(cls.home), cls.__name__, None)
        return theirs is not None and isinstance(instance, theirs)


@contextlib.contextmanager
def _stand_ins(source: str, home: str, names: tuple[str, ...]) -> Iterator[None]:
    """Inside, `from source import name` gives stand-ins, unless the real ones are there already, or never will be."""
    spec = importlib.util.find_spec(source)
    if spec is None or home in sys.modules:
        yield
        return
    made = {name: _StandIn(name, (), {"home": home}) for name in names}
    module, is_there = sys.modules.get(source), source in sys.modules
    if module is None:
        sys.modules[source] = module = types.ModuleType(source)
        module.__spec__ = spec  # by which transformers finds out whether there is such a package
    vars(module).update(made)
    try:
        yield
    finally:
        for name in names:
            vars(module).pop(name, None)
        if not is_there:
            del sys.modules[source]


# --- Work that is done for nothing ------------------------------------------------------------------
# Importing makes a million objects that stay, and Python looks through them for garbage again and again: a tenth and
# more of the time until a help is there. While one of these, or a part of it, is imported, it does not.
LARGE = ("rlhf_recipes", "torch", "transformers", "trl", "datasets", "pandas", "peft", "accelerate")

# Each of these lists all packages that are installed, for which their files are read.
LISTING = ("transformers.utils.import_utils", "trl.import_utils")


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            if not gc.get_freeze_count():
                gc.freeze()
                gc.unfreeze()  # all that was made is old now, and not looked through at once
            gc.enable()


def remember_distributions() -> None:
    """Let `importlib.metadata` say once which package has which modules, until something is installed."""
    import importlib.metadata

    listed = importlib.metadata.packages_distributions
    if listed.__module__ == __name__:
        return

    @functools.lru_cache(maxsize=1)
    def of_state(*state: tuple[str, int]) -> Any:
        return listed()

    def packages_distributions() -> Any:
        return of_state(*((folder, os.stat(folder).st_mtime_ns) for folder in sys.path if os.path.isdir(folder)))

    importlib.metadata.packages_distributions = packages_distributions


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname in LISTING:
            remember_distributions()
        is_outermost = gc.isenabled() and fullname.partition(".")[0] in LARGE
        if fullname not in COMPARED and not is_outermost:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """One that calls the loader of a module, and is forgotten when that is done."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:  # of what runs a module as a program, or looks at its source
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> types.ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: types.ModuleType) -> None:
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        with _no_collection():
            if module.__name__ not in COMPARED:
                self.loader.exec_module(module)
                return
            try:
                with _stand_ins(*COMPARED[module.__name__]):
                    self.loader.exec_module(module)
            except ImportError:  # of a release that does more with these classes
                self.loader.exec_module(module)
