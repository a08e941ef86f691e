"""A trained vision-language classifier as a reward: it reads prompt and completion, and sees the row's images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor

from rlhf_recipes.modeling.frozen import check_batch_size, check_vocabulary, place_model
from rlhf_recipes.modeling.heads import LabelScore, RewardModelSettings
from rlhf_recipes.modeling.images import ImageText, ImageTextEncoder, images_of
from rlhf_recipes.modeling.loading import check_model_path
from rlhf_recipes.modeling.reading import check_finite, evaluating
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.texts import Text

COLUMNS = ("image", "images", "completion_image", "completion_images")


class ImageTextReward(ModelReward):
    """The score that a vision-language classifier gives to prompt and completion with their images.

    Images are read from the columns `image` and `images`, which come before the text, or stand in messages as parts of
    type `image`; see `rlhf_recipes.modeling.images`. A row without an image is read as text alone. Its range and
    languages are those of the model.

    A text that is longer than `max_length` is an error and not cut, since a cut would leave half an image.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder or a model id of the Hub with a sequence classifier that takes `pixel_values` and its processor,
            or a model that is loaded already.
        processor ([`~transformers.ProcessorMixin`], *optional*):
            Its processor. Default: that of the folder.
        max_length (`int`, *optional*):
            Tokens of a text, images included. Default: what `reward_config.json` says, or no limit.
        label (`int` or `str`, *optional*):
            Which logit is the score. Needed only where the model has several.
        calibrate (`bool`, *optional*, defaults to `True`):
            Whether to turn logits into ratings, where the settings hold a calibration.
        batch_size, device, dtype: as in [`ModelReward`].
        name (`str`, *optional*): What logs show. Default: the last part of the folder.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`], *optional*):
            Instead of those in the folder.

    Raises:
        `ValueError`: if it takes no pixels, or if it is not clear which logit is the score; when called, if an image
            cannot be read, or marks and images differ in number.

    Example:

    ```python
    reward = ImageTextReward("runs/captions")
    reward(prompts=["Describe it."], completions=[" A red square."], image=["red.png"])  # [1.3]
    ```
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processor: Any = None,
        batch_size: int = 8,
        max_length: int | None = None,
        label: int | str | None = None,
        name: str | None = None,
        calibrate: bool = True,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        settings: RewardModelSettings | None = None,
    ) -> None:
        check_batch_size(batch_size)
        source = None if isinstance(model, torch.nn.Module) else check_model_path(str(model))
        if processor is None and source is None:
            raise ValueError("A model was given without its processor: give the processor too.")
        self.settings = settings or (RewardModelSettings() if source is None else RewardModelSettings.load(source))
        limit = self.settings.max_length if max_length is None else max_length
        self.encode = ImageTextEncoder(
            AutoProcessor.from_pretrained(source) if processor is None else processor, limit, self.settings.append_eos
        )
        self.model: Any = place_model(AutoModelForSequenceClassification, model, device, dtype, False)
        check_sees_images(self.model)
        check_vocabulary(self.model, self.encode.tokenizer)
        # A decoder's head reads the last token that is not this one.
        self.model.config.get_text_config().pad_token_id = self.encode.tokenizer.pad_token_id
        self.calibration = self.settings.calibration if calibrate else None
        self.head = LabelScore(self.model.config, label)
        self.batch_size = batch_size
        self.__name__ = name or (type(self.model).__name__ if source is None else Path(source).name)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> list[float]:
        """Score each prompt with its completion and the images of its row. `(B,)`"""
        columns = {name: kwargs[name] for name in COLUMNS if kwargs.get(name) is not None}
        items = [
            ImageText(prompt, completion, images_of({name: columns[name][row] for name in columns}, "completion"))
            for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True))
        ]
        scores = torch.zeros(len(items))
        device = next(self.model.parameters()).device
        for start in range(0, len(items), self.batch_size):
            batch = self.encode(items[start : start + self.batch_size])
            with torch.inference_mode(), evaluating(self.model):
                output = self.model(**{name: values.to(device) for name, values in batch.items()})
            scores[start : start + self.batch_size] = self.head(output.logits)
        check_finite(scores.tolist(), self.__name__, prompts, completions)
        return scores.tolist() if self.calibration is None else self.calibration(scores.numpy()).tolist()

    def __repr__(self) -> str:
        return f"ImageTextReward(name={self.__name__!r}, model={type(self.model).__name__})"


def check_sees_images(model: Any) -> None:
    """Raise `ValueError` for a classifier of text alone, which would pass images over without a word."""
    vision = getattr(model.config, "vision_config", None)
    if vision is None:
        raise ValueError(
            f"{type(model).__name__} reads text alone: its configuration has no vision_config. Give a vision-language "
            "classifier, such as Gemma3ForSequenceClassification or ModernVBertForSequenceClassification, or score "
            "text with LearnedReward."
        )
