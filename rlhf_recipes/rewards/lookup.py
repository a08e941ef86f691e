"""Where the rewards of a YAML file are looked for: beside it as well, and in files that import their neighbours."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What every reward is called with. A function that could not take any of it is none.
GIVEN = frozenset({"prompts", "completions", "completion_ids"})


def is_factory(target: Any) -> bool:
    """Whether a function makes a reward instead of being one.

    A reward is called by keyword with prompts, completions, completion_ids and the dataset's columns, so that it has
    one of these three as a parameter, or `**kwargs`. A function without any, such as `make(limit)`, cannot be one.
    """
    parameters = parameters_of(target)
    if parameters is None or inspect.isclass(target):
        return False
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return not takes_any and GIVEN.isdisjoint(parameters)


def parameters_of(target: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of a callable; `None` where Python cannot tell, as of some that are written in C."""
    try:
        return inspect.signature(target).parameters
    except ValueError:
        return None


def beside(value: Any, folder: Path | None, is_func: bool = True) -> Any:
    """An entry of a reward list, in which paths that are there beside the file that it comes from are written in full.

    What is found from the folder in which the command runs stays as it is.

    Args:
        value (`Any`): The entry, or a part of it.
        folder (`Path`, *optional*): That of the YAML file. Without one nothing changes.
        is_func (`bool`): Whether it names a reward, and so may be a folder without any slash.
    """
    if folder is None:
        return value
    if isinstance(value, Mapping):
        return {key: beside(part, folder, key == "func") for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [beside(part, folder, False) for part in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    before, dot_py, name = value.partition(".py:")
    path = Path(f"{before}.py" if dot_py else before)
    looks_like_one = is_func or "/" in value or path.suffix
    if not value or not looks_like_one or path.is_absolute() or path.exists() or not (folder / path).exists():
        return value
    return str((folder / path).resolve()) + (f":{name}" if dot_py else "")
