"""Messages that are put together of others: each ends with one full stop."""

import ast
from pathlib import Path

import pytest

from rlhf_recipes.statistics import numbers
from rlhf_recipes.texts import sentence

LIBRARY = Path(__file__).parents[1] / "rlhf_recipes"


def stops_behind_errors(tree):
    """Lines on which a full stop is written behind what another error says, which may end with one of its own."""
    for handler in ast.walk(tree):
        if not isinstance(handler, ast.ExceptHandler) or handler.name is None:
            continue
        for text in ast.walk(handler):
            parts = text.values if isinstance(text, ast.JoinedStr) else []
            for part, after in zip(parts, parts[1:], strict=False):
                is_error = isinstance(part, ast.FormattedValue) and ast.unparse(part.value) == handler.name
                if is_error and isinstance(after, ast.Constant) and str(after.value).startswith("."):
                    yield part.lineno


def test_what_is_looked_for_is_found():
    code = "try:\n    read()\nexcept OSError as error:\n    raise ValueError(f'{name}. Not read: {error}. Why?')"
    assert list(stops_behind_errors(ast.parse(code))) == [4]


def test_no_full_stop_is_written_behind_what_another_error_says():
    found = {
        f"{file.relative_to(LIBRARY)}:{line}"
        for file in LIBRARY.rglob("*.py")
        for line in stops_behind_errors(ast.parse(file.read_text(encoding="utf-8")))
    }
    assert found == set()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("no file", "no file."), ("no file.", "no file."), ("why?", "why?"), ("stop!\n", "stop!"),
        (ValueError("Lower it."), "Lower it."), (OSError(2, "No such file"), "[Errno 2] No such file."),
    ],
)  # fmt: skip
def test_a_sentence_has_one_full_stop(words, said):
    assert sentence(words) == said


def test_the_words_of_numpy_keep_their_own_full_stop():
    with pytest.raises(ValueError, match="one number for each row") as raised:
        numbers([[1.0], [1.0, 2.0]], "scores")
    assert str(raised.value).endswith(".")
    assert not str(raised.value).endswith("..")
