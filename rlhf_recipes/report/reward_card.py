"""The page and the model card of a reward model: what it learned from, what it is worth, what it gets wrong, its use.

```
metrics.json, evaluation.json, bias.json, reward_config.json, config.yaml, and what the caller knows
    -> write_page     report.html: one file, which loads nothing and runs nothing
    -> write_card     the same, and README.md with metadata for the Hub
```
What only the caller knows is kept in `card.json`, so that the page can be made again from the folder alone. The text
of the README stands in `templates/reward_card.md.j2`.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rlhf_recipes import filenames
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.outputs import write_json
from rlhf_recipes.report import page
from rlhf_recipes.report.ending import library_versions
from rlhf_recipes.report.heat import HeatMap, heat_piece
from rlhf_recipes.report.markdown import (
    as_sentence,
    cell,
    clean_text,
    hub_id,
    plain_line,
    rounded,
    save_card,
    settings_text,
    short_name,
)
from rlhf_recipes.report.page import Fold, Grid, Page, Piece, Plot, Section, Snippet, Table
from rlhf_recipes.report.reward_figures import draw_bias, uncertainty_pictures
from rlhf_recipes.report.reward_plots import bucket_name, build_plots
from rlhf_recipes.report.reward_sections import build_tables, cases, data_tables, figure_rows, headline
from rlhf_recipes.report.reward_usage import caveats, snippets
from rlhf_recipes.report.run import Run, read_object, read_run
from rlhf_recipes.report.run_sections import FIGURES, figures, points, repeat, tiles, training
from rlhf_recipes.report.words import number

Report = dict[str, Any]
CARD_FILE = "card.json"
TASKS = {"steps": "token-classification"}
TILES = (
    *("pairwise_accuracy", "step_accuracy", "single_rater_accuracy", "top1_accuracy", "first_error_rate"),
    *("vader_accuracy", "length_accuracy", "kendall", "pearson", "log_loss"),
)

# Names of the Hub's own metrics for what these figures are; others keep their own name.
HUB_METRICS = {"pairwise_accuracy": "accuracy", "mae": "mae", "pearson": "pearsonr", "step_f1": "f1"}


@dataclass(frozen=True)
class CardFacts:
    """Everything that a card says, out of the files of a folder and from the caller.

    Args:
        title (`str`): What the model is called.
        run ([`Run`]): The folder, with its figures and settings.
        evaluation (`dict`): `evaluation.json`; empty where there is none.
        config (`dict`): The YAML of the run.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`]): Those in the folder.
        data (`dict`), bias (`dict`), by_trl (`dict`): As in [`write_card`].
        heat (`list[Heat]`), no_heat (`str`): Maps of words, and why there are none.
        where (`str`): What the snippets call the model.
        has_model (`bool`): Whether the folder holds a model, and not the figures alone.
    """

    title: str
    run: Run
    evaluation: Report
    config: Report
    settings: RewardModelSettings
    data: Report
    bias: Report | None
    by_trl: Mapping[str, Any] | None
    heat: Sequence[page.Heat]
    no_heat: str
    where: str
    has_model: bool

    @property
    def is_process(self) -> bool:
        """Whether steps are judged and not texts."""
        return self.evaluation.get("kind") == "steps"

    @property
    def use(self) -> list[Snippet]:
        """The snippets that fit the model."""
        if not self.has_model:
            return []
        options = self.config.get("loss_args") or {}
        token = self.settings.step_token or str(options.get("step_token", "\n"))
        return snippets(self.where, self.settings, self.is_process, token, self.by_trl)

    @property
    def caveats(self) -> list[Snippet]:
        """What other code cannot know of the model, for the first screen."""
        return caveats(self.where, self.settings, self.is_process) if self.has_model else []


def write_card(
    folder: str | Path,
    data: Report | None = None,
    bias: Report | None = None,
    by_trl: Mapping[str, Any] | None = None,
    heat: tuple[Sequence[HeatMap], str] = ((), ""),
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
            What `rlhf_recipes.reward_modeling.bias.measure.measure_bias` has found. Default: `bias.json`, if it is
            there.
        by_trl (`Mapping`, *optional*):
            Names and figures of how far the scores of TRL's own reading of the folder are from those measured here.
        heat (`tuple`, *optional*):
            Maps of which words moved the score of a text, and, where there are none, why; see
            `rlhf_recipes.reward_modeling.explain.heat_maps`.
        title (`str`, *optional*), repo_id (`str`, *optional*), license (`str`, *optional*):
            Name of the model, its place on the Hub for the snippets, and an id such as `"apache-2.0"`.

    Returns:
        `Path`: the page.

    Raises:
        `ValueError`: if the folder holds neither `evaluation.json` nor `metrics.json`.
    """
    maps = [heat_piece(one) for one in heat[0]]
    given: Report = {"data": data, "by_trl": by_trl, "title": title, "repo_id": repo_id}
    given |= {"heat": [{"figures": one.figures, "pieces": one.pieces} for one in maps], "no_heat": heat[1]}
    facts = _keep_and_read(folder, given, bias)
    _write_readme(Path(folder) / filenames.README, facts, license)
    return page.write_page(_page(facts), Path(folder) / filenames.PAGE)


def write_page(folder: str | Path, title: str | None = None, data: Report | None = None) -> Path:
    """Write `report.html` alone, of figures without a model beside them; see [`write_card`]."""
    facts = _keep_and_read(folder, {"title": title, "data": data}, None)
    return page.write_page(_page(facts), Path(folder) / filenames.PAGE)


def has_card(run: Run) -> bool:
    """Whether the page of a run is that of a reward model."""
    return (run.folder / filenames.EVALUATION).is_file() or run.recipe.startswith("reward")


def reward_page(run: Run) -> Page:
    """The page of a reward model, out of its folder alone."""
    return _page(_read_facts(run))


# --- Reading -----------------------------------------------------------------------------------------------


def _keep_and_read(folder: str | Path, given: Report, bias: Report | None) -> CardFacts:
    run = read_run(Path(folder))
    if not run.metrics and not read_object(run.folder / filenames.EVALUATION):
        raise ValueError(
            f"{str(folder)!r} holds neither evaluation.json nor metrics.json, so there is nothing to write a card of. "
            "recipes/reward.py and `python -m rlhf_recipes.reward_modeling.evaluation` write them."
        )
    data = dict(given.get("data") or {})
    config = data.pop("config", None)  # it may hold what is nobody else's business; the folder has its own
    kept = {key: value for key, value in {**given, "data": data}.items() if value}
    # As JSON can say it: without NaN, and a number of numpy as text that Python writes for it.
    write_json(run.folder / CARD_FILE, json.loads(json.dumps(kept, default=float), parse_constant=lambda _: None))
    return _read_facts(run, bias, config)


def _read_facts(run: Run, bias: Report | None = None, config: Report | None = None) -> CardFacts:
    """What a folder says about its model."""
    evaluation, card = (read_object(run.folder / name) or {} for name in (filenames.EVALUATION, CARD_FILE))
    has_model = (run.folder / filenames.MODEL_CONFIG).is_file()
    data, repo_id = card.get("data") or {}, card.get("repo_id")
    return CardFacts(
        title=card.get("title") or (repo_id or run.name).rsplit("/", 1)[-1],
        run=run,
        evaluation=evaluation,
        config=config or run.settings,
        settings=RewardModelSettings.load(run.folder) if has_model else RewardModelSettings(),
        data=data,
        bias=bias or read_object(run.folder / filenames.BIAS),
        by_trl=card.get("by_trl"),
        heat=[page.Heat(one["figures"], one["pieces"]) for one in card.get("heat", ())],
        no_heat=card.get("no_heat", ""),
        where=repo_id or clean_text(short_name(str(run.folder))),
        has_model=has_model,
    )


# --- The page ----------------------------------------------------------------------------------------------


def _page(facts: CardFacts) -> Page:
    run = facts.run
    sections = [_data(facts), _worth(facts), _bias(facts), _uncertainty(run), _wrong(facts), _heat(facts)]
    sections += [training(run), points(run), figures(run), _use(facts), repeat(run)]
    if facts.config and not run.config:
        sections.append(
            Section("settings", "Settings", [Fold("The settings of the run", settings_text(facts.config))])
        )
    lead = "Everything here is measured on feedback that the model was not trained on, with the model as it was saved."
    return Page(
        title=facts.title,
        about="reward model",
        headline=headline(facts.evaluation, run.metrics),
        lead=[lead],
        tiles=tiles(run, TILES, 4),
        first=facts.caveats,
        sections=[section for section in sections if section is not None],
    )


def _data(facts: CardFacts) -> Section | None:
    tables, loss = data_tables(facts.data), facts.data.get("loss")
    lead = f"Trained with the loss {loss}." if loss else ""
    return Section("data", "Data", tables, lead) if tables or loss else None


def _worth(facts: CardFacts) -> Section:
    rows = [list(row) for row in figure_rows(facts.run.metrics, facts.evaluation)]
    pieces: list[Piece] = [Grid(plots)] if (plots := build_plots(facts.evaluation)) else []
    pieces += [Table("Held-out figures", ["figure", "value", "95% interval"], rows, (1, 2))] if rows else []
    missing = [(f"Left out: {p}. {why}", "") for p, why in sorted(facts.evaluation.get("missing", {}).items())]
    return Section("worth", "What it is worth", [*pieces, *build_tables(facts.evaluation)], missing=missing)


def _bias(facts: CardFacts) -> Section | None:
    if not facts.bias:
        return None
    plots = [Plot(svg, title) for title, svg in draw_bias(facts.bias)]
    return Section("bias", "Bias", [Grid(plots)], "What the score depends on besides what people mean.")


def _uncertainty(run: Run) -> Section | None:
    plots = [
        Plot(svg, title) for title, svg in uncertainty_pictures(read_object(run.folder / filenames.UNCERTAINTY) or {})
    ]
    lead = "How far the members disagree, and whether they err where they do."
    return Section("uncertainty", "Uncertainty", [Grid(plots)], lead) if plots else None


def _wrong(facts: CardFacts) -> Section | None:
    found = cases(facts.evaluation)
    lead = "The held-out cases with the largest error, as they stand in the data."
    return Section("wrong", "What it gets wrong", found, lead) if found else None


def _heat(facts: CardFacts) -> Section | None:
    if not facts.heat:
        reason = [(f"Left out: {facts.no_heat}", "")]
        return Section("heat", "What moves the score", missing=reason) if facts.no_heat else None
    lead = (
        "Integrated gradients against a text in which every word is blank: a whole line below a word that raised the "
        "score, a broken one below a word that lowered it. It says what the model did with a word here, not that it "
        "was right."
    )
    return Section("heat", "What moves the score", facts.heat, lead)


def _use(facts: CardFacts) -> Section | None:
    return Section("use", "How to use it", found) if (found := facts.use) else None


# --- The README --------------------------------------------------------------------------------------------


def _write_readme(path: Path, facts: CardFacts, license: str | None) -> None:
    margins = facts.evaluation.get("by_margin")
    by_margin = [["how clear the case is", "pairs in order", "pairs"]]
    for bucket in margins["model"] if margins else ():
        by_margin.append([_value(bucket_name(bucket)), rounded(bucket["accuracy"]), f"{bucket['pairs']:,}"])
    rows = [[plain_line(label), _value(value.striptags()), _value(interval)]
            for label, value, interval in figure_rows(facts.run.metrics, facts.evaluation)]  # fmt: skip
    errors = []
    for case in cases(facts.evaluation, 5):
        errors += [["prompt", cell(case.prompt), ""]] if case.prompt.strip() else []
        errors += [[plain_line(name), cell(text), plain_line(said)] for name, text, said in case.rows]
    save_card(
        path,
        _metadata(facts, license),
        "reward_card.md.j2",
        facts=facts,
        base=str(facts.config.get("model_name_or_path") or ""),
        dataset=str(facts.config.get("dataset_name") or ""),
        headline=headline(facts.evaluation, facts.run.metrics),
        caveats=[(snippet, as_sentence(snippet.note)) for snippet in facts.caveats],
        use=[(snippet, as_sentence(snippet.note)) for snippet in facts.use],
        figures=[["figure", "value", "95% interval"], *rows] if rows else [],
        margin=margins["margin"] if margins else "",
        by_margin=by_margin,
        tables=[_as_markdown(table) for table in build_tables(facts.evaluation)],
        data=[_as_markdown(table) for table in data_tables(facts.data)],
        errors=[["", "text", "figures"], *errors] if errors else [],
        config=settings_text(facts.config),
        versions=library_versions(),
    )


def _metadata(facts: CardFacts, license: str | None) -> ModelCardData:
    base, dataset = (hub_id(str(facts.config.get(key) or "")) for key in ("model_name_or_path", "dataset_name"))
    task = TASKS.get(str(facts.evaluation.get("kind")), "text-classification")
    tags = ["rlhf-recipes", "reward-model", "process-reward-model" if facts.is_process else "rlhf"]
    results = _eval_results(facts, task)
    metrics = facts.run.metrics
    return ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        license=license,
        pipeline_tag=task,
        tags=[*tags, "lora"] if facts.config.get("use_peft") else tags,
        metrics=[HUB_METRICS[key] for key in HUB_METRICS if number(metrics.get(key)) is not None] or None,
        model_name=facts.title if results else None,
        eval_results=results or None,
    )


def _eval_results(facts: CardFacts, task: str) -> list[EvalResult]:
    name = short_name(str(facts.config.get("dataset_name") or "")) or "held-out feedback"
    wanted = ("pairwise_accuracy", "step_accuracy", "pearson", "log_loss", "kendall", "top1_accuracy")
    return [
        EvalResult(
            task_type=task,
            dataset_type=name,
            dataset_name=name,
            metric_type=HUB_METRICS.get(key, key),
            metric_name=FIGURES[key][0],
            metric_value=value,
        )
        for key in wanted
        if (value := number(facts.run.metrics.get(key))) is not None
    ]


def _as_markdown(table: Table) -> tuple[str, list[list[str]], Sequence[int]]:
    rows = [[plain_line(name) for name in table.header]]
    return table.title, rows + [[_value(value) for value in row] for row in table.rows], table.numbers


def _value(text: str) -> str:
    """A cell of figures as it is, which no renderer takes for markup inside a table; anything else as plain text."""
    figures_alone = re.fullmatch(r"[\d.,%\s\u2212\u2013]*( (to|and more) ?[\d.,%\s\u2212]*)?", text)
    return text if figures_alone else plain_line(text)
