"""How many files a thing passes through on its way: a row from its file to the model, a reward to the loss.

A run is watched with `sys.settrace`. A function of the library *carries* a thing where an argument that it is called
with, or what it returns, holds it: itself, or in lists, mappings, records, tensors and datasets. The thing is told by
a mark: for texts, words that no other row has, and their token ids once they are encoded; for rewards, a number that
no other row gets.

A file is on the walk where one of its functions carries the thing, or gets it back from a function that it calls. It
is a *helper* where it calls no other file with it, and so can be read alone; all others are *stations*.
"""

import contextlib
import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset

import rlhf_recipes

LIBRARY = str(Path(rlhf_recipes.__file__).parent) + "/"
DEPTH = 4  # a row in a list in a record in a record
MOST = 64  # of a list's items that are looked at


@dataclasses.dataclass
class Walk:
    """The files through which a thing goes, in the order in which they are met."""

    files: dict[str, None] = dataclasses.field(default_factory=dict)
    calls: dict[str, set[str]] = dataclasses.field(default_factory=dict)  # by file, those that it calls

    def between(self, file: str, caller: str | None) -> None:
        """The thing went along a call, to the function or back from it."""
        self.files.setdefault(file)
        if caller not in (None, file):
            self.files.setdefault(caller)
            self.calls.setdefault(caller, set()).add(file)

    @property
    def helpers(self) -> list[str]:
        return [file for file in self.files if file not in self.calls]

    @property
    def stations(self) -> list[str]:
        return [file for file in self.files if file in self.calls]

    def __repr__(self) -> str:
        return f"{len(self.stations)} files: {', '.join(self.stations)}; helpers: {', '.join(self.helpers)}"


class Text:
    """Tells values that hold a text with the mark, or its token ids one after another."""

    def __init__(self, mark: str, token_ids: list[int] | None = None) -> None:
        self.mark, self.token_ids = mark, list(token_ids or [])

    def __call__(self, value: Any) -> bool:
        if isinstance(value, str):
            return self.mark in value
        if self.token_ids and isinstance(value, list | tuple) and value and isinstance(value[0], int):
            size = len(self.token_ids)
            return any(list(value[at : at + size]) == self.token_ids for at in range(len(value) - size + 1))
        if self.token_ids and isinstance(value, torch.Tensor) and not value.is_floating_point() and value.numel():
            return any(self(row.tolist()) for row in torch.atleast_2d(value).flatten(0, -2)[:MOST])
        return False


class Number:
    """Tells values that hold one number, to the precision of float32."""

    def __init__(self, mark: float) -> None:
        self.mark = mark

    def __call__(self, value: Any) -> bool:
        if isinstance(value, float):
            return abs(value - self.mark) < 1e-6
        if isinstance(value, torch.Tensor | np.ndarray) and not getattr(value, "is_meta", False):
            kept = torch.as_tensor(value)
            return kept.is_floating_point() and bool((kept.detach().float() - self.mark).abs().lt(1e-6).any())
        return False


class Over(Exception):
    """All things have arrived, so the run need not go on."""


@contextlib.contextmanager
def watched(things: Mapping[str, Callable[[Any], bool]]) -> Iterator[list[Walk]]:
    """The walks of things while a run is under way, which ends with the last of them.

    Args:
        things (`Mapping`): For each thing its mark, by the name of the function of the library whose first call ends
            its walk.
    """
    marks = dict(things)
    walks = {name: Walk() for name in things}

    def look(frame: Any, values: list[Any]) -> None:
        for name, mark in marks.items():
            if any(holds(value, mark) for value in values):
                walks[name].between(_file(frame), _caller(frame))

    def local(frame: Any, event: str, returned: Any) -> Any:
        if event == "return":
            look(frame, [returned])
        return local

    def trace(frame: Any, event: str, _: Any) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(LIBRARY) or code.co_name.startswith("<"):
            return None
        if marks.pop(code.co_name, None) and not marks:
            raise Over
        frame.f_trace_lines = False
        count = code.co_argcount + code.co_kwonlyargcount
        count += sum(bool(code.co_flags & flag) for flag in (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS))
        look(frame, [frame.f_locals[name] for name in code.co_varnames[:count] if name in frame.f_locals])
        return local

    before = sys.gettrace()
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield list(walks.values())
    except Over:
        pass
    finally:
        sys.settrace(before)
        threading.settrace(None)


def _file(frame: Any) -> str:
    return frame.f_code.co_filename.removeprefix(LIBRARY)


def _caller(frame: Any) -> str | None:
    """The file of the library that called, perhaps through other libraries."""
    above = frame.f_back
    while above is not None and not above.f_code.co_filename.startswith(LIBRARY):
        above = above.f_back
    return None if above is None else _file(above)


def holds(value: Any, mark: Callable[[Any], bool], depth: int = DEPTH) -> bool:
    """Whether a value is the thing, or has it inside."""
    if mark(value):
        return True
    if depth == 0 or isinstance(value, str | bytes | int | float | type(None) | type):
        return False
    if isinstance(value, Dataset):
        return any(holds(list(value.with_format(None)[name]), mark, depth - 1) for name in value.column_names)
    if isinstance(value, Mapping):
        return any(holds(one, mark, depth - 1) for one in value.values())
    if isinstance(value, list | tuple):
        return any(holds(one, mark, depth - 1) for one in value[:MOST])
    if dataclasses.is_dataclass(value):
        return any(holds(getattr(value, field.name, None), mark, depth - 1) for field in dataclasses.fields(value))
    return False
