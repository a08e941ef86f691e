"""What one pass of a model takes beside its weights: worked out with two of its layers, and carried on to all.

All layers of a model are alike in nearly every architecture, so that each adds the same: a pass of n layers takes what
one of 1 takes and n - 1 times what the second adds. Layers below all that is trained are left out of an update: they
run without a graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.modeling.logprobs import base_of, head_said, token_logprobs
from rlhf_recipes.modeling.memory.tracked import Pass, computing_shapes, tracked
from rlhf_recipes.modeling.trunk.split import stack_of


@dataclass(frozen=True)
class Texts:
    """The shape of what a model reads at a time."""

    rows: int
    prompt: int  # tokens
    completion: int  # tokens that are predicted

    @property
    def length(self) -> int:
        return self.prompt + self.completion


@dataclass(frozen=True)
class Computing:
    """How a model computes."""

    autocast: torch.dtype | None = None
    checkpointing: bool = False  # layers keep their input alone, and compute again in the backward pass
    chunk: int | None = None  # tokens whose logits exist at a time
    entropy_grad: bool = False


def update(model: Any, layers: int, texts: Texts, how: Computing, by: str = "logprobs") -> Pass:
    """A forward and a backward pass through the upper `layers` of a model.

    It takes what autograd keeps of each layer; what the output layer makes of the tokens (of a chunk at a time where
    `chunk` is given: a few tensors of `chunk x V`); and one more gradient of a layer's weights, which are worked out
    before they are added to those that are there. With checkpointing only the input of each layer is kept, and one
    layer at a time is computed again.

    Args:
        by (`str`): What the loss is made of: `"logprobs"` of the completions, `"logits"` of all tokens, `"states"` for
            a head of a few numbers, `"demonstrations"` for log-probabilities without streaming.
    """
    return _carried_on(model, layers, lambda: _update(model, texts, how, by))


def reading(model: Any, texts: Texts, how: Computing, by: str = "logprobs") -> Pass:
    """A forward pass without a graph: one layer at a time, and the output layer."""
    return _with_layers(model, 2, lambda: tracked(lambda: _loss(model, texts, how, by, False), _held(model), False))


def cache(model: Any, texts: Texts, how: Computing) -> Pass:
    """Keys and values of prompts and completions for all layers (`kept`), and what it takes to read the prompts.

    A cache grows by being copied, one layer at a time, which is less than what reading the prompts takes.
    """
    layers = stack_of(model)
    total = 2 if layers is None else len(layers)

    def filled(length: int) -> Callable[[], Pass]:
        held: list[Any] = []

        def forward() -> None:
            held[:] = [_states(model, texts.rows, length, how, False, use_cache=True).past_key_values]

        return lambda: tracked(forward, _held(model), False)

    whole = _carried_on(model, total, filled(texts.length))
    prompts = _with_layers(model, 2, filled(texts.prompt))
    return Pass(whole.kept, whole.kept + prompts.peak - prompts.kept)


# ---- with some layers of a model


def _carried_on(model: Any, layers: int, measure: Callable[[], Pass]) -> Pass:
    if layers <= 2 or stack_of(model) is None:
        return _with_layers(model, layers, measure)
    one, two = _with_layers(model, 1, measure), _with_layers(model, 2, measure)
    more = layers - 2
    return Pass(two.kept + more * (two.kept - one.kept), two.peak + more * (two.peak - one.peak))


def _with_layers(model: Any, count: int, measure: Callable[[], Pass]) -> Pass:
    """On shapes alone, with the upper `count` layers of a model in place of all."""
    layers = stack_of(model)
    if layers is None:
        with computing_shapes(model):
            return measure()
    places = [
        (parent, name)
        for parent in base_of(model).modules()
        for name, child in parent.named_children()
        if child is layers
    ]
    upper = nn.ModuleList(list(layers)[-count:] if count else [])
    for parent, name in places:
        setattr(parent, name, upper)
    try:
        with computing_shapes(model):
            return measure()
    finally:
        for parent, name in places:
            setattr(parent, name, layers)


# ---- one pass


def _update(model: Any, texts: Texts, how: Computing, by: str) -> Pass:
    with _as_trained(model, how.checkpointing):
        return tracked(lambda: _loss(model, texts, how, by, True), _held(model), True)


@contextlib.contextmanager
def _as_trained(model: Any, checkpointing: bool) -> Iterator[None]:
    """In training mode, with the gradients of an earlier micro-batch in place."""
    inner = base_of(model)
    model.train()
    if checkpointing:
        inner.gradient_checkpointing_enable({"use_reentrant": False})
    for parameter in model.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        if checkpointing:
            inner.gradient_checkpointing_disable()
        model.eval()


def _held(model: Any) -> list[Tensor]:
    parameters = list(model.parameters())
    return [*parameters, *model.buffers(), *(p.grad for p in parameters if p.grad is not None)]


def _states(model: Any, rows: int, length: int, how: Computing, graph: bool, use_cache: bool = False) -> Any:
    """What the body says of `rows` texts of a length, from what stands below its layers.

    The mask is one for each row: texts of a batch are of several lengths. It is of `rows x length x length` entries,
    and attention (sdpa) makes one of numbers of it in each layer; scores of each head there are none.
    """
    inner = base_of(model)
    weight = inner.get_input_embeddings().weight
    below = torch.empty(rows, length, weight.shape[1], dtype=weight.dtype)
    trained_below = weight.requires_grad or how.checkpointing
    options: dict[str, Any] = {}
    if getattr(inner.config.get_text_config(), "is_decoder", False) or inner.get_output_embeddings() is not None:
        options = {"position_ids": torch.zeros(rows, length, dtype=torch.long), "use_cache": use_cache}
    mask = torch.zeros(rows, 1, length, length, dtype=torch.bool)
    with _autocast(how):
        return inner.base_model(
            inputs_embeds=below.requires_grad_(graph and trained_below), attention_mask=mask, **options
        )


def _autocast(how: Computing) -> Any:
    return torch.autocast("cpu", how.autocast) if how.autocast is not None else contextlib.nullcontext()


def _loss(model: Any, texts: Texts, how: Computing, by: str, graph: bool) -> Tensor:
    said = _states(model, texts.rows, texts.length, how, graph)
    states = said[0]
    if by == "states":
        return states.float().sum()
    with _autocast(how):
        if by == "logits":
            logits = base_of(model).get_output_embeddings()(states).float()
            ids = torch.zeros(texts.rows * texts.length, dtype=torch.long)
            return nn.functional.cross_entropy(logits.flatten(0, 1), ids)
        count = texts.rows * texts.completion
        rows, places, ids = (torch.zeros(count, dtype=torch.long) for _ in range(3))
        picked = states[rows, places]
        if by == "demonstrations" or how.chunk is None:
            logits = base_of(model).get_output_embeddings()(picked)
            return token_logprobs(logits, ids, 1.0, how.entropy_grad)[0].sum()
        logprobs, entropy, hidden = head_said(model, said, picked, ids, 1.0, how.chunk, how.entropy_grad)
        return logprobs.sum() + entropy.sum() + hidden.float().sum()
