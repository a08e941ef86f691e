"""What each part of the page shows: one function per part, from a run's values to names that the template knows.

    headline and tiles -> 1 changes -> 2 training -> 3 reward model -> 4 scores -> 5 how to repeat it

A section that lacks a file says which file, and which command makes it, in `missing`.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from markupsafe import Markup

from rlhf_recipes import figures as plots
from rlhf_recipes.report import words
from rlhf_recipes.report.html import Plot, Tile
from rlhf_recipes.report.run import JUDGE, MAIN_REWARD, Completion, Run, number
from rlhf_recipes.report.run_facts import is_mean_of_reward

# What each missing part would be made by; the folder of the run is the quickstart's.
COMMANDS = {
    "metrics.json": "make quickstart",
    "reward": "accelerate launch recipes/reward.py --config recipes/configs/quickstart_reward.yaml",
    "judge": "accelerate launch recipes/reward.py --config recipes/configs/quickstart_judge.yaml",
    "ppo": "accelerate launch recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml",
    "before": "accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_before.yaml",
    "after": "accelerate launch recipes/evaluate.py --config recipes/configs/quickstart_after.yaml",
    "environment.json": "make quickstart",
}
EXTREMES = 5  # best and worst changes shown
SAMPLE = 6
ALL_ROWS = 300  # more would make the page heavy; the files have them all
MAX_POINTS = 700  # in a scatter; more would hide each other
TOLERANCE = 0.01  # beyond rounding: then two files of a run disagree


@dataclass(frozen=True)
class Change:
    """One prompt with both completions."""

    before: Completion
    after: Completion
    main: str | None  # name of the score by which changes are sorted

    def gain(self, name: str | None) -> float | None:
        """How much one score changed; `None` where either completion has no such score."""
        old, new = (completion.scores.get(name or "") for completion in (self.before, self.after))
        return None if old is None or new is None else new - old


class Content(dict[str, Any]):
    """What a section shows, by name; `None` for what it does not have, so that the template can ask."""

    def __missing__(self, key: str) -> None:
        return None


@dataclass
class Section:
    """One section of the page, and the lines about what it lacks."""

    content: Content = field(default_factory=Content)
    missing: list[tuple[str, str]] = field(default_factory=list)  # what is missing, and the command that makes it

    def lacks(self, what: str, part: str) -> None:
        """Note that a file is not there."""
        self.missing.append((what, COMMANDS[part]))


def score_names(run: Run) -> list[str]:
    """Return the names of all scores: the reward model's first, then the judge's, VADER's and the others'."""
    found = dict.fromkeys(name for completion in (*run.before, *run.after) for name in completion.scores)
    for metrics in (run.before_metrics or {}, run.after_metrics or {}):
        found |= dict.fromkeys(key.removeprefix("reward/") for key in metrics if key.startswith("reward/"))
    first = [name for name in (MAIN_REWARD, JUDGE, "vader") if name in found]
    return first + [name for name in found if name not in first]


def pair_completions(run: Run, names: Sequence[str]) -> list[Change]:
    """Put each prompt's two completions together; empty where one of the two files is missing."""
    main = names[0] if names else None
    return [Change(old, new, main) for old, new in zip(run.before, run.after, strict=False)]


def describe_outcome(run: Run) -> dict[str, Any] | None:
    """Return what the headline says, or `None` where neither metrics.json nor both evaluations are there."""
    ppo = run.section("ppo")
    before, after = number(ppo.get("score_before")), number(ppo.get("score_after"))
    if before is None or after is None:
        key = f"reward/{MAIN_REWARD}"
        before, after = (number((side or {}).get(key)) for side in (run.before_metrics, run.after_metrics))
        ppo = {"kl": (run.after_metrics or {}).get("kl"), "prompts": (run.after_metrics or {}).get("prompts")}
    if before is None or after is None:
        return None
    gain = number(ppo.get("gain"))
    gain = after - before if gain is None else gain
    return {
        "verb": direction(gain, ("raised", "left", "lowered")),
        "before": before,
        "after": after,
        "gain": gain,
        "interval": ppo.get("gain_ci95"),
        "unsure": includes_zero(ppo.get("gain_ci95")),
        "kl": number(ppo.get("kl")),
        "prompts": number(ppo.get("prompts")),
        "judge": _describe_judge(ppo),
    }


def _describe_judge(ppo: dict[str, Any]) -> dict[str, Any] | None:
    before, after, gain = (number(ppo.get(f"judge_{key}")) for key in ("before", "after", "gain"))
    if before is None or after is None:
        return None
    gain = after - before if gain is None else gain
    return {
        "verb": direction(gain, ("rose", "stayed", "fell")),
        "before": before,
        "after": after,
        "gain": gain,
        "interval": ppo.get("judge_gain_ci95"),
        "unsure": includes_zero(ppo.get("judge_gain_ci95")),
    }


def direction(gain: float, verbs: tuple[str, str, str]) -> str:
    """Choose the verb for a change as it is printed: 0.004 is printed as 0.00, and must not be called a rise."""
    shown = round(gain, 2)
    return verbs[0] if shown > 0 else verbs[2] if shown < 0 else verbs[1]


def includes_zero(bounds: Any) -> bool:
    """Whether a change may be chance: its interval is known and holds 0."""
    return isinstance(bounds, list) and None not in map(number, bounds) and bounds[0] <= 0 <= bounds[1]


def build_tiles(run: Run) -> list[Tile]:
    """Return the row of figures at the top; empty where there is no metrics.json."""
    if run.metrics is None:
        return []
    ppo, reward = run.section("ppo"), run.section("reward_model")
    ratio = _ratio(ppo.get("distinct2_after"), ppo.get("distinct2_before"))
    peaks = [number(part.get("peak_memory_gb")) for part in (reward, ppo)]
    peak = max((value for value in peaks if value is not None), default=None)
    low = (ppo.get("gain_ci95") or [None])[0]
    judge_low = (ppo.get("judge_gain_ci95") or [None])[0]
    gain_met = _both(_at_least(ppo.get("gain"), 0.8), _above(low, 0.4))
    minutes = run.metrics.get("total_seconds")
    accuracy = reward.get("pairwise_accuracy")
    text = Markup
    return [
        Tile("Score gain", words.signed(ppo.get("gain")), text("95% interval {}").format(
            words.interval(ppo.get("gain_ci95"))), "+0.8 or more, interval above +0.4", gain_met),
        Tile("Judge's gain", words.signed(ppo.get("judge_gain")), text("95% interval {}").format(
            words.interval(ppo.get("judge_gain_ci95"))), "interval above 0", _above(judge_low, 0)),
        Tile("VADER's gain", words.signed(ppo.get("vader_gain")), text("95% interval {}").format(
            words.interval(ppo.get("vader_gain_ci95")))),
        Tile("KL to the reference", words.plain(ppo.get("kl")), "nats per completion",
             "at most 10", _at_most(ppo.get("kl"), 10)),
        Tile("Distinct-2, after ÷ before", words.plain(ratio), text("{} before, {} after").format(
            words.plain(ppo.get("distinct2_before")), words.plain(ppo.get("distinct2_after"))),
            "0.8 or more", _at_least(ratio, 0.8)),
        Tile("Reward model's accuracy", words.percent(accuracy), text("VADER {}, one human rater {}").format(
            words.percent(reward.get("vader_accuracy")), words.percent(reward.get("single_rater_accuracy"))),
            "80% or more", _at_least(accuracy, 0.8)),
        Tile("Time in all", words.duration(minutes), text("reward model {}, PPO {}").format(
            words.duration(reward.get("seconds")), words.duration(ppo.get("seconds"))),
            "at most 15 min on 2 cores", _at_most(minutes, 900)),
        Tile("Peak memory", words.memory(peak), text("reward model {}, PPO {}").format(
            *map(words.memory, peaks)), "at most 4 GB", _at_most(peak, 4)),
    ]  # fmt: skip


def find_contradictions(run: Run) -> list[str]:
    """Compare metrics.json with the completions: files of two different runs must not pass as one."""
    notices = []
    for side, completions in (("before", run.before), ("after", run.after)):
        values = _values(completions, MAIN_REWARD)
        stated = number(run.section("ppo").get(f"score_{side}"))
        if values and stated is not None and abs(fmean(values) - stated) > TOLERANCE:
            notices.append(
                f"metrics.json says that the score {side} is {stated:.3f}, but {side}/completions.jsonl averages "
                f"{fmean(values):.3f}: they come from different runs. Run “make quickstart” again."
            )
    stated, found = number(run.section("ppo").get("prompts")), len(run.after)
    if stated is not None and found and stated != found:
        notices.append(f"metrics.json speaks of {stated:g} prompts, but after/completions.jsonl holds {found}.")
    return notices


def show_changes(run: Run, changes: Sequence[Change]) -> Section:
    """Section 1: the histogram, the figures before and after, and the completions side by side."""
    section = Section()
    for side, completions in (("before", run.before), ("after", run.after)):
        if not completions:
            section.lacks(f"{side}/completions.jsonl", side)
    old, new = run.before_metrics, run.after_metrics
    for side, metrics in (("before", old), ("after", new)):
        if metrics is None:
            section.lacks(f"{side}/metrics.json", side)
    if old is not None and new is not None:
        section.content["measures"] = [
            (label, explanation, kind, old.get(key), new.get(key))
            for key, label, explanation, kind in MEASURES
            if number(old.get(key)) is not None or number(new.get(key)) is not None
        ]
    if not changes:
        return section
    seed = int(number((run.environment or {}).get("seed")) or 0)
    ordered = sorted((c for c in changes if c.gain(c.main) is not None), key=lambda c: -(c.gain(c.main) or 0.0))
    half = min(EXTREMES, len(ordered) // 2)  # a small run must not show one prompt as best and as worst
    picked = random.Random(seed).sample(range(len(changes)), min(SAMPLE, len(changes)))
    section.content |= {
        "groups": [
            ("Best changes", "The largest gains in score.", ordered[:half]),
            ("Worst changes", "The smallest gains, or the largest losses.", ordered[::-1][:half]),
            (
                "Drawn at random",
                f"{len(picked)} of all {len(changes)} prompts, drawn with seed {seed}, whatever their change.",
                [changes[index] for index in sorted(picked)],
            ),
        ],
        "all": changes[:ALL_ROWS],
        "total": len(changes),
        "plot": _plot_histogram(changes),
    }
    return section


# Key of an evaluation's metrics.json, name on the page, what it is, and the filter that writes it.
MEASURES = (
    ("score", "Weighted score", "all rewards in the list times their weights, summed", "plain"),
    ("kl", "KL to the reference", "nats per completion", "plain"),
    ("distinct_1", "Distinct-1", "different words ÷ words, over all completions", "plain"),
    ("distinct_2", "Distinct-2", "different word pairs ÷ word pairs: lower means more repetition", "plain"),
    ("completion_length", "Completion length", "tokens, mean", "plain"),
    ("finished", "Finished", "completions that ended before the length limit", "percent"),
)


def _plot_histogram(changes: Sequence[Change]) -> Plot | None:
    pairs = [c for c in changes if c.gain(c.main) is not None]
    if not pairs:
        return None
    main = pairs[0].main or ""
    before, after = _values([c.before for c in pairs], main), _values([c.after for c in pairs], main)
    label = (
        f"Histogram of {main} over {len(pairs)} prompts: mean {fmean(before):.2f} before, {fmean(after):.2f} after."
    )
    return Plot(
        plots.plot_score_histogram("scores", label, before, after),
        f"Score of each completion, {main}",
        f"{len(pairs)} held-out prompts, one completion each. The upright lines are the means, "
        f"{words.text(fmean(before))} before (dashed) and {words.text(fmean(after))} after.",
        (("before PPO", "band muted"), ("after PPO", "band s0")),
    )


def show_training(run: Run) -> Section:
    """Section 2: one small figure per quantity that PPO logs."""
    section = Section()
    if not run.log_history:
        section.lacks("ppo/log_history.json", "ppo")
        return section
    figures = []
    for name, title, unit, series, caption in CURVES:
        points = {label: _points(run, key) for label, key in _expand(run, series)}
        points = {label: values for label, values in points.items() if values}
        if not points:
            continue
        ends = "; ".join(f"{label} from {values[0][1]:.3g} to {values[-1][1]:.3g}" for label, values in points.items())
        svg = plots.plot_curves(name, f"{title} over episodes, {unit}: {ends}.", unit, points, name in FROM_ZERO)
        legend = tuple((label, f"line s{index % 6} d{index % 4}") for index, label in enumerate(points))
        figures.append(Plot(svg, title, caption, legend if len(legend) > 1 else ()))
    section.content |= {"figures": figures, "rollouts": len(run.log_history)}
    return section


# Name, title, unit, series as label and key of the log ("reward/*" stands for every reward), caption.
CURVES: tuple[tuple[str, str, str, tuple[tuple[str, str], ...], str], ...] = (
    (
        "curve-score",
        "Score",
        "score",
        (("weighted score", "objective/scores"), ("less KL penalty", "objective/rlhf_reward"), ("", "reward/*")),
        "The weighted sum of all rewards, the same less the KL penalty (what PPO maximises), and each reward by "
        "itself in its own unit; mean over the completions of a rollout.",
    ),
    (
        "curve-kl",
        "KL to the reference",
        "nats per completion",
        (("KL", "objective/kl"),),
        "How far the policy has moved from the untrained model: log-probability ratio summed over the tokens that it "
        "sampled. 0 at the start.",
    ),
    (
        "curve-length",
        "Completion length",
        "tokens",
        (("length", "rollout/completion_length"),),
        "Mean number of tokens, the end token included. A drift shows a reward that pays for length.",
    ),
    (
        "curve-policy-loss",
        "Policy loss",
        "loss",
        (("policy loss", "loss/policy_avg"),),
        "PPO's clipped surrogate, mean over real tokens; no unit. It hovers near 0: advantages are whitened, so its "
        "level says little, its spikes do.",
    ),
    (
        "curve-value-loss",
        "Value loss",
        "squared return",
        (("value loss", "loss/value_avg"),),
        "Clipped squared error of the critic against the returns, mean over real tokens. It falls as the critic "
        "learns.",
    ),
    (
        "curve-variance",
        "Explained variance",
        "share",
        (("explained variance", "value/explained_variance"),),
        "How much of the returns the critic foresees: 1 all of it, 0 no better than their mean, below 0 worse than "
        "that.",
    ),
    (
        "curve-entropy",
        "Entropy",
        "nats per token",
        (("entropy", "policy/entropy_avg"),),
        "Mean uncertainty of the next token. Near 0 the policy says one thing only.",
    ),
    (
        "curve-clip",
        "Clipped ratios",
        "share of tokens",
        (("clip fraction", "policy/clipfrac_avg"),),
        "Tokens whose probability moved beyond the clip range within one rollout's updates. Much above 0.3: the steps "
        "are too large.",
    ),
    (
        "curve-finished",
        "Finished",
        "share of completions",
        (("finished", "rollout/finished"),),
        "Completions that ended by themselves before the length limit.",
    ),
)
FROM_ZERO = ("curve-kl", "curve-value-loss", "curve-clip", "curve-finished")


def _expand(run: Run, series: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    logged = dict.fromkeys(key for row in run.log_history for key in row if is_mean_of_reward(key))
    expanded: list[tuple[str, str]] = []
    for label, key in series:
        expanded += [(name.removeprefix("reward/"), name) for name in logged] if key == "reward/*" else [(label, key)]
    return expanded


def _points(run: Run, key: str) -> list[tuple[float, float]]:
    pairs = ((number(row["episode"]), number(row.get(key))) for row in run.log_history)
    return [(episode, value) for episode, value in pairs if episode is not None and value is not None]


def show_reward_model(run: Run) -> Section:
    """Section 3: accuracy beside VADER and a human rater, calibration, and every figure of the training run."""
    section = Section()
    metrics = run.section("reward_model") | (run.reward_metrics or {})
    if run.reward_metrics is None:
        section.lacks("reward/metrics.json", "reward")
    bars = [(label, metrics[key]) for key, label in ACCURACIES if number(metrics.get(key)) is not None]
    if bars:
        text = ", ".join(f"{label} {value:.1%}" for label, value in bars)
        pairs = number(metrics.get("pairs"))
        section.content["accuracy"] = Plot(
            plots.plot_accuracy("accuracy", f"Pairs put in the right order: {text}.", bars),
            "Which of two sentences did people rate higher?",
            f"Share of held-out pairs{f' ({pairs:,.0f})' if pairs else ''} put in the order of their mean human "
            "ratings. The dashed line is chance. One human rater, left out of the mean, is about the best one can "
            "hope for.",
        )
    if run.reward_metrics is not None:
        section.content["table"] = _label_figures(run.reward_metrics)
    if run.predictions:
        section.content["calibration"] = _plot_predictions(run)
    else:
        section.lacks("reward/predictions.jsonl", "reward")
    if run.predictions and run.calibration is None:
        section.lacks("calibration curve in reward/reward_config.json", "reward")
    return section


ACCURACIES = (
    ("pairwise_accuracy", "Reward model"),
    ("vader_accuracy", "VADER, a word list"),
    ("length_accuracy", "The longer sentence wins"),
    ("single_rater_accuracy", "One human rater"),
)

# Known figures first and under a readable name; whatever else a run wrote follows under its own.
FIGURE_LABELS = {
    "pairwise_accuracy": "Pairwise accuracy",
    "single_rater_accuracy": "One human rater",
    "vader_accuracy": "VADER",
    "length_accuracy": "Longer one wins",
    "pairs": "Test pairs",
    "pearson": "Pearson correlation with the rating",
    "spearman": "Spearman correlation with the rating",
    "mae": "Mean absolute error, rating points",
    "rmse": "Root mean squared error, rating points",
    "r2": "R²",
    "train_rows": "Training rows",
    "validation_rows": "Validation rows",
    "test_rows": "Test rows",
    "seconds": "Time, seconds",
    "peak_memory_gb": "Peak memory, GB",
}


def _label_figures(metrics: dict[str, Any]) -> list[tuple[str, float]]:
    keys = [key for key in FIGURE_LABELS if key in metrics] + [key for key in metrics if key not in FIGURE_LABELS]
    return [(FIGURE_LABELS.get(key, key), metrics[key]) for key in keys if number(metrics[key]) is not None]


def _plot_predictions(run: Run) -> list[Plot]:
    fitted = [p for p in run.predictions if p.split == "validation"] or run.predictions
    held_out = [p for p in run.predictions if p.split == "test"] or run.predictions
    figures = []
    points = [(p.logit, p.rating) for p in fitted if p.logit is not None]
    if points:
        shown = random.Random(0).sample(points, min(MAX_POINTS, len(points)))
        part = "" if len(shown) == len(points) else f" ({len(shown)} of them shown)"
        curve = run.calibration
        sentence = "The line is the logistic curve fitted to them, which turns a logit into a score. " if curve else ""
        figures.append(
            Plot(
                plots.plot_fitted_curve(
                    "fit",
                    f"Human rating over logit for {len(points)} sentences, with the fitted curve.",
                    shown,
                    (lambda logit: float(curve(logit))) if curve else None,
                ),  # fmt: skip
                "From logit to score",
                f"{len(points):,} {fitted[0].split} sentences{part}. {sentence}"
                "The reward is the score, so that a gain of 1 means one point of human rating.",
            )
        )
    bins = plots.bin_predictions([(p.score, p.rating) for p in held_out])
    figures.append(
        Plot(
            plots.plot_calibration("calibration", f"Mean human rating over score, {len(bins)} bins.", bins),
            "Does the score mean what it says?",
            f"{len(held_out):,} {held_out[0].split} sentences in {len(bins)} bins of equal size by score: mean human "
            "rating over mean score, with twice the standard error each way. On the dashed diagonal the two agree.",
        )
    )
    return figures


def show_scores(run: Run, changes: Sequence[Change], names: Sequence[str]) -> Section:
    """Section 4: every score before and after, and whether the judge agrees prompt by prompt."""
    section = Section()
    if run.judge_metrics is None:
        section.lacks("judge/metrics.json", "judge")
    else:
        section.content["judge"] = _label_figures(run.judge_metrics)
    section.content["rows"] = [
        {
            "name": name,
            "meaning": SCORE_MEANINGS.get(name, "a reward of this run, in its own unit"),
            "before": _mean_score(run.before_metrics, run.before, name),
            "after": _mean_score(run.after_metrics, run.after, name),
            "interval": run.section("ppo").get(INTERVALS.get(name, "")),
        }
        for name in names
    ]
    if not names:
        for side in ("before", "after"):
            section.lacks(f"scores in {side}/completions.jsonl", side)
    other = JUDGE if JUDGE in names else None
    pairs = [(c.gain(c.main), c.gain(other)) for c in changes] if other and other != names[0] else []
    gains = [(first, second) for first, second in pairs if first is not None and second is not None]
    if gains and other:
        section.content["plot"] = _plot_agreement(gains, (names[0], other))
    return section


SCORE_MEANINGS = {
    MAIN_REWARD: "the trained reward, human rating −4 to 4",
    JUDGE: "took no part in training, human rating −4 to 4",
    "vader": "a list of words with scores, −1 to 1",
}
INTERVALS = {MAIN_REWARD: "gain_ci95", JUDGE: "judge_gain_ci95", "vader": "vader_gain_ci95"}


def _plot_agreement(gains: Sequence[tuple[float, float]], names: tuple[str, str]) -> Plot:
    both = sum(first > 0 and second > 0 for first, second in gains)
    alone = sum(first > 0 >= second for first, second in gains)
    columns = np.array(gains).T
    related = ""
    if len(gains) > 2 and columns.std(axis=1).min() > 0:
        related = f" The two changes correlate at r = {words.text(np.corrcoef(columns)[0, 1])}."
    return Plot(
        plots.plot_gains(
            "agreement", f"Change of {names[1]} over change of {names[0]}, {len(gains)} prompts.", gains, names
        ),
        "Does the judge see the same change?",
        f"One dot per prompt. {both} of {len(gains)} rose with both models; {alone} rose with {names[0]} alone: on "
        f"these the two disagree.{related}",
    )


def show_repeat(run: Run) -> Section:
    """Section 5: commands, times, configuration, versions and seed."""
    section = Section()
    environment = run.environment or {}
    if run.environment is None:
        section.lacks("environment.json (versions, seed)", "environment.json")
    commands = (run.metrics or {}).get("commands")
    if not isinstance(commands, list) or not commands:
        section.lacks("list of commands in metrics.json", "metrics.json")
        commands = []
    for part in ("reward", "judge", "ppo"):
        if f"{part}/config.yaml" not in run.configs:
            section.lacks(f"{part}/config.yaml", part)
    versions = environment.get("versions")
    stages = [(name, group.get("seconds"), group.get("peak_memory_gb")) for name, group in _stages(run)]
    section.content |= {
        "commands": [str(command) for command in commands],
        "configs": run.configs,
        "versions": versions if isinstance(versions, dict) else {},
        "machine": {key: value for key, value in environment.items() if key not in ("versions", "seed")},
        "seed": environment.get("seed"),
        "stages": [stage for stage in stages if stage[1:] != (None, None)],
        "total": (run.metrics or {}).get("total_seconds"),
    }
    return section


def _stages(run: Run) -> list[tuple[str, dict[str, Any]]]:
    return [
        ("Reward model", run.section("reward_model") or run.reward_metrics or {}),
        ("Judge", run.judge_metrics or {}),
        ("Measured before", run.before_metrics or {}),
        ("PPO", run.section("ppo")),
        ("Measured after", run.after_metrics or {}),
    ]


def _mean_score(metrics: dict[str, Any] | None, completions: Sequence[Completion], name: str) -> float | None:
    stated = number((metrics or {}).get(f"reward/{name}"))
    if stated is not None:
        return stated
    values = _values(completions, name)
    return fmean(values) if values else None


def _values(completions: Iterable[Completion], name: str) -> list[float]:
    scores = (completion.scores.get(name) for completion in completions)
    return [score for score in scores if score is not None]


def _ratio(numerator: Any, denominator: Any) -> float | None:
    top, bottom = number(numerator), number(denominator)
    return top / bottom if top is not None and bottom else None


def _compare(holds: Callable[[float, float], bool], value: Any, bound: float) -> bool | None:
    finite = number(value)
    return None if finite is None else holds(finite, bound)


def _at_least(value: Any, bound: float) -> bool | None:
    return _compare(lambda a, b: a >= b, value, bound)


def _at_most(value: Any, bound: float) -> bool | None:
    return _compare(lambda a, b: a <= b, value, bound)


def _above(value: Any, bound: float) -> bool | None:
    return _compare(lambda a, b: a > b, value, bound)


def _both(first: bool | None, second: bool | None) -> bool | None:
    return None if first is None or second is None else first and second
