"""Vision-language classifiers and their processors, small enough for a test and built in code.

```python
processor = tiny_processor()
model = tiny_vision_classifier(processor)
folder = save_tiny_vision(tmp_path / "reward", model, processor)
```
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import (
    Gemma3Config,
    Gemma3ForSequenceClassification,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Gemma3TextConfig,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    ModernVBertConfig,
    ModernVBertForSequenceClassification,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from tests.tiny import tiny_tokenizer

SIZE = 16  # pixels to a side
IMAGE_TOKENS = 4
MARKS = {
    "gemma3": {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<img>"},
    "modernvbert": {
        "image_token": "<image>",
        "fake_image_token": "<fake>",
        "global_image_token": "<global>",
        "end_of_utterance_token": "<end>",
    },
}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}MARK{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)


def tiny_processor(kind: str = "gemma3", chat_template: bool = True) -> Any:
    """A processor of `"gemma3"` (a decoder's; one stack of images for a batch) or `"modernvbert"` (an encoder's)."""
    backend = tiny_tokenizer("llama")._tokenizer
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        extra_special_tokens=MARKS[kind],
    )  # fmt: skip
    if kind == "gemma3":
        images = Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE})
        processor = Gemma3Processor(images, tokenizer, image_seq_length=IMAGE_TOKENS)
    else:
        edge = {"longest_edge": SIZE}
        images = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
        processor = Idefics3Processor(images, tokenizer, image_seq_len=IMAGE_TOKENS)
    processor.chat_template = CHAT_TEMPLATE.replace("MARK", processor.image_token) if chat_template else None
    return processor


def tiny_vision_classifier(processor: Any, num_labels: int = 1, seed: int = 0) -> Any:
    """A classifier with random weights that goes with the processor, in evaluation mode."""
    tokenizer = processor.tokenizer
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": SIZE, "patch_size": 4,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 256, "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if isinstance(processor, Gemma3Processor):
            config: Any = Gemma3Config(
                text_config=Gemma3TextConfig(**text, num_key_value_heads=2, head_dim=16, initializer_range=0.1),
                vision_config=SiglipVisionConfig(**vision),
                mm_tokens_per_image=IMAGE_TOKENS,
                boi_token_index=tokenizer.boi_token_id,
                eoi_token_index=tokenizer.eoi_token_id,
                image_token_index=tokenizer.image_token_id,
                initializer_range=0.1,
                num_labels=num_labels,
            )
            model: Any = Gemma3ForSequenceClassification(config)
            # It comes as zeros, with which a model is blind; that of the other kind is small.
            torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.3)
            head = model.score
        else:
            config = ModernVBertConfig(
                text_config={**text, "cls_token_id": tokenizer.bos_token_id, "sep_token_id": tokenizer.eos_token_id},
                vision_config=vision,
                pixel_shuffle_factor=2,
                image_token_id=tokenizer.image_token_id,
                classifier_pooling="mean",
                num_labels=num_labels,
            )
            model = ModernVBertForSequenceClassification(config)
            torch.nn.init.normal_(model.model.connector.modality_projection.weight, std=1.0)
            head = model.classifier
        torch.nn.init.normal_(head.weight, std=1.0)
    return model.eval()


def save_tiny_vision(folder: Path, model: Any, processor: Any) -> Path:
    """Save both into one folder, and return it."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def picture(color: str, size: tuple[int, int] = (20, 24)) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", size, color)
