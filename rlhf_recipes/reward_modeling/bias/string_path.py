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

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import apply_chat_template

from rlhf_recipes.data.raters.agreement import all_pairs_accuracy
from rlhf_recipes.modeling.frozen import default_device
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.reading import length_batches
from rlhf_recipes.reward_modeling.examples import tokenize
from rlhf_recipes.reward_modeling.scored import Texts
from rlhf_recipes.rewards.learned import LearnedReward
from rlhf_recipes.texts import Text

Floats = NDArray[np.float64]
FIGURES = (
    "mean_difference_in_std", "max_difference_in_std", "correlation", "pairwise_accuracy",
    "string_path_pairwise_accuracy",
)  # fmt: skip


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
        self.tokenizer = string_path_tokenizer(folder)
        # TRL names no dtype either.
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
        self.model = model.to(default_device()).eval()
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id
        self.bf16 = bf16
        self.batch_size = batch_size

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """The logit of each prompt with its completion. `(B,)`"""
        texts = [read_as_string_path(*pair, self.tokenizer) for pair in zip(prompts, completions, strict=True)]
        device = self.model.device
        scores = torch.empty(len(texts))
        for rows in length_batches([len(text) for text in texts], self.batch_size):
            inputs = self.tokenizer(
                [texts[row] for row in rows], return_tensors="pt", padding=True, padding_side="right",
                add_special_tokens=False,
            ).to(device)  # fmt: skip
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                scores[rows] = self.model(**inputs).logits[:, 0].float().cpu()
        return scores.tolist()


def string_path_tokenizer(folder: str | Path) -> Any:
    """The tokenizer as TRL loads it: one without a pad token pads with its end-of-sequence token."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def read_as_string_path(prompt: Text, completion: Text, tokenizer: PreTrainedTokenizerBase) -> str:
    """The text that TRL encodes: both joined, or the messages of both through the chat template."""
    if isinstance(prompt, str):
        return prompt + str(completion)
    messages: Any = [*prompt, *completion]
    return str(apply_chat_template({"messages": messages}, tokenizer)["text"])


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
        batch_size (`int`, *optional*, defaults to 32): Texts in one forward pass.
        bf16 (`bool`, *optional*, defaults to `False`): Whether TRL's path computes in bfloat16, as its trainers do
            unless told otherwise. `False` shows what the reading alone makes.
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
    counts = {len(prompts), len(completions), len(prompts) if labels is None else len(np.asarray(labels))}
    if len(counts) > 1:
        raise ValueError(
            f"There are {len(prompts)} prompts, {len(completions)} completions and "
            f"{'no' if labels is None else len(np.asarray(labels))} labels; give one of each for every row."
        )
    nothing: dict[str, Any] = {"texts": 0, **dict.fromkeys(FIGURES)}
    settings = RewardModelSettings.load(folder)
    if refused := _why_not(folder, settings):
        return nothing | {"what_differs": refused}
    path = StringPath(folder, bf16, batch_size)
    if path.tokenizer.chat_template is None and not all(isinstance(prompt, str) for prompt in prompts):
        return nothing | {"what_differs": "TRL cannot read conversations with it: its tokenizer has no chat template."}
    reward = reward or LearnedReward(folder, batch_size=batch_size, calibrate=False)
    reading = _Reading(reward, path, Texts(list(prompts), list(completions)))
    rows = reading.readable()
    if len(rows) < 2:
        return nothing | {"texts": len(rows), "what_differs": reading.differences()}
    ours, theirs = (
        np.array(score([prompts[row] for row in rows], [completions[row] for row in rows])) for score in (reward, path)
    )
    truth = None if labels is None else np.asarray(labels, dtype=np.float64)[rows]
    return {
        "texts": len(rows),
        **_compare(ours, theirs),
        "pairwise_accuracy": _accuracy(ours, truth, min_gap),
        "string_path_pairwise_accuracy": _accuracy(theirs, truth, min_gap),
        "what_differs": reading.differences(),
    }


def _why_not(folder: str | Path, settings: RewardModelSettings) -> str | None:
    """Why TRL cannot use the folder's name, where it cannot."""
    if settings.step_token is not None:
        return "TRL cannot be given its name: it scores steps, and TRL would read it as a model of whole texts."
    outputs = AutoConfig.from_pretrained(folder).num_labels
    if outputs != 1:
        return f"TRL cannot be given its name: the head has {outputs} outputs, and TRL loads one. Give LearnedReward."
    return None


def _compare(ours: Floats, theirs: Floats) -> dict[str, float | None]:
    spread = float(ours.std())
    if spread == 0:
        return dict.fromkeys(FIGURES[:3])
    differences = np.abs(ours - theirs) / spread
    correlation = float(np.corrcoef(ours, theirs)[0, 1]) if theirs.std() > 0 else None
    return dict(zip(FIGURES, (float(differences.mean()), float(differences.max()), correlation), strict=False))


def _accuracy(scores: Floats, labels: Floats | None, min_gap: float) -> float | None:
    if labels is None or labels.max() - labels.min() < max(min_gap, 1e-9):
        return None
    return all_pairs_accuracy(scores, labels, min_gap)[0]


class _Reading:
    """The tokens of the same texts, read in both ways."""

    def __init__(self, reward: LearnedReward, path: StringPath, texts: Texts) -> None:
        self.settings, self.tokenizer, self.path = reward.settings, reward.tokenizer, path
        self.limit = reward.max_length
        whole = RewardModelSettings(append_eos=reward.settings.append_eos)
        self.ours = tokenize(texts, reward.tokenizer, whole)
        joined = [
            read_as_string_path(*pair, path.tokenizer) for pair in zip(texts.prompts, texts.completions, strict=True)
        ]
        self.theirs = path.tokenizer(joined, add_special_tokens=False, verbose=False).input_ids if joined else []

    def readable(self) -> list[int]:
        """Rows that the model has positions for without cutting, and that have a token at all."""
        positions = getattr(self.path.model.config.get_text_config(), "max_position_embeddings", None)
        # RoBERTa's tokenizer knows that of its 514 positions 512 can be used.
        limits = [limit for limit in (positions, self.path.tokenizer.model_max_length) if limit is not None]
        return [row for row, ids in enumerate(self.theirs) if 0 < len(ids) <= min(limits, default=len(ids))]

    def differences(self) -> str:
        """One to three sentences."""
        left_out = [f"{token} at the {where}" for where, token in self._left_out()]
        long = sum(self.limit is not None and len(ids) > self.limit for ids in self.ours)
        unread = len(self.theirs) - len(self.readable())
        parts = [f"TRL's own reading leaves out {' and '.join(left_out)}."] if left_out else []
        if long:
            parts.append(
                f"It cuts nothing, where LearnedReward takes off the beginning of {long} of {len(self.ours)} texts "
                f"(over {self.limit} tokens)."
            )
        if unread:
            parts.append(f"{unread} texts without a token, or with more than the model can read, were left out.")
        if not parts:
            parts.append("Both read the same tokens." if self.ours == self.theirs else "The tokens differ in places.")
        if self.settings.calibration is not None:
            parts.append("Its rewards are logits, where LearnedReward makes ratings of them.")
        return " ".join(parts)

    def _left_out(self) -> Iterator[tuple[str, str]]:
        """Special tokens at either end that most texts have in one reading and not in the other."""
        ends: tuple[tuple[str, Callable[[Sequence[int]], int]], ...] = (
            ("beginning", lambda ids: ids[0]),
            ("end", lambda ids: ids[-1]),
        )
        pairs = [(a, b) for a, b in zip(self.ours, self.theirs, strict=True) if a and b]
        for where, at in ends:
            lost = [at(a) for a, b in pairs if at(a) != at(b) and at(a) in self.tokenizer.all_special_ids]
            if lost and 2 * len(lost) > len(pairs):
                yield where, str(self.tokenizer.convert_ids_to_tokens(max(set(lost), key=lost.count)))
