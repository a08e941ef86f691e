"""The space of structures of a model: what each gate decides, and what a choice costs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf_recipes.compression.cost import cost_table, priced
from rlhf_recipes.compression.families import parts_of
from rlhf_recipes.compression.importance import Importance
from rlhf_recipes.compression.search.gates import Choice
from rlhf_recipes.compression.search.objective import check_weights, relative_cost
from rlhf_recipes.compression.structure import BITS, Layer, Merge, Structure

KEEP, DROP, MERGE = 1, 0, -1  # options of a gate that decides on a whole layer; MERGE into the one below


@dataclass(frozen=True)
class Gate:
    """One decision. Option 0 leaves all as it is, and each further option keeps less."""

    part: str  # "layer", "heads", "neurons" or "bits"
    layer: int | None  # None: of all layers alike
    options: tuple[int, ...]  # what is kept: KEEP, DROP or MERGE; how many heads or neurons; how many bits


@dataclass
class Space:
    """Gates, the structures they lead to, and what these cost.

    Args:
        gates (`tuple[Gate]`): One option of each is a choice.
        importance ([`~rlhf_recipes.compression.importance.Importance`]): Which heads and neurons are kept, once it is
            known how many: the most important.
        whole ([`~rlhf_recipes.compression.structure.Structure`]): All of the model.
        costs (callable): Costs of a structure by name (parameters, bytes, FLOPs, seconds), worked out without building
            anything.
        weights (`Mapping`): Of the costs that count; see [`~rlhf_recipes.compression.search.objective.relative_cost`].
    """

    gates: tuple[Gate, ...]
    importance: Importance
    whole: Structure
    costs: Callable[[Structure], Mapping[str, float]]
    weights: Mapping[str, float]
    original: Mapping[str, float] = field(init=False)
    _kept: dict[tuple[Any, ...], tuple[int, ...]] = field(init=False, default_factory=dict)
    _costs: dict[tuple[Any, ...], float] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.original = self.costs(self.whole)
        check_weights(self.original, self.weights)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Options of each gate."""
        return tuple(len(gate.options) for gate in self.gates)

    def structure(self, choice: Choice) -> Structure:
        """What a choice keeps. A layer without heads and neurons is dropped."""
        of_all: dict[str, int] = {}
        of_layers: list[dict[str, int]] = [{} for _ in self.whole.layers]
        for gate, option in zip(self.gates, choice, strict=True):
            (of_all if gate.layer is None else of_layers[gate.layer])[gate.part] = gate.options[option]
        decided = [of_all | of_layer for of_layer in of_layers]
        layers: list[Layer | None] = []
        runs: list[list[int]] = []  # layers that are merged
        for number, (layer, of_layer) in enumerate(zip(self.whole.layers, decided, strict=True)):
            assert layer is not None
            kept = self._layer(number, layer, of_layer) if of_layer.get("layer", KEEP) == KEEP else None
            if kept is not None:
                runs.append([number])
            elif of_layer.get("layer") == MERGE and runs and runs[-1][-1] == number - 1:
                runs[-1].append(number)
            layers.append(kept)
        merged = tuple(Merge.collapse(run) for run in runs if len(run) > 1)
        return Structure(tuple(layers), merged, self.whole.vocabulary)

    def cost(self, choice: Choice) -> float:
        """C of a choice, relative to the original, by the weights of the space."""
        structure = self.structure(choice)
        key = tuple(structure.shapes)
        if key not in self._costs:
            self._costs[key] = relative_cost(self.costs(structure), self.original, self.weights)
        return self._costs[key]

    def _layer(self, number: int, whole: Layer, decided: Mapping[str, int]) -> Layer | None:
        heads = self._best(number, "heads", whole.heads, decided)
        neurons = self._best(number, "neurons", whole.neurons, decided)
        return Layer(heads, neurons, decided.get("bits", whole.bits)) if heads or neurons else None

    def _best(self, number: int, part: str, whole: tuple[int, ...], decided: Mapping[str, int]) -> tuple[int, ...]:
        count = decided.get(part, len(whole))
        key = (number, part, count)
        if key not in self._kept:
            worth = getattr(self.importance, part)[number]
            self._kept[key] = tuple(sorted(sorted(whole, key=lambda unit: (-worth[unit], unit))[:count]))
        return self._kept[key]

    def described(self, choice: Choice) -> dict[str, Any]:
        """A choice in words, for logs and tables: what is kept of each part."""
        return {
            gate.part if gate.layer is None else f"{gate.part}.{gate.layer}": gate.options[option]
            for gate, option in zip(self.gates, choice, strict=True)
        }


def space_of(
    model: Any,
    importance: Importance,
    costs: Callable[[Structure], Mapping[str, float]],
    weights: Mapping[str, float],
    even: bool = True,
    drop: bool = True,
    merge: bool = False,
    heads: Sequence[float] = (1.0, 0.75, 0.5),
    neurons: Sequence[float] = (1.0, 0.875, 0.75, 0.625, 0.5),
    bits: Sequence[int] = (16,),
    kept_layers: Sequence[int] = (0,),
    vocabulary: Sequence[int] | None = None,
) -> Space:
    """The space of a model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): The original.
        importance, costs, weights: As for [`Space`].
        even (`bool`): One number of heads and one of neurons for all layers, which the files of these families can
            describe. Otherwise each layer has its own, which may be 0, and the model works, but cannot be saved.
        drop, merge (`bool`): Whether layers may be dropped; whether they may be merged into the one below, if
            that is kept and attends alike.
        heads, neurons (`Sequence[float]`): Shares that can be kept, 1 the first, falling. Heads stay where the config
            of the family cannot say a number of them, if `even`. Neurons are counted in steps of 8, where their
            number divides by that.
        bits (`Sequence[int]`): In which a layer's projections may be held, falling: 16, 8, 4.
        kept_layers (`Sequence[int]`): Never dropped, so that something is left.
        vocabulary (`Sequence[int]`, *optional*): Token ids that are kept in all structures, the whole model included.

    Raises:
        `ValueError`: if shares or bits are not such, no layer is kept, or there is nothing to decide; and as
            [`~rlhf_recipes.compression.families.parts_of`].
    """
    parts = parts_of(model)
    whole = Structure.whole(model)
    count = len(whole.layers)
    if not kept_layers or any(not 0 <= number < count for number in kept_layers):
        raise ValueError(f"kept_layers is {list(kept_layers)}; give one or more of the layers 0 to {count - 1}.")
    if list(bits) != sorted(set(bits) & set(BITS), reverse=True) or not bits or bits[0] != 16:
        raise ValueError(f"bits is {list(bits)}; it begins with 16, and 8 and 4 may follow.")
    of_heads = _counts(heads, parts.heads, 1, "heads", zero=not even)
    of_neurons = _counts(neurons, parts.neurons, 1 if parts.neurons % 8 else 8, "neurons", zero=not even)
    if even and not parts.family.prunes_heads:
        of_heads = of_heads[:1]
    kinds = getattr(parts.model.config, "layer_types", None) or [None] * count
    of_layers = [
        (KEEP,) if number in kept_layers
        else (KEEP,) + (MERGE,) * (merge and number > 0 and kinds[number] == kinds[number - 1]) + (DROP,) * drop
        for number in range(count)
    ]  # fmt: skip
    gates = _gates(of_layers, tuple(bits), of_heads, of_neurons, even)
    if not gates:
        raise ValueError("There is nothing to decide: allow layers to be dropped, or fewer heads, neurons or bits.")
    if vocabulary is not None:
        whole = Structure(whole.layers, (), tuple(vocabulary))
    return Space(tuple(gates), importance, whole, costs, weights)


def _gates(
    of_layers: Sequence[tuple[int, ...]],
    bits: tuple[int, ...],
    of_heads: tuple[int, ...],
    of_neurons: tuple[int, ...],
    even: bool,
) -> list[Gate]:
    """Those that have something to decide, layer by layer, and last what is alike in all layers."""
    gates = []
    for number, options in enumerate(of_layers):
        gates += [Gate("layer", number, options), Gate("bits", number, bits)]
        if not even:
            # A layer that stays has heads or neurons.
            some = of_neurons if options != (KEEP,) or 0 not in of_heads else tuple(n for n in of_neurons if n)
            gates += [Gate("heads", number, of_heads), Gate("neurons", number, some)]
    if even:
        gates += [Gate("heads", None, of_heads), Gate("neurons", None, of_neurons)]
    return [gate for gate in gates if len(gate.options) > 1]


def costs_of(model: Any, tokens: int = 128, itemsize: int = 2) -> Callable[[Structure], dict[str, float]]:
    """For a [`Space`]: costs of any structure of a model, by the names of
    [`~rlhf_recipes.modeling.cost.units.Cost`], from a table that is made once.

    Args:
        model (`PreTrainedModel`): The original, without adapters.
        tokens (`int`): Of a text that is read, and that one more token looks at.
        itemsize (`int`): Bytes of a number that is not quantized.
    """
    table = cost_table(model)

    def costs(structure: Structure) -> dict[str, float]:
        named = asdict(priced(table, structure, tokens, itemsize))
        del named["tokens"]
        return named

    return costs


def _counts(shares: Sequence[float], total: int, step: int, what: str, zero: bool) -> tuple[int, ...]:
    if not shares or shares[0] != 1 or any(a <= b for a, b in zip(shares, shares[1:], strict=False)):
        raise ValueError(f"The shares of {what} are {list(shares)}; they must begin with 1 and fall.")
    if shares[-1] < 0 or (shares[-1] == 0 and not zero):
        raise ValueError(
            f"The last share of {what} is {shares[-1]}; it must be greater than 0, and may be 0 where layers may "
            "differ (even=False)."
        )
    counts = [min(total, max(step, round(share * total / step) * step)) if share else 0 for share in shares]
    return tuple(dict.fromkeys(counts))
