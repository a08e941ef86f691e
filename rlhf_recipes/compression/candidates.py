"""Candidates scored on one loaded model: each runs from the lowest layer up that no earlier one has run alike."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.importance import check_calibration
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.quality import Quality
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.modeling.trunk.trunk import Trunk

logger = logging.getLogger(__name__)

TOLERANCE = 1e-6  # of a quality, relative, between the states kept and the plain way


class Candidates:
    """The qualities of structures of one model on the same calibration data.

    What enters each layer is kept, by what all layers below it are: once for the whole model, and as far as there is
    room for others. The first structure that could begin above the lowest layer is scored the plain way too; where the
    two differ (a model that draws at random, or whose layers read more than what the layer below says), all are scored
    so from then on.

    Args:
        model (`PreTrainedModel` or `PeftModel`): In evaluation mode.
        batches (`Sequence[Mapping]`): Calibration data, on the model's device.
        quality ([`~rlhf_recipes.compression.quality.Quality`]): What is measured.
        room (`int`): Bytes that may be kept.

    Raises:
        `ValueError`: if there are fewer than two rows; and as [`~rlhf_recipes.compression.families.parts_of`].
    """

    def __init__(self, model: Any, batches: Sequence[Mapping[str, Any]], quality: Quality, room: int = 2**30) -> None:
        check_calibration(batches)
        self.model = model
        self.batches = batches
        self.measure = quality
        self.layers = parts_of(model).layers
        self.whole = Structure.whole(model)
        self.states = _States(room)
        self.reuse = quality.one_pass and room > 0
        self.checked = False
        self.run = self.spared = 0  # layers, over all structures
        self._made: dict[tuple[Any, ...], Tensor] = {}
        self._numbers: dict[Hashable, int] = {}

    def __call__(self, structure: Structure) -> float:
        """The quality of a structure."""
        if not self.reuse:
            return self.plain(structure)
        prefixes = self._prefixes(structure)
        depth = next((d for d in range(len(self.layers), 0, -1) if prefixes[d] in self.states), 0)
        quality = self._from(structure, prefixes, depth)
        self.run, self.spared = self.run + len(self.layers) - depth, self.spared + depth
        if depth and not self.checked:
            self.checked = True
            plain = self.plain(structure)
            if not abs(quality - plain) <= TOLERANCE * abs(plain):
                logger.warning(
                    "A structure has the quality %.8g on states that are kept, and %.8g the plain way: none are kept "
                    "from here on, and each candidate runs as a whole.", quality, plain,
                )  # fmt: skip
                self.reuse = False
                self.forget()
                return plain
        return quality

    @torch.no_grad()
    def plain(self, structure: Structure) -> float:
        """The quality without anything kept."""
        with masked(self.model, structure, self._made):
            return self.measure.of(self.model, self.batches)

    def forget(self) -> None:
        """Drop what is kept: the weights have changed."""
        self.states.clear()
        self._made.clear()

    @torch.no_grad()
    def _from(self, structure: Structure, prefixes: list[Hashable], depth: int) -> float:
        """Run the layers from `depth` on, and keep what enters those above."""
        upper = replace(
            structure,
            layers=self.whole.layers[:depth] + structure.layers[depth:],
            merged=tuple(merge for merge in structure.merged if merge.layers[0] >= depth),
        )
        found: dict[int, list[Tensor]] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                found.setdefault(number, []).append(args[0] if args else kwargs["hidden_states"])

            return hook

        kept = self.states.get(prefixes[depth]) if depth else None
        parts = []
        with ExitStack() as stack:
            stack.enter_context(masked(self.model, upper, self._made))
            for number in range(depth + 1, len(self.layers)):
                handle = self.layers[number].register_forward_pre_hook(keep(number), with_kwargs=True)
                stack.callback(handle.remove)
            for index, batch in enumerate(self.batches):
                with ExitStack() as below:
                    if kept is not None:
                        below.enter_context(Trunk(self.model, self.layers, depth).said(kept[index]))
                    parts.append(self.measure.of_batch(self.model, batch))
        pinned = self.whole.layers == structure.layers and not structure.merged
        for number, states in found.items():
            self.states.put(prefixes[number], states, pinned)
        return self.measure(parts)

    def _prefixes(self, structure: Structure) -> list[Hashable]:
        """What all layers below each layer are, and last what all are."""
        merges = {merge.layers[0]: merge for merge in structure.merged}
        each = [(layer, merges.get(number)) for number, layer in enumerate(structure.layers)]
        numbers = [self._numbers.setdefault(item, len(self._numbers)) for item in each]
        return [tuple(numbers[:depth]) for depth in range(len(numbers) + 1)]


class _States:
    """Lists of tensors by key, as many as there is room for: those of the whole model, and what was used last."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.used = 0
        self.pinned: dict[Hashable, list[Tensor]] = {}
        self.others: OrderedDict[Hashable, list[Tensor]] = OrderedDict()

    def __contains__(self, key: Hashable) -> bool:
        return key in self.pinned or key in self.others

    def get(self, key: Hashable) -> list[Tensor]:
        if key in self.pinned:
            return self.pinned[key]
        self.others.move_to_end(key)
        return self.others[key]

    def put(self, key: Hashable, states: list[Tensor], pinned: bool) -> None:
        size = _bytes(states)
        if key in self or size > self.room:
            return
        while self.used + size > self.room and self.others:
            self.used -= _bytes(self.others.popitem(last=False)[1])
        if self.used + size <= self.room:
            (self.pinned if pinned else self.others)[key] = states
            self.used += size

    def clear(self) -> None:
        self.pinned.clear()
        self.others.clear()
        self.used = 0


def _bytes(states: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in states)
