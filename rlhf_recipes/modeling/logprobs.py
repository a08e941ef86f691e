"""Log-probabilities of the tokens of a completion: without padding, a chunk of tokens at a time."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from rlhf_recipes.modeling.tokenizers.padding import embedding_rows
from rlhf_recipes.modeling.zero import is_divided

# Where the output layer is trained, so many logits are kept for the backward pass rather than computed again (256 MB).
KEPT_LOGITS = 2**26


@dataclass(frozen=True)
class Texts:
    """Prompts and completions as a model reads them, and the places at which it predicts their completions.

    A prompt of p tokens and its completion stand side by side from position 0 on, so that token t is predicted at
    p - 1 + t. What is padding is on the right, where no decoder sees it. N is the number of real tokens of all
    completions.
    """

    inputs: dict[str, Tensor]  # input_ids, attention_mask, position_ids, each (B, L)
    rows: Tensor  # (N,)  the text of each token
    places: Tensor  # (N,)  the position that predicts it
    ids: Tensor  # (N,)  the token
    real: Tensor  # (B, T)  whether there is a token
    sources: Tensor  # (B, L)  which column of prompt and completion stands at each position

    def pick(self, said: Tensor) -> Tensor:
        """Of what a model says at each position, `(B, L, ...)`, that which predicts a token: `(N, ...)`."""
        return said[self.rows, self.places + (said.shape[1] - self.sources.shape[1])]

    def spread(self, numbers: Tensor) -> Tensor:
        """Numbers `(N,)` of the tokens as `(B, T)`, 0 where there is none."""
        return numbers.new_zeros(self.real.shape).masked_scatter(self.real, numbers)

    def arranged(self, states: Tensor) -> Tensor:
        """States `(B, P + T, H)` of the columns of prompt and completion in the order `(B, L, H)` of these texts."""
        return states.gather(1, self.sources[..., None].expand(-1, -1, states.shape[-1]))


def texts_of(
    prompt_ids: Tensor, prompt_mask: Tensor, completion_ids: Tensor, mask: Tensor, trim: bool = True
) -> Texts:
    """Put prompts `(B, P)`, padded on the left, and completions `(B, T)`, padded on the right, together.

    Args:
        trim (`bool`): Leave out padding. Without it all stands as it does while completions are sampled: some models
            say something else of a text with padding before it.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1)
    columns = torch.arange(attention_mask.shape[1], device=mask.device)
    if trim:
        lengths = attention_mask.sum(dim=1, keepdim=True)
        first = prompt_ids.shape[1] - prompt_mask.sum(dim=1, keepdim=True)
        places = columns[: int(lengths.max())]
        sources = torch.minimum(first + places, columns[-1])
        attention_mask = (places < lengths).to(attention_mask.dtype)
    else:
        first = torch.zeros_like(mask[:, :1])
        sources = columns.expand_as(attention_mask)
    ids = torch.cat([prompt_ids, completion_ids], dim=1).gather(1, sources)
    # A pad token may have been added to the tokenizer alone: 0 is an id that every model has, and nobody sees it.
    ids = ids.masked_fill(attention_mask == 0, 0)
    position_ids = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)  # padding on the left must not shift a text
    real = mask.bool()
    rows, tokens = real.nonzero(as_tuple=True)
    predicted_at = tokens + prompt_ids.shape[1] - 1 - first[rows, 0]
    inputs = {"input_ids": ids, "attention_mask": attention_mask, "position_ids": position_ids}
    return Texts(inputs, rows, predicted_at, completion_ids[real], real, sources)


class Said(NamedTuple):
    """What a model says of completions."""

    logprobs: Tensor  # (B, T)  0 where there is no token
    entropy: Tensor  # (B, T)  of the distribution that the token was drawn from, in nats
    hidden: Tensor  # (N, H)  what the output layer reads to predict each token
    texts: Texts


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
    trim: bool = True,
    below: Callable[[Texts], AbstractContextManager] | None = None,
) -> Said:
    """Log-probabilities and entropies `(B, T)` of completion tokens, and the hidden states `(N, H)` below them.

    Without `chunk`, `keep` and `trim` this is the plain forward of the model. They save memory and time by what most
    architectures have in common, and [`~rlhf_recipes.modeling.checks.shortcuts.unfit_shortcuts`] finds those that
    differ.

    Args:
        chunk (`int`, *optional*): Of the completions, tokens whose logits exist at a time. Default: all.
        keep (`bool`): Ask the model for no logits of the prompt.
        trim (`bool`): Let it read no padding on the left; see [`texts_of`].
        below (`Callable`, *optional*): Of the texts, a context in which the model reads them, with what its lower
            layers have said before; see [`~rlhf_recipes.modeling.trunk.trunk.Trunk`].
    """
    texts = texts_of(prompt_ids, prompt_mask, completion_ids, mask, trim)
    with contextlib.nullcontext() if below is None else below(texts):
        if chunk is None:
            logits, hidden = completion_logits(model, texts, keep)
            logprobs, entropy = token_logprobs(logits, texts.ids, temperature, entropy_grad)
        else:
            inner = base_of(model)
            states = inner.base_model(**texts.inputs, use_cache=False)
            rows = texts.pick(states.last_hidden_state)
            of_head = _OutputLayer(inner, states, temperature, entropy_grad)
            logprobs, entropy, hidden = of_head.said_of(rows, texts.ids, chunk, places=texts.real.numel())
    return Said(texts.spread(logprobs), texts.spread(entropy), hidden, texts)


def base_of(model: Any) -> Any:
    """The model without its adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


class _OutputLayer:
    """From the states of a model's body to log-probabilities, for some tokens at a time."""

    def __init__(self, model: Any, said_by_body: ModelOutput, temperature: float, entropy_grad: bool) -> None:
        self.model = model
        self.said_by_body = said_by_body
        self.temperature = temperature
        self.entropy_grad = entropy_grad

    def __call__(self, rows: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, hidden = self.logits(rows)
        return *token_logprobs(logits, ids, self.temperature, self.entropy_grad), hidden

    def logits(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(N, V)` of states `(N, H)`, and what the output layer reads of them."""
        with read_by_head(self.model) as read:
            logits = logits_of_hidden(self.model, rows, self.said_by_body)
        return logits, read[0].squeeze(0)

    def said_of(self, rows: Tensor, ids: Tensor, chunk: int, places: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities `(N,)`, entropies `(N,)`, and what the output layer reads `(N, H)`.

        Args:
            places (`int`): Tokens that there could be, B * T. Where processes share the weights (ZeRO-3) it decides on
                the number of chunks, since each must ask for the layer as often as the others.
        """
        divided = is_divided(self.model)
        chunks = -(-places // chunk) if divided else max(1, -(-len(ids) // chunk))
        parts = list(zip(rows.tensor_split(chunks), ids.tensor_split(chunks), strict=True))
        if not (torch.is_grad_enabled() and rows.requires_grad):
            said = [self(*part) for part in parts]
        elif not self.entropy_grad and not self._learns() and not divided:
            said = [_Streamed.apply(rows, ids, self, chunk)]
        elif places <= max(chunk, KEPT_LOGITS // max(1, embedding_rows(self.model))):
            said = [self(rows, ids)]
        else:  # kept for the backward pass, the logits of all chunks would be there at once: they are computed again
            said = [checkpoint(self, *part, use_reentrant=False) for part in parts]
        logprobs, entropy, hidden = (torch.cat(parts) for parts in zip(*said, strict=True))
        return logprobs, entropy, hidden

    def _learns(self) -> bool:
        """Whether a weight between body and logits is trained."""
        body = {id(parameter) for parameter in self.model.base_model.parameters()}
        head = self.model.get_output_embeddings().parameters()
        above = [parameter for parameter in self.model.parameters() if id(parameter) not in body]
        return any(parameter.requires_grad for parameter in (*above, *head))


def head_said(
    model: Any,
    said_by_body: ModelOutput,
    rows: Tensor,
    ids: Tensor,
    temperature: float,
    chunk: int,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """What [`completion_logprobs`] makes of the body's states `(N, H)` that predict the tokens `ids` `(N,)`.

    Returns:
        `tuple`: log-probabilities and entropies `(N,)`, and what the output layer read `(N, H)`.
    """
    of_head = _OutputLayer(base_of(model), said_by_body, temperature, entropy_grad)
    return of_head.said_of(rows, ids, chunk, places=len(ids))


class _Streamed(torch.autograd.Function):
    """Log-probabilities through an output layer that is not trained, with no logits left for the backward pass.

    A log-probability depends on the state of its own token alone. So its gradient there, `(N, H)`, is worked out while
    the logits of a chunk are at hand, and the backward pass only weighs it: two products with the vocabulary in all,
    as if the logits had been kept.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ids: Tensor, layer: _OutputLayer, chunk: int) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        logprobs, entropies, hidden, slopes, of_hidden = [], [], [], [], []
        for part, tokens in zip(rows.split(chunk), ids.split(chunk), strict=True):
            with torch.enable_grad():
                leaf = part.detach().requires_grad_()
                logits, read = layer.logits(leaf)
            with torch.no_grad():
                scaled = logits.float() / layer.temperature
                log_norm = scaled.logsumexp(dim=-1, keepdim=True)
                logprobs.append((scaled.gather(-1, tokens[:, None]) - log_norm).squeeze(-1))
                normalized = scaled.sub_(log_norm)
                probabilities = normalized.exp()
                entropies.append(-torch.linalg.vecdot(probabilities, normalized))
                slope = probabilities.div_(-layer.temperature)  # d logprob / d logit = ([v = token] - p) / temperature
                slope.scatter_add_(1, tokens[:, None], slope.new_full((len(tokens), 1), 1 / layer.temperature))
            slopes.append(torch.autograd.grad(logits, leaf, slope.to(logits.dtype), retain_graph=True)[0])
            hidden.append(read.detach())
            of_hidden.append((leaf, read))
        ctx.save_for_backward(torch.cat(slopes))
        ctx.of_hidden = of_hidden  # graphs from body to output layer: a norm or a scale, mostly nothing at all
        entropy = torch.cat(entropies)
        ctx.mark_non_differentiable(entropy)
        return torch.cat(logprobs), entropy, torch.cat(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        of_logprobs, _, of_hidden = gradients
        (slopes,) = ctx.saved_tensors
        total = torch.zeros_like(slopes)
        if of_logprobs is not None:
            total = slopes * of_logprobs[:, None].to(slopes.dtype)
        if of_hidden is not None:
            parts = of_hidden.split([len(leaf) for leaf, _ in ctx.of_hidden])
            through = [
                torch.autograd.grad(read, leaf, part.view_as(read))[0]
                for (leaf, read), part in zip(ctx.of_hidden, parts, strict=True)
            ]
            total = total + torch.cat(through)
        return total, None, None, None


def logits_of_hidden(model: PreTrainedModel, hidden: Tensor, said_by_body: ModelOutput) -> Tensor:
    """From hidden states `(N, H)` to logits `(N, V)`, as most models go there themselves.

    Some models scale or bound their logits after the last layer (Gemma, Granite, Cohere). So it is the model's own
    forward that runs, with the states at hand in place of what its body would compute. Where it takes another way than
    through its body (OPT, BART), the result has no meaning.
    """
    body = model.base_model

    def states_at_hand(*args: Any, **kwargs: Any) -> ModelOutput:
        return type(said_by_body)(**{**said_by_body, "last_hidden_state": hidden.unsqueeze(0)})

    with forward_replaced({body: states_at_hand}):
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        return model(input_ids=ids, use_cache=False).logits.squeeze(0)


@contextlib.contextmanager
def forward_replaced(instead: dict[nn.Module, Callable]) -> Iterator[None]:
    """Inside, these modules do something else in place of their `forward`."""
    own: dict[nn.Module, Any] = {m: m.__dict__.get("forward") for m in instead}  # where a launcher has wrapped it
    for module, forward in instead.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def completion_logits(model: Any, texts: Texts, keep: bool = True) -> tuple[Tensor, Tensor]:
    """The logits `(N, V)` that each completion token was drawn from, and the hidden states `(N, H)` below them.

    Args:
        keep (`bool`): Ask for no logits of the prompt. Some models (XLSTM, TrOCR) give them all the same.
    """
    width = texts.sources.shape[1] - (int(texts.places.min()) if len(texts.places) else 0)
    options = {"logits_to_keep": width} if keep else {}
    with read_by_head(model) as hidden:
        logits = model(**texts.inputs, **options, use_cache=False).logits
    states = hidden[0] if hidden[0].dim() == 3 else hidden[0][:, 0]  # ProphetNet predicts several tokens ahead
    return texts.pick(logits), texts.pick(states)


def token_logprobs(
    logits: Tensor, token_ids: Tensor, temperature: float = 1.0, entropy_grad: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, and the entropy of the distribution it was drawn from, at a temperature.

    Args:
        logits (`(..., V)`): the logits that each token was drawn from.
        token_ids (`(...)`): the tokens.
        entropy_grad: whether the entropies carry gradient, for an entropy bonus. It costs memory of the logits' size.

    Returns:
        `tuple[Tensor, Tensor]`: log-probabilities and entropies in nats, both `(...)`.
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


@torch.no_grad()
def head_inputs(model: Any, texts: Texts) -> Tensor:
    """What the language-model head reads to predict each token, `(N, H)`, without a logit being computed."""

    def stop(head: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _Read(args[0])

    hook = model.get_output_embeddings().register_forward_pre_hook(stop)
    try:
        model(**texts.inputs, use_cache=False)
    except _Read as read:
        return texts.pick(read.states)
    finally:
        hook.remove()
    raise AssertionError(f"{type(model).__name__} does not call its output layer")


class _Read(Exception):
    """The head has been called, and what it would compute is not wanted."""

    def __init__(self, states: Tensor) -> None:
        super().__init__("the head was called")
        self.states = states
