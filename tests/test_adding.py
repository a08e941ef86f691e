"""docs/adding.md: what its examples add to a copy of the library is found there by its name."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from .test_readme import PROJECT

PAGE = (PROJECT / "docs/adding.md").read_text()


def blocks(title, language):
    """The blocks of a section that are written in a language."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"(?s)```{language}\n(.*?)```", section)


def add_file(folder, block):
    """Write a block into the file that its first line names."""
    path, text = block.removeprefix("# ").split("\n", 1)
    assert not (folder / path).exists()
    (folder / path).write_text(text)


def add_line(folder, path, block):
    """Put the one line that a block adds behind the line above it."""
    above, line = block.splitlines()
    assert (above[0], line[0]) == (" ", "+")
    code = (folder / path).read_text()
    assert code.count(f"{above[1:]}\n") == 1
    (folder / path).write_text(code.replace(f"{above[1:]}\n", f"{above[1:]}\n{line[1:]}\n"))


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(PROJECT / "rlhf_recipes", tmp_path / "rlhf_recipes", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(copied, *command):
    environment = os.environ | {"PYTHONPATH": str(copied), "COLUMNS": "200"}
    result = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=copied, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


USE_THE_REWARD = """
from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.rewards import NoShouting, load_rewards
from rlhf_recipes.rewards.loading import RewardArguments

texts = ["I SAW A film", "WHAT a FINE film", ""]
rows = {"prompts": [""] * 3, "completions": texts, "completion_ids": [[1]] * 3}
print(NoShouting()(**rows))
[arguments] = RecipeParser(RewardArguments).parse(["--config", "mine.yaml"])
rewards = load_rewards(arguments.reward_funcs)
print(rewards.parts(**rows), rewards.weights)
"""


def test_a_reward_is_one_file_and_one_line(copied):
    [reward], [line], [config] = (blocks("A reward", language) for language in ("python", "diff", "yaml"))
    add_file(copied, reward)
    add_line(copied, "rlhf_recipes/rewards/__init__.py", line)
    (copied / "mine.yaml").write_text(config)
    assert run(copied, "-c", USE_THE_REWARD).splitlines() == [
        "[0.75, 0.5, None]",
        "{'NoShouting': [0.75, 0.5, None]} (0.5,)",
    ]
    listed = run(copied, "-m", "rlhf_recipes.rewards", "list")
    assert re.search(r"NoShouting +1 less the share of words that are all in capitals, from 0 to 1\.", listed)
