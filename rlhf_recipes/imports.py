"""What is imported late: libraries that only some rewards need, and a function or class by its path.

Paths are looked for beside the YAML file that names them as well, and files may import their neighbours.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from rlhf_recipes.texts import sentence

# What every reward is called with. A function that could not take any of it is none.
GIVEN = frozenset({"prompts", "completions", "completion_ids"})


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


def find_function(where: str) -> Callable[..., Any]:
    """The function or class that a text names, `path/to/file.py:name` or `package.module:name`."""
    if names_a_file(where):
        path, _, attribute = where.rpartition(":")
        found = function_in_file(Path(path).expanduser(), attribute)
    else:
        module_name, _, attribute = where.rpartition(":")
        found = function_in_module(module_name, attribute)
    if not callable(found):
        raise TypeError(f"{where} is of type {type(found).__name__}, and not a function.")
    return found


def names_a_file(func: Any) -> bool:
    """Whether a text names a function in a Python file."""
    return isinstance(func, str) and (func.endswith(".py") or ".py:" in func)


def function_in_file(path: Path, attribute: str) -> Any:
    """What a Python file holds under a name; the file may import its neighbours."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r} with rewards (looked for {path.absolute()}).")
    # One module per file, however many of its functions are used: they may share what they load.
    name = f"_rewards_in_{path.stem}_{abs(hash(str(path.resolve())))}"
    module = sys.modules.get(name)
    if module is None:
        specification = importlib.util.spec_from_file_location(name, path)
        assert specification is not None
        assert specification.loader is not None
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module  # dataclasses look their module up while it is being made
        make_neighbours_importable(path.parent)
        try:
            specification.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            lines = [
                frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
            ]
            where = f"{path}, line {lines[-1]}" if lines else str(path)
            said = sentence(f"{type(error).__name__}: {error}")
            raise ImportError(f"Cannot read the rewards in {where}: {said}") from error
        check_neighbours(module, path.parent)
    return _member(module, attribute, str(path))


def function_in_module(
    module_name: str, attribute: str, meant: Callable[[str, str], str] = lambda module_name, attribute: "."
) -> Any:
    """What a module holds under a name; `meant` ends the sentence that there is no such module."""
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise  # the module is there, and lacks something that it needs itself
        raise ValueError(
            f"There is no module {module_name!r} to take the reward {attribute!r} from ({error})"
            f"{meant(module_name, attribute)} Install it, or name the file: path/to/file.py:name."
        ) from error
    return _member(module, attribute, module_name)


def _member(module: ModuleType, attribute: str, where: str) -> Any:
    if attribute and hasattr(module, attribute):
        return getattr(module, attribute)
    there = [
        name
        for name, value in vars(module).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    ]
    asked = (
        f"There is no {attribute!r} in {where}{did_you_mean(attribute, there)}"
        if attribute
        else f"{where} needs a name."
    )
    raise ValueError(f"{asked} It holds {', '.join(there) or 'no function or class'}. Write {where}:name.")


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """How a sentence about an unknown word ends: with the known one that is nearest to it, if any is near."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else "."


# Folders that were made importable for the files with rewards in them.
_folders: set[Path] = set()


def make_neighbours_importable(folder: Path) -> None:
    """Let a file with rewards import the modules beside it, as a script can; what is installed comes first."""
    folder = folder.resolve()
    _folders.add(folder)
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def check_neighbours(module: ModuleType, folder: Path) -> None:
    """Raise `ImportError` where a file has got a module of the same name from beside another file with rewards."""
    for value in vars(module).values():
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        file = getattr(sys.modules.get(name), "__file__", None) if isinstance(name, str) else None
        own = folder.resolve() / f"{name}.py"
        if file is not None and Path(file).parent in _folders and own.is_file() and Path(file).resolve() != own:
            raise ImportError(
                f"{module.__file__} imports {name}, and has got {file}, which another file with rewards has imported "
                f"before, instead of {own}. Python holds one module of a name: give one of the two another."
            )


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
