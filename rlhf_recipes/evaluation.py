"""What a policy writes for held-out prompts, measured: scores, KL, diversity, and the difference between two runs."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.formats import is_conversational
from rlhf_recipes.data.prompts import check_prompts, tokenize_prompts
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.ppo.functional import kl_per_token
from rlhf_recipes.ppo.generation import LocalGenerator, sampling_config, stable_key
from rlhf_recipes.ppo.rollout import Rollout, prompt_lists, reference_lists, sample, token_lists
from rlhf_recipes.rewards import WeightedSum

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
    prompt_ids = tokenize_prompts(dataset["prompt"], tokenizer, max_prompt_length)
    if roles.ref_model is roles.policy:
        logger.info("KL is 0: with neither adapters nor ref_model_name_or_path the policy is its own reference.")
    check_prompts(prompt_ids, roles.policy, max_completion_length)
    config = sampling_config(tokenizer, roles.policy, max_completion_length, temperature)
    device = roles.policy.device
    generator = LocalGenerator(roles.policy)
    with tqdm(total=len(dataset), unit="completion", desc="Evaluating") as bar:
        for start in range(0, len(dataset), batch_size):
            rows = list(range(start, min(start + batch_size, len(dataset))))
            keys = [stable_key(seed, "evaluate", row) for row in rows]
            rollout = sample(roles, generator, [prompt_ids[row] for row in rows], keys, config, device, batch_size)
            yield from _scored_rows(dataset[rows], rollout, tokenizer, reward)
            bar.update(len(rows))


def _scored_rows(
    columns: dict[str, list], rollout: Rollout, tokenizer: PreTrainedTokenizerBase, reward: WeightedSum
) -> Iterator[Row]:
    prompts = columns.pop("prompt")
    completion_ids = token_lists(rollout)
    texts = tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    completions: list[Any] = texts
    if is_conversational(prompts[0]):
        completions = [[{"role": "assistant", "content": text}] for text in texts]
    columns |= {"prompt_ids": prompt_lists(rollout), "ref_logprobs": reference_lists(rollout)}
    parts = reward.parts(prompts, completions, completion_ids, **columns)
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


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams of all texts, divided by all word n-grams (arXiv 1510.03055). Words are split on spaces.

    An n-gram does not cross from one text into the next. Without any n-gram it is 0.
    """
    ngrams = []
    for text in texts:
        words = text.lower().split()
        ngrams += [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def paired_gain(
    before: Sequence[float], after: Sequence[float], seed: int = 0, draws: int = 10_000
) -> Mapping[str, Any]:
    """Mean of `after - before` over prompts, with its 95% percentile bootstrap interval (prompts are resampled).

    Returns:
        `dict`: `gain`, and `gain_ci95` as `[low, high]`.
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"{len(before)} scores before and {len(after)} after: both need one for each prompt.")
    difference = np.asarray(after, dtype=float) - np.asarray(before, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(difference), (draws, len(difference)))
    low, high = np.percentile(difference[picks].mean(axis=1), [2.5, 97.5])
    return {"gain": float(difference.mean()), "gain_ci95": [float(low), float(high)]}


def move_to_best_device(roles: ActorCritic) -> ActorCritic:
    """Put policy, critic and reference on the GPU where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if roles.ref_model is not None:
        roles.ref_model.to(device)  # no submodule of the roles, so it does not move with them
    return roles.to(device)
