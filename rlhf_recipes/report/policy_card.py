"""The model card of a trained policy: what it is, how to load it, how it was made, and what its figures say.

The text stands in `templates/policy_card.md.j2`. Whatever comes from outside (completions, names, values of a YAML) is
text on the page and nothing else: no Markdown, no HTML, no link. Local absolute paths are shortened to their last
part, and secrets are left out.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_recipes import filenames
from rlhf_recipes.arguments import save_config
from rlhf_recipes.figures import COLORS, SERIES, draw_png, running_mean
from rlhf_recipes.report.ending import library_versions
from rlhf_recipes.report.markdown import (
    as_code,
    cell,
    hub_id,
    one_line,
    plain_line,
    rounded,
    save_card,
    settings_text,
    short_name,
)
from rlhf_recipes.report.run import Reward, rewards_of
from rlhf_recipes.report.words import number

REPO_PLACEHOLDER = "your-name/your-model"

# The quantities that a reader looks at first: figure, file in card/, heading (short, so that the three are as wide),
# and whether its distance from 0 is what matters.
CURVES = (
    ("objective/scores", "score", "score", False),
    ("objective/kl", "kl", "KL, nats", True),
    ("rollout/completion_length", "length", "tokens", True),
)

# Figures of the last rollout that say what became of the policy; the others are about the updates, and folded away.
FIRST_FIGURES = ("objective/scores", "reward/", "objective/", "rollout/")


@dataclass(frozen=True)
class Sample:
    """One completion of the trained policy, as it was drawn."""

    prompt: str
    completion: str
    score: float | None = None


@dataclass(frozen=True)
class RunFacts:
    """What a card says about a run. Everything is plain data, so that any trainer or recipe can fill it in.

    Args:
        base_model, dataset_name: A model id or dataset id of the Hub, or a local folder or file.
        adapter: Whether the folder holds adapters (`True`) or a whole model.
        method: Such as `"PPO"`; it becomes a tag too.
        dataset_split, num_examples: Which rows the prompts are, and how many.
        rewards: The rewards with their weights.
        config: The run's own YAML, as [`config_of`] or `yaml.safe_load` give it.
        metrics: The last figures of training, by name.
        eval_metrics: The last figures on held-out prompts, by name, without the prefix `eval_`.
        log_history: `Trainer.state.log_history`, for the curves and the figures of the first rollout.
        samples: A few completions.
        versions: Version of each library.
        command: What was typed. Default: `accelerate launch recipes/METHOD.py --config config.yaml`.
        repo_id: Where the model will be on the Hub, for the snippet.
        license: An id of the Hub such as `"apache-2.0"`; left out of the card where it is not known.
        conversational: Whether prompts are lists of messages.
        glossary: What each figure means.
    """

    base_model: str
    dataset_name: str
    adapter: bool
    method: str = "PPO"
    dataset_split: str = "train"
    num_examples: int | None = None
    rewards: Sequence[Reward] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    eval_metrics: Mapping[str, float] = field(default_factory=dict)
    log_history: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[Sample] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    command: str | None = None
    repo_id: str | None = None
    license: str | None = None
    conversational: bool = False
    glossary: Mapping[str, str] = field(default_factory=dict)

    @property
    def first_metrics(self) -> Mapping[str, Any]:
        """Figures of the first rollout that was logged; empty where there is but one, or none."""
        logged = [entry for entry in self.log_history if "objective/scores" in entry]
        return logged[0] if len(logged) > 1 else {}


def facts_of_run(
    config: Mapping[str, Any], log_history: Sequence[Mapping[str, Any]], *, adapter: bool, **known: Any
) -> RunFacts:
    """Fill in [`RunFacts`] from the YAML of a run and the log of a `Trainer`.

    Args:
        config (`Mapping`): The run's YAML. Model, dataset, split and rewards are read from it.
        log_history (`Sequence`): `Trainer.state.log_history`. The last entries with scores are the figures.
        adapter (`bool`): Whether the folder holds adapters or a whole model.
        known: Fields of [`RunFacts`] that the caller knows better, or that the YAML cannot say, such as
            `num_examples`, `rewards`, `samples`, `repo_id`.

    Example:
        >>> facts = facts_of_run(yaml.safe_load(text), trainer.state.log_history, adapter=True, num_examples=7616)
        >>> write_model_card("runs/ppo", facts)
    """
    trained: Mapping[str, Any] = next((entry for entry in reversed(log_history) if "objective/scores" in entry), {})
    held_out: Mapping[str, Any] = next(
        (entry for entry in reversed(log_history) if "eval_objective/scores" in entry), {}
    )
    found: dict[str, Any] = {
        "base_model": str(config.get("model_name_or_path") or "an unnamed model"),
        "dataset_name": str(config.get("dataset_name") or "an unnamed dataset"),
        "dataset_split": str(config.get("dataset_train_split") or "train"),
        "rewards": rewards_of(config),
        "config": dict(config),
        "metrics": {name: value for name, value in trained.items() if "/" in name or name == "episode"},
        "eval_metrics": {name[5:]: value for name, value in held_out.items() if name.startswith("eval_")},
        "log_history": list(log_history),
        "versions": library_versions(),
    }
    return RunFacts(adapter=adapter, **(found | known))


def config_of(*args_dataclasses: Any) -> dict[str, Any]:
    """The options of a run that differ from their defaults, without secrets, where no YAML of it exists."""
    with tempfile.TemporaryDirectory() as folder:
        save_config(Path(folder, filenames.CONFIG), *args_dataclasses)
        return yaml.safe_load(Path(folder, filenames.CONFIG).read_text(encoding="utf-8"))


def write_model_card(folder: str | Path, facts: RunFacts) -> Path:
    """Write `README.md` and its pictures in `card/` into the folder of a trained policy.

    Args:
        folder (`str` or `Path`): The folder; README.md and the pictures of an earlier card are replaced.
        facts ([`RunFacts`]): What is to be said.

    Returns:
        `Path`: the README.md.
    """
    root = Path(folder)
    first, last = (number(of.get("objective/scores")) for of in (facts.first_metrics, facts.metrics))
    names = _shown(facts.metrics)
    outcome = [name for name in names if name.startswith(FIRST_FIGURES)]
    length = number(facts.config.get("max_completion_length")) or 64
    temperature = number(facts.config.get("temperature"))
    sampling = f"max_new_tokens={length:.0f}, do_sample=True"
    sampling += f", temperature={temperature:g}" if temperature and temperature != 1 else ""
    return save_card(
        root / filenames.README,
        _metadata(facts),
        "policy_card.md.j2",
        facts=facts,
        name=_name(facts),
        placeholder=REPO_PLACEHOLDER,
        episodes=number(facts.metrics.get("episodes", facts.metrics.get("episode"))),
        change=None if first is None or last is None else (first, last),
        kl=number(facts.metrics.get("objective/kl")),
        base_is_local=hub_id(facts.base_model) is None,
        sampling=sampling,
        samples=_samples(facts),
        pictures=_draw_curves(root / "card", facts),
        outcome=_training_table(outcome, facts),
        updates=_training_table([name for name in names if name not in outcome], facts),
        held_out=_held_out_table(facts),
        command=facts.command or f"accelerate launch recipes/{facts.method.lower()}.py --config config.yaml",
        has_critic=(root / "critic").is_dir(),
        config=settings_text(facts.config),
    )


# ---- metadata


def _metadata(facts: RunFacts) -> ModelCardData:
    base, dataset = hub_id(facts.base_model), hub_id(facts.dataset_name)
    tags = ["rlhf-recipes", facts.method.lower(), "rlhf"]
    return ModelCardData(
        base_model=base,
        datasets=[dataset] if dataset else None,
        library_name="peft" if facts.adapter else "transformers",
        license=facts.license,
        pipeline_tag="text-generation",
        tags=[*tags, "lora"] if facts.adapter and facts.config.get("use_peft") else tags,
        model_name=_name(facts) if facts.eval_metrics else None,
        eval_results=_eval_results(facts) or None,
    )


def _eval_results(facts: RunFacts) -> list[EvalResult]:
    wanted = [name for name in ("objective/scores", "objective/kl") if name in facts.eval_metrics]
    dataset = short_name(facts.dataset_name)
    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=name,
            metric_name=one_line(facts.glossary.get(name, name)),
            metric_value=facts.eval_metrics[name],
        )
        for name in wanted
        if number(facts.eval_metrics[name]) is not None
    ]


# ---- tables


def _samples(facts: RunFacts) -> list[list[str]]:
    if not facts.samples:
        return []
    scored = any(number(sample.score) is not None for sample in facts.samples)
    rows = [["prompt", "completion", *(["score"] if scored else [])]]
    return rows + [
        [cell(sample.prompt), cell(sample.completion), *([rounded(sample.score)] if scored else [])]
        for sample in facts.samples
    ]


def _training_table(names: Sequence[str], facts: RunFacts) -> list[list[str]]:
    first = facts.first_metrics
    rows = [["figure", *(["first rollout"] if first else []), "last rollout", "what it is"]]
    for name in names:
        before = [rounded(first.get(name))] if first else []
        rows.append([as_code(name), *before, rounded(facts.metrics[name]), _meaning(name, facts.glossary)])
    return rows if names else []


def _held_out_table(facts: RunFacts) -> list[list[str]]:
    rows = [
        [as_code(name), rounded(facts.eval_metrics[name]), _meaning(name, facts.glossary)]
        for name in _shown(facts.eval_metrics)
    ]
    return [["figure", "value", "what it is"], *rows] if rows else []


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the figures for the tables, what matters most first; durations are left out."""
    names = [n for n, v in metrics.items() if "/" in n and not n.startswith("time/") and number(v) is not None]
    places = [place for place, _ in enumerate(FIRST_FIGURES)]
    return sorted(
        names,
        key=lambda name: next((p for p in places if name.startswith(FIRST_FIGURES[p])), len(places)),
    )


def _meaning(name: str, glossary: Mapping[str, str]) -> str:
    if name in glossary:
        return plain_line(glossary[name])
    if name.endswith("/std"):
        return "Its standard deviation over episodes."
    if name.endswith("/share"):
        return "How much of what tells one completion from another it decides; shares add up to 1."
    return "This reward before its weight; mean over episodes." if name.startswith("reward/") else ""


# ---- curves


def _draw_curves(folder: Path, facts: RunFacts) -> list[list[str]]:
    """Draw what the log holds; headings and links of the pictures. Old pictures of these names go."""
    titles, links = [], []
    for name, stem, title, from_zero in CURVES:
        points = [
            (float(entry["episode"]), float(entry[name]))
            for entry in facts.log_history
            if number(entry.get("episode")) is not None and number(entry.get(name)) is not None
        ]
        file = folder / f"{stem}.png"
        if len(points) < 2:
            file.unlink(missing_ok=True)
            continue
        draw_png(file, (3.6, 2.4), _painter(points, from_zero))
        titles.append(title)
        said = f"{name} over the episodes: from {points[0][1]:.2f} to {points[-1][1]:.2f}"
        links.append(f"![{said}](card/{file.name})")
    return [titles, links] if titles else []


def _painter(points: Sequence[tuple[float, float]], from_zero: bool) -> Callable[[Figure], None]:
    """One curve, on white, because a card is read on a light page and on a dark one."""
    episodes, values = zip(*points, strict=True)

    def paint(canvas: Figure) -> None:
        canvas.set_facecolor("white")
        axes, ink = canvas.add_subplot(), COLORS[SERIES[0]]
        window = max(3, len(values) // 12) | 1  # odd, so that a mean sits on its own episode
        axes.plot(episodes, values, color=ink, linewidth=1, alpha=0.35, marker="o", markersize=2.5)
        axes.plot(episodes, running_mean(values, window), color=ink, linewidth=2)
        if from_zero:
            axes.update_datalim([(episodes[0], 0.0)])
            axes.autoscale_view()
        axes.set_xlabel("episodes")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))

    return paint


def _name(facts: RunFacts) -> str:
    base = short_name(facts.base_model).rstrip("/").split("/")[-1]
    return facts.repo_id.split("/")[-1] if facts.repo_id else f"{base}, tuned with {facts.method}"
