"""Where the models of a run stand: what a launcher allows, devices, and weights that ZeRO-3 has divided."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl.models import prepare_deepspeed, unwrap_model_for_generation

from rlhf_recipes.modeling.memory.roles import kept_states, memory_line
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.modeling.saving import refuse_two_forms
from rlhf_recipes.modeling.zero import gathered, is_divided, match_precision
from rlhf_recipes.ppo.run.bases import put_rewards_on, rewards_on_policy
from rlhf_recipes.ppo.run.callbacks import RolloutProgress
from rlhf_recipes.ppo.vllm.generator import VLLMGenerator

logger = logging.getLogger(__name__)


def place_models(trainer: Any, reward_model: Any) -> None:
    """Refuse what the launcher cannot do, put the other models where the policy is, and show progress.

    Args:
        trainer ([`~rlhf_recipes.ppo.trainer.PPOTrainer`]): Whose set-up is otherwise complete.
        reward_model (`nn.Module`, *optional*): One that was given as an object; others stand with their rewards.

    Raises:
        `ValueError`: if the launcher's way of dividing work or weights is none that PPO knows.
    """
    _check_launch(trainer)
    put_rewards_on(trainer.roles.policy, trainer.reward)
    if isinstance(reward_model, nn.Module):
        reward_model.to(trainer.args.device)
    roles = trainer.roles
    match_precision(roles)
    if roles.ref_model is not None and trainer.is_deepspeed_enabled:
        # In shares under ZeRO-3, and in any case in the precision of the policy.
        roles.replace_reference(prepare_deepspeed(roles.ref_model, trainer.accelerator))
    elif roles.ref_model is not None:
        roles.ref_model.to(trainer.args.device)
    if trainer.is_world_process_zero():
        logger.info("%s", _memory(trainer))
    trainer.keeps_trunk = trunk_fits(trainer)
    trainer.remove_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback):
        trainer.add_callback(RolloutProgress(trainer.sizes))


def trunk_fits(trainer: Any) -> bool:
    """Whether what the frozen layers say of a rollout of all processes may be kept for its update."""
    trunk = trainer.roles.trunks["policy"]
    if trunk is None:
        return False
    settings, sizes, config = trainer.settings, trainer.sizes, trainer.roles.config.get_text_config()
    width = max(len(ids) for ids in trainer.prompts["train"].ids) + settings.max_completion_length
    taken = kept_states(sizes.rollout, width, config.hidden_size, trainer.roles.policy.dtype.itemsize) / 1e9
    fits = taken <= settings.trunk_memory_gb
    if trainer.is_world_process_zero():
        depth, layers = len(trunk.layers), config.num_hidden_layers
        logger.info("Layers 1 to %d of %d are frozen and run once for each token; %s", depth, layers,
                    f"what they say of a rollout is kept in {taken:.2g} GB." if fits else
                    f"what they say of a rollout would take {taken:.2g} GB, more than trunk_memory_gb "
                    f"{settings.trunk_memory_gb:g}, and is computed again in the update.")  # fmt: skip
    return fits


def _check_launch(trainer: Any) -> None:
    if trainer.args.n_gpu > 1:
        raise ValueError(
            "Several GPUs are visible to one process. Start with `accelerate launch`, or make one visible with "
            "CUDA_VISIBLE_DEVICES."
        )
    # Now, and not when the training that it would spoil is over.
    as_adapter = isinstance(trainer.roles.policy, PeftModel) and not trainer.settings.save_merged
    refuse_two_forms(Path(str(trainer.args.output_dir)), as_adapter)
    if trainer.is_fsdp_enabled:
        raise ValueError("PPO does not know FSDP. Divide a large model with accelerate_configs/zero3.yaml.")
    if is_divided(trainer.roles) and hasattr(trainer.generator, "sync"):
        raise ValueError("A generator that is given the weights does not work with ZeRO-3. Take zero2.yaml.")
    if trainer.is_deepspeed_enabled and trainer.settings.max_tokens_per_batch is not None:
        raise ValueError(
            "max_tokens_per_batch goes over a micro-batch in parts, of which DeepSpeed would count each as one. Leave "
            "it out, and lower per_device_train_batch_size."
        )
    shared = rewards_on_policy(trainer.reward) or getattr(trainer.roles.critic, "adapter", None)
    if is_divided(trainer.roles) and shared:
        raise ValueError(
            "ZeRO-3 divides the base among processes, and PPO does not let a critic or reward read the policy's then "
            "(critic: adapter; base: policy). Take ddp.yaml, or let it stand alone (critic: policy; base: own)."
        )
    if isinstance(trainer.generator, VLLMGenerator):
        longest = max(len(ids) for prompts in trainer.prompts.values() for ids in prompts.ids)
        trainer.generator.check(trainer.roles.policy, trainer.sampling, longest)
    for name in ("target_kl", "critic_warmup"):
        if trainer.is_deepspeed_enabled and getattr(trainer.settings, name):
            raise ValueError(
                f"{name} keeps weights still in some optimizer steps, which DeepSpeed does not allow: its step "
                "follows the backward pass at once. Leave it out."
            )


def _memory(trainer: Any) -> str:
    """One line: what policy, critic, reference and reward models take, in weights, gradients and optimizer."""
    rewards = {
        f"reward {name}": getattr(getattr(func, "reward", func), "model", None)
        for name, func in zip(trainer.reward.names, trainer.reward.reward_funcs, strict=True)
    }
    models = {name: model for name, model in rewards.items() if isinstance(model, nn.Module)}
    roles = {"policy": trainer.roles.policy, "reference": trainer.roles.ref_model, "critic": trainer.roles.critic}
    rows = max(trainer.sizes.micro, min(trainer.sizes.local_rollout, trainer.settings.rollout_forward_batch_size))
    tokens = min(rows * trainer.settings.max_completion_length, trainer.settings.logits_chunk_size)
    return memory_line(roles | models, trainer.args, logits_tokens=tokens)


@contextlib.contextmanager
def policy_for_sampling(trainer: Any) -> Iterator[ActorCritic]:
    """The roles, the policy's weights whole under ZeRO-3 (`ds3_gather_for_generation`)."""
    if not is_divided(trainer.roles):
        yield trainer.roles
        return
    if trainer.model_wrapped is trainer.model:  # not training yet: nothing else would put the weights together
        with gathered(trainer.roles.parameters()):
            yield trainer.roles
        return
    gather = trainer.settings.ds3_gather_for_generation
    with unwrap_model_for_generation(
        trainer.model_wrapped, trainer.accelerator, gather_deepspeed3_params=gather
    ) as roles:
        yield roles
