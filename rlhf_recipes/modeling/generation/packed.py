"""Linear layers on a CPU with their weights laid out for a few rows at a time, which is what decoding gives them."""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from rlhf_recipes.modeling.generation.copies import merged_copy

# What may be laid out: every linear layer, the output layer alone, or nothing.
PACKED = ("all", "output", "none")
NARROW = 64  # narrower layers, such as those of adapters, gain nothing


@contextlib.contextmanager
def packed(model: Any, rows: int, which: str = "all") -> Iterator[None]:
    """Inside, linear layers compute with a copy of their weights in the blocks that oneDNN reads.

    A product of few rows takes most of its time to bring the weights into that order, once for each token: of 16 rows
    float32 takes 0.7 of the time, a large output layer 0.4. Adapters in evaluation mode are added to the copies
    (arXiv 2106.09685), in float32 alone: half precision would round most of them away. The copies take as much memory
    as the weights, and are gone afterwards. Sums are rounded in another order. Each shape is tried against the plain
    way once, and left plain where it says something else, as are weights on another device, of another precision or
    kind, and all under autocast. Gradients do not pass.

    Args:
        model (`PreTrainedModel` or `PeftModel`): Whose weights stay as they are inside.
        rows (`int`): How many rows a layer mostly gets.
        which (`str`): Of `PACKED`.
    """
    changed: dict[nn.Module, Any] = {}
    if which != "none" and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu"):
        top = model if which == "all" else model.get_output_embeddings()
        changed = {} if top is None else _instead(top, rows)
    for module, forward in changed.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in changed:
            del vars(module)["forward"]


def packed_bytes(model: Any, which: str = "all") -> int:
    """Bytes of the copies, on a CPU; a weight of several layers counts once."""
    top = {"all": model, "output": model.get_output_embeddings(), "none": None}[which]
    layers = [] if top is None else [module for module in top.modules() if _has_shape(module)]
    return sum(weight.numel() * weight.element_size() for weight in {layer.weight for layer in layers})


def _instead(top: nn.Module, rows: int) -> dict[nn.Module, Any]:
    """What modules do in place of their `forward`."""
    found: dict[nn.Module, Any] = {}
    inside: set[nn.Module] = set()  # adapters, and the layers that they are on
    laid_out: dict[int, Any] = {}  # by weight: it may be that of several layers
    module: Any
    for module in top.modules():
        tuner: Any = module if isinstance(module, BaseTunerLayer) else None
        if module in inside or "forward" in vars(module):  # a launcher's, or an engine's
            continue
        if tuner is not None and _can_merge(tuner):
            merged = _merged(tuner)
            if merged is not None and _fits(merged, rows):
                found[module] = functools.partial(_linear, _laid_out(merged.weight.detach(), rows), merged.bias)
                inside.update(tuner.modules())
        elif _fits(module, rows):
            weight: Any = module.weight
            if id(weight) not in laid_out:
                laid_out[id(weight)] = _laid_out(weight.detach(), rows)
            found[module] = functools.partial(_linear, laid_out[id(weight)], module.bias)
    return found


def _can_merge(layer: Any) -> bool:
    base = layer.get_base_layer()
    if layer.training or layer.merged or layer.disable_adapters or "forward" in vars(base):
        return False
    return _is_linear(base) and base.weight.dtype == torch.float32


def _merged(layer: Any) -> Any:
    """A layer with its adapters in its weights; `None` for those that cannot be merged, such as with a bias."""
    try:
        return merged_copy(layer)
    except (RuntimeError, ValueError, NotImplementedError):
        return None


def _fits(module: Any, rows: int) -> bool:
    return _is_linear(module) and _is_sound(module.weight.shape, module.weight.dtype, rows)


def _is_linear(module: Any) -> bool:
    """Whether it is a plain linear layer with weights of its own in this process, none of them quantized."""
    return _has_shape(module) and type(module.weight.data) is Tensor and module.weight.device.type == "cpu"


def _has_shape(module: Any) -> bool:
    if type(module) is not nn.Linear or module.weight.dim() != 2:
        return False
    return module.weight.dtype in (torch.float32, torch.bfloat16) and min(module.weight.shape) >= NARROW


# The two operators are those of compiled models (torch.compile with freezing), and have no public name.
def _laid_out(weight: Tensor, rows: int) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight, rows)


def _linear(weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")


@functools.lru_cache(maxsize=256)
def _is_sound(shape: torch.Size, dtype: torch.dtype, rows: int) -> bool:
    """Whether random weights of this shape, 1,024 of their rows at most, say the same laid out as plain."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(min(shape[0], 1024), shape[1], generator=generator).to(dtype)
    states = torch.randn(rows, 1, shape[1], generator=generator).to(dtype)
    plain = nn.functional.linear(states, weight)
    try:
        other = _linear(_laid_out(weight, rows), None, states)
    except (AttributeError, RuntimeError):  # a torch or a processor without them
        return False
    bound = 4 * torch.finfo(dtype).eps * shape[1] ** 0.5 * plain.abs().max()
    return other.shape == plain.shape and bool((other - plain).abs().max() <= bound)
