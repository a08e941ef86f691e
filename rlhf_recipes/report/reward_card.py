"""The page and the model card of a reward model: what it learned from, what it is worth, what it gets wrong, its use.

```
metrics.json, evaluation.json, reward_config.json, config.yaml, and what the caller knows
    -> write_page     report.html: one file, which loads nothing and runs nothing
    -> write_card     the same, and README.md with metadata for the Hub
```
Texts of data and of models are text on the page and nothing else.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report import words
from rlhf_recipes.report.heat import HeatMap, heat_pieces
from rlhf_recipes.report.html import Plot
from rlhf_recipes.report.markdown import clean_config, clean_text, finite, short_name, shortened
from rlhf_recipes.report.reward_figures import as_svg
from rlhf_recipes.report.reward_sections import Table, build_plots, build_tables, figure_rows, headline, tiles
from rlhf_recipes.report.reward_usage import Snippet, caveats, snippets
from rlhf_recipes.reward_modeling.explain import attribute
from rlhf_recipes.rewards.learned import LearnedReward

logger = logging.getLogger(__name__)
PAGE_FILE = "report.html"
TEXT_LIMIT = 600  # characters of a text that is read aloud
SHORTEST, HEAT_LIMIT = 20, 300  # characters of a text with a map: shorter ones say little, longer ones nobody reads
Report = dict[str, Any]


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


def write_card(
    folder: str | Path,
    data: Report | None = None,
    bias: Report | None = None,
    string_path: Mapping[str, Any] | None = None,
    reward: LearnedReward | None = None,
    heat_maps: int = 3,
    title: str | None = None,
    repo_id: str | None = None,
    license: str | None = None,
) -> Path:
    """Write `report.html` and `README.md` into the folder of a reward model.

    Args:
        folder (`str` or `Path`):
            The folder, in which `measure` has written `evaluation.json`; `metrics.json` is read too.
        data (`dict`, *optional*):
            What the model learned from: `splits` (for each name `format`, `rows`, `kept`, `left_out`, `noted`),
            `cleaning` (a list of steps with `step`, `before`, `after`), `agreement` (figures of
            `rlhf_recipes.data.raters.agreement`), `loss`, and `config` (default: `config.yaml` in the folder).
        bias (`dict`, *optional*):
            What `rlhf_recipes.reward_modeling.bias.measure.measure_bias` has found; it is drawn by `draw_bias`.
        string_path (`Mapping`, *optional*):
            Names and figures of how far the scores of TRL's own reading of the folder are from those measured here.
        reward ([`~rlhf_recipes.rewards.learned.LearnedReward`], *optional*):
            The model, for the heat maps, where it is in memory already. Default: it is loaded.
        heat_maps (`int`, *optional*, defaults to 3):
            How many texts get a map of which words moved the score; it needs captum and some seconds for each.
        title (`str`, *optional*), repo_id (`str`, *optional*), license (`str`, *optional*):
            Name of the model, its place on the Hub for the snippets, and an id such as `"apache-2.0"`.

    Returns:
        `Path`: the page.

    Raises:
        `ValueError`: if the folder holds neither `evaluation.json` nor `metrics.json`.
    """
    from rlhf_recipes.report.reward_readme import write_readme

    facts = read_facts(folder, data, bias, string_path, title, repo_id)
    page = _write_page(Path(folder), facts, _heat_maps(Path(folder), facts, reward, heat_maps))
    write_readme(Path(folder) / "README.md", facts, license)
    return page


def write_page(folder: str | Path, title: str | None = None, data: Report | None = None) -> Path:
    """Write `report.html` alone, of figures without a model beside them; see [`write_card`]."""
    return _write_page(Path(folder), read_facts(folder, data, title=title), ([], ""))


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


# --- The page ----------------------------------------------------------------------------------------------


def _write_page(root: Path, facts: CardFacts, heat: tuple[list[HeatMap], str]) -> Path:
    environment = Environment(
        loader=PackageLoader("rlhf_recipes.report"),
        autoescape=True,  # texts of the data are text, never markup
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"visible": lambda text: words.visible(text, None)}
    report = Path(words.__file__).parent
    style = (report / "style.css").read_text(encoding="utf-8")
    style += Path(__file__).with_name("reward_card.css").read_text(encoding="utf-8")
    config = yaml.safe_dump(clean_config(facts.config), sort_keys=False, allow_unicode=True) if facts.config else ""
    html = environment.get_template("reward_card.html.j2").render(
        title=facts.title,
        style=Markup(style),
        headline=headline(facts.evaluation, facts.metrics),
        caveats=caveats_of(facts),
        tiles=tiles(facts.metrics),
        data=data_tables(facts.data),
        loss=facts.data.get("loss"),
        figures=figure_rows(facts.metrics, facts.evaluation),
        plots=build_plots(facts.evaluation),
        tables=build_tables(facts.evaluation),
        missing=sorted(facts.evaluation.get("missing", {}).items()),
        bias=_bias_plots(facts.bias),
        cases=cases(facts.evaluation),
        heat=[(h, heat_pieces(h)) for h in heat[0]],
        no_heat=heat[1],
        use=use(facts) if facts.has_model else [],
        config=config,
    )
    page = root / PAGE_FILE
    part = page.with_name(page.name + ".part")
    part.write_text(html.lstrip(), encoding="utf-8", errors="replace", newline="\n")
    part.replace(page)  # a page is whole or not there
    return page


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


def _bias_plots(bias: Report | None) -> list[Plot]:
    """The pictures that the bias module draws of what it has found."""
    if not bias:
        return []
    from rlhf_recipes.report.reward_figures import draw_bias

    return [
        Plot(as_svg(drawn, f"bias{number}", str(title)), str(title), "")
        for number, (title, drawn) in enumerate(draw_bias(bias))
    ]


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


# --- Heat maps ---------------------------------------------------------------------------------------------


def _heat_maps(root: Path, facts: CardFacts, reward: LearnedReward | None, count: int) -> tuple[list[HeatMap], str]:
    """Maps of a text of high, of middle and of low score; else why there are none."""
    if count < 1 or facts.is_process or not facts.has_model:
        return [], ""
    texts = _texts_to_map(root / "predictions.jsonl", count)
    if not texts:
        return [], "predictions.jsonl has no text of a size that can be shown."
    try:
        loaded = reward or LearnedReward(root, calibrate=False)
        return [attribute(loaded, "", text) for text in texts], ""
    except (ImportError, ValueError) as error:
        logger.info("No heat maps on the card: %s", error)
        return [], str(error)


def _texts_to_map(path: Path, count: int) -> list[str]:
    """Texts of the test split, spread evenly over the scores, none of them long."""
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").splitlines()]
    short = [row for row in rows if row.get("split") == "test" and SHORTEST <= len(row["text"]) <= HEAT_LIMIT]
    ordered = sorted({(row["logit"], row["text"]) for row in short}, reverse=True)
    if len(ordered) <= count:
        return [text for _, text in ordered]
    last = len(ordered) - 1
    places = [round(last * (0.02 + 0.96 * place / max(count - 1, 1))) for place in range(count)]
    return [ordered[place][1] for place in places]
