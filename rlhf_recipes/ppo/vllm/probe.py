"""Whether a server computes with the model that it should: its tokens and log-probabilities beside the trainer's own.

A server that does not load an adapter, or loads it and answers as the base model does, answers all the same, and PPO
would learn from completions that its policy has not written. So the server writes a few short completions after each
load, and the policy here gives their tokens log-probabilities, too.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.modeling.checks.shortcuts import in_full_precision, plain_logprobs
from rlhf_recipes.modeling.generation import pad_left, pad_right
from rlhf_recipes.ppo.vllm.server import NOTHING, Completion, VLLMServer

PROMPTS = ("The film was", "Once upon a time there was", "2 + 2 =", "Dear Anna,\n\nthank you for", "def f(x):", "Why")
LENGTH = 32  # tokens of each completion
TEMPERATURE = 0.7  # other than 1, or it would not show which log-probabilities a server gives
# Mean |difference| of a token's log-probability, in nats, that two programs' rounding explains. Two models differ by
# some tenths and more.
LIMIT, LIMIT_IN_HALF_PRECISION = 1e-3, 0.1

TEXT = "The film's 2 heroes, naïve as ever: 12.50 € for\n\tdef f(x): return x\n日本語, русский, عربي, 🙂 don't..."


def check_tokenizer(server: VLLMServer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where a server's tokenizer gives other ids than the trainer's.

    Compared are a text in several scripts, a text of tokens from all over the vocabulary, and the name of the
    end-of-sequence token.
    """
    some = range(0, len(tokenizer), max(1, len(tokenizer) // 200))
    texts = [TEXT, str(tokenizer.decode(list(some), skip_special_tokens=True)), str(tokenizer.eos_token or "the end")]
    for text, theirs in zip(texts, server.tokenize(texts), strict=True):
        ours = list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if ours == theirs:
            continue
        place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]),
                     min(len(ours), len(theirs)))  # fmt: skip
        raise ValueError(
            f"The vLLM server at {server.url} has another tokenizer than the policy: of {text[:40]!r}... it makes "
            f"{len(theirs)} tokens and the policy's makes {len(ours)}, from token {place} on others "
            f"({theirs[place : place + 5]} and {ours[place : place + 5]}). Start the server with the policy's model, "
            "or with --tokenizer and the policy's folder."
        )


def check_policy(
    server: VLLMServer, name: str, policy: Any, tokenizer: PreTrainedTokenizerBase, rounds: bool = False
) -> None:
    """Raise `ValueError` where what a server serves under a name is not the policy.

    Args:
        rounds (`bool`, *optional*, defaults to `False`): Whether the trainer computes in less than float32.
    """
    prompts = [ids for ids in (list(tokenizer(text)["input_ids"]) for text in PROMPTS) if ids]
    options = {**NOTHING, "temperature": TEMPERATURE, "max_tokens": LENGTH, "ignore_eos": True}
    made = server.complete(name, [{"prompt": ids, "seed": seed, **options} for seed, ids in enumerate(prompts)])
    full = in_full_precision(policy, policy.device) and not rounds
    told = compare(policy, prompts, made)
    limit = LIMIT if full else LIMIT_IN_HALF_PRECISION
    if told.is_ignored():
        raise ValueError(
            f"The vLLM server has loaded the adapter {name!r} and answers as the model without it: of what the "
            f"adapter changes in the log-probabilities of {len(told.said)} tokens, {told.share():.0%} arrives. "
            "Completions would not be the policy's. Take another version of vLLM, or LoRA on other modules "
            "(docs/vllm.md)."
        )
    distance = _distance(told.said, told.ours)
    if distance <= limit:
        return
    if _distance(told.said, told.ours_at_1) <= limit:
        raise ValueError(
            "The vLLM server gives log-probabilities at temperature 1, whatever the temperature of sampling. Start it "
            "with --logprobs-mode processed_logprobs."
        )
    raise ValueError(
        f"The vLLM server does not answer as the policy does: the log-probabilities of {len(told.said)} tokens differ "
        f"by {distance:.3g} nats in the mean, and at most {limit:g} is rounding where the trainer computes in "
        f"{'float32' if full else 'less than float32'}. The policy comes from "
        f"{getattr(policy, 'name_or_path', '') or 'memory'!r}: start the server with the same model in the same "
        "precision (--dtype), and with --logprobs-mode processed_logprobs."
    )


@dataclass(frozen=True)
class Compared:
    """Log-probabilities `(N,)` of the tokens that a server has written."""

    said: Tensor  # by the server
    ours: Tensor  # by the policy, at the temperature of the probe
    ours_at_1: Tensor  # by the policy, at temperature 1
    of_base: Tensor | None  # by the policy without its adapters; None where it has none

    def share(self) -> float:
        """The part of the adapter's effect that has arrived: the slope of `said - of_base` over `ours - of_base`."""
        assert self.of_base is not None, "a policy with adapters"
        effect = self.ours - self.of_base
        return float((self.said - self.of_base) @ effect / (effect @ effect))

    def is_ignored(self) -> bool:
        """Whether the server's numbers are those of the base and not those of the policy.

        The share of the adapter's effect is 1 where it is applied and 0 where it is not, whatever the rounding, which
        only makes it uncertain. So an effect far below any bound on rounding is seen, once tokens are many enough.
        """
        if self.of_base is None or torch.equal(self.ours, self.of_base):
            return False
        effect, share = self.ours - self.of_base, self.share()
        left = self.said - self.of_base - share * effect
        error = float((left.square().sum() / (len(left) - 1) / effect.square().sum()).sqrt())
        return share + 4 * error < 0.5


@torch.no_grad()
def compare(policy: Any, prompts: Sequence[Sequence[int]], made: Sequence[Completion]) -> Compared:
    """What a server has said of its completions, beside what the policy says of them with and without adapters."""
    prompt_ids, prompt_mask = pad_left(prompts, 0, max(map(len, prompts)))
    tokens = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": pad_right([row.ids for row in made], 0, LENGTH),
        "mask": pad_right([[1] * len(row.ids) for row in made], 0, LENGTH),
    }
    tokens = {key: tensor.to(policy.device) for key, tensor in tokens.items()}
    was_training = policy.training
    policy.eval()
    try:
        with policy.disable_adapter() if isinstance(policy, PeftModel) else contextlib.nullcontext():
            of_base = plain_logprobs(policy, tokens, TEMPERATURE)
        ours, ours_at_1 = (plain_logprobs(policy, tokens, temperature) for temperature in (TEMPERATURE, 1.0))
    finally:
        policy.train(was_training)
    said = torch.tensor([logprob for row in made for logprob in row.logprobs], dtype=torch.float64)
    ours, ours_at_1, of_base = (tensor.double().cpu() for tensor in (ours, ours_at_1, of_base))
    return Compared(said, ours, ours_at_1, of_base if isinstance(policy, PeftModel) else None)


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().mean())
