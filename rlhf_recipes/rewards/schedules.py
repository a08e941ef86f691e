"""Weights of rewards that change while a run goes on."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal


@dataclass(frozen=True)
class WeightSchedule:
    """A weight that goes from `start` to `end` while the run's progress goes from `begin` to `until`.

    With x = (progress - begin) / (until - begin), held within 0 and 1, and d = end - start:

    - `"linear"`: `start + d * x`
    - `"cosine"`: `start + d * (1 - cos(pi * x)) / 2`, slow at both ends
    - `"step"`: `start`, and from `until` on `end`

    Progress is `global_step / max_steps` when the rollout begins, so that a run that is resumed goes on with the same
    weights; one that is made longer when it is resumed does not. In YAML:

    ```yaml
    - {func: LengthWindow, args: {maximum: 40}, weight: {start: 0.0, end: 1.0, until: 0.5}}
    ```

    Args:
        start (`float`): The weight until `begin`.
        end (`float`): The weight from `until` on.
        begin (`float`, *optional*, defaults to 0.0): Share of the run, from 0 to 1.
        until (`float`, *optional*, defaults to 1.0): Share of the run, above `begin`.
        shape (`"linear"`, `"cosine"` or `"step"`, *optional*, defaults to `"linear"`): The way between.
    """

    start: float
    end: float
    begin: float = 0.0
    until: float = 1.0
    shape: Literal["linear", "cosine", "step"] = "linear"

    def __post_init__(self) -> None:
        for name in ("start", "end", "begin", "until"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"The weight schedule's {name} is {value!r}; it must be a finite number.")
        if not 0 <= self.begin < self.until <= 1:
            raise ValueError(
                f"The weight schedule goes from begin {self.begin:g} to until {self.until:g}; these are shares of the "
                "run, from 0 to 1, begin below until."
            )
        if self.shape not in ("linear", "cosine", "step"):
            raise ValueError(f"The weight schedule's shape is {self.shape!r}; known are linear, cosine and step.")

    def __call__(self, progress: float) -> float:
        x = min(max((progress - self.begin) / (self.until - self.begin), 0.0), 1.0)
        if self.shape == "cosine":
            x = (1 - math.cos(math.pi * x)) / 2
        elif self.shape == "step":
            x = float(x >= 1)
        return self.start + (self.end - self.start) * x

    @classmethod
    def from_mapping(cls, given: Mapping[str, Any], of: str) -> "WeightSchedule":
        """The schedule that a YAML file describes for the reward named `of`; `ValueError` says what is unknown."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(given) - set(known))
        if unknown or not {"start", "end"} <= set(given):
            raise ValueError(
                f"The weight of reward {of!r} is {dict(given)}. A weight is a number, or a schedule with start and "
                f"end, and where wanted {', '.join(known[2:])}."
            )
        return cls(**given)


def progress_of(trainer_state: Any) -> float:
    """How far a run has come, from 0 to 1; 0 where there is no trainer, or it does not know its length."""
    steps = getattr(trainer_state, "max_steps", None) or 0
    return min(trainer_state.global_step / steps, 1.0) if steps > 0 else 0.0
