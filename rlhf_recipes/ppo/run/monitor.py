"""Reward hacking, noticed while a run goes on; what is looked at is in `findings.py`."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from transformers import TrainerCallback

from rlhf_recipes import filenames
from rlhf_recipes.ppo.run.findings import Curves, Limits

logger = logging.getLogger(__name__)

# The rewards of rules.py say what a text has to keep, not how good it is: they need not rise with the score.
RULES_OF_FORM = ("EndsWithSentence", "LengthWindow", "PlainProse", "RegexMatch", "Repetition")

# Less of a cost is no worse, so that one which is only logged need neither rise nor hold.
COSTS = ("ActiveParameters", "Flops", "TokenCount")


def held_out_rewards(names: Sequence[str], weights: Sequence[Any], kinds: Sequence[str]) -> dict[str, list[str]]:
    """Which rewards are held out (weight 0): those to rise with the score, and those to hold.

    Args:
        names, weights, kinds (`Sequence`): Of each reward; its kind is the name of its class or of its function.
    """
    sets: dict[str, list[str]] = {"watched": [], "holding": []}
    for name, weight, kind in zip(names, weights, kinds, strict=True):
        if kind not in COSTS and not callable(weight) and weight == 0:  # a schedule is no weight of 0
            sets["holding" if kind in RULES_OF_FORM else "watched"].append(name)
    return sets


class HackingMonitor(TrainerCallback):
    """Looks at the log after each rollout, and warns once of each finding.

    It keeps nothing: what is new is what the log shows now and showed at no rollout before.

    Args:
        watched, holding, limits: As in [`findings`].
        action (`"warn"`, `"stop"` or `"off"`, *optional*, defaults to `"warn"`):
            `"stop"` saves a checkpoint and ends the run as well. Resumed from there, the run goes on until something
            else is found.
    """

    def __init__(
        self,
        watched: Sequence[str] = (),
        holding: Sequence[str] = (),
        action: Literal["warn", "stop", "off"] = "warn",
        limits: Limits | None = None,
    ) -> None:
        if action not in ("warn", "stop", "off"):
            raise ValueError(f"The action of a monitor is {action!r}; give 'warn', 'stop' or 'off'.")
        self.watched, self.holding, self.action, self.limits = tuple(watched), tuple(holding), action, limits

    @classmethod
    def of_rewards(cls, reward: Any, **settings: Any) -> "HackingMonitor":
        """A monitor of the rewards in a [`~rlhf_recipes.rewards.WeightedSum`] that have weight 0."""
        inner = [getattr(func, "reward", func) for func in reward.reward_funcs]
        kinds = [getattr(func, "__qualname__", type(func).__name__) for func in inner]
        sets = held_out_rewards(reward.names, reward.weights, kinds)
        return cls(sets["watched"], sets["holding"], **settings)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.action == "off" or "objective/scores" not in (logs or {}):
            return
        curves = Curves(state.log_history, self.watched, self.holding, self.limits)
        new = [finding for finding in curves.check(len(curves)) if curves.first(finding)]
        for finding in new:
            if state.is_world_process_zero:
                logger.warning("Rollout %d: %s", finding.since, finding.text)
        if new and self.action == "stop":  # the log is the same in all processes, so all of them stop
            control.should_save = control.should_training_stop = True


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The log of a run: `log_history.json` of a finished one, else `trainer_state.json` of its last checkpoint.

    Raises:
        `FileNotFoundError`: if there is neither.
        `ValueError`: if the file holds no log.
    """
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda file: _step(file.parent))
    candidates = [folder / filenames.LOG_HISTORY, folder / filenames.TRAINER_STATE, *reversed(checkpoints)]
    file = next((file for file in candidates if file.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{str(folder)!r} has neither log_history.json nor a checkpoint with trainer_state.json. Give the "
            "output_dir of a PPO run."
        )
    content = json.loads(file.read_text(encoding="utf-8"))
    history = content.get("log_history") if isinstance(content, dict) else content
    if not isinstance(history, list) or not any("objective/scores" in entry for entry in history):
        raise ValueError(f"{file} holds no entry with objective/scores: it is no log of a PPO run.")
    return history


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def held_out_of(folder: Path, history: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The held-out rewards of a run, by its `config.yaml`; none where there is no such file."""
    file = next((f for f in (folder / filenames.CONFIG, folder.parent / filenames.CONFIG) if f.is_file()), None)
    config = yaml.safe_load(file.read_text(encoding="utf-8")) if file else None
    specs = [spec if isinstance(spec, dict) else {"func": spec} for spec in (config or {}).get("reward_funcs") or []]
    weights = config.get("reward_weights") or [spec.get("weight", 1.0) for spec in specs] if config else []
    # A reward without a name is logged under that of its class or function.
    names = [_name_of(spec) for spec in specs]
    kinds = [str(spec["func"]).rpartition(".")[2] for spec in specs]
    sets = held_out_rewards(names, weights, kinds)
    logged = {key for entry in history for key in entry}
    return {kind: [name for name in of_kind if f"reward/{name}" in logged] for kind, of_kind in sets.items()}


def _name_of(spec: Any) -> str:
    """The name under which an entry of a reward list is logged."""
    spec = spec if isinstance(spec, dict) else {"func": spec}
    if spec.get("name"):
        return str(spec["name"])
    func = str(spec["func"])
    if func in ("Clip", "Map", "Scale"):  # which keep the name of their reward
        return _name_of(spec["args"]["reward"])
    if ":" in func:
        return func.rpartition(":")[2]
    return Path(func).name if "/" in func else func.rpartition(".")[2]
