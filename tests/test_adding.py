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
    """The blocks of a section, each with the file that is named last before it."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found = re.findall(r"(?s)(.*?)```(\w+)\n(.*?)```", section)
    return [(re.findall(r"`([\w/]+\.py)`", before), block) for before, kind, block in found if kind == language]


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
    [([file], reward), ([table], line)] = blocks("A reward", "python")
    assert line.count("\n") == 1
    (copied / file).write_text(reward)
    code = (copied / table).read_text()
    begin = "REWARDS_OF = {\n"
    (copied / table).write_text(code.replace(begin, begin + line, 1))
    [(_, config)] = blocks("A reward", "yaml")
    (copied / "mine.yaml").write_text(config)
    assert run(copied, "-c", USE_THE_REWARD).splitlines() == [
        "[0.75, 0.5, None]",
        "{'NoShouting': [0.75, 0.5, None]} (0.5,)",
    ]
    listed = run(copied, "-m", "rlhf_recipes.rewards", "list")
    assert re.search(r"NoShouting +1 less the share of words that are all in capitals, from 0 to 1\.", listed)
