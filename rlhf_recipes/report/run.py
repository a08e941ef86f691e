"""From the folder of a run to checked values: the only place of the report that opens the run's files.

Every file is optional, because a report of half a run is worth having. What is there must be right: a malformed file
raises [`ReportError`], which names the file, the line or key, and what to do.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes.errors import ReportError
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.texts import sentence

MAIN_REWARD = "reward_model"  # the reward that the run is about; its series carries this name in every file
JUDGE = "judge"
CONFIGS = (
    "reward/config.yaml",
    "judge/config.yaml",
    "before/config.yaml",
    "ppo/config.yaml",
    "after/config.yaml",
)


@dataclass(frozen=True)
class Completion:
    """One held-out prompt, what the policy wrote after it, and what each reward thought of that."""

    prompt: str
    text: str
    scores: dict[str, float | None]  # one series per reward; None: the reward does not apply to this row
    tokens: int | None = None
    finished: bool | None = None  # ended by itself, not cut at the length limit


@dataclass(frozen=True)
class Prediction:
    """One held-out sentence: what people said of it and what the reward model said."""

    split: str
    rating: float  # mean human rating
    score: float  # the reward model's logit after calibration, in units of the rating
    logit: float | None


@dataclass(frozen=True)
class Run:
    """Everything the report shows, as the run left it; `None` or empty where the run has no such file."""

    folder: Path
    metrics: dict[str, Any] | None = None
    reward_metrics: dict[str, Any] | None = None
    predictions: list[Prediction] = field(default_factory=list)
    calibration: LogisticCalibration | None = None
    judge_metrics: dict[str, Any] | None = None
    log_history: list[dict[str, Any]] = field(default_factory=list)
    before_metrics: dict[str, Any] | None = None
    after_metrics: dict[str, Any] | None = None
    before: list[Completion] = field(default_factory=list)
    after: list[Completion] = field(default_factory=list)
    configs: dict[str, str] = field(default_factory=dict)  # file name to its text
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)  # file name to its parsed content
    environment: dict[str, Any] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether the folder holds no part of a run at all."""
        parts = (self.metrics, self.reward_metrics, self.predictions, self.judge_metrics, self.log_history)
        measured = (self.before_metrics, self.after_metrics, self.before, self.after)
        return not any(bool(part) for part in (*parts, *measured, self.configs, self.environment))

    def section(self, name: str) -> dict[str, Any]:
        """Return one group of `metrics.json`, empty where the file or the group is missing."""
        return (self.metrics or {}).get(name) or {}


def load_run(run_dir: str | Path) -> Run:
    """Read the folder of one run.

    Args:
        run_dir (`str` or `Path`):
            The folder that `make quickstart` fills, or any folder with some of the same files.

    Raises:
        [`ReportError`]: if the folder is missing or holds no part of a run, if a file is malformed, or if the
            completions before and after answer different prompts.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ReportError(
            f"No folder at {str(run_dir)!r} (looked in {folder.absolute()}). Give the folder of a run; `make "
            "quickstart` makes runs/quickstart."
        )
    texts = {name: read_text(folder / name) for name in CONFIGS if (folder / name).is_file()}
    run = Run(
        folder=folder,
        metrics=_read_summary(folder / "metrics.json"),
        reward_metrics=read_object(folder / "reward/metrics.json"),
        predictions=_read_predictions(folder / "reward/predictions.jsonl"),
        calibration=_read_calibration(folder / "reward/reward_config.json"),
        judge_metrics=read_object(folder / "judge/metrics.json"),
        log_history=_read_log(folder / "ppo/log_history.json"),
        before_metrics=read_object(folder / "before/metrics.json"),
        after_metrics=read_object(folder / "after/metrics.json"),
        before=_read_completions(folder / "before/completions.jsonl"),
        after=_read_completions(folder / "after/completions.jsonl"),
        configs=texts,
        settings={name: _parse_yaml(folder / name, text) for name, text in texts.items()},
        environment=read_object(folder / "environment.json"),
    )
    if run.is_empty:
        raise ReportError(
            f"{str(run_dir)!r} holds no part of a run: none of metrics.json, reward/, judge/, ppo/, before/ and "
            "after/ with their files. Give the folder of a run; `make quickstart` makes runs/quickstart."
        )
    if run.before and run.after:
        _check_same_prompts(run)
    return run


def number(value: Any) -> float | None:
    """Return a finite number as it is, and `None` for anything else (missing, NaN, text, true or false)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a byte order mark at its start is dropped."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is not UTF-8 text: {sentence(error)} {_remedy(path)}") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; `None` where there is no such file."""
    content = _read_json(path)
    if content is not None and not isinstance(content, dict):
        raise ReportError(f"{path} must hold one JSON object, found {_kind(content)}. {_remedy(path)}")
    return content


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ReportError(f"{path} is not valid JSON: {place}: {error.msg}. {_remedy(path)}") from None


def _read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Read a JSONL file as pairs of "path, line N" and row; empty lines are passed over."""
    if not path.is_file():
        return []
    rows = []
    # Split at newlines alone: str.splitlines would also cut inside a string at U+2028, which JSON allows unescaped.
    for line_number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {line_number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ReportError(
                f"{where} is not valid JSON: column {error.colno}: {error.msg}. {_remedy(path)}"
            ) from None
        if not isinstance(row, dict):
            raise ReportError(f"{where} must be a JSON object, found {_kind(row)}. {_remedy(path)}")
        rows.append((where, row))
    if not rows:
        raise ReportError(f"{path} holds no rows. {_remedy(path)}")
    return rows


def _read_summary(path: Path) -> dict[str, Any] | None:
    metrics = read_object(path)
    for name in ("reward_model", "ppo"):
        group = (metrics or {}).get(name)
        if group is not None and not isinstance(group, dict):
            raise ReportError(f"{path}: {name!r} must be an object of figures, found {_kind(group)}. {_remedy(path)}")
        for key, value in (group or {}).items():
            interval = key.endswith("ci95")
            pair = isinstance(value, list) and len(value) == 2 and all(_is_number(bound) for bound in value)
            if value is None or (pair if interval else _is_number(value)):
                continue
            expected = "two numbers, [low, high]" if interval else "a number"
            raise ReportError(f"{path}: '{name}.{key}' must be {expected}, found {_kind(value)}. {_remedy(path)}")
    return metrics


def _read_predictions(path: Path) -> list[Prediction]:
    predictions = []
    for where, row in _read_rows(path):
        rating, score = (_take_number(where, row, key, path) for key in ("rating", "score"))
        logit = _take_number(where, row, "logit", path) if row.get("logit") is not None else None
        predictions.append(Prediction(str(row.get("split", "test")), rating, score, logit))
    return predictions


def _read_calibration(path: Path) -> LogisticCalibration | None:
    config = read_object(path) or {}
    content = config.get("calibration")
    if content is None:
        return None
    if not isinstance(content, dict):
        raise ReportError(f"{path}: 'calibration' must be an object, found {_kind(content)}. {_remedy(path)}")
    if content.get("kind") != "logistic":
        return None  # another curve is no mistake; the page then shows the points without one
    where = f"{path}: calibration"
    values = {key: _take_number(where, content, key, path) for key in ("scale", "offset", "low", "high")}
    try:
        return LogisticCalibration(**values)
    except ValueError as error:
        raise ReportError(f"{path}: {error} {_remedy(path)}") from None


def _read_log(path: Path) -> list[dict[str, Any]]:
    content = _read_json(path)
    if content is None:
        return []
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise ReportError(f"{path} must hold a list of objects, one per logged rollout. {_remedy(path)}")
    # The Trainer's own closing row (train_runtime and its like) belongs to no rollout: it has no place on the x axis.
    return [row for row in content if number(row.get("episode")) is not None]


def _read_completions(path: Path) -> list[Completion]:
    completions = []
    for where, row in _read_rows(path):
        for key in ("prompt", "completion"):
            if not isinstance(row.get(key), str | list):
                raise ReportError(
                    f"{where}: {key!r} must be text or a list of messages, found {_kind(row.get(key))}. "
                    f"{_remedy(path)}"
                )
        scores = row.get("scores", {})
        if not isinstance(scores, dict) or not all(v is None or _is_number(v) for v in scores.values()):
            raise ReportError(f"{where}: 'scores' must map each reward's name to a number or null. {_remedy(path)}")
        completions.append(
            Completion(
                prompt=_as_text(row["prompt"]),
                text=_as_text(row["completion"]),
                scores={name: number(value) for name, value in scores.items()},
                tokens=row["tokens"] if isinstance(row.get("tokens"), int) else None,
                finished=row["finished"] if isinstance(row.get("finished"), bool) else None,
            )
        )
    return completions


def _check_same_prompts(run: Run) -> None:
    first, second = run.folder / "before/completions.jsonl", run.folder / "after/completions.jsonl"
    remedy = "Both must answer the same prompts in the same order, or their difference means nothing: run both "
    remedy += "evaluations again with the same --dataset_name, split and number of prompts."
    if len(run.before) != len(run.after):
        raise ReportError(f"{first} has {len(run.before)} rows and {second} has {len(run.after)}. {remedy}")
    for row, (old, new) in enumerate(zip(run.before, run.after, strict=True), start=1):
        if old.prompt != new.prompt:
            raise ReportError(
                f"Row {row} of {first} has the prompt {_shorten(old.prompt)!r} and row {row} of {second} has "
                f"{_shorten(new.prompt)!r}. {remedy}"
            )


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is not valid YAML: {' '.join(str(error).split())}. {_remedy(path)}") from None
    if content is not None and not isinstance(content, dict):
        raise ReportError(f"{path} must hold settings as `name: value`, found {_kind(content)}. {_remedy(path)}")
    return content or {}


def _take_number(where: str, row: dict[str, Any], key: str, path: Path) -> float:
    value = number(row.get(key))
    if value is None:
        found = _kind(row[key]) if key in row else f"only {', '.join(map(repr, row)) or 'nothing'}"
        raise ReportError(f"{where}: {key!r} must be a finite number, found {found}. {_remedy(path)}")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_text(value: str | list[Any]) -> str:
    """Return text as it is, and a conversation as one paragraph per message, each after its role."""
    if isinstance(value, str):
        return value
    messages = [message if isinstance(message, dict) else {"content": message} for message in value]
    return "\n".join(f"{message.get('role', 'message')}: {message.get('content', '')}" for message in messages)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return f"{names.get(type(value), 'a number')} ({_shorten(json.dumps(value))})"


def _shorten(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _remedy(path: Path) -> str:
    return f"Mend {path.name} or delete it and run the step that writes it again."
