"""How a run was started: the number of processes, said first, and what it makes of the batch; and how it failed."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_recipes.starting.extensions import watch_extensions
from rlhf_recipes.starting.options import option

logger = logging.getLogger(__name__)


@dataclass
class LaunchArguments:
    """What is expected of the launcher. The parser adds it to the options of whatever trains."""

    help_title = "Launch"

    expect_processes: int | None = option(None, "End with an error unless that many processes were started.")

    def __post_init__(self) -> None:
        if self.expect_processes is not None and self.expect_processes < 1:
            raise ValueError(f"expect_processes is {self.expect_processes}; give 1 or more.")


def watch_deepspeed(given: Mapping[str, Any]) -> None:
    """Say it when DeepSpeed compiles, which it may do from the first moment of a run that the user asked it for.

    Args:
        given (`Mapping`): The options of the run, before its `TrainingArguments` are made: these start DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() in ("true", "1") or given.get("deepspeed"):
        watch_extensions()


def check_launch(args: Any, expected: int | None = None) -> None:
    """Log how many processes there are and how large that makes the batch, once; refuse a launch that went wrong.

    Args:
        args ([`~transformers.TrainingArguments`]): Those of the run, which know the other processes by now.
        expected (`int`, *optional*): How many there must be.

    Raises:
        `ValueError`: if processes were started that do not know of each other, or not as many as expected; for fp16 on
            a CPU.
    """
    refuse_strangers(args)
    refuse_fp16_on_cpu(args)
    if expected is not None and args.world_size != expected:
        raise ValueError(
            f"expect_processes is {expected}, but this run has {processes(args.world_size)}. How many there "
            "are is said to `accelerate launch`, by --num_processes and --config_file: on CPUs cpu_2.yaml of "
            "accelerate_configs/ starts two and more, cpu.yaml always one."
        )
    if args.process_index == 0:
        logger.info(batch_line(args))


def refuse_strangers(args: Any) -> None:
    """Raise `ValueError` where a launcher started several processes, and each would train alone."""
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > args.world_size:
        raise ValueError(
            f"The launcher started {launched} processes, but they do not know of each other, and each would train "
            "alone in the same folder. On a machine without GPUs, give --use_cpu."
        )


def refuse_fp16_on_cpu(args: Any) -> None:
    """Raise `ValueError` for fp16 where there is no loss scaler, which accelerate has for GPUs alone."""
    if getattr(args, "fp16", False) and args.device.type == "cpu":
        raise ValueError(
            "fp16 on a CPU would be computed without a loss scaler, so that small gradients become 0. Give bf16, or "
            "leave it out to compute in float32."
        )


def batch_line(args: Any) -> str:
    """Such as `2 processes x 4 (per_device_train_batch_size) x 1 (gradient_accumulation_steps) = 8 rows in ...`."""
    what, where = getattr(type(args), "counted_in_batches", ("rows", "an optimizer step"))
    accumulation = args.gradient_accumulation_steps
    total = args.world_size * args.train_batch_size * accumulation
    per_process = f"{args.per_device_train_batch_size} (per_device_train_batch_size)"
    if args.train_batch_size != args.per_device_train_batch_size:  # one process that sees several GPUs uses them all
        per_process += f" x {args.train_batch_size // args.per_device_train_batch_size} GPUs"
    return (
        f"{processes(args.world_size)} x {per_process} x {accumulation} (gradient_accumulation_steps) = "
        f"{total} {what} in {where}."
    )


def processes(count: int) -> str:
    """`1 process`, `2 processes`."""
    return f"{count} process" + ("" if count == 1 else "es")


def tell_launcher(cause: str) -> None:
    """Hand the cause to `torchrun`, and to `accelerate launch`, which is one: the summary that it ends with has it.

    Each process is given the name of a file for this (torch.distributed.elastic.multiprocessing.errors). Without it
    the summary knows an exit code alone.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file:
        with contextlib.suppress(OSError), open(file, "w", encoding="utf-8") as stream:
            json.dump({"message": cause, "timestamp": int(time.time())}, stream)
