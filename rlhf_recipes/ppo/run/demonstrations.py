"""Demonstrations for the imitation term: encoded once, padded for each micro-batch, and their loss."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.data.chat import KWARGS, read_kwargs, render, whole
from rlhf_recipes.data.collators import padded
from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.rollout import permutation
from rlhf_recipes.texts import is_conversational

logger = logging.getLogger(__name__)


def encode_demonstrations(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[tuple]:
    """Texts to imitate, as `(token ids, how many of them at the beginning are not imitated)`.

    Rows have `prompt` and `completion` (the completion is imitated; both texts or both messages), `messages` (the last
    turn is), or `text` (all but the first token). Completions and texts end with the end-of-sequence token, messages
    as the chat template ends them.

    Raises:
        `ValueError`: if the columns are others, or nothing to imitate is left within `max_length` tokens.
    """
    names = set(dataset.column_names)
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    rows = []
    for row in dataset:
        if {"prompt", "completion"} <= names and is_conversational(row["prompt"]):
            rows.append(_of_messages(row["prompt"], row["completion"], row, tokenizer, max_length))
        elif {"prompt", "completion"} <= names:
            prompt = tokenizer(row["prompt"])["input_ids"]
            # Encoded together, so that the tokens at the seam are those of the whole text.
            ids = tokenizer(row["prompt"] + row["completion"])["input_ids"] + end
            rows.append((ids[:max_length], max(len(prompt), 1)))
        elif "messages" in names:
            rows.append(_of_messages(row["messages"][:-1], row["messages"][-1:], row, tokenizer, max_length))
        elif "text" in names:
            rows.append(((tokenizer(row["text"])["input_ids"] + end)[:max_length], 1))
        else:
            raise ValueError(
                "The imitation_dataset needs prompt and completion, messages, or text, but has "
                f"{', '.join(dataset.column_names)}."
            )
    kept = [(ids, skipped) for ids, skipped in rows if len(ids) > skipped]
    if not kept:
        raise ValueError(f"No row of the imitation_dataset has anything to imitate within {max_length} tokens.")
    if len(kept) < len(rows):
        logger.warning(
            "%d of %d demonstrations have nothing to imitate within %d tokens and are left out.",
            *(len(rows) - len(kept), len(rows), max_length),
        )
    return kept


def _of_messages(
    before: list, imitated: list, row: dict, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple:
    kwargs = read_kwargs(row.get(KWARGS))
    texts = render(tokenizer, whole(before, imitated), kwargs), render(tokenizer, before, kwargs, is_open=True)
    ids, prompt = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    return list(ids)[:max_length], max(len(prompt), 1)


def pad_demonstrations(rows: Sequence[tuple], pad_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """A batch of what [`encode_demonstrations`] gives: ids, their mask, and what of it is imitated; each `(D, L)`."""
    batch = padded([ids for ids, _ in rows], pad_token_id)
    tokens, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
    skipped = torch.tensor([count for _, count in rows], device=device)
    imitated = mask * (torch.arange(mask.shape[1], device=device) >= skipped[:, None])
    return {"demo_ids": tokens, "demo_mask": mask, "demo_imitated": imitated}


def demonstrations_of_step(trainer: Any, batches: list[dict[str, Tensor]]) -> int:
    """As many demonstrations for an optimizer step as it has episodes, in an order of their own; their tokens.

    Those of this process are put into its micro-batches.
    """
    sizes, seed, count = trainer.sizes, trainer.args.seed, len(trainer.demonstrations)
    first = trainer.state.global_step * sizes.mini
    passes = range(first // count, (first + sizes.mini - 1) // count + 1)
    orders = {number: permutation(count, seed, "imitation", number).tolist() for number in passes}
    rows = [trainer.demonstrations[orders[n // count][n % count]] for n in range(first, first + sizes.mini)]
    tokens = sum(len(ids) - skipped for ids, skipped in rows)
    mine = rows[trainer.args.process_index :: sizes.world]
    for number, batch in enumerate(batches):
        part = mine[number * sizes.micro : (number + 1) * sizes.micro]
        batch |= pad_demonstrations(part, trainer.processing_class.pad_token_id, batch["mask"].device)
        batch["demo_tokens"] = torch.tensor(tokens)
    return tokens


def imitation_loss(
    logprobs: Tensor, inputs: dict[str, Tensor], imitation_coef: float
) -> tuple[Tensor, dict[str, Tensor], int]:
    """Negative log-likelihood of demonstrations: the "ptx" term of InstructGPT (arXiv 2203.02155, eq. 2).

    Returns:
        `tuple`: the term of the loss, its figure for the log, and the tokens that this is a mean over.
    """
    imitated = inputs["demo_imitated"][:, 1:]
    total = -F.masked_sum(logprobs, imitated)
    count = int(imitated.sum())
    figures = {"loss/imitation_avg": total.detach() / max(count, 1)}
    return imitation_coef * total / inputs["demo_tokens"], figures, count
