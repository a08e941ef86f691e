r"""What a step of training a reward model costs here, and in TRL's RewardTrainer as its own script uses it.

    OMP_NUM_THREADS=1 python benchmarks/reward_training.py
    OMP_NUM_THREADS=1 python benchmarks/reward_training.py --model starter/smollm2-135m-instruct --pairs 8 \
        --batch_size 2

Both train the same model in the same precision on the same pairs of the starter kit's ratings, with the same number of
texts in a batch and without gradient checkpointing. TRL gets columns of text, as `trl/scripts/reward.py` hands them
over: its tokenization (with the end-of-sequence token that it adds), its collator, random order. Ours are the parts of
recipes/reward.py: tokens, length groups. The ways:

    full, lora                   on both sides; LoRA of rank 16 on the layers that PEFT chooses for the model
    frozen                       ours: the embeddings and the lower half of the layers stay as they are
    pairs_in_batch               ours: as many texts, each compared with all others of its batch

Every run is a process of its own, so that the most memory it used is its own; the ways take turns, so that a passing
load of other programs falls on all of them. `texts_per_cpu_second` is texts through training by the processor time of
the process (resource.getrusage) and says about the same on a busy machine; `texts_per_second` is by the clock.
`training_memory_mb` is how much the peak of resident memory grew from after loading to after training. Each is the
median of the repeats, with the least and the most. `ratios` are ours by TRL's of the same way (frozen and
pairs_in_batch by TRL's full), medians over the repeats. `padding_share` is the part of all positions that is padding;
`padding` says it of one epoch over all ratings, without training: of pairs and of single texts, in random order and
grouped by length.
Progress goes to stderr; the last line, on stdout, is one JSON object.
"""

import argparse
import contextlib
import json
import multiprocessing
import platform
import resource
import statistics
import sys
import tempfile
import time
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it sets threads and telemetry before a library reads them

# isort: split
import datasets
import torch
import trl
from datasets import Dataset
from peft import LoraConfig
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.utils import logging as transformers_logging

from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.pairs import draw_pairs
from rlhf_recipes.modeling.loading import ModelArguments, freeze_lower_layers, load_reward_model, load_tokenizer
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.examples import example_rows, pair_rows, settings_for
from rlhf_recipes.reward_modeling.losses import make_objective
from rlhf_recipes.reward_modeling.trainer import FeedbackTrainer

RUNS = (
    ("trl", "full"), ("ours", "full"), ("trl", "lora"), ("ours", "lora"), ("ours", "frozen"),
    ("ours", "pairs_in_batch"),
)  # fmt: skip
MAX_LENGTH = 128  # no rating's text is longer, so that nobody leaves out or cuts one


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_name", default="starter/movie-ratings", help="Ratings, of which pairs are drawn.")
    parser.add_argument("--model", default="starter/minilm-l6", help="Encoder or decoder, a folder.")
    parser.add_argument("--pairs", type=int, default=128, help="Pairs in one run.")
    parser.add_argument("--batch_size", type=int, default=8, help="Pairs in a batch, of two texts each.")
    parser.add_argument("--repeats", type=int, default=3, help="Runs of each way.")
    parser.add_argument("--bf16", action="store_true", help="Train in bfloat16 mixed precision.")
    args = parser.parse_args(argv)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlhf_recipes.reward_modeling.trainer", "trl.trainer.reward_trainer"])
    found: dict[tuple[str, str], list[dict[str, float]]] = {run: [] for run in RUNS}
    for repeat in range(args.repeats):
        for run in RUNS:
            with context.Pool(1) as pool:
                found[run].append(pool.apply(measured, (*run, vars(args))))
            said = ", ".join(f"{name} {value:.4g}" for name, value in found[run][-1].items())
            print(f"{repeat + 1}/{args.repeats} {run[0]:>4} {run[1]:<15} {said}", file=sys.stderr, flush=True)
    print(json.dumps(report(found, args) | {"padding": padding_of_an_epoch(args)}))


def padding_of_an_epoch(args: argparse.Namespace, batch_size: int = 16) -> dict[str, float]:
    """Share of padding in batches of 16 pairs or 32 texts, all ratings being used once."""
    tokenizer = load_tokenizer(args.model)
    rows = load_rows(args.dataset_name, "train")
    of_text = [len(ids) for ids in tokenizer(list(rows["completion"])).input_ids]
    pairs = draw_pairs(list(rows["completion"]), rows["score"], seed=0)
    of_pair = [(of_text[first], of_text[second]) for first, second in pairs]
    kinds: dict[str, list[tuple[int, ...]]] = {"pairs": of_pair, "texts": [(length,) for length in of_text]}
    result = {}
    for kind, lengths in kinds.items():
        size = batch_size if kind == "pairs" else 2 * batch_size
        longest = [max(row) for row in lengths]
        grouped = LengthGroupedSampler(size, lengths=longest, generator=torch.Generator().manual_seed(0))
        shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0)).tolist()
        for order, name in ((shuffled, "random"), (list(grouped), "group_by_length")):
            batches = [[lengths[row] for row in order[start : start + size]] for start in range(0, len(order), size)]
            real = sum(sum(row) for row in lengths)
            filled = sum(max(map(max, batch)) * sum(map(len, batch)) for batch in batches)
            result[f"{kind} {name}"] = round(1 - real / filled, 3)
    return result


def report(found: dict[tuple[str, str], list[dict[str, float]]], args: argparse.Namespace) -> dict[str, Any]:
    """What the last line says."""
    result: dict[str, Any] = {**vars(args), "threads": torch.get_num_threads(), "machine": platform.machine()}
    result["runs"] = {
        f"{side} {way}": {name: spread([run[name] for run in runs]) for name in runs[0]}
        for (side, way), runs in found.items()
    }
    result["ratios"] = {}
    for (side, way), runs in found.items():
        if side == "ours":
            theirs = found.get(("trl", way), found["trl", "full"])
            result["ratios"][way] = {
                name: round(statistics.median(a[name] / b[name] for a, b in zip(runs, theirs, strict=True)), 3)
                for name in ("texts_per_second", "texts_per_cpu_second", "training_memory_mb", "peak_memory_mb")
            }
    return result


def spread(values: list[float]) -> list[float]:
    """Median, least and most."""
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]


def measured(side: str, way: str, options: dict[str, Any]) -> dict[str, float]:
    """One training in this process, and what it took."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    args = argparse.Namespace(**options)
    # Trainer prints what it logs; stdout is for the last line alone.
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        trainer = (of_trl if side == "trl" else ours)(way, args, folder)
        preparation = time.process_time() - start
        padding, texts, compared = look_at_batches(trainer)
        before = peak_memory_mb()
        cpu, wall = time.process_time(), time.perf_counter()
        trainer.train()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    figures = {
        "texts_per_second": texts / wall,
        "texts_per_cpu_second": texts / cpu,
        "preparation_cpu_seconds": preparation,
        "peak_memory_mb": peak_memory_mb(),
        "training_memory_mb": peak_memory_mb() - before,
        "padding_share": padding,
        "texts": texts,
        "pairs_per_text": compared / texts,
    }
    return {name: float(value) for name, value in figures.items()}


def peak_memory_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 * (2**20 / 1e6)


def look_at_batches(trainer: Any) -> tuple[float, int, float]:
    """Share of padding in one epoch's batches, how many texts they hold, and how many pairs are compared."""
    real = positions = texts = 0
    compared = 0.0
    for batch in trainer.get_train_dataloader():
        mask = batch["attention_mask"]
        real, positions, texts = real + int(mask.sum()), positions + mask.numel(), texts + len(mask)
        is_list = "targets" in batch
        compared += float(trainer.objective.count(batch["targets"])) if is_list else len(mask) / 2
    return 1 - real / positions, texts, compared


def pairs_of_text(args: argparse.Namespace) -> tuple[Dataset, Dataset]:
    """Ratings in which no text comes twice, and the pairs that both sides train on."""
    rows = load_rows(args.dataset_name, "train").shuffle(seed=0).select(range(2 * args.pairs))
    texts = list(rows["completion"])
    pairs = draw_pairs(texts, rows["score"], min_gap=0.0, seed=0)[: args.pairs]
    sides = {name: [texts[row] for row in pairs[:, place]] for place, name in enumerate(("chosen", "rejected"))}
    return rows, Dataset.from_dict(sides)


def arguments(kind: Any, args: argparse.Namespace, folder: str, batch_size: int, **options: Any) -> Any:
    return kind(
        output_dir=folder, per_device_train_batch_size=batch_size, num_train_epochs=1, learning_rate=1e-5,
        max_length=MAX_LENGTH, bf16=args.bf16, use_cpu=not torch.cuda.is_available(), gradient_checkpointing=False,
        save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True, seed=0, **options,
    )  # fmt: skip


def of_trl(way: str, args: argparse.Namespace, folder: str) -> Any:
    """As `trl/scripts/reward.py`: a name and texts."""
    tokenizer = load_tokenizer(args.model)
    # Without an end-of-sequence token, as encoders are, TRL fails where it appends one.
    end = {} if tokenizer.eos_token else {"eos_token": tokenizer.sep_token}
    lora = LoraConfig(r=16, lora_alpha=32, task_type="SEQ_CLS")
    settings = arguments(trl.RewardConfig, args, folder, args.batch_size, **end)
    _, pairs = pairs_of_text(args)
    return trl.RewardTrainer(args.model, settings, train_dataset=pairs, peft_config=lora if way == "lora" else None)


def ours(way: str, args: argparse.Namespace, folder: str) -> Any:
    """The parts of recipes/reward.py."""
    lora = {"use_peft": True, "lora_r": 16, "lora_alpha": 32}
    model_args = ModelArguments(model_name_or_path=args.model, **(lora if way == "lora" else {}))
    tokenizer = load_tokenizer(args.model)
    torch.manual_seed(0)
    model = load_reward_model(model_args, tokenizer)
    freeze_lower_layers(model, model.config.num_hidden_layers // 2 if way == "frozen" else 0)
    settings = settings_for(tokenizer, model, MAX_LENGTH)
    ratings, pairs = pairs_of_text(args)
    if way == "pairs_in_batch":
        objective = make_objective("pairs_in_batch")
        rows = example_rows(ratings, objective, tokenizer, settings)
        training = arguments(RewardConfig, args, folder, 2 * args.batch_size)
        return FeedbackTrainer(model, training, objective, tokenizer, train_dataset=rows)
    return trl.RewardTrainer(
        model,
        arguments(RewardConfig, args, folder, args.batch_size),
        PairCollator(tokenizer),
        pair_rows(pairs, tokenizer, settings),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    main()
