"""README.md and the docs, walked: what they name is there, and what they show as a command is understood."""

import ast
import importlib
import importlib.util
import inspect
import re
import shlex
from pathlib import Path

import pytest

from tests.test_configs import options_of

PROJECT = Path(__file__).parents[1]
README = PROJECT / "README.md"
PAGES = [README, *sorted((PROJECT / "docs").glob("*.md"))]
MADE_LATER = ("runs/", "starter/")  # by a run, or by the starter kit
YOURS = ("my-", "my_")  # what a reader is to replace by their own
FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|yaml|toml|txt|json|ini))")


def name_of(file):
    return file.name


def text_of(page):
    assert page.is_file(), f"{page.name} is not there"
    return page.read_text(encoding="utf-8")


def blocks(page, *languages):
    """The code blocks of a page in one of the languages; "" is a block that names none."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(page), re.MULTILINE | re.DOTALL)
    return [body for language, body in found if language in languages]


def prose(page):
    return re.sub(r"^```.*?^```$", "", text_of(page), flags=re.MULTILINE | re.DOTALL)


def commands(page):
    """The commands in code blocks, one word list each, without comments, and those in backticks."""
    lines = "\n".join(blocks(page, "bash", "sh", "console")).replace("\\\n", " ").split("\n")
    lines += re.findall(r"`((?:make|python|accelerate) [^`]+)`", prose(page))
    return [words for line in lines if (words := shlex.split(line.removeprefix("$ "), comments=True))]


def tree(page):
    """The paths of a drawn tree: two columns, indented by two spaces for each level, a folder ends with a slash."""
    paths = []
    for block in blocks(page, "", "text"):
        if not re.match(r"\w+/ {2,}", block):
            continue
        parents = {}
        for line in block.splitlines():
            indent, name = re.match(r"( *)(\S+)", line).groups()
            path = parents.get(len(indent) - 2, "") + name
            parents[len(indent)] = path
            paths.append(path)
    return paths


def named_paths(page):
    """Paths in backticks and behind links, in the prose."""
    words = [word for span in re.findall(r"`([^`]+)`", prose(page)) for word in span.split()]
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", prose(page)) if "://" not in link]
    paths = [word.rstrip(",;:") for word in words if FILE_NAME.fullmatch(word.rstrip(",;:"))] + links
    return {path for path in paths if path and not path.startswith((*MADE_LATER, *YOURS, "http", "--"))}


def exists(page, path):
    """In the project, in the library (`ppo/trainer.py`, or `trainer.py`), beside the page, or left by a recipe."""
    library, recipes = PROJECT / "rlhf_recipes", (PROJECT / "recipes").glob("*.py")
    if any((start / path).exists() for start in (PROJECT, library, page.parent)) or any(library.rglob(path)):
        return True
    return any(
        re.search(rf"(?<![\w/]){re.escape(path)}", ast.get_docstring(ast.parse(r.read_text()))) for r in recipes
    )


# ---- the first screen


def test_the_first_screen_holds_the_two_commands_the_three_real_ones_and_the_tree():
    screen = "\n".join(text_of(README).splitlines()[:45])
    wanted = [
        "make quickstart",
        "make test",
        "recipes/reward.py",
        "recipes/ppo.py",
        "recipes/evaluate.py",
        "recipes/ ",
    ]
    places = [screen.find(words) for words in wanted]
    assert -1 not in places, f"not on the first screen: {wanted[places.index(-1)]}"
    assert places == sorted(places)


def test_nothing_waits_to_be_filled_in():
    for page in PAGES:
        found = re.findall(r"\b(RESULTS_HERE|TBD|TODO|FIXME|XXX)\b", text_of(page))
        assert not found, f"{page.name}: {found}"


# ---- paths


def test_the_tree_shows_what_is_there():
    paths = tree(README)
    assert {"recipes/", "recipes/configs/", "rlhf_recipes/", "rlhf_recipes/ppo/", "tests/", "docs/"} <= set(paths)
    for path in paths:
        assert (PROJECT / path).exists(), f"the tree has {path}"


def test_the_tree_leaves_no_part_of_the_library_out():
    packages = {f"rlhf_recipes/{init.parent.name}/" for init in (PROJECT / "rlhf_recipes").glob("*/__init__.py")}
    assert packages - set(tree(README)) == set()
    described = "\n".join(blocks(README, "", "text"))
    for recipe in (PROJECT / "recipes").glob("*.py"):
        assert recipe.name in described, f"{recipe.name} is not in the tree"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_in_the_prose_exists(page):
    for path in named_paths(page):
        assert exists(page, path), f"{page.name} names {path}"


# ---- commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_make_target_exists(page):
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    for words in commands(page):
        if words[0] == "make":
            called = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert called <= targets, f"{page.name}: {shlex.join(words)}"


def test_every_phony_target_of_the_makefile_has_a_rule():
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    phony = set(re.search(r"^\.PHONY:(.*)$", makefile, re.MULTILINE)[1].split())
    assert phony - set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE)) == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_of_a_recipe_is_understood_by_it(page):
    for words in commands(page):
        scripts = [word for word in words if word.startswith("recipes/") and word.endswith(".py")]
        for script in scripts:
            assert (PROJECT / script).is_file(), f"{page.name} runs {script}"
            arguments = words[words.index(script) + 1 :]
            for number, word in enumerate(arguments):
                if word == "--config" and not arguments[number + 1].startswith(YOURS):
                    config = PROJECT / arguments[number + 1]
                    assert config.is_file(), f"{page.name}: {shlex.join(words)}"
                    arguments[number + 1] = str(config)
            if arguments and "--help" not in arguments:
                options = options_of(PROJECT / script, *arguments)
                assert options["host" if script == "recipes/serve_reward.py" else "output_dir"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_module_that_is_run_exists(page):
    for words in commands(page):
        if "-m" in words and words[0].startswith("python"):
            name = words[words.index("-m") + 1]
            module = importlib.util.find_spec(name)
            assert module is not None, f"{page.name}: python -m {name}"
            if module.submodule_search_locations:
                assert importlib.util.find_spec(f"{name}.__main__"), f"python -m {name} has nothing to run"


# ---- Python


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_in_a_page_is_python_and_imports_what_exists(page):
    for block in blocks(page, "python", "py"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("rlhf_recipes"):
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), f"{page.name}: from {node.module} import {alias.name}"


def test_the_keywords_of_the_trainer_in_the_readme_are_its_own():
    from rlhf_recipes import PPOConfig, PPOTrainer

    known = {
        "PPOTrainer": set(inspect.signature(PPOTrainer.__init__).parameters),
        "PPOConfig": set(inspect.signature(PPOConfig).parameters),
    }
    calls = [
        node for block in blocks(README, "python") for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)
    ]
    checked = [call for call in calls if getattr(call.func, "id", "") in known]
    assert {call.func.id for call in checked} == set(known)
    for call in checked:
        assert {keyword.arg for keyword in call.keywords} <= known[call.func.id]


def test_the_reward_in_the_readme_is_a_reward(tmp_path):
    from rlhf_recipes.rewards import load_rewards

    source = next(block for block in blocks(README, "python") if "def brevity" in block)
    (tmp_path / "my_rewards.py").write_text(source)
    reward = load_rewards([f"{tmp_path}/my_rewards.py:brevity"])
    short, long = reward(prompts=["", ""], completions=["a", "b"], completion_ids=[[1], [1] * 50])
    assert short > long
