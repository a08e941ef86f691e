"""What is logged while a model trains, as small figures: which quantities, in which unit, and what they tell.

A held-out figure, which the Trainer logs under `eval_`, is drawn into the same axes as the one of training.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rlhf_recipes import figures as plots
from rlhf_recipes.report.page import Plot
from rlhf_recipes.report.run import Run, is_mean_of_reward
from rlhf_recipes.report.words import number

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """One figure: its title, unit, what is drawn as label and key of the log, and what a reader should know.

    A `*` in a key stands for every reward. `unless` is a key that, where it is logged, makes the figure superfluous.
    """

    name: str
    title: str
    unit: str
    series: tuple[tuple[str, str], ...]
    caption: str
    from_zero: bool = False
    unless: str = ""


OF_PPO = (
    Curve(
        "score",
        "Score",
        "score",
        (("weighted score", "objective/scores"), ("less KL penalty", "objective/rlhf_reward"), ("", "reward/*")),
        "The weighted sum of all rewards, the same less the KL penalty (what PPO maximises), and each reward by "
        "itself in its own unit; mean over the completions of a rollout.",
    ),
    Curve(
        "kl",
        "KL to the reference",
        "nats per completion",
        (("KL", "objective/kl"),),
        "How far the policy has moved from the untrained model: log-probability ratio summed over the tokens that it "
        "sampled. 0 at the start.",
        from_zero=True,
    ),
    Curve(
        "length",
        "Completion length",
        "tokens",
        (("length", "rollout/completion_length"),),
        "Mean number of tokens, the end token included. A drift shows a reward that pays for length.",
    ),
    Curve(
        "policy-loss",
        "Policy loss",
        "loss",
        (("policy loss", "loss/policy_avg"),),
        "PPO's clipped surrogate, mean over real tokens; no unit. It hovers near 0: advantages are whitened, so its "
        "level says little, its spikes do.",
    ),
    Curve(
        "value-loss",
        "Value loss",
        "squared return",
        (("value loss", "loss/value_avg"),),
        "Clipped squared error of the critic against the returns, mean over real tokens. It falls as the critic "
        "learns.",
        from_zero=True,
    ),
    Curve(
        "variance",
        "Explained variance",
        "share",
        (("explained variance", "value/explained_variance"),),
        "How much of the returns the critic foresees: 1 all of it, 0 no better than their mean, below 0 worse than "
        "that.",
    ),
    Curve(
        "entropy",
        "Entropy",
        "nats per token",
        (("entropy", "policy/entropy_avg"),),
        "Mean uncertainty of the next token. Near 0 the policy says one thing only.",
    ),
    Curve(
        "clip",
        "Clipped ratios",
        "share of tokens",
        (("clip fraction", "policy/clipfrac_avg"),),
        "Tokens whose probability moved beyond the clip range within one rollout's updates. Much above 0.3: the steps "
        "are too large.",
        from_zero=True,
    ),
    Curve(
        "finished",
        "Finished",
        "share of completions",
        (("finished", "rollout/finished"),),
        "Completions that ended by themselves before the length limit.",
        from_zero=True,
    ),
)
OF_TRL = (
    Curve(
        "reward",
        "Reward",
        "reward",
        (("weighted sum", "reward"), ("", "rewards/*/mean")),
        "The weighted sum of all rewards, and each reward by itself in its own unit; mean over completions.",
    ),
    Curve(
        "kl-token",
        "KL to the reference",
        "nats per token",
        (("KL", "kl"),),
        "How far the policy has moved from the model as it was loaded, mean over tokens. 0 at the start.",
        from_zero=True,
    ),
    Curve(
        "mean-length",
        "Completion length",
        "tokens",
        (("length", "completions/mean_length"),),
        "Mean number of tokens. A drift shows a reward that pays for length.",
    ),
    Curve(
        "cut",
        "Cut off",
        "share of completions",
        (("cut off", "completions/clipped_ratio"),),
        "Completions that reached the length limit before they ended.",
        from_zero=True,
    ),
    Curve(
        "alike",
        "Prompts without a signal",
        "share of prompts",
        (("all alike", "frac_reward_zero_std"),),
        "Prompts whose completions all got the same reward: nothing is learned from them.",
        from_zero=True,
    ),
    Curve(
        "loss",
        "Loss",
        "loss",
        (("loss", "loss"),),
        "What the trainer minimizes, mean over a batch. Of GRPO and RLOO its level says little.",
        unless="objective/scores",
    ),
    Curve(
        "accuracy",
        "Pairs in people's order",
        "share of pairs",
        (("accuracy", "rewards/accuracies"), ("accuracy", "accuracy")),
        "Pairs of which the chosen text gets the higher score. One half is chance.",
    ),
    Curve(
        "margin",
        "Margin",
        "score",
        (("margin", "rewards/margins"), ("margin", "margin")),
        "By how much the chosen text's score is above the rejected one's.",
    ),
    Curve(
        "tokens",
        "Tokens foretold",
        "share of tokens",
        (("accuracy", "mean_token_accuracy"),),
        "Tokens that the model holds for the most probable ones, given all before them.",
    ),
    Curve(
        "entropy-token",
        "Entropy",
        "nats per token",
        (("entropy", "entropy"),),
        "Mean uncertainty of the next token. Near 0 the policy says one thing only.",
    ),
    Curve(
        "gradient",
        "Gradient norm",
        "norm",
        (("gradient norm", "grad_norm"),),
        "Length of the gradient before it is clipped. Spikes are batches that would have thrown the model off.",
        from_zero=True,
        unless="objective/scores",
    ),
)
HELD_OUT = "eval_"


def draw_log(run: Run) -> list[Plot]:
    """One small figure for each quantity that the run has logged."""
    keys = _logged(run)
    pictures = []
    for curve in (*OF_PPO, *OF_TRL):
        if curve.unless in keys:
            continue
        lines = {label: points_of(run, key) for label, key in _expand(curve.series, keys)}
        if lines := {label: points for label, points in lines.items() if points}:
            pictures.append(_draw(curve, curve.title, lines, axis_of(run)))
    return pictures


def draw_logs(runs: Sequence[tuple[str, Run]]) -> list[Plot]:
    """The same quantities of several runs, each in one figure with a line for each run, by name."""
    keys = dict.fromkeys(key for _, run in runs for key in _logged(run))
    axes = {axis_of(run) for _, run in runs if run.log_history}
    axis = axes.pop() if len(axes) == 1 else "step"
    pictures: list[Plot] = []
    seen: set[str] = set()
    for curve in (*OF_PPO, *OF_TRL):
        for label, key in _expand(curve.series, keys):
            lines = {name: points for name, run in runs if (points := points_of(run, key, axis))}
            if not lines or curve.unless in keys or key in seen:
                continue
            seen.add(key)
            named = Curve(f"{curve.name}-{len(pictures)}", curve.title, curve.unit, (), "", curve.from_zero)
            pictures.append(_draw(named, _named(curve, label), lines, axis, runs))
    return pictures


def quantities(run: Run) -> dict[str, tuple[str, str]]:
    """The keys of what was logged in training and is drawn, with the name and the unit of each."""
    keys, found = _logged(run), {}
    for curve in (*OF_PPO, *OF_TRL):
        for label, key in _expand(curve.series, keys) if curve.unless not in keys else ():
            if key in keys and not key.startswith(HELD_OUT):
                found[key] = (_named(curve, label), curve.unit)
    return found


def axis_of(run: Run) -> str:
    """By what the run counts: `"episode"` or the Trainer's `"step"`."""
    return "episode" if any("episode" in row for row in run.log_history) else "step"


def points_of(run: Run, key: str, axis: str | None = None) -> Points:
    """What was logged of one quantity, over episodes or steps; held-out figures stand where the last ones of training
    do, because the Trainer logs their step alone."""
    axis, place, points = axis or axis_of(run), 0.0, []
    for row in run.log_history:
        place = number(row.get(axis)) or place
        value = number(row.get(key))
        if value is not None and (axis in row or key.startswith(HELD_OUT)):
            points.append((place, value))
    return points


def _logged(run: Run) -> list[str]:
    return list(dict.fromkeys(key for row in run.log_history for key in row))


def _named(curve: Curve, label: str) -> str:
    return curve.title if label.lower() in curve.title.lower() else f"{curve.title}: {label}"


def _expand(series: Iterable[tuple[str, str]], keys: Sequence[str] | dict[str, None]) -> list[tuple[str, str]]:
    """The series with every reward by name, and after each what was held out of it."""
    found: list[tuple[str, str]] = []
    for label, key in series:
        if "*" not in key:
            found += [(label, key), (f"{label}, held out", HELD_OUT + key)]
            continue
        head, _, tail = key.partition("*")
        names = [name for name in keys if name.startswith(head) and name.endswith(tail)]
        found += [
            (name.removeprefix(head).removesuffix(tail), name) for name in names if tail or is_mean_of_reward(name)
        ]
    return found


def _draw(curve: Curve, title: str, lines: dict[str, Points], axis: str, runs: Sequence[tuple[str, Run]] = ()) -> Plot:
    ends = "; ".join(f"{label} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for label, points in lines.items())
    axis = "episodes" if axis == "episode" else "optimizer steps"
    said = f"{title} over {axis}, {curve.unit}: {ends}."
    svg = plots.plot_curves(f"curve-{curve.name}", said, curve.unit, lines, curve.from_zero, axis)
    legend = tuple((label, f"line s{index % 6} d{index % 4}") for index, label in enumerate(lines))
    return Plot(svg, title, curve.caption, legend if len(legend) > 1 or runs else ())
