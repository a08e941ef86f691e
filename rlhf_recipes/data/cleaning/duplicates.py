"""Copies of rows: of one another, of held-out rows, and splits that keep together what belongs together."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from rlhf_recipes.data.cleaning.filters import SEPARATOR, Counts, selected, text_columns, text_keys
from rlhf_recipes.data.columns import require_columns
from rlhf_recipes.data.feedback.formats import SAID
from rlhf_recipes.data.preprocessing import SPLITS, normalize_text, split_of
from rlhf_recipes.imports import optional

SHINGLE = 5  # characters; a change of one letter touches five shingles
HIGHEST = 0.95  # of the hashed index, which has too few bands for more; candidates are compared exactly anyway


class _Texts:
    """Texts that were added, and which of them another one is a copy of.

    `threshold` is the similarity from which on texts are copies; without it they are only where they are the same.
    """

    def __init__(self, threshold: float | None = None, permutations: int = 128, seed: int = 0) -> None:
        self.first: dict[str, int] = {}
        self.threshold = threshold
        if threshold is None:
            return
        self.texts: dict[int, str] = {}
        self.library = optional("datasketch", "near_duplicates", extra="feedback")
        self.sketch = functools.lru_cache(1)(
            functools.partial(_sketch, self.library, num_perm=permutations, seed=seed)
        )
        # Candidates are checked exactly: one too many costs a moment, one too few is a copy that stays.
        self.index = self.library.MinHashLSH(
            threshold=min(threshold, HIGHEST), num_perm=permutations, weights=(0.02, 0.98)
        )

    def add(self, number: int, key: str) -> None:
        self.first.setdefault(key, number)
        if self.threshold is not None:
            self.index.insert(number, self.sketch(key))
            self.texts[number] = key

    def find(self, key: str) -> tuple[int | None, bool]:
        """The number of the text that is most similar, the first of several, and whether it is the same."""
        if key in self.first:
            return self.first[key], True
        if self.threshold is None:
            return None, False
        found = [(-_similarity(key, self.texts[number]), number) for number in self.index.query(self.sketch(key))]
        similarity, number = min(found, default=(0.0, 0))
        return (number if -similarity >= self.threshold else None), False

    def first_of(self, dataset: Dataset, columns: Sequence[str] | None) -> tuple[Dataset, Counts]:
        """The rows without copies of rows before them."""
        kept, copy_of = [], {}
        for number, key in enumerate(text_keys(dataset, columns)):
            twin, _ = self.find(key)
            if twin is None:
                self.add(number, key)
                kept.append(number)
            else:
                copy_of[number] = twin
        said = [name for name in SAID if name in dataset.column_names]
        rows = dataset.select_columns(said)
        differ = sum(rows[copy] != rows[first] for copy, first in copy_of.items()) if said else 0
        return selected(dataset, kept, {"copies with other feedback": differ} if said else None)


@dataclass(frozen=True)
class Deduplicate:
    """Keep the first of all rows whose texts are the same after `normalize_text`."""

    columns: tuple[str, ...] | None = None  # by which rows are the same; default: all texts
    name: str = "duplicates"

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        return _Texts().first_of(dataset, self.columns)


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
    """

    threshold: float = 0.8  # the similarity from which on rows are copies, up to 1
    columns: tuple[str, ...] | None = None  # by which rows are compared; default: all texts
    permutations: int = 128  # hashes of a row; more miss less and take longer
    seed: int = 0
    name: str = "near duplicates"

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        return _Texts(self.threshold, self.permutations, self.seed).first_of(dataset, self.columns)


def _sketch(library: Any, key: str, num_perm: int, seed: int) -> Any:
    # Of rows whose texts are all similar, the shingles of all texts together are at least as similar.
    texts = enumerate(key.split(SEPARATOR))
    shingles = [f"{place}{SEPARATOR}{shingle}" for place, text in texts for shingle in _shingles(text)]
    sketch = library.MinHash(num_perm=num_perm, seed=seed)
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

    With `columns=("prompt",)` that is every row about a held-out prompt.
    """

    held_out: Dataset = field(repr=False)  # they are not changed
    threshold: float | None = None  # take out near copies as well, as in `NearDuplicates`
    columns: tuple[str, ...] | None = None  # by which rows are the same; default: all texts
    permutations: int = 128
    seed: int = 0
    name: str = "leakage"

    def __post_init__(self) -> None:
        if self.threshold is not None:
            _check_threshold(self.threshold)

    def __call__(self, dataset: Dataset) -> tuple[Dataset, Counts]:
        columns = text_columns(dataset, self.columns)
        require_columns(self.held_out, columns, "Looking for leaks in the held-out rows")
        held_out = _Texts(self.threshold, self.permutations, self.seed)
        for number, key in enumerate(text_keys(self.held_out, columns)):
            if key not in held_out.first:
                held_out.add(number, key)
        kept, exact, alike, met = [], 0, 0, set()
        for number, key in enumerate(text_keys(dataset, columns)):
            twin, same = held_out.find(key)
            if twin is None:
                kept.append(number)
                continue
            exact, alike = exact + same, alike + (not same)
            met.add(twin)
        notes = {"exact copies": exact, "near copies": alike, "held-out texts met": len(met)}
        return selected(dataset, kept, notes)


def split_by_group(
    dataset: Dataset, column: str, splits: Mapping[str, float] = SPLITS
) -> tuple[dict[str, Dataset], Counts]:
    """Divide rows such that all rows of a group are on the same side, by nothing but the group's own value.

    See [`~rlhf_recipes.data.preprocessing.split_of`]. The shares are of groups, not of rows: with few or unequal
    groups the sizes differ from them, and a split may be empty.

    Returns:
        `tuple[dict[str, Dataset], Counts]`: the rows of each split, and how many rows and groups are in it.

    Raises:
        `ValueError`: if there is no such column, or a row has no group.
    """
    require_columns(dataset, [column], "A split by groups")
    groups = []
    for number, value in enumerate(dataset.with_format(None)[column]):
        if value is None:
            raise ValueError(
                f"Row {number} has no {column!r}, so it is in no group. Fill it in, or leave the row out."
            )
        groups.append(normalize_text(value if isinstance(value, str) else json.dumps(value)))
    split = [split_of(group, splits) for group in groups]
    members = {name: [number for number, found in enumerate(split) if found == name] for name in splits}
    notes: dict[str, int | str] = {
        name: f"{len(rows)} rows of {len({groups[number] for number in rows})} groups"
        for name, rows in members.items()
    }
    return {name: dataset.select(rows) for name, rows in members.items()}, Counts(len(dataset), len(dataset), 0, notes)


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"near_duplicates is {threshold}; give a similarity above 0, up to 1, such as 0.8.")
