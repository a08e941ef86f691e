"""docs/rewards.md names every reward there is, and its YAML loads."""

import re

import pytest
import yaml

from rlhf_recipes import rewards
from rlhf_recipes.rewards import WeightSchedule, load_rewards
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

from .test_readme import PROJECT

TEXT = (PROJECT / "docs/rewards.md").read_text()
ZEROS = "def {}(completions, **kwargs):\n    return [0.0] * len(completions)\n"
BLOCKS = [yaml.safe_load(block)["reward_funcs"] for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]


@pytest.mark.parametrize("name", rewards.REWARDS)
def test_every_reward_stands_in_the_table(name):
    table = TEXT.split("## What there is")[1].split("##")[0]
    assert f"`{name}`" in table


def test_the_table_names_no_reward_that_is_not_there():
    table = TEXT.split("## What there is")[1].split("\n\n")[1]
    assert set(re.findall(r"`([A-Z]\w+)`", table)) == set(rewards.REWARDS)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_lists_of_rewards_can_be_loaded(block, tmp_path, monkeypatch):
    """With a tiny model where the page names one, and the files that it speaks of."""
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_tokenizer()
    save_tiny(tmp_path / "runs/quickstart/reward", tiny_classifier(tokenizer), tokenizer)
    (tmp_path / "my_rewards.py").write_text(
        "def brevity(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(
        "def politeness(completions, **kwargs):\n    return [0.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_rewards(block)
    assert len(loaded.names) == len(block)
    assert len(loaded(prompts=["a"], completions=["A fine film."], completion_ids=[[1, 2, 3]])) == 1


def test_the_schedule_of_the_page():
    said = re.search(r"weight: (\{start.*?\})", TEXT).group(1)
    assert WeightSchedule.from_mapping(yaml.safe_load(said), "x") == WeightSchedule(0.0, 1.0, until=0.5)
