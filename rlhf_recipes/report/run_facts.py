"""What the things on the page are, said plainly, as far as the run's own configuration tells.

The quickstart's model and ratings have origins that a reader of its figures has to know; another model or data set is
named and no more, because nothing else is known about it here.
"""

import json
from pathlib import Path
from typing import Any

from rlhf_recipes.report.run import Run

POLICY_CONFIG, REWARD_CONFIG, JUDGE_CONFIG = "ppo/config.yaml", "reward/config.yaml", "judge/config.yaml"


def describe_run(run: Run) -> list[tuple[str, str]]:
    """Return terms and what they mean in this run, in the order in which a reader meets them."""
    return [
        ("The policy", _describe_policy(run)),
        ("The ratings", _describe_ratings(run)),
        (
            "The score",
            "The reward model's prediction for the completion, calibrated to the human rating on the validation "
            "split. One point of score is one point of human rating, from −4 (extremely negative) to 4 (extremely "
            "positive).",
        ),
        ("The judge", _describe_judge(run)),
        ("The measurement", _describe_measurement(run)),
        (
            "95% interval",
            "Paired over prompts: the change of each, from both of its completions, and Student's t for their mean, "
            "mended for skewness. Were prompts drawn anew, it would hold the mean change 95 times of 100. It covers "
            "the choice of prompts, not another training run.",
        ),
        (
            "KL",
            "How far the tuned policy has moved from the reference, the model before tuning: the log of the ratio of "
            "their probabilities, summed over a completion's tokens, in nats per completion.",
        ),
    ]


def _describe_policy(run: Run) -> str:
    name = _setting(run, POLICY_CONFIG, "model_name_or_path")
    if name is None:
        return f"Unknown: this run has no {POLICY_CONFIG} that names a model."
    if Path(name).name.lower() != "smollm2-135m-instruct":
        return f"{name}."
    source = _starter_source(name)
    if source == "hub" or (source is None and name.startswith("HuggingFaceTB/")):
        return "SmolLM2-135M-Instruct, in the weights that its makers published."
    return (
        "SmolLM2-135M-Instruct, but in a third party's 4-bit weights (Q4_1), dequantized: not the weights that its "
        "makers published, and a little worse than those."
    )


def _describe_ratings(run: Run) -> str:
    name = _setting(run, REWARD_CONFIG, "dataset_name")
    if name is None:
        return f"Unknown: this run has no {REWARD_CONFIG} that names a data set."
    if Path(name).name != "movie-ratings":
        return f"The reward model learned from {name}."
    return (
        "People rated the sentiment of single sentences from movie reviews, from −4 to 4, 15 or more people a "
        "sentence. These are not chat preferences: the reward model learns how positive a sentence sounds, not how "
        "helpful or true it is."
    )


def _describe_judge(run: Run) -> str:
    judge = _setting(run, JUDGE_CONFIG, "model_name_or_path")
    reward = _setting(run, REWARD_CONFIG, "model_name_or_path")
    if judge is None:
        return (
            "A second model of the ratings that took no part in training. This run has no "
            f"{JUDGE_CONFIG}, so the page cannot say which."
        )
    if judge == reward:
        return (
            f"A second model of the ratings. Its backbone, {judge}, is the reward model's too: so may be its errors."
        )
    return (
        "A second model of the ratings that took no part in training the policy: another backbone "
        f"({Path(judge).name}), trained on other rows. What the judge does not confirm may be a weakness of the "
        "reward model that PPO has found."
    )


def _describe_measurement(run: Run) -> str:
    settings = run.settings.get("after/config.yaml", {})
    temperature, top_p = settings.get("temperature", 1), settings.get("top_p", 1)
    return (
        "Every prompt of the evaluation, each with one completion before and one after PPO, sampled at temperature "
        f"{temperature:g} and top_p {top_p:g}, with the same limit on length."
        if isinstance(temperature, int | float) and isinstance(top_p, int | float)
        else "Every prompt of the evaluation, each with one completion before and one after PPO."
    )


def _setting(run: Run, config: str, key: str) -> str | None:
    value: Any = run.settings.get(config, {}).get(key)
    return value if isinstance(value, str) and value else None


def _starter_source(model_name: str) -> str | None:
    """Ask the starter kit's own marker where a folder's weights came from; `None` where there is no marker to ask."""
    try:
        made_from = json.loads((Path(model_name) / ".complete.json").read_text(encoding="utf-8"))["made_from"]
        return str(made_from["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_mean_of_reward(name: str) -> bool:
    """Whether a logged name is `reward/<name>`, and not that reward's spread or share."""
    return name.startswith("reward/") and not name.endswith(("/std", "/share"))
