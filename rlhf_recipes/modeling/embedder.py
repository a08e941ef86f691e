"""Sentence embeddings of an encoder: its folder's pooling and length, read as sentence-transformers writes them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedTokenizerBase

from rlhf_recipes.modeling.frozen import FrozenModel, check_batch_size
from rlhf_recipes.modeling.loading import find_file
from rlhf_recipes.modeling.reading import model_outputs, pad_id_of, part_to_read
from rlhf_recipes.starting.options import check_choice

POOLING_FILE = "1_Pooling/config.json"
LENGTH_FILE = "sentence_bert_config.json"
POOLINGS = ("mean", "cls")


class Embedder:
    """Texts to vectors of length 1: the mean of an encoder's last hidden states over a text's tokens, normalized.

    `e = m / |m|`, `m = 1/T sum_t h_t`, special tokens included, as sentence-transformers does it. Where a model's
    folder follows that library's layout, its pooling (mean, or the first token) and its length in tokens are read from
    there. A longer text loses its end, as it does there. Equal texts of one call are encoded once.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A folder or a model id of the Hub, or an encoder that is loaded already.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        max_length (`int`, *optional*):
            Tokens of a text that are read. Default: what the folder says, else all that the model can.
        pooling (`"mean"` or `"cls"`, *optional*):
            How one vector is made of those of the tokens. Default: what the folder says, else `"mean"`.
        processing_class, device, dtype, load_in_4bit: as in [`FrozenModel`].

    Raises:
        `ValueError`: if the folder asks for another pooling than these two, or a setting is out of its range.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        pooling: Literal["mean", "cls"] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
    ) -> None:
        check_batch_size(batch_size)
        if pooling is not None:
            check_choice("pooling", pooling, POOLINGS)
        self.reader = FrozenModel(AutoModel, model, processing_class, max_length, device, dtype, load_in_4bit)
        self.reader.tokenizer.truncation_side = "right"
        source = self.reader.source
        if source is not None and max_length is None:
            trained = _read_json(source, LENGTH_FILE).get("max_seq_length")
            self.reader.max_length = min(
                (limit for limit in (trained, self.reader.max_length) if limit is not None), default=None
            )
        if source is not None:
            _check_modules(source)
        self.pooling = pooling or (_pooling_of(source) if source is not None else "mean")
        self.batch_size = batch_size

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Vectors of length 1, in float32 on the CPU. `N texts -> (N, H)`"""
        place = {text: index for index, text in enumerate(dict.fromkeys(texts))}
        vectors = self._encode(list(place))
        return vectors[[place[text] for text in texts]]

    def _encode(self, texts: Sequence[str]) -> Tensor:
        tokenizer = self.reader.tokenizer
        most = self.reader.max_length
        parts = [text[part_to_read(text, tokenizer, most, "right")] for text in texts]
        said = tokenizer(parts, truncation=True, max_length=most) if texts else None
        token_ids = [ids or [pad_id_of(tokenizer)] for ids in said.input_ids] if said is not None else []
        vectors = torch.zeros(len(texts), self.reader.model.config.get_text_config().hidden_size)
        for rows, output in model_outputs(self.reader.model, token_ids, self.batch_size, pad_id_of(tokenizer)):
            states = output.last_hidden_state.float().cpu()  # (b, L, H)
            for index, row in enumerate(rows):
                own = states[index, : len(token_ids[row])]
                vectors[row] = own.mean(dim=0) if self.pooling == "mean" else own[0]
        return torch.nn.functional.normalize(vectors, dim=1)


def _pooling_of(source: str) -> str:
    """The pooling that a folder in the layout of sentence-transformers asks for."""
    config = _read_json(source, POOLING_FILE)
    asked = sorted(key for key, value in config.items() if key.startswith("pooling_mode") and value is True)
    known = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    if "pooling_mode" in config:  # newer files name it
        asked = [f"pooling_mode_{config['pooling_mode']}"]
        known = {"pooling_mode_mean": "mean", "pooling_mode_cls": "cls"}
    if not asked:
        return "mean"
    if len(asked) > 1 or asked[0] not in known:
        raise ValueError(
            f"The encoder {source!r} asks for {', '.join(asked)}, but only the mean and the first token (cls) are "
            "known here. Say which comes nearest by pooling, or give another encoder."
        )
    return known[asked[0]]


def _check_modules(source: str) -> None:
    """Refuse an encoder with layers after the pooling, which would be left out."""
    kinds = [str(module.get("type", "")).rpartition(".")[2] for module in _read_json(source, "modules.json") or ()]
    unknown = sorted(set(kinds) - {"Transformer", "Pooling", "Normalize"})
    if unknown:
        raise ValueError(
            f"The encoder {source!r} has {', '.join(unknown)} beside transformer and pooling (modules.json), which is "
            "not known here, so that its vectors would be others. Give an encoder without."
        )


def _read_json(source: str, filename: str) -> Any:
    path = find_file(source, filename)
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))
