"""The page of `make quickstart`: what PPO changed, how it went, how far the reward model can be trusted.

A part that is missing is one line that says which command makes it.
"""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from rlhf_recipes import figures as plots
from rlhf_recipes import filenames
from rlhf_recipes.report import words
from rlhf_recipes.report.comparison import changed_texts, figures_table, histogram, score_table
from rlhf_recipes.report.curves import draw_log
from rlhf_recipes.report.page import Commands, Fold, Grid, Page, Piece, Plot, Section, Table, Tile
from rlhf_recipes.report.quickstart.run import JUDGE, MAIN_REWARD, STAGES, Quickstart, describe_terms
from rlhf_recipes.report.reward_plots import build_plots
from rlhf_recipes.report.run_sections import machine_tables, metrics_table, paired
from rlhf_recipes.report.words import number
from rlhf_recipes.statistics import correlation

COMMANDS = {
    "reward": "accelerate launch recipes/reward.py --config recipes/configs/quickstart_reward.yaml",
    "judge": "accelerate launch recipes/reward.py --config recipes/configs/quickstart_judge.yaml",
    "ppo": "accelerate launch recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml",
    "before": "accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_before.yaml",
    "after": "accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_after.yaml",
}
SIDES = ("Before PPO", "After PPO")
MEASURES = ("score", "kl", "distinct_1", "distinct_2", "completion_length", "finished")
TOLERANCE = 0.01  # beyond rounding: then two files of a run disagree
Missing = list[tuple[str, str]]


def quickstart_page(run: Quickstart) -> Page:
    """What the page of a quickstart shows."""
    headline, lead = _headline(run)
    return Page(
        title=run.folder.resolve().name,
        about="report of the run",
        headline=headline,
        lead=lead,
        notices=_contradictions(run),
        tiles=_tiles(run),
        no_tiles=("Left out: no metrics.json in this run, which has the figures at a glance.", "make quickstart"),
        terms=describe_terms(run),
        sections=[_changes(run), _training(run), _reward_model(run), _scores(run), _repeat(run)],
    )


# --- The headline, and figures at a glance -----------------------------------------------------------------


def _headline(run: Quickstart) -> tuple[Markup | str, list[Markup | str]]:
    """What became of the score, and what the judge says to it."""
    ppo = run.section("ppo")
    before, after = number(ppo.get("score_before")), number(ppo.get("score_after"))
    if before is None or after is None:
        key = f"reward/{MAIN_REWARD}"
        before, after = (number(side.metrics.get(key)) for side in (run.before, run.after))
        ppo = {key: run.after.metrics.get(key) for key in ("kl", "prompts")}
    if before is None or after is None:
        return "A run without a result yet", [
            Markup(
                "The score before and after PPO is not in this run's files. <code>make quickstart</code> goes on "
                "where it was and measures both."
            )
        ]
    gain = number(ppo.get("gain"))
    gain = after - before if gain is None else gain
    verb = _direction(gain, ("raised", "left", "lowered"))
    held_out = Markup('the <span class="whole">held-out</span> score ')
    how = "where it was: {} before, {} after" if verb == "left" else "from {} to {}"
    kl = Markup(" at a KL of {} nats").format(words.plain(ppo["kl"])) if number(ppo.get("kl")) is not None else ""
    sentence = Markup("PPO {} {}") + Markup(how) + Markup(" ({}{}){}.")
    values = (verb, held_out, words.plain(before), words.plain(after), words.signed(gain))
    lead: list[Markup | str] = []
    if _includes_zero(ppo.get("gain_ci95")):
        lead.append("The interval includes 0: this change may be chance.")
    lead += _judges_sentence(ppo)
    count = ppo.get("prompts")
    rows = Markup("; mean over {} held-out prompts").format(words.figure(count)) if number(count) is not None else ""
    expects = "Score: what the reward model expects people to rate a completion, from −4 to 4{}."
    lead.append(Markup(expects).format(rows))
    return sentence.format(*values, _interval(ppo.get("gain_ci95")), kl), lead


def _judges_sentence(ppo: Mapping[str, Any]) -> list[Markup | str]:
    before, after, gain = (number(ppo.get(f"judge_{key}")) for key in ("before", "after", "gain"))
    if before is None or after is None:
        return []
    gain = after - before if gain is None else gain
    verb = _direction(gain, ("rose", "stayed", "fell"))
    way = (
        Markup("stayed at {}").format(words.plain(after))
        if verb == "stayed"
        else Markup("{} from {} to {}").format(verb, words.plain(before), words.plain(after))
    )
    bounds = ppo.get("judge_gain_ci95")
    unsure = " This interval includes 0, so the judge does not confirm a change." if _includes_zero(bounds) else ""
    sentence = Markup("By a judge that took no part in training it {} ({}{}).{}")
    return [sentence.format(way, words.signed(gain), _interval(bounds), unsure)]


def _interval(bounds: Any) -> Markup | str:
    return Markup(", 95% interval {}").format(words.interval(bounds)) if bounds else ""


def _direction(gain: float, verbs: tuple[str, str, str]) -> str:
    """Choose the verb for a change as it is printed: 0.004 is printed as 0.00, and must not be called a rise."""
    shown = round(gain, 2)
    return verbs[0] if shown > 0 else verbs[2] if shown < 0 else verbs[1]


def _includes_zero(bounds: Any) -> bool:
    """Whether a change may be chance: its interval is known and holds 0."""
    return isinstance(bounds, list) and None not in map(number, bounds) and bounds[0] <= 0 <= bounds[1]


def _tiles(run: Quickstart) -> list[Tile]:
    """The row of figures at the top; empty where there is no metrics.json."""
    if run.metrics is None:
        return []
    ppo, reward = run.section("ppo"), run.section("reward_model")
    old, new = (number(ppo.get(f"distinct2_{side}")) for side in ("before", "after"))
    ratio = new / old if new is not None and old else None
    peaks = [number(part.get("peak_memory_gb")) for part in (reward, ppo)]
    peak = max((value for value in peaks if value is not None), default=None)
    low, judge_low = ((ppo.get(key) or [None])[0] for key in ("gain_ci95", "judge_gain_ci95"))
    gain_met, low_met = _met(ppo.get("gain"), least=0.8), _met(low, above=0.4)
    seconds, accuracy = run.metrics.get("total_seconds"), reward.get("pairwise_accuracy")

    def interval(key: str) -> Markup:
        return Markup("95% interval {}").format(words.interval(ppo.get(key)))

    def both(sentence: str, *values: Markup) -> Markup:
        return Markup(sentence).format(*values)

    return [
        Tile("Score gain", words.signed(ppo.get("gain")), interval("gain_ci95"), "+0.8 or more, interval above +0.4",
             None if None in (gain_met, low_met) else gain_met and low_met),
        Tile("Judge's gain", words.signed(ppo.get("judge_gain")), interval("judge_gain_ci95"), "interval above 0",
             _met(judge_low, above=0)),
        Tile("VADER's gain", words.signed(ppo.get("vader_gain")), interval("vader_gain_ci95")),
        Tile("KL to the reference", words.plain(ppo.get("kl")), "nats per completion", "at most 10",
             _met(ppo.get("kl"), most=10)),
        Tile("Distinct-2, after ÷ before", words.plain(ratio),
             both("{} before, {} after", words.plain(old), words.plain(new)), "0.8 or more", _met(ratio, least=0.8)),
        Tile("Reward model's accuracy", words.percent(accuracy),
             both("VADER {}, one human rater {}", words.percent(reward.get("vader_accuracy")),
                  words.percent(reward.get("single_rater_accuracy"))), "80% or more", _met(accuracy, least=0.8)),
        Tile("Time in all", words.duration(seconds),
             both("reward model {}, PPO {}", *(words.duration(of.get("seconds")) for of in (reward, ppo))),
             "at most 15 min on 2 cores", _met(seconds, most=900)),
        Tile("Peak memory", words.memory(peak), both("reward model {}, PPO {}", *map(words.memory, peaks)),
             "at most 4 GB", _met(peak, most=4)),
    ]  # fmt: skip


def _met(value: Any, least: float | None = None, most: float | None = None, above: float | None = None) -> bool | None:
    found = number(value)
    if found is None:
        return None
    if above is not None:
        return found > above
    return found >= least if least is not None else found <= (most or 0.0)


def _contradictions(run: Quickstart) -> list[str]:
    """Compare metrics.json with the completions: files of two different runs must not pass as one."""
    notices = []
    for side in ("before", "after"):
        values = getattr(run, side).scores(MAIN_REWARD)
        stated = number(run.section("ppo").get(f"score_{side}"))
        if values and stated is not None and abs(fmean(values) - stated) > TOLERANCE:
            notices.append(
                f"metrics.json says that the score {side} is {stated:.3f}, but {side}/completions.jsonl averages "
                f"{fmean(values):.3f}: they come from different runs. Run “make quickstart” again."
            )
    stated, found = number(run.section("ppo").get("prompts")), len(run.after.completions)
    if stated is not None and found and stated != found:
        notices.append(f"metrics.json speaks of {stated:g} prompts, but after/completions.jsonl holds {found}.")
    return notices


# --- Sections ----------------------------------------------------------------------------------------------


def _lacks(run: Quickstart, *files: str) -> Missing:
    """A line for each file that is not there, with the command that makes it."""
    return [
        (f"Left out, because the run has none: {file}.", COMMANDS.get(file.split("/")[0], "make quickstart"))
        for file in files
        if not (run.folder / file).is_file()
    ]


def _changes(run: Quickstart) -> Section:
    """The histogram, the figures before and after, and the completions side by side."""
    files = [f"{side}/{name}" for name in (filenames.COMPLETIONS, filenames.METRICS) for side in ("before", "after")]
    main = run.names[0] if run.names else None
    top: list[Plot | Table] = [plot] if (plot := histogram(run.pairs, main, SIDES)) else []
    if run.before.metrics and run.after.metrics:
        sides = list(zip(SIDES, (run.before, run.after), strict=True))
        top.append(figures_table(sides, MEASURES, "Before and after in figures"))
    pieces: list[Piece] = [Grid(top)] if top else []
    if run.pairs:
        seed = int(number((run.environment or {}).get("seed")) or 0)
        pieces += changed_texts(run.pairs, SIDES, main, JUDGE if main != JUDGE else None, seed)
    lead = "The same held-out prompts, answered by the policy before and after PPO."
    return Section("changes", "1 What changed", pieces, lead, _lacks(run, *files))


def _training(run: Quickstart) -> Section:
    """One small figure per quantity that PPO logs."""
    pictures = draw_log(run.ppo)
    rollouts = sum(number(row.get("episode")) is not None for row in run.ppo.log_history)
    lead = (
        f"{rollouts} logged rollouts. An episode is one prompt completed once. Pale lines are single rollouts, strong "
        "lines their running mean."
    )
    pieces = [Grid(pictures, 3)] if pictures else []
    return Section("training", "2 Training", pieces, lead if pictures else "", _lacks(run, "ppo/log_history.json"))


def _reward_model(run: Quickstart) -> Section:
    """Accuracy beside VADER and a human rater, whether scores mean what they say, and every figure of the training."""
    metrics = run.section("reward_model") | dict(run.reward.metrics)
    stated = {"accuracy": {name: metrics.get(key) for name, key in ACCURACIES.items()}}
    pieces: list[Plot | Table] = [*build_plots(stated | run.evaluation)]
    if run.reward.metrics:
        pieces.append(metrics_table(run.reward.metrics, "Every figure of reward/metrics.json"))
    lead = (
        "The policy can only become as good as the model that judges it. Everything here is on sentences that it was "
        "not trained on."
    )
    missing = _lacks(run, "reward/metrics.json", "reward/evaluation.json")
    return Section("reward-model", "3 The reward model", [Grid(pieces)] if pieces else [], lead, missing)


ACCURACIES = {
    "model": "pairwise_accuracy",
    "single_rater": "single_rater_accuracy",
    "vader": "vader_accuracy",
    "length": "length_accuracy",
    "pairs": "pairs",
}


def _scores(run: Quickstart) -> Section:
    """Every score before and after, and whether the judge agrees prompt by prompt."""
    names = run.names
    missing = _lacks(run, "judge/metrics.json")
    if not names:
        what = "Left out, because the run has none: scores in {}/completions.jsonl."
        missing += [(what.format(side), COMMANDS[side]) for side in ("before", "after")]
    notes = [SCORE_MEANINGS.get(name, "a reward of this run, in its own unit") for name in names]
    sides = list(zip(SIDES, (run.before, run.after), strict=True))
    title = "Every score before and after, mean over all prompts"
    pieces: list[Piece] = [score_table(sides, names, title, notes)] if names else []
    below: list[Plot | Table] = [plot] if (plot := _agreement(run)) else []
    if run.judge.metrics:
        below.append(metrics_table(run.judge.metrics, "The judge's own figures, judge/metrics.json"))
    lead = (
        "A policy learns what its reward model likes, its mistakes included. Scores that it was not trained on tell "
        "the two apart."
    )
    pieces += [Grid(below)] if below else []
    return Section("scores", "4 The judge and other scores", pieces, lead, missing)


SCORE_MEANINGS = {
    MAIN_REWARD: "the trained reward, human rating −4 to 4",
    JUDGE: "took no part in training, human rating −4 to 4",
    "vader": "a list of words with scores, −1 to 1",
}


def _agreement(run: Quickstart) -> Plot | None:
    names = run.names
    if JUDGE not in names[1:]:
        return None
    both = [(paired(pair, names[0]), paired(pair, JUDGE)) for pair in run.pairs]
    gains = [(first, second) for first, second in both if first is not None and second is not None]
    if not gains:
        return None
    agreed = sum(first > 0 and second > 0 for first, second in gains)
    alone = sum(first > 0 >= second for first, second in gains)
    r = correlation(*np.array(gains).T) if len(gains) > 2 else math.nan
    related = "" if math.isnan(r) else f" The two changes correlate at r = {words.text(r)}."
    label = f"Change of {JUDGE} over change of {names[0]}, {len(gains)} prompts."
    return Plot(
        plots.plot_gains("agreement", label, gains, (names[0], JUDGE)),
        "Does the judge see the same change?",
        f"One dot per prompt. {agreed} of {len(gains)} rose with both models; {alone} rose with {names[0]} alone: on "
        f"these the two disagree.{related}",
    )


def _repeat(run: Quickstart) -> Section:
    """Commands, times, configuration, versions and seed."""
    environment, metrics = run.environment or {}, run.metrics or {}
    missing = []
    if run.environment is None:
        missing.append(("Left out, because the run has none: environment.json (versions, seed).", "make quickstart"))
    commands = metrics.get("commands")
    if not isinstance(commands, list) or not commands:
        what = "Left out, because the run has none: list of commands in metrics.json."
        missing.append((what, "make quickstart"))
        commands = []
    missing += _lacks(run, *(f"{part}/config.yaml" for part in ("reward", "judge", "ppo")))
    stages = {
        "Reward model": run.section("reward_model") or run.reward.metrics,
        "Judge": run.judge.metrics,
        "Measured before": run.before.metrics,
        "PPO": run.section("ppo"),
        "Measured after": run.after.metrics,
        "In all": {"seconds": metrics.get("total_seconds")},
    }
    seed = environment.get("seed")
    told = f"; seed {seed}" if seed is not None else ""
    lead = f"From the folder of the project, in this order{told}." if commands else ""
    pieces: list[Piece] = [Commands([str(command) for command in commands])] if commands else []
    pieces += machine_tables(stages, environment)
    folds = [Fold(f"{stage}/config.yaml", getattr(run, stage).config) for stage in STAGES]
    pieces += [fold for fold in folds if fold.text]
    return Section("repeat", "5 How to repeat it", pieces, lead, missing)
