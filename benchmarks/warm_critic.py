r"""What does a warm critic save? PPO on the tiny tasks, with a critic that begins at 0 and with one trained ahead.

    OMP_NUM_THREADS=1 python benchmarks/warm_critic.py --output runs/warm_critic.json

For each seed an earlier run keeps rollouts, a critic learns them as recipes/critic.py does it, and then `cold` and
`warm` run with one seed and differ in the critic alone. With `--take first` they begin with the policy that the
earlier run began with (it had another seed of sampling), and with `--take last` they go on from the policy that it
left after `--earlier_rollouts`. `explained_variance` is that of the first rollout, before any update, and `episodes`
is how many had been learned from when a rollout first scored 95% of the best. Progress goes to stderr; the last line
is one JSON object.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tiny_tasks import TASKS, Run, Task, build_tokenizer, cpu_seconds, episodes_to, machine, train
from transformers import GPT2LMHeadModel

from rlhf_recipes.ppo.warm_critic.config import CriticConfig
from rlhf_recipes.ppo.warm_critic.rollouts import read_rollouts, split_by_prompt
from rlhf_recipes.ppo.warm_critic.trainer import CriticOnPolicy, CriticTrainer

SHARE = 0.95  # of the best score
EARLIER = 1000  # added to the seed of the run that stores rollouts


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):
        results = {name: of_task(TASKS[name](), args) for name in args.tasks}
    report = {"benchmark": "warm_critic", "machine": machine()}
    report |= {name: value for name, value in vars(args).items() if name not in ("tasks", "output")}
    report |= {"results": results}
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report) + "\n", encoding="utf-8")
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--critic", default="head", help="head or policy.")
    parser.add_argument("--take", choices=["first", "last"], default="last")
    parser.add_argument("--earlier_rollouts", type=int, default=8, help="With last: how many the earlier run has.")
    parser.add_argument("--rollouts", type=int, default=4, help="Rollouts of the earlier run to learn from.")
    parser.add_argument("--options", type=json.loads, default={}, help="Of PPOConfig, for all runs, as JSON.")
    parser.add_argument("--output", type=Path, metavar="FILE.json")
    return parser.parse_args(argv)


def of_task(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """All seeds of a task: what each pair of runs gave, and their medians."""
    pairs = [of_seed(task, seed, args) for seed in args.seeds]
    middle = {
        f"{name}_{side}": statistics.median(pair[side][name] for pair in pairs)
        for name in ("explained_variance", "score_of_all_rollouts")
        for side in ("cold", "warm")
    }
    reached = [pair for pair in pairs if pair["cold"]["episodes"] is not None and pair["warm"]["episodes"] is not None]
    saved = [pair["cold"]["episodes"] - pair["warm"]["episodes"] for pair in reached]
    return middle | {"episodes_saved": saved, "both_reached": len(reached), "pairs": pairs}


def of_seed(task: Task, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """A cold and a warm run of one seed, and what it took to make the critic warm."""
    options = {"critic": args.critic, **args.options}
    with tempfile.TemporaryDirectory() as folder:
        first = args.take == "first"
        rollouts = args.rollouts if first else args.earlier_rollouts
        kept = {"total_episodes": 64 * rollouts, "save_rollouts": args.rollouts}
        same_policy = replace(task, start=lambda tokenizer, _: task.start(tokenizer, seed))
        earlier = train(same_policy, "ppo", seed + EARLIER, folder=folder, **options | kept)
        begins = same_policy if first else replace(task, start=lambda *_: GPT2LMHeadModel.from_pretrained(folder))
        start = cpu_seconds()
        ahead = make_warm(begins, seed, folder, args)
        ahead |= {"cpu_seconds": round(cpu_seconds() - start, 1), "score": earlier.held_out["objective/scores"]}
        cold = train(begins, "ppo", seed, **options)
        warm = train(begins, "ppo", seed, **options | {"critic": f"{folder}/ahead/critic"})
    found = {"seed": seed, "ahead": ahead, "cold": figures(task, cold), "warm": figures(task, warm)}
    sys.stderr.write(json.dumps({"task": task.name, **found}) + "\n")
    return found


def make_warm(task: Task, seed: int, folder: str, args: argparse.Namespace) -> dict[str, float]:
    """What recipes/critic.py does, on the policy that both runs begin with."""
    tokenizer = build_tokenizer(task.words)
    settings = CriticConfig(output_dir=f"{folder}/ahead", rollouts=folder, take=args.take, num_rollouts=args.rollouts,
                            critic=args.critic, seed=seed, use_cpu=True, disable_tqdm=True)  # fmt: skip
    stored = read_rollouts(folder, settings.take, settings.num_rollouts)
    parts = split_by_prompt([e for rollout in stored for e in rollout.episodes], settings.held_out, seed)
    trainer = CriticTrainer(CriticOnPolicy(task.start(tokenizer, seed), args.critic, tokenizer), settings, *parts)
    trainer.train()
    trainer.save_model()
    return {"held_out_explained_variance": trainer.evaluate()["eval_explained_variance"]}


def figures(task: Task, run: Run) -> dict[str, Any]:
    scores = [entry["objective/scores"] for entry in run.history]
    return {
        "explained_variance": run.history[0]["value/explained_variance"],
        "episodes": episodes_to(run.history, SHARE * task.best),
        "score_of_all_rollouts": statistics.fmean(scores),
        "final_score": run.held_out["objective/scores"],
    }


if __name__ == "__main__":
    main()
