"""Held-out prompts while PPO trains: the same rewards, figures with a prefix, and completions to read."""

from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from rlhf_recipes.evaluation import distinct_n
from rlhf_recipes.ppo import completions, functional
from rlhf_recipes.ppo.generation import stable_key
from rlhf_recipes.ppo.scoring import Scoring


def evaluate(trainer: Any, eval_dataset: Any, prefix: str) -> dict[str, float]:
    """Sample one completion for each held-out prompt; log what training logs, with a prefix.

    Args:
        eval_dataset (`Dataset`, `dict[str, Dataset]` or `str`, *optional*):
            Other prompts than the trainer's own, or the name of one of several sets of its own.

    Raises:
        `ValueError`: if there are no prompts.
    """
    named = {f"eval/{name}": name for name in _names(trainer)}
    if isinstance(eval_dataset, Dataset):
        named = {"eval given": ""}
        trainer.prompts["eval given"] = trainer.encoded(eval_dataset)
    elif isinstance(eval_dataset, dict):
        named = {f"eval given/{name}": name for name in eval_dataset}
        trainer.prompts |= {split: trainer.encoded(eval_dataset[name]) for split, name in named.items()}
    elif isinstance(eval_dataset, str):
        named = {f"eval/{eval_dataset}": eval_dataset}
    if not named:
        raise ValueError("There is nothing to evaluate on: give eval_dataset, here or to the trainer.")
    metrics: dict[str, float] = {}
    for split, name in named.items():
        label = f"{prefix}_{name}" if name else prefix
        figures, rows = measure(trainer, split, range(len(trainer.prompts[split])))
        metrics |= {f"{label}_{key}": value for key, value in figures.items()}
        _publish(trainer, rows, label, name)
    for split in [split for split in trainer.prompts if split.startswith("eval given")]:
        del trainer.prompts[split]
    return metrics


def generate_completions(trainer: Any, sampling: bool = False) -> list[dict[str, Any]]:
    """Write, score and show completions of the held-out prompts; of the first batch of them only where `sampling`.

    Returns:
        `list[dict]`: prompt, completion, score, KL, tokens and each reward; on the main process those of all.
    """
    everything: list[dict[str, Any]] = []
    for name in _names(trainer):
        split = f"eval/{name}"
        count = len(trainer.prompts[split])
        if sampling:
            count = min(count, trainer.settings.per_device_eval_batch_size * trainer.sizes.world)
        _, rows = measure(trainer, split, range(count))
        _publish(trainer, rows, f"completions of {name}" if name else "completions", name)
        everything += rows
    return everything


def measure(trainer: Any, split: str, indices: range) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """The figures of one completion for each prompt, and the completions themselves, over all processes."""
    world, rank, meter = trainer.sizes.world, trainer.args.process_index, trainer.eval_meter
    mine = list(indices)[rank::world]
    # Every process needs as many rows as the others. Those added at the end are taken away after gathering.
    missing = -(-len(indices) // world) - len(mine)
    mine += [indices[0]] * missing
    keys = [stable_key(trainer.args.seed, "eval", row) for row in mine]
    scoring = Scoring(trainer, split, mine, meter, learn=False)
    chunk = trainer.settings.per_device_eval_batch_size
    rollout, rows = scoring.finish(trainer.sample(split, mine, keys, chunk, when_written=scoring.start))
    kl = functional.kl_per_token(rollout.logprobs, rollout.ref_logprobs, trainer.settings.kl_estimator)
    nats = torch.where(rollout.mask.bool(), kl, 0.0).sum(dim=1).tolist()
    facts = zip(nats, rollout.mask.sum(dim=1).tolist(), rollout.finished.tolist(), strict=True)
    rows = [row | {"kl": k, "tokens": t, "finished": f} for row, (k, t, f) in zip(rows, facts, strict=True)]
    rollout = trainer.gather(rollout)
    if world > 1:
        everyone = gather_object([rows])
        # Process r had rows r, r + world, ...: this is their order in the dataset, and in the gathered rollout.
        order = [(place, process) for place in range(len(mine)) for process in range(world)][: len(indices)]
        rows = [everyone[process][place] for place, process in order]
        kept = torch.tensor([process * len(mine) + place for place, process in order], device=rollout.mask.device)
        rollout = rollout.map(lambda name, tensor: tensor[kept])
        trainer._join_processes(meter)
    figures = {name: value for name, value in meter.read().items() if not name.startswith("time/")}
    for of_reward, _ in trainer.reward_figures(rollout):
        figures |= of_reward
    figures |= trainer.credit.assign(rollout, learn=False)[1]
    texts = [row["completion"] for row in rows]
    figures |= {f"rollout/distinct_{n}": distinct_n(texts, n) for n in (1, 2)}
    return figures, rows


def _names(trainer: Any) -> list[str]:
    return [split.removeprefix("eval/") for split in trainer.prompts if split.startswith("eval/")]


def _publish(trainer: Any, rows: list[dict[str, Any]], title: str, name: str) -> None:
    if not trainer.is_world_process_zero():
        return
    step = trainer.state.global_step
    limit = trainer.settings.num_completions_to_print
    if limit and not trainer.args.disable_tqdm:
        completions.show(rows, f"{title}, after {step // trainer.sizes.updates} rollouts", limit)
    completions.save(rows, str(trainer.args.output_dir), step, name)
    completions.report(rows, trainer.callback_handler.callbacks, step, title.replace(" ", "_"))
