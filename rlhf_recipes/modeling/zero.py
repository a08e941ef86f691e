"""Weights that DeepSpeed ZeRO-3 has divided among the processes: put together, copied, saved."""

import contextlib
import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_divided(model: nn.Module) -> bool:
    """Whether ZeRO-3 has divided weights of the model: each then has the shape `(0,)` and DeepSpeed's mark `ds_id`."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


@contextlib.contextmanager
def gathered(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, these weights are whole. Every process must come here; undivided weights stay as they are."""
    divided = [tensor for tensor in tensors if hasattr(tensor, "ds_id")]
    if not divided:
        yield
        return
    import deepspeed  # optional, and slow to import

    with deepspeed.zero.GatheredParameters(divided):
        yield


def match_precision(model: nn.Module) -> None:
    """Give what was added to a divided model (adapters, a value head) its precision: ZeRO-3 trains one alone.

    `from_pretrained` takes the precision of a model in shares from the DeepSpeed configuration.
    """
    kinds = {parameter.dtype for parameter in model.parameters() if hasattr(parameter, "ds_id")}
    if len(kinds) != 1:
        return
    dtype = kinds.pop()
    for parameter in model.parameters():
        if not hasattr(parameter, "ds_id"):
            parameter.data = parameter.data.to(dtype)


def copy_whole(model: nn.Module, to_cpu: bool = False) -> Any:
    """A deep copy, its weights whole where those of the model are divided. `copy.deepcopy` would copy empty shells.

    Divided weights are gathered one by one and copied to the CPU, so a device never holds the model twice; with
    `to_cpu` all others go straight there too.
    """
    copies: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if to_cpu or hasattr(tensor, "ds_id"):
            with gathered([tensor]):
                whole = tensor.detach().to("cpu", copy=True)
            is_parameter = isinstance(tensor, nn.Parameter)
            copies[id(tensor)] = nn.Parameter(whole, tensor.requires_grad) if is_parameter else whole
    return copy.deepcopy(model, copies)


def whole_state_dict(model: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict on the CPU with whole weights. Every process must call it; those without `keep` get nothing.

    Names that share one weight (tied embeddings) share one tensor here too. Of a model with adapters, the frozen base
    is left out, which is never saved.
    """
    from peft import PeftModel

    peft = next((module for module in model.modules() if isinstance(module, PeftModel)), None)
    adapters = None if peft is None else [f".{name}" for name in peft.peft_config]
    found: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if adapters is not None and not tensor.requires_grad and not any(mark in name for mark in adapters):
            continue
        if id(tensor) not in copies:
            with gathered([tensor]):
                copies[id(tensor)] = tensor.detach().to("cpu", copy=True) if keep else torch.empty(0)
        found[name] = copies[id(tensor)]
    return found if keep else {}
