"""One base, many roles: what is checked before anything is loaded, and the rewards that read the policy's base."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_recipes.imports import beside
from rlhf_recipes.modeling.loading import ModelArguments, check_model_path, is_adapter
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.rewards.contract.checks import all_inside, reads_policy_base
from rlhf_recipes.rewards.contract.timed import TimedReward
from rlhf_recipes.starting.precision import check_precision


def check_before_loading(args: PPOConfig, model_args: ModelArguments, reward_funcs: Sequence[Any] = ()) -> None:
    """Raise where roles, bases and precision do not fit together, before anything is loaded.

    Args:
        reward_funcs (`Sequence`, *optional*): What is rewarded, as [`~rlhf_recipes.rewards.load_rewards`] takes it.

    Raises:
        `ValueError`: if a role is to share the base of a policy that trains all of it; if a reward was trained on
            another base, or two would be one adapter; or as [`~rlhf_recipes.starting.precision.check_precision`].
        `ImportError`: for a quantized model without bitsandbytes.
    """
    check_precision(model_args, args)
    name = str(model_args.model_name_or_path or "")
    sharing = [pair for spec in reward_funcs for pair in named_on_policy(beside(spec, getattr(spec, "folder", None)))]
    roles = ["critic: adapter"] * (args.critic == "adapter")
    roles += [f"base: policy of the reward {reward!r}" for reward, _ in sharing]
    if roles and name and not (model_args.use_peft or is_adapter(name)):
        raise ValueError(
            f"{roles[0]} shares the policy's base, but the policy trains all of its weights, so that no base stays. "
            "Add use_peft, or let it stand alone (critic: policy; base: own)."
        )
    names = [adapter_name(reward) for reward, _ in sharing]
    for twice in {one for one in names if names.count(one) > 1}:
        raise ValueError(
            f"Two rewards on the policy's base would be one adapter, {twice!r}: "
            f"{', '.join(repr(reward) for reward, _ in sharing)}. Give each a name of its own."
        )
    if not sharing:
        return
    from rlhf_recipes.modeling.adapters import base_of_adapter, check_same_base  # they bring models
    from rlhf_recipes.rewards.learned import adapter_folder

    for _, source in sharing:
        folder = adapter_folder(check_model_path(source))
        base = base_of_adapter(name) if is_adapter(name) else name
        check_same_base(base, base_of_adapter(folder), f"The reward {folder!r}")


def named_on_policy(spec: Any) -> Iterator[tuple[str, str]]:
    """Name and folder of the rewards with `base: policy` in an entry of a YAML file, at any depth."""
    if isinstance(spec, Mapping):
        args = spec.get("args")
        if isinstance(args, Mapping) and args.get("base") == "policy" and isinstance(spec.get("func"), str):
            folder = spec["func"] if spec["func"] != "LearnedReward" else str(args.get("model"))
            yield str(spec.get("name") or Path(folder).name), folder
        for value in spec.values():
            yield from named_on_policy(value)
    elif isinstance(spec, list | tuple):
        for value in spec:
            yield from named_on_policy(value)


def rewards_on_policy(reward: Any) -> list[Any]:
    """The rewards, at any depth, that read the policy's base.

    Raises:
        `ValueError`: if one has a time limit, and so a process of its own.
    """
    found = []
    for func in all_inside(reward):
        if isinstance(func, TimedReward) and any(map(reads_policy_base, all_inside(func))):
            raise ValueError(
                f"The reward {func.__name__!r} has a timeout, and so a process of its own, which has no policy whose "
                "base it could read (base: policy). Leave out timeout, or let it stand alone (base: own)."
            )
        found += [func] if reads_policy_base(func) else []
    return found


def adapter_name(reward: str) -> str:
    """What the adapter of a reward is called on the policy's base."""
    return "reward_" + re.sub(r"\W", "_", reward)


def put_rewards_on(policy: Any, reward: Any) -> None:
    """Give the rewards that read the policy's base the policy.

    Raises:
        `ValueError`: as [`~rlhf_recipes.rewards.LearnedReward.put_on`], and if one has a time limit.
    """
    for func in rewards_on_policy(reward):
        func.put_on(policy, adapter_name(func.__name__))
