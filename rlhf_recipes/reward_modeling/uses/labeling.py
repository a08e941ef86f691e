"""Labels for data that nobody has labelled: what a reward model says, how sure it is, and where it says nothing.

```
completion [, prompt]           unpaired: label 1 (good) or 0      ratings: score, as the reward gives it
chosen, rejected [, prompt]     pairs: target, the chance that the one named chosen is better; the better is chosen
first, second [, prompt]        the same, where the names shall not say what is better
```
What is written is feedback again, which `rlhf_recipes.data.feedback` reads. Every row that came in comes out. Where
the model abstains `abstained` is true, `reason` says why, and label, score or target are empty, so that no training
takes a doubt for an answer.
"""

import logging
import os
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from datasets import Dataset, Value

from rlhf_recipes.data.columns import is_blank, prompts_of, require_columns
from rlhf_recipes.data.feedback.read import convert, normalize
from rlhf_recipes.data.feedback.recognize import recognize
from rlhf_recipes.data.loading import load_rows, sample_rows
from rlhf_recipes.data.preprocessing import normalize_text
from rlhf_recipes.outputs import write_jsonl
from rlhf_recipes.reward_modeling.examples import in_share
from rlhf_recipes.reward_modeling.uses.candidates import score_in_chunks
from rlhf_recipes.reward_modeling.uses.confidence import Evidence, Known, Method, Verdicts, is_right
from rlhf_recipes.reward_modeling.uses.thresholds import coverage_curve
from rlhf_recipes.rewards.weighted_sum import WeightedSum
from rlhf_recipes.statistics import Floats, linked
from rlhf_recipes.texts import Text, as_text

logger = logging.getLogger(__name__)
LabelAs = Literal["unpaired", "ratings", "pairs"]
SIDES = (("completion",), ("chosen", "rejected"), ("first", "second"))
SUFFIXES = (".jsonl", ".csv", ".parquet")
ROW = "number_of_the_row"  # a column of our own, for rows that are found again after some are left out

# Columns that say something of the text already; beside new labels they would make the file another format.
OF_FEEDBACK = (
    "score", "votes", "label", "labels", "target", "margin", "chosen_votes", "rejected_votes", "clicks", "views",
    "dwell_seconds", "scores", "objectives", "completions", "ranks", "best", "worst",
)  # fmt: skip
OF_OURS = ("confidence", "probability", "agreement", "spread", "abstained", "reason", "swapped", "model_score",
           "chosen_score", "rejected_score")  # fmt: skip


# --- rows --------------------------------------------------------------------------------------------------


def read_rows(name: str, split: str, config: str | None = None, count: int | None = None) -> Dataset:
    """Load rows to label. Pairs whose prompt stands inside the answers (HH-RLHF) get it in a column of its own.

    Only there can rows be left out, with a warning: where such a dialogue cannot be split.
    """
    dataset = sample_rows(load_rows(name, split, config), count)
    if sides_of(dataset) == ("chosen", "rejected") and recognize(dataset).inside is not None:
        dataset = normalize(dataset)[0]
    return dataset


# --- what the rewards say --------------------------------------------------------------------------------


def sides_of(dataset: Dataset) -> tuple[str, ...]:
    """The columns with the texts: `("completion",)`, or two of a pair.

    Raises:
        `ValueError`: if there are none.
    """
    return require_columns(
        dataset, [side for side in SIDES if set(side) <= set(dataset.column_names)] or SIDES, "A label"
    )


def evidence_of(rewards: WeightedSum, dataset: Dataset, ensemble: bool = False, chunk_size: int = 256) -> Evidence:
    """Score the texts or pairs of a dataset, about `chunk_size` rows at a time.

    Of an `ensemble`, whose members measure the same on the same scale, the weighted mean counts instead of the sum.

    Raises:
        `ValueError`: if a weight of an ensemble is not above 0, or a member says nothing of a row.
        `RewardError`: if a reward fails.
    """
    weights = np.array(list(rewards.weights_at(1.0).values()))
    if ensemble and (len(weights) < 2 or weights.min() <= 0):
        raise ValueError(
            f"An ensemble needs two rewards or more, each with a weight above 0, and not {rewards.names} with the "
            f"weights {weights.tolist()}."
        )
    plain = dataset.with_format(None)
    sides = sides_of(plain)
    texts = {side: list(plain[side]) for side in sides}
    there = [row for row in range(len(plain)) if not any(is_blank(texts[side][row], side, row) for side in sides)]
    if not there:
        raise ValueError(f"All {len(plain)} rows have a blank text, so there is nothing to label.")
    members, scores = [], []
    for side in sides:
        totals, parts = _scored(rewards, plain, texts[side], there, chunk_size)
        scores.append(totals / weights.sum() if ensemble else totals)
        members.append(parts)
    if np.isnan(members[0][:, there]).any() and ensemble:
        raise ValueError("A member of the ensemble says nothing of some rows; each must apply to every row.")
    if len(sides) == 1:
        return Evidence(scores[0], members[0], scores)
    return Evidence(scores[0] - scores[1], members[0] - members[1], scores)


def warn_of_ratings(rewards: WeightedSum, method: Method) -> None:
    """Say so where a sigmoid is to read ratings: a reward model is trained on differences of logits."""
    names = [
        name
        for name, func in zip(rewards.names, rewards.reward_funcs, strict=True)
        if getattr(getattr(func, "reward", func), "calibration", None) is not None
    ]
    if names and method == "sigmoid":
        logger.warning(
            "%s gives calibrated ratings, and sigmoid takes them for logits, so the probabilities are not those that "
            "it was trained to give. Set calibrate to false in its args, or fit them to a validation_split.", names[0]
        )  # fmt: skip


def _scored(
    rewards: WeightedSum, dataset: Dataset, texts: Sequence[Text], there: Sequence[int], chunk_size: int
) -> tuple[Floats, Floats]:
    """Weighted sum `(N,)` and each reward `(K, N)`; NaN where there is no text, or a reward does not apply."""
    from rlhf_recipes.rewards.workbench.table import Sample

    rows = dataset.select(there)
    used = {"prompt", *(name for side in SIDES for name in side)}
    columns = {name: list(rows[name]) for name in rows.column_names if name not in used}
    asked = [texts[row] for row in there]
    sample = Sample(prompts_of(rows, asked), asked, columns, list(there))
    # Which rows are in one call says nothing here, so that a reward that compares completions has none to compare.
    parts = score_in_chunks(rewards, sample, [[row] for row in range(len(there))], chunk_size)
    totals, by_reward = np.full(len(texts), np.nan), np.full((len(rewards.names), len(texts)), np.nan)
    totals[there] = rewards.totals(parts, progress=1.0)
    for number, values in enumerate(rewards.per_row(parts).values()):
        by_reward[number, there] = [np.nan if value is None else value for value in values]
    return totals, by_reward


# --- labels that there are -------------------------------------------------------------------------------


def known_labels(dataset: Dataset, decision_threshold: float) -> dict[int, float]:
    """What people say of rows that are labelled, from 0 to 1, by the number of the row.

    Texts: `label`; or whether `score` is at least the threshold; or clicks and dwell times, as `data.feedback`
    converts them. Pairs: the chance that `chosen` is better, 1 where neither `target` nor votes say otherwise. Rows
    that say nothing have none.

    Raises:
        `ValueError`: if the rows hold no such labels.
    """
    numbered = dataset.with_format(None).add_column(ROW, list(range(len(dataset))))
    kind = recognize(numbered).kind
    if kind in ("pairs", "votes"):
        clean = normalize(numbered)[0]
        if kind == "votes":
            sides = zip(clean["chosen_votes"], clean["rejected_votes"], strict=True)
            labels = [chosen / (chosen + rejected) for chosen, rejected in sides]
        else:
            labels = list(clean["target"]) if "target" in clean.column_names else [1.0] * len(clean)
    else:
        options: dict[str, Any] = {"threshold": decision_threshold} if kind == "ratings" else {}
        clean = convert(numbered, "unpaired", **options)[0]
        labels = list(clean["label"])
    return {int(row): float(label) for row, label in zip(clean[ROW], labels, strict=True)}


def known_rows(
    rewards: WeightedSum, dataset: Dataset, decision_threshold: float, fit_share: float = 0.2, ensemble: bool = False
) -> Known:
    """Score labelled rows, and part them in two, by a hash, so that rows that hang together are on one side.

    Raises:
        `ValueError`: as [`known_labels`] and [`evidence_of`].
    """
    labels = known_labels(dataset, decision_threshold)
    groups, keys = groups_of(dataset)
    # Not the hash by which training rows are parted: those of one share would all be on one side here.
    inside = {row for row in labels if in_share(f"confidence {keys[row]}", 0.0, fit_share)} if fit_share else set()
    evidence = evidence_of(rewards, dataset, ensemble)
    return Known(evidence, labels, sorted(inside), sorted(set(labels) - inside), groups)


def groups_of(dataset: Dataset) -> tuple[list[int], list[str]]:
    """Which rows hang together: those of one prompt, or without prompts those with a text in common.

    Texts are the same after `normalize_text`. Rows of one group are right or wrong together more often than others, so
    that an accuracy over them says less than one over as many strangers.

    Returns:
        `tuple`: the number of each row's group, and a text that stands for it: the prompt, or the text, of its first.
    """
    plain = dataset.with_format(None)
    texts = [[as_text(text or "") for text in plain[side]] for side in sides_of(plain)]
    prompts = [as_text(prompt or "") for prompt in plain["prompt"]] if "prompt" in plain.column_names else []
    columns: list[list[Any]] = [[("prompt", normalize_text(prompt)) if prompt.strip() else None for prompt in prompts]]
    for side in texts:
        alone = [not prompt.strip() for prompt in prompts] or [True] * len(side)
        columns.append([normalize_text(text) if here and text.strip() else None
                        for text, here in zip(side, alone, strict=True)])  # fmt: skip
    groups = linked(*(column for column in columns if column))
    first: dict[int, str] = {}
    for row, group in enumerate(groups):
        first.setdefault(group, prompts[row] if prompts else texts[0][row])
    return groups, [first[group] for group in groups]


def accuracy_of(
    found: Verdicts, why: Sequence[str | None], dataset: Dataset, decision_threshold: float
) -> dict[str, Any]:
    """How many of the labels are right, where the rows that were labelled have people's labels too; else nothing."""
    try:
        labels = known_labels(dataset, decision_threshold)
    except ValueError as error:
        logger.info("The labels cannot be compared with people's: %s", str(error).split(". ")[0])
        return {}
    rows = sorted(labels)
    right, places = is_right(found.probability[rows], [labels[row] for row in rows])
    spoken = [why[rows[place]] is None for place in places]
    labelled, groups = right[spoken], groups_of(dataset)[0]
    figures: dict[str, Any] = {"accuracy_rows": len(labelled), "accuracy": None, "accuracy_ci95": None}
    if len(labelled):
        of_labelled = [groups[rows[place]] for place, said in zip(places, spoken, strict=True) if said]
        (point,) = coverage_curve(np.ones(len(labelled)), labelled, groups=of_labelled)
        figures |= {"accuracy": point.accuracy, "accuracy_ci95": point.interval}
    return figures | {"accuracy_of_all": float(right.mean()) if len(right) else None}


# --- what is written -------------------------------------------------------------------------------------


def labelled_rows(
    dataset: Dataset,
    evidence: Evidence,
    found: Verdicts,
    why: Sequence[str | None],
    label_as: LabelAs = "unpaired",
    ensemble: bool = False,
) -> Dataset:
    """All rows with what is said of them; their own columns stay, under `given_<name>` where one is needed.

    Returns:
        [`~datasets.Dataset`]: `model_score` (of pairs `chosen_score` and `rejected_score`), `probability`,
        `confidence`, `abstained`, `reason`; of an ensemble `agreement` and `spread`; and `label`, `score` or `target`,
        empty where the model abstains. A pair whose second text is the better one is turned (`swapped`), so that
        chosen is the better one, and probability and target are at least 0.5.

    Raises:
        `ValueError`: if rows are pairs and `label_as` is not `"pairs"`, or the other way round; or a column
            `given_<name>` is taken.
    """
    sides = sides_of(dataset)
    if (len(sides) == 2) != (label_as == "pairs"):
        raise ValueError(f"The rows have {' and '.join(sides)}, which cannot be labelled as {label_as}.")
    made = _renamed(dataset.with_format(None), sides)
    speaks = [reason is None for reason in why]
    probability, columns = found.probability, {}
    if label_as == "pairs":
        swapped = probability < 0.5
        probability = np.where(swapped, 1 - probability, probability)
        first, second = (list(dataset[side]) for side in sides)
        made = made.remove_columns(list(sides))
        columns["chosen"] = [b if turn else a for a, b, turn in zip(first, second, swapped, strict=True)]
        columns["rejected"] = [a if turn else b for a, b, turn in zip(first, second, swapped, strict=True)]
        columns["chosen_score"] = _or_none(np.where(swapped, evidence.scores[1], evidence.scores[0]))
        columns["rejected_score"] = _or_none(np.where(swapped, evidence.scores[0], evidence.scores[1]))
        columns["swapped"] = swapped.tolist()
        columns["target"] = _or_none(probability, speaks)
    elif label_as == "unpaired":
        columns["model_score"] = _or_none(evidence.x)
        columns["label"] = _or_none((probability > 0.5).astype(np.float64), speaks)
    else:
        columns["score"] = _or_none(evidence.x, speaks)
        columns["model_score"] = _or_none(evidence.x)
    columns |= {"probability": _or_none(probability), "confidence": _or_none(found.confidence)}
    if ensemble:
        columns |= {"agreement": _or_none(found.agreement), "spread": _or_none(found.spread)}
    columns |= {"abstained": [not said for said in speaks], "reason": list(why)}
    for name, values in columns.items():
        made = made.add_column(name, values) if made.column_names else Dataset.from_dict({name: values})
    return made.cast_column("reason", Value("string"))  # all empty it would have no type


def _or_none(values: Floats, keep: Sequence[bool] | None = None) -> list[float | None]:
    kept = [True] * len(values) if keep is None else keep
    return [
        float(value) if speaks and not np.isnan(value) else None for value, speaks in zip(values, kept, strict=True)
    ]


def _renamed(dataset: Dataset, sides: Sequence[str]) -> Dataset:
    names = {name: f"given_{name}" for name in dataset.column_names if name in (*OF_FEEDBACK, *OF_OURS)}
    names |= {name: f"given_{name}" for name in ("chosen", "rejected", "completion")
              if name in dataset.column_names and name not in sides}  # fmt: skip
    taken = [new for new in names.values() if new in dataset.column_names]
    if taken:
        raise ValueError(f"The column {taken[0].removeprefix('given_')!r} would be kept as {taken[0]!r}, which there "
                         "is already. Rename or remove one of them.")  # fmt: skip
    if names:
        logger.info("Columns kept under other names: %s.", ", ".join(f"{old} as {new}" for old, new in names.items()))
    return dataset.rename_columns(names) if names else dataset


def write_labelled(path: str | Path, rows: Dataset) -> Path:
    """Write rows as JSON lines, CSV or parquet, as the name ends, at once.

    Raises:
        `ValueError`: if the name ends otherwise, or CSV is asked to hold a list or a mapping.
    """
    target = Path(path)
    suffix = check_suffix(target)
    if suffix == ".jsonl":
        return write_jsonl(target, rows)
    if suffix == ".csv":
        nested = [name for name, feature in rows.features.items() if not isinstance(feature, Value)]
        if nested:
            raise ValueError(
                f"CSV cannot hold the column {nested[0]!r}, which has lists or mappings. Name a .jsonl or .parquet "
                "file, or remove the column from the data."
            )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:  # renamed at once within one file system
        temporary = Path(folder) / target.name
        rows.to_csv(str(temporary), index=False) if suffix == ".csv" else rows.to_parquet(str(temporary))
        os.replace(temporary, target)
    return target


def check_suffix(path: str | Path) -> str:
    """How a file's name ends; `ValueError` if labels cannot be written so."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"Labels can be written as {', '.join(SUFFIXES)}, and not as {str(path)!r}.")
    return suffix


def counts(rows: Dataset, label_as: LabelAs) -> dict[str, Any]:
    """How many rows got which label, and how many none, and why: nothing is lost in silence."""
    why = Counter(rows["reason"])
    figures: dict[str, Any] = {"rows": len(rows), "labelled": why.pop(None, 0)}
    figures |= {"abstained": sum(why.values()), "abstained_because": dict(why)}
    figures["coverage"] = figures["labelled"] / len(rows)
    if label_as == "unpaired":
        figures |= {name: sum(label == value for label in rows["label"]) for name, value in (("good", 1), ("bad", 0))}
    if label_as == "pairs":
        spoken = zip(rows["swapped"], rows["abstained"], strict=True)
        figures["swapped"] = sum(swapped and not abstained for swapped, abstained in spoken)
    return figures


def summary(figures: Mapping[str, Any]) -> str:
    """The figures of a run, to be read by a person."""
    because = ", ".join(f"{count} {why}" for why, count in figures["abstained_because"].items())
    lines = [f"{figures['labelled']:,} of {figures['rows']:,} rows labelled ({figures['coverage']:.1%})"]
    lines[0] += f", {figures['abstained']:,} not ({because})." if because else "."
    if "good" in figures:
        lines.append(f"{figures['good']:,} good, {figures['bad']:,} bad.")
    if figures.get("accuracy") is not None:
        low, high = figures["accuracy_ci95"]
        lines.append(
            f"Right where people say something too: {figures['accuracy']:.3f} (95% interval {low:.3f} to {high:.3f}, "
            f"{figures['accuracy_rows']:,} rows); of all rows it would be {figures['accuracy_of_all']:.3f}."
        )
    return "\n".join(lines)
