"""Two good rows of each format of feedback, for tests that add a third."""

from datasets import Dataset


def rows(**columns):
    return Dataset.from_dict(columns)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


GOOD = {
    "pairs": {"chosen": ["a", "c"], "rejected": ["b", "d"]},
    "votes": {"chosen": ["a", "c"], "rejected": ["b", "d"], "chosen_votes": [3, 1], "rejected_votes": [1, 3]},
    "ratings": {"completion": ["a", "b"], "score": [1.0, 2.0]},
    "rankings": {"completions": [["a", "b"], ["c", "d", "e"]], "ranks": [[1, 2], [2, 1, 3]]},
    "best_worst": {"completions": [["a", "b"], ["c", "d", "e"]], "best": [0, 1], "worst": [1, 0]},
    "unpaired": {"completion": ["a", "b"], "label": [1.0, 0.0]},
    "clicks": {"completion": ["a", "b"], "clicks": [1, 2], "views": [5, 5]},
    "dwell": {"completion": ["a", "b"], "dwell_seconds": [1.0, 60.0]},
    "objectives": {"completion": ["a", "b"], "scores": [{"x": 1.0, "y": 2.0}, {"x": 2.0, "y": 1.0}]},
    "steps": {"completions": [["a", "b"], ["c"]], "labels": [[1.0, 0.0], [1.0]]},
}


def with_row(kind, **values):
    """Two good rows, and a third that differs from the first in some columns."""
    columns = {name: list(column) for name, column in GOOD[kind].items()}
    return rows(**{name: [*column, values.get(name, column[0])] for name, column in columns.items()})
