"""How the episodes of a rollout are divided: worked out once, on a frozen object, with both numbers in every error."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch takes its time, and --help does not wait for it
    from torch import Tensor

    from rlhf_recipes.ppo.rollout import Rollout


@dataclass(frozen=True)
class BatchSizes:
    """All counts but `world`, `accumulation`, `updates` and `iterations` are of episodes.

    rollout -> num_mini_batches mini-batches, one optimizer step each -> micro-batches on every process.
    """

    world: int  # processes
    rollout: int  # episodes collected by all processes before an update
    local_rollout: int  # episodes collected by one process
    mini: int  # episodes of one optimizer step, over all processes
    micro: int  # episodes of one forward and backward pass of one process
    accumulation: int  # micro-batches of one process in one optimizer step
    updates: int  # optimizer steps for each rollout
    iterations: int  # rollouts of the whole run
    siblings: int  # completions of each prompt
    prompts: int  # prompts of one rollout, over all processes


def divide(
    per_device: int,
    accumulation: int,
    num_mini_batches: int,
    num_ppo_epochs: int,
    num_generations: int,
    episodes: int | None,
    passes: float,
    num_prompts: int | None,
    world: int,
) -> BatchSizes:
    """Work out the batch sizes; see [`~PPOConfig.batch_sizes`].

    Raises:
        `ValueError`: if a rollout does not divide into mini-batches, these into micro-batches, or the episodes of a
            process into `num_generations` completions of each prompt, with both numbers and what would fit.
    """
    local = per_device * accumulation
    made_of = f"per_device_train_batch_size {per_device} x gradient_accumulation_steps {accumulation}"
    if local % num_mini_batches:
        raise ValueError(
            f"A rollout has {local} episodes on each process ({made_of}), which num_mini_batches {num_mini_batches} "
            "does not divide. Change one of them, for example to num_mini_batches "
            f"{math.gcd(local, num_mini_batches)}."
        )
    local_mini = local // num_mini_batches
    micro = min(per_device, local_mini)
    if local_mini % micro:
        raise ValueError(
            f"A mini-batch has {local_mini} episodes on each process ({local} / num_mini_batches {num_mini_batches}), "
            f"which per_device_train_batch_size {micro} does not divide. Change one of them, for example to "
            f"per_device_train_batch_size {math.gcd(local_mini, micro)}."
        )
    if local % num_generations:
        raise ValueError(
            f"A rollout has {local} episodes on each process ({made_of}), which num_generations {num_generations} "
            f"does not divide. Change one of them, for example to num_generations {math.gcd(local, num_generations)}."
        )
    rollout = local * world
    if episodes is None:
        episodes = math.ceil(passes * (num_prompts * num_generations if num_prompts else rollout))
    return BatchSizes(
        world=world,
        rollout=rollout,
        local_rollout=local,
        mini=local_mini * world,
        micro=micro,
        accumulation=local_mini // micro,
        updates=num_ppo_epochs * num_mini_batches,
        iterations=math.ceil(episodes / rollout),
        siblings=num_generations,
        prompts=rollout // num_generations,
    )


def like_lengths(rollout: "Rollout", rows: "Tensor") -> "Tensor":
    """The same rows, the shortest texts first, so that those of like length share a micro-batch."""
    lengths = rollout.prompt_mask[rows].sum(dim=1) + rollout.mask[rows].sum(dim=1)
    return rows[lengths.argsort(stable=True)]


def split_by_tokens(batch: dict[str, "Tensor"], max_tokens: int | None) -> list[dict[str, "Tensor"]]:
    """A micro-batch in parts of at most so many tokens, padding included, and of one row at least."""
    if max_tokens is None or "mask" not in batch:
        return [batch]
    lengths = (batch["prompt_mask"].sum(dim=1) + batch["mask"].sum(dim=1)).tolist()
    starts, longest = [0], 0
    for row, length in enumerate(lengths):
        longest = max(longest, length)
        if row > starts[-1] and longest * (row + 1 - starts[-1]) > max_tokens:
            starts.append(row)
            longest = length
    of_episodes = {name: tensor for name, tensor in batch.items() if not name.startswith("demo_")}
    ends = zip(starts, [*starts[1:], len(lengths)], strict=True)
    parts = [{name: tensor[start:end] for name, tensor in of_episodes.items()} for start, end in ends]
    parts[0] |= {name: tensor for name, tensor in batch.items() if name.startswith("demo_")}
    return parts
