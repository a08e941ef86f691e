"""From a classifier's logits to one number.

From a reward model's logits, whose unit is nobody's, to the scale on which people rated.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from rlhf_recipes.modeling.loading import find_file
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


MAX_STEPS = 200


@dataclass(frozen=True)
class LogisticCalibration:
    """`rating = low + (high - low) * sigmoid(scale * logit + offset)`: within the rating scale, and never turns.

    A straight line would leave the scale for extreme logits, which is where a policy under optimization goes.

    Args:
        scale (`float`):
            Steepness, above 0, so that the order of two texts stays what the model says.
        offset (`float`):
            Shift, in units of `scale * logit`.
        low (`float`, *optional*, defaults to -4.0), high (`float`, *optional*, defaults to 4.0):
            Ends of the rating scale.
    """

    scale: float
    offset: float
    low: float = -4.0
    high: float = 4.0

    def __post_init__(self) -> None:
        values = (self.scale, self.offset, self.low, self.high)
        if not all(math.isfinite(value) for value in values) or self.scale <= 0 or self.low >= self.high:
            raise ValueError(f"{self} is no calibration: all must be finite, scale above 0, and low below high.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The ratings that belong to the logits, in the same shape."""
        return self.low + (self.high - self.low) * _sigmoid(
            self.scale * np.asarray(logits, dtype=np.float64) + self.offset
        )

    @classmethod
    def fit(cls, logits: ArrayLike, ratings: ArrayLike, low: float = -4.0, high: float = 4.0) -> "LogisticCalibration":
        """The curve with the least squared error on held-out texts, by damped Gauss-Newton steps (Marquardt 1963).

        Args:
            logits (`ArrayLike` of shape `(N,)`):
                What the model says.
            ratings (`ArrayLike` of shape `(N,)`):
                What people say, from `low` to `high`.

        Raises:
            `ValueError`: if there are not two different logits, a value is not finite, a rating lies outside of the
                scale, or ratings do not rise with the logits.
        """
        x, y = _checked(logits, ratings, low, high)
        mean, std = x.mean(), x.std()
        z = (x - mean) / std
        target = (y - low) / (high - low)
        inner = np.clip(target, 0.01, 0.99)
        slope, intercept = np.polyfit(z, np.log(inner / (1 - inner)), 1)
        if slope <= 1e-8:
            raise ValueError(
                f"The ratings do not rise with the logits (slope {slope:.3g} over {len(x)} texts), so no rising curve "
                "fits them. Check that a higher logit means a better text, and that rows of both belong together."
            )
        log_slope, shift = _least_squares(z, target, math.log(slope), intercept)
        scale = math.exp(log_slope) / std
        return cls(scale=float(scale), offset=float(shift - scale * mean), low=float(low), high=float(high))


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1.0 + np.tanh(0.5 * x))  # the same function, and no exponential that overflows


def _least_squares(
    z: NDArray[np.float64], target: NDArray[np.float64], log_slope: float, shift: float
) -> tuple[float, float]:
    """Minimize `sum (sigmoid(exp(log_slope) z + shift) - target)^2`; the logarithm keeps the slope above 0."""
    parameters = np.array([log_slope, shift])
    damping = 1e-3

    def predict(p: NDArray[np.float64]) -> NDArray[np.float64]:
        return _sigmoid(np.exp(p[0]) * z + p[1])

    error = np.sum((predict(parameters) - target) ** 2)
    for _ in range(MAX_STEPS):
        predicted = predict(parameters)
        steepness = predicted * (1 - predicted)
        jacobian = np.stack([steepness * np.exp(parameters[0]) * z, steepness], axis=1)
        normal = jacobian.T @ jacobian
        gradient = jacobian.T @ (predicted - target)
        step = np.linalg.solve(normal + damping * (np.diag(np.diag(normal)) + 1e-12 * np.eye(2)), -gradient)
        # Beyond e^2 at a time the curve becomes a cliff, from which no gradient leads back.
        candidate = parameters + np.clip(step, -2.0, 2.0)
        new_error = np.sum((predict(candidate) - target) ** 2)
        if not new_error <= error:
            damping *= 10.0
            if damping > 1e12:
                break
            continue
        converged = np.abs(step).max() < 1e-12
        parameters, error, damping = candidate, new_error, max(damping / 10.0, 1e-12)
        if converged:
            break
    return float(parameters[0]), float(parameters[1])


def _checked(
    logits: ArrayLike, ratings: ArrayLike, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(ratings, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"Logits have shape {x.shape} and ratings {y.shape}; give one of each for every text.")
    if not np.isfinite(x).all() or not np.isfinite(y).all():
        raise ValueError("A logit or a rating is NaN or infinite; calibration needs finite numbers.")
    if len(np.unique(x)) < 2:
        raise ValueError(f"The {len(x)} logits hold fewer than two different values; no curve can be fitted to them.")
    if y.min() < low or y.max() > high:
        raise ValueError(
            f"Ratings run from {y.min():g} to {y.max():g}, outside of the scale from {low:g} to {high:g}."
        )
    return x, y


@dataclass(frozen=True)
class LinearCalibration:
    """`rating = scale * logit + offset`: the way back for a model that has learned standardized ratings.

    Args:
        scale (`float`): Above 0.
        offset (`float`): In units of the rating.
    """

    scale: float
    offset: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale) or not math.isfinite(self.offset) or self.scale <= 0:
            raise ValueError(f"{self} is no calibration: both must be finite, and scale above 0.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The ratings that belong to the logits, in the same shape."""
        return self.scale * np.asarray(logits, dtype=np.float64) + self.offset


@dataclass(frozen=True)
class OrdinalCalibration:
    """The expected level under proportional odds (McCullagh 1980), `P(y <= k) = sigmoid(threshold_k - logit)`.

    Args:
        thresholds (`tuple[float, ...]` of length K - 1): Rising.
        levels (`tuple[float, ...]` of length K): The ratings, rising.
    """

    thresholds: tuple[float, ...]
    levels: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "thresholds", tuple(self.thresholds))  # a list, out of a JSON file
        object.__setattr__(self, "levels", tuple(self.levels))
        fits = len(self.levels) == len(self.thresholds) + 1 >= 2
        if not fits or any(list(values) != sorted(set(values)) for values in (self.thresholds, self.levels)):
            raise ValueError(f"{self} is no calibration: give K levels and K - 1 thresholds, both rising.")

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        """The expected ratings, in the same shape."""
        x = np.asarray(logits, dtype=np.float64)
        above = _sigmoid(x[..., None] - np.asarray(self.thresholds))  # P(y > k)
        return self.levels[0] + above @ np.diff(self.levels)


Calibration = LogisticCalibration | LinearCalibration | OrdinalCalibration
CALIBRATIONS: dict[str, type[Calibration]] = {
    "logistic": LogisticCalibration,
    "linear": LinearCalibration,
    "ordinal": OrdinalCalibration,
}
SETTINGS_FILE = "reward_config.json"


@dataclass(frozen=True)
class RewardModelSettings:
    """What a reward model needs besides its weights and tokenizer, as `reward_config.json` in its folder.

    Args:
        calibration ([`LogisticCalibration`], [`LinearCalibration`] or [`OrdinalCalibration`], *optional*):
            The map from logits to ratings. `None` leaves logits as they are.
        append_eos (`bool`, *optional*, defaults to `False`):
            Whether the tokenizer's end-of-sequence token is written behind each plain text, as TRL's `RewardTrainer`
            does. `False` where the tokenizer puts it there by itself, as that beside our models does. (A chat
            template ends its turns itself.)
        max_length (`int`, *optional*):
            Tokens the model was trained to read. `None` means as many as it can.
        labels (`dict`, *optional*):
            What each output counts in the score, of a model that has several.
        probabilities (`bool`, *optional*, defaults to `False`):
            Whether outputs become probabilities before they are weighed.
        step_token (`str`, *optional*):
            Of a process reward model: the mark behind each step.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given besides the messages, as in training. A column of that name wins.
    """

    calibration: Calibration | None = None
    append_eos: bool = False
    max_length: int | None = None
    labels: Mapping[int | str, float] | None = None
    probabilities: bool = False
    step_token: str | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None

    def save(self, folder: str | Path) -> Path:
        """Write the settings into a model's folder, which is made if needed, and return the file's path."""
        data = asdict(self)
        if self.calibration is not None:
            kind = next(name for name, of_kind in CALIBRATIONS.items() if isinstance(self.calibration, of_kind))
            data["calibration"] = {"kind": kind, **data["calibration"]}
        if self.labels is None:  # of most models: there is one output, and it is the score
            del data["labels"]
        if self.step_token is None:
            del data["step_token"]
        if self.labels is None and self.step_token is None:
            del data["probabilities"]
        if self.chat_template_kwargs is None:
            del data["chat_template_kwargs"]
        path = Path(folder) / SETTINGS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path) -> "RewardModelSettings":
        """Read the settings of a folder or of a model id of the Hub; the defaults where it has none.

        Raises:
            `ValueError`: if the file is not JSON, or holds keys or values that are not known.
        """
        path = find_file(str(folder), SETTINGS_FILE)
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
