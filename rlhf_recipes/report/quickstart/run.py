"""The folder of `make quickstart`: its stages, checked, and what the things in it are.

The stages are runs in folders of their own (`reward/`, `judge/`, `before/`, `ppo/`, `after/`) below one whose
`metrics.json` sums them up.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes import filenames
from rlhf_recipes.errors import ReportError
from rlhf_recipes.outputs import RUN_MARKER
from rlhf_recipes.report.run import (
    Run,
    check_folder,
    is_number,
    kind,
    read_object,
    read_run,
    remedy,
    shorten,
)
from rlhf_recipes.report.run_sections import Pair

MAIN_REWARD = "reward_model"  # the reward that the run is about; its series carries this name in every file
JUDGE = "judge"
STAGES = ("reward", "judge", "before", "ppo", "after")


@dataclass(frozen=True)
class Quickstart:
    """The folder of a quickstart: its own figures, and each of its stages."""

    folder: Path
    metrics: dict[str, Any] | None
    environment: dict[str, Any] | None
    reward: Run
    judge: Run
    before: Run
    ppo: Run
    after: Run
    evaluation: dict[str, Any]  # of the reward model

    def section(self, name: str) -> dict[str, Any]:
        """One group of `metrics.json`, empty where the file or the group is missing."""
        return (self.metrics or {}).get(name) or {}

    def setting(self, stage: str, key: str) -> str | None:
        """A name in the YAML of a stage."""
        value = getattr(self, stage).settings.get(key)
        return value if isinstance(value, str) and value else None

    @property
    def names(self) -> list[str]:
        """The names of all scores: the reward model's first, then the judge's, VADER's and the others'."""
        found = dict.fromkeys(
            name for side in (self.before, self.after) for c in side.completions for name in c.scores
        )
        for side in (self.before, self.after):
            found |= dict.fromkeys(key.removeprefix("reward/") for key in side.metrics if key.startswith("reward/"))
        first = [name for name in (MAIN_REWARD, JUDGE, "vader") if name in found]
        return first + [name for name in found if name not in first]

    @property
    def pairs(self) -> list[Pair]:
        """Each prompt with its two completions; empty where one of the two files is missing."""
        return list(zip(self.before.completions, self.after.completions, strict=False))


def is_quickstart(folder: Path) -> bool:
    """Whether a folder holds stages of a quickstart rather than a run of its own."""
    if (folder / RUN_MARKER).is_file() or (folder / filenames.CONFIG).is_file():
        return False
    metrics = folder / filenames.METRICS
    summed_up = metrics.is_file() and '"ppo"' in metrics.read_text("utf-8", "replace")
    alone = (folder / filenames.ENVIRONMENT).is_file() and not metrics.is_file()
    files = [
        folder / stage / name
        for stage in STAGES
        for name in (filenames.METRICS, filenames.LOG_HISTORY, filenames.CONFIG)
    ]
    return summed_up or alone or any(file.is_file() for file in files)


def load_quickstart(run_dir: str | Path) -> Quickstart:
    """Read the folder of a quickstart.

    Raises:
        [`ReportError`]: if there is no such folder, a file is malformed, or the completions before and after answer
            different prompts.
    """
    folder = check_folder(run_dir)
    run = Quickstart(
        folder=folder,
        metrics=_read_summary(folder / filenames.METRICS),
        environment=read_object(folder / filenames.ENVIRONMENT),
        **{stage: read_run(folder / stage) for stage in STAGES},
        evaluation=read_object(folder / "reward/evaluation.json") or {},
    )
    if run.before.completions and run.after.completions:
        _check_same_prompts(run)
    return run


# --- Reading -----------------------------------------------------------------------------------------------


def _read_summary(path: Path) -> dict[str, Any] | None:
    metrics = read_object(path)
    for name in ("reward_model", "ppo"):
        group = (metrics or {}).get(name)
        if group is not None and not isinstance(group, dict):
            raise ReportError(f"{path}: {name!r} must be an object of figures, found {kind(group)}. {remedy(path)}")
        for key, value in (group or {}).items():
            interval = key.endswith("ci95")
            pair = isinstance(value, list) and len(value) == 2 and all(is_number(bound) for bound in value)
            if value is None or (pair if interval else is_number(value)):
                continue
            expected = "two numbers, [low, high]" if interval else "a number"
            raise ReportError(f"{path}: '{name}.{key}' must be {expected}, found {kind(value)}. {remedy(path)}")
    return metrics


def _check_same_prompts(run: Quickstart) -> None:
    first, second = (run.folder / side / filenames.COMPLETIONS for side in ("before", "after"))
    rows = len(run.before.completions), len(run.after.completions)
    remedy = "Both must answer the same prompts in the same order, or their difference means nothing: run both "
    remedy += "evaluations again with the same --dataset_name, split and number of prompts."
    if rows[0] != rows[1]:
        raise ReportError(f"{first} has {rows[0]} rows and {second} has {rows[1]}. {remedy}")
    for row, (old, new) in enumerate(run.pairs, start=1):
        if old.prompt != new.prompt:
            raise ReportError(
                f"Row {row} of {first} has the prompt {shorten(old.prompt)!r} and row {row} of {second} has "
                f"{shorten(new.prompt)!r}. {remedy}"
            )


# --- What the things on the page are, said plainly, as far as the run's own configuration tells ------------
# The quickstart's model and ratings have origins that a reader of its figures has to know; another model or data set
# is named and no more, because nothing else is known about it here.


def describe_terms(run: Quickstart) -> list[tuple[str, str]]:
    """Terms and what they mean in this run, in the order in which a reader meets them."""
    return [
        ("The policy", _policy(run)),
        ("The ratings", _ratings(run)),
        (
            "The score",
            "The reward model's prediction for the completion, calibrated to the human rating on the validation "
            "split. One point of score is one point of human rating, from −4 (extremely negative) to 4 (extremely "
            "positive).",
        ),
        ("The judge", _judge(run)),
        ("The measurement", _measurement(run)),
        (
            "95% interval",
            "Paired over prompts: the change of each, from both of its completions, and Student's t for their mean, "
            "mended for skewness. Were prompts drawn anew, it would hold the mean change 95 times of 100. It covers "
            "the choice of prompts, not another training run.",
        ),
        (
            "KL",
            "How far the tuned policy has moved from the reference, the model before tuning: the log of the ratio of "
            "their probabilities, summed over a completion's tokens, in nats per completion.",
        ),
    ]


def _policy(run: Quickstart) -> str:
    name = run.setting("ppo", "model_name_or_path")
    if name is None:
        return "Unknown: this run has no ppo/config.yaml that names a model."
    if Path(name).name.lower() != "smollm2-135m-instruct":
        return f"{name}."
    source = _starter_source(name)
    if source == "hub" or (source is None and name.startswith("HuggingFaceTB/")):
        return "SmolLM2-135M-Instruct, in the weights that its makers published."
    return (
        "SmolLM2-135M-Instruct, but in a third party's 4-bit weights (Q4_1), dequantized: not the weights that its "
        "makers published, and a little worse than those."
    )


def _starter_source(model_name: str) -> str | None:
    """Ask the starter kit's own marker where a folder's weights came from; `None` where there is no marker to ask."""
    try:
        made_from = json.loads((Path(model_name) / ".complete.json").read_text(encoding="utf-8"))["made_from"]
        return str(made_from["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ratings(run: Quickstart) -> str:
    name = run.setting("reward", "dataset_name")
    if name is None:
        return "Unknown: this run has no reward/config.yaml that names a data set."
    if Path(name).name != "movie-ratings":
        return f"The reward model learned from {name}."
    return (
        "People rated the sentiment of single sentences from movie reviews, from −4 to 4, 15 or more people a "
        "sentence. These are not chat preferences: the reward model learns how positive a sentence sounds, not how "
        "helpful or true it is."
    )


def _judge(run: Quickstart) -> str:
    judge, reward = (run.setting(stage, "model_name_or_path") for stage in ("judge", "reward"))
    if judge is None:
        return (
            "A second model of the ratings that took no part in training. This run has no judge/config.yaml, so the "
            "page cannot say which."
        )
    if judge == reward:
        return (
            f"A second model of the ratings. Its backbone, {judge}, is the reward model's too: so may be its errors."
        )
    return (
        "A second model of the ratings that took no part in training the policy: another backbone "
        f"({Path(judge).name}), trained on other rows. What the judge does not confirm may be a weakness of the "
        "reward model that PPO has found."
    )


def _measurement(run: Quickstart) -> str:
    settings = run.after.settings
    temperature, top_p = settings.get("temperature", 1), settings.get("top_p", 1)
    whole = "Every prompt of the evaluation, each with one completion before and one after PPO"
    if not (isinstance(temperature, int | float) and isinstance(top_p, int | float)):
        return f"{whole}."
    return f"{whole}, sampled at temperature {temperature:g} and top_p {top_p:g}, with the same limit on length."
