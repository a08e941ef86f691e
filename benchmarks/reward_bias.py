r"""A reward model that learns a bias of its data, what measuring says of it, and what each mending does.

    python -m rlhf_recipes.data.starter
    python benchmarks/reward_bias.py --output runs/reward_bias --plot docs/images/reward_bias.png

The model is a linear head on frozen sentence embeddings (MiniLM), which takes seconds to train, on movie ratings. Two
biases are put into its training data, and all is measured on the untouched test split.

- Length: of the pairs in which the shorter text is the better one, nine of ten are left out.
- Groups: of the reviews with a word of comedy, nine of ten that are rated above 0 are left out.

Progress goes to stderr; the last line, on stdout, is one JSON object. `--output` is a folder for the same and for the
pictures; `--plot` is for the picture of the length.
"""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import numpy as np
import torch
from datasets import Dataset
from tiny_tasks import machine, save_figure
from torch.nn.functional import mse_loss

from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.pairs import draw_pairs
from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, all_pairs_interval
from rlhf_recipes.modeling.embedder import Embedder
from rlhf_recipes.outputs import write_json
from rlhf_recipes.report.reward_figures import save_pictures
from rlhf_recipes.reward_modeling.bias.correction import Correction, ResidualReward
from rlhf_recipes.reward_modeling.bias.measure import measure_bias, table
from rlhf_recipes.reward_modeling.debias import balance_pairs, covariates, group_penalty, residual_scores
from rlhf_recipes.reward_modeling.losses.pairs import bradley_terry

COMEDY = re.compile(r"\b(comed(y|ies)|comic|comedic|funny|humou?r|laughs?|laughter|jokes?)\b", re.IGNORECASE)
LEFT_OUT = 0.9
SENTENCE = "That is all there is to say about this one."


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="starter/movie-ratings")
    parser.add_argument("--encoder", default="starter/minilm-l6")
    parser.add_argument("--passes", type=int, default=8, help="How often each training text is paired.")
    parser.add_argument("--penalty", type=float, default=10.0, help="Weight of the group penalty.")
    parser.add_argument("--changed_texts", type=int, default=100, help="Texts on which edits are tried.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="Keep the reports and the pictures.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw what became of the length.")
    args = parser.parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    print(json.dumps(report))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    texts = Vectors(args.encoder)
    splits = {name: load_rows(args.dataset_name, name) for name in ("train", "validation", "test")}
    length = length_bias(splits, texts, args)
    groups = group_bias(splits, texts, args)
    if args.output:
        for name, reports in (("length", length), ("groups", groups)):
            found = {condition: of["report"] for condition, of in reports.items()}
            write_json(args.output / f"{name}.json", found)
            save_pictures(found, args.output / name)
    if args.plot:
        draw(length, args.plot)
    return {
        "benchmark": "reward_bias",
        "length": {name: summary(of, "length") for name, of in length.items()},
        "groups": {name: summary(of) | {"groups": of["report"]["groups"]["groups"]} for name, of in groups.items()},
        "machine": machine(),
        "seconds": round(time.perf_counter() - start, 1),
    }


# --- The model ------------------------------------------------------------------------------------


class Vectors:
    """Embeddings `(N, H)` of texts, each computed once."""

    def __init__(self, encoder: str) -> None:
        self.embedder = Embedder(encoder, batch_size=64)
        self.known: dict[str, torch.Tensor] = {}

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        new = list(dict.fromkeys(text for text in texts if text not in self.known))
        for first in range(0, len(new), 1024):
            part = new[first : first + 1024]
            self.known |= dict(zip(part, self.embedder(part), strict=True))
            if len(new) > 1024:
                sys.stderr.write(f"\r{first + len(part)} of {len(new)} texts encoded ")
        return torch.stack([self.known[text] for text in texts])


class Head:
    """A linear reward on standardized embeddings."""

    __name__ = "head"

    def __init__(self, texts: Vectors, train: Sequence[str]) -> None:
        vectors = texts(train)
        self.texts, self.mean = texts, vectors.mean(dim=0)
        self.scale = vectors.std(dim=0).clamp(min=1e-3)  # the encoder has two dimensions that are always 0
        self.weight = torch.zeros(vectors.shape[1], requires_grad=True)
        self.level = torch.zeros(1, requires_grad=True)

    def features(self, texts: Sequence[str]) -> torch.Tensor:
        return (self.texts(texts) - self.mean) / self.scale

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        return features @ self.weight + self.level

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], **kwargs: Any) -> list[float]:
        with torch.no_grad():
            return self.scores(self.features(completions)).tolist()

    def fit(self, rows: int, loss_of: Callable[[torch.Tensor], torch.Tensor], epochs: int, seed: int) -> "Head":
        """Minimize `loss_of(row numbers)` over batches of 512."""
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW([self.weight, self.level], lr=0.01, weight_decay=0.1)
        for _ in range(epochs):
            for batch in torch.randperm(rows, generator=generator).split(512):
                loss = loss_of(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return self


# --- Length ---------------------------------------------------------------------------------------


def length_bias(splits: Mapping[str, Dataset], texts: Vectors, args: argparse.Namespace) -> dict[str, Any]:
    """The model on fair pairs, on biased ones, and mended."""
    train = splits["train"]
    pairs = as_dataset(train, draw_pairs(train["completion"], train["score"], args.passes, seed=args.seed))
    side = {name: covariates(pairs[name], ["length"])[:, 0] for name in ("chosen", "rejected")}
    kept = (side["chosen"] >= side["rejected"]) | (np.random.default_rng(args.seed).random(len(pairs)) > LEFT_OUT)
    biased = pairs.select(np.flatnonzero(kept))
    sys.stderr.write(f"\n{len(pairs)} fair pairs, {len(biased)} biased ones\n")

    def trained(rows: Dataset, debias: bool = False) -> Head:
        return train_on_pairs(Head(texts, train["completion"]), rows, debias, args.seed)

    before = trained(biased)
    validation = splits["validation"]
    scores = before(None, validation["completion"])
    correction = Correction.fit(scores, validation["score"], validation["completion"], ["length"])
    of_pairs = as_dataset(validation, draw_pairs(validation["completion"], validation["score"], 4, seed=args.seed))
    both = [before(None, of_pairs[name]) for name in ("chosen", "rejected")]
    by_pairs = Correction.fit_pairs(*both, of_pairs["chosen"], of_pairs["rejected"], ["length"])
    rewards = {
        "fair data": trained(pairs),
        "biased data": before,
        "residual in the loss": trained(biased, debias=True),
        "balanced, dropped": trained(balance_pairs(biased, seed=args.seed)),
        "balanced, weighed": trained(balance_pairs(biased, how="weigh", seed=args.seed)),
        "residual reward": ResidualReward(before, correction),
        "residual reward, of pairs": ResidualReward(before, by_pairs),
    }
    return {name: judged(name, reward, splits["test"], args) for name, reward in rewards.items()}


def as_dataset(rows: Dataset, pairs: np.ndarray) -> Dataset:
    texts, ratings = list(rows["completion"]), np.array(rows["score"])
    columns = {name: [texts[row] for row in pairs[:, side]] for side, name in enumerate(("chosen", "rejected"))}
    return Dataset.from_dict({**columns, "margin": (ratings[pairs[:, 0]] - ratings[pairs[:, 1]]).tolist()})


def train_on_pairs(head: Head, pairs: Dataset, debias: bool, seed: int) -> Head:
    sides = [list(pairs[name]) for name in ("chosen", "rejected")]
    chosen, rejected = (head.features(side) for side in sides)
    lengths = [torch.tensor(covariates(side, ["length"])) for side in sides]
    weights = torch.tensor(pairs["weight"]) if "weight" in pairs.column_names else torch.ones(len(pairs))

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        scores = head.scores(torch.cat([chosen[batch], rejected[batch]]))
        if debias:
            scores = residual_scores(scores, torch.cat([side[batch] for side in lengths]))
        return (bradley_terry(*scores.chunk(2)) * weights[batch]).mean()

    return head.fit(len(pairs), loss_of, 8, seed)


# --- Groups ---------------------------------------------------------------------------------------


def group_bias(splits: Mapping[str, Dataset], texts: Vectors, args: argparse.Namespace) -> dict[str, Any]:
    """The model on all rows, on skewed ones, and on these with a penalty on other rows and on the same."""
    named = {}
    for name, rows in splits.items():
        genres = ["comedy" if COMEDY.search(text) else "other" for text in rows["completion"]]
        named[name] = rows.add_column("genre", genres)
    train, validation = named["train"], named["validation"]
    left_out = (np.array(train["genre"]) == "comedy") & (np.array(train["score"]) > 0)
    kept = ~left_out | (np.random.default_rng(args.seed).random(len(train)) > LEFT_OUT)
    skewed = train.select(np.flatnonzero(kept))
    sys.stderr.write(f"{len(train)} fair rows, {len(skewed)} skewed ones\n")

    def trained(rows: Dataset, held: Dataset | None = None) -> Head:
        return train_on_ratings(Head(texts, train["completion"]), rows, held, args.penalty, args.seed)

    rewards = {
        "fair data": trained(train),
        "skewed data": trained(skewed),
        "penalty on fair rows": trained(skewed, validation),
        "penalty on the skewed rows": trained(skewed, skewed),
    }
    return {name: judged(name, reward, named["test"], args, "genre") for name, reward in rewards.items()}


def train_on_ratings(head: Head, rows: Dataset, held: Dataset | None, penalty: float, seed: int) -> Head:
    """Least squares; with `held` rows also the group penalty on them."""
    x, y = head.features(rows["completion"]), torch.tensor(rows["score"])
    if held is None:
        return head.fit(len(rows), lambda batch: mse_loss(head.scores(x[batch]), y[batch]), 16, seed)
    held_x, held_y = head.features(held["completion"]), torch.tensor(held["score"])
    groups = torch.tensor([int(genre == "comedy") for genre in held["genre"]])

    def loss_of(batch: torch.Tensor) -> torch.Tensor:
        loss = mse_loss(head.scores(x[batch]), y[batch])
        return loss + penalty * group_penalty(head.scores(held_x), held_y, groups)

    return head.fit(len(rows), loss_of, 16, seed)


# --- Measuring ------------------------------------------------------------------------------------


def judged(
    name: str, reward: Any, test: Dataset, args: argparse.Namespace, column: str | None = None
) -> dict[str, Any]:
    changed = 0 if column else args.changed_texts
    report = measure_bias(
        reward, test, "ratings", column, ["length"], calibration=(np.asarray if column else None),
        changed_texts=changed, neutral_sentence=SENTENCE,
    )  # fmt: skip
    sys.stderr.write(f"\n=== {name}\n{table(report)}\n")
    scores, ratings = reward([""] * len(test), test["completion"]), list(test["score"])
    accuracy = all_pairs_accuracy(scores, ratings)[0], all_pairs_interval(scores, ratings)
    return {"accuracy": accuracy[0], "accuracy_ci95": accuracy[1], "report": report}


def summary(of: Mapping[str, Any], covariate: str | None = None) -> dict[str, Any]:
    figures = {key: of[key] for key in ("accuracy", "accuracy_ci95")}
    if covariate is None:
        return figures
    for key in ("partial", "partial_ci95", "accuracy_more", "accuracy_less", "accuracy_difference_ci95"):
        figures[key] = of["report"]["covariates"][covariate][key]
    for key in ("said twice", "neutral sentence"):
        figures[key] = of["report"]["changes"][key]["effect"]
        figures[f"{key}_ci95"] = of["report"]["changes"][key]["effect_ci95"]
    return figures


def draw(reports: Mapping[str, Any], path: Path) -> None:
    """Bias and accuracy of each condition, side by side."""
    names = list(reports)

    def dots(axes: Any, figures: Sequence[tuple[float, Sequence[float]]], title: str) -> None:
        for row, (value, ends) in enumerate(figures):
            color = "0.45" if row < 2 else "#2361a5"
            axes.plot(ends, (row, row), color=color, linewidth=1.6)
            axes.plot(value, row, "o", color=color, markersize=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_title(title, fontsize=10)

    def bias(axes: Any, title: str) -> None:
        of = [reports[name]["report"]["covariates"]["length"] for name in names]
        dots(axes, [(one["partial"], one["partial_ci95"]) for one in of], title)
        axes.axvline(0, color="0.2", linewidth=0.9)

    def accuracy(axes: Any, title: str) -> None:
        dots(axes, [(reports[name]["accuracy"], reports[name]["accuracy_ci95"]) for name in names], title)
        axes.set_yticklabels([])

    panels = [(bias, "Length at equal rating: partial correlation"), (accuracy, "Accuracy on untouched test pairs")]
    save_figure(path, panels, 2)


if __name__ == "__main__":
    main()
