r"""How PPO breaks, and how its logs show it: a sound run beside one with a single setting changed for the worse.

    OMP_NUM_THREADS=1 python benchmarks/breaking.py --output runs/breaking.json --plot docs/images/breaking.png

    learning_rate  the task `reverse` of benchmarks/learning.py, with 30 times the learning rate
    kl_coef        a small language model that writes sentences such as "the film was fine ." is paid for the word
                   "good", with a KL penalty and without: only the penalty keeps the sentences
    vf_coef        the task `emit` of benchmarks/learning.py, whose scores vary by 0.1, with the critic's loss weighed
                   0.1 in place of 10: the critic is left behind, and its values are worse than none

Both runs of a case begin with the same policy and use the preset recipes/configs/preset_ppo.yaml. Figures are means
over seeds, of the first and of the last ten rollouts. Progress goes to stderr; the last line, on stdout, is one JSON
object. `--output` keeps the same, with the curves.
"""

import argparse
import contextlib
import itertools
import json
import math
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tiny_tasks import TASKS, Run, Task, build_policy, machine, save_figure, train

# isort: split
import torch
from datasets import Dataset

NOUNS = ("film", "plot", "cast", "music", "end", "script")
ADJECTIVES = ("good", "fine", "dull", "bad")
WORDS = ("the", "was", ".", *NOUNS, *ADJECTIVES)
FOLLOWS = {  # the grammar: which words may come after a word
    "the": NOUNS,
    **dict.fromkeys(NOUNS, ("was",)),
    "was": ADJECTIVES,
    **dict.fromkeys(ADJECTIVES, (".",)),
    ".": ("the",),
}
SHOWN = (
    "objective/scores",
    "reward/well_formed",
    "objective/kl",
    "policy/entropy_avg",
    "policy/clipfrac_avg",
    "policy/approxkl_avg",
    "loss/value_avg",
    "value/explained_variance",
)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    print(json.dumps(report))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All runs that were asked for, and what they gave."""
    changes = {} if args.episodes is None else {"total_episodes": args.episodes}
    results: dict[str, dict[str, Any]] = {}
    runs: dict[str, dict[str, list[Run]]] = {}
    for name in args.cases:
        task, broken = CASES[name]()
        runs[name] = {"sound": [], "broken": []}
        for kind, seed in itertools.product(runs[name], args.seeds):
            run = train(task, "ppo", seed, **changes, **(broken if kind == "broken" else {}))
            runs[name][kind].append(run)
            sys.stderr.write(f"{name:>14} {kind:<7} seed {seed}: {one_line(run)}\n")
        results[name] = {kind: summary(of_kind) for kind, of_kind in runs[name].items()}
        sys.stderr.write(table(results[name]))
    report = {"benchmark": "breaking", "seeds": args.seeds, "machine": machine(), "results": results}
    if args.output:
        curves = {name: {kind: curves_of(r) for kind, r in kinds.items()} for name, kinds in runs.items()}
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report | {"curves": curves}) + "\n", encoding="utf-8")
    if args.plot:
        plot(runs, args.plot)
    return report


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, help="Of each run, in place of what is set for the task.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures, and the curves.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw the curves.")
    return parser.parse_args(argv)


# ---- the task with a reward that can be exploited


class Praise:
    """Share of a completion's words that are "good": 1 for nothing else, and at most 0.25 in sentences."""

    __name__ = "praise"

    def __call__(self, completions: Sequence[str], **kwargs: Any) -> list[float]:
        return [text.split().count("good") / max(len(text.split()), 1) for text in completions]


class WellFormed:
    """Share of a completion's words that may follow the word before them; what the reward was meant to keep."""

    __name__ = "well_formed"

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **kwargs: Any) -> list[float]:
        texts = [[prompt.split()[-1], *text.split()] for prompt, text in zip(prompts, completions, strict=True)]
        return [statistics.fmean(b in FOLLOWS.get(a, ()) for a, b in itertools.pairwise(text)) for text in texts]


def writer(tokenizer: Any, seed: int) -> Any:
    """A policy that has learned to write such sentences, from text in which one word of fifty is any word at all."""
    policy, dice = build_policy(tokenizer, seed), random.Random(seed)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    for _ in range(400):
        texts = []
        for _ in range(32):
            text = ["the"]
            while len(text) < 24:
                text.append(dice.choice(FOLLOWS[text[-1]]))
            texts.append(" ".join(dice.choice(WORDS) if dice.random() < 0.02 else word for word in text))
        batch = tokenizer(texts, return_tensors="pt")  # all of one length
        ids = batch["input_ids"]
        policy(input_ids=ids, attention_mask=batch["attention_mask"], labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return policy.eval()


def praise_case() -> tuple[Task, dict[str, Any]]:
    openings = [f"the {a} was {b} . the {c} was" for a, b, c in itertools.product(NOUNS, ADJECTIVES, NOUNS)]
    random.Random(0).shuffle(openings)
    task = Task(
        name="praise",
        words=WORDS,
        train=Dataset.from_dict({"prompt": openings[:-64]}),
        held_out=Dataset.from_dict({"prompt": openings[-64:]}),
        reward=Praise(),
        watched=(WellFormed(),),
        best=1.0,
        options={"max_completion_length": 12, "stop_token": "none", "kl_coef": 0.03},
        tuned={"ppo": {"learning_rate": 3e-4, "vf_coef": 10.0, "total_episodes": 5120}},
        start=writer,
    )
    return task, {"kl_coef": 0.0}


def learning_rate_case() -> tuple[Task, dict[str, Any]]:
    task = TASKS["reverse"]()
    return task, {"learning_rate": 30 * task.tuned["ppo"]["learning_rate"]}


def critic_case() -> tuple[Task, dict[str, Any]]:
    return TASKS["emit"](), {"vf_coef": 0.1}


CASES = {"learning_rate": learning_rate_case, "kl_coef": praise_case, "vf_coef": critic_case}


# ---- what came of it


def ends_of(run: Run, name: str) -> tuple[float, float] | None:
    """The mean of a figure over the first and over the last ten rollouts; `None` where it is not logged."""
    values = [entry[name] for entry in run.history if name in entry]
    return (statistics.fmean(values[:10]), statistics.fmean(values[-10:])) if values else None


def one_line(run: Run) -> str:
    found = {name: ends_of(run, name) for name in SHOWN}
    shown = [f"{name} {ends[0]:.3g} -> {ends[1]:.3g}" for name, ends in found.items() if ends]
    return ", ".join(shown) + f"; {run.cpu_seconds:.1f} s of CPU in {run.wall_seconds:.1f} s"


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name in SHOWN:
        ends = [found for run in runs if (found := ends_of(run, name))]
        if ends:
            first, last = (round(statistics.fmean(values), 5) for values in zip(*ends, strict=True))
            figures[name] = {"first_ten": first, "last_ten": last}
    return {
        "settings": runs[0].settings,
        "figures": figures,
        "final_score": [round(run.held_out["objective/scores"], 4) for run in runs],
        "examples": [row["completion"] for row in runs[0].rows[:2]],
        "wall_seconds": [round(run.wall_seconds, 1) for run in runs],
        "cpu_seconds": [round(run.cpu_seconds, 1) for run in runs],
    }


def table(result: dict[str, Any]) -> str:
    """The figures as a table for people, in Markdown."""
    lines = ["| in the log | sound: first ten | last ten | broken: first ten | last ten |", "|---|---|---|---|---|"]
    sound, broken = (result[kind]["figures"] for kind in ("sound", "broken"))
    for name in sound:
        cells = [f"{part[name][end]:.3g}" for part in (sound, broken) for end in ("first_ten", "last_ten")]
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def curves_of(runs: Sequence[Run]) -> dict[str, list[list[float]]]:
    """For each figure, the values of every run, a rollout each."""
    return {name: [[round(e[name], 5) for e in run.history] for run in runs]
            for name in SHOWN if name in runs[0].history[0]}  # fmt: skip


def drawn_values(run: Run, name: str) -> list[float]:
    """The values of a figure over rollouts. Where nearly all scores are alike there is no variance to explain."""
    alike = [name == "value/explained_variance" and entry["objective/scores_std"] < 0.05 for entry in run.history]
    return [math.nan if skip else entry[name] for skip, entry in zip(alike, run.history, strict=True)]


def plot(runs: dict[str, dict[str, list[Run]]], file: Path) -> None:
    """Two panels for each case: what is lost, and the figure that tells. Runs are pale, their mean is on top."""
    shown = {
        "learning_rate": ("objective/scores", "policy/approxkl_avg"),
        "kl_coef": ("reward/well_formed", "objective/kl"),
        "vf_coef": ("objective/scores", "value/explained_variance"),
    }

    def paint(axes: Any, title: str) -> None:
        case, name = title.split(": ")
        for color, (kind, of_kind) in zip(("C0", "C3"), runs[case].items(), strict=True):
            episodes = [entry["episode"] for entry in of_kind[0].history]
            curves = [drawn_values(run, name) for run in of_kind]
            for curve in curves:
                axes.plot(episodes, curve, color=color, linewidth=0.6, alpha=0.4)
            means = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            axes.plot(episodes, means, color=color, linewidth=1.8, label=kind)
        if name.endswith("approxkl_avg"):
            axes.set_yscale("log")
            axes.set_ylim(bottom=1e-4)
        axes.set(title=title, xlabel="episodes")
        axes.legend()

    save_figure(file, [(paint, f"{case}: {name}") for case in runs for name in shown[case]], columns=2)


if __name__ == "__main__":
    main()
