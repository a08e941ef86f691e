"""How far the scores of a reward model are from those that TRL gets when it is given the folder's name alone.

`GRPOTrainer(reward_funcs="my-org/my-reward-model")`, and the same of `RLOOTrainer`, loads the model and its tokenizer
itself and reads texts in a way of its own (`_calculate_rewards` in TRL 1.16; the source was read, and a test runs both
trainers and compares the rewards that they log):

- prompt and completion are joined, or go through the chat template, and are encoded without special tokens: an encoder
  sees no `[CLS]` and no `[SEP]`, though its head reads the place of the first, and a decoder no end-of-sequence token;
- nothing is cut off, whatever length the model was trained on;
- the head must have one output, whose logit is the reward; `reward_config.json` is not read;
- weights are in the precision of their files, and under `bf16`, TRL's default, activations in bfloat16.

A model that was trained on whole texts then judges something that it has never seen. Handing over
`LearnedReward(folder)` instead of the name avoids all that. What it makes on a given model is measured here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from trl import apply_chat_template

from rlhf_recipes.data.pairs import compare_all
from rlhf_recipes.modeling.frozen import default_device
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.reading import model_outputs
from rlhf_recipes.reward_modeling.examples import tokenize
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.texts import Text

FIGURES = (
    "mean_difference_in_std", "max_difference_in_std", "correlation", "pairwise_accuracy",
    "string_path_pairwise_accuracy",
)  # fmt: skip
TokenIds = Sequence[Sequence[int]]


class StringPath:
    """A reward as TRL makes it of the name of a reward model; see the module's text for what it does not do.

    Args:
        folder (`str` or `Path`): The model, with its tokenizer. A sequence classifier with one output.
        bf16 (`bool`, *optional*, defaults to `False`): Whether activations are in bfloat16, as in a trainer whose
            `bf16` is true.
        batch_size (`int`, *optional*, defaults to 32): Texts in one forward pass.

    Raises:
        `ValueError`: if the head has several outputs, where TRL's loading fails.
    """

    def __init__(self, folder: str | Path, bf16: bool = False, batch_size: int = 32) -> None:
        outputs = AutoConfig.from_pretrained(folder).num_labels
        if outputs != 1:
            raise ValueError(
                f"{str(folder)!r} has {outputs} outputs, and TRL loads a model that it is given by name with one. "
                "Give its trainers LearnedReward(folder) instead."
            )
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        # TRL names no dtype either.
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        self.model = model.to(default_device()).eval()
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.bf16, self.batch_size = bf16, batch_size

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """The logit of each prompt with its completion. `(B,)`"""
        return self.score(self.encode(prompts, completions))

    def encode(self, prompts: Sequence[Text], completions: Sequence[Text]) -> TokenIds:
        """The tokens of both joined, or of the messages of both through the chat template, and no special ones."""
        texts = [self._text(*both) for both in zip(prompts, completions, strict=True)]
        ids: TokenIds = self.tokenizer(texts, add_special_tokens=False, verbose=False).input_ids if texts else []
        return ids

    def _text(self, prompt: Any, completion: Any) -> str:
        if isinstance(prompt, str):
            return f"{prompt}{completion}"
        messages: Any = {"messages": [*prompt, *completion]}
        return str(apply_chat_template(messages, self.tokenizer)["text"])

    def score(self, token_ids: TokenIds) -> list[float]:
        """The logit of texts that are encoded already. `(B,)`"""
        scores = torch.empty(len(token_ids))
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.bf16):
            for rows, output in model_outputs(self.model, token_ids, self.batch_size, self.tokenizer.pad_token_id):
                scores[rows] = output.logits[:, 0].float().cpu()
        return scores.tolist()


def string_path_difference(
    folder: str | Path,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    labels: ArrayLike | None = None,
    min_gap: float = 0.5,
    batch_size: int = 32,
    bf16: bool = False,
    reward: LearnedReward | None = None,
) -> dict[str, Any]:
    """Score texts as `LearnedReward` does and as TRL does that is given the folder's name, and compare.

    With `s` the scores of [`~rlhf_recipes.rewards.learned.LearnedReward`] before calibration and `t` TRL's, the
    differences are `|s - t| / std(s)`: what is added to all scores counts, though GRPO and RLOO would take it out.
    Texts of more tokens than the model can read are left out, because TRL's path stops with an error at them, or
    reads on where the model was never trained.

    Args:
        folder (`str` or `Path`): A saved reward model.
        prompts (`Sequence` of length N), completions (`Sequence` of length N): Texts, or lists of messages.
        labels (`ArrayLike` of shape `(N,)`, *optional*): What people say of each, higher is better.
        min_gap (`float`, *optional*, defaults to 0.5): Least difference of two labels that are compared.
        batch_size, bf16: As in [`StringPath`]. `bf16=False` shows what the reading alone makes.
        reward ([`~rlhf_recipes.rewards.learned.LearnedReward`], *optional*): The model of the folder, without
            calibration, where it is in memory already. Default: it is loaded.

    Returns:
        `dict`: `texts` (how many were compared); `mean_difference_in_std` and `max_difference_in_std` (0 or more);
        `correlation` (Pearson's, -1 to 1); `pairwise_accuracy` and `string_path_pairwise_accuracy` (0 to 1, over all
        pairs of texts whose labels are `min_gap` apart), `None` without labels; `what_differs`, a sentence. Figures
        are `None` where nothing can be said: fewer than two texts, equal scores, or a model that TRL cannot load so.

    Raises:
        `ValueError`: if prompts, completions and labels are not of one length.
    """
    truth = None if labels is None else np.asarray(labels, dtype=np.float64)
    if len({len(prompts), len(completions), len(prompts) if truth is None else len(truth)}) > 1:
        raise ValueError(
            f"There are {len(prompts)} prompts, {len(completions)} completions and "
            f"{'no' if truth is None else len(truth)} labels; give one of each for every row."
        )
    found: dict[str, Any] = {"texts": 0, **dict.fromkeys(FIGURES)}
    if refused := _why_not(folder):
        return found | {"what_differs": f"TRL cannot be given its name: {refused}"}
    path = StringPath(folder, bf16, batch_size)
    if path.tokenizer.chat_template is None and not all(isinstance(prompt, str) for prompt in prompts):
        return found | {"what_differs": "TRL cannot read conversations with it: its tokenizer has no chat template."}
    reward = reward or LearnedReward(folder, batch_size=batch_size, calibrate=False)
    read = path.encode(prompts, completions)
    # Those that need no cutting. Of RoBERTa's 514 positions its tokenizer knows that 512 can be used.
    positions = getattr(path.model.config.get_text_config(), "max_position_embeddings", None)
    limit = min(positions or path.tokenizer.model_max_length, path.tokenizer.model_max_length)
    rows = [row for row, ids in enumerate(read) if 0 < len(ids) <= limit]
    whole = RewardModelSettings(append_eos=reward.settings.append_eos)
    ours = tokenize(Texts(list(prompts), list(completions)), reward.tokenizer, whole)
    found |= {"texts": len(rows), "what_differs": _differences(reward, ours, read, len(read) - len(rows))}
    if len(rows) < 2:
        return found
    s = np.array(reward([prompts[row] for row in rows], [completions[row] for row in rows]))
    t = np.array(path.score([read[row] for row in rows]))
    if np.ptp(s) > 0:
        gaps = np.abs(s - t) / s.std()
        correlation = float(np.corrcoef(s, t)[0, 1]) if np.ptp(t) > 0 else None
        found |= dict(zip(FIGURES, (float(gaps.mean()), float(gaps.max()), correlation), strict=False))
    if truth is not None:
        of_both = [compare_all(scores, truth[rows], min_gap) for scores in (s, t)]
        found |= zip(FIGURES[3:], (one.share if one.pairs else None for one in of_both), strict=True)
    return found


def _why_not(folder: str | Path) -> str | None:
    """Why TRL cannot use the folder's name, where it cannot."""
    if RewardModelSettings.load(folder).step_token is not None:
        return "it scores steps, and TRL would read it as a model of whole texts."
    outputs = AutoConfig.from_pretrained(folder).num_labels
    return None if outputs == 1 else f"the head has {outputs} outputs, and TRL loads one. Give LearnedReward."


def _differences(reward: LearnedReward, ours: TokenIds, theirs: TokenIds, unread: int) -> str:
    """What the tokens of the same texts say of the two ways of reading: one to three sentences."""
    parts = []
    pairs = [(a, b) for a, b in zip(ours, theirs, strict=True) if a and b]
    left_out = []
    for where, end in (("beginning", 0), ("end", -1)):
        # Special tokens that most texts have in one reading and not in the other.
        lost = [a[end] for a, b in pairs if a[end] != b[end] and a[end] in reward.tokenizer.all_special_ids]
        if lost and 2 * len(lost) > len(pairs):
            token = reward.tokenizer.convert_ids_to_tokens(max(set(lost), key=lost.count))
            left_out.append(f"{token} at the {where}")
    if left_out:
        parts.append(f"TRL's own reading leaves out {' and '.join(left_out)}.")
    long = sum(reward.max_length is not None and len(ids) > reward.max_length for ids in ours)
    if long:
        parts.append(
            f"It cuts nothing, where LearnedReward takes off the beginning of {long} of {len(ours)} texts "
            f"(over {reward.max_length} tokens)."
        )
    if unread:
        parts.append(f"{unread} texts without a token, or with more than the model can read, were left out.")
    if not parts:
        parts.append("Both read the same tokens." if ours == theirs else "The tokens differ in places.")
    if reward.settings.calibration is not None:
        parts.append("Its rewards are logits, where LearnedReward makes ratings of them.")
    return " ".join(parts)
