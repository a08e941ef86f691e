"""From the figures of a reward model to what its page and its README say: sentences, tables, and worst cases."""

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from rlhf_recipes.report import words
from rlhf_recipes.report.markdown import shortened
from rlhf_recipes.report.page import Case, Table
from rlhf_recipes.report.reward_plots import share_text
from rlhf_recipes.report.run_sections import FIGURES
from rlhf_recipes.report.words import number

Report = Mapping[str, Any]

# Those of metrics.json that a reward model has, in the order in which a reader wants them.
OF_REWARD_MODELS = (
    *("pairwise_accuracy", "single_rater_accuracy", "vader_accuracy", "length_accuracy", "pairs", "pearson", "mae"),
    *("log_loss", "base_log_loss", "base_rate", "ece", "kendall", "top1_accuracy", "top1_chance", "worst_accuracy"),
    *("step_accuracy", "step_base_accuracy", "step_f1", "first_error_rate", "steps"),
)
TEXT_LIMIT = 600  # characters of a text that is read aloud
ERRORS = {
    "mae": "mean distance",
    "rmse": "root mean squared distance",
    "r2": "R²",
    "pearson": "Pearson",
    "spearman": "Spearman",
    "kendall": "Kendall's tau",
}


def headline(evaluation: Report, metrics: Report) -> str:
    """The first figure and its interval, whether that is more than chance, and what costs nothing beside it."""
    accuracy, steps = number(metrics.get("pairwise_accuracy")), number(metrics.get("step_accuracy"))
    if accuracy is not None:
        bounds = metrics.get("pairwise_accuracy_ci95")
        text = f"puts {accuracy:.1%} of {metrics['pairs']:,} held-out pairs in people's order{_bounds(bounds)}. "
        return _beside_chance(text, bounds, 0.5, "chance") + _beside_baselines(accuracy, metrics)
    if steps is not None:
        bounds, usual = metrics.get("step_accuracy_ci95"), number(metrics.get("step_base_accuracy"))
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
    found = {named: value for key, named in names.items() if (value := number(metrics.get(key))) is not None}
    if not found:
        return ""
    said = " and ".join(f"{named} {value:.1%}" for named, value in found.items())
    no_better = [named for named, value in found.items() if accuracy <= value]
    behind = f" The model is no better than {' or '.join(no_better)}." if no_better else ""
    return f"Of the same pairs, {said}.{behind}"


def _bounds(interval: Any) -> str:
    return "" if not interval else f" (95% interval {interval[0]:.1%} to {interval[1]:.1%})"


def figure_rows(metrics: Report, evaluation: Report) -> list[tuple[str, Markup, str]]:
    """The flat figures: what it is, the value, its interval."""
    bounds = {**_nested_bounds(evaluation), **{k: v for k, v in metrics.items() if k.endswith("_ci95")}}
    rows = []
    for key in OF_REWARD_MODELS:
        if number(metrics.get(key)) is None:
            continue
        label, _, form = FIGURES[key]
        interval = bounds.get(f"{key}_ci95")
        low_high = "" if not interval else " to ".join(_plain(bound, form is words.percent) for bound in interval)
        rows.append((label, form(metrics[key]), low_high))
    return rows


def _plain(value: float, is_share: bool) -> str:
    return f"{value:.1%}" if is_share else words.text(value, 3)


def _nested_bounds(evaluation: Report) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for part in ("errors", "calibration", "lists", "labels", "steps"):
        found |= {key: value for key, value in evaluation.get(part, {}).items() if key.endswith("_ci95")}
    return found


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
        [str(name), share_text(of["accuracy"]), _interval(of["accuracy_ci95"], True), f"{of.get('pairs', ''):}"]
        for name, of in [*found["subsets"].items(), *found.get("sections", {}).items()]
    ]
    if "score" in found:
        rows.append(["all sections", share_text(found["score"]), _interval(found["score_ci95"], True), ""])
    return Table("By subset", ["subset", "accuracy", "95% interval", "pairs"], rows, (1, 2, 3))


def _objectives(evaluation: Report) -> Table | None:
    found = evaluation.get("objectives")
    if not found:
        return None
    known = ("pairwise_accuracy", "pearson", "spearman", "mae", "r2")
    keys = [key for key in known if any(key in of for of in found.values())]
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
    found = number(value)
    return "–" if found is None else words.text(found, 3)


def _interval(bounds: Any, is_share: bool = False) -> str:
    return "" if not bounds else " to ".join(_plain(bound, is_share) for bound in bounds)


# --- The data, and what is wrong -----------------------------------------------------------------------------


def data_tables(data: Report) -> list[Table]:
    """What the model learned from: splits, cleaning, and how far the raters agree."""
    tables = []
    splits = data.get("splits") or {}
    if splits:
        rows = [
            [name, str(of.get("format", "")), _count(of.get("rows")), _count(of.get("kept")), *_reasons(of)]
            for name, of in splits.items()
        ]
        header = ["split", "recognized as", "rows", "used", "left out, and why", "noted"]
        tables.append(Table("The splits", header, rows, numbers=(2, 3)))
    cleaning = data.get("cleaning") or []
    if cleaning:
        rows = [[str(step.get("step", "")), _count(step.get("before")), _count(step.get("after")), _rest(step)]
                for step in cleaning]  # fmt: skip
        tables.append(Table("Cleaning, step by step", ["step", "before", "after", "what"], rows, numbers=(1, 2)))
    agreement = {key: value for key, value in (data.get("agreement") or {}).items() if value is not None}
    if agreement:
        rows = [[AGREEMENT.get(key, key.replace("_", " ")), _said(value)] for key, value in agreement.items()]
        tables.append(Table("How far raters agree", ["figure", "value"], rows, numbers=(1,)))
    return tables


def _count(value: Any) -> str:
    found = number(value)
    return "–" if found is None else f"{found:,.0f}"


def _reasons(split: Mapping[str, Any]) -> list[str]:
    """Why rows were left out, and what is odd about others."""
    columns = [split.get("left_out") or {}, split.get("noted") or {}]
    return ["; ".join(f"{_count(count)} {why}" for why, count in found.items()) or "–" for found in columns]


def _rest(step: Mapping[str, Any]) -> str:
    known = ("step", "before", "after", "notes")
    found = {key: value for key, value in step.items() if key not in known} | dict(step.get("notes") or {})
    return "; ".join(f"{key.replace('_', ' ')} {_said(value)}" for key, value in found.items() if value) or "–"


def _said(value: Any) -> str:
    found = number(value)
    if found is not None:
        return f"{found:,.0f}" if isinstance(value, int) else f"{found:.3g}"
    if isinstance(value, list | tuple) and all(number(part) is not None for part in value):
        return " to ".join(f"{part:.3g}" for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(part)}" for key, part in value.items())
    return str(value)


def cases(evaluation: Report, count: int = 8) -> list[Case]:
    """What the model gets most wrong, with figures as a person would say them."""
    found = []
    human = {"unpaired": "label", "clicks": "clicked", "dwell": "label", "steps": "label"}
    name = human.get(evaluation.get("kind", ""), "people")
    for case in evaluation.get("worst", [])[:count]:
        prompt = shortened(str(case.get("prompt") or ""), TEXT_LIMIT)
        if "better" in case:
            share = f"{case['share']:.0%} of votes, " if "share" in case else ""
            rows = [
                ("people prefer", case["better"], f"{share}score {words.text(case['better_score'])}"),
                ("the model prefers", case["worse"], f"score {words.text(case['worse_score'])}"),
            ]
        else:
            figures = f"{name} {words.text(case['human'])}, model {words.text(case['score'])}"
            rows = [("text", case["text"], figures)]
        found.append(Case(prompt, [(what, shortened(text, TEXT_LIMIT), said) for what, text, said in rows]))
    return found


AGREEMENT = {
    "alpha_interval": "Krippendorff's alpha, with distances",
    "alpha_ordinal": "Krippendorff's alpha, with ranks",
    "alpha_nominal": "Krippendorff's alpha, same number or not",
    "alpha_interval_ci95": "its 95% interval",
    "votes_per_text_min": "fewest votes of a text",
    "votes_per_text_mean": "votes of a text, mean",
    "votes_per_text_max": "most votes of a text",
    "split_half": "correlation of the means of two halves of the raters",
    "split_half_reliability": "reliability of the mean of all raters that follows",
    "raters_for_0.8": "raters for a reliability of 0.8",
    "raters_for_0.9": "raters for a reliability of 0.9",
    "icc_1": "reliability of one vote, ICC(1, 1)",
    "icc_k": "reliability of a text's mean, ICC(1, k)",
    "correlation_ceiling": "correlation that the truth itself would have with the mean rating",
    "pairwise_ceiling": "pairs that the truth itself would order as the means do",
    "single_rater_accuracy": "pairs that one rater orders as the others do",
}
