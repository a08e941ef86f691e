"""Copies of rows: of one another, of held-out rows, and splits that keep together what belongs together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.cleaning.texts import SEPARATOR, Counts, selected, text_columns, text_keys
from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.preprocessing import SPLITS, normalize_text, split_of
from rlhf_recipes.imports import optional

# What people said of the texts: copies of a text that differ in one of these do not agree.
SAID = (
    "score", "label", "votes", "scores", "ranks", "best", "worst", "labels", "chosen_votes", "rejected_votes",
    "margin", "target", "clicks", "views", "dwell_seconds",
)  # fmt: skip
SHINGLE = 5  # characters; a change of one letter touches five shingles
HIGHEST = 0.95  # of the hashed index, which has too few bands for more; candidates are compared exactly anyway


@dataclass(frozen=True)
class Deduplicate:
    """Keep the first of all rows whose texts are the same after `normalize_text`.

    Args:
        columns (`tuple[str, ...]`, *optional*): By which rows are the same. Default: all texts.
    """

    columns: tuple[str, ...] | None = None
    name: str = "duplicates"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        first: dict[str, int] = {}
        copy_of: dict[int, int] = {}
        for number, key in enumerate(text_keys(dataset, self.columns)):
            if first.setdefault(key, number) != number:
                copy_of[number] = first[key]
        return selected(dataset, list(first.values()), _disagreement(dataset, copy_of))


@dataclass(frozen=True)
class NearDuplicates:
    """Keep the first of all rows that are nearly the same.

    Two texts are compared by the Jaccard similarity of their character 5-grams, after `normalize_text`: what they
    share over what they have in all. Two rows are as similar as those of their texts that differ most, so that two
    answers to one long prompt are not taken for copies.

    MinHash and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
    chapter 3) find candidates, and the similarity of each is then computed exactly. So no row is left out wrongly, and
    few copies are missed: with the defaults 2% of those at 0.8, and 0.1% of those at 0.85. Rows are compared with
    those that were kept before them, so that their order counts. Look before you leave rows out: short texts that are
    much alike may say the opposite ("one of the best", "one of the worst").

    Args:
        threshold (`float`, *optional*, defaults to 0.8): The similarity from which on rows are copies, up to 1.
        columns (`tuple[str, ...]`, *optional*): By which rows are compared. Default: all texts.
        permutations (`int`, *optional*, defaults to 128): Hashes of a row. More miss less and take longer.
        seed (`int`, *optional*, defaults to 0): Of the hashes.
    """

    threshold: float = 0.8
    columns: tuple[str, ...] | None = None
    permutations: int = 128
    seed: int = 0
    name: str = "near duplicates"

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        index = _Near(self.threshold, self.permutations, self.seed)
        copy_of: dict[int, int] = {}
        for number, key in enumerate(text_keys(dataset, self.columns)):
            twin = index.find_or_add(number, key)
            if twin is not None:
                copy_of[number] = twin
        kept = [number for number in range(len(dataset)) if number not in copy_of]
        return selected(dataset, kept, _disagreement(dataset, copy_of))


class _Near:
    """Texts that were added, and which of them is most similar to another one."""

    def __init__(self, threshold: float, permutations: int, seed: int) -> None:
        self.threshold = threshold
        self.settings = {"num_perm": permutations, "seed": seed}
        self.sketch = optional("datasketch", "near_duplicates", extra="feedback")
        # Candidates are checked exactly: one too many costs a moment, one too few is a copy that stays.
        self.index = self.sketch.MinHashLSH(
            threshold=min(threshold, HIGHEST), num_perm=permutations, weights=(0.02, 0.98)
        )
        self.texts: dict[int, str] = {}

    def find_or_add(self, number: int, text: str) -> int | None:
        twin, sketch = self._find(text)
        if twin is None:
            self._add(number, text, sketch)
        return twin

    def find(self, text: str) -> int | None:
        """The number of the text that is most similar, the first of several, if it is similar enough."""
        return self._find(text)[0]

    def add(self, number: int, text: str) -> None:
        self._add(number, text, self._sketch(text))

    def _find(self, text: str) -> tuple[int | None, Any]:
        sketch = self._sketch(text)
        found = [(-_similarity(text, self.texts[number]), number) for number in self.index.query(sketch)]
        best = min(found, default=(0.0, 0))
        return (best[1] if -best[0] >= self.threshold else None), sketch

    def _add(self, number: int, text: str, sketch: Any) -> None:
        self.index.insert(number, sketch)
        self.texts[number] = text

    def _sketch(self, key: str) -> Any:
        # Of rows whose texts are all similar, the shingles of all texts together are at least as similar.
        texts = enumerate(key.split(SEPARATOR))
        shingles = [f"{place}{SEPARATOR}{shingle}" for place, text in texts for shingle in _shingles(text)]
        sketch = self.sketch.MinHash(**self.settings)
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in shingles])
        return sketch


def _similarity(one: str, other: str) -> float:
    """That of the two texts of two keys which differ most; of another number of texts, none."""
    texts, others = one.split(SEPARATOR), other.split(SEPARATOR)
    if len(texts) != len(others):
        return 0.0
    return min(_jaccard(_shingles(text), _shingles(twin)) for text, twin in zip(texts, others, strict=True))


def _jaccard(one: frozenset[str], other: frozenset[str]) -> float:
    return len(one & other) / len(one | other)


def _shingles(text: str) -> frozenset[str]:
    return frozenset(text[start : start + SHINGLE] for start in range(max(len(text) - SHINGLE + 1, 1)))


@dataclass(frozen=True)
class Leakage:
    """Take out of these rows what is in held-out rows too, so that a test tests what was not learned.

    Args:
        held_out ([`~datasets.Dataset`]): Rows of a test split; they are not changed.
        threshold (`float`, *optional*): Take out near copies as well, as in [`NearDuplicates`].
        columns (`tuple[str, ...]`, *optional*):
            By which rows are the same. Default: all texts. `("prompt",)` takes out every row about a held-out prompt.
    """

    held_out: Dataset = field(repr=False)
    threshold: float | None = None
    columns: tuple[str, ...] | None = None
    permutations: int = 128
    seed: int = 0
    name: str = "leakage"

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = text_columns(dataset, self.columns)
        require_columns(self.held_out, columns, "Looking for leaks in the held-out rows")
        held_out: dict[str, int] = {}
        for number, key in enumerate(text_keys(self.held_out, columns)):
            held_out.setdefault(key, number)
        near = None
        if self.threshold is not None:
            near = _Near(self.threshold, self.permutations, self.seed)
            for key, number in held_out.items():
                near.add(number, key)
        kept, exact, alike, met = [], 0, 0, set()
        for number, key in enumerate(text_keys(dataset, columns)):
            twin = held_out.get(key)
            exact += twin is not None
            if twin is None and near is not None:
                twin = near.find(key)
                alike += twin is not None
            if twin is None:
                kept.append(number)
            else:
                met.add(twin)
        notes = {"exact copies": exact, "near copies": alike, "held-out texts met": len(met)}
        return selected(dataset, kept, notes)


def split_by_group(
    dataset: Dataset, column: str, splits: Mapping[str, float] = SPLITS
) -> tuple[dict[str, Dataset], Counts]:
    """Divide rows such that all rows of a group are on the same side, by nothing but the group's own value.

    See [`~rlhf_recipes.data.preprocessing.split_of`]. The shares are of groups, not of rows: with few or unequal
    groups the sizes differ from them, and a split may be empty.

    Args:
        dataset ([`~datasets.Dataset`]): The rows.
        column (`str`): What makes a group: a prompt, an author, a number.
        splits (`Mapping[str, float]`, *optional*): Name and share of each split.

    Returns:
        `tuple[dict[str, Dataset], Counts]`: the rows of each split, and how many rows and groups are in it.

    Raises:
        `ValueError`: if there is no such column, or a row has no group.
    """
    require_columns(dataset, [column], "A split by groups")
    members: dict[str, list[int]] = {name: [] for name in splits}
    groups: dict[str, set[str]] = {name: set() for name in splits}
    for number, value in enumerate(dataset.with_format(None)[column]):
        if value is None:
            raise ValueError(
                f"Row {number} has no {column!r}, so it is in no group. Fill it in, or leave the row out."
            )
        group = normalize_text(value if isinstance(value, str) else json.dumps(value))
        name = split_of(group, splits)
        members[name].append(number)
        groups[name].add(group)
    notes: dict[str, int | str] = {
        name: f"{len(rows)} rows of {len(groups[name])} groups" for name, rows in members.items()
    }
    return {name: dataset.select(rows) for name, rows in members.items()}, Counts(len(dataset), len(dataset), 0, notes)


def _disagreement(dataset: Dataset, copy_of: Mapping[int, int]) -> dict[str, int]:
    """Of how many copies people said something else than of the row that stays."""
    said = [name for name in SAID if name in dataset.column_names]
    if not said:
        return {}
    rows = dataset.select_columns(said)
    return {"copies with other feedback": sum(rows[copy] != rows[first] for copy, first in copy_of.items())}


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates is {threshold}; give a similarity above 0, up to 1, such as 0.8.")
