"""Folders as runs leave them, small and made by hand."""

import json
from pathlib import Path
from typing import Any

CONFIG = """model_name_or_path: org/base
dataset_name: org/prompts
reward_funcs:
- {func: judge, name: judge, weight: 1.0}
- {func: brevity, name: brevity, weight: 2.0}
kl_coef: 0.05
api_key: hf_abcdefgh1234
"""
EVIL = "<script>alert('x')</script> {{ 7 * 7 }}"


def write_run(folder: Path, recipe: str, **files: Any) -> Path:
    """A folder with `NAME.json` of each file; lists of rows under a name that ends in `rows` are JSONL."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".recipe").write_text(recipe + "\n")
    for name, content in files.items():
        if name == "config":
            (folder / "config.yaml").write_text(content)
        elif name.endswith("_rows"):
            lines = "".join(json.dumps(row) + "\n" for row in content)
            (folder / f"{name.removesuffix('_rows')}.jsonl").write_text(lines)
        else:
            (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def ppo_run(folder: Path, lift: float = 1.0, kl_coef: float = 0.05) -> Path:
    """Three rollouts, evaluated twice; `lift` is what the last score is above the first."""
    log: list[dict[str, Any]] = []
    for number in range(3):
        judge = 0.5 * lift * number
        log.append(
            {"step": 4 * (number + 1), "episode": 8 * (number + 1), "objective/scores": 2 * 0.25 + judge}
            | {
                "objective/kl": 1.5 * number,
                "reward/judge": judge,
                "reward/judge/std": 0.75,
                "reward/judge/share": 0.9,
            }
            | {"reward/brevity": 0.25, "reward/brevity/std": 0.25, "reward/brevity/share": 0.1, "loss": 0.5}
        )
        if number != 1:
            log.append({"step": 4 * (number + 1), "eval_objective/scores": 0.125 + judge})
    log.append({"step": 12, "train_runtime": 3.5})
    metrics = {key: value for key, value in log[3].items() if "/" in key}
    metrics |= {"episodes": 24, "train_seconds": 3.5, "seconds": 61.0, "peak_memory_gb": 1.25}
    return write_run(
        folder,
        "ppo",
        metrics=metrics,
        log_history=log,
        config=CONFIG.replace("0.05", str(kl_coef)),
        environment={"versions": {"torch": "2.13.0"}, "python": "3.11", "processes": 2},
        completions_rows=[
            {"prompt": f"The film {row}", "completion": EVIL if row == 1 else f"text {row}", "score": row / 4}
            | {"judge": row / 4 - 0.5, "brevity": 0.25, "kl": 0.5, "tokens": 3, "finished": row > 0}
            for row in range(4)
        ],
    )


def evaluate_run(folder: Path, scores: list[float]) -> Path:
    """One completion for each prompt, whose judge gives these scores."""
    rows = [
        {"prompt": f"The film {row}", "completion": f"text {row}", "score": score + 2.0, "tokens": 3, "finished": True}
        | {"kl": 0.0, "scores": {"judge": score, "brevity": 1.0, "seldom": None}}
        for row, score in enumerate(scores)
    ]
    mean = sum(scores) / len(scores)
    metrics = {"score": mean + 2, "reward/judge": mean, "reward/brevity": 1.0, "kl": 0.0, "prompts": len(scores)}
    return write_run(folder, "evaluate", metrics=metrics, completions_rows=rows, config=CONFIG)
