"""What makes a recipe's `main` a command: one clear message instead of a traceback."""

import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable

import torch

from rlhf_recipes.errors import RewardError
from rlhf_recipes.starting.allocator import keep_large_buffers
from rlhf_recipes.starting.launch import tell_launcher

DEBUG = "RLHF_RECIPES_DEBUG"

# What a user can mend: files and networks, options and data, missing packages, rewards, weights that became NaN.
# A TypeError, KeyError or AssertionError is a mistake of ours, and its traceback is what we need to be told.
USER_ERRORS = (OSError, ValueError, ImportError, RewardError, FloatingPointError)


def run(main: Callable[[], object], to_go_on: str = "The same command starts it anew.") -> None:
    """Run `main` as a command: its log on stderr, and for an error that the user can mend its cause as the last line.

    Args:
        main (`Callable`): The recipe's `main`, called without arguments.
        to_go_on (`str`, *optional*): What to do after Ctrl-C.

    Raises:
        `SystemExit`: with code 1 after an error of `USER_ERRORS`, 130 after Ctrl-C. Where the environment variable
            `RLHF_RECIPES_DEBUG` is 1, errors pass through with their traceback.
    """
    keep_large_buffers()
    gc.freeze()  # what was imported stays, and is looked through neither for garbage nor when all is over
    # Of one library to another, about names that it will rename one day: nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rlhf_recipes").setLevel(logging.INFO)
    try:
        main()
        leave_process_group()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nInterrupted. {to_go_on}\n")
        raise SystemExit(130) from None
    except USER_ERRORS as error:
        if os.environ.get(DEBUG) == "1":
            raise
        cause = f"error: {str(error).strip() or type(error).__name__}"
        sys.stderr.write(f"\n({DEBUG}=1 before the command shows where in the code.)\n{cause}\n")
        tell_launcher(cause)
        raise SystemExit(1) from None


def leave_process_group() -> None:
    """Close the connections to the other processes of a run before Python ends.

    A thread of theirs that asks for the interpreter while it is being taken down ends the process with an abort
    ("terminate called without an active exception", seen now and then under DeepSpeed on CPUs), and a finished run
    would be reported as failed.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
