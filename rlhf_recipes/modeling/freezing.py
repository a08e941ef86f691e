"""Leaving the lower part of a model as it is."""

import torch
from peft import PeftModel
from transformers import PreTrainedModel


def freeze_lower_layers(model: PreTrainedModel, count: int) -> None:
    """Freeze the embeddings and the lowest `count` layers; nothing if `count` is 0.

    Raises:
        `ValueError`: if the model has fewer layers, has adapters (which freeze the base anyway), or has no list of
            layers to be found.
    """
    if count == 0:
        return
    if isinstance(model, PeftModel):
        raise ValueError(
            f"num_frozen_layers is {count}, but with adapters the whole base is frozen already. To adapt the upper "
            "layers alone, give lora_num_layers."
        )
    total = model.config.get_text_config().num_hidden_layers
    if not 0 < count <= total:
        raise ValueError(f"num_frozen_layers is {count}, but the model has {total} layers: give 0 to {total}.")
    stacks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == total
    ]
    if not stacks:
        raise ValueError(f"{type(model).__name__} has no list of {total} layers, so none can be frozen by its number.")
    frozen = tuple(f"{stacks[0]}.{layer}." for layer in range(count))
    # Parameters come in the order in which a model was put together: those before the first layer are embeddings.
    below = True
    for name, parameter in model.named_parameters():
        below = below and not name.startswith(f"{stacks[0]}.")
        if below or name.startswith(frozen):
            parameter.requires_grad_(False)
