"""docs/adding.md, carried out on a copy of the library: what its examples add is found by its name, and works."""

import json
import re
import shutil

import pytest

from tests.launching import in_one_process
from tests.test_readme import PROJECT
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

PAGE = (PROJECT / "docs/adding.md").read_text()
USE_THE_REWARD = """
from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.rewards import NoShouting, load_rewards
from rlhf_recipes.rewards.loading import RewardArguments

texts = ["I SAW A film", "WHAT a FINE film", ""]
rows = {"prompts": [""] * 3, "completions": texts, "completion_ids": [[1]] * 3}
print(NoShouting()(**rows))
[arguments] = RecipeParser(RewardArguments).parse(["--config", "reward.yaml"])
rewards = load_rewards(arguments.reward_funcs)
print(rewards.parts(**rows), rewards.weights)
"""
REACTIONS = [
    {"completion": "a fine film", "likes": 3, "dislikes": 0},
    {"completion": "a dull film", "likes": 0, "dislikes": 1},
    {"completion": "nobody saw it", "likes": 0, "dislikes": 0},
]
TRAIN = "model_name_or_path: model\nuse_cpu: true\ncard: false\ndisable_tqdm: true\n"
COMMANDS = {
    "reward": ["use_the_reward.py"],
    "list": ["rlhf_recipes.rewards", "list"],
    "convert": [
        "rlhf_recipes.data.feedback", "--dataset_name", "reactions", "--splits", "train",
        "--convert_to", "unpaired", "--convert_args", '{"prior": 1}', "--output_dir", "labels",
    ],
    "loss": ["recipes/reward.py", "--config", "loss.yaml"],
    "format": ["recipes/reward.py", "--config", "format.yaml"],
}  # fmt: skip


def blocks(title, language):
    """The blocks of a section that are written in a language."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(rf"(?s)```{language}\n(.*?)```", section)


def write_rows(folder, train, test):
    folder.mkdir()
    for split, rows in (("train", train), ("test", test)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the library with the new files of the page and the changes that it shows, and rows to use them on."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("rlhf_recipes", "recipes"):
        shutil.copytree(PROJECT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for title in ("A reward", "A loss", "A feedback format"):
        [added], [change] = blocks(title, "python"), blocks(title, "diff")
        name, text = added.removeprefix("# ").split("\n", 1)
        assert not (folder / name).exists()
        (folder / name).write_text(text)
        name, hunks = change.removeprefix("# ").split("\n", 1)
        text = (folder / name).read_text()
        for hunk in hunks.split("@@\n"):
            lines = hunk.splitlines(keepends=True)
            before, after = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
            assert text.count(before) == 1
            text = text.replace(before, after)
        (folder / name).write_text(text)
    (folder / "use_the_reward.py").write_text(USE_THE_REWARD)
    [reward], [loss] = blocks("A reward", "yaml"), blocks("A loss", "yaml")
    (folder / "reward.yaml").write_text(reward)
    (folder / "loss.yaml").write_text(
        f"{loss}{TRAIN}dataset_name: pairs\noutput_dir: exponential\nlearning_rate: 0.01\nnum_train_epochs: 2\n"
    )
    (folder / "format.yaml").write_text(
        f"{TRAIN}dataset_name: reactions\noutput_dir: reactions-model\nconvert_to: unpaired\n"
        "validation_split: none\nnum_train_epochs: 1\n"
    )
    pairs = [[{"chosen": f"good {word} {row}", "rejected": f"bad {word} {row}"} for row in range(8)]
             for word in ("film", "plot")]  # fmt: skip
    write_rows(folder / "pairs", *pairs)
    write_rows(folder / "reactions", REACTIONS, [row | {"completion": "test"} for row in REACTIONS])
    tokenizer = tiny_tokenizer("bert")
    save_tiny(folder / "model", tiny_classifier(tokenizer), tokenizer)
    return folder


@pytest.fixture(scope="module")
def said(copied):
    """What each command said; all in one process, because starting one takes longer than they do."""
    told = in_one_process(list(COMMANDS.values()), copied, copied)
    for command, (code, words, _) in told.items():
        assert code == 0, f"{command}: {words}"
    return dict(zip(COMMANDS, (words for _, words, _ in told.values()), strict=True))


def test_a_reward_is_one_file_and_one_line(said):
    assert said["reward"].splitlines() == [
        "[0.75, 0.5, None]",
        "{'NoShouting': [0.75, 0.5, None]} (0.5,)",
    ]
    listed = " ".join(said["list"].split())  # however wide the terminal is
    assert "NoShouting 1 less the share of words that are all in capitals, from 0 to 1." in listed


def test_a_model_is_trained_with_the_loss(copied, said):
    metrics = json.loads((copied / "exponential/metrics.json").read_text())
    assert (metrics["loss"], metrics["pairwise_accuracy"]) == ("exponential", 1.0)


def test_rows_of_the_new_format_are_recognized_checked_and_converted(copied, said):
    words = "train: reactions (completion, likes, dislikes; text, without prompt)\n2 of 3 rows can be used."
    assert words in said["convert"]
    assert "left out        1  never shown" in said["convert"]
    made = [json.loads(line) for line in (copied / "labels/train.jsonl").read_text().splitlines()]
    assert made == [
        {"completion": "a fine film", "label": pytest.approx(4 / 5)},
        {"completion": "a dull film", "label": pytest.approx(1 / 3)},
    ]


def test_a_reward_model_is_trained_on_the_new_format(copied, said):
    metrics = json.loads((copied / "reactions-model/metrics.json").read_text())
    assert metrics["loss"] == "binary_cross_entropy"
