"""What a model is worth on calibration data: the P of R = P * delta(C), before a map."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from rlhf_recipes.compression.importance import read, real_tokens
from rlhf_recipes.rewards.base import RewardFunction, compute_rewards
from rlhf_recipes.rewards.contract.checks import reward_name

Batch = Mapping[str, Any]
Part = tuple[Tensor, int]  # a sum over a batch, and of how many


@dataclass(frozen=True)
class Quality:
    """A quality that is a mean over calibration data, or the exponential of one.

    Args:
        name (`str`): What messages call it.
        of_batch (callable): From the model and a batch to a sum and the number of summands.
        exponential (`bool`): Whether the quality is exp of the mean: of log-probabilities the geometric mean.
        nonnegative (`bool`): Whether it cannot be negative.
        one_pass (`bool`): Whether `of_batch` runs the model once, on the whole batch: what its lower layers say can
            then be kept.
        loss (callable, *optional*): Of model and batch, what training on the same data minimizes.
    """

    name: str
    of_batch: Callable[[Any, Batch], Part]
    exponential: bool = False
    nonnegative: bool = True
    one_pass: bool = True
    loss: Callable[[Any, Batch], Tensor] | None = None

    @torch.no_grad()
    def __call__(self, parts: Sequence[Part]) -> float:
        """The quality, of the parts of all batches."""
        count = sum(number for _, number in parts)
        mean = math.fsum(float(total) for total, _ in parts) / count
        return math.exp(mean) if self.exponential else mean

    def of(self, model: Any, batches: Sequence[Batch]) -> float:
        """The quality of a model, the plain way."""
        with torch.no_grad():
            return self([self.of_batch(model, batch) for batch in batches])


def likelihood() -> Quality:
    """Of a language model: the geometric mean probability of each token after the first of its text, which is one over
    the perplexity. Batches are padded on the right."""

    def of_batch(model: Any, batch: Batch) -> Part:
        real = real_tokens(batch)[:, 1:]
        logits = read(model, batch).logits[:, :-1][real].float()
        return -functional.cross_entropy(logits, batch["input_ids"][:, 1:][real], reduction="sum"), len(logits)

    return Quality("likelihood", of_batch, exponential=True, loss=_mean_loss(of_batch))


def token_accuracy() -> Quality:
    """Of a language model: the share of tokens after the first of their text that it holds for the most probable."""

    def of_batch(model: Any, batch: Batch) -> Part:
        real = real_tokens(batch)[:, 1:]
        found = read(model, batch).logits[:, :-1][real].argmax(dim=-1)
        return (found == batch["input_ids"][:, 1:][real]).sum(), len(found)

    return Quality("accuracy", of_batch, loss=likelihood().loss)


def accuracy(likelihood: bool = False) -> Quality:
    """Of a classifier: the share of rows whose label it says; one with a single number says 1 where it is positive.
    With `likelihood` the geometric mean probability of the labels."""

    def right(model: Any, batch: Batch) -> Part:
        said, labels = _logits(model, batch), batch["labels"]
        found = said.argmax(dim=1) if said.shape[1] > 1 else (said[:, 0] > 0).long()
        return (found == labels.long()).sum(), len(labels)

    def logprobs(model: Any, batch: Batch) -> Part:
        said, labels = _logits(model, batch), batch["labels"]
        if said.shape[1] > 1:
            return -functional.cross_entropy(said, labels.long(), reduction="sum"), len(labels)
        cost = functional.binary_cross_entropy_with_logits(said[:, 0], labels.to(said.dtype), reduction="sum")
        return -cost, len(labels)

    name = "likelihood of labels" if likelihood else "accuracy"
    return Quality(name, logprobs if likelihood else right, exponential=likelihood, loss=_mean_loss(logprobs))


def preference(likelihood: bool = True) -> Quality:
    """Of a reward model, on batches of chosen texts and, in the next row each, rejected ones: the geometric mean
    probability of the preference, sigmoid(margin) (Bradley and Terry 1952); without `likelihood` the accuracy, in
    which a tie is half right."""

    def margins(model: Any, batch: Batch) -> Tensor:
        scores = _logits(model, batch)[:, 0]
        return scores[0::2] - scores[1::2]

    def logprobs(model: Any, batch: Batch) -> Part:
        of_pairs = functional.logsigmoid(margins(model, batch))
        return of_pairs.sum(), len(of_pairs)

    def right(model: Any, batch: Batch) -> Part:
        of_pairs = margins(model, batch)
        return (of_pairs.sign() + 1).sum() / 2, len(of_pairs)

    name = "likelihood of preferences" if likelihood else "pairwise accuracy"
    return Quality(name, logprobs if likelihood else right, exponential=likelihood, loss=_mean_loss(logprobs))


def rewarded(reward_func: RewardFunction, write: Callable[[Any, Batch], list[list[int]]], tokenizer: Any) -> Quality:
    """Any reward of the library: its mean over completions that the model writes. It may be negative: R needs a map.

    Args:
        reward_func: See [`~rlhf_recipes.rewards.base`].
        write (callable): From the model and a batch to the ids of a completion for each row.
        tokenizer: Of the model.

    A batch has, beside what `write` needs, `prompts`, and other columns as the reward wants them, each a list.
    """
    if getattr(reward_func, "constant", False):
        raise ValueError(
            f"The reward {reward_name(reward_func)!r} is the same for all completions: it cannot guide a search."
        )
    name = reward_name(reward_func)

    def of_batch(model: Any, batch: Batch) -> Part:
        ids = write(model, batch)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        columns = {key: column for key, column in batch.items() if isinstance(column, list) and key != "prompts"}
        values = compute_rewards([reward_func], batch["prompts"], texts, ids, columns)[name]
        applying = [value for value in values if value is not None]
        return torch.tensor(applying, dtype=torch.float64).sum(), len(applying)

    return Quality(name, of_batch, nonnegative=False, one_pass=False)


def _logits(model: Any, batch: Batch) -> Tensor:
    logits: Tensor = read(model, batch).logits.float()
    return logits


def _mean_loss(of_batch: Callable[[Any, Batch], Part]) -> Callable[[Any, Batch], Tensor]:
    def loss(model: Any, batch: Batch) -> Tensor:
        total, count = of_batch(model, batch)
        return -total / count

    return loss
