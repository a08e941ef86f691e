"""What makes a recipe's `main` a command: one clear message instead of a traceback, and going on from a checkpoint."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from rlhf_recipes.rewards.checks import RewardError

DEBUG = "RLHF_RECIPES_DEBUG"
# What a user can mend: files and networks, options and data, missing packages, rewards, weights that became NaN.
# A TypeError, KeyError or AssertionError is a mistake of ours, and its traceback is what we need to be told.
USER_ERRORS = (OSError, ValueError, ImportError, RewardError, FloatingPointError)


def run(main: Callable[[], object], to_go_on: str = "The same command starts it anew.") -> None:
    """Run `main` as a command: its log on stderr, and one message for an error that the user can mend.

    Args:
        main (`Callable`): The recipe's `main`, called without arguments.
        to_go_on (`str`, *optional*): What to do after Ctrl-C.

    Raises:
        `SystemExit`: with code 1 after an error of `USER_ERRORS`, 130 after Ctrl-C. Where the environment variable
            `RLHF_RECIPES_DEBUG` is 1, errors pass through with their traceback.
    """
    # Of one library to another, about names that it will rename one day: nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing` is deprecated", category=FutureWarning)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("rlhf_recipes").setLevel(logging.INFO)
    try:
        main()
    except KeyboardInterrupt:
        sys.stderr.write(f"\nInterrupted. {to_go_on}\n")
        raise SystemExit(130) from None
    except USER_ERRORS as error:
        if os.environ.get(DEBUG) == "1":
            raise
        sys.stderr.write(f"\nerror: {error or type(error).__name__}\n(With {DEBUG}=1 it shows where.)\n")
        raise SystemExit(1) from None


def find_checkpoint(output_dir: str | Path, asked: str | None) -> str | None:
    """Find the checkpoint from which a run goes on.

    Args:
        output_dir (`str` or `Path`): The folder of the run.
        asked (`str`, *optional*):
            A checkpoint, or `"auto"` for the last in the folder, if there is one. One whose writing was cut off, so
            that it has no `trainer_state.json`, which comes last, does not count.

    Returns:
        `str`: the checkpoint, or `None` for a run from the beginning.

    Raises:
        `FileNotFoundError`: if the checkpoint that was named is none.
        `FileExistsError`: if none was named and an earlier run left some. Checkpoints are told apart by their step
            alone: the Trainer would keep the old ones, delete the new, and go on from the wrong one later.
    """
    last = _last_checkpoint(Path(output_dir))
    if asked == "auto":
        return last
    if asked is None and last is not None:
        raise FileExistsError(
            f"{last} is a checkpoint of an earlier run. Go on from it with --resume_from_checkpoint auto, or, to "
            "start anew, name another --output_dir or delete the checkpoints."
        )
    if asked is not None and not Path(asked, "trainer_state.json").is_file():
        raise FileNotFoundError(f"{asked!r} is no checkpoint. The last in {str(output_dir)!r} is {last or 'none'}.")
    return asked


def _last_checkpoint(folder: Path) -> str | None:
    complete = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json") if _is_json(file)]
    numbered = [(int(name.name.rpartition("-")[2]), name) for name in complete if name.name[11:].isdecimal()]
    return str(max(numbered)[1]) if numbered else None


def _is_json(file: Path) -> bool:
    try:
        return bool(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        return False
