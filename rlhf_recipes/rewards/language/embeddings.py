"""Meaning as a reward: how near a completion is to a text, or how far from its siblings, to a sentence encoder.

An encoder makes a vector of a text, and the cosine between two vectors says how alike their meanings are
(Sentence-BERT, Reimers and Gurevych, arXiv 1908.10084). It knows the languages that it was trained on; in others, and
for nonsense, the cosine is a number too, but says little.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import PreTrainedTokenizerBase

from rlhf_recipes.modeling.embedder import Embedder
from rlhf_recipes.modeling.reading import check_finite
from rlhf_recipes.rewards.base import Series
from rlhf_recipes.rewards.contract.checks import check_choice
from rlhf_recipes.rewards.diversity import siblings
from rlhf_recipes.rewards.model_reward import ModelReward
from rlhf_recipes.rewards.reference import as_references, references_of
from rlhf_recipes.texts import Text, as_text
from rlhf_recipes.words import is_blank


class EmbeddingReward(ModelReward):
    """A reward out of the cosines between embeddings of texts.

    Args:
        model (`str`, `Path` or `torch.nn.Module`):
            A sentence encoder: a folder, a model id of the Hub, or a model that is loaded already.
        processing_class, batch_size, max_length, pooling, device, dtype, load_in_4bit: as in [`Embedder`].
        name (`str`, *optional*): as in [`ModelReward`].
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
        name: str | None = None,
    ) -> None:
        options = (processing_class, batch_size, max_length, pooling, device, dtype, load_in_4bit)
        self.embedder = Embedder(model, *options)
        self.__name__ = name or type(self).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.__name__!r}, model={self.embedder.reader.source!r})"

    def _cosines(self, texts: Sequence[str], others: Sequence[Sequence[str]]) -> list[list[float]]:
        """For each text the cosine with each of its others, within -1 and 1 however it is rounded."""
        flat = [*texts, *(text for row in others for text in row)]
        vectors = self.embedder(flat)
        start, result = len(texts), []
        for row, own in enumerate(others):
            result.append((vectors[start : start + len(own)] @ vectors[row]).clamp(-1.0, 1.0).tolist())
            start += len(own)
        return result


class EmbeddingSimilarity(EmbeddingReward):
    """Cosine between the embeddings of the completion and of a reference, or of its prompt; from -1 to 1.

    `r = max_j e(y) . e(z_j)` over the references `z_j` of the row. Two texts that have nothing to do with each other
    come out near 0 with most encoders, and the same text at 1. It rewards meaning and not truth: "the film is good"
    and "the film is not good" are near.

    A row without a reference (`None`, an empty list, or nothing to see in it) gets `None`; a completion without a
    visible sign gets -1 where there is one, since it is the worst answer. Languages are those of the encoder. Messages
    are read as their texts, one below the other.

    Args:
        to (`"reference"` or `"prompt"`, *optional*, defaults to `"reference"`):
            What the completion is compared with.
        column (`str`, *optional*, defaults to `"reference"`):
            The dataset's column with the references: a text for each row, or a list of texts, of which the nearest
            counts. Not for `to="prompt"`.
        model, processing_class, batch_size, max_length, pooling, device, dtype, load_in_4bit, name:
            As in [`EmbeddingReward`].

    Raises:
        `ValueError`: when called, if the dataset has no such column.
    """

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        to: Literal["reference", "prompt"] = "reference",
        column: str = "reference",
        processing_class: str | Path | PreTrainedTokenizerBase | None = None,
        batch_size: int = 32,
        max_length: int | None = None,
        pooling: Literal["mean", "cls"] | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        load_in_4bit: bool = False,
        name: str | None = None,
    ) -> None:
        check_choice("EmbeddingSimilarity", "to", to, ("reference", "prompt"))
        if to == "prompt" and column != "reference":
            raise ValueError(f"EmbeddingSimilarity(to='prompt') reads no column, but column is {column!r}.")
        options = (processing_class, batch_size, max_length, pooling, device, dtype, load_in_4bit)
        super().__init__(model, *options, name)
        self.to, self.column = to, column

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> Series:
        """The cosine of each completion with what it is compared with. `(B,)`"""
        texts = [as_text(completion) for completion in completions]
        if self.to == "prompt":
            others = [as_references(as_text(prompt), "prompt") for prompt in prompts]
        else:
            others = references_of(kwargs, self.column, self.__name__)
        rows = [row for row, text in enumerate(texts) if not is_blank(text) and others[row]]
        cosines = self._cosines([texts[row] for row in rows], [others[row] for row in rows])
        result: Series = [-1.0 if own else None for own in others]
        for row, own in zip(rows, cosines, strict=True):
            # A maximum may pass a NaN over.
            result[row] = max(own) if all(map(math.isfinite, own)) else math.nan
        check_finite(result, self.__name__, prompts, completions)
        return result


class EmbeddingDistance(EmbeddingReward):
    """Mean distance in meaning to the other completions of the same prompt; from 0, all the same, to 2.

    `r_i = 1/(G-1) sum_{j != i} (1 - e(y_i) . e(y_j))` over the siblings `y_j` in the batch, the rows with an equal
    prompt: diversity of meaning, where n-grams see diversity of words. Nonsense is far from everything; use it beside
    a reward of quality, with a smaller weight. All completions of a prompt must be on one process, and
    `num_generations` 2 or more.

    A completion without a visible sign gets 0, the worst, or a policy could differ by saying nothing; one whose
    siblings all have none gets 1, as one that has nothing to do with them. A row without siblings gets `None`.

    Args:
        model, processing_class, batch_size, max_length, pooling, device, dtype, load_in_4bit, name:
            As in [`EmbeddingReward`].
    """

    wants_siblings = True

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text], **kwargs: Any) -> Series:
        """The mean distance of each completion to its siblings. `(B,)`"""
        texts = [as_text(completion) for completion in completions]
        others_of = siblings(prompts)
        others = [[texts[row] for row in rows if not is_blank(texts[row])] for rows in others_of]
        rows = [row for row, text in enumerate(texts) if not is_blank(text) and others[row]]
        cosines = self._cosines([texts[row] for row in rows], [others[row] for row in rows])
        result: Series = [
            None if not there else 0.0 if is_blank(text) else 1.0 for text, there in zip(texts, others_of, strict=True)
        ]
        for row, own in zip(rows, cosines, strict=True):
            result[row] = 1.0 - math.fsum(own) / len(own)
        check_finite(result, self.__name__, prompts, completions)
        return result
