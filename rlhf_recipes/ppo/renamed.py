"""Old spellings: options under the names that TRL gave them, and what replaced the classes that TRL removed.

An old name works and says the new one. Two of them, those of TRL 1.12, are also fields of [`PPOConfig`], so that its
command lines go on working; the older ones are accepted by the constructor alone.
"""

import functools
import logging
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

# Names of TRL 1.12, which are fields too.
TRL_1_12 = {
    "response_length": "max_completion_length",
    "local_rollout_forward_batch_size": "rollout_forward_batch_size",
}

# Names of TRL 0.11 and before, and of GRPOConfig.
OLDER = {
    "ppo_epochs": "num_ppo_epochs",
    "init_kl_coef": "kl_coef",
    "target": "kl_target",
    "horizon": "kl_horizon",
    "max_new_tokens": "max_completion_length",
    "max_response_length": "max_completion_length",
    "beta": "kl_coef",
    "epsilon": "cliprange",
    "epsilon_high": "cliprange_high",
    "delta": "dual_clip",
    "num_iterations": "num_ppo_epochs",
}
RENAMED = TRL_1_12 | OLDER

# Names that TRL worked out itself and stored in its config; here they are properties.
WORKED_OUT = {
    "batch_size": "per_device_train_batch_size, gradient_accumulation_steps and the number of processes",
    "local_batch_size": "per_device_train_batch_size and gradient_accumulation_steps",
    "micro_batch_size": "per_device_train_batch_size and the number of processes",
    "mini_batch_size": "the size of a rollout and num_mini_batches",
    "local_mini_batch_size": "the size of a rollout and num_mini_batches",
    "num_total_batches": "total_episodes and the size of a rollout",
    "world_size": "the launcher: accelerate launch --num_processes",
}
REMOVED = {
    "AutoModelForCausalLMWithValueHead": (
        "PPOTrainer puts the value head on the policy itself (PPOConfig(critic='head')) and saves it in critic/. Load "
        "the policy with AutoModelForCausalLM."
    ),
    "AutoModelForSeq2SeqLMWithValueHead": (
        "PPOTrainer trains decoders; encoder-decoder models have no place in it. Load a causal language model with "
        "AutoModelForCausalLM."
    ),
    "PreTrainedModelWrapper": (
        "Policy, critic and reference meet in rlhf_recipes.modeling.roles.ActorCritic, which PPOTrainer builds."
    ),
    "create_reference_model": "PPOTrainer makes the reference itself where ref_model is None.",
}
T = TypeVar("T", bound=type)


def accept_old_names(cls: T) -> T:
    """Let the constructor of a dataclass take the names of `RENAMED`, each with a warning that says the new one.

    Raises (at construction):
        `ValueError`: if an old and a new name of the same option disagree.
        `TypeError`: for a name of `WORKED_OUT`, saying what it follows from.
    """
    plain_init: Any = cls.__init__  # type: ignore[misc]

    @functools.wraps(plain_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        for old, new in RENAMED.items():
            if old not in kwargs or kwargs[old] is None:
                continue
            value = kwargs.pop(old)
            if isinstance(value, Echo):
                continue
            # A parser hands over every field, defaults included: a default of the new name is no contradiction.
            stated = kwargs.get(new, value)
            if stated != value and stated != cls.__dataclass_fields__[new].default:  # type: ignore[attr-defined]
                raise ValueError(f"{old} is {value!r}, but {new}, its new name, is {stated!r}. Give {new} alone.")
            logger.warning("%s is now called %s.", old, new)
            kwargs[new] = value
        for name, source in WORKED_OUT.items():
            if kwargs.get(name) is not None:
                raise TypeError(f"{name} cannot be given: it follows from {source}.")
            kwargs.pop(name, None)
        plain_init(self, *args, **kwargs)

    cls.__init__ = init  # type: ignore[misc]
    for old, new in TRL_1_12.items():
        setattr(cls, old, _alias(new))  # a script may read the old name, or set it
    return cls


class Echo(int):
    """What an old name answers. Handed back to the constructor, as `dataclasses.replace` does, it was not stated."""


def _alias(new: str) -> property:
    def read(self: Any) -> Echo:
        return Echo(getattr(self, new))

    def write(self: Any, value: int | None) -> None:
        if value is not None and not isinstance(value, Echo):
            setattr(self, new, value)

    return property(read, write)


def removed(name: str) -> Any:
    """Raise for a class that TRL removed.

    Raises:
        `ImportError`: always, naming what replaces it.
    """
    raise ImportError(f"{name} was removed with TRL's PPO. {REMOVED[name]} docs/migrating_from_trl.md has the rest.")
