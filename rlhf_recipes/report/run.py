"""From the folder of a run to checked values: the only place of the report that opens a run's files.

Every file is optional, because a report of half a run is worth having. What is there must be right: a malformed file
raises [`ReportError`], which names the file, the line or key, and what to do.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes import filenames
from rlhf_recipes.errors import ReportError
from rlhf_recipes.outputs import RUN_MARKER
from rlhf_recipes.report.words import number
from rlhf_recipes.texts import readable, sentence

# Where a run's completions may lie, and under which name a row has them; the first that is there is read.
COMPLETIONS = (
    (filenames.COMPLETIONS, "completion"),
    ("best.jsonl", "completion"),
    (filenames.LABELED, "completion"),
    (filenames.LABELED, "chosen"),
)
CURVES = ("curve.json", "coverage.json")  # lists of points that some recipes write
NO_SCORES = ("score", "tokens", "step")  # numbers of a row that no reward gave


@dataclass(frozen=True)
class Completion:
    """One prompt, what the policy wrote after it, and what each reward thought of that."""

    prompt: str
    text: str
    scores: dict[str, float | None]  # one series per reward; None: the reward does not apply to this row
    score: float | None = None  # their weighted sum
    tokens: int | None = None
    finished: bool | None = None  # ended by itself, not cut at the length limit

    def of(self, name: str | None) -> float | None:
        """One of its scores by name; `"score"` is the weighted sum, unless a reward is called so."""
        return self.scores.get(name or "", self.score if name == "score" else None)


@dataclass(frozen=True)
class Reward:
    """One reward of a run: its name, its weight, and where it came from."""

    name: str
    weight: float = 1.0
    source: str | None = None


@dataclass(frozen=True)
class Run:
    """What a run has left in its folder; empty where it has no such file."""

    folder: Path
    recipe: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    log_history: list[dict[str, Any]] = field(default_factory=list)
    completions: list[Completion] = field(default_factory=list)
    curve: list[dict[str, Any]] = field(default_factory=list)
    config: str = ""  # the text of config.yaml, and what it says
    settings: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.resolve().name

    @property
    def is_empty(self) -> bool:
        """Whether the folder holds no part of a run at all."""
        return not (self.metrics or self.log_history or self.completions or self.config or self.curve)

    @property
    def score_names(self) -> list[str]:
        """The rewards that have judged the completions."""
        return list(dict.fromkeys(name for completion in self.completions for name in completion.scores))

    def scores(self, name: str) -> list[float]:
        """What one reward gave the completions that it applies to."""
        found = (completion.scores.get(name) for completion in self.completions)
        return [score for score in found if score is not None]

    def went(self, key: str) -> tuple[float | None, float | None]:
        """The first and the last value of what was logged under a name; the first is `None` where there is but one."""
        values = [value for row in self.log_history if (value := number(row.get(key))) is not None]
        last = values[-1] if values else number(self.metrics.get(key))
        return (values[0] if len(values) > 1 else None), last


def load_run(run_dir: str | Path) -> Run:
    """Read the folder of one run of a recipe, or of any Trainer of Hugging Face.

    Args:
        run_dir (`str` or `Path`):
            The folder, with some of `metrics.json`, `log_history.json` (or `trainer_state.json`, also that of the last
            checkpoint), `completions.jsonl`, `config.yaml`, `environment.json`.

    Raises:
        [`ReportError`]: if the folder is missing or holds no part of a run, or if a file is malformed.
    """
    folder = check_folder(run_dir)
    run = read_run(folder)
    if run.is_empty:
        raise ReportError(
            f"{str(run_dir)!r} holds no run: none of metrics.json, log_history.json, trainer_state.json, "
            "completions.jsonl, config.yaml and a checkpoint. Give the output folder of a recipe; `make quickstart` "
            "makes runs/quickstart."
        )
    return run


def check_folder(run_dir: str | Path) -> Path:
    """The folder, if there is one."""
    folder = Path(run_dir)
    if not folder.is_dir():
        raise ReportError(
            f"No folder at {str(run_dir)!r} (looked in {folder.absolute()}). Give the folder of a run; `make "
            "quickstart` makes runs/quickstart."
        )
    return folder


def read_run(folder: Path) -> Run:
    """[`load_run`] that takes a folder without files, or none, for an empty run."""
    marker, config = folder / RUN_MARKER, folder / filenames.CONFIG
    text = read_text(config) if config.is_file() else ""
    return Run(
        folder=folder,
        recipe=read_text(marker).strip() if marker.is_file() else "",
        metrics=read_object(folder / filenames.METRICS) or {},
        log_history=_read_log(folder),
        completions=_find_completions(folder),
        curve=_first_list(folder / name for name in CURVES),
        config=text,
        settings=_parse_yaml(config, text),
        environment=read_object(folder / filenames.ENVIRONMENT) or {},
    )


def is_mean_of_reward(name: str) -> bool:
    """Whether a logged name is `reward/<name>`, and not that reward's spread or share."""
    return name.startswith("reward/") and not name.endswith(("/std", "/share"))


def rewards_of(config: Mapping[str, Any]) -> list[Reward]:
    """The rewards that a YAML lists, as names or as mappings, with the weights beside or inside them."""
    listed = config.get("reward_funcs") or []
    entries = listed if isinstance(listed, list | tuple) else [listed]
    weights = config.get("reward_weights") or [None] * len(entries)
    rewards = []
    for entry, weight in zip(entries, weights, strict=False):
        given = entry if isinstance(entry, Mapping) else {"func": entry}
        source = str(given.get("func") or "")
        weight = given.get("weight", 1.0) if weight is None else weight
        weight = weight["end"] if isinstance(weight, dict) else weight  # of a schedule
        rewards.append(Reward(str(given.get("name") or source.split(":")[-1].split("/")[-1]), float(weight), source))
    return rewards


# --- Files -------------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """Read a UTF-8 file; a byte order mark at its start is dropped."""
    try:
        return path.read_text(encoding="utf-8-sig", errors="surrogatepass")
    except UnicodeDecodeError as error:
        raise ReportError(f"{path} is not UTF-8 text: {sentence(error)} {remedy(path)}") from None


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; `None` where there is no such file."""
    content = _read_json(path)
    if content is not None and not isinstance(content, dict):
        raise ReportError(f"{path} must hold one JSON object, found {kind(content)}. {remedy(path)}")
    return content


def read_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects; empty where there is no such file."""
    content = _read_json(path)
    if content is not None and not (isinstance(content, list) and all(isinstance(row, dict) for row in content)):
        raise ReportError(f"{path} must hold a list of objects, found {kind(content)}. {remedy(path)}")
    return content or []


def read_rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
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
                f"{where} is not valid JSON: column {error.colno}: {error.msg}. {remedy(path)}"
            ) from None
        if not isinstance(row, dict):
            raise ReportError(f"{where} must be a JSON object, found {kind(row)}. {remedy(path)}")
        rows.append((where, row))
    if not rows:
        raise ReportError(f"{path} holds no rows. {remedy(path)}")
    return rows


def kind(value: Any) -> str:
    """What a value is, and how it begins."""
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return f"{names.get(type(value), 'a number')} ({shorten(json.dumps(value))})"


def shorten(text: str, limit: int = 60) -> str:
    """The beginning of a text."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def remedy(path: Path) -> str:
    """What to do about a malformed file."""
    return f"Mend {path.name} or delete it and run the step that writes it again."


def _read_json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ReportError(f"{path} is not valid JSON: {place}: {error.msg}. {remedy(path)}") from None


def _first_list(paths: Iterable[Path]) -> list[dict[str, Any]]:
    return next((found for path in paths if (found := read_list(path))), [])


def _read_log(folder: Path) -> list[dict[str, Any]]:
    """What was logged: the recipe's own file, or the Trainer's, also that of a run that has not ended."""
    if log := read_list(folder / filenames.LOG_HISTORY):
        return log
    checkpoints = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    for path in (folder / filenames.TRAINER_STATE, *checkpoints[::-1]):
        history = (read_object(path) or {}).get("log_history") or []
        if history:
            return history
    return []


def _find_completions(folder: Path) -> list[Completion]:
    for name, text in COMPLETIONS:
        rows = read_rows(folder / name)
        if rows and (text in rows[0][1] or name == COMPLETIONS[0][0]):
            return [_completion(where, row, text, folder / name) for where, row in rows]
    tables = sorted((folder / "completions").glob("completions_*.parquet"))  # TRL's, with log_completions
    if not tables:
        return []
    from pyarrow import parquet

    rows = [(str(tables[-1]), row) for row in parquet.read_table(tables[-1]).to_pylist()]
    return [_completion(where, row, "completion", tables[-1]) for where, row in rows]


def _completion(where: str, row: dict[str, Any], text: str, path: Path) -> Completion:
    needed = ("prompt", text) if path.name == COMPLETIONS[0][0] else (text,)
    for key in needed:
        if not isinstance(row.get(key), str | list):
            raise ReportError(
                f"{where}: {key!r} must be text or a list of messages, found {kind(row.get(key))}. {remedy(path)}"
            )
    # Some recipes have the scores by name, others beside the text: every number that is nothing else.
    plain = {key: value for key, value in row.items() if key not in NO_SCORES and number(value) is not None}
    scores = row.get("scores", row.get("judges", plain))
    if not isinstance(scores, dict) or not all(value is None or is_number(value) for value in scores.values()):
        raise ReportError(f"{where}: 'scores' must map each reward's name to a number or null. {remedy(path)}")
    return Completion(
        prompt=readable(row.get("prompt") or ""),
        text=readable(row[text]),
        scores={name: number(value) for name, value in scores.items()},
        score=number(row.get("score")),
        tokens=row["tokens"] if isinstance(row.get("tokens"), int) else None,
        finished=row["finished"] if isinstance(row.get("finished"), bool) else None,
    )


def _parse_yaml(path: Path, text: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is not valid YAML: {' '.join(str(error).split())}. {remedy(path)}") from None
    if content is not None and not isinstance(content, dict):
        raise ReportError(f"{path} must hold settings as `name: value`, found {kind(content)}. {remedy(path)}")
    return content or {}


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN included, and not true or false."""
    return isinstance(value, int | float) and not isinstance(value, bool)
