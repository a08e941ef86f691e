"""Where a model divides into lower layers that are not trained and upper ones that are."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf_recipes.modeling.logprobs import base_of
from rlhf_recipes.modeling.zero import is_divided


@dataclass(frozen=True)
class Split:
    """The layers of a model's body, and how many of the lowest are the trunk."""

    layers: nn.ModuleList
    depth: int  # 0: there is no trunk
    reason: str = ""  # why there is none


def split_of(model: Any) -> Split:
    """Divide a decoder below its lowest trained layer.

    A weight outside the layers may be trained only where it comes after them: in what stands behind them in the body
    (a last norm), or in an output layer that is not the embedding too.
    """
    layers = stack_of(model)
    if layers is None:
        return Split(nn.ModuleList(), 0, "its layers are in no list")
    if is_divided(model):
        return Split(layers, 0, "its weights are divided among processes")
    places = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    after = {id(parameter) for module in _behind(model, layers) for parameter in module.parameters()}
    depth = len(layers)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or id(parameter) in after:
            continue
        if id(parameter) not in places:
            return Split(layers, 0, f"{name} is trained, which comes before its layers")
        depth = min(depth, places[id(parameter)])
    return Split(layers, depth, "" if depth else "its lowest layer is trained")


def stack_of(model: Any) -> nn.ModuleList | None:
    """The list of a decoder's layers; `None` where there is not exactly one of that length."""
    inner = base_of(model)
    total = getattr(inner.config.get_text_config(), "num_hidden_layers", None)
    stacks = [
        module for module in inner.base_model.modules() if isinstance(module, nn.ModuleList) and len(module) == total
    ]
    # A layer may hold a list of as many experts as there are layers: the outermost comes first.
    outer = [stack for stack in stacks if not any(stack in other.modules() for other in stacks if other is not stack)]
    return outer[0] if len(outer) == 1 else None


def _behind(model: Any, layers: nn.ModuleList) -> list[nn.Module]:
    """The modules that a text goes through after the last layer."""
    inner = base_of(model)
    behind: list[nn.Module] = []
    for parent in inner.base_model.modules():
        children = list(parent.children())
        if any(child is layers for child in children):
            # As they are put together; what is read before the layers (positions, rotary tables) is never trained
            # without the embeddings, which stand before them.
            behind += children[[child is layers for child in children].index(True) + 1 :]
    head = inner.get_output_embeddings()
    embeddings = {id(parameter) for parameter in inner.get_input_embeddings().parameters()}
    if head is not None and not any(id(parameter) in embeddings for parameter in head.parameters()):
        behind.append(head)
    return behind
