"""A trained sequence classifier as a reward: any encoder or decoder with a head, with its own tokenizer.

Text comes in, so the policy's tokenizer need not be the reward model's. What the model was trained to see (an
end-of-sequence token, a length) and how its logits become ratings stands in `reward_config.json` beside it.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_recipes import filenames
from rlhf_recipes.data.chat import KWARGS
from rlhf_recipes.modeling.calibration import LinearCalibration
from rlhf_recipes.modeling.foreign import foreign_scale, trl_appended_eos
from rlhf_recipes.modeling.frozen import (
    FrozenModel,
    check_batch_size,
    labels_of_adapter,
    own_tokenizer,
    warn_of_truncation,
)
from rlhf_recipes.modeling.heads import LabelScore, RewardModelSettings
from rlhf_recipes.modeling.loading import check_model_path, find_file, is_adapter
from rlhf_recipes.modeling.reading import check_finite, judged_ids, judged_text, model_outputs
from rlhf_recipes.modeling.tokenizers.text_ends import adds_eos
from rlhf_recipes.rewards.contract.checks import check_choice
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text

logger = logging.getLogger(__name__)
BASES = ("own", "policy")


def adapter_folder(source: str | None) -> str:
    """Where the adapter of a reward model lies: its folder, or `adapter/` in that of a run of `recipes/reward.py`.

    Raises:
        `ValueError`: if there is none, so that it cannot read another model's base.
    """
    for folder in () if source is None else (Path(source), Path(source) / "adapter"):
        if is_adapter(folder):
            return str(folder)
    raise ValueError(
        f"The reward {source or 'given as a model'!r} is to read the policy's base (base: policy), but it is no LoRA "
        "adapter. Train one on the policy's base with recipes/reward.py --use_peft and name its folder, or leave base "
        "out."
    )


class LearnedReward(ModelReward):
    """The score that a sequence classifier gives to prompt and completion, read as one text.

    Plain text is the prompt followed by the completion; of messages, the model's chat template makes the text, and a
    model without one reads them as `dialogue_text` writes them, which is said once. A text that is longer than
    `max_length` loses its beginning, because what is judged is the completion; how many do is logged once. An empty or
    blank completion is scored as it stands, with the prompt; where there is no token at all, a single special token is
    read. Its range and languages are those of the model.

    Args:
        model, processing_class, batch_size, device, dtype, load_in_4bit:
            As in [`ModelReward`]. Of a LoRA adapter the folder holds the head too. 4 bit changes the scores: compare
            them on held-out texts.
        max_length (`int`, *optional*):
            Tokens of a text that the model reads. Default: what `reward_config.json` says, else all that it can.
        label (`int` or `str`, *optional*):
            Which logit is the score, by index or by name. Needed only where the model has several labels, neither
            `labels` nor the settings saying what they count.
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder or of the model id.
        calibrate (`bool`, *optional*, defaults to `True`):
            Whether to turn logits into ratings, where the settings hold a calibration.
        settings ([`RewardModelSettings`], *optional*):
            Instead of those in the folder; for a model that is given, whose folder is not known.
        labels (`dict`, *optional*):
            What each label counts, by name or index: `{"positive": 1.0, "negative": -1.0}` makes the score the
            difference of the two. Labels that are not named count nothing.
        probabilities (`bool`, *optional*, defaults to `False`):
            Whether logits become probabilities before they are weighed: the softmax over all labels of the model, or
            of each logit the sigmoid, where the model has one label or was trained for several at once
            (`problem_type` is `multi_label_classification`).
        append_eos (`bool`, *optional*):
            Whether a plain text ends with the end-of-sequence token (once, where the tokenizer adds it too). Default:
            as `reward_config.json` says; where there is none, `True` for a model that TRL's `RewardTrainer` trained,
            which is said, else as the tokenizer does by itself.
        base (`str`, *optional*, defaults to `"own"`):
            Which base a LoRA adapter reads: `"own"`, loaded for it, or `"policy"`, that of the policy which PPO trains
            or `recipes/evaluate.py` samples, so that no second base is in memory. The scores are the same. It must be
            the base that the adapter was trained on, and is read in the policy's precision.

    Raises:
        `ValueError`: if it has several labels and none is chosen; if the settings hold a calibration, which is that of
            one logit, and labels or probabilities are asked for.

    Example:

    ```python
    reward = LearnedReward("runs/quickstart/reward", batch_size=64)
    reward(prompts=["The film is"], completions=[" a delight."])  # [2.3]
    ```
    """

    shown = ("max_length", "calibration")

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        label: int | str | None = None,
        name: str | None = None,
        calibrate: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        settings: RewardModelSettings | None = None,
        load_in_4bit: bool = False,
        labels: Mapping[int | str, float] | None = None,
        probabilities: bool = False,
        append_eos: bool | None = None,
        base: str = "own",
    ) -> None:
        check_batch_size(batch_size)
        check_choice(type(self).__name__, "base", base, BASES)
        source = None if isinstance(model, torch.nn.Module) else check_model_path(str(model))
        self.__name__ = name or (Path(source).name if source is not None else type(self).__name__)
        if base == "policy":
            source = adapter_folder(source)
            if (device, dtype, load_in_4bit) != (None, None, False):
                raise ValueError(
                    f"The reward {source!r} reads the policy's base (base: policy), on the policy's device and in its "
                    "precision: leave out device, dtype and load_in_4bit."
                )
        from transformers import AutoModelForSequenceClassification  # seconds, and the folder may not be there

        self.base, self.source = base, source
        self.model: Any = None
        self._asked_length = max_length
        self._score = (label, labels, probabilities)  # what of the model's outputs is the score, as far as it is said
        reader = None
        if base == "own":
            options = (max_length, device, dtype, load_in_4bit)
            reader = FrozenModel(AutoModelForSequenceClassification, model, processing_class, *options)
        self.tokenizer: Any = own_tokenizer(processing_class, source) if reader is None else reader.tokenizer
        self.adds_eos = adds_eos(self.tokenizer)
        self.settings = self._settings(settings, source, append_eos)
        self.calibration = self.settings.calibration if calibrate else None
        self.batch_size = batch_size
        self.max_length = max_length or self.settings.max_length
        if reader is not None:
            self._read_with(reader)
        self.truncated = 0  # texts so far that were longer than max_length
        if self.settings.append_eos and self.tokenizer.eos_token is None:
            raise ValueError(
                f"{filenames.REWARD_SETTINGS} or an argument says append_eos, but the tokenizer has no "
                "end-of-sequence token."
            )
        if self.calibration is not None and (labels is not None or probabilities):
            raise ValueError(
                f"{filenames.REWARD_SETTINGS} holds a calibration, which makes ratings of one logit, but labels or "
                "probabilities are asked for. Give calibrate=False, or leave these out."
            )

    def _read_with(self, reader: FrozenModel) -> None:
        """Take the model, and what is to be made of its outputs."""
        self.model = reader.model
        config, names = self.model.config, list(self.settings.labels or ())
        if self.source is not None and is_adapter(self.source) and len(names) == config.num_labels:
            # An adapter's files do not name the outputs of its head; its settings do, in order.
            config.id2label = dict(enumerate(names))
        self.max_length = self._asked_length or self.settings.max_length or reader.max_length
        if self._score[:2] == (None, None) and self.settings.labels is not None:
            self.head = LabelScore(config, None, self.settings.labels, self.settings.probabilities)
        else:
            self.head = LabelScore(config, *self._score)

    def put_on(self, policy: Any, adapter: str) -> None:
        """With `base="policy"`: read with the policy's base from now on, beside its adapter.

        Args:
            policy (`PeftModel`): The policy, which stays what it is.
            adapter (`str`): The name that the reward's adapter gets there.

        Raises:
            `ValueError`: if the adapter was trained on another base, or that of the policy does not stay as it is.
        """
        from transformers import AutoModelForSequenceClassification

        from rlhf_recipes.modeling.adapters import AdapterClassifier  # it brings models

        assert self.base == "policy", "a reward with a base of its own"
        assert self.source is not None, "the folder of an adapter"
        if self.model is not None and self.model.reads(policy):
            return
        model = AdapterClassifier(policy, adapter, self.source, labels_of_adapter(Path(self.source)))
        kind = AutoModelForSequenceClassification
        self._read_with(FrozenModel(kind, model, self.tokenizer, self._asked_length))

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion. `(B,)`"""
        scores = self.scores(self.encode(prompts, completions, kwargs.get(KWARGS)))
        check_finite(scores.tolist(), self.__name__, prompts, completions)
        return scores.tolist() if self.calibration is None else self.calibration(scores.numpy()).tolist()

    def encode(
        self, prompts: Sequence[Text], completions: Sequence[Text], template_kwargs: Sequence[Any] | None = None
    ) -> list[list[int]]:
        """The token ids of each prompt with its completion, as the model reads them; truncation is logged once."""
        own = template_kwargs or [None] * len(prompts)
        before = self.truncated
        token_ids = [self.encode_text(*self.render(*row)) for row in zip(prompts, completions, own, strict=True)]
        if before == 0 and self.truncated:
            warn_of_truncation(self.__name__, self.truncated, len(token_ids), self.max_length)
        return token_ids

    def scores(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Score texts that are encoded already, before calibration. `(B,)`"""
        if self.model is None:
            raise ValueError(
                f"The reward {self.__name__!r} reads the policy's base (base: policy), which PPO and evaluate.py "
                "give it. Anywhere else it stands alone: base: own, or leave base out."
            )
        scores = torch.empty(len(token_ids), dtype=torch.float32)
        for rows, output in model_outputs(self.model, token_ids, self.batch_size, self.tokenizer.pad_token_id):
            scores[rows] = self.head(output.logits)
        return scores

    def _settings(
        self, given: RewardModelSettings | None, source: str | None, append_eos: bool | None
    ) -> RewardModelSettings:
        """Those that are given, those of the folder, or what is known of the project that trained the model."""
        known = given is not None or source is None or find_file(source, filenames.REWARD_SETTINGS) is not None
        if known or source is None:
            settings = given or (RewardModelSettings() if source is None else RewardModelSettings.load(source))
        else:
            settings = RewardModelSettings(calibration=_foreign_calibration(source))
            if append_eos is None and self.tokenizer.eos_token is not None and trl_appended_eos(source):
                logger.warning(
                    "%s has no %s, and was trained by TRL's RewardTrainer, which ends each plain text with %r: so "
                    "does this reward. The argument append_eos says it or something else, without this line.",
                    *(source, filenames.REWARD_SETTINGS, self.tokenizer.eos_token),
                )
                # TRL writes it also where the tokenizer adds one more, and that is what was learned.
                return dataclasses.replace(settings, append_eos=True)
        wanted = settings.append_eos if append_eos is None else append_eos
        return dataclasses.replace(settings, append_eos=wanted and not self.adds_eos)

    def render(self, prompt: Text, completion: Text, template_kwargs: Any = None) -> tuple[str, bool]:
        """One text, and whether the tokenizer has yet to add special tokens to it."""
        name = f"The tokenizer of the reward model {self.__name__!r}"
        return judged_text(prompt, completion, self.tokenizer, self.settings, self.adds_eos, template_kwargs, name)

    def encode_text(self, text: str, add_special_tokens: bool) -> list[int]:
        """The token ids of one text, without its beginning where it is too long; never empty."""
        ids, cut = judged_ids(text, add_special_tokens, self.tokenizer, self.max_length)
        self.truncated += cut
        return ids


def _foreign_calibration(source: str) -> LinearCalibration | None:
    scale = foreign_scale(source)
    return None if scale is None else LinearCalibration(1 / scale[1], -scale[0] / scale[1])
