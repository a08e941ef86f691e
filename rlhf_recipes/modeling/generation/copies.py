"""A copy of the policy to sample with: in half precision, adapters merged, brought up to date before each rollout."""

import copy
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from rlhf_recipes.modeling.cost.threads import cpu_has_bfloat16

PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def check_precision(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a precision in which this device would sample no faster.

    Raises:
        `ValueError`: with what to give instead.
    """
    if dtype not in PRECISIONS.values():
        raise ValueError(f"Sampling in {dtype} is not known. Give one of {', '.join(PRECISIONS)}.")
    if device.type == "cpu" and dtype == torch.float16:
        raise ValueError("A CPU samples in float16 more slowly than in float32. Give bfloat16, or leave it out.")
    if device.type == "cpu" and dtype == torch.bfloat16 and not cpu_has_bfloat16():
        raise ValueError(
            "This CPU has no instructions for bfloat16 (AVX512-BF16 or AMX): sampling in it would take longer than in "
            "float32. Leave the precision of sampling out."
        )
    if device.type == "cuda" and dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported(False):
        raise ValueError("This GPU has no bfloat16. Sample in float16, or leave the precision of sampling out.")


class SamplingCopy:
    """The policy's weights in another precision, each adapter added to the weight that it changes (arXiv 2106.09685).

    The policy itself stays as it is, bit for bit: merging there and back would not round back. Sums are taken in the
    policy's precision and rounded once. The copy stands where the policy stands when it is made.

    Args:
        policy (`PreTrainedModel` or `PeftModel`): The model in training, without what a launcher wraps around it.
        dtype (`torch.dtype`): Precision of the copy; float32 gives one that only has its adapters merged.

    Attributes:
        model (`PreTrainedModel`): The copy, in evaluation mode, without gradients or adapters.

    Raises:
        `ValueError`: for a precision that the device lacks, a quantized base, weights of which this process holds only
            a part (ZeRO-3), or adapters that change no weights (prompt tuning).
    """

    def __init__(self, policy: PreTrainedModel | PeftModel, dtype: torch.dtype) -> None:
        check_precision(dtype, next(policy.parameters()).device)
        _refuse_uncopyable(policy)
        self.source: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
        # Copied in the new precision at once: a copy in the old one might not fit beside it.
        converted: dict[int, Any] = {
            id(weight): nn.Parameter(weight.detach().to(dtype, copy=True), requires_grad=False)
            for weight in policy.parameters()
        }
        duplicate: Any = copy.deepcopy(policy, converted)
        if isinstance(policy, PeftModel):
            duplicate = duplicate.unload()
        self.model: Any = duplicate.eval().requires_grad_(False)
        self.model.config.dtype = dtype
        self.adapted = _adapted(self.source)
        for name in self.adapted:
            # A weight that is shared (tied embeddings) must not take over what an adapter adds to one of its uses.
            for module in self.model.get_submodule(name).modules():
                for own, weight in list(module.named_parameters(recurse=False)):
                    setattr(module, own, nn.Parameter(weight.detach().clone(), requires_grad=False))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Take over what training has changed: weights that are trained, and those that adapters change."""
        for name, module in self.adapted.items():
            merged = merged_copy(module)
            for own, weight in self.model.get_submodule(name).named_parameters():
                weight.copy_(merged.get_parameter(own))
        inside = tuple(f"{name}." for name in self.adapted)
        for name, weight in self.source.named_parameters():
            if weight.requires_grad and not name.startswith(inside):
                self.model.get_parameter(name).copy_(weight)


def _adapted(base: nn.Module) -> dict[str, nn.Module]:
    """The modules that peft has put in the place of the model's own, by their names."""
    found: dict[str, nn.Module] = {}
    for name, module in base.named_modules():
        is_theirs = isinstance(module, BaseTunerLayer) or hasattr(module, "unload_and_optionally_merge_module")
        if is_theirs and not name.startswith(tuple(f"{outer}." for outer in found)):
            found[name] = module
    return found


def merged_copy(module: Any) -> Any:
    """A module of the model's own kind with the active adapters in its weights, made of a copy."""
    duplicate = copy.deepcopy(module)
    if hasattr(duplicate, "unload_and_optionally_merge_module"):
        return duplicate.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
    duplicate.merge()
    return duplicate.get_base_layer()


def _refuse_uncopyable(policy: PreTrainedModel | PeftModel) -> None:
    base: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    weights = list(policy.parameters())
    if getattr(base, "hf_quantizer", None) is not None or not all(weight.is_floating_point() for weight in weights):
        method = getattr(getattr(base, "quantization_method", None), "value", None) or "quantized"
        raise ValueError(
            f"The base model is quantized ({method}): it is sampled from as it is, and there is no copy of it in half "
            "precision. Leave the precision of sampling out, or load the base in full precision."
        )
    if any(weight.numel() == 0 or type(weight.data) is not torch.Tensor for weight in weights):
        raise ValueError(
            "This process holds only a part of the weights (ZeRO-3 or FSDP), so there is no copy to sample with. "
            "Leave the precision of sampling out, or take ZeRO-2."
        )
    if isinstance(policy, PeftModel) and policy.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{policy.active_peft_config.peft_type} learns a prompt and changes no weights, so no copy of the weights "
            "could be sampled with. Leave the precision of sampling out."
        )
