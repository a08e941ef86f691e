"""From a classifier's logits, whose unit is nobody's, to one number, and to the scale on which people rated."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf_recipes import filenames
from rlhf_recipes.modeling.calibration import Calibration, LinearCalibration, LogisticCalibration, OrdinalCalibration
from rlhf_recipes.modeling.loading import find_file
from rlhf_recipes.outputs import write_json
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import sentence

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
        if not is_finite(weight):
            raise ValueError(f"The weight of label {key!r} is {weight!r}, but must be a finite number.")
        weights[_label_index(config, key)] += weight
    return weights


CALIBRATIONS: dict[str, type[Calibration]] = {
    "logistic": LogisticCalibration,
    "linear": LinearCalibration,
    "ordinal": OrdinalCalibration,
}


@dataclass(frozen=True)
class RewardModelSettings:
    """What a reward model needs besides its weights and tokenizer, as `reward_config.json` in its folder.

    `append_eos` says whether the tokenizer's end-of-sequence token is written behind each plain text, as TRL's
    `RewardTrainer` does; `False` where the tokenizer puts it there by itself, as that beside our models does. (A chat
    template ends its turns itself.)
    """

    calibration: Calibration | None = None  # the map from logits to ratings; None leaves logits as they are
    append_eos: bool = False
    max_length: int | None = None  # tokens the model was trained to read; None means as many as it can
    labels: Mapping[int | str, float] | None = None  # what each output counts in the score, where there are several
    probabilities: bool = False  # whether outputs become probabilities before they are weighed
    step_token: str | None = None  # of a process reward model: the mark behind each step
    chat_template_kwargs: Mapping[str, Any] | None = None  # as in training; a column of that name wins

    @property
    def to_ratings(self) -> Calibration | None:
        """From scores to ratings. Those of a model of levels, which expects one, are ratings as they are."""
        return self.calibration or (LinearCalibration(1.0, 0.0) if self.probabilities else None)

    def save(self, folder: str | Path) -> Path:
        """Write the settings into a model's folder, which is made if needed, and return the file's path."""
        data = asdict(self)
        if self.calibration is not None:
            kind = next(name for name, of_kind in CALIBRATIONS.items() if isinstance(self.calibration, of_kind))
            data["calibration"] = {"kind": kind, **data["calibration"]}
        # Of most models there is one output, and it is the score.
        unsaid = {name for name in ("labels", "step_token", "chat_template_kwargs") if data[name] is None}
        if {"labels", "step_token"} <= unsaid:
            unsaid.add("probabilities")
        return write_json(
            Path(folder) / filenames.REWARD_SETTINGS, {k: value for k, value in data.items() if k not in unsaid}
        )

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModelSettings":
        """Read the settings of a folder or of a model id of the Hub; the defaults where it has none.

        Raises:
            `ValueError`: if the file is not JSON, or holds keys or values that are not known.
        """
        path = find_file(str(folder), filenames.REWARD_SETTINGS)
        if path is None:
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            calibration = data.pop("calibration", None)
            if calibration is not None:
                kind = calibration.pop("kind", None)
                if kind not in CALIBRATIONS:
                    raise ValueError(f"the calibration is of kind {kind!r}; known are {', '.join(CALIBRATIONS)}")
                _refuse_unknown(calibration, CALIBRATIONS[kind])
                calibration = CALIBRATIONS[kind](**calibration)
            _refuse_unknown(data, cls)
            settings = cls(calibration=calibration, **data)
            if not isinstance(settings.append_eos, bool):
                raise ValueError(f"append_eos must be true or false, not {settings.append_eos!r}")
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"Cannot read the reward model's settings in {path}: {sentence(str(error))}") from error
        return settings


def _refuse_unknown(data: Mapping[str, Any], owner: type) -> None:
    known = [item.name for item in fields(owner)]
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise ValueError(f"unknown {', '.join(unknown)}; known are {', '.join(known)}")
