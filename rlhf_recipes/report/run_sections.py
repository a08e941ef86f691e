"""What the page of one run shows, whatever the recipe: curves, rewards, completions, figures, and how to repeat it.

A recipe is told by what its run has left: a section comes with its files, and is not there without them.
"""

import random
import shlex
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import numpy as np
from markupsafe import Markup

from rlhf_recipes import filenames
from rlhf_recipes.report import words
from rlhf_recipes.report.curves import HELD_OUT, draw_log, quantities
from rlhf_recipes.report.markdown import clean_text, settings_text
from rlhf_recipes.report.page import (
    Answer,
    Cell,
    Commands,
    Fold,
    Grid,
    Page,
    Piece,
    Section,
    Table,
    TextRow,
    Texts,
    Tile,
)
from rlhf_recipes.report.run import Completion, Run, is_mean_of_reward, rewards_of
from rlhf_recipes.report.words import number

EXTREMES = 5  # best and worst completions shown
SAMPLE = 6
ALL_ROWS = 300  # more would make the page heavy; the files have them all

# What a person calls a figure, what it is, and how it is written; whatever else a run wrote has its own name.
FIGURES: dict[str, tuple[str, str, Callable[[Any], Markup]]] = {
    "score": ("Weighted score", "all rewards in the list times their weights, summed", words.plain),
    "objective/scores": ("Score", "weighted sum of all rewards, mean over a rollout", words.plain),
    "reward": ("Reward", "weighted sum of all rewards, mean over a batch", words.plain),
    "objective/kl": ("KL to the reference", "nats per completion", words.plain),
    "kl": ("KL to the reference", "nats", words.plain),
    "pairwise_accuracy": ("Pairs in people's order", "held out; one half is chance", words.percent),
    "single_rater_accuracy": ("One human rater", "the same pairs", words.percent),
    "vader_accuracy": ("VADER", "a lexicon of feelings, the same pairs", words.percent),
    "length_accuracy": ("The longer text wins", "the same pairs", words.percent),
    "rewards/accuracies": ("Pairs in people's order", "the last batch of training", words.percent),
    "pairs": ("Pairs", "", words.figure),
    "pearson": ("Correlation with the rating", "Pearson, 1 at best", words.figure),
    "spearman": ("Rank correlation with the rating", "Spearman, 1 at best", words.figure),
    "mae": ("Mean distance from the rating", "rating points", words.figure),
    "rmse": ("Root mean squared distance", "rating points", words.figure),
    "r2": ("R²", "", words.figure),
    "log_loss": ("Log loss", "nats, 0.69 for a coin", words.figure),
    "base_log_loss": ("Log loss of saying the mean of every text", "nats", words.figure),
    "base_rate": ("Mean label", "", words.figure),
    "ece": ("Expected calibration error", "", words.figure),
    "kendall": ("Order within a list", "Kendall's tau, 1 at best", words.figure),
    "top1_accuracy": ("Best text of a list found", "", words.percent),
    "top1_chance": ("The same by chance", "", words.percent),
    "worst_accuracy": ("Worst text of a list found", "", words.percent),
    "step_accuracy": ("Steps told right from wrong", "", words.percent),
    "step_base_accuracy": ("The same by the more frequent label", "", words.percent),
    "step_f1": ("F1 of the wrong steps", "", words.figure),
    "first_error_rate": ("First wrong step found", "of answers with one", words.percent),
    "steps": ("Steps", "", words.figure),
    "eval_loss": ("Loss, held out", "", words.figure),
    "loss": ("Loss", "of the last batch that was logged", words.figure),
    "mean_token_accuracy": ("Tokens foretold", "tokens that the model holds for the most probable", words.percent),
    "labelled": ("Rows labelled", "", words.figure),
    "abstained": ("Rows without a label", "the model was not sure enough", words.figure),
    "threshold": ("Threshold", "confidence from which on there is a label", words.figure),
    "accuracy": ("Accuracy", "", words.percent),
    "distinct_1": ("Distinct-1", "different words ÷ words, over all completions", words.plain),
    "distinct_2": ("Distinct-2", "different word pairs ÷ word pairs: lower means more repetition", words.plain),
    "completion_length": ("Completion length", "tokens, mean", words.plain),
    "finished": ("Finished", "completions that ended before the length limit", words.percent),
    "prompts": ("Prompts", "", words.figure),
    "train_rows": ("Training rows", "", words.figure),
    "train_seconds": ("Time of training", "", words.duration),
    "seconds": ("Time", "", words.duration),
    "peak_memory_gb": ("Peak memory", "", words.memory),
    "peak_gpu_memory_gb": ("Peak memory of the GPU", "", words.memory),
}
TILES = (
    *("objective/scores", "score", "reward", "rewards/accuracies", "pairwise_accuracy", "eval_loss", "loss"),
    *("objective/kl", "kl", "labelled", "threshold", "accuracy", "mean_token_accuracy", "distinct_2", "finished"),
    *("prompts", "seconds", "peak_memory_gb"),
)
Pair = tuple[Completion, Completion]


def run_page(run: Run) -> Page:
    """The page of one run."""
    sections = [_changes(run), training(run), _rewards(run), _completions(run), points(run), figures(run), repeat(run)]
    return Page(
        title=run.name,
        about=f"{run.recipe} run" if run.recipe else "run",
        headline=_headline(run),
        lead=_lead(run),
        tiles=tiles(run),
        sections=[section for section in sections if section is not None],
    )


def _headline(run: Run) -> Cell:
    """The result in one sentence, as far as the run has one."""
    method = {"ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO", "dpo": "DPO", "sft": "Fine-tuning"}.get(run.recipe, "")
    for key, what in (("objective/scores", "score"), ("reward", "reward"), ("loss", "loss")):
        first, last = run.went(key)
        if first is not None and last is not None:
            began = f"{method}: the" if method else "The"
            went = Markup("{} {} went from {} to {}").format(began, what, words.plain(first), words.plain(last))
            kl = run.metrics.get("objective/kl")
            return went + (Markup(" at a KL of {} nats.").format(words.plain(kl)) if number(kl) is not None else ".")
    if run.curve and "n" in run.curve[-1]:
        point = run.curve[-1]
        sentence = Markup("The best of {} scores {}, {} beyond a single one.")
        values = words.figure(point["n"]), words.plain(point.get("score")), words.signed(point.get("score_gain"))
        return sentence.format(*values)
    score, prompts = run.metrics.get("score"), run.metrics.get("prompts")
    if number(score) is not None and number(prompts) is not None:
        return Markup("A score of {} over {} prompts.").format(words.plain(score), words.figure(prompts))
    if number(run.metrics.get("labelled")) is not None:
        rows = (words.figure(run.metrics.get(key)) for key in ("labelled", "rows"))
        return Markup("{} of {} rows have a label.").format(*rows)
    return f"A run of the recipe {run.recipe}" if run.recipe else "A run"


def _lead(run: Run) -> list[Cell]:
    model, data = (run.settings.get(key) for key in ("model_name_or_path", "dataset_name"))
    said = [f"model {model}" if model else "", f"data {data}" if data else ""]
    places = {key: run.went(key)[1] for key in ("step", "episode")}
    said.append(", ".join(f"{last:,.0f} {key}s" for key, last in places.items() if last))
    lead: list[Cell] = [] if run.metrics else ["This run has no metrics.json: it is under way, or was interrupted."]
    told = "; ".join(clean_text(part) for part in said if part)
    return [*lead, f"{told[0].upper()}{told[1:]}."] if told else lead


def tiles(run: Run, keys: Sequence[str] = TILES, most: int = 8) -> list[Tile]:
    """The figures that matter most, with their interval or what they were at first."""
    found: list[Tile] = []
    for key in keys:
        value = run.metrics.get(key)
        if number(value) is None or FIGURES[key][0] in (tile.label for tile in found):
            continue
        label, note, form = FIGURES[key]
        first, _ = run.went(key)
        bounds = run.metrics.get(f"{key}_ci95")
        detail: Cell = note
        if bounds:
            detail = Markup("95% interval {} to {}").format(*map(form, bounds))
        elif first is not None:
            detail = Markup("{} at first").format(form(first))
        found.append(Tile(label, form(value), detail))
    return found[:most]


# --- Sections ----------------------------------------------------------------------------------------------


def _changes(run: Run) -> Section | None:
    """Every quantity that is drawn, at first and at last, in training and on what was held out."""
    keys = quantities(run)
    went = {key: (*run.went(key), *run.went(HELD_OUT + key)) for key in keys}
    if all(first is held_out is None for first, _, held_out, _ in went.values()):
        return None
    evaluates = any(last is not None for *_, last in went.values())
    header = ["figure", "first", "last", *(["held out, first", "held out, last"] if evaluates else [])]
    rows = [[name, *map(words.figure, went[key])][: len(header)] for key, (name, _) in keys.items()]
    table = Table("Before and after", header, rows, range(1, len(header)), notes=[unit for _, unit in keys.values()])
    lead = "What was logged first and last: how the model was when training began, and how it was at the end."
    return Section("changes", "What changed", [table], lead)


def training(run: Run) -> Section | None:
    """One small figure for each quantity that was logged."""
    if not (pictures := draw_log(run)):
        return None
    lead = "Pale lines are single values, strong lines their running mean."
    return Section("training", "Training", [Grid(pictures, 3)], lead)


def _rewards(run: Run) -> Section | None:
    """Each reward with its weight, mean, spread and share: from the log, or from the completions."""
    weights = {reward.name: reward.weight for reward in rewards_of(run.settings)}
    logged = [key for row in run.log_history for key in row]
    means = {
        key.removeprefix("reward/"): (key, f"{key}/std", f"{key}/share") for key in logged if is_mean_of_reward(key)
    }
    means |= {
        key.removeprefix("rewards/").removesuffix("/mean"): (key, key.removesuffix("mean") + "std", "")
        for key in logged
        if key.startswith("rewards/") and key.endswith("/mean")
    }
    if means:
        rows = [
            [name, weights.get(name), *run.went(keys[0]), run.went(keys[1])[1], run.went(keys[2])[1]]
            for name, keys in means.items()
        ]
        header = ["reward", "weight", "mean, first", "mean, last", "spread", "share"]
    else:
        shares = _shares(run, weights)
        names = [name for name in run.score_names if run.scores(name) and name in (weights or run.score_names)]
        rows = [
            [name, weights.get(name), fmean(run.scores(name)), pstdev(run.scores(name)), shares.get(name)]
            for name in names
        ]
        header = ["reward", "weight", "mean", "spread", "share"]
    if not rows or run.recipe == "label":
        return None
    shown = [[words.breakable(str(row[0])), *map(words.figure, row[1:-1]), words.percent(row[-1])] for row in rows]
    caption = (
        "Spread is the standard deviation over completions. Share is how much of what tells one completion from "
        "another the reward decides, weighted; shares add up to 100%."
    )
    table = Table("Rewards", header, shown, range(1, len(header)), caption)
    return Section("rewards", "Rewards", [table], "The score of a completion is the weighted sum of these.")


def _shares(run: Run, weights: Mapping[str, float]) -> dict[str, float]:
    """Of each reward the covariance of its weighted value with the sum, over the variance of the sum."""
    names = [name for name in weights if run.scores(name)]
    values = np.array([[weights[name] * (c.scores.get(name) or 0.0) for c in run.completions] for name in names])
    if not len(names) or not values.sum(axis=0).var():
        return {}
    centered = values - values.mean(axis=1, keepdims=True)
    total = centered.sum(axis=0)
    return {name: float(of @ total / (total @ total)) for name, of in zip(names, centered, strict=True)}


def _completions(run: Run) -> Section | None:
    """The best, the worst, some drawn at random, and all."""
    if not run.completions:
        return None
    rows = [TextRow(row.prompt, [answer(row)]) for row in run.completions]
    groups = (("The best", "Those with the highest score."), ("The worst", "Those with the lowest score."))
    texts = chosen_texts(rows, _weighted(run), ("Completion",), groups, "completions", run.settings.get("seed"))
    return Section("completions", "Completions", texts, "Texts as they were written, with what is known of each.")


def chosen_texts(
    rows: Sequence[TextRow],
    values: Sequence[float | None],
    names: Sequence[str],
    groups: Sequence[tuple[str, str]],
    what: str,
    seed: Any = 0,
) -> list[Texts]:
    """The rows with the largest and with the smallest value, some drawn at random, and all of them, folded.

    Args:
        groups (`Sequence[tuple[str, str]]`): How the first two are called, and a sentence about each.
        what (`str`): What the rows are, in a sentence.
    """
    seed = int(number(seed) or 0)
    scored = {place: value for place, value in enumerate(values) if value is not None}
    ordered = sorted(scored, key=lambda place: -scored[place])
    half = min(EXTREMES, len(ordered) // 2)  # of a few, none must be shown as best and as worst
    picked = sorted(random.Random(seed).sample(range(len(rows)), min(SAMPLE, len(rows))))
    chosen = [(title, lead, places) for (title, lead), places in zip(groups, (ordered, ordered[::-1]), strict=True)]
    texts = [
        Texts(title, names, [rows[place] for place in places[:half]], lead) for title, lead, places in chosen if half
    ]
    lead = f"{len(picked)} of all {len(rows)} {what}, drawn with seed {seed}, whatever became of them."
    texts.append(Texts("Drawn at random", names, [rows[place] for place in picked], lead))
    every = rows[:ALL_ROWS]
    count = f"All {len(rows)}" if len(every) == len(rows) else f"The first {len(every)} of {len(rows)}"
    return [*texts, Texts(f"All {what}", names, every, folded=f"{count} {what}, in the order of the file")]


def _weighted(run: Run) -> list[float | None]:
    """The score of each completion: its own, or the weighted sum of its rewards, or the first that it has."""
    weights = {reward.name: reward.weight for reward in rewards_of(run.settings)}
    first = next((name for name in ("model_score", "chosen_score", *run.score_names) if run.scores(name)), "")
    found: list[float | None] = []
    for row in run.completions:
        parts = [weight * (row.scores[name] or 0.0) for name, weight in weights.items() if name in row.scores]
        found.append(row.score if row.score is not None else sum(parts) if parts else row.scores.get(first))
    return found


def points(run: Run) -> Section | None:
    """The curve of a recipe that measures at several sizes, as a table."""
    curve = [_flat(point) for point in run.curve]
    known = dict.fromkeys(key for point in curve for key in point)
    keys = [key for key in known if all(number(point.get(key)) is not None for point in curve)]
    if not keys:
        return None
    every = max(1, len(curve) // 24)
    chosen = [point for place, point in enumerate(curve) if place % every == 0 or point is curve[-1]]
    rows = [[words.figure(point[key]) for key in keys] for point in chosen]
    table = Table("Point by point", [key.replace("_", " ") for key in keys], rows, range(1, len(keys)))
    return Section("curve", "The curve", [table])


def _flat(point: Mapping[str, Any]) -> dict[str, Any]:
    """Figures within figures under one name."""
    flat: dict[str, Any] = {}
    for key, value in point.items():
        inner = _flat(value) if isinstance(value, Mapping) else None
        flat |= {key: value} if inner is None else {f"{key}, {name}": of for name, of in inner.items()}
    return flat


def figures(run: Run) -> Section | None:
    """Every figure of metrics.json."""
    if not any(number(value) is not None for value in run.metrics.values()):
        return None
    return Section("figures", "Figures", [metrics_table(run.metrics, "Every figure of metrics.json")])


def metrics_table(metrics: Mapping[str, Any], title: str) -> Table:
    """Flat figures: the known ones first and under a readable name, whatever else a run wrote under its own."""
    keys = [key for key in FIGURES if key in metrics] + [key for key in metrics if key not in FIGURES]
    keys = [key for key in keys if number(metrics[key]) is not None]
    rows = [[label_of(key), _with_interval(metrics, key)] for key in keys]
    return Table(title, ["Figure", "Value"], rows, (1,), notes=[FIGURES.get(key, ("", ""))[1] for key in keys])


def _with_interval(metrics: Mapping[str, Any], key: str) -> Cell:
    form, bounds = FIGURES.get(key, ("", "", words.figure))[2], metrics.get(f"{key}_ci95")
    value = form(metrics[key])
    return Markup("{} ({} to {})").format(value, *map(form, bounds)) if bounds else value


def repeat(run: Run) -> Section | None:
    """The command, the machine, the versions, and the settings."""
    pieces: list[Piece] = []
    if run.recipe and run.config:
        processes = number(run.environment.get("processes")) or 1
        program = f"accelerate launch --num_processes {processes:.0f}" if processes > 1 else "python"
        config = shlex.quote(str(run.folder / filenames.CONFIG))
        pieces.append(Commands([clean_text(f"{program} recipes/{run.recipe}.py --config {config}")]))
    pieces += machine_tables({"This run": run.metrics}, run.environment)
    if run.config:
        pieces.append(Fold("The settings of the run", settings_text(run.settings)))
    lead = "From the folder of the project; options on the command line override those of the file."
    return Section("repeat", "How to repeat it", pieces, lead if run.config else "") if pieces else None


def machine_tables(stages: Mapping[str, Mapping[str, Any]], environment: Mapping[str, Any]) -> list[Grid]:
    """Time and memory of each stage, and machine and versions, side by side."""
    spent = [(name, of.get("seconds"), of.get("peak_memory_gb")) for name, of in stages.items()]
    rows = [[name, words.duration(s), words.memory(m)] for name, s, m in spent if (s, m) != (None, None)]
    tables = [Table("Time and memory", ["Stage", "Time", "Peak memory"], rows, (1, 2))] if rows else []
    versions = environment.get("versions")
    known = {key: value for key, value in environment.items() if key != "versions" and value is not None}
    known |= versions if isinstance(versions, dict) else {}
    if known:
        cells = [[name, str(value)] for name, value in known.items()]
        tables.append(Table("Machine and versions", ["Name", "Value"], cells, (1,)))
    return [Grid(tables)] if tables else []


# --- Texts -------------------------------------------------------------------------------------------------


def answer(completion: Completion) -> Answer:
    """A completion with what is known of it."""
    named = ([("score", completion.score)] if completion.score is not None else []) + [*completion.scores.items()]
    facts = [f"{name} {'–' if value is None else words.text(value)}" for name, value in named]
    if completion.tokens is not None:
        end = "" if completion.finished is None else ", ended" if completion.finished else ", cut"
        facts.append(f"{completion.tokens} tokens{end}")
    return Answer(completion.text, facts)


def paired(pair: Pair, name: str | None) -> float | None:
    """How much one score changed; `None` where either completion has no such score."""
    old, new = (completion.of(name) for completion in pair)
    return None if old is None or new is None else new - old


def label_of(key: str) -> Cell:
    return FIGURES[key][0] if key in FIGURES else words.breakable(key)
