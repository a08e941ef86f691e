"""The private names of transformers that cannot be avoided, each with its reason. Nowhere else is one touched."""

from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

ROLLOUT_FILE = "rollout.pt"


class CheckpointOfRoles(Trainer):
    """Checkpoints of a module that wraps a policy and a critic.

    `Trainer` has no public hook for reading the weights of a checkpoint. Its own methods look for one state dict of
    the whole module; ours is a policy that any Hugging Face code can load, with the critic in a folder beside it.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)
        saved = Path(resume_from_checkpoint) / ROLLOUT_FILE
        # Written by ourselves when a checkpoint falls between two updates on the same rollout.
        self.restore_rollout(torch.load(saved, map_location="cpu", weights_only=False) if saved.is_file() else None)

    def restore_rollout(self, saved: Any) -> None:
        """Go on with what was saved in the middle of a rollout; `None` where the checkpoint stands between two."""
        raise NotImplementedError

    def _load_best_model(self) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(self.state.best_model_checkpoint)
