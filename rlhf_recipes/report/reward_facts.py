"""What the page and the model card of a reward model say, out of the files of its folder."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report import words
from rlhf_recipes.report.markdown import clean_text, finite, short_name, shortened
from rlhf_recipes.report.reward_sections import Table
from rlhf_recipes.report.reward_usage import Snippet, caveats, snippets

Report = dict[str, Any]


TEXT_LIMIT = 600  # characters of a text that is read aloud


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says, out of the files of a folder and from the caller.

    Args:
        title (`str`): What the model is called.
        metrics, evaluation, config (`dict`): The files of these names; empty where there is none.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`]): Those in the folder.
        data (`dict`), bias (`dict`), string_path (`dict`): As in [`write_card`].
        where (`str`): What the snippets call the model.
        has_model (`bool`): Whether the folder holds a model, and not the figures alone.
    """

    title: str
    metrics: Report
    evaluation: Report
    config: Report
    settings: RewardModelSettings
    data: Report
    bias: Report | None
    string_path: Mapping[str, Any] | None
    where: str
    has_model: bool

    @property
    def is_process(self) -> bool:
        """Whether steps are judged and not texts."""
        return self.evaluation.get("kind") == "steps"


@dataclass(frozen=True)
class Case:
    """A text, or a pair, that the model gets wrong; `rows` are `(what it is, text, figure)`."""

    prompt: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)


def read_facts(
    folder: str | Path,
    data: Report | None = None,
    bias: Report | None = None,
    string_path: Mapping[str, Any] | None = None,
    title: str | None = None,
    repo_id: str | None = None,
) -> CardFacts:
    """Read what a folder says about its model."""
    root = Path(folder)
    metrics, evaluation = (_read_json(root / name) for name in ("metrics.json", "evaluation.json"))
    if not metrics and not evaluation:
        raise ValueError(
            f"{str(folder)!r} holds neither evaluation.json nor metrics.json, so there is nothing to write a card of. "
            "recipes/reward.py and `python -m rlhf_recipes.reward_modeling.evaluation` write them."
        )
    given = dict(data or {})
    config = given.get("config") or {}
    if not config and (root / "config.yaml").is_file():
        config = yaml.safe_load((root / "config.yaml").read_text(encoding="utf-8")) or {}
    name = title or (repo_id or root.resolve().name).rsplit("/", 1)[-1]
    where = repo_id or clean_text(short_name(str(folder)))
    has_model = (root / "config.json").is_file()
    settings = RewardModelSettings.load(root) if has_model else RewardModelSettings()
    return CardFacts(name, metrics, evaluation, dict(config), settings, given, bias, string_path, where, has_model)


def _read_json(path: Path) -> Report:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path.name} is not valid JSON (line {error.lineno}: {error.msg}). Measure again.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} must hold one JSON object. Measure again.")
    return content


def use(facts: CardFacts) -> list[Snippet]:
    """The snippets that fit the model."""
    options = facts.config.get("loss_args") or {}
    token = facts.settings.step_token or str(options.get("step_token", "\n"))
    return snippets(facts.where, facts.settings, facts.is_process, token, facts.string_path)


def caveats_of(facts: CardFacts) -> list[Snippet]:
    """What other code cannot know of the model, for the first screen."""
    return caveats(facts.where, facts.settings, facts.is_process) if facts.has_model else []


def data_tables(data: Report) -> list[Table]:
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
    number = finite(value)
    return "–" if number is None else f"{number:,.0f}"


def _reasons(split: Mapping[str, Any]) -> list[str]:
    """Why rows were left out, and what is odd about others."""
    columns = [split.get("left_out") or {}, split.get("noted") or {}]
    return ["; ".join(f"{_count(count)} {why}" for why, count in found.items()) or "–" for found in columns]


def _rest(step: Mapping[str, Any]) -> str:
    known = ("step", "before", "after", "notes")
    found = {key: value for key, value in step.items() if key not in known} | dict(step.get("notes") or {})
    return "; ".join(f"{key.replace('_', ' ')} {_said(value)}" for key, value in found.items() if value) or "–"


def _said(value: Any) -> str:
    number = finite(value) if not isinstance(value, bool) else None
    if number is not None:
        return f"{number:,.0f}" if isinstance(value, int) else f"{number:.3g}"
    if isinstance(value, list | tuple) and all(finite(part) is not None for part in value):
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
                (
                    "people prefer",
                    shortened(case["better"], TEXT_LIMIT),
                    f"{share}score {_signed(case['better_score'])}",
                ),
                ("the model prefers", shortened(case["worse"], TEXT_LIMIT), f"score {_signed(case['worse_score'])}"),
            ]
        else:
            figures = f"{name} {_signed(case['human'])}, model {_signed(case['score'])}"
            rows = [("text", shortened(case["text"], TEXT_LIMIT), figures)]
        found.append(Case(prompt, rows))
    return found


def _signed(value: float) -> str:
    return words.text(value, 2)


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
