"""Ctrl-C: the run is saved, and the user is told how to go on."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class SaveOnInterrupt(TrainerCallback):
    """On Ctrl-C or SIGTERM, ends the run at the next optimizer step with a checkpoint; a second one ends it at once.

    A rollout that is being collected changes nothing that a checkpoint holds, so there is nothing to wait for: it is
    broken off and collected anew on resume. During an update, weights and counters belong together only after a step.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.asked = False
        self.collecting = False  # set by the trainer
        self._before: dict[int, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.asked = self.collecting = False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) in (signal.default_int_handler, signal.SIG_DFL):
                    self._before[number] = signal.signal(number, self._handle)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Give the signals back to who had them."""
        while self._before:
            signal.signal(*self._before.popitem())

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.asked_anywhere():
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False  # it comes before saving, and a launcher does not wait for long

    def asked_anywhere(self) -> bool:
        """Whether any process was asked: all must stop after the same step."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return self.asked
        flag = torch.tensor([float(self.asked)], device=accelerator.device)
        self.asked = bool(accelerator.reduce(flag, reduction="sum").item())
        return self.asked

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            self.restore()
            raise KeyboardInterrupt
        self.asked = True
        if self.collecting and self.trainer.accelerator.num_processes == 1:
            raise KeyboardInterrupt
        logger.warning("Interrupted: saving after this optimizer step. Once more ends the run at once, unsaved.")
