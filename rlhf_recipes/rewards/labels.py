"""From a classifier's logits to one number."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

GATE_OF = "gate of "


class LabelScore:
    """The weighted sum of a classifier's outputs: of one label, or of several, as logits or as probabilities.

    A model whose second half of outputs are named "gate of ..." the first half weighs its objectives itself, by the
    softmax of these gates (arXiv 2406.12845).

    Args:
        config (`PreTrainedConfig`): the classifier's.
        label (`int` or `str`, *optional*): which output is the score. Needed where the model has several labels.
        labels (`Mapping`, *optional*): instead of `label`, what each label counts, by name or index.
        probabilities (`bool`): whether logits become probabilities first: the softmax over all labels, or of each
            the sigmoid, where the model has one label or was trained for several at once.

    Raises:
        `ValueError`: if a label is not the model's, a weight is no finite number, or it is not said what counts.
    """

    def __init__(
        self,
        config: Any,
        label: int | str | None = None,
        labels: Mapping[int | str, float] | None = None,
        probabilities: bool = False,
    ) -> None:
        names = [config.id2label[index] for index in range(config.num_labels)]
        half = len(names) // 2
        # Trained with a gate: behind the objectives stands how much each counts in this text.
        gates = [f"{GATE_OF}{name}" for name in names[:half]]
        self.gated = half > 0 and names[half:] == gates and label is None and labels is None
        self.weights = torch.ones(1) if self.gated else _label_weights(config, label, labels)  # (labels,)
        self.probabilities = probabilities
        self.labels_are_apart = config.num_labels == 1 or config.problem_type == "multi_label_classification"

    def __call__(self, logits: Tensor) -> Tensor:
        """In float32 on the CPU. `(..., labels) -> (...)`"""
        outputs = logits.float().cpu()
        if self.gated:
            scores, gates = outputs.chunk(2, dim=-1)
            return (gates.softmax(dim=-1) * scores).sum(dim=-1)
        if self.probabilities:
            outputs = outputs.sigmoid() if self.labels_are_apart else outputs.softmax(dim=-1)
        # Only what counts is added up: nothing times infinity would be NaN.
        counts = self.weights != 0
        return outputs[..., counts] @ self.weights[counts]


def _label_index(config: Any, label: int | str | None) -> int:
    """Which of a classifier's logits is meant, by index or by name; without a label, the only one."""
    names = [config.id2label[index] for index in range(config.num_labels)]
    if label is None and len(names) > 1:
        raise ValueError(f"The model has {len(names)} labels, {', '.join(names)}: say which is the reward by label.")
    if isinstance(label, str) and label not in names and label.isdecimal():
        label = int(label)  # the keys of a mapping come out of a YAML file as texts
    index = names.index(label) if label in names else (label or 0)
    if isinstance(index, str) or not 0 <= index < len(names):
        raise ValueError(f"The model has no label {label!r}. It has {', '.join(names)} (0 to {len(names) - 1}).")
    return index


def _label_weights(config: Any, label: int | str | None, labels: Mapping[int | str, float] | None) -> Tensor:
    """What each of the model's outputs counts in the score. `(labels of the model,)`"""
    weights = torch.zeros(config.num_labels)
    if labels is None:
        weights[_label_index(config, label)] = 1.0
        return weights
    if label is not None:
        raise ValueError(f"Give label ({label!r}) to take one of the model's outputs, or labels ({labels}), not both.")
    if not labels:
        raise ValueError("labels is empty: give a weight to one label of the model at least, or leave it out.")
    for key, weight in labels.items():
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
            raise ValueError(f"The weight of label {key!r} is {weight!r}, but must be a finite number.")
        weights[_label_index(config, key)] += weight
    return weights
