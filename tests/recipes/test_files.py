"""`python -m rlhf_recipes.recipes`: what it lists, what it writes, and that a wheel has it without a clone."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf_recipes.recipes.__main__ import main
from rlhf_recipes.recipes.files import FOLDERS, belonging, copy, recipes

PROJECT = Path(__file__).parents[2]


def test_each_recipe_is_listed_with_what_it_is_for(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(file.stem for file in PROJECT.glob("recipes/*.py"))
    assert all(len(line.split()) > 5 for line in lines)


def test_each_yaml_belongs_to_one_recipe():
    owners = {str(path): name for name in recipes() for path in belonging(name) if path.suffix == ".yaml"}
    configs = {str(file.relative_to(PROJECT)) for file in PROJECT.glob("recipes/configs/*.yaml")}
    assert configs <= set(owners)
    assert owners["recipes/configs/quickstart_ppo.yaml"] == "ppo"
    assert owners["recipes/configs/quickstart_after.yaml"] == "evaluate"


def test_a_copy_is_the_recipe_its_yamls_and_the_launch_configurations(tmp_path, capsys):
    assert main(["copy", "ppo", "--to", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    for name in ("recipes/ppo.py", "recipes/configs/quickstart_ppo.yaml", "accelerate_configs/zero3.yaml"):
        assert (tmp_path / name).read_bytes() == (PROJECT / name).read_bytes()
        assert str(tmp_path / name) in said
    assert not (tmp_path / "recipes" / "dpo.py").exists()


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    copy("dpo", tmp_path)
    assert copy("dpo", tmp_path) == []
    (tmp_path / "recipes" / "sft.py").write_text("mine")
    with pytest.raises(SystemExit) as exit:
        main(["copy", "sft", "--to", str(tmp_path)])
    assert exit.value.code == 1
    assert "sft.py: there already, and not as they would be written" in capsys.readouterr().err
    assert (tmp_path / "recipes" / "sft.py").read_text() == "mine"
    assert not (tmp_path / "recipes" / "configs" / "starter_sft.yaml").exists()


def test_an_unknown_recipe_is_told_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["copy", "pop"])
    assert "There is no recipe 'pop'; there are best_of_n, compress, critic, dpo," in capsys.readouterr().err


GRPO = """
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

import rlhf_recipes
from rlhf_recipes.rewards import EndsWithSentence

assert "installed" in rlhf_recipes.__file__, rlhf_recipes.__file__
args = GRPOConfig(output_dir="out", max_steps=1, per_device_train_batch_size=2, num_generations=2, use_cpu=True,
                  max_completion_length=4, report_to="none", bf16=False)
prompts = Dataset.from_dict({"prompt": ["a film", "the story"]})
trainer = GRPOTrainer("model", [EndsWithSentence()], args, train_dataset=prompts)
trainer.train()
assert "rewards/EndsWithSentence/mean" in trainer.state.log_history[0], trainer.state.log_history
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_wheel_works_without_a_clone(tmp_path):
    from tests.tiny import tiny_causal_lm, tiny_tokenizer

    def run(*command):
        env = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    tree = tmp_path / "tree"  # building leaves things in it
    for name in ("rlhf_recipes", *FOLDERS):
        shutil.copytree(PROJECT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, tree / name)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(tree))
    (wheel,) = tmp_path.glob("rlhf_recipes-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(tmp_path / "installed"), str(wheel))
    run("-m", "rlhf_recipes.recipes", "copy", "ppo")
    assert "--total_episodes" in run("recipes/ppo.py", "--help")
    tokenizer = tiny_tokenizer()
    tiny_causal_lm(tokenizer).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    run("-c", GRPO)
