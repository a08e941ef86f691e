"""The search: draw structures, pay for those that are new, teach the policy, until the evaluations are spent."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlhf_recipes.compression.search.evaluated import Evaluated, Ledger
from rlhf_recipes.compression.search.gates import Choice, Guess, StructurePolicy
from rlhf_recipes.compression.search.surrogate import FEWEST, Surrogate

logger = logging.getLogger(__name__)

IDLE = 200  # steps without a structure that had to be measured, after which the search ends


class Search:
    """Policy-gradient search for the structure of the highest R = P * delta(C).

    Args:
        policy ([`~rlhf_recipes.compression.search.gates.StructurePolicy`]): Over the gates of the space.
        ledger ([`~rlhf_recipes.compression.search.evaluated.Ledger`]): Who evaluates and remembers. What others
            (baselines) have found out with it is known to the policy from the start.
        evaluations (`int`): How many structures may be measured, by whomever, in all.
        budget (`float`, *optional*): The best structure may cost at most this share of the original.
        first (`Iterable` of choices): Evaluated before anything is drawn.
        adapt (callable, *optional*): Called after each step with draws of the policy: trains weights that all
            structures share. What was measured before stands as it is.

    Raises:
        `ValueError`: before anything is measured, if the smallest structure costs more than the budget, or if there
            are not 2 evaluations; after two measurements, if the quality of the whole model is that of the smallest.
    """

    def __init__(
        self,
        policy: StructurePolicy,
        ledger: Ledger,
        evaluations: int,
        budget: float | None = None,
        first: Iterable[Choice] = (),
        adapt: Callable[[list[Choice]], Mapping[str, float]] | None = None,
    ) -> None:
        self.policy = policy
        self.ledger = ledger
        self.evaluations = evaluations
        self.budget = budget
        self.adapt = adapt
        self.steps = 0
        self.idle = 0
        whole, least = ends_of(policy.gates.sizes)
        if evaluations < 2:
            raise ValueError(f"There are {evaluations} evaluations; the whole model and the smallest one need 2.")
        check_budget(budget, ledger.cost(least))
        self.first = [whole, least, *(policy.gates.check(choice) for choice in first)]

    @property
    def done(self) -> bool:
        """Whether all evaluations are spent, or all structures known, or nothing comes that would be measured."""
        spent = self.ledger.paid >= self.evaluations
        return spent or self.idle >= IDLE or len(self.policy.memory) >= self.policy.gates.count

    def step(self) -> dict[str, Any]:
        """Draw, evaluate, update once; the first step evaluates what is known to be of interest instead.

        Returns:
            `dict`: what the update says, how many are evaluated, and cost, quality and reward of the best by now.
        """
        paid = self.ledger.paid
        if self.steps == 0:
            self.ledger.check_varies(*self.first[:2])
            self._evaluate(self.first)
            self.policy.remember(*_columns(self.ledger.entries.values()))
            row: dict[str, Any] = {}
        else:
            guess = self._guess()
            choices = self._evaluate(self.policy.draw())
            rewards = [self.ledger(choice).reward for choice in choices]
            row = dict(self.policy.update(choices, rewards, self.ledger.paid / self.evaluations, guess))
        if self.adapt is not None and not self.done:
            row |= self.adapt(self.policy.sample(self.policy.settings.draws))
        self.steps += 1
        self.idle = self.idle + 1 if self.ledger.paid == paid else 0
        if self.idle == IDLE:
            logger.warning(
                "The search ends after %d of %d evaluations: in %d steps nothing was drawn whose delta(C) is not 0. "
                "A prior nearer to the budget, or a flatter delta, would use the others.",
                self.ledger.paid, self.evaluations, IDLE,
            )  # fmt: skip
        return row | {"evaluations": self.ledger.paid, **self._best_yet()}

    def run(self, each: Callable[[dict[str, Any]], None] | None = None) -> Evaluated:
        """Step until done, and hand each row to `each`, which may save the state. Returns the best."""
        while not self.done:
            row = self.step()
            if each is not None:
                each(row)
        return self.best()

    def best(self) -> Evaluated:
        """The structure of the highest reward within the budget."""
        return self.ledger.best(self.budget)

    def _evaluate(self, choices: Sequence[Choice]) -> list[Choice]:
        """Evaluate what the evaluations suffice for, and return that; a choice may stand in it twice."""
        within = []
        for choice in choices:
            if self.ledger.is_free(choice) or self.ledger.paid < self.evaluations:
                self.ledger(choice)
                within.append(choice)
        return within

    def _guess(self) -> Guess | None:
        """Rewards of choices by what is known now: their P is guessed, their delta(C) is exact."""
        objective, cost = self.ledger.objective, self.ledger.cost
        known = [
            (e.choice, objective.positive(e.quality)) for e in self.ledger.entries.values() if e.quality is not None
        ]
        if len(known) < FEWEST:
            return None
        surrogate = Surrogate(*map(list, zip(*known, strict=True)))

        def guess(choices: Sequence[Choice]) -> list[float]:
            qualities = surrogate(choices)
            return [float(p) * objective.delta(cost(c)) for p, c in zip(qualities, choices, strict=True)]

        return guess

    def _best_yet(self) -> dict[str, float]:
        try:
            best = self.best()
        except ValueError:  # nothing within the budget by now
            return {}
        return {"best_cost": best.cost, "best_quality": float(best.quality or 0.0), "best_reward": best.reward}

    def state_dict(self) -> dict[str, Any]:
        """All that the steps to come depend on, but for weights that `adapt` trains."""
        return {
            "steps": self.steps,
            "idle": self.idle,
            "policy": self.policy.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state_dict`] gave: the same draws and updates follow, to the bit."""
        self.policy.load_state_dict(state["policy"])
        self.ledger.load_state_dict(state["ledger"])
        self.steps, self.idle = int(state["steps"]), int(state["idle"])


def ends_of(sizes: Sequence[int]) -> tuple[Choice, Choice]:
    """The whole model, which has option 0 of each gate, and the smallest, which has the last."""
    return (0,) * len(sizes), tuple(size - 1 for size in sizes)


def check_budget(budget: float | None, least: float) -> None:
    """Raise `ValueError` where not even the smallest structure, of relative cost `least`, is within the budget."""
    if budget is None:
        return
    if not 0 < budget <= 1:
        raise ValueError(f"The budget is {budget}; it is a share of the original's cost, greater than 0, at most 1.")
    if least > budget * (1 + 1e-9):
        raise ValueError(
            f"The budget is {budget:.4g} of the original's cost, and the smallest structure of the space costs "
            f"{least:.4g}: give a larger budget, or a space that goes further down."
        )


def _columns(entries: Iterable[Evaluated]) -> tuple[list[Choice], list[float]]:
    known = list(entries)
    return [entry.choice for entry in known], [entry.reward for entry in known]
