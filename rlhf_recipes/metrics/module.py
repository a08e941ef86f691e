"""What the modules have in common: two columns of numbers go in, and a function of this package makes figures."""

from typing import Any, ClassVar

import datasets
import evaluate


class OfColumns(evaluate.Metric):
    """A module of the library `evaluate`; a subclass says what it computes.

    Args:
        description, inputs, citation (`str`): As `evaluate` shows them.
        configurations (`tuple[str, ...]`): Names that may be asked for; none where there is one sort of input.
    """

    description: ClassVar[str]
    inputs: ClassVar[str]
    citation: ClassVar[str]
    configurations: ClassVar[tuple[str, ...]] = ()

    def _info(self) -> Any:
        if self.configurations and self.config_name not in ("default", *self.configurations):
            name, names = type(self).__module__.rpartition(".")[2], " and ".join(self.configurations)
            raise ValueError(f"{name} has the configurations {names}, not {self.config_name!r}.")
        column = datasets.Value("float64")
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=self.inputs,
            features=datasets.Features({"predictions": column, "references": column}),
        )
