"""Randomness that stays on in training after dropout is off, found by what the model says and switched off.

PPO's ratio compares the policy of the update with that of the rollout. A policy that draws at random while it trains
(dropout that is read from the configuration, noise on the router of experts) has another ratio than 1 before a single
weight has changed, and PPO would learn from its noise.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.modeling.checks.shortcuts import in_full_precision, of_all_processes, plain_logprobs
from rlhf_recipes.modeling.logprobs import base_of
from rlhf_recipes.modeling.roles import ActorCritic

logger = logging.getLogger(__name__)


def switch_off_randomness(roles: ActorCritic, tokens: Mapping[str, Tensor], temperature: float) -> list[str]:
    """Make policy and critic say the same in training as in evaluation, where that can be done.

    It asks the model in both modes. Where the answers differ, it looks for the modules that draw random numbers. Those
    that hold a configuration with dropout in it may read it each time they are called (Falcon): it is set to 0. The
    others stay in evaluation mode (routers of experts). Every process must call it, with `few_rows`; all do the same.

    Returns:
        `list[str]`: why the policy still says something else in training; empty where it does not.
    """
    device = tokens["mask"].device
    limit = 1e-5 if in_full_precision(roles.policy, device) else 0.02
    causes = _switch_off(roles, roles.policy, lambda: plain_logprobs(roles.policy, tokens, temperature), limit, device)
    if roles.critic is not None and not roles.critic.reads_policy:
        # A critic with an adapter on the policy's base has no other modules than the policy.
        _switch_off(roles, getattr(roles.critic, "model", roles.policy), lambda: _values(roles, tokens), limit, device)
    return causes


@torch.no_grad()
def _values(roles: ActorCritic, tokens: Mapping[str, Tensor]) -> Tensor:
    return roles(**tokens, temperature=1.0)["values"][tokens["mask"].bool()]


def _switch_off(
    roles: ActorCritic, model: nn.Module, read: Callable[[], Tensor], limit: float, device: torch.device
) -> list[str]:
    expected = read()  # in evaluation mode, as all models are while a rollout is collected

    def is_steady() -> bool:
        with _training(roles, device):
            distance = max(float((read() - expected).abs().mean()) for _ in range(2))
        return not of_all_processes([] if distance <= limit else ["unsteady"])

    name = type(base_of(model)).__name__
    modules = dict(model.named_modules())
    off: list[str] = []
    while not is_steady():  # what an outer module draws shows when the inner ones are still
        drawing = of_all_processes(_drawing(roles, model, read, device))
        changed = _zero_dropout_of_configs([modules[path] for path in drawing])
        fresh = [path for path in drawing if modules[path] not in roles.always_in_eval]
        if changed:
            off.append(f"{', '.join(changed)} in its configuration")
        elif fresh:
            roles.always_in_eval += [modules[path] for path in fresh]
            kinds = ", ".join(sorted({type(modules[path]).__name__ for path in fresh}))
            off.append(f"the training mode of {len(fresh)} modules ({kinds}, such as {fresh[0]})")
        else:
            return [_cause(name, drawing)]
    if off:
        logger.warning("%s draws at random in training, which PPO would take for a change of the policy. Switched "
                       "off: %s.", name, "; ".join(off))  # fmt: skip
    return []


def _cause(name: str, drawing: list[str]) -> str:
    if drawing:
        return f"{name} draws at random in {', '.join(drawing[:3])}, in evaluation mode too"
    return f"{name} computes something else in training mode than in evaluation mode, without random numbers of torch"


@contextlib.contextmanager
def _training(roles: ActorCritic, device: torch.device) -> Iterator[None]:
    """Training mode, and afterwards evaluation mode and the random numbers that would have come anyway."""
    with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device], device_type=_accelerator(device)):
        roles.train()
        try:
            yield
        finally:
            roles.eval()


def _accelerator(device: torch.device) -> str:
    return "cuda" if device.type == "cpu" else device.type


def _zero_dropout_of_configs(modules: Sequence[nn.Module]) -> list[str]:
    changed = set()
    for module in modules:
        settings = vars(module.config) if hasattr(module, "config") else {}
        for name, value in list(settings.items()):
            if "dropout" in name and isinstance(value, float) and value > 0:
                setattr(module.config, name, 0.0)
                changed.add(f"{name} {value:g}")
    return sorted(changed)


def _drawing(roles: ActorCritic, model: nn.Module, read: Callable[[], Tensor], device: torch.device) -> list[str]:
    """The innermost modules that move torch's random number generator when they are called in training mode."""
    paths = {module: path for path, module in model.named_modules()}
    before: dict[nn.Module, Any] = {}
    drew: set[str] = set()

    def state() -> Tensor:
        return torch.get_rng_state() if device.type == "cpu" else torch.get_device_module(device).get_rng_state(device)

    def enter(module: nn.Module, _: Any) -> None:
        before[module] = state()

    def leave(module: nn.Module, *_: Any) -> None:
        if module in before and not torch.equal(before.pop(module), state()):
            drew.add(paths[module])

    hooks = [module.register_forward_pre_hook(enter) for module in paths]
    hooks += [module.register_forward_hook(leave) for module in paths]
    try:
        with _training(roles, device):
            read()
    finally:
        for hook in hooks:
            hook.remove()
    # An outer module moves it too where an inner one does. The model as a whole has the path "".
    return [path for path in drew if path and not any(other.startswith(f"{path}.") for other in drew)]
