"""What a PPO run leaves behind: the policy with its critic, the model card, and the same on the Hub."""

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from rlhf_recipes import filenames
from rlhf_recipes.errors import PushError
from rlhf_recipes.hub import license_of, push_run
from rlhf_recipes.modeling.zero import is_divided, whole_state_dict
from rlhf_recipes.ppo.metrics import GLOSSARY
from rlhf_recipes.ppo.run import tables as completions
from rlhf_recipes.ppo.run.checkpoint import save_state
from rlhf_recipes.report.policy_card import Sample, config_of, facts_of_run, write_model_card
from rlhf_recipes.report.run import Reward
from rlhf_recipes.texts import is_conversational

logger = logging.getLogger(__name__)
SAMPLES = 5  # completions on the model card


def save_model(trainer: Any, folder: Path, in_checkpoint: bool = False) -> None:
    """Write policy (or its adapters) and tokenizer at the root of the folder, the critic in `critic/`.

    Args:
        in_checkpoint (`bool`, *optional*): Adapters stay apart, and the state of the run goes beside them, before
            `trainer_state.json` says that the checkpoint is whole.
    """
    roles = trainer.roles
    whole = whole_state_dict(roles, trainer.args.should_save) if is_divided(roles) else None
    if trainer.args.should_save:
        roles.save_pretrained(folder, whole, merge=trainer.settings.save_merged and not in_checkpoint)
        trainer.processing_class.save_pretrained(folder)
    if in_checkpoint:
        state = trainer.state_dict()
        if trainer.args.should_save:
            save_state(folder, state)


def stop_at_nan(trainer: Any, loss: Tensor, inputs: dict[str, Tensor]) -> None:
    """Stop all processes before the weights are changed, and leave behind what is needed to understand it.

    Raises:
        `FloatingPointError`: if the loss of any process is not finite.
    """
    finite = torch.isfinite(loss.detach()).float()
    if trainer.sizes.world > 1:
        finite = trainer.accelerator.reduce(finite.reshape(1), reduction="sum") / trainer.sizes.world
    if finite == 1.0:
        return
    step = trainer.state.global_step
    folder = Path(str(trainer.args.output_dir)) / f"nan-step-{step}"
    save_model(trainer, folder, in_checkpoint=True)
    batch = folder / f"batch-of-process-{trainer.args.process_index}.pt"
    torch.save({name: tensor.detach().cpu() for name, tensor in inputs.items()}, batch)
    scores = inputs["scores"]
    said = loss.item() if not loss.isfinite() else "not finite on another process"
    raise FloatingPointError(
        f"The loss is {said} at step {step}. The weights are as they were before this step; they and the "
        f"batch are saved in {folder} (scores of the batch from {scores.min():.4g} to {scores.max():.4g}). Lower "
        "learning_rate, or look at the rewards of this rollout."
    )


def push_checkpoint(trainer: Any, folder: str) -> None:
    """Push the model of a checkpoint; a push that fails is told, and training goes on."""
    args, message = trainer.args, f"Training in progress, step {trainer.state.global_step}"
    try:  # README.md of a checkpoint is an empty form of peft's
        push_run(folder, str(trainer.hub_model_id), args.hub_token, commit_message=message, ignore=[filenames.README],
                 revision=args.hub_revision)  # fmt: skip
    except PushError as error:
        logger.warning("%s Training goes on.", error)


def create_model_card(
    trainer: Any, dataset_name: str | None = None, model_name: str | None = None, **known: Any
) -> None:
    """Write the README.md of the run's folder: figures, curves, rewards and settings of this run.

    Args:
        known: What the caller knows better; fields of [`~rlhf_recipes.report.policy_card.RunFacts`], such as
            `config`, the run's own YAML.
    """
    if not trainer.is_world_process_zero():
        return
    policy = trainer.roles.policy
    adapter = isinstance(policy, PeftModel) and not trainer.settings.save_merged
    base = getattr(policy, "active_peft_config", policy.config)
    base = getattr(base, "base_model_name_or_path", None) or policy.config.name_or_path
    facts = {
        "base_model": base or "an unnamed model",
        "dataset_name": dataset_name or "an unnamed dataset",
        "num_examples": len(trainer.prompts["train"]),
        "repo_id": trainer.hub_model_id,
        "rewards": [Reward(name, weight) for name, weight in trainer.reward.weights_at(1.0).items()],
        "samples": [
            Sample(completions.readable(row["prompt"]), row["completion"], row["score"])
            for row in completions.spread(trainer.last_rows, SAMPLES)
        ],
        "conversational": is_conversational(trainer.prompts["train"].dataset[0]["prompt"]),
        "license": license_of(str(base)),
    }
    config = known.pop("config", None) or config_of(trainer.settings)
    history = trainer.state.log_history
    write_model_card(
        str(trainer.args.output_dir),
        facts_of_run(config, history, adapter=adapter, glossary=GLOSSARY, **(facts | known)),
    )


def push_to_hub(
    trainer: Any,
    commit_message: str = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
    **known: Any,
) -> Any:
    """Push policy, critic, tokenizer and card, and nothing else of the run's folder.

    Args:
        known: For [`create_model_card`].

    Raises:
        `PushError`: if it fails, with what to do; the local files stay as they are.
    """
    token = token or trainer.args.hub_token
    if trainer.hub_model_id is None:
        trainer.init_hf_repo(token=token)
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    folder = Path(str(trainer.args.output_dir))
    save_model(trainer, folder)
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(**known)
    return push_run(folder, str(trainer.hub_model_id), token, private=private, commit_message=commit_message,
                    revision=revision or trainer.args.hub_revision)  # fmt: skip
