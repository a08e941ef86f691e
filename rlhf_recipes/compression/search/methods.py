"""How a structure is chosen: by the search, or by one of what it is held against; all on the same data and cost."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from rlhf_recipes.compression.candidates import Candidates
from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.importance import block_influence, importance_of
from rlhf_recipes.compression.quality import Quality
from rlhf_recipes.compression.search.evaluated import Evaluated, Ledger
from rlhf_recipes.compression.search.gates import Choice, StructurePolicy
from rlhf_recipes.compression.search.loop import Search, check_budget, ends_of
from rlhf_recipes.compression.search.objective import Delta, Objective, QualityMap
from rlhf_recipes.compression.search.solvers import (
    block_scores,
    even_choice,
    greedy_choice,
    integer_choice,
    prior_around,
    random_choice,
    similarity_choice,
)
from rlhf_recipes.compression.search.space import Space, costs_of, space_of
from rlhf_recipes.compression.structure import Structure
from rlhf_recipes.outputs import write_json

STATE = "search.pt"
STRUCTURE = "structure.json"


@dataclass(frozen=True)
class Chosen:
    """A structure, and what is known of it on the calibration data."""

    method: str
    budget: float
    structure: Structure
    cost: float  # C, relative to the original
    quality: float  # as measured, before the map
    reward: float  # R = P * delta(C)
    evaluations: int  # structures that were measured for it
    seconds: float
    log: list[dict[str, Any]] = field(default_factory=list)  # of the search, a row for each step
    front: list[dict[str, Any]] = field(default_factory=list)  # structures that no other beat: cost and quality

    def save(self, folder: Path) -> None:
        """Write it as JSON."""
        write_json(folder / STRUCTURE, {**asdict(self), "structure": self.structure.to_dict()})

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Chosen":
        """Out of what [`save`] wrote."""
        return cls(**{**given, "structure": Structure.from_dict(given["structure"])})


class Chooser:
    """One loaded model on which all methods choose, in spaces that differ in which heads and neurons go first.

    Args:
        model (`PreTrainedModel`): The original, in evaluation mode.
        batches (`Sequence[Mapping]`): Calibration data, on its device.
        quality ([`~rlhf_recipes.compression.quality.Quality`]): P before the map.
        args ([`~rlhf_recipes.compression.config.CompressConfig`]): The settings.

    Raises:
        `ValueError`: before any structure is measured: if a budget is out of reach for one of the methods, or P may be
            negative and has no map; after two were measured: if P is the same for the whole and the smallest model.
    """

    def __init__(
        self, model: Any, batches: Sequence[Mapping[str, Any]], quality: Quality, args: CompressConfig
    ) -> None:
        self.model = model
        self.batches = batches
        self.quality = quality
        self.args = args
        self.map = QualityMap.of(args.quality_map)
        self.costs = costs_of(model, args.cost_tokens)
        self.candidates = Candidates(model, batches, quality)
        self.spaces: dict[str, Space] = {}
        self.influence: list[float] | None = None
        for budget in args.budgets:
            self.objective(budget)
        space = self._space("random")  # of which the costs are those of all
        for budget in args.budgets:
            check_budget(budget, space.cost(ends_of(space.sizes)[1]))
            if "shortgpt" in args.methods:
                similarity_choice(space, budget, [0.0] * len(space.whole.layers))
        self._ledger(space, args.budgets[0]).check_varies(*ends_of(space.sizes))

    def objective(self, budget: float) -> Objective:
        """R at a budget."""
        args = self.args
        delta = Delta(args.delta, args.delta_strength, budget if args.delta == "hinge" else None)
        return Objective(delta, self.map, self.quality.nonnegative, self.quality.name)

    def cost(self, structure: Structure) -> float:
        """C of a structure, relative to the original."""
        space = self._space("random")
        costs = self.costs(structure)
        total = sum(self.args.weights.values())
        return sum(w * costs[name] / space.original[name] for name, w in self.args.weights.items()) / total

    def __call__(self, method: str, budget: float, folder: Path | None = None) -> Chosen:
        """Choose a structure.

        Args:
            method (`str`): One of [`~rlhf_recipes.compression.config.METHODS`].
            budget (`float`): What it may cost, as a share of the original.
            folder (`Path`, *optional*): Where the search keeps its state, and goes on from what lies there.
        """
        start = time.perf_counter()
        kind = method if method in ("random", "magnitude", "wanda") else self.args.importance
        space = self._space(kind)
        log: list[dict[str, Any]] = []
        most = self.args.evaluations if method in ("search", "greedy") else None
        with tqdm(total=most, desc=method, unit="structure", disable=self.args.disable_tqdm) as bar:
            ledger = self._ledger(space, budget, bar)
            if method == "search":
                found, log = self._searched(space, ledger, budget, folder, bar)
            else:
                found = ledger(self._baseline(method, space, ledger, budget), measured=True)
        front = [{"cost": entry.cost, "quality": entry.quality} for entry in ledger.front()]
        quality, seconds = float(found.quality or 0.0), round(time.perf_counter() - start, 2)
        return Chosen(method, budget, space.structure(found.choice), found.cost, quality, found.reward, ledger.paid,
                      seconds, log, front)  # fmt: skip

    def _baseline(self, method: str, space: Space, ledger: Ledger, budget: float) -> Choice:
        if method == "random":
            return random_choice(space, budget, self.args.seed)
        if method == "shortgpt":
            return similarity_choice(space, budget, self._influence())
        if method == "greedy":
            return greedy_choice(space, budget, ledger, self.args.evaluations)
        if method == "ilp":
            return integer_choice(space, budget, block_scores(space, ledger))
        return even_choice(space, budget)

    def _searched(
        self, space: Space, ledger: Ledger, budget: float, folder: Path | None, bar: Any
    ) -> tuple[Evaluated, list[dict[str, Any]]]:
        """The search begins around what integer programming makes of single blocks, where those can be afforded."""
        state, log, most = None, [], self.args.evaluations
        if folder is not None and (folder / STATE).is_file():
            state = torch.load(folder / STATE, weights_only=True)
            ledger.load_state_dict(state["search"]["ledger"])
            log = state["log"]
            bar.update(ledger.paid)
        first = [even_choice(space, budget)]
        if any(gate.part == "layer" for gate in space.gates):
            with contextlib.suppress(ValueError):  # layers alone may not reach the budget
                first.append(similarity_choice(space, budget, self._influence()))
        if sum(space.sizes) - len(space.sizes) < 0.75 * most:
            first.insert(0, integer_choice(space, budget, block_scores(space, ledger)))
        able = sum(size > 1 for size in space.sizes)
        prior = prior_around(space.sizes, first[0], min(3.0, able / 2))
        search = Search(StructurePolicy(space.sizes, None, prior, self.args.seed), ledger, most, budget, first)
        if state is not None:
            search.load_state_dict(state["search"])

        def each(row: dict[str, Any]) -> None:
            log.append({key: value for key, value in row.items() if value == value})  # a mean of no draws is NaN
            if folder is not None:
                save_at_once({"search": search.state_dict(), "log": log}, folder / STATE)
            bar.set_postfix({"R": f"{row.get('best_reward', 0.0):.4g}"})

        return search.run(each), log

    def _space(self, kind: str) -> Space:
        if kind not in self.spaces:
            importance = importance_of(self.model, kind, self.batches, self.args.seed)
            self.spaces[kind] = space_of(self.model, importance, self.costs, self.args.weights, **self.args.space)
        return self.spaces[kind]

    def _ledger(self, space: Space, budget: float, bar: Any = None) -> Ledger:
        def quality(choice: Choice) -> float:
            found = self.candidates(space.structure(choice))
            if bar is not None:
                bar.update()
            return found

        return Ledger(quality, space.cost, self.objective(budget))

    def _influence(self) -> list[float]:
        if self.influence is None:
            self.influence = block_influence(self.model, self.batches)
        return self.influence


def save_at_once(state: Any, path: Path) -> None:
    """Write a file of torch so that whoever looks finds the old one or the new one."""
    part = path.with_name(path.name + ".part")
    torch.save(state, part)
    part.replace(path)
