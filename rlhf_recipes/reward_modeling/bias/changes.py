"""What becomes of a score when nothing that matters changes: texts are changed, and scored again.

Three sorts. [`measure_changes`] edits completions: repeats them, adds a sentence that says nothing, sets bullets. How
much that may matter is for people to say; the effect is told in standard deviations of the score. [`check_exact`] asks
what must be so for any score of one text: alone or in a batch, in any order, twice. [`measure_encodings`] changes what
a model reads and not what is written: special tokens, padding, the chat template.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rlhf_recipes.modeling.reading import evaluating
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.statistics import Floats, Keys, Metrics, correlation, mean_with_interval
from rlhf_recipes.texts import Messages, Text

Change = Callable[[str], str]
Reward = Callable[..., Any]
NEUTRAL = "That is all there is to say about it."
SENTENCE = re.compile(r"(?<=[.!?…。！？])\s+")
TOLERANCE = 1e-4


# --- Edits of texts --------------------------------------------------------------------------------------


def text_changes(neutral_sentence: str = NEUTRAL) -> dict[str, Change]:
    """The edits, by name.

    | name | what becomes of the text |
    |---|---|
    | `said twice` | the text, a space, the text |
    | `neutral sentence` | the sentence stands behind it |
    | `bullets` | each sentence on a line of its own, after `- ` |
    | `bold` | the whole between `**` |
    | `spaces at the end`, `newline at the end` | two spaces, or a newline, behind it |
    | `lower case`, `upper case` | all its letters so |

    Args:
        neutral_sentence (`str`, *optional*): What to append. It should fit the texts and say nothing of their worth.
    """
    return {
        "said twice": lambda text: f"{text.rstrip()} {text.lstrip()}",
        "neutral sentence": lambda text: f"{text.rstrip()} {neutral_sentence}",
        "bullets": lambda text: "\n".join(f"- {sentence}" for sentence in SENTENCE.split(text.strip())),
        "bold": lambda text: f"**{text.strip()}**",
        "spaces at the end": lambda text: f"{text}  ",
        "newline at the end": lambda text: f"{text}\n",
        "lower case": str.lower,
        "upper case": str.upper,
    }


def changed(completion: Text, change: Change) -> Text:
    """A completion with its text changed; of messages, the text of the last one."""
    if isinstance(completion, str):
        return change(completion)
    *before, last = completion
    content = last.get("content") or ""
    if isinstance(content, str):
        return [*before, {**last, "content": change(content)}]
    blocks = list(content)
    texts = [place for place, block in enumerate(blocks) if block.get("text")]
    for place in texts[-1:]:
        blocks[place] = {**blocks[place], "text": change(blocks[place]["text"])}
    return [*before, {**last, "content": blocks}]


def measure_changes(
    reward: Reward,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    changes: Mapping[str, Change] | None = None,
    std: float | None = None,
    units: Keys | None = None,
) -> dict[str, Metrics]:
    """How far each edit moves the score, in standard deviations of the score between texts.

    Args:
        reward (callable), prompts, completions (`Sequence` of length N): What is measured, and on which texts.
        changes (`Mapping[str, Callable]`, *optional*): Edits, from text to text. Default: [`text_changes`].
        std (`float`, *optional*): The unit. Default: the standard deviation of the scores of these texts.
        units (`Sequence` of length N, *optional*): What intervals are over, such as prompts. Default: the texts.

    Returns:
        `dict`: for each edit `effect` (the mean change), `effect_ci95`, `size` (the mean of its absolute value),
        `largest`, and `texts`: how many the edit changed and the reward scored both ways; only these count. Figures
        are `None` where there is none, or where the scores do not vary.
    """
    before = scores_of(reward, prompts, completions)
    spread = float(np.nanstd(before)) if std is None and np.isfinite(before).any() else std
    found: dict[str, Metrics] = {}
    for name, change in (text_changes() if changes is None else changes).items():
        edited = [changed(completion, change) for completion in completions]
        rows = [row for row, text in enumerate(edited) if text != completions[row]]
        after = scores_of(reward, [prompts[row] for row in rows], [edited[row] for row in rows])
        found[name] = _effect(after - before[rows], rows, spread, units)
    return found


def _effect(effects: Floats, rows: Sequence[int], std: float | None, units: Keys | None) -> Metrics:
    known = np.isfinite(effects)
    effects, texts = effects[known], int(known.sum())
    if not texts or not std:
        return {**dict.fromkeys(("effect", "effect_ci95", "size", "largest")), "texts": texts}
    keys = None if units is None else [units[row] for row, here in zip(rows, known, strict=True) if here]
    mean, interval = mean_with_interval(effects / std, keys)
    size = np.abs(effects / std)
    figures = {"size": float(size.mean()), "largest": float(size.max())}
    return {"effect": mean, "effect_ci95": interval, **figures, "texts": texts}


def scores_of(reward: Reward, prompts: Sequence[Text], completions: Sequence[Text]) -> Floats:
    """Scores `(N,)`, NaN where the reward says `None`."""
    if not completions:
        return np.zeros(0)
    values = reward(prompts=list(prompts), completions=list(completions))
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


# --- What must be so -------------------------------------------------------------------------------------


def check_exact(
    reward: Reward, prompts: Sequence[Text], completions: Sequence[Text], tolerance: float = TOLERANCE
) -> dict[str, Metrics]:
    """Whether a score is that of its own text alone.

    | name | what is compared |
    |---|---|
    | `twice` | two calls on the same rows |
    | `order` | the rows, and the rows in reverse: what is chosen and what is rejected trade places |
    | `batch` | each text alone, and in one call with texts five times as long |

    A reward that compares completions of a prompt fails, as it should.

    Args:
        reward, prompts, completions: As in [`measure_changes`].
        tolerance (`float`, *optional*, defaults to 1e-4): Largest difference, in scores; float32 rounds.

    Returns:
        `dict`: for each name `largest` (the largest difference, in scores), `texts` and `holds`. `None` for both where
        the reward scores none of the texts.
    """
    rows = list(zip(prompts, completions, strict=True))
    first = scores_of(reward, prompts, completions)
    back = scores_of(reward, [p for p, _ in rows[::-1]], [c for _, c in rows[::-1]])[::-1]
    longer = [changed(text, lambda part: " ".join([part] * 5)) for text in completions]
    among = scores_of(reward, [*prompts, *prompts], [*completions, *longer])[: len(rows)]
    alone = np.concatenate([np.zeros(0), *(scores_of(reward, [p], [c]) for p, c in rows)])
    again = scores_of(reward, prompts, completions)
    pairs = {"twice": (first, again), "order": (first, back), "batch": (alone, among)}
    return {name: _difference(one, other, tolerance) for name, (one, other) in pairs.items()}


def _difference(one: Floats, other: Floats, tolerance: float) -> Metrics:
    difference = np.abs(one - other)[np.isfinite(one) | np.isfinite(other)]
    if not len(difference):
        return {"largest": None, "texts": 0, "holds": None}
    # A text that is scored in one way and not in the other is no match.
    largest = float(difference.max()) if np.isfinite(difference).all() else None
    return {"largest": largest, "texts": len(difference), "holds": largest is not None and largest <= tolerance}


# --- How a text is put before a model --------------------------------------------------------------------


def measure_encodings(
    reward: LearnedReward,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    std: float | None = None,
    units: Keys | None = None,
) -> dict[str, Metrics]:
    """How far the score moves when the same text is put before the model in another way.

    | name | what is compared with what the model usually reads |
    |---|---|
    | `by name in TRL` | what [`as_trl_reads`] gives |
    | `no special tokens` | none added |
    | `one more beginning` | a beginning-of-sequence token in front: a template writes one, and the tokenizer too |
    | `padding on the left` | padding before the text, with the mask that says so |
    | `padding on the right` | padding after it; must change nothing |
    | `chat template` | prompt and completion as messages of user and assistant |

    Args:
        reward ([`LearnedReward`]): A model with its tokenizer. Logits are compared, before any calibration.
        prompts, completions, std, units: As in [`measure_changes`].

    Returns:
        `dict`: for each name what [`measure_changes`] gives, and `correlation`, that of both scores. `texts` are those
        that have room for the change and are changed by it; there are none where a model has no such token or no
        template, or several outputs, with which TRL does not load it.
    """
    both = [*zip(prompts, completions, strict=True)]
    rendered = [reward.render(*texts) for texts in both]
    usual = [reward.encode_text(text, special) for text, special in rendered]
    scores = reward.scores(usual).double().numpy()
    spread = float(scores.std()) if std is None and len(scores) else std
    beginning = reward.tokenizer.bos_token_id
    beginning = reward.tokenizer.cls_token_id if beginning is None else beginning
    others: dict[str, list[list[int] | None]] = {
        "by name in TRL": [as_trl_reads(reward, *texts) for texts in both],
        "no special tokens": [reward.encode_text(text, False) if special else None for text, special in rendered],
        "one more beginning": [None if beginning is None else [beginning, *ids] for ids in usual],
        "chat template": [_as_chat(reward, *texts) for texts in both],
    }
    found: dict[str, Metrics] = {}
    for name, encoded in others.items():
        limit = _positions(reward) if name == "by name in TRL" else reward.max_length or 10**9
        rows = [row for row, ids in enumerate(encoded) if ids and ids != usual[row] and len(ids) <= limit]
        after = reward.scores([encoded[row] or [] for row in rows]).double().numpy()
        found[name] = _effect(after - scores[rows], rows, spread, units)
        related = correlation(scores[rows], after) if rows else math.nan
        found[name]["correlation"] = None if math.isnan(related) else related
    for side in ("left", "right"):
        found[f"padding on the {side}"] = _effect(
            _padded(reward, usual, side) - scores, range(len(both)), spread, units
        )
    return found


def as_trl_reads(reward: LearnedReward, prompt: Text, completion: Text) -> list[int] | None:
    """The tokens of a text in TRL's `GRPOTrainer` and `RLOOTrainer`, where they are given the model by its name.

    TRL joins prompt and completion, or puts them through the chat template, asks for no special tokens (an encoder
    sees no `[CLS]`, though its head reads that place, and a decoder no end-of-sequence token), cuts nothing, and does
    not read `reward_config.json` (`_calculate_rewards` in TRL 1.16). `None` where it cannot use the model so.
    """
    if reward.model.config.num_labels != 1:
        return None
    if isinstance(prompt, str):
        text = f"{prompt}{completion}"
    elif reward.tokenizer.chat_template is None:
        return None
    else:
        from trl import apply_chat_template

        messages: Any = {"messages": [*prompt, *completion]}
        text = str(apply_chat_template(messages, reward.tokenizer)["text"])
    ids: list[int] = reward.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return ids


def _positions(reward: LearnedReward) -> int:
    """Tokens that a text may have without being cut. Of RoBERTa's 514 places its tokenizer knows that 512 are used."""
    places = getattr(reward.model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    return min(places, reward.tokenizer.model_max_length)


def _as_chat(reward: LearnedReward, prompt: Text, completion: Text) -> list[int] | None:
    if reward.tokenizer.chat_template is None or not (isinstance(prompt, str) and isinstance(completion, str)):
        return None
    before: Messages = [{"role": "user", "content": prompt}] if prompt else []
    return reward.encode([before], [[{"role": "assistant", "content": completion}]])[0]


def _padded(reward: LearnedReward, token_ids: Sequence[Sequence[int]], side: str) -> Floats:
    """Scores of texts that each have eight tokens of padding on one side, or as many as the model has room for."""
    pad = reward.tokenizer.pad_token_id
    device = next(reward.model.parameters()).device
    positions = getattr(reward.model.config.get_text_config(), "max_position_embeddings", None) or 10**9
    scores = []
    for ids in token_ids:
        fill = [pad] * min(8, positions - len(ids))
        mask = [[0] * len(fill) + [1] * len(ids), [1] * len(ids) + [0] * len(fill)][side == "right"]
        row = [*fill, *ids] if side == "left" else [*ids, *fill]
        tensors = {"input_ids": torch.tensor([row]).to(device), "attention_mask": torch.tensor([mask]).to(device)}
        with torch.inference_mode(), evaluating(reward.model):
            scores.append(float(reward.head(reward.model(**tensors).logits)[0]))
    return np.array(scores, dtype=np.float64)
