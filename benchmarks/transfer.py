r"""Does a reward model hold on text of another kind? Rewards on rated sentences that they were not trained on.

    python -m rlhf_recipes.data.starter
    python recipes/reward_linear.py --config recipes/configs/starter_linear.yaml
    OMP_NUM_THREADS=1 python benchmarks/transfer.py runs/quickstart/reward runs/linear --output runs/transfer.json

A reward is a folder of `recipes/reward.py` or `recipes/reward_linear.py`, or whatever a YAML may name as a reward
(`my_rewards.py:brevity`). Two that cost nothing stand beside them: VADER, and the length of the text. All are measured
on the test split of each dataset, and on all splits of those in `--whole`, unless the reward was trained there, as the
`config.yaml` in its folder says. Datasets have the columns completion, score and votes, and perhaps group.

| key | meaning |
|---|---|
| `pairwise_accuracy` | share of all pairs, `min_gap` or more apart in mean rating, in people's order |
| `pearson` | correlation of the reward, calibrated where it holds a calibration, with the mean rating |
| `over_vader` | its `pairwise_accuracy` less VADER's |
| `single_rater_accuracy` | `pairwise_accuracy` of one human rater against the mean of the others |

Intervals hold 95% of bootstrap samples of the documents (`group`), because sentences of one document are alike, or of
the texts where there are none. All rewards are measured on the same samples, so that the interval of a difference is
paired. Equal scores of a pair count half. A reward that gives the same number to every text has no `pearson`: `None`.

Tables go to stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import numpy as np
import yaml
from datasets import Dataset, concatenate_datasets
from numpy.typing import ArrayLike, NDArray

from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.pairs import TOLERANCE
from rlhf_recipes.data.raters.agreement import all_pairs_accuracy, single_rater_accuracy
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.evaluation.baselines import baseline_scores
from rlhf_recipes.reward_modeling.linear.reward import LinearReward
from rlhf_recipes.rewards.loading import load_spec
from rlhf_recipes.statistics import percentile_interval

WHOLE = [f"starter/{name}-ratings" for name in ("amazon", "nyt", "tweet")]
DATASETS = ["starter/movie-ratings", *WHOLE]
BASELINES = ("vader", "length")
CHUNK = 512  # rows of the n x n comparison that are in memory at a time

Floats = NDArray[np.float64]
Score = Callable[[Sequence[str]], list[float]]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
        sys.stderr.write(tables(report))
    if args.output:
        write_json(args.output, report)
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rewards", nargs="*", help="Folders of reward models, or names of rewards.")
    parser.add_argument("--datasets", nargs="+", default=DATASETS, help="Measured on their test split.")
    parser.add_argument("--whole", nargs="*", default=WHOLE, help="Of these, measured on all splits as well.")
    parser.add_argument("--min_gap", type=float, default=0.5, help="Least difference in mean rating of a pair.")
    parser.add_argument("--samples", type=int, default=1000, help="Of the bootstrap.")
    parser.add_argument("--seed", type=int, default=0, help="Of the bootstrap.")
    parser.add_argument("--trust", action="store_true", help="Read linear models that hold a pickle or others' code.")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="Keep the report.")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    start = time.perf_counter()
    rewards = {spec: load(spec, args.trust) for spec in args.rewards}
    origin = {spec: trained_on(spec) for spec in args.rewards}
    report: dict[str, Any] = {"benchmark": "transfer", "min_gap": args.min_gap, "samples": args.samples}
    report |= {"trained_on": origin, "test": {}, "whole": {}}
    for name in args.datasets:
        test = load_rows(name, "test")
        others = [load_rows(name, split) for split in ("train", "validation")] if name in args.whole else []
        everything = concatenate_datasets([test, *others])
        strangers = [spec for spec in rewards if not same_data(name, origin[spec])]
        free = baseline_scores(everything["completion"])
        scores = {baseline: free[baseline] for baseline in BASELINES}
        for spec, reward in rewards.items():
            sys.stderr.write(f"{name}: {spec}\n")
            scores[spec] = reward(everything["completion"] if spec in strangers else test["completion"])
        of_test = {who: column[: len(test)] for who, column in scores.items()}
        report["test"][name] = figures(test, of_test, args)
        if others:
            report["whole"][name] = figures(everything, {who: scores[who] for who in (*BASELINES, *strangers)}, args)
    return report | {"seconds": round(time.perf_counter() - start, 1)}


# --- rewards ---------------------------------------------------------------------------------------------


def load(spec: str, trust: bool = False) -> Score:
    """A function of texts, whatever the reward is.

    Raises:
        `ValueError`: when called, if the reward has no number for one of the texts.
    """
    linear = (Path(spec) / "linear_reward.json").is_file()
    reward: Any = LinearReward(spec, trust=trust) if linear else load_spec(spec)

    def score(texts: Sequence[str]) -> list[float]:
        values = reward(prompts=[""] * len(texts), completions=list(texts), completion_ids=[[]] * len(texts))
        silent = [text for text, value in zip(texts, values, strict=True) if value is None]
        if silent:
            raise ValueError(
                f"The reward {spec!r} has no number for {len(silent)} of {len(texts)} texts, such as {silent[0]!r}, "
                "so it cannot put all pairs in order. Measure a reward that says something of every text."
            )
        return list(values)

    return score


def trained_on(spec: str) -> list[str] | None:
    """The datasets that the `config.yaml` of a reward's folder names; `None` where there is none to ask."""
    file = Path(spec) / "config.yaml"
    if not file.is_file():
        return None
    named = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("dataset_name")
    return None if named is None else [named] if isinstance(named, str) else list(named)


def same_data(name: str, trained: Sequence[str] | None) -> bool:
    """Whether a reward was trained on a dataset, by the paths of both."""
    return any(Path(name).resolve() == Path(other).resolve() for other in trained or ())


# --- figures ---------------------------------------------------------------------------------------------


class Drawn(NamedTuple):
    """The figures of S bootstrap samples; NaN where a sample has no pair, or nothing that varies."""

    pairwise_accuracy: Floats  # (S,)
    pearson: Floats  # (S,)


def figures(rows: Dataset, scores: Mapping[str, Sequence[float]], args: argparse.Namespace) -> dict[str, Any]:
    """What each of several rewards is worth on the same rows, beside one human rater."""
    ratings = np.array(rows["score"], dtype=np.float64)
    documents = list(rows["group"]) if "group" in rows.column_names else list(range(len(rows)))
    drawn = {who: bootstrap(column, ratings, documents, args) for who, column in scores.items()}
    of_reward = {}
    for who, column in scores.items():
        accuracy, pairs = all_pairs_accuracy(column, ratings, args.min_gap)
        varies = np.ptp(np.array(column)) > 0
        over = accuracy - all_pairs_accuracy(scores["vader"], ratings, args.min_gap)[0]
        of_reward[who] = {
            "pairwise_accuracy": accuracy,
            "pairwise_accuracy_ci95": interval(drawn[who].pairwise_accuracy),
            "over_vader": over,
            "over_vader_ci95": interval(drawn[who].pairwise_accuracy - drawn["vader"].pairwise_accuracy),
            "pearson": float(np.corrcoef(column, ratings)[0, 1]) if varies else None,
            "pearson_ci95": interval(drawn[who].pearson) if varies else None,
        }
    return {
        "texts": len(rows),
        "documents": len(set(documents)),
        "pairs": pairs,
        "single_rater_accuracy": single_rater_accuracy(rows["votes"], args.min_gap),
        "rewards": of_reward,
    }


def bootstrap(scores: ArrayLike, ratings: ArrayLike, documents: Sequence[Hashable], args: argparse.Namespace) -> Drawn:
    """Pairwise accuracy and Pearson's correlation of samples that are drawn by document, with replacement.

    A pair of texts counts as often as both documents are drawn: with the weights w of a sample and the sums R of right
    and T of all pairs between every two documents, the accuracy is `w R w / w T w`. Where each document has one text
    it draws what [`~rlhf_recipes.data.raters.agreement.all_pairs_interval`] works out. (Cluster bootstrap: Davison
    and Hinkley 1997, Bootstrap Methods and their Application, section 3.8.)
    """
    s, y = np.asarray(scores, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    number = {document: place for place, document in enumerate(dict.fromkeys(documents))}
    of_text = np.array([number[document] for document in documents])
    count = len(number)
    generator = np.random.default_rng(args.seed)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=args.samples).astype(np.float32)  # (S, D)
    right, total = (
        ((weights @ sums) * weights).sum(axis=1, dtype=np.float64)
        for sums in between_documents(s, y, of_text, count, args.min_gap)
    )
    a, b = s - s.mean(), y - y.mean()
    moments = np.stack([np.ones_like(a), a, b, a * a, b * b, a * b], axis=1)  # (N, 6)
    of_document = np.zeros((count, 6))
    np.add.at(of_document, of_text, moments)
    n, sum_a, sum_b, square_a, square_b, product = (weights @ of_document).T
    spread = (n * square_a - sum_a**2) * (n * square_b - sum_b**2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Drawn(right / total, (n * product - sum_a * sum_b) / np.sqrt(spread))


def between_documents(
    s: Floats, y: Floats, of_text: NDArray[np.int64], count: int, min_gap: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pairs in the right order and all pairs, summed by the document of the better and of the other text. `(D, D)`"""
    order = np.argsort(of_text, kind="stable")
    s, y, of_text = s[order], y[order], of_text[order]
    starts = np.flatnonzero(np.diff(of_text, prepend=-1))
    right, total = (np.zeros((count, count), dtype=np.float32) for _ in range(2))
    for start in range(0, len(y), CHUNK):
        rows = slice(start, start + CHUNK)
        asked = (y[rows, None] - y[None, :] >= max(min_gap - TOLERANCE, TOLERANCE)).astype(np.float32)
        credit = asked * (0.5 + 0.5 * np.sign(s[rows, None] - s[None, :])).astype(np.float32)
        np.add.at(right, of_text[rows], np.add.reduceat(credit, starts, axis=1))
        np.add.at(total, of_text[rows], np.add.reduceat(asked, starts, axis=1))
    return right, total


def interval(drawn: Floats) -> list[float] | None:
    known = drawn[np.isfinite(drawn)]
    return percentile_interval(known) if len(known) else None


# --- tables ----------------------------------------------------------------------------------------------


def tables(report: Mapping[str, Any]) -> str:
    """Pairwise accuracy and correlation, a column for each dataset, as they may stand in a Markdown page."""
    written = []
    for part, title in (("test", "test splits"), ("whole", "all splits")):
        if not report[part]:
            continue
        for key in ("pairwise_accuracy", "pearson"):
            written += [f"\n{key.replace('_', ' ')}, {title}", ""] + table(report[part], key)
    return "\n".join([*written, ""])


def table(of_dataset: Mapping[str, Any], key: str) -> list[str]:
    names = list(dict.fromkeys(name for dataset in of_dataset.values() for name in dataset["rewards"]))
    lines = [["", *(Path(name).name for name in of_dataset)], ["---"] * (1 + len(of_dataset))]
    if key == "pairwise_accuracy":
        for count in ("texts", "documents", "pairs"):
            lines.append([count, *(f"{dataset[count]:,}" for dataset in of_dataset.values())])
    for name in names:
        lines.append([name, *(cell(dataset["rewards"].get(name, {}), key) for dataset in of_dataset.values())])
    if key == "pairwise_accuracy":
        lines.append(["one human rater", *(f"{d['single_rater_accuracy']:.3f}" for d in of_dataset.values())])
    return [f"| {' | '.join(line)} |" for line in lines]


def cell(figures: Mapping[str, Any], key: str) -> str:
    if figures.get(key) is None:
        return ""
    low, high = figures[f"{key}_ci95"]
    return f"{figures[key]:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
