"""How a run of a recipe ends: its figures, what it ran on, and its page. Nothing here is slow to import."""

import importlib.metadata
import logging
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rlhf_recipes import filenames
from rlhf_recipes.outputs import json_row, peak_memory_gb, write_json, write_jsonl

logger = logging.getLogger(__name__)
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")


def end_run(
    folder: str | Path,
    metrics: Mapping[str, Any],
    log_history: Iterable[Mapping[str, Any]] = (),
    completions: Sequence[Mapping[str, Any]] = (),
    page: bool = True,
) -> None:
    """Write `metrics.json`, `environment.json` (versions, machine) and the page of a run, `report.html`.

    To be called on the main process. A page that cannot be written is a warning: the run itself is complete.

    Args:
        folder (`str` or `Path`): That of the run.
        metrics (`Mapping`): Its figures.
        log_history (`Iterable`, *optional*): `Trainer.state.log_history`, for `log_history.json`.
        completions (`Sequence`, *optional*): Rows with prompt, completion and scores, for `completions.jsonl`.
        page (`bool`): Whether the page is written.
    """
    root = Path(folder)
    write_json(root / filenames.METRICS, metrics)
    write_json(root / filenames.ENVIRONMENT, describe_environment())
    if log_history:
        write_json(root / filenames.LOG_HISTORY, [json_row(entry) for entry in log_history])
    if completions:
        write_jsonl(root / filenames.COMPLETIONS, [json_row(row) for row in completions])
    if page:
        write_page_or_warn(root)


def write_figures(trainer: Any, folder: Path, start: float) -> dict[str, Any]:
    """[`end_run`] for a trainer of TRL: `metrics.json` has the last value of everything that it has logged.

    Args:
        trainer (`Trainer`): One that has trained.
        folder (`Path`): That of the run.
        start (`float`): `time.perf_counter()` when the recipe began.

    Returns:
        `dict`: what `metrics.json` holds; empty on all processes but the main one, which write nothing.
    """
    if not trainer.is_world_process_zero():
        return {}
    history = [json_row(entry) for entry in trainer.state.log_history]
    metrics = {name: value for entry in history for name, value in entry.items()} | peak_memory_gb()
    metrics |= {"train_seconds": metrics["train_runtime"], "seconds": round(time.perf_counter() - start, 1)}
    end_run(folder, metrics, history)
    return metrics


def write_page_or_warn(folder: Path) -> None:
    """Write the page of a run, or say why there is none."""
    from rlhf_recipes.report import write_report

    try:
        write_report(folder)
    except Exception as error:  # whatever it is, hours of training are not to end in a traceback about a page
        logger.warning(
            "The page of this run was not written (%s: %s). All else is in %s; `python -m rlhf_recipes.report %s` "
            "tries again.",
            *(type(error).__name__, error, folder, folder),
        )


def describe_environment() -> dict[str, Any]:
    """Versions and machine, for whoever repeats the run."""
    return {
        "versions": library_versions(PACKAGES),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
    }


def library_versions(packages: Sequence[str] = ("rlhf-recipes", *PACKAGES)) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
