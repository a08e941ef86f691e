"""The bytes that are alive while a model computes, on tensors that have shapes and no memory.

`FakeTensorMode` of torch runs a model's own code and works out shapes alone. Each storage is counted when an operation
makes it and taken off when the last tensor or graph that holds it is gone: what the backward pass needs is what
autograd keeps, and no formula for an architecture is needed. What a kernel uses inside of itself is not seen.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Pass:
    """Bytes beside the weights and their gradients while a model computes."""

    kept: int  # alive when the forward pass has ended
    peak: int  # at the worst moment

    def beside(self, other: "Pass") -> "Pass":
        """Of two passes of which the second begins before what the first keeps is gone."""
        return Pass(self.kept + other.kept, max(self.peak + other.kept, self.kept + other.peak))

    def then(self, other: "Pass") -> "Pass":
        """Of two passes one after the other."""
        return Pass(max(self.kept, other.kept), max(self.peak, other.peak))


NOTHING = Pass(0, 0)


class Tracked(TorchDispatchMode):
    """Counts the storages that operations make within it.

    Args:
        held (`Iterable[Tensor]`): What is there before, and not counted.
    """

    def __init__(self, held: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.alive, self.peak = 0, 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in held:
            self._see(tensor, counted=False)

    def _see(self, tensor: Tensor, counted: bool = True) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0

        def gone(_: Any) -> None:
            self.alive -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)
        self.alive += size
        self.peak = max(self.peak, self.alive)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, Tensor):
                self._see(value)
        return out


def tracked(forward: Callable[[], Tensor | None], held: Iterable[Tensor], backward: bool) -> Pass:
    """What `forward`, which gives a loss, takes; with `backward` also the backward pass from there."""
    with Tracked(held) as tracker, torch.set_grad_enabled(backward):
        loss = forward()
        kept = tracker.alive
        if backward:
            assert loss is not None, "a loss to go back from"
            loss.backward()
    return Pass(kept, tracker.peak)


@contextlib.contextmanager
def computing_shapes(*models: nn.Module) -> Iterator[None]:
    """Inside, models that were built on the meta device compute as on a CPU, but on tensors without memory.

    The meta device itself knows neither mixed precision nor the attention that a CPU or GPU would choose.
    """
    with FakeTensorMode(), torch.device("cpu"):
        twins: dict[int, Tensor] = {}
        before: list[tuple[Any, str, Tensor]] = []
        for module in (module for model in models for module in model.modules()):
            holders: list[Any] = [module._parameters, module._buffers]
            for tensors in holders:
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    before.append((tensors, name, tensor))
                    if id(tensor) not in twins:
                        twin = torch.empty(tensor.shape, dtype=tensor.dtype)
                        is_parameter = isinstance(tensor, nn.Parameter)
                        twins[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
                    tensors[name] = twins[id(tensor)]
        try:
            yield
        finally:
            for tensors, name, tensor in before:
                tensors[name] = tensor
