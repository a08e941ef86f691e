"""Libraries that only some rewards need, imported when such a reward is made or first used."""

import importlib
from typing import Any


def optional(module: str, needed_by: str, package: str | None = None, extra: str = "rewards") -> Any:
    """Import a library of an extra.

    Args:
        module (`str`): What to import.
        needed_by (`str`): The reward that needs it.
        package (`str`, *optional*): Its name in the package index. Default: that of the module.
        extra (`str`, *optional*, defaults to `"rewards"`): The extra of this project that installs it.

    Raises:
        `ImportError`: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module == error.name or module.startswith(f"{error.name}.")):
            raise  # the library is there, and lacks something that it needs itself
        raise ImportError(
            f"{needed_by} needs the package {package or module.split('.')[0]!r}, which is not installed. Install what "
            f"all rewards need: pip install 'rlhf-recipes[{extra}]' (in a clone: pip install -e '.[{extra}]')."
        ) from error
