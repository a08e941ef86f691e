"""Log-probabilities of the tokens of a completion, a chunk of positions at a time."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput


def model_inputs(prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    attention_mask = torch.cat([prompt_mask, mask], dim=1)
    return {
        # A pad token may have been added to the tokenizer alone: 0 is an id that every model has, and nobody sees it.
        "input_ids": torch.cat([prompt_ids, completion_ids], dim=1).masked_fill(attention_mask == 0, 0),
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(dim=1) - 1).clamp(min=0),  # padding on the left must not shift a text
    }


def completion_logprobs(
    model: Any,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    temperature: float,
    chunk: int | None = None,
    entropy_grad: bool = False,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities and entropies `(B, T)` of completion tokens, and the hidden states `(B, T, H)` below them.

    Without `chunk` and `keep` this is the plain forward of the model. Both save memory by what most architectures have
    in common, and [`~rlhf_recipes.modeling.checks.shortcuts.unfit_shortcuts`] finds those that differ.

    Args:
        chunk (`int`, *optional*): Of the completions, tokens whose logits exist at a time. Default: all.
        keep (`bool`): Ask the model for no logits of the prompt.
    """
    completion_ids = completion_ids.masked_fill(mask == 0, 0)  # as in _inputs: a pad token may be none of the model's
    if chunk is None or completion_ids.numel() <= chunk:
        logits, hidden = completion_logits(model, prompt_ids, prompt_mask, completion_ids, mask, keep)
        return *token_logprobs(logits, completion_ids, temperature, entropy_grad), hidden
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    states = inner.base_model(**model_inputs(prompt_ids, prompt_mask, completion_ids, mask), use_cache=False)
    of_completions = states.last_hidden_state[:, prompt_ids.shape[1] - 1 : -1].contiguous()

    def of_chunk(rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with read_by_head(inner) as read:
            logits = logits_of_hidden(inner, rows, states)
        return *token_logprobs(logits, ids, temperature, entropy_grad), read[0].squeeze(0)

    parts = []
    rows_and_ids = zip(of_completions.flatten(0, 1).split(chunk), completion_ids.flatten().split(chunk), strict=True)
    for rows, ids in rows_and_ids:
        # Kept for the backward pass, the logits of all chunks would be there at once: they are computed again.
        again = torch.is_grad_enabled() and rows.requires_grad
        parts.append(checkpoint(of_chunk, rows, ids, use_reentrant=False) if again else of_chunk(rows, ids))
    logprobs, entropy, hidden = (
        torch.cat(part).unflatten(0, completion_ids.shape) for part in zip(*parts, strict=True)
    )
    return logprobs, entropy, hidden


def logits_of_hidden(model: PreTrainedModel, hidden: Tensor, said_by_body: ModelOutput) -> Tensor:
    """From hidden states `(N, H)` to logits `(N, V)`, as most models go there themselves.

    Some models scale or bound their logits after the last layer (Gemma, Granite, Cohere). So it is the model's own
    forward that runs, with the states at hand in place of what its body would compute. Where it takes another way than
    through its body (OPT, BART), the result has no meaning.
    """
    body = model.base_model

    def states_at_hand(*args: Any, **kwargs: Any) -> ModelOutput:
        return type(said_by_body)(**{**said_by_body, "last_hidden_state": hidden.unsqueeze(0)})

    own = body.__dict__.get("forward")  # where a launcher has wrapped it
    body.forward = states_at_hand
    try:
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return model(input_ids=ids, use_cache=False).logits.squeeze(0)
    finally:
        del body.forward
        if own is not None:
            body.forward = own


def completion_logits(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, keep: bool = True
) -> tuple[Tensor, Tensor]:
    """The logits `(B, T, V)` that each completion token was drawn from, and the hidden states `(B, T, H)` below them.

    Args:
        keep (`bool`): Ask for no logits of the prompt. Some models (XLSTM, TrOCR) give them all the same.
    """
    width = completion_ids.shape[1] + 1
    options = {"logits_to_keep": width} if keep else {}
    with read_by_head(model) as hidden:
        logits = model(
            **model_inputs(prompt_ids, prompt_mask, completion_ids, mask), **options, use_cache=False
        ).logits
    # The last position predicts what would follow the completion.
    return logits[:, -width:-1], hidden[0][:, -width:-1]


def token_logprobs(
    logits: Tensor, token_ids: Tensor, temperature: float = 1.0, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from, at a temperature.

    Args:
        logits (`(B, T, V)`): the logits that token t was drawn from stand at t.
        token_ids (`(B, T)`): the tokens.
        entropy_grad: whether the entropies carry gradient, for an entropy bonus. It costs memory of the logits' size.

    Returns:
        `tuple[Tensor, Tensor]`: log-probabilities and entropies in nats, both `(B, T)`.
    """
    logits = logits.float() / temperature
    log_norm = logits.logsumexp(dim=-1)
    logprobs = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - log_norm
    with torch.set_grad_enabled(entropy_grad):
        # Of normalized logits: log Z - E[logit] would lose the entropy in the rounding of large logits.
        normalized = logits - log_norm.unsqueeze(-1)
        entropy = -(torch.exp(normalized) * normalized).sum(-1)
    return logprobs, entropy


@contextlib.contextmanager
def read_by_head(model: Any) -> Iterator[list[Tensor]]:
    """The hidden states that the language-model head is given within this context."""
    hidden: list[Tensor] = []

    def read_input(head: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        # The states arrive as a slice of longer ones. On a CPU the product with the vocabulary is 2 times (float32) to
        # 35 times (bfloat16) slower on a slice than on its copy.
        hidden.append(args[0].contiguous())
        return (hidden[0],)

    hook = model.get_output_embeddings().register_forward_pre_hook(read_input)
    try:
        yield hidden
    finally:
        hook.remove()
