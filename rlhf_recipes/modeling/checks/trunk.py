"""Whether a trunk and what stands on it are the whole model, asked of the first batch."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes.modeling.checks.shortcuts import limit_of, of_all_processes, put_aside
from rlhf_recipes.modeling.generation import Written
from rlhf_recipes.modeling.logprobs import base_of
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.trunk.trunk import Trunk

logger = logging.getLogger(__name__)
ROWS, TOKENS = 4, 2048  # of the completions that are read again, at most


@torch.no_grad()
def check_trunk(roles: ActorCritic, tokens: Mapping[str, Tensor], temperature: float) -> None:
    """Put the trunk aside for the roles that say something else with it, with a line that says why.

    Every process must call it, with all models in evaluation mode; all come to the same answer.

    Args:
        tokens (`Mapping`): `prompt_ids`, `prompt_mask`, `completion_ids`, `mask` of a few rows.
    """
    for role in ("policy", "reference"):
        trunk = roles.trunks[role]
        if trunk is None:
            continue
        reason = _unlike(roles, role, trunk, tokens, temperature)
        if of_all_processes([role] if reason else []):
            model = roles.policy if role == "policy" or roles.ref_model is None else roles.ref_model
            put_aside("trunk", f"{role} ({type(base_of(model)).__name__})", reason or "another process saw so")
            roles.trunks[role] = None
    if roles.trunks["policy"] is None:
        roles.trunks["reference"] = None  # whose states it was to share


def _unlike(
    roles: ActorCritic, role: str, trunk: Trunk, tokens: Mapping[str, Tensor], temperature: float
) -> str | None:
    def said(states: Tensor | None) -> Tensor:
        inputs: dict[str, Any] = {**tokens, "temperature": temperature, "states": states}
        if role == "reference":
            return roles.reference_logprobs(**inputs)[real]
        out = roles(**inputs)
        # Values may be of any size: in units of their own, at least of 1.
        values = out["values"][real]
        return torch.cat([out["logprobs"][real], values / values.abs().max().clamp(min=1)])

    real = tokens["mask"].bool()
    try:
        below = roles.trunks["policy"] or trunk
        states, early = _read_watched(below, roles, tokens)
        if early:
            return f"{early} is trained, and is called before the frozen layers end"
        distance = float((said(states) - said(None)).abs().mean())
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # it takes the model apart, and any part may be another than it takes it for
        return f"it ends with {type(error).__name__}: {error}"
    if distance <= limit_of(base_of(roles.policy), real.device):
        return None
    return f"its log-probabilities are {distance:.2g} nats away from the model's on average"


def _read_watched(trunk: Trunk, roles: ActorCritic, tokens: Mapping[str, Tensor]) -> tuple[Tensor | None, str | None]:
    """What the trunk says, and the name of a trained module that was called on the way, if any."""
    called: list[str] = []
    hooks = []
    for name, module in roles.policy.named_modules():
        if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: called.append(name)))
    try:
        return roles.read_trunk(tokens), (called[0] if called else None)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def check_written(roles: ActorCritic, written: Written, temperature: float) -> None:
    """Find out whether what was kept while completions were written is as exact as reading them again.

    Sets `roles.as_written`. It is not where sampling computes in another precision, or where a model says something
    else of a text that is padded.
    """
    if written.logprobs is None or written.head_inputs is None:
        roles.as_written = False
        return
    width = written.prompt_mask.shape[1] + written.mask.shape[1]
    rows = slice(0, max(1, min(ROWS, TOKENS // width)))
    names = ("prompt_ids", "prompt_mask", "completion_ids", "mask")
    real = written.mask[rows].bool()
    read = roles(**{name: getattr(written, name)[rows] for name in names}, temperature=temperature)["logprobs"][real]
    distance = float((written.logprobs[rows][real] - read).abs().mean())
    exact = distance <= 1e-5  # of which the mean |log ratio| of the first update would be made
    roles.as_written = not of_all_processes([] if exact else ["inexact"])
    logger.info(
        "Completions as they were written: log-probabilities within %.1g nats of reading them again.", distance
    )
