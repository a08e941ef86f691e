"""From one format of human feedback to another: what each conversion makes of a row, and what is lost.

[`convert`] cleans and converts in one call. Each conversion by itself takes clean rows, as
`rlhf_recipes.data.feedback.recognize.normalize` gives them. The order of the rows is kept.
"""

import inspect
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from datasets import Dataset

from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.formats import (
    COLUMNS,
    MISSING,
    MISSING_VOTES,
    NO_OBJECTIVE,
    OPTIONAL,
    Check,
    FeedbackSettings,
    Kind,
    Row,
)
from rlhf_recipes.data.feedback.recognize import DEFAULTS, normalize, recognize
from rlhf_recipes.data.pairs import TOLERANCE, preferences

logger = logging.getLogger(__name__)


def ratings_to_pairs(dataset: Dataset, passes: int = 1, min_gap: float = 0.5, seed: int = 0) -> Dataset:
    """Pairs of texts that are at least `min_gap` apart, drawn by [`~rlhf_recipes.data.pairs.preferences`].

    Lost: by how much one is better, ratings that are close to all others, and all columns but the texts.

    Args:
        dataset ([`~datasets.Dataset`]): Ratings.
        passes (`int`), min_gap (`float`), seed (`int`): As in [`~rlhf_recipes.data.pairs.draw_pairs`].
    """
    require_columns(dataset, COLUMNS["ratings"], "A conversion of ratings")
    return Dataset.from_dict(preferences(dataset.with_format(None).to_dict(), passes, min_gap, seed))


def rankings_to_pairs(dataset: Dataset, which: Literal["all", "adjacent"] = "all") -> Dataset:
    """A pair for every two completions of different rank.

    K completions without ties give K(K-1)/2 pairs, or K-1 if only neighbours in rank are compared. The pairs of one
    ranking depend on each other: keep them in one split and, if you can, in one batch (Ouyang et al. 2022, section
    3.5, where shuffled pairs overfit). The column `source_row` says where each comes from.

    Lost: that the pairs belong together, the ties, and with `"adjacent"` nothing but repetition. Two copies of one
    text with different ranks make no pair.

    Args:
        dataset ([`~datasets.Dataset`]): Rankings.
        which (`str`, *optional*, defaults to `"all"`): `"all"`, or `"adjacent"`.

    Returns:
        [`~datasets.Dataset`]: in the order of the rows, then of the better rank, then of the worse.
    """
    if which not in ("all", "adjacent"):
        raise ValueError(f"which is {which!r}; give 'all' or 'adjacent'.")
    require_columns(dataset, COLUMNS["rankings"], "A conversion of rankings")

    def compared(row: Row) -> list[tuple[int, int]]:
        ranks = row["ranks"]
        level = {rank: number for number, rank in enumerate(sorted(set(ranks)))}
        order = sorted(range(len(ranks)), key=lambda place: ranks[place])
        pairs = [(one, other) for one in order for other in order if ranks[one] < ranks[other]]
        if which == "all":
            return pairs
        return [(one, other) for one, other in pairs if level[ranks[other]] == level[ranks[one]] + 1]

    return _compared_pairs(dataset, compared, ("completions", "ranks"))


def best_worst_to_pairs(dataset: Dataset, which: Literal["implied", "extremes"] = "implied") -> Dataset:
    """The pairs that follow from a best and a worst completion.

    The best beats all others and all others beat the worst: 2K-3 pairs of K completions, or the one of best and worst.
    As in [`rankings_to_pairs`], the pairs of one row depend on each other, and `source_row` says where each is from.

    Lost: that the pairs belong together; with `"extremes"` the completions between.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `completions`, `best` and `worst`.
        which (`str`, *optional*, defaults to `"implied"`): `"implied"`, or `"extremes"`.

    Returns:
        [`~datasets.Dataset`]: for each row the best against all others, then the others against the worst.
    """
    if which not in ("implied", "extremes"):
        raise ValueError(f"which is {which!r}; give 'implied' or 'extremes'.")
    require_columns(dataset, COLUMNS["best_worst"], "A conversion of best and worst")

    def compared(row: Row) -> list[tuple[int, int]]:
        best, worst = int(row["best"]), int(row["worst"])
        if which == "extremes":
            return [(best, worst)]
        between = [place for place in range(len(row["completions"])) if place not in (best, worst)]
        over = [(best, place) for place in range(len(row["completions"])) if place != best]
        return over + [(place, worst) for place in between]

    return _compared_pairs(dataset, compared, COLUMNS["best_worst"])


def votes_to_pairs(dataset: Dataset, smoothing: float = 0.0) -> Dataset:
    """Pairs with a soft label: the column `target` is the share of votes for `chosen`.

    `target = (chosen_votes + smoothing) / (chosen_votes + rejected_votes + 2 * smoothing)`; a smoothing of 1 is
    Laplace's rule, by which 1 to 0 is 2/3 and no certainty. Where the majority is for `rejected`, the two change
    places, so that `chosen` is never the worse and the target never below 0.5. A tie is 0.5 and keeps its order.

    Lost: how many voted. Without smoothing 1 to 0 is the same as 30 to 0.

    Args:
        dataset ([`~datasets.Dataset`]): Votes.
        smoothing (`float`, *optional*, defaults to 0): Votes that are added to each side.
    """
    if smoothing < 0:
        raise ValueError(f"smoothing is {smoothing}; give 0 or more votes.")
    require_columns(dataset, COLUMNS["votes"], "A conversion of votes")
    made: dict[str, list[Any]] = {"chosen": [], "rejected": [], "target": []}
    rows = []
    for number, row in enumerate(dataset.with_format(None)):
        sides = [row["chosen_votes"], row["rejected_votes"]]
        if None in sides or sum(sides) == 0:
            continue
        texts = [row["chosen"], row["rejected"]]
        if sides[1] > sides[0]:
            sides, texts = sides[::-1], texts[::-1]
        rows.append(number)
        made["chosen"].append(texts[0])
        made["rejected"].append(texts[1])
        made["target"].append((sides[0] + smoothing) / (sum(sides) + 2 * smoothing))
    _log_left_out(len(dataset) - len(rows), len(dataset), MISSING_VOTES)
    return _made(dataset, rows, COLUMNS["votes"], made)


def ratings_to_unpaired(dataset: Dataset, threshold: float, dead_zone: float = 0.0) -> Dataset:
    """Good is what is rated `threshold + dead_zone` or higher, bad what is rated `threshold - dead_zone` or lower.

    What is rated between is left out and counted. With no dead zone a rating of exactly `threshold` is good.

    Lost: how good and how bad, the single votes, and all that is in the dead zone.

    Args:
        dataset ([`~datasets.Dataset`]): Ratings.
        threshold (`float`): Where good begins.
        dead_zone (`float`, *optional*, defaults to 0): Half the width of what is neither.
    """
    if dead_zone < 0 or not math.isfinite(threshold):
        raise ValueError(f"threshold is {threshold} and dead_zone {dead_zone}; give a number, and one of 0 or more.")
    require_columns(dataset, COLUMNS["ratings"], "A conversion of ratings")
    rows, labels = [], []
    for number, score in enumerate(dataset.with_format(None)["score"]):
        good = score >= threshold + dead_zone - TOLERANCE
        if good or score <= threshold - dead_zone + TOLERANCE:
            rows.append(number)
            labels.append(bool(good))
    _log_left_out(len(dataset) - len(rows), len(dataset), f"within {dead_zone:g} of the threshold {threshold:g}")
    return _made(dataset, rows, ("score", "votes"), {"label": labels})


def rankings_to_ratings(dataset: Dataset) -> Dataset:
    """Each completion by itself, with the share of the others that it beats as its score; a tie counts half.

    The best of K without ties gets 1, the worst 0, and `score = (K - mid-rank) / (K - 1)`.

    Lost: scores of different prompts no longer compare, as the best of a bad list gets 1 too. `source_row` says which
    belong together.

    Args:
        dataset ([`~datasets.Dataset`]): Rankings of two completions or more.
    """
    require_columns(dataset, COLUMNS["rankings"], "A conversion of rankings")
    rows: list[int] = []
    made: dict[str, list[Any]] = {"completion": [], "score": [], "source_row": []}
    for number, row in enumerate(dataset.with_format(None)):
        ranks = row["ranks"]
        for completion, rank in zip(row["completions"], ranks, strict=True):
            beaten = sum(rank < other for other in ranks) + 0.5 * (sum(rank == other for other in ranks) - 1)
            rows.append(number)
            made["completion"].append(completion)
            made["score"].append(beaten / (len(ranks) - 1) if len(ranks) > 1 else 0.5)
            made["source_row"].append(number)
    return _made(dataset, rows, COLUMNS["rankings"], made)


def objectives_to_ratings(dataset: Dataset, weights: Mapping[str, float]) -> Dataset:
    """One score: the weighted sum of the objectives' scores, `sum(weight * score)`.

    Lost: which objective a completion is good at, and every objective without a weight. A row that lacks a score which
    counts is left out and counted.

    Args:
        dataset ([`~datasets.Dataset`]): Rows whose `scores` are mappings, as [`normalize`] makes them.
        weights (`Mapping[str, float]`): What each objective counts; a negative weight is for what should be low.
    """
    require_columns(dataset, COLUMNS["objectives"], "A conversion of objectives")
    plain = dataset.with_format(None)
    names = dict.fromkeys(name for scores in plain["scores"] for name in scores)
    unknown = [name for name in weights if name not in names]
    if unknown or not weights:
        what = f"name {unknown[0]!r}, which is no objective" if unknown else "are empty"
        raise ValueError(f"The weights {what}. There are {', '.join(names)}.")
    rows, totals = [], []
    for number, scores in enumerate(plain["scores"]):
        values = {name: scores.get(name) for name in weights}
        if None not in values.values():
            rows.append(number)
            totals.append(float(sum(weights[name] * value for name, value in values.items())))
    _log_left_out(len(dataset) - len(rows), len(dataset), NO_OBJECTIVE)
    return _made(dataset, rows, ("scores", "objectives"), {"score": totals})


def pairs_to_unpaired(dataset: Dataset) -> Dataset:
    """Each pair as two rows: the chosen text, labelled good, and then the rejected one, labelled bad.

    With a column `target` the labels are it and what it lacks to 1. (TRL's `unpair_preference_dataset` puts all chosen
    texts before all rejected ones of a batch.)

    Lost: which texts were compared. The better of two bad texts is now simply good. A margin is lost too.

    Args:
        dataset ([`~datasets.Dataset`]): Pairs.
    """
    require_columns(dataset, COLUMNS["pairs"], "A conversion of pairs")
    plain = dataset.with_format(None)
    rows = [number for number in range(len(dataset)) for _ in range(2)]
    both = zip(plain["chosen"], plain["rejected"], strict=True)
    completions = [completion for sides in both for completion in sides]
    labels: list[bool] | list[float] = [True, False] * len(dataset)
    if "target" in plain.column_names:
        labels = [label for target in plain["target"] for label in (target, 1 - target)]
    used = (*COLUMNS["votes"], *OPTIONAL["pairs"])
    return _made(dataset, rows, used, {"completion": completions, "label": labels})


def steps_to_ratings(
    dataset: Dataset, how: Literal["mean", "min", "product", "last"] = "mean", separator: str = "\n\n"
) -> Dataset:
    """The steps joined to one completion, and their labels to one score.

    `"min"` and `"product"` ask for every step to be right, as process rewards are usually read (Lightman et al. 2023,
    section 2.6 multiplies), `"last"` for the answer alone. Steps without a label do not count.

    Lost: where it goes wrong.

    Args:
        dataset ([`~datasets.Dataset`]): Steps.
        how (`str`, *optional*, defaults to `"mean"`): `"mean"`, `"min"`, `"product"` or `"last"`.
        separator (`str`, *optional*): What joins the steps. Default: an empty line, as in `rewards/process.py`.
    """
    if how not in ("mean", "min", "product", "last"):
        raise ValueError(f"how is {how!r}; give 'mean', 'min', 'product' or 'last'.")
    require_columns(dataset, COLUMNS["steps"], "A conversion of steps")
    rows: list[int] = []
    made: dict[str, list[Any]] = {"completion": [], "score": []}
    for number, row in enumerate(dataset.with_format(None)):
        labels = [float(label) for label in row["labels"] if label is not None]
        if not labels:
            continue
        scores = {"mean": sum(labels) / len(labels), "min": min(labels), "product": math.prod(labels)}
        rows.append(number)
        made["completion"].append(separator.join(row["completions"]))
        made["score"].append(labels[-1] if how == "last" else scores[how])
    _log_left_out(len(dataset) - len(rows), len(dataset), "no step has a label")
    return _made(dataset, rows, COLUMNS["steps"], made)


def clicks_to_unpaired(
    dataset: Dataset, false_click: float = 0.0, missed_click: float = 0.0, min_views: int = 1
) -> Dataset:
    """The share of readers who like a text, estimated from how many clicked, as a soft label.

    A reader who likes it is taken to click with probability `1 - missed_click`, and one who does not with
    `false_click`. Of the click rate `r = clicks / views` that makes

        label = (r - false_click) / (1 - false_click - missed_click), no less than 0 and no more than 1

    (Rogan and Gladen 1978, the prevalence behind an imperfect test). Without noise it is the click rate. That texts
    shown first are clicked more is not corrected.

    Lost: how often the text was shown, and texts with fewer than `min_views` views, which are counted.

    Args:
        dataset ([`~datasets.Dataset`]): Clicks and views.
        false_click (`float`, *optional*, defaults to 0), missed_click (`float`, *optional*, defaults to 0):
            The noise. Their sum must be below 1, or clicks would say nothing.
        min_views (`int`, *optional*, defaults to 1): Views below which a rate says too little.
    """
    _check_noise(false_click=false_click, missed_click=missed_click)
    require_columns(dataset, COLUMNS["clicks"], "A conversion of clicks")
    rows, labels = [], []
    plain = dataset.with_format(None)
    for number, (clicks, views) in enumerate(zip(plain["clicks"], plain["views"], strict=True)):
        if views is not None and clicks is not None and views >= max(min_views, 1):
            rows.append(number)
            liked = (clicks / views - false_click) / (1 - false_click - missed_click)
            labels.append(float(min(max(liked, 0.0), 1.0)))
    _log_left_out(len(dataset) - len(rows), len(dataset), f"fewer than {max(min_views, 1)} views")
    return _made(dataset, rows, ("clicks", "views"), {"label": labels})


def dwell_to_unpaired(
    dataset: Dataset,
    threshold: float = 30.0,
    prior: float = 0.5,
    false_stay: float = 0.0,
    missed_stay: float = 0.0,
) -> Dataset:
    """The chance that a reader liked a text, from how long he stayed, as a soft label.

    Who stays `threshold` seconds or longer is taken to be content; 30 is the usual mark for web pages (Fox et al.
    2005; Kim et al. 2014 show that it depends on the text, and long texts need more). Signs go wrong: a reader who is
    not content stays all the same with probability `false_stay`, one who is content leaves early with `missed_stay`.
    By Bayes' rule

        label after a long stay  = prior (1 - missed_stay) / (prior (1 - missed_stay) + (1 - prior) false_stay)
        label after a short stay = prior missed_stay / (prior missed_stay + (1 - prior) (1 - false_stay))

    Without noise they are 1 and 0.

    Lost: how long exactly.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `dwell_seconds`.
        threshold (`float`, *optional*, defaults to 30): Seconds.
        prior (`float`, *optional*, defaults to 0.5): The share of texts that content a reader, above 0 and below 1.
        false_stay (`float`, *optional*, defaults to 0), missed_stay (`float`, *optional*, defaults to 0):
            The noise. Their sum must be below 1.
    """
    _check_noise(false_stay=false_stay, missed_stay=missed_stay)
    if not 0 < prior < 1 or not threshold > 0:
        raise ValueError(f"threshold is {threshold} and prior {prior}; give seconds above 0, and a share in (0, 1).")
    require_columns(dataset, COLUMNS["dwell"], "A conversion of dwell times")
    stayed = prior * (1 - missed_stay), (1 - prior) * false_stay
    left = prior * missed_stay, (1 - prior) * (1 - false_stay)
    rows, labels = [], []
    for number, seconds in enumerate(dataset.with_format(None)["dwell_seconds"]):
        if seconds is not None:
            good, bad = stayed if seconds >= threshold else left
            rows.append(number)
            labels.append(float(good / (good + bad)))
    _log_left_out(len(dataset) - len(rows), len(dataset), MISSING)
    return _made(dataset, rows, ("dwell_seconds",), {"label": labels})


CONVERSIONS: Mapping[tuple[Kind, Kind], Any] = {
    ("ratings", "pairs"): ratings_to_pairs,
    ("rankings", "pairs"): rankings_to_pairs,
    ("best_worst", "pairs"): best_worst_to_pairs,
    ("votes", "pairs"): votes_to_pairs,
    ("ratings", "unpaired"): ratings_to_unpaired,
    ("rankings", "ratings"): rankings_to_ratings,
    ("objectives", "ratings"): objectives_to_ratings,
    ("pairs", "unpaired"): pairs_to_unpaired,
    ("steps", "ratings"): steps_to_ratings,
    ("clicks", "unpaired"): clicks_to_unpaired,
    ("dwell", "unpaired"): dwell_to_unpaired,
}


def convert(
    dataset: Dataset, to: Kind, settings: FeedbackSettings = DEFAULTS, **options: Any
) -> tuple[Dataset, Check]:
    """Check and clean the rows, and put them into another format.

    Args:
        dataset ([`~datasets.Dataset`]): Feedback of any format.
        to (`str`): The format wanted. If it is the one there is, the rows are cleaned and that is all.
        settings ([`FeedbackSettings`], *optional*): How the rows are read.
        options: Passed to the conversion, such as `threshold` to [`ratings_to_unpaired`].

    Raises:
        `ValueError`: As [`check`] and the conversion, and if there is none: the message names those there are.
    """
    kind = recognize(dataset, settings.format).kind
    if kind != to and (kind, to) not in CONVERSIONS:
        there = [other for source, other in CONVERSIONS if source == kind]
        onward = {mid: [end for start, end in CONVERSIONS if start == mid] for mid in there}
        two = next((mid for mid, ends in onward.items() if to in ends), None)
        step = f" Convert to {two} first." if two else ""
        raise ValueError(
            f"No conversion from {kind} to {to!r}. From {kind} there is: {', '.join(there) or 'none'}.{step}"
        )
    if kind != to:
        _check_options(CONVERSIONS[kind, to], options)
    clean, found = normalize(dataset, settings)
    if kind == to:
        if options:
            raise ValueError(f"The rows are {kind} already, so {', '.join(options)} would change nothing.")
        return clean, found
    return CONVERSIONS[kind, to](clean, **options), found


def _check_options(conversion: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that the conversion does not have, and say which it needs; `ValueError`."""
    taken = list(inspect.signature(conversion).parameters.values())[1:]
    unknown = [name for name in options if name not in {option.name for option in taken}]
    missing = [option.name for option in taken if option.default is option.empty and option.name not in options]
    if unknown or missing:
        what = f"has no option {unknown[0]!r}" if unknown else f"needs the option {missing[0]!r}"
        names = ", ".join(option.name for option in taken) or "none"
        raise ValueError(f"{conversion.__name__} {what}. Its options are: {names}.")


def _compared_pairs(dataset: Dataset, compared: Any, used: Sequence[str]) -> Dataset:
    rows: list[int] = []
    made: dict[str, list[Any]] = {"chosen": [], "rejected": [], "source_row": []}
    copies = 0
    for number, row in enumerate(dataset.with_format(None)):
        for better, worse in compared(row):
            chosen, rejected = row["completions"][better], row["completions"][worse]
            if chosen == rejected:
                copies += 1
                continue
            rows.append(number)
            made["chosen"].append(chosen)
            made["rejected"].append(rejected)
            made["source_row"].append(number)
    if copies:
        logger.warning("Left out %d pairs of two identical texts.", copies)
    return _made(dataset, rows, used, made)


def _made(dataset: Dataset, rows: Sequence[int], used: Sequence[str], columns: Mapping[str, list[Any]]) -> Dataset:
    """The rows as given, each as often as it is named, with the columns that were used replaced by new ones."""
    if not rows:
        raise ValueError(f"None of {len(dataset)} rows is left after the conversion. Look at its settings.")
    gone = [name for name in dataset.column_names if name in used]
    clash = [name for name in columns if name in dataset.column_names and name not in gone]
    if clash:
        raise ValueError(f"The conversion makes a column {clash[0]!r}, but the dataset has one. Rename it first.")
    made = dataset.with_format(None).select(rows).remove_columns(gone)
    for name, values in columns.items():
        made = made.add_column(name, values) if made.column_names else Dataset.from_dict({name: values})
    return made


def _check_noise(**rates: float) -> None:
    if any(not 0 <= rate < 1 for rate in rates.values()) or sum(rates.values()) >= 1:
        given = " and ".join(f"{name} {rate}" for name, rate in rates.items())
        raise ValueError(f"The noise rates are {given}; give numbers from 0 on whose sum is below 1.")


def _log_left_out(count: int, total: int, why: str) -> None:
    if count:
        logger.warning("Left out %d of %d rows: %s.", count, total, why)
