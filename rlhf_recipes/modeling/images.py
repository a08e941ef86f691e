"""From rows with images to the batches that a vision-language classifier is trained on, and scored with.

```
image                one image for the row           PIL, a file's path, encoded bytes, or an array (H, W, 3)
images               a list of them
chosen_image(s),     the same, of one side of a pair: which of two pictures, or of two illustrated answers, is
rejected_image(s)    better
{"type": "image"}    a part of a message: with its own "image", or standing for the next of the row's
```
Plain text is `<image> * n + prompt + completion`, unless the prompt says itself where the images go by the processor's
own mark. Of messages the processor's chat template makes the text; images that no part stands for come first.

The processor makes tensors out of both: `input_ids`, `attention_mask`, `pixel_values` and whatever else its model
takes. They are made batch by batch, because the pixels of a whole dataset would fill the memory.
"""

import copy
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from PIL import Image, ImageOps, UnidentifiedImageError

from rlhf_recipes.data.collators import number_columns, own_pad_token
from rlhf_recipes.modeling.reading import first_special
from rlhf_recipes.texts import Messages, Text, one_text, sentence

IMAGE_COLUMNS = ("image", "images")
SIDES = ("chosen", "rejected")


class ImageText(NamedTuple):
    """A prompt and a completion, text or messages, and the images that belong to them."""

    prompt: Text
    completion: Text
    images: list[Any]


class ImageTextEncoder:
    """Turn texts with images into the tensors that a vision-language model takes.

    Args:
        processor ([`~transformers.ProcessorMixin`]): The model's own, with a tokenizer and an image processor. It is
            copied, never changed.
        max_length (`int`, *optional*): Tokens of a text, those of its images included. A longer one is an error.
        append_eos (`bool`): Whether plain text ends with the end-of-sequence token, as a decoder's head wants it.

    Raises:
        `ValueError`: if the processor has no tokenizer, no image processor, no mark for an image, or no pad token of
            its own.
    """

    def __init__(self, processor: Any, max_length: int | None = None, append_eos: bool = False) -> None:
        missing = [
            name for name in ("tokenizer", "image_processor", "image_token") if not getattr(processor, name, None)
        ]
        if missing:
            raise ValueError(
                f"{type(processor).__name__} has no {', no '.join(missing)}, so it cannot put images into text. Give "
                "the processor of a vision-language model, as AutoProcessor loads it."
            )
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length is {max_length}; give 1 or more tokens, or None.")
        self.processor = copy.deepcopy(processor)
        self.tokenizer = self.processor.tokenizer
        self.tokenizer.padding_side = "right"
        own_pad_token(self.tokenizer)
        if append_eos and self.tokenizer.eos_token is None:
            raise ValueError("append_eos is set, but the tokenizer has no end-of-sequence token.")
        self.max_length, self.append_eos = max_length, append_eos

    def __call__(self, items: Sequence[ImageText]) -> dict[str, torch.Tensor]:
        """Tensors of N texts. `input_ids` and `attention_mask` are `(N, L)`; the shape of the pixels is the model's.

        Raises:
            `ValueError`: if an image cannot be read, a text has another number of marks than of images, there are
                messages and no chat template, or a text is too long. It names the text.
        """
        rendered = [self._render(item, row) for row, item in enumerate(items)]
        texts, images = [text for text, _, _ in rendered], []
        for row, (_, own, _) in enumerate(rendered):
            images.append([read_image(image, row) for image in own])
        special = rendered[0][2]
        if any(other != special for _, _, other in rendered):
            raise ValueError("Some rows of a batch are messages and some are plain text. Make them all the same.")
        batch = self.processor(
            text=texts, images=images if any(images) else None, padding=True, padding_side="right",
            add_special_tokens=special, return_tensors="pt",
        )  # fmt: skip
        lengths = batch["attention_mask"].sum(dim=1)
        if self.max_length is not None and int(lengths.max()) > self.max_length:
            longest = int(lengths.argmax())
            raise ValueError(
                f"Text {longest} has {int(lengths[longest])} tokens with its images, and max_length is "
                f"{self.max_length}. Shorten it, or take smaller or fewer images: a cut would leave half an image."
            )
        return dict(batch)

    def _render(self, item: ImageText, row: int) -> tuple[str, list[Any], bool]:
        """The text with its marks, the images in their order, and whether special tokens are to be added."""
        if isinstance(item.prompt, str) and isinstance(item.completion, str):
            return self._render_text(item, row)
        if getattr(self.processor, "chat_template", None) is None and self.tokenizer.chat_template is None:
            raise ValueError(
                "The rows are conversations, but the processor has no chat template to make text of them. Set "
                "`chat_template` on it, or use plain text."
            )
        messages = [*_as_messages(item.prompt, "user"), *_as_messages(item.completion, "assistant")]
        placed, images = _place(messages, item.images, row)
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        text = self.processor.apply_chat_template(placed, chat_template=template, tokenize=False)
        self._check_marks(text, images, row)
        return text, images, False

    def _render_text(self, item: ImageText, row: int) -> tuple[str, list[Any], bool]:
        text = one_text(item.prompt, item.completion)
        mark = self.processor.image_token
        if mark not in text:
            text = mark * len(item.images) + text
        self._check_marks(text, item.images, row)
        if self.append_eos and not text.endswith(self.tokenizer.eos_token):
            text += self.tokenizer.eos_token
        if not text:  # nothing at all: a single special token is read
            text = self.tokenizer.convert_ids_to_tokens(first_special(self.tokenizer))
        return text, list(item.images), True

    def _check_marks(self, text: str, images: Sequence[Any], row: int) -> None:
        marks = text.count(self.processor.image_token)
        if marks != len(images):
            raise ValueError(
                f"Text {row} has {marks} marks {self.processor.image_token!r} and {len(images)} images. Give one "
                "image for each mark, or leave the marks out: images then come first."
            )


class ImagePairCollator:
    """Put pairs with images into the layout of TRL's `RewardTrainer`: all chosen texts, then all rejected ones.

    A row has `chosen`, `rejected`, perhaps `prompt`, images as this module says, and in all rows or in none a
    `margin (B,)`; other columns are not looked at. The row's images are before both sides.

    Args:
        processor, max_length, append_eos: As in [`ImageTextEncoder`].
    """

    def __init__(self, processor: Any, max_length: int | None = None, append_eos: bool = False) -> None:
        self.encode = ImageTextEncoder(processor, max_length, append_eos)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        batch = self.encode([item_of(row, side) for side in SIDES for row in rows])
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float)
        return batch


class ImageFeedbackCollator:
    """Put rows of one or more texts with images, and what is known of them, into one batch for
    [`~rlhf_recipes.reward_modeling.trainer.FeedbackTrainer`].

    A row is as [`image_rows`] makes it. The batch holds what the processor makes, and `rows (N,)`, `places (N,)` and
    `targets` as in [`~rlhf_recipes.data.collators.FeedbackCollator`].

    Args:
        processor, max_length, append_eos: As in [`ImageTextEncoder`].
    """

    def __init__(self, processor: Any, max_length: int | None = None, append_eos: bool = False) -> None:
        self.encode = ImageTextEncoder(processor, max_length, append_eos)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = self.encode([item for row in rows for item in row["items"]])
        sizes = [len(row["items"]) for row in rows]
        batch["rows"] = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor(sizes))
        batch["places"] = torch.cat([torch.arange(size) for size in sizes])
        names = rows[0]["targets"]
        batch["targets"] = {name: number_columns([row["targets"][name] for row in rows]) for name in names}
        return batch


class ImageRows(torch.utils.data.Dataset):
    """Rows of feedback with images as `FeedbackTrainer` takes them; images are read when a row is.

    Their lengths are not known beforehand, so that `train_sampling_strategy` cannot be `group_by_length`.

    Args:
        dataset ([`~datasets.Dataset`]): Feedback with columns of images.
        objective ([`~rlhf_recipes.reward_modeling.losses.base.Objective`]): The loss, fitted to these rows.
    """

    def __init__(self, dataset: Dataset, objective: Any) -> None:
        known = {f"{side}{name}" for side in ("", *(f"{side}_" for side in SIDES)) for name in IMAGE_COLUMNS}
        columns = [name for name in dataset.column_names if name in known]
        self.images = dataset.select_columns(columns) if columns else None
        plain = dataset.remove_columns(columns)
        self.items, self.sides = objective.texts(plain), objective.text_columns
        self.targets = objective.weighed_targets(plain)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> dict[str, Any]:
        of_row = {} if self.images is None else self.images[int(row)]
        texts = self.items[row]
        sides = self.sides if len(self.sides) == len(texts) else ("completion",) * len(texts)
        items = [
            ImageText(prompt, completion, images_of(of_row, side))
            for side, (prompt, completion) in zip(sides, texts, strict=True)
        ]
        return {"items": items, "targets": {name: values[row] for name, values in self.targets.items()}}


def item_of(row: Mapping[str, Any], column: str) -> ImageText:
    """One text of a row, with its prompt and its images."""
    completion = row[column]
    nothing: Text = "" if isinstance(completion, str) else []
    prompt = row.get("prompt")
    return ImageText(nothing if prompt is None else prompt, completion, images_of(row, column))


def images_of(row: Mapping[str, Any], column: str) -> list[Any]:
    """The images before one text of a row: those of the row, then those of its side.

    Raises:
        `ValueError`: if a column of images holds something else than a list.
    """
    found: list[Any] = []
    for prefix in ("", f"{column}_"):
        one, many = row.get(f"{prefix}image"), row.get(f"{prefix}images")
        if many is not None and not isinstance(many, list | tuple):
            raise ValueError(
                f"The column {prefix}images must hold lists of images, and holds a {type(many).__name__}."
            )
        found += [*([] if one is None else [one]), *(many or [])]
    return found


def read_image(image: Any, row: int = 0) -> Image.Image:
    """An image as RGB, turned as its camera says.

    It is a PIL image, an array, a file's path, the bytes of one, or `{"bytes", "path"}` as datasets store it. Nothing
    is fetched from the web.

    Raises:
        `ValueError`: if it is none of these, or cannot be read; it names the row.
    """
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    try:
        if isinstance(image, str) and image.startswith(("http://", "https://")):
            raise ValueError("it is an address of the web; download it and give the file")
        if isinstance(image, np.ndarray):
            opened = Image.fromarray(image)
        elif isinstance(image, bytes):
            opened = Image.open(io.BytesIO(image))
        elif isinstance(image, str | Path):
            opened = Image.open(image)
        elif isinstance(image, Image.Image):
            opened = image
        else:
            raise ValueError(f"it is a {type(image).__name__}")
        return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, TypeError) as error:
        raise ValueError(
            f"An image of text {row} cannot be read: {sentence(error)} Give a PIL image, a file's path, its bytes, "
            "or an array of shape (height, width, 3) and of type uint8."
        ) from error


# --- inside ----------------------------------------------------------------------------------------------


def _as_messages(value: Text, role: str) -> Messages:
    return [{"role": role, "content": value}] if isinstance(value, str) else value


def _place(messages: Messages, images: Sequence[Any], row: int) -> tuple[Messages, list[Any]]:
    """Messages whose content is lists of parts, with a part for each image, and the images in that order."""
    parts_of = [_parts(message.get("content")) for message in messages]
    given = list(images)
    empty = sum(1 for parts in parts_of for part in parts if part["type"] == "image" and part.get("image") is None)
    if empty > len(given):
        raise ValueError(f"The messages of text {row} have {empty} parts for images, and the row has {len(given)}.")
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), 0)
    loose = len(given) - empty
    parts_of[first] = [*({"type": "image", "image": image} for image in given[:loose]), *parts_of[first]]
    rest: Iterator[Any] = iter(given[loose:])
    placed, ordered = [], []
    for message, parts in zip(messages, parts_of, strict=True):
        for part in parts:
            if part["type"] == "image":
                own = part.get("image")
                ordered.append(next(rest) if own is None else own)
        shown = [{"type": "image"} if part["type"] == "image" else part for part in parts]
        placed.append({**message, "content": shown})
    return placed, ordered


def _parts(content: Any) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return [{"type": "text", "text": content or ""}]
    # A column of a dataset gives every part the keys of all others, with None.
    return [{name: value for name, value in part.items() if value is not None} for part in content]
