"""What happens around an optimizer step of PPO, by the Trainer's own callbacks.

Ctrl-C: the run is saved, and the user is told how to go on.

What a person sees while PPO runs: one bar that counts rollouts, and one line of figures for each log.
"""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import TrainerCallback

from rlhf_recipes.ppo.batches import BatchSizes
from rlhf_recipes.ppo.warm_critic.rollouts import keep_rollout
from rlhf_recipes.report.run import is_mean_of_reward

logger = logging.getLogger(__name__)


class AfterEachStep(TrainerCallback):
    """Hands on the figures of each optimizer step, keeps rollouts, holds the policy while the critic warms up."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        number, update = divmod(state.global_step, trainer.sizes.updates)
        if trainer.settings.save_rollouts and update == 0 and trainer.is_world_process_zero():
            keep_rollout(Path(str(args.output_dir)), number, trainer.rollout, trainer.settings)
        if state.global_step < trainer.settings.critic_warmup * trainer.sizes.updates:
            # Its gradients are 0, but weight decay and an optimizer's momentum would still move what has one.
            for parameter in trainer.roles.parameters_of_policy():
                parameter.grad = None
        if not trainer.tokens_of_step:  # all completions masked: the same holds for all that is trained
            for parameter in trainer.roles.parameters():
                parameter.grad = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self.trainer
        trainer.after_step()
        rollouts, rest = divmod(state.global_step, trainer.sizes.updates)
        tables = trainer.settings.num_sample_generations
        # Where the run is evaluated anyway, its completions are shown then.
        if trainer.interrupt.asked or rest or not tables or args.eval_strategy != "no" or trainer.eval_dataset is None:
            return
        if (rollouts - 1) % -(-trainer.sizes.iterations // tables) == 0:
            trainer.generate_completions(sampling=True)


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

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around a whole training: an interrupted one ends with a checkpoint, and with `KeyboardInterrupt`."""
        trainer = self.trainer
        try:
            yield
            if self.asked and trainer.state.global_step < trainer.state.max_steps:
                raise KeyboardInterrupt  # saved by now; a script must not go on as if the run were complete
        except KeyboardInterrupt:
            if self.collecting:  # no weight has changed since the last step
                self.collecting = False
                trainer.save_checkpoint_now()
            raise
        finally:
            self.restore()

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


# What a line shows, and under which short name.
SHOWN = {
    "objective/scores": "score",
    "objective/kl": "KL",
    "rollout/completion_length": "length",
    "policy/entropy_avg": "entropy",
    "loss/value_avg": "value loss",
    "policy/clipfrac_avg": "clipped",
}


class RolloutProgress(TrainerCallback):
    """A progress bar over rollouts, in place of the Trainer's own, which counts optimizer steps."""

    def __init__(self, sizes: BatchSizes) -> None:
        self.sizes = sizes
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            done = state.global_step // self.sizes.updates
            self.bar = tqdm(total=self.sizes.iterations, initial=done, unit="rollout", desc="PPO", smoothing=0.1)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None and state.global_step % self.sizes.updates == 0:
            self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs:
            return
        # One for training, and one for each set of held-out prompts.
        for prefix in [name.removesuffix("objective/scores") for name in logs if name.endswith("objective/scores")]:
            figures = [f"{short} {logs[prefix + name]:.3g}" for name, short in SHOWN.items() if prefix + name in logs]
            own = {name.removeprefix(prefix): value for name, value in logs.items() if name.startswith(prefix)}
            figures += [f"{n.removeprefix('reward/')} {v:.3g}" for n, v in own.items() if is_mean_of_reward(n)]
            of_set = prefix.removeprefix("eval").strip("_")
            where = f"evaluation {of_set}".strip() if prefix else f"episode {logs.get('episode', 0):g}"
            # To stderr, where the bar is: a pipe or a file would hold back stdout until the end.
            self.bar.write(f"{where:>14}: " + ", ".join(figures), file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
