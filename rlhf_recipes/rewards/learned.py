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

from rlhf_recipes.data.chat import KWARGS, once, read_kwargs, render, whole
from rlhf_recipes.modeling.calibration import LinearCalibration
from rlhf_recipes.modeling.foreign import foreign_scale, trl_appended_eos
from rlhf_recipes.modeling.frozen import (
    check_batch_size,
    check_vocabulary,
    own_tokenizer,
    place_model,
    read_limit,
    warn_of_truncation,
)
from rlhf_recipes.modeling.heads import SETTINGS_FILE, LabelScore, RewardModelSettings
from rlhf_recipes.modeling.loading import check_model_path, find_file
from rlhf_recipes.modeling.reading import (
    check_finite,
    dialogue_text,
    first_special,
    model_outputs,
    part_to_read,
    say_plain_reading,
)
from rlhf_recipes.modeling.tokenizers.padding import fit_model
from rlhf_recipes.modeling.tokenizers.text_ends import adds_eos, ended
from rlhf_recipes.texts import Text

logger = logging.getLogger(__name__)


class LearnedReward:
    """The score that a sequence classifier gives to prompt and completion, read as one text.

    Plain text is the prompt followed by the completion; of messages, the model's chat template makes the text, and a
    model without one reads them as `dialogue_text` writes them, which is said once. Texts are padded on the right and
    go through the model in batches of similar length, without gradients. A text that is
    longer than `max_length` loses its beginning, because what is judged is the completion; how many do is logged
    once. An empty or blank completion is scored as it stands, with the prompt; where there is no token at all,
    a single special token is read. Its range and languages are those of the model. NaN or infinity out of the model
    is an error that names the row.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder or a model id of the Hub, or a model that is loaded already. The folder may be that of a LoRA
            adapter with its head.
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The model's tokenizer, or where it lies. Default: that of `model`. It is copied, never changed.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of a text that the model reads. Default: what `reward_config.json` says, else all that it can.
        label (`int` or `str`, *optional*):
            Which logit is the score, by index or by name. Needed only where the model has several labels, neither
            `labels` nor the settings saying what they count.
        name (`str`, *optional*):
            What logs show. Default: the last part of the folder or of the model id.
        calibrate (`bool`, *optional*, defaults to `True`):
            Whether to turn logits into ratings, where the settings hold a calibration.
        device (`str` or `torch.device`, *optional*):
            Where to put the model. Default: a model that is given stays; one that is loaded goes to this process's
            GPU, or to the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            Precision to load in, and with `load_in_4bit` to compute in. Default: that of the files on a GPU, float32
            on a CPU.
        settings ([`RewardModelSettings`], *optional*):
            Instead of those in the folder; for a model that is given, whose folder is not known.
        load_in_4bit (`bool`, *optional*, defaults to `False`):
            Whether to hold the model's linear layers, all but the head, in 4 bit (NF4, arXiv 2305.14314), with
            bitsandbytes. It saves memory, takes longer on a CPU, and changes the scores: compare them on held-out
            texts.
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

    Raises:
        `FileNotFoundError`: if there is no model where a path points.
        `ValueError`: if a weight of the model was not in its files, so that it would judge at random; if its tokenizer
            gives ids that it has no embedding for; if it has several labels and none is chosen; if the settings hold a
            calibration, which is that of one logit, and labels or probabilities are asked for.
        `RewardError`: when called, if the model gives NaN or infinity.

    Example:

    ```python
    reward = LearnedReward("runs/quickstart/reward", batch_size=64)
    reward(prompts=["The film is"], completions=[" a delight."])  # [2.3]
    ```
    """

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
    ) -> None:
        check_batch_size(batch_size)
        self._arguments = (
            model, processing_class, batch_size, max_length, label, name, calibrate, device, dtype, settings,
            load_in_4bit, labels, probabilities, append_eos,
        )  # fmt: skip
        source = None if isinstance(model, torch.nn.Module) else check_model_path(str(model))
        from peft import PeftModel  # here, because these take seconds, and the folder may not be there
        from transformers import AutoModelForSequenceClassification

        self.tokenizer = own_tokenizer(processing_class, source)
        self.model: Any = place_model(AutoModelForSequenceClassification, model, device, dtype, load_in_4bit)
        fit_model(self.model, self.tokenizer)  # a decoder's head reads the last token that does not pad
        check_vocabulary(self.model, self.tokenizer)
        self.adds_eos = adds_eos(self.tokenizer)
        self.settings = self._settings(settings, source, append_eos)
        self.calibration = self.settings.calibration if calibrate else None
        names = list(self.settings.labels or ())
        if isinstance(self.model, PeftModel) and len(names) == self.model.config.num_labels:
            # An adapter's files do not name the outputs of its head; its settings do, in order.
            self.model.config.id2label = dict(enumerate(names))
        self.batch_size = batch_size
        self.max_length = read_limit(self.model, self.tokenizer, max_length, self.settings.max_length)
        if label is None and labels is None and self.settings.labels is not None:
            self.head = LabelScore(self.model.config, None, self.settings.labels, self.settings.probabilities)
        else:
            self.head = LabelScore(self.model.config, label, labels, probabilities)
        self.truncated = 0  # texts so far that were longer than max_length
        self.__name__ = name or (Path(source).name if source is not None else type(self).__name__)
        if self.settings.append_eos and self.tokenizer.eos_token is None:
            raise ValueError(
                f"{SETTINGS_FILE} or an argument says append_eos, but the tokenizer has no end-of-sequence token."
            )
        if self.calibration is not None and (labels is not None or probabilities):
            raise ValueError(
                f"{SETTINGS_FILE} holds a calibration, which makes ratings of one logit, but labels or probabilities "
                "are asked for. Give calibrate=False, or leave these out."
            )

    def __reduce__(self) -> tuple[Any, ...]:
        # Made anew from where it was loaded: a pickle stays small, and the device is found where it is opened.
        return type(self), self._arguments

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion. `(B,)`"""
        own = kwargs.get(KWARGS) or [None] * len(prompts)
        texts = [self._render(*row) for row in zip(prompts, completions, own, strict=True)]
        truncated_before = self.truncated
        token_ids = [self._encode(text, special) for text, special in texts]
        if truncated_before == 0 and self.truncated:
            warn_of_truncation(self.__name__, self.truncated, len(texts), self.max_length)
        scores = self._scores(token_ids)
        check_finite(scores.tolist(), self.__name__, prompts, completions)
        return scores.tolist() if self.calibration is None else self.calibration(scores.numpy()).tolist()

    def _scores(self, token_ids: Sequence[Sequence[int]]) -> Tensor:
        """Score texts that are encoded already, before calibration. `(B,)`"""
        scores = torch.empty(len(token_ids), dtype=torch.float32)
        for rows, output in model_outputs(self.model, token_ids, self.batch_size, self.tokenizer.pad_token_id):
            scores[rows] = self.head(output.logits)
        return scores

    def _settings(
        self, given: RewardModelSettings | None, source: str | None, append_eos: bool | None
    ) -> RewardModelSettings:
        """Those that are given, those of the folder, or what is known of the project that trained the model."""
        known = given is not None or source is None or find_file(source, SETTINGS_FILE) is not None
        if known or source is None:
            settings = given or (RewardModelSettings() if source is None else RewardModelSettings.load(source))
        else:
            settings = RewardModelSettings(calibration=_foreign_calibration(source))
            if append_eos is None and self.tokenizer.eos_token is not None and trl_appended_eos(source):
                logger.warning(
                    "%s has no %s, and was trained by TRL's RewardTrainer, which ends each plain text with %r: so "
                    "does this reward. The argument append_eos says it or something else, without this line.",
                    *(source, SETTINGS_FILE, self.tokenizer.eos_token),
                )
                # TRL writes it also where the tokenizer adds one more, and that is what was learned.
                return dataclasses.replace(settings, append_eos=True)
        wanted = settings.append_eos if append_eos is None else append_eos
        return dataclasses.replace(settings, append_eos=wanted and not self.adds_eos)

    def __repr__(self) -> str:
        return f"LearnedReward(name={self.__name__!r}, max_length={self.max_length}, calibration={self.calibration})"

    def _render(self, prompt: Text, completion: Text, template_kwargs: Any = None) -> tuple[str, bool]:
        """One text, and whether the tokenizer has yet to add special tokens to it."""
        if isinstance(prompt, str) and isinstance(completion, str):
            text = prompt + completion
        elif self.tokenizer.chat_template is not None:
            options = {**(self.settings.chat_template_kwargs or {}), **read_kwargs(template_kwargs)}
            return render(self.tokenizer, whole(prompt, completion), options), False
        else:
            say_plain_reading(f"The tokenizer of the reward model {self.__name__!r}")
            text = dialogue_text(whole(prompt, completion))
        return ended(text, self.tokenizer.eos_token, self.settings.append_eos, self.adds_eos), True

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        text = text[part_to_read(text, self.tokenizer, self.max_length)]
        ids = once(
            self.tokenizer(text, add_special_tokens=add_special_tokens, verbose=False).input_ids, self.tokenizer
        )
        if self.max_length is not None and len(ids) > self.max_length:
            self.truncated += 1
            ids = self.tokenizer(
                text, add_special_tokens=add_special_tokens, truncation=True, max_length=self.max_length
            ).input_ids
        return ids or [first_special(self.tokenizer)]


def _foreign_calibration(source: str) -> LinearCalibration | None:
    scale = foreign_scale(source)
    return None if scale is None else LinearCalibration(1 / scale[1], -scale[0] / scale[1])
