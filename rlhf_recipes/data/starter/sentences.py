"""From the two files of a set of rated sentences to rows with every rater's vote, in three splits.

```
sentences   id <tab> mean rating <tab> text                                 after a header
votes       id <tab> mean rating <tab> standard deviation <tab> [2, 3, ...] in any order
```

This is the form in which Hutto and Gilbert published the ratings behind VADER (ICWSM 2014). An id is a number; where
sentences come from longer documents it is `DOCUMENT_SENTENCE`. Nothing is left out without being counted:

| count | what it is |
|---|---|
| `sentences` | ids in the file of sentences |
| `broken_lines` | lines of either file that cannot be read, or whose id came before |
| `in_one_file_only` | ids that the other file lacks |
| `mean_mismatches` | rows whose votes do not average to the published rating |
| `duplicates_removed` | sentences that are there already, but for case, spaces and HTML entities |
| `documents` | documents of the rows that are left, where sentences belong to documents |
| `rows_train`, `rows_validation`, `rows_test` | what is left |
"""

import html
import json
import math
import statistics
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from rlhf_recipes.data.preprocessing import SPLITS, deduplicate, split_of, tidy_text

Row: TypeAlias = dict[str, Any]
Counts: TypeAlias = dict[str, int]
Value = TypeVar("Value")
HIGHEST = 4  # votes run from -4 to 4
TOLERANCE = 1e-6  # published means have nine digits behind the point


def build_splits(
    sentences: str, votes: str, document_prefix: str | None = None
) -> tuple[dict[str, list[Row]], Counts]:
    """Join the two files, leave out copies, and put each row into its split.

    A `document_prefix` is given where sentences belong to documents. Each row then has a column `group`, the prefix
    and its document's number, and all sentences of a document are in one split. Else the split is that of the text.

    Returns:
        `tuple[dict, dict]`: the rows of each split, and the counts of the table above.
    """
    joined, counts = join_ratings(sentences, votes, document_prefix)
    rows, counts["duplicates_removed"] = deduplicate(joined, "completion")
    splits: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        splits[split_of(row["completion" if document_prefix is None else "group"])].append(row)
    if document_prefix is not None:
        counts["documents"] = len({row["group"] for row in rows})
    return splits, counts | {f"rows_{name}": len(of_split) for name, of_split in splits.items()}


def join_ratings(sentences: str, votes: str, document_prefix: str | None = None) -> tuple[list[Row], Counts]:
    """Join the two files by id.

    Where the votes of an id do not average to its published rating, one of the files is wrong, and nothing says which:
    such a row is left out.

    Returns:
        `tuple[list[dict], dict]`: rows with `completion`, `score` (the mean vote), `votes` and perhaps `group`, in
        order of id, so that neither file's order decides which copy of a sentence stays; and the first four counts of
        the table above.
    """
    rated, broken_sentences = _read(sentences.splitlines()[1:], _sentence)
    voted, broken_votes = _read(votes.splitlines(), _votes)
    rows = []
    mismatches = 0
    for key in sorted(rated.keys() & voted.keys(), key=_in_order):
        (rating, text), of_text = rated[key], voted[key]
        score = statistics.fmean(of_text)
        if abs(score - rating) > TOLERANCE:
            mismatches += 1
            continue
        row = {"completion": text, "score": score, "votes": of_text}
        rows.append(row if document_prefix is None else row | {"group": f"{document_prefix}-{key.partition('_')[0]}"})
    return rows, {
        "sentences": len(rated),
        "broken_lines": broken_sentences + broken_votes,
        "in_one_file_only": len(rated.keys() ^ voted.keys()),
        "mean_mismatches": mismatches,
    }


def _read(lines: Iterable[str], parse: Callable[[str], tuple[str, Value]]) -> tuple[dict[str, Value], int]:
    """What each id stands for, and the number of lines that are no such thing; empty lines are none."""
    found: dict[str, Value] = {}
    broken = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            key, value = parse(line)
        except ValueError:
            broken += 1
            continue
        if key in found:
            broken += 1
        else:
            found[key] = value
    return found, broken


def _sentence(line: str) -> tuple[str, tuple[float, str]]:
    key, mean, text = line.split("\t", 2)
    rating = float(mean)
    while (decoded := html.unescape(text)) != text:  # some were scraped twice, and have &amp;amp;
        text = decoded
    text = tidy_text(text)
    if not math.isfinite(rating) or not text:
        raise ValueError
    return key, (rating, text)


def _votes(line: str) -> tuple[str, list[int]]:
    key, _, _, given = line.split("\t")
    votes = json.loads(given)
    if not isinstance(votes, list) or not votes or any(type(v) is not int or abs(v) > HIGHEST for v in votes):
        raise ValueError
    return key, votes


def _in_order(key: str) -> list[tuple[int, str]]:
    """Numbers in their order, as text: 2 before 10, and 1_10 before 2_1."""
    return [(len(number), number) for number in key.split("_")]
