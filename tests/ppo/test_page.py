"""docs/ppo.md names every file that the step is made of or imports, and the step is five files that one can read."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "rlhf_recipes"
STEP = [f"ppo/{name}.py" for name in ("trainer", "rollout", "scoring", "credit", "functional")]
PAGE = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")


def imported(file: str) -> set[str]:
    """The files of the library that a file imports, as the page writes them."""
    found = set()
    for node in ast.walk(ast.parse((LIBRARY / file).read_text(encoding="utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not str(node.module).startswith("rlhf_recipes"):
            continue
        path = "/".join(str(node.module).split(".")[1:])
        submodules = {f"{path}/{alias.name}.py" for alias in node.names}
        own = {name for name in submodules if (LIBRARY / name).is_file()}
        found |= own or {f"{path}.py" if (LIBRARY / f"{path}.py").is_file() else f"{path}/__init__.py"}
    return found


def test_the_reading_order_is_the_five_files():
    first = PAGE[: PAGE.index("| stage |")]
    assert re.findall(r"`(ppo/\w+\.py)`", first) == STEP


def test_they_are_less_than_a_thousand_lines():
    assert sum(len((LIBRARY / file).read_text(encoding="utf-8").splitlines()) for file in STEP) < 1000


@pytest.mark.parametrize("file", STEP)
def test_the_page_names_all_that_the_step_imports(file):
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE))
    whole_packages = {"rewards/__init__.py": "rewards/"}
    missing = {name for name in imported(file) - named if f"`{whole_packages.get(name)}`" not in PAGE}
    assert not missing


def test_each_file_that_the_page_names_is_there():
    for name in re.findall(r"`((?:ppo|modeling|rewards|data)/[\w/]*\.py)`", PAGE):
        assert (LIBRARY / name).is_file(), name
