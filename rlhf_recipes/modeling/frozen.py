"""Models that are read and never trained: loaded whole, in a chosen precision, with a tokenizer of their own."""

import copy
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from rlhf_recipes import filenames
from rlhf_recipes.imports import optional
from rlhf_recipes.modeling.foreign import foreign_head, load_with_head
from rlhf_recipes.modeling.loading import (
    NOT_IN_4_BIT,
    check_model_path,
    ensure_pad_token,
    is_adapter,
    keep_gradients_of_4bit,
    load_tokenizer,
    readable_tokens,
)
from rlhf_recipes.modeling.reading import part_to_read
from rlhf_recipes.modeling.tokenizers.padding import fit_model

logger = logging.getLogger(__name__)

# What reads an adapter, for each class that reads a whole model. By their names, as below: the classes take seconds to
# import, and whoever names a folder that is not there need not wait for them.
ADAPTERS = {
    "AutoModel": "AutoPeftModelForFeatureExtraction",
    "AutoModelForCausalLM": "AutoPeftModelForCausalLM",
    "AutoModelForSequenceClassification": "AutoPeftModelForSequenceClassification",
    "AutoModelForTokenClassification": "AutoPeftModelForTokenClassification",
}
HEADS = ("score", "classifier", "out_proj")


class FrozenModel:
    """A model that stays as it is, and its tokenizer, which nobody else holds.

    Args:
        kind (`type`): `AutoModel`, or one of its relatives: what is read out of the model.
        model (`str`, `Path` or `torch.nn.Module`):
            A folder, that of a LoRA adapter too, or a model id of the Hub, or a model that is loaded already.
        processing_class (`str`, `Path` or `PreTrainedTokenizerBase`, *optional*):
            The tokenizer, which is copied and never changed, or where it lies. Default: that of `model`.
        max_length (`int`, *optional*): Tokens of a text that the model reads. Default: all that it can.
        device (`str` or `torch.device`, *optional*):
            Where to put the model. Default: a model that is given stays; one that is loaded goes to this process's
            GPU, or to the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            Precision to load in, and with `load_in_4bit` to compute in. Default: that of the files on a GPU, float32
            on a CPU.
        load_in_4bit (`bool`): Whether to hold the weights of the linear layers, all but the head's, in 4 bit (NF4,
            arXiv 2305.14314) with bitsandbytes.
        needs_offsets (`bool`): Whether the tokenizer must tell which characters a token stands for.

    Attributes:
        source (`str` or `None`): where the model was loaded from.
        truncated (`int`): texts so far that were longer than `max_length`.

    Raises:
        `FileNotFoundError`: if there is no model where a path points.
        `ValueError`: if a weight of the model was not in its files, so that it would judge at random; if its tokenizer
            gives ids that it has no embedding for.
    """

    def __init__(
        self,
        kind: Any,
        model: str | Path | torch.nn.Module,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        max_length: int | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        needs_offsets: bool = False,
    ) -> None:
        self.source = None if isinstance(model, torch.nn.Module) else check_model_path(str(model))
        self.tokenizer: Any = own_tokenizer(processing_class, self.source)
        if needs_offsets:
            require_offsets(self.tokenizer)
        self.model = place_model(kind, model, device, dtype, load_in_4bit)
        fit_model(self.model, self.tokenizer)
        check_vocabulary(self.model, self.tokenizer)
        self.max_length = read_limit(self.model, self.tokenizer, max_length)
        self.truncated = 0

    def encode(self, text: str, add_special_tokens: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of a text and the characters that each stands for, `(0, 0)` for special tokens that were added.

        A text that is longer than `max_length` loses what the tokenizer's truncation side says.
        """
        part = part_to_read(text, self.tokenizer, self.max_length, self.tokenizer.truncation_side)
        text, start = text[part], part.start
        options = {"add_special_tokens": add_special_tokens, "return_offsets_mapping": True}
        said = self.tokenizer(text, verbose=False, **options)
        if self.max_length is not None and len(said.input_ids) > self.max_length:
            self.truncated += 1
            said = self.tokenizer(text, truncation=True, max_length=self.max_length, **options)
        special = said.sequence_ids()  # None for those that were added
        return list(said.input_ids), [
            (0, 0) if owner is None else (begin + start, end + start)
            for owner, (begin, end) in zip(special, said.offset_mapping, strict=True)
        ]

    def encode_all(
        self, texts: Sequence[tuple[str, bool]], name: str
    ) -> list[tuple[list[int], list[tuple[int, int]]]]:
        """`encode` for texts that each come with whether special tokens are to be added; truncation is logged once."""
        before = self.truncated
        encoded = [self.encode(text, special) for text, special in texts]
        if before == 0 and self.truncated:
            warn_of_truncation(name, self.truncated, len(texts), self.max_length)
        return encoded


def require_offsets(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where a tokenizer does not tell which characters a token stands for."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} does not tell which characters a token stands for; only fast "
            "tokenizers do. Give the model's fast tokenizer as processing_class."
        )


def warn_of_truncation(name: str, count: int, total: int, max_length: int | None) -> None:
    """Say once that texts were cut; what was cut off is said in the docstring of each reward."""
    logger.warning(
        "Reward model %r: %d of %d texts are longer than its max_length of %d tokens, so their beginning is cut off. "
        "This is said once; the attribute `truncated` counts on.",
        *(name, count, total, max_length),
    )


def place_model(
    kind: Any,
    model: str | Path | torch.nn.Module,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    load_in_4bit: bool,
) -> Any:
    """The model in evaluation mode: one that is given is moved where asked, one that is named is loaded and frozen."""
    if isinstance(model, torch.nn.Module):
        if load_in_4bit or dtype is not None:
            raise ValueError(
                "A model was given that is loaded already, so load_in_4bit and dtype come too late. Load it as you "
                "want it, or give its folder."
            )
        placed: Any = model if device is None else model.to(device)
    else:
        source = check_model_path(str(model))
        where = torch.device(device or default_device())
        placed = _load_model(kind, source, where, dtype, load_in_4bit)
        placed.requires_grad_(False)
    return placed.eval()


def own_tokenizer(
    processing_class: str | Path | PreTrainedTokenizerBase | None, source: str | None
) -> PreTrainedTokenizerBase:
    """A tokenizer that nobody else holds, since its padding and truncation are set here."""
    if processing_class is None and source is None:
        raise ValueError("A model was given without its tokenizer: give the tokenizer as processing_class.")
    if isinstance(processing_class, PreTrainedTokenizerBase):
        tokenizer = ensure_pad_token(copy.deepcopy(processing_class))
    else:
        folder = str(processing_class or source)
        if is_adapter(folder) and not (Path(folder) / filenames.TOKENIZER_CONFIG).is_file():
            from peft import PeftConfig

            folder = str(PeftConfig.from_pretrained(folder).base_model_name_or_path)
        tokenizer = load_tokenizer(folder)
    tokenizer.padding_side = "right"
    tokenizer.truncation_side = "left"
    return tokenizer


def default_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", torch.cuda.current_device())))


def check_vocabulary(model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise `ValueError` where the tokenizer gives ids that the model has no embedding for."""
    embeddings = model.get_input_embeddings().weight.shape[0]
    highest = max(tokenizer.get_vocab().values())
    if highest >= embeddings:
        raise ValueError(
            f"The tokenizer {tokenizer.name_or_path!r} gives ids up to {highest}, but the reward model has embeddings "
            f"for ids up to {embeddings - 1}: they do not belong together. Give the reward model's own tokenizer as "
            "processing_class, or resize the model's embeddings and train it with this one."
        )


def read_limit(model: Any, tokenizer: PreTrainedTokenizerBase, asked: int | None) -> int | None:
    """Tokens of a text to read: what was asked for, else what the model can."""
    positions = readable_tokens(model)
    if asked is not None:
        if asked < 1 or (positions is not None and asked > positions):
            raise ValueError(f"max_length is {asked}, but must be from 1 to {positions}, all that the model can read.")
        return asked
    # A tokenizer without a limit says 10**30.
    known = [limit for limit in (positions, tokenizer.model_max_length) if limit is not None and limit < 10**9]
    return min(known, default=None)


def check_batch_size(batch_size: int) -> None:
    """Raise `ValueError` where a batch could hold no text."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be 1 or more, and a whole number.")


def _load_model(
    kind: Any, source: str, device: torch.device, dtype: str | torch.dtype | None, load_in_4bit: bool
) -> Any:
    from transformers import BitsAndBytesConfig

    from rlhf_recipes.compat import loaded_whole

    precision = dtype or ("auto" if device.type == "cuda" else "float32")
    kwargs: dict[str, Any] = {"dtype": precision}
    if load_in_4bit:
        optional("bitsandbytes", "load_in_4bit", extra="quantization")
        computed_in = dtype or ("bfloat16" if device.type == "cuda" else "float32")
        kwargs |= {
            "device_map": {"": device},
            "quantization_config": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=computed_in,
                llm_int8_skip_modules=list(NOT_IN_4_BIT),
            ),
        }  # fmt: skip
    with loaded_whole():
        model = _load_whole(kind, source, kwargs)
    if not load_in_4bit:
        return model.to(device)
    # On a CPU bitsandbytes else multiplies single rows and batches in different ways, and both in bfloat16: a score
    # would depend on what it is batched with, in the third digit.
    keep_gradients_of_4bit(model)
    return model


def _load_whole(kind: Any, source: str, kwargs: dict[str, Any]) -> Any:
    head = foreign_head(source) if kind.__name__ == "AutoModelForSequenceClassification" else None
    if head is not None:
        logger.info("%s is a reward model of %s, and is read with its head.", source, head.project)
        return load_with_head(source, head, kwargs)
    if is_adapter(source):
        import peft

        if kind.__name__ in ("AutoModelForSequenceClassification", "AutoModelForTokenClassification"):
            kwargs = {**kwargs, "num_labels": labels_of_adapter(Path(source))}
        return getattr(peft, ADAPTERS[kind.__name__]).from_pretrained(source, **kwargs)
    model, info = kind.from_pretrained(source, output_loading_info=True, **kwargs)
    # An encoder is read before its pooler, which many files leave out.
    optional_parts = ("pooler.",) if kind.__name__ == "AutoModel" else ()
    missing = sorted(key for key in info["missing_keys"] if not key.startswith(optional_parts))
    if missing:
        unread = sorted(key for key in info["unexpected_keys"] if not key.startswith("lm_head."))
        instead = f" They hold {_some(unread)}, which the model has no place for." if unread else ""
        raise ValueError(
            f"The files of {source!r} lack {_some(missing)}, so these weights would be random, and so would be "
            f"the reward.{instead} {ADVICE[kind.__name__]}"
        )
    return model


def _some(names: list[str], limit: int = 6) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


ADVICE = {
    "AutoModel": "Give a trained encoder.",
    "AutoModelForCausalLM": "Give a trained causal language model.",
    "AutoModelForSequenceClassification": (
        "Give a trained sequence classifier; `recipes/reward.py` makes one. Heads of LLaMA-Factory, of OpenRLHF and "
        "of TRL's AutoModelForCausalLMWithValueHead are found where these projects put them. Any other head has to "
        "stand in the files as score.weight."
    ),
    "AutoModelForTokenClassification": "Give a trained token classifier.",
}


def labels_of_adapter(folder: Path) -> int:
    """Number of labels of the head that was saved with an adapter; its configuration does not tell."""
    path = folder / filenames.ADAPTER_WEIGHTS
    from peft import PeftConfig

    heads = PeftConfig.from_pretrained(str(folder)).modules_to_save or []
    if path.is_file():
        with safe_open(path, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - no mapping, it has only this method
                parts = key.split(".")
                if parts[-1] == "weight" and set(parts) & set(heads) and parts[-2] in HEADS:
                    return tensors.get_slice(key).get_shape()[0]
    raise ValueError(
        f"The adapter in {folder} holds no trained head (modules_to_save: {', '.join(heads) or 'none'}), so it would "
        "judge at random. Train it with task type SEQ_CLS, as `recipes/reward.py` does, and save it again."
    )
