import io

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature

from rlhf_recipes.modeling.images import (
    ImageFeedbackCollator,
    ImagePairCollator,
    ImageRows,
    ImageText,
    ImageTextEncoder,
    images_of,
    item_of,
    read_image,
)
from rlhf_recipes.reward_modeling.losses import make_objective
from tests.tiny import tiny_tokenizer
from tests.tiny_vision import IMAGE_TOKENS, SIZE, picture, tiny_processor

RED, BLUE = picture("red"), picture("blue")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor()


@pytest.fixture(scope="module")
def encode(processor):
    return ImageTextEncoder(processor)


def image_tokens(batch, processor):
    """How many image tokens each text has."""
    return (batch["input_ids"] == processor.tokenizer.image_token_id).sum(dim=1).tolist()


def color_of(pixels):
    """Whether the first image of a stack is red or blue: values run from -1 to 1."""
    red, green, blue = pixels.mean(dim=(-1, -2)).tolist()
    return "red" if (red, green, blue) == (1, -1, -1) else "blue" if (red, green, blue) == (-1, -1, 1) else "mixed"


# ---- one text


def test_images_come_before_the_text(encode, processor):
    batch = encode([ImageText("The film", " is good.", [RED])])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text == "\n\n<boi><img><img><img><img><eoi>\n\nThe film is good."
    assert batch["pixel_values"].shape == (1, 3, SIZE, SIZE)
    assert color_of(batch["pixel_values"][0]) == "red"


def test_the_prompt_may_say_where_they_go(encode, processor):
    batch = encode([ImageText("First <boi> then <boi>", " good", [RED, BLUE])])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text.startswith("First \n\n<boi>")
    assert image_tokens(batch, processor) == [2 * IMAGE_TOKENS]
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue"]


def test_texts_of_several_lengths_and_numbers_of_images(encode, processor):
    batch = encode([ImageText("", "one", [RED]), ImageText("", "none at all", []), ImageText("", "two", [BLUE, RED])])
    assert image_tokens(batch, processor) == [IMAGE_TOKENS, 0, 2 * IMAGE_TOKENS]
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue", "red"]
    lengths = batch["attention_mask"].sum(dim=1)
    for row, length in enumerate(lengths.tolist()):
        assert batch["attention_mask"][row, :length].all()  # on the right
        assert (batch["input_ids"][row, length:] == processor.tokenizer.pad_token_id).all()


def test_without_any_image_there_are_no_pixels(encode):
    assert "pixel_values" not in encode([ImageText("The film", " is good.", [])])


def test_the_end_of_sequence_token(processor):
    ends = ImageTextEncoder(processor, append_eos=True)
    ids = ends([ImageText("a", "b", [RED]), ImageText("a", "b<eos>", [])])["input_ids"]
    eos = processor.tokenizer.eos_token_id
    assert (ids == eos).sum(dim=1).tolist() == [1, 1]


def test_a_text_of_nothing_has_a_token(encode):
    assert encode([ImageText("", "", [])])["input_ids"].shape[1] >= 1


def test_the_processor_is_copied(processor):
    side = processor.tokenizer.padding_side
    processor.tokenizer.padding_side = "left"
    ids = ImageTextEncoder(processor)([ImageText("", "a", []), ImageText("", "a long text", [])])["input_ids"]
    assert ids[0, -1] == processor.tokenizer.pad_token_id
    assert processor.tokenizer.padding_side == "left"
    processor.tokenizer.padding_side = side


def test_an_encoder_of_the_other_layout():
    processor = tiny_processor("modernvbert")
    batch = ImageTextEncoder(processor)([ImageText("", "one", [RED]), ImageText("", "two", [BLUE, RED])])
    assert batch["pixel_values"].shape == (2, 2, 3, SIZE, SIZE)  # padded to the text with most images
    assert image_tokens(batch, processor) == [IMAGE_TOKENS, 2 * IMAGE_TOKENS]


# ---- messages


def asked(*parts):
    return [{"role": "user", "content": list(parts)}]


def test_parts_of_messages_stand_for_the_images_of_the_row(encode, processor):
    prompt = asked({"type": "text", "text": "See"}, {"type": "image"}, {"type": "text", "text": "this"})
    batch = encode([ImageText(prompt, [{"role": "assistant", "content": "red"}], [RED])])
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert text == "<|user|>See\n\n<boi><img><img><img><img><eoi>\n\nthis<|assistant|>red<eos>"


def test_parts_may_hold_their_own_images_and_what_is_left_comes_first(encode):
    prompt = asked({"type": "image", "image": BLUE, "text": None}, {"type": "text", "text": "and", "image": None})
    batch = encode([ImageText(prompt, "red", [RED])])
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue"]


def test_messages_of_text_alone_get_the_image_before_the_first_question(encode, processor):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Which?"}]
    batch = encode([ImageText(messages, "red", [RED])])
    assert processor.tokenizer.decode(batch["input_ids"][0]).startswith("<|system|>Be brief.<|user|>\n\n<boi>")
    assert messages[1]["content"] == "Which?"


# ---- rows


def test_the_images_of_a_row_and_of_one_side():
    row = {"image": RED, "images": None, "chosen_image": BLUE, "rejected_images": [RED, RED], "chosen": "a"}
    assert images_of(row, "chosen") == [RED, BLUE]
    assert images_of(row, "rejected") == [RED, RED, RED]
    assert images_of({}, "chosen") == []
    assert item_of({"chosen": [{"role": "assistant", "content": "a"}], "prompt": None}, "chosen").prompt == []
    with pytest.raises(ValueError, match="images must hold lists"):
        images_of({"images": RED}, "chosen")


def test_the_layout_of_pairs(processor):
    """All chosen texts, then all rejected ones; each with the image of its row and of its side."""
    rows = [
        {"prompt": "It is", "chosen": " red", "rejected": " blue", "image": RED, "margin": 0.5, "id": 1},
        {"prompt": "It is", "chosen": " blue", "rejected": " red", "image": BLUE, "margin": 1.0, "id": 2},
    ]
    batch = ImagePairCollator(processor)(rows)
    said = [processor.tokenizer.decode(ids, skip_special_tokens=True).split()[-1] for ids in batch["input_ids"]]
    assert said == ["red", "blue", "blue", "red"]
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue", "red", "blue"]
    assert batch["margin"].tolist() == [0.5, 1.0]
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "pixel_values", "margin"}


def test_pairs_of_pictures(processor):
    rows = [{"prompt": "A red square", "chosen": "", "rejected": "", "chosen_image": RED, "rejected_image": BLUE}]
    batch = ImagePairCollator(processor)(rows)
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue"]
    assert "margin" not in batch


def test_rows_for_any_loss(processor):
    rows = Dataset.from_dict(
        {"prompt": ["It is"] * 3, "completion": [" red", " blue", " green"], "score": [1.0, -1.0, 0.0],
         "image": [RED, BLUE, None]}
    ).cast_column("image", ImageFeature())  # fmt: skip
    objective = make_objective("mse")
    objective.fit(rows)
    made = ImageRows(rows, objective)
    assert len(made) == 3
    batch = ImageFeedbackCollator(processor)([made[row] for row in range(3)])
    assert batch["rows"].tolist() == [0, 1, 2]
    assert batch["places"].tolist() == [0, 0, 0]
    assert batch["targets"]["score"].tolist() == pytest.approx([1.5**0.5, -(1.5**0.5), 0.0])  # deviations of 2/3
    assert batch["pixel_values"].shape[0] == 2
    assert image_tokens(batch, processor) == [IMAGE_TOKENS, IMAGE_TOKENS, 0]


def test_pairs_for_any_loss_keep_the_images_of_their_sides(processor):
    rows = Dataset.from_dict({"chosen": ["a"], "rejected": ["b"], "chosen_image": [RED], "rejected_image": [BLUE]})
    objective = make_objective("hinge")
    batch = ImageFeedbackCollator(processor)([ImageRows(rows, objective)[0]])
    assert batch["rows"].tolist() == [0, 0]
    assert batch["places"].tolist() == [0, 1]
    assert [color_of(pixels) for pixels in batch["pixel_values"]] == ["red", "blue"]


# ---- images


def test_what_an_image_may_be(tmp_path):
    RED.save(tmp_path / "red.png")
    stream = io.BytesIO()
    RED.save(stream, format="PNG")
    array = np.zeros((4, 5, 3), dtype=np.uint8)
    array[..., 0] = 255
    path = tmp_path / "red.png"
    kinds = [RED, path, str(path), stream.getvalue(), {"bytes": stream.getvalue(), "path": None}, array]
    for image in [*kinds, RED.convert("RGBA"), RED.convert("P")]:
        read = read_image(image)
        assert read.mode == "RGB"
        assert read.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        ("https://example.org/red.png", "address of the web"),
        ("nowhere.png", "No such file"),
        (b"no image", "cannot identify"),
        (7, "it is a int"),
        ({"bytes": None, "path": None}, "it is a NoneType"),
        (np.zeros((2, 2, 7)), "Cannot handle"),
    ],
)
def test_an_image_that_cannot_be_read_is_named(encode, image, why):
    with pytest.raises(ValueError, match=f"An image of text 1 cannot be read: .*{why}"):
        encode([ImageText("", "good", []), ImageText("", "bad", [image])])


# ---- mistakes


def test_mistakes_in_texts(encode, processor):
    with pytest.raises(ValueError, match="Text 0 has 2 marks '<boi>' and 1 images"):
        encode([ImageText("<boi><boi>", "a", [RED])])
    with pytest.raises(ValueError, match="1 parts for images, and the row has 0"):
        encode([ImageText(asked({"type": "image"}), "a", [])])
    with pytest.raises(ValueError, match="some are plain text"):
        encode([ImageText("a", "b", []), ImageText(asked(), "b", [])])
    with pytest.raises(ValueError, match="no chat template"):
        ImageTextEncoder(tiny_processor(chat_template=False))([ImageText(asked(), "a", [])])
    with pytest.raises(ValueError, match=r"Text 1 has \d+ tokens with its images, and max_length is 8"):
        ImageTextEncoder(processor, max_length=8)([ImageText("", "a", []), ImageText("", "a", [RED])])


def test_mistakes_in_settings(processor):
    with pytest.raises(ValueError, match="no tokenizer, no image_processor"):
        ImageTextEncoder(tiny_tokenizer())
    with pytest.raises(ValueError, match="max_length is 0"):
        ImageTextEncoder(processor, max_length=0)
    same = tiny_processor()
    same.tokenizer.pad_token = same.tokenizer.eos_token
    with pytest.raises(ValueError, match="padding must be a token of its own"):
        ImageTextEncoder(same)


def test_numbers_of_a_batch_are_tensors(processor):
    batch = ImagePairCollator(processor)([{"chosen": "a", "rejected": "b", "image": RED}])
    assert all(isinstance(values, torch.Tensor) for values in batch.values())
