"""Held-out prompts while PPO trains: the same rewards, figures with a prefix, and completions to read.

What a policy writes for held-out prompts, measured: scores, KL, diversity, and the difference between two runs.
"""

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import answered, kwargs_of
from rlhf_recipes.data.prompts import check_prompts, tokenize_prompts, with_openings
from rlhf_recipes.modeling.checks.shortcuts import check_shortcuts, few_rows
from rlhf_recipes.modeling.checks.trunk import check_written
from rlhf_recipes.modeling.decoders import check_ids
from rlhf_recipes.modeling.generation import (
    LocalGenerator,
    prompt_lists,
    sampling_config,
    stable_key,
    token_lists,
    unpadded,
    write,
)
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.ppo import functional
from rlhf_recipes.ppo.functional import kl_per_token
from rlhf_recipes.ppo.metrics import figures_of_rewards
from rlhf_recipes.ppo.rollout import TOKENS, Rollout, gathered, read
from rlhf_recipes.ppo.run import tables as completions
from rlhf_recipes.ppo.run.bases import put_rewards_on
from rlhf_recipes.ppo.scoring import Scoring
from rlhf_recipes.rewards import WeightedSum
from rlhf_recipes.starting.allocator import give_back_freed
from rlhf_recipes.words import distinct_n


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
        trainer.last_rows = rows
        _publish(trainer, rows, label, name)
    for split in [split for split in trainer.prompts if split.startswith("eval given")]:
        del trainer.prompts[split]
    trainer.log(metrics)
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
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
    rollout = gathered(rollout, trainer.processing_class.pad_token_id, world)
    if world > 1:
        everyone = gather_object([rows])
        # Process r had rows r, r + world, ...: this is their order in the dataset, and in the gathered rollout.
        order = [(place, process) for place in range(len(mine)) for process in range(world)][: len(indices)]
        rows = [everyone[process][place] for place, process in order]
        kept = torch.tensor([process * len(mine) + place for place, process in order], device=rollout.mask.device)
        rollout = rollout.map(lambda name, tensor: tensor[kept])
        meter.join(world)
    figures = {name: value for name, value in meter.read().items() if not name.startswith("time/")}
    for of_reward, _ in figures_of_rewards(trainer, rollout):
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


logger = logging.getLogger(__name__)
Row = dict[str, Any]


def write_completions(
    roles: ActorCritic,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    reward: WeightedSum,
    max_prompt_length: int,
    max_completion_length: int,
    temperature: float = 1.0,
    batch_size: int = 64,
    seed: int = 0,
) -> Iterator[Row]:
    """One completion for each prompt, with its KL and every score, in the order of the dataset.

    Row i is drawn with noise that depends on `(seed, i)` alone: two policies meet the same prompts and the same luck.

    Yields:
        `dict`: `prompt`, `completion`, `finished`, `tokens`, `kl` (nats, log policy - log reference summed over the
        tokens), `score` (weighted sum) and `scores` (each reward by name, per-token rewards as their sum; potentials
        are no rewards and are left out).

    Raises:
        `ValueError`: if a prompt has no token, or does not fit into the policy's context with its completion.
    """
    prompt_ids = tokenize_prompts(dataset["prompt"], tokenizer, max_prompt_length, kwargs_of(dataset))
    dataset = with_openings(dataset, prompt_ids, tokenizer)
    put_rewards_on(roles.policy, reward)
    if roles.ref_model is roles.policy:
        logger.info("KL is 0: with neither adapters nor ref_model_name_or_path the policy is its own reference.")
    check_prompts(prompt_ids, roles.policy, max_completion_length)
    check_ids(prompt_ids, roles.policy, tokenizer, "prompts")
    config = sampling_config(tokenizer, roles.policy, max_completion_length, temperature)
    device = roles.policy.device
    generator = LocalGenerator(roles.policy, keep_head_inputs=True)
    with tqdm(total=len(dataset), unit="completion", desc="Evaluating") as bar:
        for start in range(0, len(dataset), batch_size):
            rows = list(range(start, min(start + batch_size, len(dataset))))
            keys = [stable_key(seed, "evaluate", row) for row in rows]
            written = write(generator, [prompt_ids[row] for row in rows], keys, config, device, batch_size)
            give_back_freed()  # the copies of the weights that completions were drawn from
            if start == 0:
                check_shortcuts(roles, few_rows({name: getattr(written, name) for name in TOKENS}), temperature)
                check_written(roles, written, temperature)
            rollout = read(roles, written, temperature, batch_size)
            yield from _scored_rows(dataset[rows], rollout, tokenizer, reward)
            bar.update(len(rows))


def _scored_rows(
    columns: dict[str, list], rollout: Rollout, tokenizer: PreTrainedTokenizerBase, reward: WeightedSum
) -> Iterator[Row]:
    prompts = columns.pop("prompt")
    completion_ids = token_lists(rollout)
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    given, completions = answered(prompts, texts)
    columns |= {"prompt_ids": prompt_lists(rollout), "ref_logprobs": unpadded(rollout.ref_logprobs, rollout.mask)}
    parts = reward.parts(given, completions, completion_ids, **columns)
    scores, by_reward = reward.totals(parts, progress=1.0), reward.per_row(parts)
    kl = kl_per_token(rollout.logprobs, rollout.ref_logprobs).masked_fill(rollout.mask == 0, 0.0).sum(dim=1)
    for i, prompt in enumerate(prompts):
        yield {
            "prompt": prompt,
            "completion": texts[i],
            "finished": bool(rollout.finished[i]),
            "tokens": len(completion_ids[i]),
            "kl": round(float(kl[i]), 4),
            "score": scores[i],
            "scores": {name: values[i] for name, values in by_reward.items()},
        }


def summarize(rows: Sequence[Row]) -> dict[str, float]:
    """Flat figures of many completions: means, and distinct-1 and distinct-2 over all of them together.

    A reward's mean is over the rows to which it applies; one that applies to none has no figure.
    """
    texts = [row["completion"] for row in rows]
    figures = {
        "prompts": len(rows),
        "score": _mean([row["score"] for row in rows]),
        "kl": _mean([row["kl"] for row in rows]),
        "completion_length": _mean([row["tokens"] for row in rows]),
        "finished": _mean([row["finished"] for row in rows]),
        "distinct_1": distinct_n(texts, 1),
        "distinct_2": distinct_n(texts, 2),
    }
    for name in rows[0]["scores"]:
        applying = [row["scores"][name] for row in rows if row["scores"][name] is not None]
        if applying:
            figures[f"reward/{name}"] = _mean(applying)
    return figures


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def move_to_best_device(roles: ActorCritic) -> ActorCritic:
    """Put policy, critic and reference on the GPU where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if roles.ref_model is not None:
        roles.ref_model.to(device)  # no submodule of the roles, so it does not move with them
    return roles.to(device)
