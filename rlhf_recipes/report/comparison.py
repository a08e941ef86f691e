"""Several runs on one page: their curves in the same axes, figures side by side, what differs in their settings.

Where two runs have answered the same prompts, as before and after training, their answers stand beside each other, and
the change of each score has its 95% interval over prompts.
"""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from rlhf_recipes import figures as plots
from rlhf_recipes.report import words
from rlhf_recipes.report.curves import draw_logs
from rlhf_recipes.report.markdown import clean_config
from rlhf_recipes.report.page import Cell, Grid, Page, Piece, Plot, Section, Table, TextRow, Texts
from rlhf_recipes.report.run import Completion, Run
from rlhf_recipes.report.run_sections import (
    ALL_ROWS,
    EXTREMES,
    FIGURES,
    Pair,
    answer,
    chosen_texts,
    label_of,
    machine_tables,
    paired,
)
from rlhf_recipes.report.words import number
from rlhf_recipes.statistics import paired_gain

Named = Sequence[tuple[str, Run]]


def comparison_page(runs: Sequence[Run]) -> Page:
    """The page that compares two runs or more, in the order given; each is called by its folder."""
    named = list(zip(_names(runs), runs, strict=True))
    sections = [_figures(named), _scores(named), _texts(named), _training(named), _settings(named), _repeat(named)]
    recipes = dict.fromkeys(run.recipe for run in runs if run.recipe)
    return Page(
        title=" and ".join(name for name, _ in named),
        about="comparison of the runs",
        headline=f"{len(runs)} runs side by side",
        lead=[f"Recipes: {', '.join(recipes)}." if recipes else "The first is what the others are compared with."],
        sections=[section for section in sections if section is not None],
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the folders, with those above them as far as it takes to tell them apart."""
    parts = [run.folder.resolve().parts for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(names, start=1)]  # one folder, given twice


def _figures(named: Named) -> Section | None:
    keys = dict.fromkeys(key for key in FIGURES if any(key in run.metrics for _, run in named))
    keys |= dict.fromkeys(key for _, run in named for key in run.metrics)
    table = figures_table(named, [key for key in keys if _is_in_any(key, named)], "Final figures")
    return Section("figures", "Figures", [table]) if table.rows else None


def _is_in_any(key: str, named: Named) -> bool:
    return any(number(run.metrics.get(key)) is not None for _, run in named)


def figures_table(named: Named, keys: Sequence[str], title: str) -> Table:
    """Figures of metrics.json, one column for each run."""
    keys = [key for key in keys if _is_in_any(key, named)]
    rows: list[list[Cell]] = [
        [label_of(key), *(FIGURES.get(key, ("", "", words.figure))[2](run.metrics.get(key)) for _, run in named)]
        for key in keys
    ]
    notes = [FIGURES.get(key, ("", ""))[1] for key in keys]
    return Table(title, ["figure", *(name for name, _ in named)], rows, range(1, len(named) + 1), notes=notes)


def _scores(named: Named) -> Section | None:
    judged = [(name, run) for name, run in named if run.score_names]
    if len(judged) < 2:
        return None
    names = list(dict.fromkeys(name for _, run in judged for name in run.score_names))
    lead = "The mean of each score over its completions"
    lead += "; intervals are over prompts." if len(judged) == 2 and same_prompts(judged[0][1], judged[1][1]) else "."
    return Section("scores", "Scores", [score_table(judged, names, "Every score")], lead)


def score_table(named: Named, names: Sequence[str], title: str, notes: Sequence[str] = ()) -> Table:
    """The mean of each score in each run; of two runs over the same prompts its change, with the 95% interval."""
    two = len(named) == 2
    rows: list[list[Cell]] = []
    for name in names:
        means = [_mean_score(run, name) for _, run in named]
        row: list[Cell] = [words.breakable(name), *map(words.plain, means)]
        if two:
            old, new = means
            change = new - old if new is not None and old is not None else None
            row += [words.signed(change), words.interval(_interval(named[0][1], named[1][1], name))]
        rows.append(row)
    header = ["score", *(name for name, _ in named), *(["change", "95% interval"] if two else [])]
    return Table(title, header, rows, range(1, len(header)), notes=notes)


def _mean_score(run: Run, name: str) -> float | None:
    stated = number(run.metrics.get(f"reward/{name}"))
    if stated is not None:
        return stated
    values = run.scores(name)
    return fmean(values) if values else None


def _interval(before: Run, after: Run, name: str) -> Any:
    """Of the mean change, over the prompts to whose answers the reward applies both times."""
    if not same_prompts(before, after):
        return None
    pairs = zip(before.completions, after.completions, strict=True)
    values = [(old.scores.get(name), new.scores.get(name)) for old, new in pairs]
    both = [(old, new) for old, new in values if old is not None and new is not None]
    return paired_gain(*zip(*both, strict=True))["gain_ci95"] if both else None


def same_prompts(before: Run, after: Run) -> bool:
    """Whether two runs have answered the same prompts in the same order, each prompt once."""
    prompts = [row.prompt for row in before.completions]
    return len(set(prompts)) == len(prompts) and prompts == [row.prompt for row in after.completions]


def _texts(named: Named) -> Section | None:
    written = [(name, run) for name, run in named if run.completions]
    if len(written) < 2:
        return None
    names = [name for name, _ in written]
    if len(written) == 2 and same_prompts(written[0][1], written[1][1]):
        (_, before), (_, after) = written
        pairs = list(zip(before.completions, after.completions, strict=True))
        main = next((name for name in ("score", *before.score_names) if paired(pairs[0], name) is not None), None)
        pieces: list[Piece] = [Grid([plot])] if (plot := histogram(pairs, main, names)) else []
        pieces += changed_texts(pairs, names, main)
        return Section("texts", "The same prompts", pieces)
    found: list[dict[str, Completion]] = [{row.prompt: row for row in run.completions} for _, run in written]
    shared = [prompt for prompt in found[0] if sum(prompt in of for of in found) > 1][:ALL_ROWS]
    if not shared:
        return None
    rows = [TextRow(prompt, [answer(of[prompt]) if prompt in of else None for of in found]) for prompt in shared]
    texts: list[Piece] = [Texts("The first of them", names, rows[:EXTREMES])]
    return Section("texts", "The same prompts", [*texts, Texts("All", names, rows, folded=f"{len(rows)} prompts")])


def changed_texts(
    pairs: Sequence[Pair], names: Sequence[str], main: str | None, second: str | None = None, seed: int = 0
) -> list[Texts]:
    """Answers side by side: the best and worst changes of the score `main`, some drawn at random, and all."""
    rows = [_changed(pair, main, second) for pair in pairs]
    gains = [paired(pair, main) for pair in pairs]
    best = ("Best changes", "The largest gains in score.")
    worst = ("Worst changes", "The smallest gains, or the largest losses.")
    return chosen_texts(rows, gains, names, (best, worst), "prompts", seed)


def _changed(pair: Pair, main: str | None, second: str | None) -> TextRow:
    small = Markup("{} {}").format(second, words.signed(paired(pair, second))) if second in pair[1].scores else ""
    change = words.signed(paired(pair, main)) if main else ""
    return TextRow(pair[0].prompt, [answer(completion) for completion in pair], change, small)


def histogram(pairs: Sequence[Pair], main: str | None, names: Sequence[str]) -> Plot | None:
    """How many prompts got which score the one and the other time."""
    scored = [[completion.of(main) for completion in pair] for pair in pairs if paired(pair, main) is not None]
    if not scored:
        return None
    before, after = ([score or 0.0 for score in side] for side in zip(*scored, strict=True))
    means = [fmean(side) for side in (before, after)]
    first, second = (name[0].lower() + name[1:] for name in names)
    label = f"Histogram of {main} over {len(scored)} prompts: mean {means[0]:.2f} {first}, {means[1]:.2f} {second}."
    return Plot(
        plots.plot_score_histogram("scores", label, before, after),
        f"Score of each completion, {main}",
        f"{len(scored)} held-out prompts, one completion each. The upright lines are the means, "
        f"{words.text(means[0])} {first} (dashed) and {words.text(means[1])} {second}.",
        ((names[0], "band muted"), (names[1], "band s0")),
    )


def _training(named: Named) -> Section | None:
    pictures = draw_logs(named)
    return Section("training", "Training", [Grid(pictures, 3)]) if pictures else None


def _settings(named: Named) -> Section | None:
    """The options that are not the same in all runs; one that is not given has its default."""
    settings = [clean_config(run.settings) for _, run in named]
    keys = dict.fromkeys(key for of in settings for key in of)
    rows = [
        [key, *(str(of[key]) if key in of else "default" for of in settings)]
        for key in keys
        if any(of.get(key) != settings[0].get(key) for of in settings)
    ]
    if not any(settings):
        return None
    lead = "Options that are not the same in all of them." if rows else "No option differs."
    pieces = [Table("What differs", ["option", *(name for name, _ in named)], rows)] if rows else []
    return Section("settings", "Settings", pieces, lead)


def _repeat(named: Named) -> Section | None:
    stages = {name: run.metrics for name, run in named}
    environments = [run.environment for _, run in named if run.environment]
    same = all(of == environments[0] for of in environments)
    tables = machine_tables(stages, environments[0] if environments and same else {})
    return Section("cost", "Time, memory and versions", tables) if tables else None
