"""Options of commands as fields of a dataclass, which [`~rlhf_recipes.arguments.RecipeParser`] makes flags of."""

import copy
from collections.abc import Iterable
from dataclasses import field
from typing import Any


def option(default: Any, text: str, **metadata: Any) -> Any:
    """A field with its default and with what `--help` says of it, which is also its documentation.

    Args:
        default: A list or a mapping is copied for each instance.
        text (`str`): What it does, in a sentence or two.
        metadata: More that `argparse` is told, such as `choices`.
    """
    metadata = {"help": text, **metadata}
    if isinstance(default, list | dict):
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def check_choice(name: str, value: Any, choices: Iterable[Any]) -> None:
    """Refuse a setting that is none of its choices; `ValueError`."""
    known = list(choices)
    if value not in known:
        raise ValueError(f"{name} is {value!r}; give one of {', '.join(map(str, known))}.")
