"""How a saved reward model is used, as code that can be pasted: in PPO, in TRL's GRPO, and without this project.

The code stands in `templates/usage.j2`; here is which of it fits a model, and what to know about it.
"""

from collections.abc import Mapping
from typing import Any

from rlhf_recipes.modeling.calibration import LinearCalibration, LogisticCalibration, OrdinalCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report.markdown import card_environment, quoted
from rlhf_recipes.report.page import Snippet

GRPO_NOTE = (
    "reward_funcs also takes the folder as a string. TRL then loads and reads the model itself: it tokenizes prompt "
    "and completion without the tokenizer's special tokens, the end-of-sequence token among them, does not cut long "
    "texts, takes the first logit, and knows no calibration. Its scores are then others than those measured here. "
    "Give the object, as above."
)
KINDS = {LogisticCalibration: "logistic", LinearCalibration: "linear", OrdinalCalibration: "ordinal"}


def snippets(
    where: str,
    settings: RewardModelSettings,
    steps: bool = False,
    step_token: str = "\n",
    by_trl: Mapping[str, Any] | None = None,
) -> list[Snippet]:
    """What the page and the README show.

    Args:
        where (`str`): The folder, or the id of the Hub.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`]): Those of the folder.
        steps (`bool`): Whether it is a process reward model.
        step_token (`str`): The mark behind each step, of such a one.
        by_trl (`Mapping`, *optional*): What was measured of TRL's own way of reading it, see `write_card`.
    """
    if steps:
        parted = "Steps are parted by empty lines, unless you say how."
        as_string = "The folder as a string would be read as a classifier of texts."
        return [
            Snippet("PPO, with recipes/ppo.py", "yaml", _code("steps_ppo", where, step_token), parted),
            Snippet("TRL's GRPO and RLOO", "python", _code("steps_grpo", where, step_token), as_string),
            Snippet("transformers alone", "python", _code("steps_plain", where, step_token)),
        ]
    its_own = "Its tokenizer is its own: any policy can be trained with it."
    what = "rating" if settings.calibration is not None else "score"
    plain = "Messages become text through the tokenizer's chat template (and then `add_special_tokens=False`). "
    return [
        Snippet("PPO, with recipes/ppo.py", "yaml", _code("ppo", where), its_own),
        Snippet("TRL's GRPO and RLOO", "python", _code("grpo", where), GRPO_NOTE + _measured(by_trl)),
        Snippet(
            "transformers alone",
            "python",
            plain_code(where, settings),
            f"{plain}`{what}` is what `LearnedReward` returns.",
        ),
        *_elsewhere(where, settings),
    ]


def caveats(where: str, settings: RewardModelSettings, steps: bool = False) -> list[Snippet]:
    """What the files of a model cannot tell other code, each with the lines that do it; for the first screen.

    Args:
        where, settings, steps: As in [`snippets`].
    """
    if steps:
        return []
    by_name = Snippet(
        "By name in TRL",
        "python",
        _code("by_name", where),
        f"`reward_funcs={quoted(where)}` would give other scores: TRL then adds no special tokens to plain text and "
        "cuts nothing. Hand over the object, in GRPO and in RLOO.",
    )
    long = Snippet(
        "Long texts",
        "python",
        _code("long_texts", where),
        f"The tokenizer knows that {settings.max_length} tokens are read, the last ones, but a pipeline cuts only "
        "when it is told to. (CrossEncoder always does, and takes from the longer part of a pair.)",
    )
    end = Snippet(
        "The end of a text",
        "python",
        _code("end_of_text", where),
        "The tokenizer cannot add the end-of-sequence token by itself, and the score is read there. Outside of this "
        "project write it behind each plain text.",
    )
    return [by_name, *([long] if settings.max_length is not None else []), *([end] if settings.append_eos else [])]


def plain_code(where: str, settings: RewardModelSettings) -> str:
    """Code that needs nothing but transformers and torch, and gives the same score as `LearnedReward`."""
    return _code("plain", where, settings, settings.calibration, KINDS.get(type(settings.calibration), ""))


def _elsewhere(where: str, settings: RewardModelSettings) -> list[Snippet]:
    """Programs that take the folder as it is."""
    pipe = _code("pipeline", where, settings.append_eos)
    if settings.labels is not None:
        return [Snippet("A pipeline", "python", pipe, "It gives the outputs one by one.")]
    if settings.append_eos:
        return [Snippet("A pipeline", "python", pipe)]
    unit = " before it becomes a rating" if settings.calibration is not None else ""
    note = f"Both give the score{unit}. A pair is read as one text. vLLM (`--runner pooling`) reads texts alike."
    pair = Snippet("CrossEncoder", "python", _code("cross_encoder", where), note)
    return [Snippet("A pipeline", "python", pipe), pair]


def _measured(by_trl: Mapping[str, Any] | None) -> str:
    if not by_trl:
        return ""
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in by_trl.items()
        if value is not None and name != "what_differs"
    )
    why = f" {by_trl['what_differs']}" if by_trl.get("what_differs") else ""
    return f" Measured on this model: {figures}.{why}"


def _code(name: str, *values: Any) -> str:
    """One of the pieces of code, with the values in place."""
    return str(getattr(card_environment().get_template("usage.j2").module, name)(*values)).rstrip("\n")
