"""The model card of a trained policy: what it is, how to load it, how it was made, and what its figures say.

Whatever comes from outside (completions, names, values of a YAML) is text on the page and nothing else: no Markdown,
no HTML, no link. Local absolute paths are shortened to their last part, and secrets are left out.
"""

import importlib.metadata
import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf_recipes.arguments import save_config
from rlhf_recipes.figures import running_mean
from rlhf_recipes.report.markdown import (
    as_code,
    cell,
    clean_config,
    clean_text,
    fenced,
    finite,
    hub_id,
    linked,
    listed,
    markdown_table,
    one_line,
    plain_line,
    quoted,
    rounded,
    short_name,
)

REPO_PLACEHOLDER = "your-name/your-model"
PACKAGES = ("rlhf-recipes", "transformers", "peft", "trl", "accelerate", "datasets", "torch")

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
class Reward:
    """One reward of a run: its name, its weight, and where it came from."""

    name: str
    weight: float = 1.0
    source: str | None = None


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
        "rewards": _rewards_of(config),
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
        save_config(Path(folder, "config.yaml"), *args_dataclasses)
        return yaml.safe_load(Path(folder, "config.yaml").read_text(encoding="utf-8"))


def library_versions(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those of the packages that are installed."""
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def write_model_card(folder: str | Path, facts: RunFacts) -> Path:
    """Write `README.md` and its pictures in `card/` into the folder of a trained policy.

    Args:
        folder (`str` or `Path`): The folder; README.md and the pictures of an earlier card are replaced.
        facts ([`RunFacts`]): What is to be said.

    Returns:
        `Path`: the README.md.
    """
    root = Path(folder)
    pictures = _draw_curves(root / "card", facts)
    has_critic = (root / "critic").is_dir()
    sections = [
        _what_it_is(facts),
        _how_to_load(facts),
        _samples(facts),
        _curves(pictures),
        _figures(facts),
        _data_and_rewards(facts),
        _how_to_go_on(facts, has_critic),
        _limits(facts),
        _config(facts),
    ]
    text = "\n\n".join(section for section in sections if section)
    card = ModelCard(f"---\n{_metadata(facts).to_yaml()}\n---\n\n{text}\n")
    card.save(root / "README.md")
    return root / "README.md"


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
        if finite(facts.eval_metrics[name]) is not None
    ]


# ---- sections


def _what_it_is(facts: RunFacts) -> str:
    kind = "Adapters for" if facts.adapter else "A language model, which is"
    rewards = listed([as_code(reward.name) for reward in facts.rewards])
    aim = (
        f"so that its completions score higher under {rewards}" if rewards else "so that its completions score higher"
    )
    episodes = finite(facts.metrics.get("episodes", facts.metrics.get("episode")))
    run = f"It took {episodes:,.0f} episodes" if episodes else "It was trained"
    rows = f" ({facts.num_examples:,} in the split {as_code(facts.dataset_split)})" if facts.num_examples else ""
    first, last = (finite(m.get("objective/scores")) for m in (facts.first_metrics, facts.metrics))
    change = "" if first is None or last is None else f"; the mean score went from {first:.2f} to {last:.2f}"
    kl = finite(facts.metrics.get("objective/kl"))
    price = f" at a KL divergence of {kl:.1f} nats from the reference" if change and kl is not None else ""
    return (
        f"# {plain_line(_name(facts))}\n\n"
        f"{kind} {linked(facts.base_model)}, tuned with {plain_line(facts.method)} {aim}. "
        f"{run} with prompts from {linked(facts.dataset_name, 'datasets/')}{rows}{change}{price}."
    )


def _how_to_load(facts: RunFacts) -> str:
    repo = facts.repo_id or REPO_PLACEHOLDER
    base_is_local = hub_id(facts.base_model) is None
    lines = ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", f"repo = {quoted(repo)}"]
    if not facts.adapter:
        lines += ["model = AutoModelForCausalLM.from_pretrained(repo)"]
    elif base_is_local:
        lines[0] = "from peft import PeftModel\n" + lines[0]
        lines += [
            f"base = AutoModelForCausalLM.from_pretrained({quoted(short_name(facts.base_model))})",
            "model = PeftModel.from_pretrained(base, repo)",
        ]
    else:
        lines[0] = "from peft import AutoPeftModelForCausalLM\nfrom transformers import AutoTokenizer"
        lines += ["model = AutoPeftModelForCausalLM.from_pretrained(repo)  # fetches the base too"]
    lines += ["tokenizer = AutoTokenizer.from_pretrained(repo)", "", *_generation(facts)]
    notes = []
    if facts.adapter and base_is_local:
        notes.append(
            f"The adapters were trained on {as_code(short_name(facts.base_model))}, which is no model of the Hub: "
            "name the folder where you have it instead."
        )
    if not facts.repo_id:
        notes.append(f"`{REPO_PLACEHOLDER}` stands for the place of this repository, or of its folder.")
    return "## Load it\n\n```python\n" + "\n".join(lines) + "\n```" + "".join(f"\n\n{note}" for note in notes)


def _generation(facts: RunFacts) -> list[str]:
    length = finite(facts.config.get("max_completion_length")) or 64
    temperature = finite(facts.config.get("temperature"))
    settings = f"max_new_tokens={length:.0f}, do_sample=True"
    settings += f", temperature={temperature:g}" if temperature and temperature != 1 else ""
    if facts.conversational:
        lines = [
            'messages = [{"role": "user", "content": "What makes a good story?"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines = ['inputs = tokenizer("What I liked about it was", return_tensors="pt")']
    return [
        *lines,
        f"output = model.generate(**inputs, {settings})",
        'completion = output[0, inputs["input_ids"].shape[1] :]',
        "print(tokenizer.decode(completion, skip_special_tokens=True))",
    ]


def _samples(facts: RunFacts) -> str:
    if not facts.samples:
        return ""
    scored = any(finite(sample.score) is not None for sample in facts.samples)
    rows = [["prompt", "completion", *(["score"] if scored else [])]]
    rows += [
        [cell(sample.prompt), cell(sample.completion), *([rounded(sample.score)] if scored else [])]
        for sample in facts.samples
    ]
    return (
        "## What it writes\n\nCompletions as they were sampled, from the best score to the worst.\n\n"
        + markdown_table(rows, right=(2,))
    )


def _curves(pictures: Sequence[tuple[str, str, str]]) -> str:
    if not pictures:
        return ""
    row = [f"![{description}](card/{file})" for file, _, description in pictures]
    table = markdown_table([[title for _, title, _ in pictures], row])
    return f"## Training\n\n{table}\n\nOver the episodes of training: each rollout pale, their running mean on top."


def _figures(facts: RunFacts) -> str:
    parts = []
    names = _shown(facts.metrics)
    if names:
        outcome = [name for name in names if name.startswith(FIRST_FIGURES)]
        parts.append(
            "## Figures\n\nOn the prompts of training, while it lasted.\n\n" + _training_table(outcome, facts)
        )
        if len(outcome) < len(names):
            table = _training_table([name for name in names if name not in outcome], facts)
            parts.append(f"<details>\n<summary>Figures of the updates</summary>\n\n{table}\n\n</details>")
    held_out = _shown(facts.eval_metrics)
    if held_out:
        rows = [["figure", "value", "what it is"]]
        rows += [
            [as_code(name), rounded(facts.eval_metrics[name]), _meaning(name, facts.glossary)] for name in held_out
        ]
        parts.append("## On held-out prompts\n\n" + markdown_table(rows, (1,)))
    return "\n\n".join(parts)


def _training_table(names: Sequence[str], facts: RunFacts) -> str:
    first = facts.first_metrics
    rows = [["figure", *(["first rollout"] if first else []), "last rollout", "what it is"]]
    for name in names:
        before = [rounded(first.get(name))] if first else []
        rows.append([as_code(name), *before, rounded(facts.metrics[name]), _meaning(name, facts.glossary)])
    return markdown_table(rows, range(1, len(rows[0]) - 1))


def _shown(metrics: Mapping[str, Any]) -> list[str]:
    """Names of the figures for the tables, what matters most first; durations are left out."""
    names = [n for n, v in metrics.items() if "/" in n and not n.startswith("time/") and finite(v) is not None]
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


def _data_and_rewards(facts: RunFacts) -> str:
    count = f", {facts.num_examples:,} prompts" if facts.num_examples else ""
    text = f"## Data and rewards\n\nPrompts: {linked(facts.dataset_name, 'datasets/')}, split "
    text += f"{as_code(facts.dataset_split)}{count}."
    if facts.rewards:
        rows = [["reward", "weight", "from"]]
        rows += [
            [as_code(r.name), f"{r.weight:g}", as_code(short_name(r.source)) if r.source else ""]
            for r in facts.rewards
        ]
        text += " The score of a completion is the weighted sum of these rewards.\n\n" + markdown_table(rows, (1,))
    return text


def _how_to_go_on(facts: RunFacts, has_critic: bool) -> str:
    command = facts.command or f"accelerate launch recipes/{facts.method.lower()}.py --config config.yaml"
    typed = fenced(clean_text(command), "bash")
    lines = [
        "## Repeat it, or go on from it",
        f"Save the settings at the end of this page as `config.yaml`, then:\n\n{typed}",
        "To go on from this policy instead of its base, download this repository (`hf download`) and add "
        "`--model_name_or_path` with its folder.",
    ]
    if has_critic:
        lines.append("`critic/` holds the value head that was trained with the policy; only training needs it.")
    if facts.versions:
        lines.append(
            "Made with " + ", ".join(f"{plain_line(n)} {plain_line(v)}" for n, v in facts.versions.items()) + "."
        )
    return "\n\n".join(lines)


def _limits(facts: RunFacts) -> str:
    lines = [
        "The score is what the rewards above say of a completion, and no measure of truth, help or harmlessness. A "
        "policy finds what its rewards overlook: a higher score can mean a better text, or a text that pleases the "
        "reward for another reason. Read completions before you use it.",
        "The figures are of one run with one seed" + ("." if facts.eval_metrics else ", on the prompts of training."),
        f"What {linked(facts.base_model)} should not be used for, this should not be used for either: its knowledge, "
        "its gaps and its bias are still there. No test of safety was made.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _config(facts: RunFacts) -> str:
    if not facts.config:
        return ""
    text = yaml.safe_dump(clean_config(facts.config), sort_keys=False, allow_unicode=True, width=100)
    return f"<details>\n<summary>The settings of the run</summary>\n\n{fenced(text, 'yaml')}\n\n</details>"


# ---- curves


def _draw_curves(folder: Path, facts: RunFacts) -> list[tuple[str, str, str]]:
    """Draw what the log holds; file, heading and description of each picture. Old pictures of these names go."""
    pictures = []
    for name, stem, title, from_zero in CURVES:
        points = [
            (float(entry["episode"]), float(entry[name]))
            for entry in facts.log_history
            if finite(entry.get("episode")) is not None and finite(entry.get(name)) is not None
        ]
        file = folder / f"{stem}.png"
        if len(points) < 2:
            file.unlink(missing_ok=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        file.write_bytes(_picture(points, from_zero))
        said = f"{name} over the episodes: from {points[0][1]:.2f} to {points[-1][1]:.2f}"
        pictures.append((file.name, title, said))
    return pictures


def _picture(points: Sequence[tuple[float, float]], from_zero: bool) -> bytes:
    """One curve as PNG, on white, because a card is read on a light page and on a dark one."""
    ink, pale = "#2a5db0", "#6b7280"
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a matplotlibrc of the writer's must not change the card
        figure = Figure(figsize=(3.0, 2.0), dpi=220, layout="constrained", facecolor="white")
        axes = figure.add_subplot()
        episodes, values = zip(*points, strict=True)
        window = max(3, len(values) // 12) | 1  # odd, so that a mean sits on its own episode
        axes.plot(episodes, values, color=ink, linewidth=1, alpha=0.35, marker="o", markersize=2.5)
        axes.plot(episodes, running_mean(values, window), color=ink, linewidth=2)
        if from_zero:
            axes.update_datalim([(episodes[0], 0.0)])
            axes.autoscale_view()
        axes.set_xlabel("episodes", color=pale, fontsize=10)
        axes.tick_params(colors=pale, labelsize=10, length=0)
        axes.grid(color="#e5e7eb", linewidth=0.8)
        axes.set_axisbelow(True)
        for name, spine in axes.spines.items():
            spine.set_visible(name == "bottom")
            spine.set_color("#d1d5db")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _name(facts: RunFacts) -> str:
    base = short_name(facts.base_model).rstrip("/").split("/")[-1]
    return facts.repo_id.split("/")[-1] if facts.repo_id else f"{base}, tuned with {facts.method}"


def _rewards_of(config: Mapping[str, Any]) -> list[Reward]:
    """The rewards that a YAML lists, as names or as mappings, with the weights beside or inside them."""
    listed = config.get("reward_funcs") or []
    entries = listed if isinstance(listed, list | tuple) else [listed]
    weights = config.get("reward_weights") or [None] * len(entries)
    rewards = []
    for entry, weight in zip(entries, weights, strict=False):
        given = entry if isinstance(entry, Mapping) else {"func": entry}
        source = str(given.get("func") or "")
        weight = given.get("weight", 1.0) if weight is None else weight
        weight = weight["end"] if isinstance(weight, dict) else weight  # of a schedule
        rewards.append(Reward(str(given.get("name") or source.split(":")[-1].split("/")[-1]), float(weight), source))
    return rewards
