r"""Every loss on the same texts, turned into the feedback that it reads, measured in the same way.

    python benchmarks/reward_losses.py

The ratings of the starter kit become pairs, votes, rankings, best and worst, thumbs and objectives. Each text is in
one row of each, so that every loss reads the same texts as often. The model and its learning rate are the same. It is
measured on all held-out texts with a rating: pairs in people's order, correlation, and the mean distance after a
calibration on the validation rows. Prints a table and one JSON line.
"""

import argparse
import importlib.util
import json
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from scipy.stats import mannwhitneyu

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, all_pairs_interval
from rlhf_recipes.modeling.calibration import LogisticCalibration
from rlhf_recipes.outputs import write_jsonl
from rlhf_recipes.reward_modeling.evaluation.metrics import mean_absolute_error, pearson
from rlhf_recipes.rewards.learned import LearnedReward

ROOT = Path(__file__).parents[1]
LIST = 4  # texts in a ranking
TEXTS_IN_BATCH = 64
# Feedback, and loss with its settings: a line of the table each.
RUNS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pairs", "bradley_terry", {}),
    ("pairs", "hinge", {}),
    ("pairs_with_margin", "bradley_terry", {}),
    ("votes", "bradley_terry", {}),
    ("ratings", "pairs_in_batch", {}),
    ("ratings", "mse", {}),
    ("ratings", "mae", {}),
    ("ratings", "huber", {}),
    ("ratings", "ordinal", {}),
    ("ratings", "classification", {}),
    ("rankings", "plackett_luce", {}),
    ("rankings", "info_nce", {}),
    ("best_worst", "best_worst", {}),
    ("thumbs", "binary_cross_entropy", {}),
    ("objectives", "multi_objective", {"weights": {"rating": 1.0}}),
)

Row = dict[str, Any]


def feedback_of(rows: Sequence[Row], kind: str, seed: int = 0) -> list[Row]:
    """The same texts as feedback of another kind.

    Pairs and lists are drawn by chance, ties among pairs left out. A pair has ten votes, shared as a vote for the one
    text beats a vote for the other. A thumb is the sign of one rater's vote, drawn by chance; votes of 0 have none.
    """
    generator = random.Random(seed)
    order = generator.sample(list(rows), len(rows))
    if kind == "ratings":
        return order
    if kind == "objectives":
        return [{"completion": row["completion"], "scores": _objectives(row)} for row in order]
    if kind == "thumbs":
        voted = [(row["completion"], generator.choice(row["votes"])) for row in order]
        return [{"completion": text, "label": vote > 0} for text, vote in voted if vote != 0]
    if kind in ("rankings", "best_worst"):
        return [_as_list(order[at : at + LIST], kind) for at in range(0, len(order) - LIST + 1, LIST)]
    pairs = [sorted(order[at : at + 2], key=lambda row: -row["score"]) for at in range(0, len(order) - 1, 2)]
    return [_as_pair(chosen, rejected, kind) for chosen, rejected in pairs if chosen["score"] > rejected["score"]]


def _as_pair(chosen: Row, rejected: Row, kind: str) -> Row:
    pair = {"chosen": chosen["completion"], "rejected": rejected["completion"]}
    if kind == "pairs_with_margin":
        return pair | {"margin": (chosen["score"] - rejected["score"]) / 4}
    if kind == "votes":
        above = mannwhitneyu(chosen["votes"], rejected["votes"]).statistic  # a tie counts half
        share = float(above) / (len(chosen["votes"]) * len(rejected["votes"]))
        return pair | {"chosen_votes": 10 * share, "rejected_votes": 10 * (1 - share)}
    return pair


def _as_list(rows: Sequence[Row], kind: str) -> Row:
    scores = [row["score"] for row in rows]
    texts = {"completions": [row["completion"] for row in rows]}
    if kind == "rankings":
        return texts | {"ranks": [1 + sum(other > score for other in scores) for score in scores]}
    return texts | {"best": scores.index(max(scores)), "worst": scores.index(min(scores))}


def _objectives(row: Row) -> dict[str, float]:
    mean = row["score"]
    spread = (sum((vote - mean) ** 2 for vote in row["votes"]) / len(row["votes"])) ** 0.5
    return {"rating": mean, "agreement": -spread}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train and measure one model for each line of the table; return what is printed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "starter/movie-ratings")
    parser.add_argument("--model", default="starter/minilm-l6")
    parser.add_argument("--texts", type=int, default=4000, help="training texts, drawn by chance (default: 4000)")
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--num_frozen_layers", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="losses to try (default: all)")
    parser.add_argument("--output_dir", type=Path, default=ROOT / "runs/losses")
    args = parser.parse_args(argv)
    splits = {split: _read(args.data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    train = random.Random(0).sample(splits["train"], min(args.texts, len(splits["train"])))
    recipe = _recipe()
    results = []
    for kind, loss, loss_args in RUNS:
        if args.only and loss not in args.only:
            continue
        folder = args.output_dir / f"{kind}-{loss}"
        for split, rows in (("train", train), ("test", splits["test"][:64])):
            write_jsonl(folder / "data" / f"{split}.jsonl", feedback_of(rows, kind))
        texts_in_row = {"rankings": LIST, "best_worst": LIST, "ratings": 1, "thumbs": 1, "objectives": 1}.get(kind, 2)
        options = {
            "dataset_name": folder / "data",
            "validation_split": "null",
            "loss": loss,
            "loss_args": json.dumps(loss_args),
            "model_name_or_path": args.model,
            "num_frozen_layers": args.num_frozen_layers,
            "num_train_epochs": args.epochs,
            "learning_rate": args.learning_rate,
            "per_device_train_batch_size": TEXTS_IN_BATCH // texts_in_row,
            "max_length": 128,
            "warmup_steps": 0.06,
            "save_strategy": "no",
            "card": "false",
            "disable_tqdm": "true",
            "output_dir": folder / "model",
        }
        if not loss_args:
            del options["loss_args"]
        start = time.process_time()
        recipe([word for name, value in options.items() for word in (f"--{name}", str(value))])
        seconds = time.process_time() - start
        results.append({"feedback": kind, "loss": loss, **_measure(folder / "model", splits), "cpu_seconds": seconds})
        print(_line(results[-1]), file=sys.stderr)
    print("\n".join(["| feedback | loss | pairs in order | Pearson | mean distance |", "|---|---|---|---|---|"]))
    print("\n".join(map(_line, results)))
    report = {"benchmark": "reward_losses", "texts": len(train), "epochs": args.epochs, "results": results}
    print(json.dumps(report))
    return report


def _measure(folder: Path, splits: dict[str, list[Row]]) -> dict[str, Any]:
    reward = LearnedReward(folder, calibrate=False, batch_size=64)
    said = {
        split: reward([""] * len(splits[split]), [row["completion"] for row in splits[split]])
        for split in ("validation", "test")
    }
    ratings = {split: [row["score"] for row in splits[split]] for split in said}
    calibration = LogisticCalibration.fit(said["validation"], ratings["validation"])
    rated = calibration(said["test"])
    return {
        "pairwise_accuracy": all_pairs_accuracy(said["test"], ratings["test"])[0],
        "pairwise_accuracy_ci95": all_pairs_interval(said["test"], ratings["test"]),
        "pearson": pearson(rated, ratings["test"]),
        "mae": mean_absolute_error(rated, ratings["test"]),
    }


def _line(result: dict[str, Any]) -> str:
    low, high = result["pairwise_accuracy_ci95"]
    return (
        f"| {result['feedback'].replace('_', ' ')} | `{result['loss']}` | {result['pairwise_accuracy']:.3f} "
        f"({low:.3f} to {high:.3f}) | {result['pearson']:.3f} | {result['mae']:.2f} |"
    )


def _read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _recipe() -> Any:
    spec = importlib.util.spec_from_file_location("reward_recipe", ROOT / "recipes/reward.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


if __name__ == "__main__":
    main()
