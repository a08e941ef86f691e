"""How much layers, heads and neurons matter: by their weights, by what goes through them, or by chance.

A score decides which units are kept once it is known how many.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.compression.families import Parts, parts_of

KINDS = ("magnitude", "wanda", "random")
Batches = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Importance:
    """Scores; of two units of one layer and kind, the higher one matters more."""

    heads: tuple[tuple[float, ...], ...]  # for each layer, of each key-value group with its query heads
    neurons: tuple[tuple[float, ...], ...]  # for each layer, of each neuron of the MLP


def importance_of(model: Any, kind: str, batches: Batches = (), seed: int = 0) -> Importance:
    """Scores of heads and neurons.

    - `magnitude`: the 2-norm of all weights that go when the unit goes: of a neuron its rows before and its column
      behind the activation, of a head its query, key, value and output weights.
    - `wanda`: `sum_j ||X_j||_2 sum_i |W_ij|` over the columns j of the unit in the last projection of its part, that
      is the scores |W_ij| ||X_j|| of single weights (Sun et al. 2023, "A Simple and Effective Pruning Approach for
      Large Language Models", arXiv 2306.11695, eq. 1), added up over what a unit consists of.
    - `random`: drawn with the seed.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In evaluation mode.
        kind (`str`): One of the three.
        batches (`Sequence[Mapping]`): For `wanda`: tensors as the model takes them. Padding is left out by
            `attention_mask`.
        seed (`int`): For `random`.

    Raises:
        `ValueError`: for another kind, or calibration data of fewer than two rows; and as
            [`~rlhf_recipes.compression.families.parts_of`].
    """
    if kind not in KINDS:
        raise ValueError(f"importance is {kind!r}; it can be {', '.join(KINDS)}.")
    parts = parts_of(model)
    if kind == "random":
        generator = torch.Generator().manual_seed(seed)
        tables = [torch.rand(len(parts.layers), n, generator=generator) for n in (parts.heads, parts.neurons)]
        return Importance(*(tuple(map(tuple, table.tolist())) for table in tables))
    if kind == "magnitude":
        scores = [(_norms_of_heads(parts, number), _norms_of_neurons(parts, number)) for number in _numbers(parts)]
    else:
        check_calibration(batches)
        norms = input_norms(model, batches)
        scores = [
            (
                _wanda(parts, number, parts.family.out, norms).view(parts.heads, -1).sum(dim=1),
                _wanda(parts, number, parts.family.down, norms),
            )
            for number in _numbers(parts)
        ]
    heads, neurons = zip(*scores, strict=True)
    return Importance(*(tuple(tuple(row.tolist()) for row in rows) for rows in (heads, neurons)))


@torch.no_grad()
def block_influence(model: Any, batches: Batches) -> list[float]:
    """Of each layer, `1 - E[cos(x_t, y_t)]` of the states x before and y after it, over all tokens that are no padding
    (ShortGPT, Men et al. 2024, arXiv 2403.03853, eq. 1): near 0 for a layer that changes little.

    Raises:
        `ValueError`: if the calibration data has fewer than two rows.
    """
    check_calibration(batches)
    parts = parts_of(model)
    sums = torch.zeros(len(parts.layers), dtype=torch.float64)
    tokens = 0
    real: Tensor | None = None

    def watch(number: int) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            sums[number] += torch.cosine_similarity(before[real].double(), after[real].double(), dim=-1).sum().cpu()

        return hook

    with ExitStack() as stack:
        for number, layer in enumerate(parts.layers):
            stack.callback(layer.register_forward_hook(watch(number), with_kwargs=True).remove)
        for batch in batches:
            real = real_tokens(batch)
            tokens += int(real.sum())
            read(model, batch)
    return (1 - sums / tokens).tolist()


@torch.no_grad()
def input_norms(model: Any, batches: Batches) -> dict[tuple[int, str], Tensor]:
    """`||X_j||_2` of each number that enters the last projection of a part, over all tokens that are no padding; by
    layer and name of the projection."""
    parts = parts_of(model)
    squares: dict[tuple[int, str], Tensor] = {}
    real: Tensor | None = None

    def watch(key: tuple[int, str]) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            added = args[0][real].double().square().sum(dim=0)
            squares[key] = squares[key] + added if key in squares else added

        return hook

    with ExitStack() as stack:
        for number in _numbers(parts):
            for name in (parts.family.out, parts.family.down):
                stack.callback(parts.at(number, name).register_forward_pre_hook(watch((number, name))).remove)
        for batch in batches:
            real = real_tokens(batch)
            read(model, batch)
    return {key: square.sqrt() for key, square in squares.items()}


def read(model: Any, batch: Mapping[str, Any]) -> Any:
    """What the model says of a batch; of its columns those are given that say what to read."""
    inputs = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
    return model(**{name: batch[name] for name in inputs if name in batch})


def real_tokens(batch: Mapping[str, Any]) -> Tensor:
    """Which tokens `(B, L)` of a batch are no padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def check_calibration(batches: Batches) -> None:
    """Raise `ValueError` where there are fewer than two rows to learn from, or one without a token."""
    rows = sum(len(batch["input_ids"]) for batch in batches)
    if rows < 2:
        raise ValueError(
            f"The calibration data has {rows} rows, and what a structure is worth cannot hang on a single text: give "
            "2 or more, and better 32 or more."
        )
    for number, batch in enumerate(batches):
        empty = (~real_tokens(batch).any(dim=1)).nonzero()
        if len(empty):
            raise ValueError(f"Row {int(empty[0])} of calibration batch {number} has no token: leave it out.")


def _numbers(parts: Parts) -> range:
    return range(len(parts.layers))


def _wanda(parts: Parts, number: int, name: str, norms: Mapping[tuple[int, str], Tensor]) -> Tensor:
    module = parts.at(number, name)
    weight = module.weight.detach().double()
    columns = weight.abs().sum(dim=0 if isinstance(module, nn.Linear) else 1)  # GPT-2's Conv1D is transposed
    return columns.cpu() * norms[number, name].cpu()


def _norms_of_neurons(parts: Parts, number: int) -> Tensor:
    of_all = _selected(parts, number, parts.slices([], range(parts.neurons)))
    return sum(part.square().reshape(len(part), -1).sum(dim=1) for part in of_all).sqrt()  # type: ignore[union-attr]


def _norms_of_heads(parts: Parts, number: int) -> Tensor:
    norms = []
    for head in range(parts.heads):
        of_head = _selected(parts, number, parts.slices([head], []))
        norms.append(sum(float(part.square().sum()) for part in of_head) ** 0.5)
    return torch.tensor(norms, dtype=torch.float64)


def _selected(parts: Parts, number: int, slices: Mapping[str, tuple[int, Tensor]]) -> Iterator[Tensor]:
    """What is named of the tensors of a layer, in float64, what is selected along the first dimension."""
    for name, (dimension, index) in slices.items():
        module, _, kind = name.rpartition(".")
        tensor = getattr(parts.at(number, module), kind).detach()
        yield tensor.index_select(dimension, index.to(tensor.device)).movedim(dimension, 0).double().cpu()
