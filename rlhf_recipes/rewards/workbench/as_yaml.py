"""A list of rewards as a block of YAML that a recipe takes."""

import dataclasses
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from rlhf_recipes.rewards.contract.checks import Weight
from rlhf_recipes.rewards.loading import LoadedReward
from rlhf_recipes.rewards.weighted_sum import WeightSchedule

YAML_WIDTH = 110  # a longer reward is written over several lines


def entry_of(spec: Mapping[str, Any], weight: Weight) -> list[str]:
    """The lines of one reward with its weight, a number or a schedule."""
    unsaid = "   # made in Python: say where it is, as file.py:name" if _is_nowhere(spec["func"]) else ""
    if isinstance(weight, WeightSchedule):
        written: Any = {
            item.name: _rounded(value) if isinstance(value := getattr(weight, item.name), float) else value
            for item in dataclasses.fields(weight)
            if getattr(weight, item.name) != item.default
        }
    elif callable(weight):
        written, unsaid = None, "   # its weight is a Python function, which YAML cannot say"
    else:
        written = _rounded(weight)
    whole = {**spec, **({} if written is None else {"weight": written})}
    flow = _dump(whole, default_flow_style=True).strip()
    if len(flow) + 4 <= YAML_WIDTH:
        return [f"  - {flow}{unsaid}"]
    block = [f"  {line}" for line in _dump([whole], default_flow_style=False).splitlines()]
    return [block[0] + unsaid, *block[1:]]


def _is_nowhere(func: str) -> bool:
    """Whether it is a function that no other program could import."""
    return ":" in func and (func.startswith("__main__:") or "<" in func)


def _dump(value: Any, default_flow_style: bool) -> str:
    text: str = yaml.safe_dump(
        value, default_flow_style=default_flow_style, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _plain(spec: Any) -> Any:
    """Without classes of our own, which YAML does not know."""
    return json.loads(json.dumps(spec, default=str))


def specs_of(
    reward_funcs: Sequence[Any], given: Sequence[str | Mapping[str, Any]] | None = None
) -> tuple[Mapping[str, Any], ...]:
    """What a YAML file says of each reward but its weight.

    Args:
        given (`Sequence`, *optional*): The rewards as a file had them. Default: what the objects tell.
    """
    said = [_spec_of(func) for func in reward_funcs] if given is None else given
    as_mappings = [_plain({"func": spec} if isinstance(spec, str) else spec) for spec in said]
    return tuple({key: value for key, value in spec.items() if key != "weight"} for spec in as_mappings)


def _spec_of(func: Any) -> dict[str, Any]:
    """A reward that was made in Python, as a YAML file would say it."""
    if isinstance(func, LoadedReward):
        target, name, args = func.made_from
        spec = {"func": target} if isinstance(target, str) else _spec_of(target)
        return spec | ({"name": name} if name else {}) | ({"args": _said(args)} if args else {})
    if inspect.isroutine(func) or inspect.isclass(func):
        return {"func": f"{func.__module__}:{func.__qualname__}"}
    made = type(func)
    here = made.__module__.startswith("rlhf_recipes.")
    spec = {"func": made.__qualname__ if here else f"{made.__module__}:{made.__qualname__}"}
    settings = _settings(func)
    if isinstance(settings.get("name"), str):
        spec["name"] = settings.pop("name")
    return spec | ({"args": settings} if settings else {})


def _settings(func: Any) -> dict[str, Any]:
    """What it was made with, where that is not the default."""
    if dataclasses.is_dataclass(func):
        defaults = {
            item.name: item.default_factory() if callable(item.default_factory) else item.default
            for item in dataclasses.fields(func)
        }
        given = {name: getattr(func, name) for name in defaults}
    else:
        made = func.__reduce_ex__(2)
        if made[0] is not type(func):
            return {}
        bound = inspect.signature(type(func)).bind(*made[1])
        defaults = {name: parameter.default for name, parameter in bound.signature.parameters.items()}
        given = dict(bound.arguments)
    return {
        name: _said(value) for name, value in given.items() if value is not defaults[name] and value != defaults[name]
    }


def _said(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _said(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_said(inner) for inner in value]
    if callable(value):
        spec = _spec_of(value)
        return spec["func"] if len(spec) == 1 else spec
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
