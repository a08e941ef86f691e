"""What the rewards for verifiable answers share: they read a reference, compare, and count what they cannot read."""

import logging
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, ClassVar, TypeAlias

from rlhf_recipes.errors import RewardError
from rlhf_recipes.rewards.rules import Rule, column_values
from rlhf_recipes.rewards.verifiable.statement import WHERE, Where
from rlhf_recipes.statistics import is_finite
from rlhf_recipes.texts import Text, as_text

logger = logging.getLogger(__name__)
Reference: TypeAlias = str | int | float | Fraction
_said: set[tuple[str, str]] = set()  # name and column of the rewards that have said that they cannot read a reference


@dataclass(frozen=True)
class VerifiableAnswer(Rule):
    """A reward that compares what a completion states with a reference: a subclass defines `compare`.

    A row whose reference is `None` or empty gets `None`, and so does one whose reference the reward cannot read; how
    many these are is logged as `<name>/unread_references`, and said once.
    """

    column: str = "answer"
    where: Where = "anywhere"

    reads: ClassVar[str] = "an answer"  # what a reference must be

    def __post_init__(self) -> None:
        if self.where not in WHERE:
            raise ValueError(f"{type(self).__name__} looks {', '.join(WHERE)}, not {self.where!r}.")

    def compare(self, completion: str, reference: Reference) -> float | None:
        """1 for a right answer, 0 for a wrong one or none, `None` where the reference cannot be read."""
        raise NotImplementedError

    def __call__(self, completions: Sequence[Text], **kwargs: Any) -> list[float | None]:
        given = column_values(kwargs, self.column, self.__name__)
        references = [self._checked(reference, row) for row, reference in enumerate(given)]
        values = [
            None if reference is None else self.compare(as_text(completion), reference)
            for completion, reference in zip(completions, references, strict=True)
        ]
        unread = [r for r, value in zip(references, values, strict=True) if r is not None and value is None]
        if unread:
            self._say(unread, len(values))
        if unread and kwargs.get("log_metric") is not None:
            kwargs["log_metric"](f"{self.__name__}/unread_references", float(len(unread)))
        return values

    def _checked(self, reference: Any, row: int) -> Reference | None:
        if reference is None or (isinstance(reference, str) and not reference.strip()):
            return None
        if isinstance(reference, str):
            return reference
        if isinstance(reference, (Decimal, Fraction)):
            return Fraction(reference) if not isinstance(reference, Decimal) or reference.is_finite() else None
        plain = reference.item() if hasattr(reference, "item") and getattr(reference, "ndim", 0) == 0 else reference
        if isinstance(plain, numbers.Integral) and not isinstance(plain, bool):
            return int(plain)
        if is_finite(plain):
            return float(plain)
        raise RewardError(
            f"Reward {self.__name__!r} cannot use the reference in row {row}, column {self.column!r}: it is "
            f"{str(reference)[:80]}, of type {type(reference).__name__}. A reference is a text or a finite number, "
            "and None or empty where the row has none. Make one of it before training, with a map over the dataset."
        )

    def _say(self, unread: list[Reference], rows: int) -> None:
        if (self.__name__, self.column) in _said:
            return
        _said.add((self.__name__, self.column))
        logger.warning(
            "%s: %d of %d references in the column %r are not %s, the first is %.120r. Such rows get None, which "
            "means 'does not apply'; their number is logged as %s/unread_references. This is said once.",
            *(self.__name__, len(unread), rows, self.column, self.reads, unread[0], self.__name__),
        )
