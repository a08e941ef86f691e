"""The page and the model card of a reward model: what it learned from, what it is worth, what it gets wrong, its use.

```
metrics.json, evaluation.json, reward_config.json, config.yaml, and what the caller knows
    -> write_page     report.html: one file, which loads nothing and runs nothing
    -> write_card     the same, and README.md with metadata for the Hub
```
Texts of data and of models are text on the page and nothing else.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from rlhf_recipes.report import words
from rlhf_recipes.report.heat import HeatMap, heat_pieces
from rlhf_recipes.report.html import Plot
from rlhf_recipes.report.markdown import clean_config
from rlhf_recipes.report.reward_facts import CardFacts, Report, cases, caveats_of, data_tables, read_facts, use
from rlhf_recipes.report.reward_figures import as_svg
from rlhf_recipes.report.reward_sections import build_plots, build_tables, figure_rows, headline, tiles

logger = logging.getLogger(__name__)
PAGE_FILE = "report.html"


def write_card(
    folder: str | Path,
    data: Report | None = None,
    bias: Report | None = None,
    string_path: Mapping[str, Any] | None = None,
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
            What `rlhf_recipes.reward_modeling.bias.measure.measure_bias` has found; it is drawn by `draw_bias`.
        string_path (`Mapping`, *optional*):
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
    from rlhf_recipes.report.reward_readme import write_readme

    facts = read_facts(folder, data, bias, string_path, title, repo_id)
    page = _write_page(Path(folder), facts, heat)
    write_readme(Path(folder) / "README.md", facts, license)
    return page


def write_page(folder: str | Path, title: str | None = None, data: Report | None = None) -> Path:
    """Write `report.html` alone, of figures without a model beside them; see [`write_card`]."""
    return _write_page(Path(folder), read_facts(folder, data, title=title), ((), ""))


# --- The page ----------------------------------------------------------------------------------------------


def _write_page(root: Path, facts: CardFacts, heat: tuple[Sequence[HeatMap], str]) -> Path:
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


def _bias_plots(bias: Report | None) -> list[Plot]:
    """The pictures that the bias module draws of what it has found."""
    if not bias:
        return []
    from rlhf_recipes.report.reward_figures import draw_bias

    return [
        Plot(as_svg(drawn, f"bias{number}", str(title)), str(title), "")
        for number, (title, drawn) in enumerate(draw_bias(bias))
    ]
