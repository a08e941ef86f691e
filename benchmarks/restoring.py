r"""Does PPO with BLEU as its reward raise BLEU? Held-out sentences, restored before and after, and merely copied.

    python -m rlhf_recipes.data.starter
    python -m rlhf_recipes.data.corruption --dataset_name starter/movie-ratings --output_dir starter/restoring
    python recipes/sft.py --config recipes/configs/restoring_sft.yaml
    accelerate launch recipes/ppo.py --config recipes/configs/restoring_ppo.yaml
    python benchmarks/restoring.py --output runs/restoring/report --plot docs/images/restoring.png

Three answers to each corrupted sentence of the test split: the corrupted sentence itself (`copy`), and what the policy
writes before and after PPO, both greedily and sampled at the temperature of the training. For each: corpus BLEU and
chrF of sacrebleu (0 to 100, tokenizer 13a), mean sentence BLEU (0 to 1, effective order: the reward) and the share of
sentences restored exactly. For differences: 95% percentile intervals of a paired bootstrap over the test sentences
(Koehn 2004, Statistical Significance Tests for Machine Translation Evaluation).

Progress and tables go to stderr; the last line, on stdout, is one JSON object. `--output` is a folder for the same and
for every sentence. `--plot` draws the run's own held-out BLEU, of the validation split, over episodes.
"""

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import numpy as np
import torch
import yaml
from datasets import Dataset
from sacrebleu.metrics import BLEU, CHRF
from tiny_tasks import machine, save_figure

from rlhf_recipes.data.loading import load_rows, sample_rows
from rlhf_recipes.data.prompts import tokenize_prompts
from rlhf_recipes.modeling.generation import LocalGenerator, sampling_config, stable_key
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_tokenizer
from rlhf_recipes.outputs import write_json, write_jsonl
from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.statistics import paired_gain

DIFFERENCES = (("after", "before"), ("after", "copy"), ("before", "copy"))
EFFECTIVE = BLEU(effective_order=True)  # the reward's own BLEU; 13a is the tokenizer of both
CORPUS = BLEU()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="runs/restoring/sft", help="The policy that PPO began with.")
    parser.add_argument("--after", type=Path, default=Path("runs/restoring/ppo"), help="The folder of the PPO run.")
    parser.add_argument("--dataset_name", default="starter/restoring")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max_samples", type=int, help="Only that many of the sentences. Default: all.")
    parser.add_argument("--draws", type=int, default=10_000, help="Resamples of the bootstrap.")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="Keep the report and every sentence.")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="Draw BLEU over episodes.")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Decode, score and compare."""
    start = time.perf_counter()
    rows = sample_rows(load_rows(args.dataset_name, args.split), args.max_samples)
    run = yaml.safe_load((args.after / "config.yaml").read_text(encoding="utf-8"))
    # A saved config leaves out what is as it is by default.
    run = {name: field.default for name, field in PPOConfig.__dataclass_fields__.items()} | run
    temperature, longest = run["temperature"], run["max_completion_length"]
    answers = {"copy": list(rows["corrupted"])}
    for name, folder in (("before", args.before), ("after", str(args.after))):
        for way, heat in ((name, None), (f"{name}_sampled", temperature)):
            answers[way] = restore(folder, rows, longest, heat, args.batch_size)
    references = list(rows["reference"])
    report = {
        "benchmark": "restoring",
        "split": args.split,
        "sentences": len(rows),
        "temperature": temperature,
        "systems": {name: figures(texts, references) for name, texts in answers.items()},
        "differences": differences(answers, references, args.draws),
        "machine": machine(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    sys.stderr.write(tables(report))
    if args.output:
        write_json(args.output / "report.json", report)
        columns = {"corrupted": rows["corrupted"], "reference": references, **answers}
        write_jsonl(args.output / "sentences.jsonl", list(Dataset.from_dict(columns)))
    if args.plot:
        plot(args.after, run, temperature, args.plot)
    return report


def restore(folder: str, rows: Dataset, longest: int, temperature: float | None, batch_size: int) -> list[str]:
    """What the policy writes for each prompt: greedily, or sampled with noise that depends on the row alone."""
    policy = load_policy(ModelArguments(model_name_or_path=folder), is_trainable=False).eval()
    tokenizer = load_tokenizer(folder, padding_side="left")
    config = sampling_config(tokenizer, policy, longest, temperature or 1.0)
    if hasattr(policy, "merge_and_unload"):
        policy = policy.merge_and_unload()
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    generator = LocalGenerator(policy)
    prompt_ids = tokenize_prompts(rows["prompt"], tokenizer)
    texts = []
    for start in range(0, len(rows), batch_size):
        batch = tokenizer.pad({"input_ids": prompt_ids[start : start + batch_size]}, return_tensors="pt")
        batch = {name: tensor.to(policy.device) for name, tensor in batch.items()}
        if temperature is None:
            greedy = {"do_sample": False, "max_new_tokens": longest, "pad_token_id": config.pad_token_id}
            with torch.no_grad():
                written = policy.generate(**batch, **greedy, eos_token_id=config.eos_token_id)
            written = written[:, batch["input_ids"].shape[1] :]
        else:
            keys = [stable_key(0, "evaluate", row) for row in range(start, start + len(batch["input_ids"]))]
            written = generator.generate(batch["input_ids"], batch["attention_mask"], config, keys).completion_ids
        texts += [text.strip() for text in tokenizer.batch_decode(written, skip_special_tokens=True)]
        sys.stderr.write(f"\r{folder}, {temperature or 'greedy'}: {len(texts)} of {len(rows)} ")
    sys.stderr.write("\n")
    return texts


# --- Scores ---------------------------------------------------------------------------------------


def figures(texts: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """What the columns of the table are."""
    found = {
        "bleu": CORPUS.corpus_score(texts, [references]).score,
        "chrf": CHRF().corpus_score(texts, [references]).score,
        "sentence_bleu": mean_sentence_bleu(texts, references),
        "exact": sum(a == b for a, b in zip(texts, references, strict=True)) / len(texts),
    }
    return {name: round(value, 4) for name, value in found.items()}


def sentence_bleu(texts: Sequence[str], references: Sequence[str]) -> list[float]:
    pairs = zip(texts, references, strict=True)
    return [EFFECTIVE.sentence_score(text, [reference]).score / 100 for text, reference in pairs]


def mean_sentence_bleu(texts: Sequence[str], references: Sequence[str]) -> float:
    return float(np.mean(sentence_bleu(texts, references)))


def sufficient_statistics(texts: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """All that corpus BLEU depends on, a row for each sentence: matches and totals of four orders, two lengths."""
    scores = [EFFECTIVE.sentence_score(text, [reference]) for text, reference in zip(texts, references, strict=True)]
    return np.array([[*score.counts, *score.totals, score.sys_len, score.ref_len] for score in scores])


def bleu_of(statistics: np.ndarray) -> float:
    """Corpus BLEU from the sum of the sentences' statistics."""
    numbers = [int(number) for number in statistics]
    return CORPUS.compute_bleu(numbers[:4], numbers[4:8], *numbers[8:], smooth_method="exp").score


def differences(
    answers: Mapping[str, Sequence[str]], references: Sequence[str], draws: int, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Differences of corpus and mean sentence BLEU: every draw takes the same sentences for both systems."""
    names = ("copy", "before", "after", "before_sampled", "after_sampled")
    of_sentence = {name: sufficient_statistics(answers[name], references) for name in names}
    count = len(references)
    times = np.random.default_rng(seed).multinomial(count, [1 / count] * count, size=draws)  # (draws, sentences)
    drawn = {name: np.array([bleu_of(row) for row in times @ each]) for name, each in of_sentence.items()}
    whole = {name: bleu_of(each.sum(axis=0)) for name, each in of_sentence.items()}
    by_sentence = {name: sentence_bleu(answers[name], references) for name in names}
    found = {}
    for first, second in (*DIFFERENCES, ("after_sampled", "before_sampled"), ("after_sampled", "copy")):
        low, high = np.percentile(drawn[first] - drawn[second], [2.5, 97.5])
        gain = paired_gain(by_sentence[second], by_sentence[first])
        found[f"{first} - {second}"] = {
            "bleu": round(whole[first] - whole[second], 3),
            "ci95": [round(float(low), 3), round(float(high), 3)],
            "sentence_bleu": round(gain["gain"], 4),
            "sentence_bleu_ci95": [round(bound, 4) for bound in gain["gain_ci95"]],
        }
    return found


def tables(report: Mapping[str, Any]) -> str:
    """The report for people, in Markdown."""
    lines = ["| | corpus BLEU | chrF | mean sentence BLEU | restored exactly |", "|---|---|---|---|---|"]
    for name, found in report["systems"].items():
        lines.append(
            f"| {name} | {found['bleu']:.2f} | {found['chrf']:.2f} | {found['sentence_bleu']:.4f} "
            f"| {found['exact']:.1%} |"
        )
    lines += ["", "| difference | corpus BLEU | 95% interval | mean sentence BLEU | 95% interval |"]
    lines += ["|---|---|---|---|---|"]
    for name, found in report["differences"].items():
        low, high = found["ci95"]
        least, most = found["sentence_bleu_ci95"]
        lines.append(
            f"| {name} | {found['bleu']:+.2f} | {low:+.2f} to {high:+.2f} "
            f"| {found['sentence_bleu']:+.4f} | {least:+.4f} to {most:+.4f} |"
        )
    return "\n".join(lines) + "\n"


# --- The curve ------------------------------------------------------------------------------------


def plot(folder: Path, run: Mapping[str, Any], temperature: float, file: Path) -> None:
    """Mean sentence BLEU over episodes: of the rollouts, of held-out prompts, and of copying these."""
    history = json.loads((folder / "log_history.json").read_text(encoding="utf-8"))
    name = next(key for entry in history for key in entry if key.lower() == "reward/bleu")
    rollouts = [entry for entry in history if name in entry]
    size = rollouts[0]["episode"]
    per_step = size / rollouts[0]["step"]  # only the entries of training say how many episodes there were
    trained = [(entry["episode"] - size, entry[name]) for entry in rollouts]  # written before it is learned from
    held_out = [(entry["step"] * per_step, entry[f"eval_{name}"]) for entry in history if f"eval_{name}" in entry]
    rows = sample_rows(load_rows(run["dataset_name"], run["dataset_test_split"]), run.get("max_eval_samples"))
    copied = mean_sentence_bleu(rows["corrupted"], rows["reference"])

    def paint(axes: Any, title: str) -> None:
        axes.plot(*zip(*trained, strict=True), color="C0", linewidth=1, alpha=0.35, label="rollouts of training")
        axes.plot(*zip(*held_out, strict=True), color="C0", linewidth=2, marker="o", markersize=4, label="held out")
        axes.axhline(copied, color="0.4", linewidth=1.2, linestyle=(0, (4, 2)), label="held out, input copied")
        axes.set(xlabel="episodes", ylabel="mean sentence BLEU (0 to 1)")
        axes.set_title(title, fontsize=10)
        axes.legend(loc="lower right", fontsize=8)

    title = f"Restored sentences, sampled at temperature {temperature:g}"
    save_figure(file, [(paint, title)], columns=1)


if __name__ == "__main__":
    main()
