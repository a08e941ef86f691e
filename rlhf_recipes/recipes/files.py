"""Where the recipes are, and what belongs to one: the script, its settings, and the launch configurations."""

import ast
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("recipes", "accelerate_configs", "deepspeed_configs")  # beside the library, or shipped with it


def home() -> Path:
    """The folder in which `recipes/` is: that of the installed package, or of the clone.

    Raises:
        `FileNotFoundError`: if the package was installed without them.
    """
    shipped = Path(__file__).parent / "shipped"
    for folder in (shipped, Path(__file__).parents[2]):
        if (folder / "recipes" / "configs").is_dir():
            return folder
    raise FileNotFoundError(f"There are no recipes in {shipped}: install the package anew, or clone the project.")


def recipes() -> dict[str, str]:
    """The recipes by name, each with the first line of what it says of itself."""
    found = {}
    for file in sorted((home() / "recipes").glob("*.py")):
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.stem] = said.partition("\n")[0]
    return found


def belonging(name: str) -> Iterator[Path]:
    """The files of a recipe, as paths below [`home`]: script, each YAML whose header runs it, launch configurations.

    Raises:
        `ValueError`: if there is no recipe of that name.
    """
    if name not in recipes():
        raise ValueError(f"There is no recipe {name!r}; there are {', '.join(recipes())}.")
    yield Path("recipes", f"{name}.py")
    for file in sorted((home() / "recipes" / "configs").glob("*.yaml")):
        if f"recipes/{name}.py" in _last_command(file):
            yield file.relative_to(home())
    for folder in FOLDERS[1:]:
        yield from (file.relative_to(home()) for file in sorted((home() / folder).iterdir()) if file.is_file())


def _last_command(file: Path) -> str:
    """The last command in the header of a YAML, which is the one that it is for."""
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    commands = [line for line in header if "recipes/" in line and ".py" in line]
    return commands[-1] if commands else ""


def copy(name: str, folder: Path) -> list[Path]:
    """Write a recipe and what belongs to it into a folder, to run, edit and keep.

    A file that is there with the same content is left alone.

    Returns:
        `list[Path]`: what was written.

    Raises:
        `FileExistsError`: if one of them is there with another content; then nothing is written.
        `ValueError`: if there is no recipe of that name.
    """
    files = {folder / path: (home() / path).read_bytes() for path in belonging(name)}
    changed = [str(target) for target, text in files.items() if target.exists() and target.read_bytes() != text]
    if changed:
        raise FileExistsError(
            f"{', '.join(changed)}: there already, and not as they would be written. Move them away, or give another "
            "folder with --to."
        )
    written = [target for target in files if not target.exists()]
    for target in written:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[target])
    return written
