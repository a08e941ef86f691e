"""One base, many roles: what is checked before a model is loaded, and the rewards that read the policy's base."""

import re
from typing import Any

from rlhf_recipes.modeling.loading import ModelArguments, is_adapter
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.rewards.contract.checks import all_inside, reads_policy_base
from rlhf_recipes.rewards.contract.timed import TimedReward
from rlhf_recipes.starting.precision import check_precision


def check_before_loading(args: PPOConfig, model_args: ModelArguments, reward: Any = None) -> None:
    """Raise where roles, bases and precision do not fit together, before a model is loaded.

    Args:
        reward ([`~rlhf_recipes.rewards.WeightedSum`], *optional*): What is rewarded.

    Raises:
        `ValueError`: if a role is to share the base of a policy that trains all of it, if a reward was trained on
            another base, or as [`~rlhf_recipes.starting.precision.check_precision`].
        `ImportError`: for a quantized model without bitsandbytes.
    """
    check_precision(model_args, args)
    name = str(model_args.model_name_or_path or "")
    adapts = model_args.use_peft or is_adapter(name)
    sharing = rewards_on_policy(reward)
    roles = ["critic 'adapter'"] * (args.critic == "adapter")
    roles += [f"reward {func.__name__!r} (base: policy)" for func in sharing]
    if roles and not adapts:
        raise ValueError(
            f"{roles[0].capitalize()} shares the policy's base, but the policy trains all of its weights, so that no "
            "base stays. Add use_peft, or let it stand alone (critic: policy; base: own)."
        )
    for func in sharing:
        from rlhf_recipes.modeling.adapters import base_of_adapter, check_same_base

        base = base_of_adapter(name) if is_adapter(name) else name
        check_same_base(base, base_of_adapter(func.source), f"The reward {func.source!r}")


def rewards_on_policy(reward: Any) -> list[Any]:
    """The rewards, at any depth, that read the policy's base.

    Raises:
        `ValueError`: if one has a time limit, and so a process of its own, or two would be one adapter.
    """
    found = []
    for func in () if reward is None else all_inside(reward):
        inside = [one for one in all_inside(func) if reads_policy_base(one)]
        if isinstance(func, TimedReward) and inside:
            raise ValueError(
                f"The reward {func.__name__!r} has a timeout, and so a process of its own, which has no policy whose "
                "base it could read (base: policy). Leave out timeout, or let it stand alone (base: own)."
            )
        found += [func] if reads_policy_base(func) else []
    names = [adapter_name(func) for func in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"Two rewards on the policy's base would be one adapter, {twice!r}: "
            f"{', '.join(str(func.source) for func in found)}. Give each a name of its own."
        )
    return found


def adapter_name(reward: Any) -> str:
    """What the adapter of a reward is called on the policy's base."""
    return "reward_" + re.sub(r"\W", "_", reward.__name__)


def put_rewards_on(policy: Any, reward: Any) -> None:
    """Give the rewards that read the policy's base the policy.

    Raises:
        `ValueError`: as [`~rlhf_recipes.rewards.LearnedReward.put_on`].
    """
    for func in rewards_on_policy(reward):
        func.put_on(policy, adapter_name(func))
