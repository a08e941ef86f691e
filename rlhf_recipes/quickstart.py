"""The whole loop on the starter kit, one stage after the other: `make quickstart`.

    starter kit -> reward model -> judge -> measure the untrained policy -> PPO -> measure again -> report

Each stage is one of the recipes with one YAML, run as a process of its own. A stage that is done is skipped, an
interrupted one goes on (PPO from its last checkpoint), and a stage whose YAML, code version or inputs have changed is
run again with those that rest on it.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes import filenames
from rlhf_recipes.outputs import write_json

RUN_DIR = Path("runs/quickstart")
CONFIGS = Path("recipes/configs")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets")
STAMP = ".stage.json"


@dataclass(frozen=True)
class Stage:
    """One recipe with one YAML. `name` is its folder below the run; `needs` are the stages it reads from."""

    name: str
    title: str
    recipe: str
    needs: tuple[str, ...] = ()
    resumes: bool = False

    @property
    def config(self) -> Path:
        return CONFIGS / f"quickstart_{self.name}.yaml"

    @property
    def command(self) -> list[str]:
        return ["python", f"recipes/{self.recipe}.py", "--config", str(self.config)]


STAGES = (
    Stage("reward", "Reward model: learn from human ratings", "reward"),
    Stage("judge", "Judge: another model, on other ratings, kept out of the training", "reward"),
    Stage("before", "Measure the untrained policy", "evaluate", ("reward", "judge")),
    Stage("ppo", "PPO: tune the policy to please the reward model", "ppo", ("reward",), resumes=True),
    Stage("after", "Measure the trained policy", "evaluate", ("reward", "judge", "ppo")),
)


def fingerprint(stage: Stage, stamps: Mapping[str, str]) -> str:
    """What the result of a stage depends on: its YAML, the versions in use, and the stages it reads from."""
    versions = [importlib.metadata.version(package) for package in (*PACKAGES, "rlhf-recipes")]
    settings = json.dumps(yaml.safe_load(stage.config.read_text(encoding="utf-8")))  # a comment changes no result
    parts = [settings, *versions, *(stamps[name] for name in stage.needs)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def is_done(stage: Stage, stamp: str) -> bool:
    """Whether the stage has ended with exactly these inputs."""
    return _read_stamp(stage).get("done") == stamp and (RUN_DIR / stage.name / filenames.METRICS).is_file()


def run_stage(stage: Stage, stamp: str) -> None:
    """Run one stage to its end.

    Raises:
        `SystemExit`: with the stage's own exit code, if it fails; 128 + n, as in a shell, if signal n has ended it.
    """
    command = [sys.executable, *stage.command[1:]]
    earlier = _read_stamp(stage)
    goes_on = stage.resumes and earlier.get("begun") == stamp
    if goes_on:
        command += ["--resume_from_checkpoint", "auto"]
    else:
        forget_checkpoints(stage)
    spent = earlier.get("seconds", 0.0) if goes_on else 0.0
    start = time.perf_counter()
    write_stamp(stage, {"begun": stamp, "seconds": spent})
    try:
        code = subprocess.call(command)
    finally:
        # The clock of the whole process, imports included, and of its earlier parts; a recipe knows only its own.
        spent += time.perf_counter() - start
        write_stamp(stage, {"begun": stamp, "seconds": spent})
    if code == 130:  # Ctrl-C, of which the stage has spoken itself
        raise SystemExit(code)
    if code:
        how = f"exit code {code}" if code > 0 else f"ended by signal {-code}"
        how += "; perhaps memory ran out" if code == -signal.SIGKILL else ""
        print(f"\nThe stage '{stage.name}' failed ({how}). Its message stands above. To try it again:")
        print(f"  {shlex.join(stage.command)}\n`make quickstart` goes on from here.", flush=True)
        raise SystemExit(code if code > 0 else 128 - code)
    write_stamp(stage, {"done": stamp, "seconds": spent})
    forget_checkpoints(stage)


def forget_checkpoints(stage: Stage) -> None:
    """Delete the checkpoints of a run that is done or had other inputs: the next could not tell them from its own."""
    for folder in (RUN_DIR / stage.name).glob("checkpoint-*"):
        shutil.rmtree(folder)


def write_stamp(stage: Stage, content: dict[str, Any]) -> None:
    # Beside the folder of the stage, not in it: a recipe refuses a folder that holds what it did not write.
    write_json(RUN_DIR / f".{stage.name}{STAMP}", content)


def _read_stamp(stage: Stage) -> dict[str, Any]:
    file = RUN_DIR / f".{stage.name}{STAMP}"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def collect_metrics() -> dict[str, Any]:
    """The figures of the whole run, from the files of its stages."""
    from rlhf_recipes.statistics import paired_gain

    stages = {s.name: json.loads((RUN_DIR / s.name / filenames.METRICS).read_text(encoding="utf-8")) for s in STAGES}
    # A stage run by hand has only its recipe's own clock.
    seconds = {s.name: round(_read_stamp(s).get("seconds", stages[s.name]["seconds"]), 1) for s in STAGES}
    rows = {name: _completions(name) for name in ("before", "after")}
    if [row["prompt"] for row in rows["before"]] != [row["prompt"] for row in rows["after"]]:
        raise SystemExit("The two evaluations have different prompts. Make quickstart_{before,after}.yaml agree.")
    keys = ("pairwise_accuracy", "single_rater_accuracy", "vader_accuracy", "seconds", "peak_memory_gb")
    ppo: dict[str, Any] = {"prompts": len(rows["before"])}
    for score, prefix in (("reward_model", ""), ("judge", "judge_"), ("vader", "vader_")):
        old, new = ([row["scores"][score] for row in rows[name]] for name in ("before", "after"))
        before, after = ("score_before", "score_after") if not prefix else (f"{prefix}before", f"{prefix}after")
        ppo |= {before: sum(old) / len(old), after: sum(new) / len(new)}
        ppo |= {f"{prefix}{name}": value for name, value in paired_gain(old, new).items()}
    return {
        "reward_model": {key: stages["reward"][key] for key in keys} | {"seconds": seconds["reward"]},
        "ppo": ppo
        | {
            "kl": stages["after"]["kl"],
            "distinct2_before": stages["before"]["distinct_2"],
            "distinct2_after": stages["after"]["distinct_2"],
            "episodes": stages["ppo"]["episodes"],
            "seconds": seconds["ppo"],
            "peak_memory_gb": stages["ppo"]["peak_memory_gb"],
        },
        "peak_memory_gb": max(stage["peak_memory_gb"] for stage in stages.values()),
        "total_seconds": round(sum(seconds.values()), 1),
        "commands": ["make quickstart", *(shlex.join(stage.command) for stage in STAGES)],
    }


def _completions(name: str) -> list[dict[str, Any]]:
    # Line by line as the file has them: `splitlines` would also cut at U+2028, which JSON leaves as it is.
    with (RUN_DIR / name / filenames.COMPLETIONS).open(encoding="utf-8", newline="\n") as lines:
        return [json.loads(line) for line in lines]


def print_figures(metrics: dict[str, Any], page: Path) -> None:
    """The run in a few lines."""
    reward, ppo = metrics["reward_model"], metrics["ppo"]
    low, high = ppo["gain_ci95"]
    judge_low, judge_high = ppo["judge_gain_ci95"]
    print(
        f"""
Reward model   orders {reward["pairwise_accuracy"]:.1%} of held-out pairs as people do \
(VADER {reward["vader_accuracy"]:.1%}, one human rater {reward["single_rater_accuracy"]:.1%})
Score          {ppo["score_before"]:+.2f} -> {ppo["score_after"]:+.2f}: gain {ppo["gain"]:+.2f}, \
95% interval [{low:+.2f}, {high:+.2f}], on {ppo["prompts"]} held-out prompts (rating units, -4..4)
Judge          {ppo["judge_before"]:+.2f} -> {ppo["judge_after"]:+.2f}: gain {ppo["judge_gain"]:+.2f} \
[{judge_low:+.2f}, {judge_high:+.2f}]; VADER {ppo["vader_before"]:+.2f} -> {ppo["vader_after"]:+.2f}
KL             {ppo["kl"]:.2f} nats per completion; distinct-2 {ppo["distinct2_before"]:.3f} -> \
{ppo["distinct2_after"]:.3f}
Cost           {ppo["episodes"]} episodes; {metrics["total_seconds"] / 60:.1f} minutes for all stages, \
{metrics["peak_memory_gb"]:.1f} GB at most

Report: {page}"""
    )


def main(argv: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    if not CONFIGS.is_dir():
        raise SystemExit(f"No folder {CONFIGS} here. Run it in the folder of the project, where README.md stands.")
    from rlhf_recipes.data.starter.__main__ import main as lay_down_starter_kit

    print(f"[1/{len(STAGES) + 2}] Starter kit")
    if code := lay_down_starter_kit(["--output_dir", "starter"]):
        raise SystemExit(code)
    # Nothing below needs a network, and asking for one would only delay a machine that has none.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    stamps: dict[str, str] = {}
    for number, stage in enumerate(STAGES, start=2):
        stamps[stage.name] = stamp = fingerprint(stage, stamps)
        done = is_done(stage, stamp)
        print(f"\n[{number}/{len(STAGES) + 2}] {stage.title}" + (": done before" if done else ""), flush=True)
        if not done:
            print(f"      {shlex.join(stage.command)}", flush=True)
            run_stage(stage, stamp)
    from rlhf_recipes.report import write_report
    from rlhf_recipes.report.ending import describe_environment

    print(f"\n[{len(STAGES) + 2}/{len(STAGES) + 2}] Report")
    metrics = collect_metrics()
    write_json(RUN_DIR / filenames.METRICS, metrics)
    write_json(RUN_DIR / filenames.ENVIRONMENT, describe_environment() | {"seed": 0})
    print_figures(metrics, write_report(RUN_DIR))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\nInterrupted. `make quickstart` goes on from here.", file=sys.stderr)
        raise SystemExit(130) from None
