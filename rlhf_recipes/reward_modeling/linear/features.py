"""Text as numbers that a person can name: what a linear reward model, or any other regressor, reads.

A feature has a name, a meaning in one line and a unit. Features that are computed together are a group, a frozen
dataclass whose fields are its settings:

```python
features = FeatureSet((Length(), Sentiment(), Keywords(("subtle", "warm"), label="praise"), BagOfWords(max_n=2)))
features = features.fit(prompts, completions)  # a bag of words learns its vocabulary
matrix = features.matrix(prompts, completions)  # (N, features)
```

Words are those of `rlhf_recipes.words`, of any script. Every value is a finite number for every text: what a
group says where there is nothing to count is in its docstring. A group of your own is a subclass of [`FeatureGroup`].
"""

import functools
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rlhf_recipes.errors import RewardError
from rlhf_recipes.imports import did_you_mean, find_function
from rlhf_recipes.reward_modeling.linear.groups import (
    Feature,
    FeatureGroup,
    Keywords,
    Length,
    Marks,
    Matrix,
    PromptOverlap,
    Readability,
    Reading,
    Repetition,
    Sentiment,
    Variety,
)
from rlhf_recipes.reward_modeling.linear.learned_groups import BagOfWords, Embedding
from rlhf_recipes.texts import Text, as_text, prompt_and_completion

MAX_DENSE = 1000  # more columns than these stay sparse, if any group is
NAMED: tuple[FeatureGroup, ...] = (
    Length(), Readability(), Variety(), Marks(), Sentiment(), Repetition(), PromptOverlap(),
)  # fmt: skip
GROUPS = (*map(type, NAMED), Keywords, BagOfWords, Embedding)


@dataclass(frozen=True)
class FeatureSet:
    """The features of a model, group after group.

    Args:
        groups (`Sequence[FeatureGroup]`, *optional*):
            Default: all of this module that need neither a list, nor a vocabulary, nor an encoder.
        completion_only (`bool`, *optional*, defaults to `False`):
            Whether features are of the completion alone. By default they are of prompt and completion as one text.

    Raises:
        `ValueError`: if there is no group, or two features have the same name.
    """

    groups: tuple[FeatureGroup, ...] = NAMED
    completion_only: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(map(make_group, self.groups)))
        if not self.groups:
            raise ValueError("A model needs one group of features at least.")
        names = Counter(feature.name for feature in self.features)
        twice = [name for name, count in names.items() if count > 1]
        if twice:
            raise ValueError(f"Several features are named {', '.join(twice[:5])}; Keywords has a label to change.")

    @functools.cached_property
    def features(self) -> tuple[Feature, ...]:
        """One for each column, in order."""
        return tuple(feature for group in self.groups for feature in group.features)

    def fit(self, prompts: Sequence[Text], completions: Sequence[Text]) -> "FeatureSet":
        """Learn from training texts what has to be learned, such as a vocabulary."""
        readings = self.readings(prompts, completions)
        if not readings:
            raise ValueError("There are no texts to learn features from.")
        return replace(self, groups=tuple(group.fit(readings) for group in self.groups))

    def readings(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[Reading]:
        """Rows of text or messages, as the groups read them."""
        rows = []
        for prompt, completion in zip(prompts, completions, strict=True):
            start, text = prompt_and_completion(prompt, completion)
            rows.append(Reading(as_text(prompt), text, text if self.completion_only else start + text))
        return rows

    def blocks(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[Matrix]:
        """The numbers of each group. `[(N, F_group)]`

        Raises:
            `RewardError`: if a group gives NaN or infinity; it names the feature and the row.
        """
        readings = self.readings(prompts, completions)
        blocks = [group.matrix(readings) for group in self.groups]
        for group, block in zip(self.groups, blocks, strict=True):
            _check_finite(group, block, readings)
        return blocks

    def matrix(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Matrix:
        """The numbers of all groups, side by side; sparse where a group is and there are many columns. `(N, F)`"""
        return beside(self.blocks(prompts, completions))

    def to_json(self) -> dict[str, Any]:
        """Settings and what was learned, as JSON can hold them."""
        groups = [{"kind": _kind(group), **asdict(group)} for group in self.groups]
        return {"completion_only": self.completion_only, "groups": groups}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], trust: bool = False) -> "FeatureSet":
        """What `to_json` has written.

        Args:
            trust (`bool`, *optional*, defaults to `False`): Whether code that the file names, of groups that are not
                of this module, may be imported.
        """
        groups = []
        for entry in data["groups"]:
            kind = entry["kind"]
            if ":" in kind and not trust:
                raise ValueError(f"The features {kind!r} are code from elsewhere. Give trust=True if you know it.")
            groups.append(make_group({kind: {key: value for key, value in entry.items() if key != "kind"}}))
        return cls(tuple(groups), data["completion_only"])


class Contribution(NamedTuple):
    """What one feature did to one score: its value (`None` for an embedding), and what it added or took away."""

    feature: str
    value: float | None
    contribution: float


@dataclass(frozen=True)
class Coefficient:
    """The weight of one feature, in two units: score for one unit of it, and score for one standard deviation.

    Only the second can be compared between features. `low` and `high` are its 95% interval, where `bootstrap` was
    called.
    """

    feature: Feature
    per_unit: float
    per_std: float
    low: float | None = None
    high: float | None = None


def make_group(spec: FeatureGroup | str | Mapping[str, Any]) -> FeatureGroup:
    """A group by what a YAML file says: `Length`, or `{BagOfWords: {max_n: 2}}`, or `my_features.py:MyGroup`.

    Raises:
        `ValueError`: if there is no such group or setting, or one that is needed is missing.
    """
    if isinstance(spec, FeatureGroup):
        return spec
    entry: Mapping[str, Any] = {spec: {}} if isinstance(spec, str) else spec
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"A group of features is a name, or one name with its settings; given was {spec!r}.")
    ((name, settings),) = entry.items()
    known = {group.__name__: group for group in GROUPS}
    made: Any = find_function(name) if ":" in name else known.get(name)
    if made is None:
        raise ValueError(
            f"There are no features {name!r}{did_you_mean(name, list(known))} There are {', '.join(known)}, or "
            "file.py:Class."
        )
    settings = dict(settings or {})
    allowed = {item.name: item for item in fields(made)}
    unknown = [key for key in settings if key not in allowed]
    needed = [key for key, item in allowed.items() if item.default is MISSING and item.default_factory is MISSING]
    missing = [key for key in needed if key not in settings]
    if unknown or missing:
        what = f"no setting {', '.join(unknown)}" if unknown else f"to be given {', '.join(missing)}"
        raise ValueError(f"{name} has {what}. Its settings are {', '.join(allowed) or 'none'}.")
    group: FeatureGroup = made(**settings)
    return group


def dense(block: Matrix) -> NDArray[np.float64]:
    """A matrix as an array, whether it is sparse or not."""
    array: NDArray[np.float64] = block if isinstance(block, np.ndarray) else block.toarray()
    return array


def beside(blocks: Sequence[Matrix]) -> Matrix:
    """Blocks side by side: a dense array, or a sparse one where a block is sparse and the columns are many."""
    if all(isinstance(block, np.ndarray) for block in blocks):
        return np.hstack(blocks)
    if sum(block.shape[1] for block in blocks) <= MAX_DENSE:
        return np.hstack([dense(block) for block in blocks])
    from scipy.sparse import csr_matrix, hstack  # no model without a bag of words needs it

    return csr_matrix(hstack(blocks, format="csr"))


def _kind(group: FeatureGroup) -> str:
    cls = type(group)
    if cls in GROUPS:
        return cls.__name__
    module = sys.modules[cls.__module__]
    # A module that was made of a file (`find_function`) can be found by the file alone.
    where = module.__file__ if module.__name__.startswith("_rewards_in_") else module.__name__
    return f"{where}:{cls.__qualname__}"


def _check_finite(group: FeatureGroup, block: Matrix, readings: Sequence[Reading]) -> None:
    if np.isfinite(block if isinstance(block, np.ndarray) else block.data).all():
        return
    values = dense(block)
    row, column = np.argwhere(~np.isfinite(values))[0]
    raise RewardError(
        f"The feature {group.features[column].name!r} is {values[row, column]} for row {row} "
        f"({readings[row].text[:80]!r}). Features must be finite numbers."
    )
