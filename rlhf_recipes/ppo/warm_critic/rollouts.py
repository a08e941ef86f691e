"""Rollouts that a run keeps on disk (`save_rollouts`), and what a critic learns of them."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rlhf_recipes.modeling.generation import stable_key
from rlhf_recipes.ppo import functional as F
from rlhf_recipes.ppo.rollout import Rollout
from rlhf_recipes.texts import sentence

FOLDER = "rollouts"
NAME = re.compile(r"rollout-(\d{6,})\.safetensors")
SIDES = ("first", "last")
READ = ("prompt_ids", "prompt_mask", "completion_ids", "mask", "loss_mask", "rewards", "logprobs", "values")
# What an episode has of each token of its completion, besides the ids of its prompt.
OF_TOKENS = ("completion_ids", "returns", "loss_mask", "logprobs", "values")


@dataclass(frozen=True)
class StoredRollout:
    """A rollout of an earlier run.

    An episode has `prompt_ids` `(p,)`, and of the t tokens of its completion, each `(t,)`: `completion_ids`;
    `returns`, what is still earned from the token on; `loss_mask`, 0 where the losses leave it out; `logprobs` under
    the policy that wrote it; and `values`, of that run's critic.
    """

    number: int
    temperature: float
    episodes: list[dict[str, Tensor]]


def keep_rollout(folder: Path, number: int, rollout: Rollout, args: Any) -> None:
    """Write a rollout, all at once, and delete those that are neither among the first nor the last `save_rollouts`.

    What the frozen lower layers said is left out: it is large, and read anew from the tokens. Those of a higher number
    were written before the run went back to an earlier checkpoint, or began anew, and go too.

    Args:
        folder (`Path`): That of the run.
        number (`int`): Of the rollout, from 0 on.
        args ([`~rlhf_recipes.ppo.PPOConfig`]): `save_rollouts`, `temperature` and `gamma` are read.
    """
    place = folder / FOLDER
    place.mkdir(parents=True, exist_ok=True)
    # Copies, because two of them may be one tensor, which the file cannot say.
    plain = {"memory_format": torch.contiguous_format}
    tensors = {name: t.detach().cpu().clone(**plain) for name, t in rollout.tensors().items() if name != "trunk"}
    about = {"number": str(number), "temperature": repr(args.temperature), "gamma": repr(args.gamma)}
    target = place / f"rollout-{number:06d}.safetensors"
    begun = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        save_file(tensors, begun, metadata=about)
        os.replace(begun, target)
    finally:
        begun.unlink(missing_ok=True)
    for other, file in _numbered(place).items():
        if args.save_rollouts <= other <= number - args.save_rollouts or other > number:
            file.unlink()


def read_rollouts(run: str | Path, side: str, count: int, gamma: float | None = None) -> list[StoredRollout]:
    """The first or the last rollouts that a run has kept, in their order.

    Their returns are plain sums of what was paid from a token on (Monte-Carlo, lambda 1). Those that the run itself
    learned from lean on its critic, which knew nothing at its beginning, so that a new critic would learn its errors.
    VC-PPO (arXiv 2503.01491) trains critics ahead on plain returns for this reason.

    Args:
        run (`str` or `Path`): The folder of a PPO run, or the folder `rollouts/` in it.
        side (`str`): `"first"` or `"last"`.
        count (`int`): How many; fewer where the run has kept fewer.
        gamma (`float`, *optional*): The discount of later rewards. Default: that of the run.

    Raises:
        `FileNotFoundError`: if it has kept none.
        `ValueError`: if a file is none that such a run writes.
    """
    place = Path(run) / FOLDER if (Path(run) / FOLDER).is_dir() else Path(run)
    files = _numbered(place) if place.is_dir() else {}
    if not files:
        raise FileNotFoundError(
            f"There are no rollouts in {str(run)!r}. Name the folder of a PPO run that kept some: `recipes/ppo.py` "
            "with --save_rollouts N keeps the first and the last N."
        )
    numbers = sorted(files)
    return [_read(files[number], gamma) for number in (numbers[:count] if side == "first" else numbers[-count:])]


def _read(file: Path, gamma: float | None) -> StoredRollout:
    try:
        with safe_open(file, framework="pt") as stored:
            about = stored.metadata() or {}
            tensors = {name: stored.get_tensor(name) for name in READ}
            number, temperature = int(about["number"]), float(about["temperature"])
            discount = float(about["gamma"]) if gamma is None else gamma
    except (SafetensorError, LookupError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is no rollout that a PPO run has kept: {sentence(str(error))}") from error
    mask = tensors["mask"]
    tensors["returns"] = F.rewards_to_go(tensors["rewards"], mask, discount)
    prompts, completions = tensors["prompt_mask"].bool(), mask.bool()
    episodes = [
        {"prompt_ids": tensors["prompt_ids"][row][prompts[row]]}
        | {name: tensors[name][row][completions[row]] for name in OF_TOKENS}
        for row in range(len(mask))
    ]
    return StoredRollout(number, temperature, episodes)


def split_by_prompt(
    episodes: Sequence[dict[str, Tensor]], share: float, seed: int
) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Episodes to learn from, and a share of the prompts with all of their episodes to measure on.

    Raises:
        `ValueError`: if there are too few prompts for both.
    """
    sides: tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]] = ([], [])
    for episode in episodes:
        drawn = stable_key(seed, "held out", episode["prompt_ids"].tolist()) % 10_000
        sides[drawn < 10_000 * share].append(episode)
    if not all(sides):
        raise ValueError(
            f"{len(episodes)} stored episodes cannot be divided by their prompts into {1 - share:.0%} to learn from "
            f"and {share:.0%} to measure on. Give more rollouts (num_rollouts), or another share (held_out)."
        )
    return sides


def _numbered(place: Path) -> dict[int, Path]:
    found = {file: NAME.fullmatch(file.name) for file in place.iterdir()}
    return {int(match[1]): file for file, match in found.items() if match}
