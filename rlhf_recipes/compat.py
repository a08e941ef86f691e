"""The private names of transformers that cannot be avoided, each with its reason. Nowhere else is one touched."""

from typing import Any

from transformers import Trainer
from transformers.trainer_utils import HubStrategy


class CheckpointOfRoles(Trainer):
    """Checkpoints of a module that wraps a policy and a critic.

    `Trainer` has no public hook for reading the weights of a checkpoint. Its own methods look for one state dict of
    the whole module; ours is a policy that any Hugging Face code can load, with the critic in a folder beside it.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        # The Trainer's own leaves the critic out and uploads training_args.bin, in which the Hub token stands.
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            self.push_checkpoint(checkpoint_folder)

    def push_checkpoint(self, folder: str) -> None:
        """Push the model in a checkpoint's folder, and nothing else of it."""
        raise NotImplementedError

    def save_checkpoint_now(self) -> None:
        """Write a checkpoint outside the schedule. `control.should_save` would wait for the next optimizer step."""
        self._save_checkpoint(self.model, trial=None)  # type: ignore[arg-type]
