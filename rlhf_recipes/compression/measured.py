"""What was measured of a model on held-out rows, row by row, so that two models can be compared in pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf_recipes.statistics import Floats, Units

Column = tuple[list[float], list[float]]  # of each row a sum, and of how many


@dataclass(frozen=True)
class Measured:
    """Means over held-out rows.

    Args:
        columns (`dict`): By name. A name in `exponentials` is shown as the exponential of its mean.
        exponentials (`list`): Such as perplexity, whose column holds negative log-probabilities.
        shares (`list`): Those that lie between 0 and 1.
        units (`list`, *optional*): Of each row, what it hangs together by; one list, or two where rows are pairs.
    """

    columns: Mapping[str, Column]
    exponentials: Sequence[str] = ()
    shares: Sequence[str] = ()
    units: Sequence[Sequence[Any]] | None = None

    @property
    def figures(self) -> dict[str, Any]:
        """Each figure, and under `<name>_ci95` its interval."""
        found: dict[str, Any] = {}
        for name, (sums, counts) in self.columns.items():
            mean, influences = self._units(counts).mean(np.asarray(sums))
            ends = (0.0, 1.0) if name in self.shares else None
            interval = self._units(counts).interval(mean, influences, ends)
            found |= {
                name: self._shown(name, mean),
                f"{name}_ci95": interval and [self._shown(name, e) for e in interval],
            }
        return found

    def against(self, other: "Measured") -> dict[str, Any]:
        """For each figure, this one's minus the other's on the same rows, with its interval; of exponentials the
        quotient."""
        found: dict[str, Any] = {}
        for name, (sums, counts) in self.columns.items():
            theirs, same = other.columns[name]
            if list(same) != list(counts):
                raise ValueError(f"Two models were measured on other rows ({name}), and cannot be compared in pairs.")
            units = self._units(counts)
            mean, influences = units.mean(np.asarray(sums) - np.asarray(theirs))
            interval = units.interval(mean, influences, None)
            found |= {
                name: self._shown(name, mean),
                f"{name}_ci95": interval and [self._shown(name, e) for e in interval],
            }
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> "Measured":
        """Out of what [`to_dict`] gave."""
        columns = {name: (list(sums), list(counts)) for name, (sums, counts) in given["columns"].items()}
        return cls(columns, given["exponentials"], given["shares"], given["units"])

    def _shown(self, name: str, value: float) -> float:
        return math.exp(value) if name in self.exponentials else float(value)

    def _units(self, counts: Sequence[float] | Floats) -> Units:
        first, second = [*(self.units or ()), None, None][:2]
        return Units.of(len(counts), first, second, counts)
