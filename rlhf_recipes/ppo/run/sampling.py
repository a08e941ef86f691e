"""Who writes the completions of a run in this process: the policy itself, or a copy of it in half precision."""

from typing import Any

from rlhf_recipes.modeling.generation import LocalGenerator
from rlhf_recipes.modeling.generation.copies import PRECISIONS, SamplingCopy
from rlhf_recipes.modeling.roles import ActorCritic


def local_generator(trainer: Any, roles: ActorCritic, keep: bool) -> LocalGenerator:
    """A generator with the policy's weights as they are now.

    Args:
        trainer ([`~rlhf_recipes.ppo.trainer.PPOTrainer`]): Whose settings these are.
        roles ([`ActorCritic`]): Its roles, the weights whole.
        keep (`bool`): Keep what is computed on the way, so that it need not be read again: what the output layer
            reads, and, where a rollout of it may be kept, what the frozen lower layers say.
    """
    dtype, pack = trainer.settings.rollout_dtype, trainer.settings.packed_decoding
    if dtype is None:
        trunk = roles.trunks["policy"] if keep and trainer.keeps_trunk else None
        watch = None if trunk is None else trunk.last
        return LocalGenerator(roles.policy, trainer.processing_class, watch, keep_head_inputs=keep, pack=pack)
    if trainer.sampling_copy is None:
        trainer.sampling_copy = SamplingCopy(roles.policy, PRECISIONS[dtype])
    trainer.sampling_copy.refresh()
    return LocalGenerator(trainer.sampling_copy.model, trainer.processing_class, pack=pack)
