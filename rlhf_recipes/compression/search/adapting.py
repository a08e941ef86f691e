"""Weights that adapt while structures are searched: a LoRA that all structures share, trained on their data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rlhf_recipes.compression.candidates import Candidates
from rlhf_recipes.compression.mask import masked
from rlhf_recipes.compression.search.gates import Choice
from rlhf_recipes.compression.structure import Structure


class Adapting:
    """Between two steps of the policy, a step of the adapter on each structure drawn (as ENAS takes turns between its
    controller and weights that all structures share, arXiv 1802.03268, section 2.2).

    What was measured before stands as it was: with adapters that learn, a quality is that of its own time. Measure the
    best few again at the end.

    Args:
        candidates ([`~rlhf_recipes.compression.candidates.Candidates`]): Of a `PeftModel`; what it keeps of earlier
            weights is dropped after each call.
        structure_of (callable): The structure of a choice.
        batches (`Sequence[Mapping]`): To train on, one for each step, over and over.
        learning_rate (`float`): Of AdamW.

    Raises:
        `ValueError`: if the model has nothing to train, or the quality no loss.
    """

    def __init__(
        self,
        candidates: Candidates,
        structure_of: Callable[[Choice], Structure],
        batches: Sequence[Mapping[str, Any]],
        learning_rate: float = 1e-3,
    ) -> None:
        self.candidates = candidates
        self.structure_of = structure_of
        self.batches = batches
        trained = {n: p for n, p in candidates.model.named_parameters() if p.requires_grad}
        if not hasattr(candidates.model, "peft_config") or not trained:
            raise ValueError("There is no adapter to train: give the candidates a model from peft.get_peft_model.")
        if candidates.measure.loss is None:
            raise ValueError(
                f"The quality {candidates.measure.name!r} has no loss to train on: search without adapting weights, "
                "or take the likelihood, the accuracy or the preference."
            )
        self.trained = trained
        self.optimizer = torch.optim.AdamW(trained.values(), lr=learning_rate)
        self.steps = 0

    def __call__(self, choices: Sequence[Choice]) -> dict[str, float]:
        """A step on each structure; returns the mean loss."""
        losses = []
        for choice in choices:
            batch = self.batches[self.steps % len(self.batches)]
            with masked(self.candidates.model, self.structure_of(choice)):
                assert self.candidates.measure.loss is not None
                loss = self.candidates.measure.loss(self.candidates.model, batch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
            losses.append(float(loss.detach()))
            self.steps += 1
        self.candidates.forget()
        return {"adapter_loss": sum(losses) / len(losses)}

    def state_dict(self) -> dict[str, Any]:
        """Adapter, optimizer and place in the data."""
        weights = {name: parameter.detach().clone() for name, parameter in self.trained.items()}
        return {"weights": weights, "optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what [`state_dict`] gave."""
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])
        self.candidates.forget()
