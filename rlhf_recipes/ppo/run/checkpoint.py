"""What a PPO checkpoint holds besides the Trainer's own files, and with which settings a run may go on from it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from rlhf_recipes.checkpoints import find_checkpoint

STATE_FILE = "ppo_state.pt"

# Settings that change what a run computes. Others (where to save, how often to log, how to split a mini-batch) may be
# others after a resume. `total_episodes` may be too: a longer run is a wish one may have.
DECISIVE = (
    "num_ppo_epochs", "num_generations", "max_prompt_length", "overlong_prompts", "max_completion_length",
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "stop_token", "stop_token_id",
    "stop_strings", "generation_kwargs", "missing_eos_penalty", "mask_truncated_completions", "normalize_rewards",
    "use_score_scaling", "use_score_norm", "score_clip", "kl_coef", "kl_estimator", "use_kl_loss", "kl_target",
    "kl_horizon", "gamma", "lam", "lam_value", "lam_length_alpha", "whiten_rewards", "whiten_advantages", "critic",
    "critic_warmup", "vf_coef", "cliprange_value", "cliprange", "cliprange_high", "dual_clip", "entropy_coef",
    "target_kl", "imitation_coef", "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps",
    "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "optim", "optim_args",
    "ref_model_name_or_path", "ref_adapter_name", "model_adapter_name", "seed", "bf16", "fp16",
    "rollout_dtype",
)  # fmt: skip
DRAW_BEFORE = "Gumbel noise"  # of 0.1.0, whose checkpoints do not say so


def begin(trainer: Any, resume: str | bool | None) -> str | None:
    """Put the trainer where a run begins, or where a checkpoint left off.

    Returns:
        `str`: the checkpoint's folder, with `resume=True` the last whole one in `output_dir`; `None` at the beginning.

    Raises:
        `FileNotFoundError`: if there is no checkpoint to go on from.
        `ValueError`: if the checkpoint belongs to a run with other settings; each one is named.
    """
    if resume is True:
        folder = str(trainer.args.output_dir)
        resume = find_checkpoint(folder, "auto", required=[STATE_FILE])
        if resume is None:
            raise FileNotFoundError(f"There is no checkpoint in {folder!r} to go on from.")
    if resume:
        state = load_state(resume)
        refuse_other_settings(resume, state["settings"], decisive_settings(trainer))
        trainer.load_state_dict(state)
        trainer.episodes_before = state["episodes"]
    else:  # a second call begins anew
        trainer.credit.reset()
        trainer.episodes_before = 0
    trainer.start = trainer.update_start = time.perf_counter()
    return resume or None


def state_of(trainer: Any) -> dict[str, Any]:
    """What a resumed run needs besides weights, optimizer and schedule. Every process must call it."""
    step, sizes, meter = trainer.state.global_step, trainer.sizes, trainer.meter.state()
    between = step % sizes.updates == 0
    return {
        "settings": decisive_settings(trainer),
        "credit": trainer.credit.state_dict(),
        "meters": gather_object([meter]) if sizes.world > 1 else [meter],
        "stopped": trainer.stopped,
        "episodes": step // sizes.updates * sizes.rollout,
        "as_written": trainer.roles.as_written if trainer.first_update.seen_written else None,
        # Elsewhere a new rollout comes anyway.
        "rollout": None if between or trainer.rollout is None else trainer.rollout.tensors(),
    }


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Take over what `state_of` gave."""
    from rlhf_recipes.ppo.rollout import Rollout  # it brings models, for which the name of the file does not wait

    trainer.credit.load_state_dict(state["credit"])
    trainer.stopped = state["stopped"]
    if state.get("as_written") is not None:  # what was found once holds for the whole run
        trainer.roles.as_written, trainer.first_update.seen_written = state["as_written"], True
    tensors = state["rollout"]
    trainer.rollout = None if tensors is None else Rollout(**tensors).map(lambda _, t: t.to(trainer.args.device))
    trainer.meter.read()
    for number, of_process in enumerate(state["meters"]):
        if number % trainer.sizes.world == trainer.args.process_index:  # also where there are fewer processes now
            trainer.meter.merge(of_process)


def decisive_settings(trainer: Any) -> dict[str, Any]:
    """The settings that a resumed run must share with the checkpoint, as plain values."""
    from rlhf_recipes.modeling.generation import DRAW, stable_key  # it brings models too

    ids, demonstrations, sizes = trainer.prompts["train"].ids, trainer.demonstrations, trainer.sizes
    settings = {name: getattr(trainer.settings, name) for name in DECISIVE}
    if trainer.generator or settings["rollout_dtype"]:  # elsewhere the policy draws, and it decides nothing
        settings["importance_cap"] = trainer.settings.importance_cap
    settings |= {"episodes of a rollout": sizes.rollout, "episodes of a mini-batch": sizes.mini}
    settings |= {
        "draw": DRAW if trainer.generator is None else None,  # other generators draw as they like
        "rewards": repr(trainer.reward),
        "prompts": f"{len(ids)} ({stable_key(ids):x})",
        "demonstrations": f"{len(demonstrations)} ({stable_key(demonstrations):x})",
    }
    return {name: _plain(value) for name, value in settings.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return getattr(value, "value", value) if isinstance(value, str) else value
    return getattr(value, "value", None) or repr(value)


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write `ppo_state.pt`: plain values and tensors only, so that it can be read without trusting it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / STATE_FILE)


def load_state(checkpoint: str | Path) -> dict[str, Any]:
    """Read `ppo_state.pt` of a checkpoint.

    Raises:
        `FileNotFoundError`: if there is none: no checkpoint of PPOTrainer, or one whose writing was cut off.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(checkpoint)!r} has no {STATE_FILE}: it is no checkpoint of PPOTrainer, or saving it was "
            "interrupted. Resume from an earlier one."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def refuse_other_settings(checkpoint: str | Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `ValueError` with each setting that differs between a checkpoint and the run that would go on from it."""
    draws = saved.get("draw", DRAW_BEFORE), now.get("draw")
    same_draw = None in draws or draws[0] == draws[1]
    differing = [
        f"{name}: {saved.get(name)!r} in the checkpoint, {now.get(name)!r} now"
        for name in sorted((set(saved) | set(now)) - {"draw"})
        if saved.get(name) != now.get(name)
    ]
    if not same_draw:
        differing.append(f"how tokens are drawn: {draws[0]} in the checkpoint, {draws[1]} now")
    if differing:
        raise ValueError(
            f"The checkpoint {str(checkpoint)!r} belongs to a run with other settings:\n  "
            + "\n  ".join(differing)
            + "\nTo go on, give the settings of that run"
            + ("" if same_draw else ", with the version of rlhf_recipes that draws so (0.1.0: Gumbel noise)")
            + ". To start a run with these settings from its weights, name the checkpoint as the model instead of "
            "resuming from it."
        )
