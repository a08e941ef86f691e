r"""Reward hacking, drawn: runs that exploit their reward beside runs that do not, and what the monitor said of them.

    python benchmarks/hacking.py runs/hacking/vader runs/hacking/mended --plot docs/images/reward_hacking.png

reads the folders that `recipes/ppo.py --config recipes/configs/hacking_vader.yaml` and the like have left, and trains
nothing. Where a run has been measured on held-out prompts (`recipes/evaluate.py`, into the folder `after` of the run),
and so has the untrained policy (`--before`), the difference is reported with its interval. Progress goes to stderr;
the last line, on stdout, is one JSON object.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_tasks import save_figure

# isort: split
from rlhf_recipes.ppo.run.findings import Finding, findings
from rlhf_recipes.ppo.run.monitor import held_out_of, read_history
from rlhf_recipes.statistics import paired_gain
from rlhf_recipes.words import distinct_n

# What a panel shows: the figure's name in the log, and its title.
PANELS = {
    "reward/vader": "VADER",
    "reward/judge": "judge (held out)",
    "rollout/repetition": "repeated pairs of tokens",
    "objective/kl": "KL, nats per completion",
}
COLORS = ("C3", "C0", "C2", "C1", "C4")


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    runs = {folder.name: read(folder, args.before) for folder in args.runs}
    for name, run in runs.items():
        sys.stderr.write(f"{name}: {json.dumps(run['figures'])}\n")
        for finding in run["findings"]:
            sys.stderr.write(f"  rollout {finding.since}: {finding.text}\n")
    if args.plot:
        plot(runs, args.plot)
    print(json.dumps({"benchmark": "hacking", "runs": {name: summary(run) for name, run in runs.items()}}))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="Folders of PPO runs.")
    parser.add_argument("--before", type=Path, metavar="DIR", help="Where the untrained policy was measured.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw the curves.")
    return parser.parse_args(argv)


def read(folder: Path, before: Path | None) -> dict[str, Any]:
    """The log of a run, what the monitor finds in it, and what was measured on held-out prompts."""
    log = read_history(folder)
    history = [entry for entry in log if "objective/scores" in entry]
    return {
        "history": history,
        "findings": findings(history, **held_out_of(folder, history)),
        "figures": {name: ends(history, name) for name in history[0] if is_shown(name)},
        "held_out": measured(before, folder / "after"),
    }


def is_shown(name: str) -> bool:
    return name.startswith(("objective/", "reward/", "rollout/", "policy/entropy")) and not name.endswith("/share")


def ends(history: Sequence[dict[str, Any]], name: str) -> list[float]:
    """The mean of a figure over the first three and over the last three rollouts."""
    values = [entry[name] for entry in history if name in entry]
    return [round(statistics.fmean(part), 4) for part in (values[:3], values[-3:])]


def measured(before: Path | None, after: Path) -> dict[str, Any] | None:
    """Each score of the same held-out prompts before and after, with the gain and its 95% interval."""
    if before is None or not (after / "completions.jsonl").is_file():
        return None
    rows = [rows_of(before), rows_of(after)]
    if [row["prompt"] for row in rows[0]] != [row["prompt"] for row in rows[1]]:
        raise SystemExit(f"{before} and {after} were measured on different prompts.")
    report: dict[str, Any] = {"prompts": len(rows[0])}
    for name in rows[0][0]["scores"]:
        pairs = [(a["scores"][name], b["scores"][name]) for a, b in zip(*rows, strict=True)]
        pairs = [(a, b) for a, b in pairs if a is not None and b is not None]
        old, new = zip(*pairs, strict=True)
        report[name] = {"before": statistics.fmean(old), "after": statistics.fmean(new), **paired_gain(old, new)}
    texts = [[row["completion"] for row in part] for part in rows]
    report["distinct_2"] = {"before": distinct_n(texts[0], 2), "after": distinct_n(texts[1], 2)}
    report["kl"] = {"after": statistics.fmean(row["kl"] for row in rows[1])}
    return report


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text(encoding="utf-8").splitlines()]


def summary(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "episodes": run["history"][-1]["episode"],
        "first_and_last_three_rollouts": run["figures"],
        "findings": [{"kind": f.kind, "about": f.about, "episode": episode_of(run, f)} for f in run["findings"]],
        "held_out_prompts": run["held_out"],
    }


def episode_of(run: dict[str, Any], finding: Finding) -> float:
    episode: float = run["history"][finding.since - 1]["episode"]
    return episode


# ---- the figure


def panel_of(finding: Finding) -> str:
    """Where a warning is drawn: on the curve that it is about, or else on the score's."""
    if finding.kind == "held-out":
        return f"reward/{finding.about}"
    return {"repetition": "rollout/repetition", "kl": "objective/kl"}.get(finding.kind, "reward/vader")


def plot(runs: dict[str, dict[str, Any]], file: Path) -> None:
    """A panel for each figure, a line for each run; a triangle where the monitor warned of what the panel shows."""

    def paint(axes: Any, name: str) -> None:
        for color, (label, run) in zip(COLORS, runs.items(), strict=False):
            shown = {entry["episode"]: entry[name] for entry in run["history"] if name in entry}
            axes.plot(list(shown), list(shown.values()), color=color, linewidth=1.6, label=label)
            at = [e for f in run["findings"] if panel_of(f) == name and (e := episode_of(run, f)) in shown]
            axes.plot(at, [shown[e] for e in at], "v", color=color, markersize=9, markeredgecolor="black",
                      label="monitor warns" if at else None)  # fmt: skip
        axes.set(title=PANELS[name], xlabel="episodes")
        axes.legend(fontsize=8)

    save_figure(file, [(paint, name) for name in PANELS], columns=2)


if __name__ == "__main__":
    main()
