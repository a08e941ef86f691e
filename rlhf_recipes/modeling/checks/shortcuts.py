"""Shortcuts that save memory and time, checked against the model itself.

[`~rlhf_recipes.modeling.logprobs.completion_logprobs`] has two: it asks the model for no logits of the prompt ("kept
logits"), computes those of the completion for some tokens at a time ("chunks"), and lets it read no padding on the
left ("trimming"). They rest on how most architectures are built, and no list would tell which ones differ. So each is
compared with the plain forward, on a few rows of the first batch, and put aside where it is not the model.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf_recipes.modeling.logprobs import base_of, completion_logprobs
from rlhf_recipes.modeling.roles import ActorCritic
from rlhf_recipes.texts import sentence

logger = logging.getLogger(__name__)
ROWS, TOKENS = 4, 2048  # of the first batch, at most
COSTS = {
    "kept logits": "Logits of the prompts are computed too",
    "chunks": "All logits of a micro-batch exist at a time (logits_chunk_size has no effect)",
    "trimming": "Padding is computed too, and what it says of a text depends on the padding before it",
    "trunk": "Its frozen layers are run for every role and epoch",
}
OF_ONE_READING = ("kept logits", "chunks", "trimming")


def in_full_precision(model: nn.Module, device: torch.device) -> bool:
    """Whether the model computes in float32, so that two ways to one number differ by rounding of 1e-6 alone."""
    if torch.is_autocast_enabled(device.type):
        return False
    if device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32:
        return False
    return all(parameter.dtype in (torch.float32, torch.float64) for parameter in model.parameters())


def few_rows(tokens: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of `prompt_ids`, `prompt_mask` `(B, P)` and `completion_ids`, `mask` `(B, T)` the first rows: at most `ROWS`,
    and `TOKENS` tokens of them.
    """
    completion = min(tokens["mask"].shape[1], TOKENS // 2)
    prompt = min(tokens["prompt_mask"].shape[1], TOKENS - completion)  # the nearest to the completion
    rows = max(1, min(ROWS, TOKENS // (prompt + completion)))
    prompts = {name: tokens[name][:rows, -prompt:] for name in ("prompt_ids", "prompt_mask")}
    return prompts | {name: tokens[name][:rows, :completion] for name in ("completion_ids", "mask")}


@torch.no_grad()
def plain_logprobs(model: Any, tokens: Mapping[str, Tensor], temperature: float) -> Tensor:
    """Log-probabilities `(N,)` of the real tokens of completions, by the plain forward of the model."""
    inputs: dict[str, Any] = dict(tokens)
    said = completion_logprobs(model, **inputs, temperature=temperature, keep=False, trim=False)
    return said.logprobs[tokens["mask"].bool()]


@torch.no_grad()
def unfit_shortcuts(
    model: Any, tokens: Mapping[str, Tensor], temperature: float, limit: float, names: Iterable[str] = OF_ONE_READING
) -> dict[str, str]:
    """The shortcuts that do not give the log-probabilities of the plain forward, each with what it gives.

    It reads [`few_rows`]. Up to a mean absolute difference of `limit` nats two log-probabilities are the same; `names`
    are those to look at.
    """
    expected, real = plain_logprobs(model, tokens, temperature), tokens["mask"].bool()
    padded = {name: pad(tokens[name], (2, 0)) for name in ("prompt_ids", "prompt_mask")}
    ways: dict[str, Any] = {
        "kept logits": {**tokens, "trim": False},
        "chunks": {**tokens, "chunk": max(1, real.numel() // 3), "trim": False},
        "trimming": {**tokens, "keep": False},
    }
    unfit = {}
    for name in names:
        try:
            logprobs = completion_logprobs(model, temperature=temperature, **ways[name]).logprobs
            plain = plain_logprobs(model, {**tokens, **padded}, temperature) if name == "trimming" else expected
            distance = float((logprobs[real] - plain).abs().mean())
            said = f"its log-probabilities are {distance:.2g} nats away from the model's on average"
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # it takes the model apart, and any part may be another than it takes it for
            distance, said = float("inf"), f"it ends with {type(error).__name__}: {error}"
        if not distance <= limit:  # NaN is not
            unfit[name] = said
    return unfit


def check_shortcuts(roles: ActorCritic, tokens: Mapping[str, Tensor], temperature: float) -> None:
    """Put aside the shortcuts that are not policy or reference, on all processes alike, with one line for each.

    Every process must call it.
    """
    reasons: dict[str, str] = {}
    named: dict[str, list[str]] = {}
    # Where the reference is the policy with other adapters or none, it is built alike.
    for role, model in {"policy": roles.policy, "reference": roles.ref_model}.items():
        if model is None:
            continue
        unfit = unfit_shortcuts(model, tokens, temperature, limit_of(model, tokens["mask"].device))
        for name in of_all_processes(unfit):
            roles.put_aside[role].add(name)
            named.setdefault(name, []).append(f"{role} ({type(base_of(model)).__name__})")
            reasons.setdefault(name, unfit.get(name, "another process saw other log-probabilities"))
    for name, models in named.items():
        put_aside(name, " and ".join(models), reasons[name])


def may_keep_logits(model: Any, tokens: Mapping[str, Tensor], temperature: float) -> bool:
    """Whether [`completion_logprobs`] may ask a model for no logits of the prompt; where not, one line says so.

    Args:
        tokens (`Mapping`): Of the first batch, as for [`few_rows`].
    """
    limit = limit_of(model, tokens["mask"].device)
    unfit = unfit_shortcuts(model, few_rows(tokens), temperature, limit, ["kept logits"])
    for name, reason in unfit.items():
        put_aside(name, type(base_of(model)).__name__, reason)
    return not unfit


def put_aside(name: str, models: str, reason: str) -> None:
    """The one line on a shortcut that is not the model."""
    logger.warning("%s: put aside for %s, because %s %s.", name.capitalize(), models, sentence(reason), COSTS[name])


def limit_of(model: nn.Module, device: torch.device) -> float:
    """Up to which mean absolute difference, in nats, two log-probabilities of a model are the same."""
    return 1e-5 if in_full_precision(model, device) else 0.02


def of_all_processes(found: Iterable[str]) -> list[str]:
    """What any process has found. Every process must call it, and all of them get the same."""
    return sorted({name for of_one in gather_object([list(found)]) for name in of_one})
