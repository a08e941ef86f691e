"""What personal heads read: the hidden vector of a trained reward model, and features of all kinds on one scale."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rlhf_recipes.modeling.frozen import HEADS
from rlhf_recipes.modeling.reading import forward, length_batches
from rlhf_recipes.reward_modeling.linear.features import Feature, FeatureGroup, FeatureSet, Matrix, Reading
from rlhf_recipes.rewards.learned import LearnedReward


@dataclass(frozen=True)
class HiddenFeatures(FeatureGroup):
    """The hidden vector below the head of a reward model, `h(x)` of `score = w.h(x) + b`.

    Of an encoder it is what its classifier's last layer is given, of a decoder the state of the last token. It was
    trained to tell good texts from bad ones, and has forgotten some of the rest: where tastes are about other things,
    an [`~rlhf_recipes.reward_modeling.linear.features.Embedding`] beside it knows more. Its numbers mean nothing one
    by one.

    Args:
        model (`str`):
            The folder or Hub id of a reward model, as `recipes/reward.py` makes it. It is not copied into what is
            saved.
        chat_template_kwargs (`dict`, *optional*):
            What the model's chat template is given besides what it was trained with.
        batch_size (`int`, *optional*, defaults to 32):
            Texts in one forward pass.
        size (`int`, *optional*):
            Numbers in a vector, which `fit` finds out.
    """

    standardize: ClassVar[bool] = False
    opaque: ClassVar[bool] = True

    model: str
    chat_template_kwargs: dict[str, Any] | None = None
    batch_size: int = 32
    size: int = 0

    @property
    def bounded(self) -> bool:
        return True

    @property
    def features(self) -> tuple[Feature, ...]:
        meaning = f"one of {self.size} numbers that the head of {self.model} reads"
        return tuple(Feature(f"hidden[{index}]", meaning, "of a hidden vector") for index in range(self.size))

    def fit(self, readings: Sequence[Reading]) -> "HiddenFeatures":
        return replace(self, size=_head(_load(self.model).model)[1].in_features)

    def matrix(self, readings: Sequence[Reading]) -> Matrix:
        reward = _load(self.model)
        vectors: Matrix = hidden_vectors(reward, readings, self.batch_size, self.chat_template_kwargs).double().numpy()
        return vectors


def hidden_vectors(
    reward: LearnedReward, readings: Sequence[Reading], batch_size: int = 32, template_kwargs: Any = None
) -> Tensor:
    """What the head of a reward model is given for each text, in float32 on the CPU. `(N, H)`

    Raises:
        `ValueError`: if the model has no linear layer that is known to be a head.
    """
    _, layer = _head(reward.model)
    ids = [
        reward._encode(*reward._render(reading.prompt, reading.completion, template_kwargs)) for reading in readings
    ]
    vectors = torch.zeros(len(ids), layer.in_features)
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
    try:
        for rows in length_batches([len(of_text) for of_text in ids], batch_size):
            given.clear()
            forward(reward.model, [ids[row] for row in rows], reward.tokenizer.pad_token_id)
            states = given[-1].float().cpu()
            if states.ndim == 3:  # a decoder scores every token, and its last real one counts
                last = torch.tensor([len(ids[row]) - 1 for row in rows])
                states = states[torch.arange(len(rows)), last]
            vectors[rows] = states
    finally:
        hook.remove()
    return vectors


def _head(model: Any) -> tuple[str, torch.nn.Linear]:
    """The last linear layer that carries the name of a head."""
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and name.split(".")[-1] in HEADS
        and module.out_features == model.config.num_labels
    ]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear layer named {', '.join(HEADS)}, so it is not known what its head "
            "reads. Take the features of its encoder instead: Embedding."
        )
    return found[-1]


@functools.lru_cache(maxsize=2)
def _load(model: str) -> LearnedReward:
    return LearnedReward(model, calibrate=False)


@dataclass(frozen=True)
class Standardization:
    """`z = (clip(f, low, high) - center) / scale`, each `(F,)`, and a last column of ones.

    A straight line goes on for ever, and a policy would follow it: a value beyond those of the training texts counts
    as the lowest or highest of them. Named features have variance 1 each; the numbers of an encoder have it together,
    or tastes would be sought in hundreds of directions at once.
    """

    center: NDArray[np.float64]
    scale: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @classmethod
    def fit(cls, features: FeatureSet, blocks: Sequence[Any]) -> "Standardization":
        """Learn it from the features of training texts, group by group."""
        parts = []
        for group, block in zip(features.groups, blocks, strict=True):
            if not isinstance(block, np.ndarray):
                raise ValueError(
                    f"{type(group).__name__} makes {block.shape[1]} sparse columns, and every user would need a "
                    "weight for each. Personal heads take dense features: Embedding, HiddenFeatures or named ones."
                )
            std, size = block.std(axis=0), block.shape[1]
            if not group.standardize:
                std = np.full(size, math.sqrt(float((std**2).sum())))
            # What does not vary in training says nothing: it is left at 0.
            constant = np.ptp(block, axis=0) <= 1e-12 * np.abs(block).max(axis=0)
            bounds = [np.full(size, end) for end in (-np.inf, np.inf)]
            if not group.bounded:
                bounds = [block.min(axis=0), block.max(axis=0)]
            parts.append((block.mean(axis=0), np.where(constant | (std == 0), np.inf, std), *bounds))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def __call__(self, blocks: Sequence[Any]) -> Tensor:
        """Features of N texts. `[(N, F_group)] -> (N, F + 1)`"""
        values = np.clip(np.hstack(blocks), self.low, self.high)
        z = (values - self.center) / self.scale
        return torch.from_numpy(np.hstack([z, np.ones((len(z), 1))]))
