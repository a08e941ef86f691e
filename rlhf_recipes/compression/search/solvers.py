"""What a search is held against: a choice within the budget by chance, evenly, by layer similarity, greedily, and by
integer programming on scores of single blocks.

Magnitude and Wanda decide which heads and neurons are kept, and so are spaces of their own (see
[`~rlhf_recipes.compression.importance.importance_of`]); how many are kept is then decided by [`even_choice`].
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_recipes.compression.search.evaluated import Ledger
from rlhf_recipes.compression.search.gates import Choice
from rlhf_recipes.compression.search.loop import check_budget, ends_of
from rlhf_recipes.compression.search.space import DROP, Space

SLACK = 1e-9  # of a budget, relative, for rounding in sums


def random_choice(space: Space, budget: float, seed: int = 0) -> Choice:
    """Gates go one option down, drawn at random, until the budget holds."""
    generator = random.Random(seed)
    return _lowered(space, budget, lambda choice, open_gates: generator.choice(open_gates))


def even_choice(space: Space, budget: float) -> Choice:
    """All layers alike: the gate that keeps the largest share goes one option down, until the budget holds; of equals
    that of the highest layer. Whole layers are dropped only where all else has gone as far as it can."""

    def widest(choice: list[int], open_gates: list[int]) -> int:
        def order(number: int) -> tuple[bool, float, int]:
            gate = space.gates[number]
            share = gate.options[choice[number]] / gate.options[0]
            return gate.part != "layer", share, math.inf if gate.layer is None else gate.layer  # type: ignore[return-value]

        return max(open_gates, key=order)

    return _lowered(space, budget, widest)


def similarity_choice(space: Space, budget: float, influence: Sequence[float]) -> Choice:
    """The layers of the least influence are dropped, one after the other, until the budget holds (ShortGPT).

    Args:
        influence: Of each layer, from [`~rlhf_recipes.compression.importance.block_influence`].

    Raises:
        `ValueError`: if dropping all layers that may be dropped does not reach the budget.
    """
    dropped = {
        gate.layer: (number, gate.options.index(DROP))
        for number, gate in enumerate(space.gates)
        if gate.part == "layer" and DROP in gate.options
    }
    choice = [0] * len(space.gates)
    for layer in sorted(dropped, key=lambda layer: influence[layer or 0]):
        if _within(space.cost(tuple(choice)), budget):
            break
        number, option = dropped[layer]
        choice[number] = option
    check_budget(budget, space.cost(tuple(choice)))
    return tuple(choice)


def greedy_choice(space: Space, budget: float, ledger: Ledger, evaluations: int) -> Choice:
    """From the whole model, each time the step of one gate by one option that leaves the highest quality for its cost,
    until the budget holds.

    A step is worth `log(P before / P after) / (C before - C after)`, the least first, measured for every gate that can
    go down. Once the evaluations are spent, the worths that were measured last decide.

    Args:
        ledger ([`~rlhf_recipes.compression.search.evaluated.Ledger`]): Who measures, and remembers.
        evaluations (`int`): How many structures may be measured here.
    """
    limit = ledger.paid + evaluations
    worths: dict[int, float] = {}

    def p(choice: Choice) -> float:
        entry = ledger(choice, measured=True)
        return ledger.objective.positive(float(entry.quality or 0.0))

    def cheapest(choice: list[int], open_gates: list[int]) -> int:
        now = tuple(choice)
        for gate in open_gates:
            after = _changed(now, [gate], [now[gate] + 1])
            if ledger.paid < limit or all(c in ledger.entries for c in (now, after)):
                saved = max(space.cost(now) - space.cost(after), 1e-12)
                worths[gate] = (_log(p(now)) - _log(p(after))) / saved
        return min(open_gates, key=lambda gate: (worths.get(gate, math.inf), gate))

    return _lowered(space, budget, cheapest)


def block_scores(space: Space, ledger: Ledger) -> list[list[float]]:
    """Of each option of each gate, `log P` of the whole model with this alone changed, less `log P` of the whole model
    (one block replaced at a time, as in Puzzle, Bercovich et al. 2024, arXiv 2411.19146, section 4).

    It measures one structure more than there are options beyond the first.
    """
    whole, _ = ends_of(space.sizes)

    def log_p(choice: Choice) -> float:
        return _log(ledger.objective.positive(float(ledger(choice, measured=True).quality or 0.0)))

    first = log_p(whole)
    return [
        [0.0] + [log_p(_changed(whole, [number], [option])) - first for option in range(1, size)]
        for number, size in enumerate(space.sizes)
    ]


def integer_choice(space: Space, budget: float, scores: Sequence[Sequence[float]]) -> Choice:
    """The choice of the highest sum of scores within the budget, by integer programming.

    Costs of layers add up, so all gates of a layer are one group of the knapsack. With a gate of all layers alike they
    do not: each combination of those is solved by itself, and the best is taken.
    """
    check_budget(budget, space.cost(ends_of(space.sizes)[1]))
    by_layer: dict[int | None, list[int]] = {}
    for number, gate in enumerate(space.gates):
        by_layer.setdefault(gate.layer, []).append(number)
    of_all = by_layer.pop(None, [])
    best: tuple[float, Choice] | None = None
    for options in itertools.product(*(range(space.sizes[number]) for number in of_all)):
        base = _changed((0,) * len(space.gates), of_all, options)
        wide = space.cost(base)
        groups = [
            (gates, list(itertools.product(*(range(space.sizes[n]) for n in gates)))) for gates in by_layer.values()
        ]
        values = [[math.fsum(scores[n][o] for n, o in zip(g, row, strict=True)) for row in rows] for g, rows in groups]
        costs = [[space.cost(_changed(base, g, row)) - wide for row in rows] for g, rows in groups]
        found = knapsack(values, costs, budget - wide)
        if found is None:
            continue
        choice = base
        for (gates, rows), option in zip(groups, found, strict=True):
            choice = _changed(choice, gates, rows[option])
        value = math.fsum(scores[number][option] for number, option in enumerate(choice))
        if best is None or value > best[0]:
            best = value, choice
    assert best is not None  # the smallest structure is within the budget
    return best[1]


def knapsack(values: Sequence[Sequence[float]], costs: Sequence[Sequence[float]], budget: float) -> Choice | None:
    """One option of each group, so that the sum of values is the highest whose costs add up to at most `budget`: the
    multiple-choice knapsack problem, by `scipy.optimize.milp`. `None` where no choice is within the budget."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    sizes = [len(row) for row in values]
    if not sizes:
        return () if budget >= -SLACK else None
    ends = np.cumsum([0, *sizes])
    groups = np.zeros((len(sizes), ends[-1]))
    for number in range(len(sizes)):
        groups[number, ends[number] : ends[number + 1]] = 1
    flat = np.concatenate([np.asarray(row, dtype=float) for row in costs])
    solved = milp(
        -np.concatenate([np.asarray(row, dtype=float) for row in values]),
        constraints=[LinearConstraint(groups, 1, 1), LinearConstraint(flat[None], ub=budget + SLACK)],
        integrality=np.ones(ends[-1]),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 0.0},
    )
    if solved.x is None:
        return None
    return tuple(int(solved.x[ends[n] : ends[n + 1]].argmax()) for n in range(len(sizes)))


def prior_around(sizes: Sequence[int], choice: Choice, changes: float = 3.0) -> list[list[float]]:
    """A prior for the policy: around a choice, of which a draw changes `changes` gates on average, to any of their
    other options alike."""
    able = sum(size > 1 for size in sizes)
    if not 0 < changes < able:
        raise ValueError(f"changes is {changes}; it must be greater than 0 and less than {able}, the gates there are.")
    rest = changes / able
    return [
        [1.0] if size == 1 else [1 - rest if o == option else rest / (size - 1) for o in range(size)]
        for size, option in zip(sizes, choice, strict=True)
    ]


def _lowered(space: Space, budget: float, pick: Callable[[list[int], list[int]], int]) -> Choice:
    """From the whole model, gates go one option down as they are picked, until the budget holds."""
    check_budget(budget, space.cost(ends_of(space.sizes)[1]))
    choice = [0] * len(space.gates)
    while not _within(space.cost(tuple(choice)), budget):
        choice[pick(choice, [n for n, size in enumerate(space.sizes) if choice[n] + 1 < size])] += 1
    return tuple(choice)


def _changed(choice: Choice, gates: Sequence[int], options: Sequence[int]) -> Choice:
    changed = dict(zip(gates, options, strict=True))
    return tuple(changed.get(number, option) for number, option in enumerate(choice))


def _within(cost: float, budget: float) -> bool:
    return cost <= budget * (1 + SLACK)


def _log(p: float) -> float:
    return math.log(max(p, 1e-12))
