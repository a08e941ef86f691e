"""What a person sees while PPO runs: one bar that counts rollouts, and one line of figures for each log."""

import sys
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from rlhf_recipes.ppo.config import BatchSizes
from rlhf_recipes.ppo.metrics import is_mean_of_reward

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
