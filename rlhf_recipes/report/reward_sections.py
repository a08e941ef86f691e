"""From the figures of a reward model to what its page shows of them: sentences, tiles, tables and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from rlhf_recipes.figures import plot_accuracy, plot_calibration
from rlhf_recipes.report import words
from rlhf_recipes.report.html import Plot, Tile
from rlhf_recipes.report.markdown import finite
from rlhf_recipes.report.reward_figures import bucket_name, plot_margins, plot_shares, plot_wins

Report = Mapping[str, Any]

# For each key of metrics.json what a person calls it, and whether it is a share.
FIGURES: dict[str, tuple[str, bool]] = {
    "pairwise_accuracy": ("pairs in people's order", True),
    "single_rater_accuracy": ("the same by one human rater", True),
    "vader_accuracy": ("the same by VADER, a lexicon of feelings", True),
    "length_accuracy": ("the same by length: the longer text wins", True),
    "pairs": ("number of pairs", False),
    "pearson": ("correlation with the mean rating (Pearson)", False),
    "mae": ("mean distance from the rating, rating points", False),
    "log_loss": ("log loss, nats", False),
    "base_log_loss": ("log loss of saying the mean of every text", False),
    "base_rate": ("mean label", False),
    "ece": ("expected calibration error", False),
    "kendall": ("rank correlation within a list (Kendall)", False),
    "top1_accuracy": ("best text of a list found", True),
    "top1_chance": ("the same by chance", True),
    "worst_accuracy": ("worst text of a list found", True),
    "step_accuracy": ("steps told right from wrong", True),
    "step_base_accuracy": ("the same by the more frequent label", True),
    "step_f1": ("F1 of the wrong steps", False),
    "first_error_rate": ("first wrong step found", True),
    "steps": ("number of steps", False),
}
ERRORS = {
    "mae": "mean distance",
    "rmse": "root mean squared distance",
    "r2": "R²",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall's tau",
}
BARS = {
    "model": "Reward model",
    "single_rater": "One human rater",
    "vader": "VADER, a word list",
    "length": "The longer text wins",
}


@dataclass(frozen=True)
class Table:
    """A table of text cells; `numbers` are the columns that stand on the right."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[int] = ()
    caption: str = ""


def headline(evaluation: Report, metrics: Report) -> str:
    """The first figure and its interval, whether that is more than chance, and what costs nothing beside it."""
    accuracy, steps = finite(metrics.get("pairwise_accuracy")), finite(metrics.get("step_accuracy"))
    if accuracy is not None:
        bounds = metrics.get("pairwise_accuracy_ci95")
        text = f"puts {accuracy:.1%} of {metrics['pairs']:,} held-out pairs in people's order{_bounds(bounds)}. "
        return _beside_chance(text, bounds, 0.5, "chance") + _beside_baselines(accuracy, metrics)
    if steps is not None:
        bounds, usual = metrics.get("step_accuracy_ci95"), finite(metrics.get("step_base_accuracy"))
        text = f"tells {steps:.1%} of {metrics['steps']:,} held-out steps right from wrong{_bounds(bounds)}. "
        if usual is None:
            return f"T{text[1:].strip()}"
        named = "the level of one answer for all"
        return _beside_chance(text, bounds, usual, named) + f"Saying of every step what is more frequent: {usual:.1%}."
    return "Measured on held-out feedback of people."


def _beside_chance(text: str, interval: Any, chance: float, named: str) -> str:
    """The sentence, which begins with the bad news where there is some."""
    if not interval:
        return f"At {named}, as far as so few rows tell: it {text}"
    if interval[1] < chance:
        return f"Worse than {named}: it {text}"
    if interval[0] <= chance:
        return f"At {named}: it {text}"
    return text[0].upper() + text[1:]


def _beside_baselines(accuracy: float, metrics: Report) -> str:
    """What the length of a text and a lexicon do with the same pairs, and whether the model does more."""
    names = {"length_accuracy": "length", "vader_accuracy": "VADER"}
    found = {named: value for key, named in names.items() if (value := finite(metrics.get(key))) is not None}
    if not found:
        return ""
    said = " and ".join(f"{named} {value:.1%}" for named, value in found.items())
    no_better = [named for named, value in found.items() if accuracy <= value]
    behind = f" The model is no better than {' or '.join(no_better)}." if no_better else ""
    return f"Of the same pairs, {said}.{behind}"


def _bounds(interval: Any) -> str:
    return "" if not interval else f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})"


def tiles(metrics: Report) -> list[Tile]:
    """The four figures at the top."""
    wanted = [
        ("pairwise_accuracy", "Pairs in people's order", "interval"),
        ("step_accuracy", "Steps told apart", "interval"),
        ("single_rater_accuracy", "One human rater", "the same pairs"),
        ("top1_accuracy", "Best of a list found", "top1_chance"),
        ("first_error_rate", "First wrong step found", "of answers with one"),
        ("vader_accuracy", "VADER", "a lexicon, the same pairs"),
        ("length_accuracy", "Longer text wins", "the same pairs"),
        ("kendall", "Order within a list", "Kendall's tau, 1 at best"),
        ("pearson", "Correlation with ratings", "Pearson, 1 at best"),
        ("log_loss", "Log loss", "nats, 0.69 for a coin"),
    ]
    found = []
    for key, label, detail in wanted:
        value = finite(metrics.get(key))
        if value is None:
            continue
        if detail == "interval":
            bounds = metrics.get(f"{key}_ci95")
            detail = f"{bounds[0]:.1%} to {bounds[1]:.1%}" if bounds else "no interval"
        elif detail in metrics:
            detail = f"by chance {metrics[detail]:.1%}"
        shown = words.percent(value) if FIGURES[key][1] else words.plain(value)
        found.append(Tile(label, shown, detail))
    return found[:4]


def figure_rows(metrics: Report, evaluation: Report) -> list[tuple[str, Markup, str]]:
    """The flat figures: what it is, the value, its interval."""
    bounds = {**_nested_bounds(evaluation), **{k: v for k, v in metrics.items() if k.endswith("_ci95")}}
    rows = []
    for key, (label, is_share) in FIGURES.items():
        value = finite(metrics.get(key))
        if value is None:
            continue
        shown = words.percent(value) if is_share else words.figure(metrics[key])
        interval = bounds.get(f"{key}_ci95")
        low_high = "" if not interval else " to ".join(_plain(bound, is_share) for bound in interval)
        rows.append((label, shown, low_high))
    return rows


def _plain(value: float, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else words.text(value, 3)


def _nested_bounds(evaluation: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ("errors", "calibration", "lists", "labels", "steps"):
        found |= {key: value for key, value in evaluation.get(part, {}).items() if key.endswith("_ci95")}
    return found


# --- Pictures ----------------------------------------------------------------------------------------------


def build_plots(evaluation: Report) -> list[Plot]:
    """The pictures that the figures allow, the most important first."""
    makers = (_plot_bars, _plot_margins, _plot_reliability, _plot_shares, _plot_wins)
    return [plot for plot in (maker(evaluation) for maker in makers) if plot is not None]


def _plot_bars(evaluation: Report) -> Plot | None:
    accuracy = evaluation.get("accuracy") or {}
    bars = [(label, accuracy[key]) for key, label in BARS.items() if finite(accuracy.get(key)) is not None]
    if not bars:
        return None
    said = ", ".join(f"{label} {value:.1%}" for label, value in bars)
    ceiling = evaluation.get("ceiling", {}).get("pairwise")
    rest = f" A perfect model would reach about {ceiling:.1%}, because the ratings err too." if ceiling else ""
    return Plot(
        plot_accuracy("accuracy", f"Pairs in the right order: {said}.", bars),
        "Which text is better?",
        f"Share of {accuracy['pairs']:,} held-out pairs in people's order. The dashed line is chance.{rest}",
    )


def _plot_margins(evaluation: Report) -> Plot | None:
    margins = evaluation.get("by_margin")
    if not margins:
        return None
    series = {key: margins[key] for key in ("model", "vader") if key in margins}
    said = ", ".join(f"{bucket_name(b)}: {_share(b['accuracy'])}" for b in series["model"])
    legend = [("reward model", "s0"), ("VADER", "muted")][: len(series)]
    return Plot(
        plot_margins("margins", f"Accuracy by {margins['margin']}: {said}.", margins["margin"], series),
        "Easy and hard cases",
        "Accuracy by how clear the case is to people, with 95% intervals.",
        tuple(legend),
    )


def _share(value: float | None) -> str:
    return "no pair" if value is None else f"{value:.1%}"


def _plot_reliability(evaluation: Report) -> Plot | None:
    bins = evaluation.get("reliability")
    if not bins:
        return None
    points = [(b["score"], b["rating"], b["error"] or 0.0) for b in bins]
    return Plot(
        plot_calibration("reliability", f"Mean human rating over score, {len(bins)} bins.", points),
        "Does the score mean what it says?",
        f"Mean rating over mean score in {len(bins)} bins of equally many texts, with twice the standard error each "
        "way. On the dashed diagonal the two agree.",
    )


def _plot_shares(evaluation: Report) -> Plot | None:
    found = evaluation.get("calibration")
    if not found:
        return None
    pairs = found["of"] == "pairs"
    what = {"pairs": "that the text is preferred", "labels": "of a good label", "steps": "that a step is right"}
    text = (
        f"Probability {what[found['of']]}, over the share that came true, in {len(found['bins'])} bins of equally "
        f"many rows. On the diagonal the two agree; ECE {found['ece']:.3f}."
    )
    label = f"What came true over the stated probability, {len(found['bins'])} bins."
    return Plot(plot_shares("shares", label, found["bins"], pairs), "How sure is it, and how right?", text)


def _plot_wins(evaluation: Report) -> Plot | None:
    curve = evaluation.get("win_rate")
    if not curve or len(curve) < 2:
        return None
    last = curve[-1]
    label = f"Win rate of the best of n: {last['win_rate']:.1%} at n = {last['n']}."
    legend = (("chosen by the reward model, with 95% interval", "s0"), ("chosen by people", "muted d1"))
    return Plot(
        plot_wins("wins", label, curve),
        "Best of n, on paper",
        "How often the text with the highest score of n beats a random other one in people's eyes.",
        legend,
    )


# --- Tables ------------------------------------------------------------------------------------------------


def build_tables(evaluation: Report) -> list[Table]:
    """Tables of what is nested: distances, subsets, objectives, steps, ceilings."""
    makers = (_errors, _subsets, _objectives, _steps, _ceiling)
    return [table for table in (maker(evaluation) for maker in makers) if table is not None]


def _errors(evaluation: Report) -> Table | None:
    errors, baselines = evaluation.get("errors"), evaluation.get("baseline_errors", {})
    if not errors:
        return None
    rows = [
        [
            label,
            _number(errors[key]),
            _interval(errors.get(f"{key}_ci95")),
            *(_number(of[key]) for of in baselines.values()),
        ]
        for key, label in ERRORS.items()
        if key in errors
    ]
    names = {"constant": "mean rating", "vader": "VADER", "length": "length"}
    header = ["figure", "model", "95% interval", *(names.get(name, name) for name in baselines)]
    return Table(
        "Score and rating", header, rows, range(1, len(header)), "Baselines are lines through the training rows."
    )


def _subsets(evaluation: Report) -> Table | None:
    found = evaluation.get("subsets")
    if not found:
        return None
    rows = [
        [str(name), _share(of["accuracy"]), _interval(of["accuracy_ci95"], True), f"{of.get('pairs', ''):}"]
        for name, of in [*found["subsets"].items(), *found.get("sections", {}).items()]
    ]
    if "score" in found:
        rows.append(["all sections", _share(found["score"]), _interval(found["score_ci95"], True), ""])
    return Table("By subset", ["subset", "accuracy", "95% interval", "pairs"], rows, (1, 2, 3))


def _objectives(evaluation: Report) -> Table | None:
    found = evaluation.get("objectives")
    if not found:
        return None
    keys = [
        key
        for key in ("pairwise_accuracy", "pearson", "spearman", "mae", "r2")
        if any(key in of for of in found.values())
    ]
    names = {"pairwise_accuracy": "pairs in order", "mae": "mean distance", "r2": "R²"}
    rows = [[name, *(_number(of.get(key)) for key in keys)] for name, of in found.items()]
    header = ["objective", *(names.get(key, key.capitalize()) for key in keys)]
    return Table("Each objective", header, rows, range(1, len(header)))


def _steps(evaluation: Report) -> Table | None:
    found = evaluation.get("steps")
    if not found:
        return None
    wanted = {
        "first_error_rate": f"first wrong step found ({found['answers_with_error']:,} answers with one)",
        "clean_rate": f"nothing flagged in right answers ({found['answers_without_error']:,})",
        "process_f1": "harmonic mean of the two",
    }
    rows = [[label, _number(found.get(key)), _interval(found.get(f"{key}_ci95"))] for key, label in wanted.items()]
    return Table("Whole answers", ["figure", "value", "95% interval"], rows, (1, 2))


def _ceiling(evaluation: Report) -> Table | None:
    found = evaluation.get("ceiling")
    if not found:
        return None
    labels = {
        "votes_per_text": "votes for a row",
        "reliability": "reliability of the mean rating",
        "correlation": "correlation that the truth would have with it",
        "pairwise": "pairs that the truth would order as it does",
        "log_loss": "log loss of knowing the share of votes",
    }
    rows = [[label, _number(found[key])] for key, label in labels.items() if key in found]
    return Table("What raters' disagreement leaves", ["figure", "value"], rows, (1,))


def _number(value: Any) -> str:
    number = finite(value)
    return "–" if number is None else words.text(number, 3)


def _interval(bounds: Any, is_share: bool = False) -> str:
    return "" if not bounds else " to ".join(_plain(bound, is_share) for bound in bounds)
