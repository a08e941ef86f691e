r"""What less compute per answer costs in score: PPO with a price on FLOPs, at several prices.

    python -m rlhf_recipes.data.starter
    OMP_NUM_THREADS=1 python benchmarks/compute_aware.py --output runs/compute.json --plot docs/images/compute.png

Each run is `recipes/ppo.py --config recipes/configs/starter_ppo_compute.yaml` with another weight of its reward
`Flops`: `-penalty`, in units of score for a GFLOP (for its `unit`). Options that are not known here are those of
recipes/ppo.py (`--total_episodes 640`). Before and after training the policy answers the same held-out prompts with
the same noise; whatever a run was paid, it is measured alike:

| key | meaning |
|---|---|
| `task` | mean score of an answer without the price: the weighted sum of all rewards but `Flops` |
| `gflops`, `tokens` | mean cost of an answer, in the unit of `Flops`, and its tokens, the last one included |
| `over_start` | what training has changed, answer by answer |
| `over_first` | what the price has changed: less the run at the first penalty |

Intervals hold 95 of 100 times over prompts, of which several seeds' answers are one unit. They say nothing of other
seeds: how far these scatter is seen only with several. Tables go to stderr; the last line, on stdout, is one JSON
object.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import numpy as np
import transformers
from tiny_tasks import CONFIGS, cpu_seconds, machine, save_figure

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_prompts
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.prompts import PromptArguments, load_prompts
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.outputs import write_json
from rlhf_recipes.ppo import PPOConfig, PPOTrainer
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.loading import RewardArguments
from rlhf_recipes.statistics import mean_with_interval

FIGURES = ("task", "gflops", "tokens")
TOKENS = "tokens_of_answer"

Answers = dict[str, np.ndarray]  # for each figure (prompts,)


def main(argv: Sequence[str] | None = None) -> None:
    args, options = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args, options)
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, default=CONFIGS / "starter_ppo_compute.yaml")
    parser.add_argument("--penalties", nargs="+", type=float, default=[0.0, 0.1, 0.3], help="Score for a GFLOP.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the figures, and every answer.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw score over FLOPs of an answer.")
    args, options = parser.parse_known_args(argv)
    if min(args.penalties) < 0 or len(set(args.penalties)) < len(args.penalties):
        parser.error(f"--penalties are {args.penalties}; give different numbers of 0 or more.")
    return args, options


def measure(args: argparse.Namespace, options: Sequence[str]) -> dict[str, Any]:
    """All runs, and what they gave."""
    start = time.perf_counter()
    runs: dict[float, list[dict[str, Any]]] = {penalty: [] for penalty in args.penalties}
    for seed in args.seeds:
        before = None  # the same at every penalty: a policy that has not been trained
        for penalty in args.penalties:
            runs[penalty].append(train(args.config, penalty, seed, options, before))
            before = runs[penalty][-1]["before"]
            sys.stderr.write(f"penalty {penalty:g}, seed {seed}: {one_line(runs[penalty][-1])}\n")
    report: dict[str, Any] = {"benchmark": "compute_aware", "seeds": args.seeds}
    report |= summary({p: [(run["before"], run["after"]) for run in of_seeds] for p, of_seeds in runs.items()})
    for found, of_seeds in zip(report["penalties"], runs.values(), strict=True):
        found["kl"] = round(float(np.mean([run["kl"] for run in of_seeds])), 3)  # nats, of the last rollout
        found |= {name: [run[name] for run in of_seeds] for name in ("train_seconds", "train_cpu_seconds")}
    report |= {"machine": machine(), "seconds": round(time.perf_counter() - start, 1)}
    sys.stderr.write(table(report))
    if args.output:
        kept = {f"{penalty:g}": [run["rows"] for run in of_seeds] for penalty, of_seeds in runs.items()}
        write_json(args.output, report | {"answers": kept})
    if args.plot:
        plot(report, args.plot)
    return report


# --- One run --------------------------------------------------------------------------------------


def train(
    config: Path, penalty: float, seed: int, options: Sequence[str], before: Answers | None = None
) -> dict[str, Any]:
    """What recipes/ppo.py does with that weight of `Flops`, and held-out answers after (and before, if not given)."""
    groups = (PPOConfig, RewardArguments, ModelArguments, DataArguments, PromptArguments, TemplateArguments)
    words = ["--config", str(config), *options, "--seed", str(seed)]
    with tempfile.TemporaryDirectory() as folder:
        parsed = RecipeParser(groups).parse([*words, "--output_dir", folder])
        ppo_args, reward_args, model_args, data_args, prompt_args, template_args = parsed
        splits = {data_args.dataset_train_split: False, data_args.dataset_test_split: True}
        prompts = {
            split: load_prompts(data_args, prompt_args, held_out=held_out) for split, held_out in splits.items()
        }
        tokenizer = load_policy_tokenizer(model_args, padding_side="left")
        train_set, held_out = (
            ready_prompts(rows, tokenizer, template_args, data_args, split) for split, rows in prompts.items()
        )
        specs, cost = priced(reward_args.reward_funcs, penalty)
        transformers.set_seed(seed)
        trainer = PPOTrainer(
            args=ppo_args,
            processing_class=tokenizer,
            model=load_policy(model_args, tokenizer=tokenizer),
            reward_funcs=load_rewards([*specs, {"func": "TokenCount", "name": TOKENS, "weight": 0.0}]),
            train_dataset=train_set,
            eval_dataset=held_out,
        )
        before = before or answers(trainer.generate_completions(), penalty, cost)
        start, cpu = time.perf_counter(), cpu_seconds()
        trainer.train()
        seconds = {"train_seconds": time.perf_counter() - start, "train_cpu_seconds": cpu_seconds() - cpu}
        rows = trainer.generate_completions()
    kl = [entry["objective/kl"] for entry in trainer.state.log_history if "objective/kl" in entry][-1]
    found = {"before": before, "after": answers(rows, penalty, cost), "rows": rows, "kl": kl}
    return found | {name: round(value, 1) for name, value in seconds.items()}


def one_line(run: Mapping[str, Any]) -> str:
    sides = (", ".join(f"{name} {run[side][name].mean():.3f}" for name in FIGURES) for side in ("before", "after"))
    return f"{' -> '.join(sides)}, {run['train_seconds']} s of training"


def priced(specs: Sequence[str | dict[str, Any]], penalty: float) -> tuple[list[str | dict[str, Any]], str]:
    """The rewards of a config with `-penalty` as the weight of `Flops`, and the name of that.

    Raises:
        `SystemExit`: if not exactly one of the rewards is `Flops`.
    """
    costs = [spec for spec in specs if isinstance(spec, dict) and spec["func"] == "Flops"]
    if len(costs) != 1:
        raise SystemExit(f"The config has {len(costs)} rewards with `func: Flops`; name it once in reward_funcs.")
    name = costs[0].get("name", "Flops")
    return [spec | {"weight": -penalty} if spec is costs[0] else spec for spec in specs], name


def answers(rows: Sequence[Mapping[str, Any]], penalty: float, cost: str) -> Answers:
    """The figures of each answer. Its score is what a run was paid; without the price it is the task's."""
    gflops = np.array([row[cost] for row in rows])
    task = np.array([row["score"] for row in rows]) + penalty * gflops
    return {"task": task, "gflops": gflops, "tokens": np.array([row[TOKENS] for row in rows])}


# --- Figures --------------------------------------------------------------------------------------


def summary(runs: Mapping[float, Sequence[tuple[Answers, Answers]]]) -> dict[str, Any]:
    """For each penalty what the answers are, after and less before, and less those at the first penalty.

    Args:
        runs (`Mapping`): For each penalty the answers before and after, of each seed.
    """
    sides = {penalty: [joined(side) for side in zip(*pairs, strict=True)] for penalty, pairs in runs.items()}
    first = next(iter(sides))
    start = sides[first][0]
    prompts = list(range(len(runs[first][0][0]["task"]))) * len(runs[first])
    found: list[dict[str, Any]] = []
    for penalty, (before, after) in sides.items():
        entry = {"penalty": penalty, "after": spread(after, prompts)}
        entry["over_start"] = spread({name: after[name] - before[name] for name in FIGURES}, prompts)
        if penalty != first:
            entry["over_first"] = spread({name: after[name] - sides[first][1][name] for name in FIGURES}, prompts)
        found.append(entry)
    return {"prompts": max(prompts) + 1, "start": spread(start, prompts), "penalties": found}


def joined(seeds: Sequence[Answers]) -> Answers:
    return {name: np.concatenate([answers[name] for answers in seeds]) for name in FIGURES}


def spread(values: Answers, prompts: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Mean and 95% interval of each figure, where answers to one prompt are one unit."""
    means = {name: mean_with_interval(values[name], prompts) for name in FIGURES}
    return {
        name: {"mean": round(mean, 4), "ci95": ends and [round(end, 4) for end in ends]}
        for name, (mean, ends) in means.items()
    }


def table(report: Mapping[str, Any]) -> str:
    """The figures as a table for people, in Markdown."""
    lines = [f"| penalty | {' | '.join(FIGURES)} |", "|---|---|---|---|", line("start", report["start"])]
    for found in report["penalties"]:
        name = f"{found['penalty']:g}"
        lines += [line(name, found["after"]), line(f"{name}, less start", found["over_start"], "+")]
        if "over_first" in found:
            first = report["penalties"][0]["penalty"]
            lines.append(line(f"{name}, less {first:g}", found["over_first"], "+"))
    return "\n".join(lines) + "\n"


def line(name: str, figures: Mapping[str, Any], sign: str = "") -> str:
    def cell(figure: str) -> str:
        digits = f"{sign}.{3 if figure == 'task' else 2}f"
        low, high = figures[figure]["ci95"] or (float("nan"),) * 2
        return f"{figures[figure]['mean']:{digits}} ({low:{digits}} to {high:{digits}})"

    return f"| {name} | {' | '.join(map(cell, FIGURES))} |"


def plot(report: Mapping[str, Any], file: Path) -> None:
    """The front: task score over GFLOPs of an answer, a point for each penalty and one for the start."""
    points = [("start", report["start"]), *((f"{p['penalty']:g}", p["after"]) for p in report["penalties"])]

    def paint(axes: Any, title: str) -> None:
        for index, (name, found) in enumerate(points):
            (x, low_x, high_x), (y, low_y, high_y) = (bar(found[figure]) for figure in ("gflops", "task"))
            color = "0.5" if name == "start" else f"C{index - 1}"
            label = "before training" if name == "start" else f"penalty {name}"
            reach = {"xerr": [[low_x], [high_x]], "yerr": [[low_y], [high_y]]}
            axes.errorbar(x, y, **reach, fmt="o", color=color, capsize=2, label=label)
        front = sorted((found["gflops"]["mean"], found["task"]["mean"]) for _, found in points[1:])
        axes.plot(*zip(*front, strict=True), color="0.7", linewidth=1, zorder=0)
        axes.set(xlabel="GFLOPs of an answer", ylabel="task score")
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8)

    save_figure(file, [(paint, f"{report['prompts']} held-out prompts")], columns=1)


def bar(figure: Mapping[str, Any]) -> tuple[float, float, float]:
    """A mean, and how far its interval reaches below and above."""
    mean = figure["mean"]
    low, high = figure["ci95"] or (mean, mean)
    return mean, mean - low, high - mean


if __name__ == "__main__":
    main()
