"""The private names of transformers that cannot be avoided, each with its reason. Nowhere else is one touched."""

import contextlib
from collections.abc import Iterator
from typing import Any

from transformers import Trainer
from transformers.integrations import deepspeed as of_transformers
from transformers.trainer_utils import HubStrategy


@contextlib.contextmanager
def loaded_whole() -> Iterator[None]:
    """Models that are made here are whole, also under ZeRO-3, where `from_pretrained` else loads a share of each.

    A model in shares works inside a DeepSpeed engine alone, which a reward model has not. That transformers divides
    what it loads is a setting of the whole process, which has no public reader.
    """
    reference = of_transformers._hf_deepspeed_config_weak_ref
    settings = reference() if reference is not None else None
    of_transformers.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        if settings is not None:
            of_transformers.set_hf_deepspeed_config(settings)


class CheckpointOfRoles(Trainer):
    """Checkpoints of a module that wraps a policy and a critic.

    `Trainer` has no public hook for reading the weights of a checkpoint. Its own methods look for one state dict of
    the whole module; ours is a policy that any Hugging Face code can load, with the critic in a folder beside it.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.accelerator.unwrap_model(self.model).load_weights(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if self.is_deepspeed_enabled:  # it reads its own files, each process its share
            super()._load_best_model()
            return
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
