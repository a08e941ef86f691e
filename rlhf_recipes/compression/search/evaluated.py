"""What has been found out about structures of a search: each is paid once, by whoever asks first."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlhf_recipes.compression.search.gates import Choice
from rlhf_recipes.compression.search.objective import Objective


@dataclass(frozen=True)
class Evaluated:
    """One structure."""

    choice: Choice
    cost: float  # C, relative to the original
    quality: float | None  # as measured, before the map; None where delta(C) is 0 and nothing was measured
    reward: float  # R = P * delta(C)


class Ledger:
    """Rewards of choices, remembered.

    A choice whose delta(C) is 0 has the reward 0 whatever its quality, so that is not measured and costs nothing.

    Args:
        quality (callable): The quality of a choice, as measured.
        cost (callable): Its cost C, relative to the original, exact and cheap.
        objective ([`~rlhf_recipes.compression.search.objective.Objective`]): What makes R of both.
    """

    def __init__(
        self, quality: Callable[[Choice], float], cost: Callable[[Choice], float], objective: Objective
    ) -> None:
        self.quality = quality
        self.cost = cost
        self.objective = objective
        self.entries: dict[Choice, Evaluated] = {}

    @property
    def paid(self) -> int:
        """How many qualities were measured."""
        return sum(entry.quality is not None for entry in self.entries.values())

    def __call__(self, choice: Choice, measured: bool = False) -> Evaluated:
        """What is known of a choice, measured where that is needed, or asked for with `measured`."""
        known = self.entries.get(choice)
        if known is None or (measured and known.quality is None):
            cost = self.cost(choice)
            quality = self.quality(choice) if measured or self.objective.delta(cost) > 0 else None
            known = Evaluated(choice, cost, quality, 0.0 if quality is None else self.objective(quality, cost))
            self.entries[choice] = known
        return known

    def is_free(self, choice: Choice) -> bool:
        """Whether asking for this choice measures nothing."""
        return choice in self.entries or self.objective.delta(self.cost(choice)) == 0

    def best(self, budget: float | None = None) -> Evaluated:
        """Of the measured ones that cost at most `budget`, that of the highest reward; the first of equals.

        Raises:
            `ValueError`: if there is none.
        """
        limit = math.inf if budget is None else budget * (1 + 1e-9)
        within = [e for e in self.entries.values() if e.quality is not None and e.cost <= limit]
        if not within:
            raise ValueError(
                f"None of {self.paid} structures that were evaluated costs at most {budget} of the original: allow "
                "more evaluations, a steeper delta, or a larger budget."
            )
        return max(within, key=lambda entry: entry.reward)

    def check_varies(self, *choices: Choice) -> None:
        """Measure these choices, and raise `ValueError` where all are equally good: nothing could be learned."""
        found = [self.objective.positive(float(self(choice, measured=True).quality or 0.0)) for choice in choices]
        if max(found) == min(found):
            raise ValueError(
                f"The {self.objective.name} is {found[0]:.6g} for the whole model and for {len(choices) - 1} others, "
                "the smallest among them: a quality that is constant cannot guide a search. Give one that depends on "
                "what the model says, or more calibration rows."
            )

    def front(self) -> list[Evaluated]:
        """The measured ones that no other beats in cost and quality at once, from cheap to dear."""
        front: list[Evaluated] = []
        measured = [e for e in self.entries.values() if e.quality is not None]
        for entry in sorted(measured, key=lambda e: (e.cost, -(e.quality or 0.0))):
            if not front or (entry.quality or 0.0) > (front[-1].quality or 0.0):
                front.append(entry)
        return front

    def state_dict(self) -> list[dict[str, Any]]:
        """All entries in their order, as JSON can hold them."""
        return [asdict(entry) for entry in self.entries.values()]

    def load_state_dict(self, state: list[Mapping[str, Any]]) -> None:
        """Go on from what [`state_dict`] gave."""
        loaded = [Evaluated(**{**entry, "choice": tuple(entry["choice"])}) for entry in state]
        self.entries = {entry.choice: entry for entry in loaded}
