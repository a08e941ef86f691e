"""JSON as rows, in the shapes in which people save it; a text stays the text that it is, also where it is a date."""

import json
import logging
from collections.abc import Mapping
from typing import Any

logger = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


def parse_json(text: str, lines: bool = False) -> Rows:
    r"""The rows of a JSON file.

    One object a line; a list of objects; an object with one list of them among its values (`{"data": [...]}`); or an
    object of columns, each a list, or as pandas writes them a mapping of row and value. A list of texts gives the
    column `text`. NaN, which JSON does not know but many write, is `null`.

    Args:
        text (`str`): The whole file.
        lines (`bool`, *optional*, defaults to `False`): One object alone is a row (`.jsonl`), whatever it holds.

    Raises:
        `ValueError`: if it is no JSON, has none of these shapes, or an object has one name twice. It names the line.

    Example:
        >>> parse_json('{"version": 2, "data": [{"prompt": "a"}, {"prompt": "b"}]}')
        [{'prompt': 'a'}, {'prompt': 'b'}]
    """
    parts = [(number, part) for number, part in enumerate(text.split("\n"), 1) if part.strip()]
    if not parts:
        return []
    if text.lstrip()[:1] != "[" and _is_whole(parts[0][1]) and (lines or len(parts) > 1):
        return [_row(_loads(part, number), number) for number, part in parts]
    found = _loads(text, 1)
    if isinstance(found, dict):
        return [found] if lines else _rows_inside(found)
    if isinstance(found, list) and all(isinstance(value, str) for value in found):
        return [{"text": value} for value in found]
    if not isinstance(found, list):
        raise ValueError(f"there is a {type(found).__name__}, where rows must be: one object a line, or a list.")
    return [_row(value, number, "row") for number, value in enumerate(found)]


def _is_whole(part: str) -> bool:
    try:
        json.loads(part)
    except json.JSONDecodeError:
        return False
    return True


def _loads(part: str, line: int) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"line {line}: {twice!r} is specified twice in one object.")
        return made

    try:
        return json.loads(part, object_pairs_hook=once, parse_constant=_constant)
    except json.JSONDecodeError as error:
        message = f"line {line - 1 + error.lineno}, column {error.colno}: {error.msg}"
        raise ValueError(message) from None
    except RecursionError:
        raise ValueError(f"line {line}: lists or objects lie in each other too deeply.") from None


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def _row(value: Any, place: int, what: str = "line") -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise ValueError(f"{what} {place}: there is a {type(value).__name__}, where a row, {{...}}, must be.")


def _rows_inside(found: Mapping[str, Any]) -> Rows:
    """The rows of one object that is a whole file."""
    lists = [name for name, value in found.items() if _is_rows(value)]
    if len(lists) == 1:
        others = [name for name in found if name != lists[0]]
        if others:
            logger.info("The rows are those in %r; what stands beside them is not read: %s.", lists[0], others)
        return list(found[lists[0]])
    if len(lists) > 1:
        raise ValueError(
            f"there are several lists of rows: {', '.join(lists)}. Write each into a file of its own; splits are "
            "files of one folder, such as train.jsonl and test.jsonl."
        )
    columns = {name: _column(value) for name, value in found.items()}
    if not columns or any(column is None for column in columns.values()):
        return [dict(found)]
    lengths = {name: len(column or ()) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"the object has columns of different lengths ({shown}). Give each one value for each row.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _is_rows(value: Any) -> bool:
    """A list of objects that are no messages of a conversation, which would be a cell of one row."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(row, dict) and not {"role", "from"} & set(row) for row in value)
    )


def _column(value: Any) -> list[Any] | None:
    if isinstance(value, dict) and value and all(key.isdigit() for key in value):
        return list(value.values())
    return value if isinstance(value, list) else None
