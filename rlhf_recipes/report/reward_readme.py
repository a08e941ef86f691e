"""README.md of a reward model: a model card with metadata for the Hub, made without it."""

import re
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from rlhf_recipes.report.markdown import (
    as_code,
    cell,
    clean_config,
    fenced,
    finite,
    hub_id,
    linked,
    markdown_table,
    plain_line,
    rounded,
    short_name,
)
from rlhf_recipes.report.policy_card import library_versions
from rlhf_recipes.report.reward_facts import CardFacts, cases, caveats_of, data_tables, use
from rlhf_recipes.report.reward_figures import bucket_name
from rlhf_recipes.report.reward_sections import FIGURES, Table, build_tables, figure_rows, headline
from rlhf_recipes.report.words import visible

TASKS = {"steps": "token-classification"}

# Names of the Hub's own metrics for what these figures are; others keep their own name.
HUB_METRICS = {"pairwise_accuracy": "accuracy", "mae": "mae", "pearson": "pearsonr", "step_f1": "f1"}


def write_readme(path: Path, facts: CardFacts, license: str | None = None) -> Path:
    """Write the card; an earlier one is replaced.

    Args:
        path (`Path`): The file.
        facts ([`CardFacts`]): What is said.
        license (`str`, *optional*): An id of the Hub such as `"apache-2.0"`; left out where it is not known.
    """
    sections = [_what_it_is(facts), _how_to_use(facts), _figures(facts), _data(facts), _errors(facts)]
    sections += [_limits(facts), _config(facts)]
    text = "\n\n".join(section for section in sections if section)
    ModelCard(f"---\n{_metadata(facts, license).to_yaml()}\n---\n\n{text}\n").save(path)
    return path


def _metadata(facts: CardFacts, license: str | None) -> ModelCardData:
    base, dataset = (hub_id(str(facts.config.get(key) or "")) for key in ("model_name_or_path", "dataset_name"))
    task = TASKS.get(str(facts.evaluation.get("kind")), "text-classification")
    tags = ["rlhf-recipes", "reward-model", "process-reward-model" if facts.is_process else "rlhf"]
    results = _eval_results(facts, task)
    return ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="transformers",
        license=license,
        pipeline_tag=task,
        tags=[*tags, "lora"] if facts.config.get("use_peft") else tags,
        metrics=[HUB_METRICS[key] for key in HUB_METRICS if finite(facts.metrics.get(key)) is not None] or None,
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
        if (value := finite(facts.metrics.get(key))) is not None
    ]


# --- Sections ----------------------------------------------------------------------------------------------


def _what_it_is(facts: CardFacts) -> str:
    base, dataset = facts.config.get("model_name_or_path"), facts.config.get("dataset_name")
    what = "A process reward model: it judges each step of an answer." if facts.is_process else (
        "A reward model: it gives one score to a prompt with a completion, higher for what people prefer."
    )  # fmt: skip
    made = f" It is {linked(str(base))}" if base else ""
    made += f", trained on the human feedback in {linked(str(dataset), 'datasets/')}" if base and dataset else ""
    loss = facts.data.get("loss")
    made += f" with the loss {as_code(str(loss))}" if made and loss else ""
    sentence = plain_line(headline(facts.evaluation, facts.metrics))
    page = "`report.html` in this repository shows all of this with pictures."
    parts = [f"# {plain_line(facts.title)}", f"{what}{made}{'.' if made else ''}", f"**{sentence}** {page}"]
    for caveat in caveats_of(facts):
        parts += [f"**{caveat.title}:** {_note(caveat.note)}", fenced(visible(caveat.code, None), caveat.language)]
    return "\n\n".join(parts)


def _how_to_use(facts: CardFacts) -> str:
    if not facts.has_model:
        return ""
    parts = ["## Use it"]
    for snippet in use(facts):
        parts.append(f"### {plain_line(snippet.title)}\n\n{fenced(visible(snippet.code, None), snippet.language)}")
        parts += [_note(snippet.note)] if snippet.note else []
    return "\n\n".join(parts)


def _note(text: str) -> str:
    """A sentence of ours, in which code stands in backticks."""
    return "".join(part if place % 2 else plain_line_inside(part) for place, part in enumerate(_by_code(text)))


def _by_code(text: str) -> list[str]:
    parts = text.split("`")
    return [f"`{part}`" if place % 2 else part for place, part in enumerate(parts)]


def plain_line_inside(text: str) -> str:
    """[`plain_line`] that keeps the white space at both ends."""
    before, after = text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]
    return f"{before}{plain_line(text)}{after}" if text.strip() else text


def _figures(facts: CardFacts) -> str:
    rows = [["figure", "value", "95% interval"]]
    rows += [
        [plain_line(label), _value(value.striptags()), _value(interval)]
        for label, value, interval in figure_rows(facts.metrics, facts.evaluation)
    ]
    parts = ["## What it is worth", "On held-out feedback, with the model as it was saved."]
    parts += [markdown_table(rows, (1, 2))] if len(rows) > 1 else []
    margins = facts.evaluation.get("by_margin")
    if margins:
        table = [["how clear the case is", "pairs in order", "pairs"]]
        table += [[_value(bucket_name(b)), rounded(b["accuracy"]), f"{b['pairs']:,}"] for b in margins["model"]]
        parts.append(f"By {plain_line(margins['margin'])}:\n\n{markdown_table(table, (1, 2))}")
    return "\n\n".join([*parts, *map(_as_markdown, build_tables(facts.evaluation))])


def _as_markdown(table: Table) -> str:
    rows = [[plain_line(name) for name in table.header]]
    rows += [[_value(value) for value in row] for row in table.rows]
    return f"### {plain_line(table.title)}\n\n{markdown_table(rows, table.numbers)}"


def _value(text: str) -> str:
    """A cell of figures as it is, which no renderer takes for markup inside a table; anything else as plain text."""
    return (
        text if re.fullmatch(r"[\d.,%\s\u2212\u2013]*( (to|and more) ?[\d.,%\s\u2212]*)?", text) else plain_line(text)
    )


def _data(facts: CardFacts) -> str:
    tables = data_tables(facts.data)
    return "\n\n".join(["## Data", *map(_as_markdown, tables)]) if tables else ""


def _errors(facts: CardFacts) -> str:
    rows = [["", "text", "figures"]]
    for case in cases(facts.evaluation, 5):
        rows += [["prompt", cell(case.prompt), ""]] if case.prompt.strip() else []
        rows += [[plain_line(name), cell(text), plain_line(figures)] for name, text, figures in case.rows]
    return (
        "## What it gets wrong\n\nThe held-out cases with the largest error.\n\n" + markdown_table(rows)
        if rows[1:]
        else ""
    )


def _limits(facts: CardFacts) -> str:
    base = facts.config.get("model_name_or_path")
    lines = [
        "The score is what the raters of these data would say, as far as the model has learned it: no measure of "
        "truth, help or harmlessness, and of other texts than these nobody has asked.",
        "A policy that is trained on it finds what it overlooks. Watch other rewards beside it, and read what comes "
        "out.",
        "The figures are of one run with one seed. Intervals cover the choice of test rows, not another training run.",
    ]
    if base:
        lines.append(f"The knowledge, gaps and bias of {linked(str(base))} are still there.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _config(facts: CardFacts) -> str:
    versions = ", ".join(f"{plain_line(n)} {plain_line(v)}" for n, v in library_versions().items())
    made = f"Made with {versions}."
    if not facts.config:
        return made
    config: Any = clean_config(facts.config)
    text = visible(yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100), None)
    return f"<details>\n<summary>The settings of the run</summary>\n\n{fenced(text, 'yaml')}\n\n</details>\n\n{made}"
