"""`tests/` mirrors the library: where a file of tests has another name, CONTRIBUTING.md says what it stands for."""

import re

from tests.test_readme import PROJECT

SECTION = (PROJECT / "CONTRIBUTING.md").read_text().split("\n## Tests\n")[1].split("\n## ")[0]


def is_mirror(file):
    """Whether a file of tests is that of a file or package of the library, or of a script of the same name."""
    name = file.stem.removeprefix("test_")
    if name == "init":
        name = "__init__"
    folders = [PROJECT / "rlhf_recipes" / file.parent]
    if file.parent.name in ("recipes", "benchmarks"):
        folders.append(PROJECT / file.parent)
    return any((folder / f"{name}.py").is_file() or (folder / name).is_dir() for folder in folders)


def test_each_file_of_tests_mirrors_a_file_or_is_listed():
    files = {file.relative_to(PROJECT / "tests") for file in (PROJECT / "tests").rglob("test_*.py")}
    assert len(files) > 100
    others = {str(file) for file in files if not is_mirror(file)}
    listed = re.findall(r"^\| `(\S+\.py)` \|", SECTION, re.M)
    assert len(listed) == len(set(listed))
    assert (others - set(listed), set(listed) - others) == (set(), set())
