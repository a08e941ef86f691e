"""How a saved reward model is used, as code that can be pasted: in PPO, in TRL's GRPO, and without this project."""

from collections.abc import Mapping
from typing import Any

from rlhf_recipes.modeling.calibration import LinearCalibration, LogisticCalibration, OrdinalCalibration
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.report.markdown import quoted
from rlhf_recipes.report.page import Snippet

GRPO_NOTE = (
    "reward_funcs also takes the folder as a string. TRL then loads and reads the model itself: it tokenizes prompt "
    "and completion without the tokenizer's special tokens, the end-of-sequence token among them, does not cut long "
    "texts, takes the first logit, and knows no calibration. Its scores are then others than those measured here. "
    "Give the object, as above."
)


def snippets(
    where: str,
    settings: RewardModelSettings,
    steps: bool = False,
    step_token: str = "\n",
    string_path: Mapping[str, Any] | None = None,
) -> list[Snippet]:
    """What the page and the README show.

    Args:
        where (`str`): The folder, or the id of the Hub.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`]): Those of the folder.
        steps (`bool`): Whether it is a process reward model.
        step_token (`str`): The mark behind each step, of such a one.
        string_path (`Mapping`, *optional*): What was measured of TRL's own way of reading it, see `write_card`.
    """
    if steps:
        return [_step_yaml(where, step_token), _step_grpo(where, step_token), _step_plain(where, step_token)]
    yaml = Snippet(
        "PPO, with recipes/ppo.py",
        "yaml",
        f"reward_funcs:\n  - {{func: {_yaml(where)}, name: reward_model, weight: 1.0}}",
        "Its tokenizer is its own: any policy can be trained with it.",
    )
    grpo = Snippet("TRL's GRPO and RLOO", "python", _grpo(where), GRPO_NOTE + _measured(string_path))
    plain = Snippet("transformers alone", "python", plain_code(where, settings), _plain_note(settings))
    return [yaml, grpo, plain, *_elsewhere(where, settings)]


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
        f"from rlhf_recipes.rewards import LearnedReward\nreward_funcs = [LearnedReward({quoted(where)})]",
        f"`reward_funcs={quoted(where)}` would give other scores: TRL then adds no special tokens to plain text and "
        "cuts nothing. Hand over the object, in GRPO and in RLOO.",
    )
    long = Snippet(
        "Long texts",
        "python",
        f'score = pipeline("text-classification", model={quoted(where)})\nscore(text, truncation=True)',
        f"The tokenizer knows that {settings.max_length} tokens are read, the last ones, but a pipeline cuts only "
        "when it is told to. (CrossEncoder always does, and takes from the longer part of a pair.)",
    )
    end = Snippet(
        "The end of a text",
        "python",
        f"tokenizer = AutoTokenizer.from_pretrained({quoted(where)})\ntext += tokenizer.eos_token",
        "The tokenizer cannot add the end-of-sequence token by itself, and the score is read there. Outside of this "
        "project write it behind each plain text.",
    )
    return [by_name, *([long] if settings.max_length is not None else []), *([end] if settings.append_eos else [])]


def _elsewhere(where: str, settings: RewardModelSettings) -> list[Snippet]:
    """Programs that take the folder as it is."""
    end = " + score.tokenizer.eos_token" if settings.append_eos else ""
    pipe = (
        f'from transformers import pipeline\n\nscore = pipeline("text-classification", model={quoted(where)})\n'
        f'print(score("The film is a delight."{end}, truncation=True, top_k=None))'
    )
    if settings.labels is not None:
        return [Snippet("A pipeline", "python", pipe, "It gives the outputs one by one.")]
    if settings.append_eos:
        return [Snippet("A pipeline", "python", pipe)]
    pair = (
        "from sentence_transformers import CrossEncoder\n\n"
        f'print(CrossEncoder({quoted(where)}).predict([("The film is", " a delight.")]))'
    )
    unit = " before it becomes a rating" if settings.calibration is not None else ""
    note = f"Both give the score{unit}. A pair is read as one text. vLLM (`--runner pooling`) reads texts alike."
    return [Snippet("A pipeline", "python", pipe), Snippet("CrossEncoder", "python", pair, note)]


def _yaml(where: str) -> str:
    return where if not set(where) & set(" :#{}[],'\"&*!|>%@`") else '"' + where.replace('"', '\\"') + '"'


def _grpo(where: str) -> str:
    return f"""from rlhf_recipes.rewards import LearnedReward
from trl import GRPOTrainer

trainer = GRPOTrainer(
    model="my-org/my-policy",
    reward_funcs=[LearnedReward({quoted(where)})],
    train_dataset=dataset,
)
trainer.train()"""


def _measured(string_path: Mapping[str, Any] | None) -> str:
    if not string_path:
        return ""
    figures = ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in string_path.items()
        if value is not None and name != "what_differs"
    )
    why = f" {string_path['what_differs']}" if string_path.get("what_differs") else ""
    return f" Measured on this model: {figures}.{why}"


def plain_code(where: str, settings: RewardModelSettings) -> str:
    """Code that needs nothing but transformers and torch, and gives the same score as `LearnedReward`."""
    lines = [
        "import math" if isinstance(settings.calibration, LogisticCalibration | OrdinalCalibration) else "",
        "import torch",
        "from transformers import AutoModelForSequenceClassification, AutoTokenizer",
        "",
        f"where = {quoted(where)}",
        "tokenizer = AutoTokenizer.from_pretrained(where)",
        "model = AutoModelForSequenceClassification.from_pretrained(where, dtype=torch.float32).eval()",
        'text = "The film is" + " a delight."  # prompt and completion',
    ]
    if settings.append_eos:
        lines.append("text += tokenizer.eos_token")
    limit = ""
    if settings.max_length is not None:
        lines.append('tokenizer.truncation_side = "left"  # of a long text the end counts')
        limit = f", truncation=True, max_length={settings.max_length}"
    lines += [
        f'inputs = tokenizer(text, return_tensors="pt"{limit})',
        "with torch.no_grad():",
        "    outputs = model(**inputs).logits[0]",
        *_score_lines(settings),
    ]
    return "\n".join(lines[1:] if not lines[0] else lines)


def _score_lines(settings: RewardModelSettings) -> list[str]:
    if settings.labels is None:
        lines = ["score = outputs[0].item()"]
    else:
        outputs = "outputs.softmax(dim=0)" if settings.probabilities else "outputs"
        lines = [
            f"counts = {dict(settings.labels)!r}",
            f"outputs = {outputs}",
            "names = model.config.id2label",
            "score = sum(counts.get(names[i], 0.0) * value for i, value in enumerate(outputs.tolist()))",
        ]
    curve = settings.calibration
    if isinstance(curve, LogisticCalibration):
        lines += [
            f"share = 1 / (1 + math.exp(-({curve.scale!r} * score + {curve.offset!r})))",
            f"rating = {curve.low!r} + {curve.high - curve.low!r} * share  # on the scale on which people rated",
        ]
    elif isinstance(curve, LinearCalibration):
        lines.append(f"rating = {curve.scale!r} * score + {curve.offset!r}")
    elif isinstance(curve, OrdinalCalibration):
        lines += [
            f"levels, thresholds = {list(curve.levels)!r}, {list(curve.thresholds)!r}",
            "above = [1 / (1 + math.exp(t - score)) for t in thresholds]  # the chance to be above each level",
            "rating = levels[0] + sum(p * (b - a) for p, a, b in zip(above, levels, levels[1:]))",
        ]
    return lines


def _plain_note(settings: RewardModelSettings) -> str:
    note = "Messages become text through the tokenizer's chat template (and then `add_special_tokens=False`). "
    what = "rating" if settings.calibration is not None else "score"
    return note + f"`{what}` is what `LearnedReward` returns."


def _step_yaml(where: str, step_token: str) -> Snippet:
    token = step_token.replace("\n", "\\n")
    code = (
        f"reward_funcs:\n  - func: StepReward\n    args:\n      score: {{model: {_yaml(where)}, "
        f'step_token: "{token}"}}\n      reduce: min'
    )
    return Snippet("PPO, with recipes/ppo.py", "yaml", code, "Steps are parted by empty lines, unless you say how.")


def _step_grpo(where: str, step_token: str) -> Snippet:
    code = f"""from rlhf_recipes.rewards import StepReward
from trl import GRPOTrainer

reward = StepReward({{"model": {quoted(where)}, "step_token": {step_token!r}}}, reduce="min")
trainer = GRPOTrainer(model="my-org/my-policy", reward_funcs=[reward], train_dataset=dataset)
trainer.train()"""
    return Snippet(
        "TRL's GRPO and RLOO", "python", code, "The folder as a string would be read as a classifier of texts."
    )


def _step_plain(where: str, step_token: str) -> Snippet:
    code = f"""import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

where = {quoted(where)}
tokenizer = AutoTokenizer.from_pretrained(where)
model = AutoModelForTokenClassification.from_pretrained(where, dtype=torch.float32).eval()
ids = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
ids += tokenizer("What is 2 + 2 + 2?", add_special_tokens=False).input_ids
ends = []
for step in ["2 + 2 = 4", "4 + 2 = 7"]:
    ids += tokenizer(step, add_special_tokens=False).input_ids
    ids += tokenizer({step_token!r}, add_special_tokens=False).input_ids
    ends.append(len(ids) - 1)
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0, ends]
right = logits.sigmoid()[:, 0] if model.config.num_labels == 1 else logits.softmax(dim=-1)[:, 1]
print(right)  # for each step the probability that it is right"""
    return Snippet("transformers alone", "python", code)
