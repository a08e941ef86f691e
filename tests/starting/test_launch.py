"""The first line of a run, and what is refused of a launcher."""

import json
import logging
from dataclasses import dataclass, field

import pytest
import trl
from transformers import TrainingArguments

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.cli import run
from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.starting.launch import batch_line, check_launch

BATCH = ["--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "3", "--use_cpu"]


@dataclass
class Texts:
    """What is read."""

    texts: str = field(default="texts.jsonl", metadata={"help": "A file."})


def parse(config, tmp_path, *more):
    return RecipeParser((Texts, config)).parse(["--output_dir", str(tmp_path), *BATCH, *more])


@pytest.mark.parametrize(
    ("config", "made"),
    [
        (TrainingArguments, "12 rows in an optimizer step"),
        (trl.SFTConfig, "12 rows in an optimizer step"),
        (RewardConfig, "12 rows in an optimizer step"),
        (PPOConfig, "12 episodes in a rollout"),
    ],
)
def test_the_first_line_says_what_the_launch_makes_of_the_batch(config, made, tmp_path, caplog):
    caplog.set_level(logging.INFO, "rlhf_recipes")
    more = ["--bf16", "false"] if config is not TrainingArguments else []
    built = parse(config, tmp_path, *more)
    assert [type(args) for args in built] == [Texts, config]  # as without the options of the launch
    first = next(record for record in caplog.records if record.name.startswith("rlhf_recipes"))
    assert first.getMessage() == (
        f"1 process x 4 (per_device_train_batch_size) x 3 (gradient_accumulation_steps) = {made}."
    )


class Two:
    """The settings of a run on two processes."""

    per_device_train_batch_size = train_batch_size = 8
    gradient_accumulation_steps, world_size, process_index = 1, 2, 1


def test_processes_multiply():
    assert batch_line(Two).startswith("2 processes x 8 ")
    assert batch_line(Two).endswith("= 16 rows in an optimizer step.")


def test_another_number_of_processes_than_expected_is_an_error(tmp_path, capsys):
    parse(PPOConfig, tmp_path, "--expect_processes", "1")
    (tmp_path / "run.yaml").write_text("expect_processes: 2\n")
    for given in (["--expect_processes", "2"], ["--config", str(tmp_path / "run.yaml")]):
        with pytest.raises(SystemExit) as stopped:
            parse(PPOConfig, tmp_path, *given)
        assert stopped.value.code == 2
        assert "expect_processes is 2, but this run has 1 process." in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(SystemExit):
        parse(PPOConfig, tmp_path, "--expect_processes", "0")
    assert "expect_processes is 0; give 1 or more." in capsys.readouterr().err


def test_processes_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch(Two(), expected=2)
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(ValueError, match="The launcher started 4 processes, but they do not know of each other"):
        check_launch(Two())


# --- What a launcher is told


def fails():
    raise ValueError("There is no column 'prompt'.\nGive one.")


def test_the_cause_is_the_last_line_and_the_launchers_summary_has_it(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RLHF_RECIPES_DEBUG", raising=False)
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        run(fails)
    said = capsys.readouterr().err
    assert said.endswith("error: There is no column 'prompt'.\nGive one.\n")
    assert "RLHF_RECIPES_DEBUG=1" in said
    assert json.loads((tmp_path / "error.json").read_text())["message"] == said[said.index("error: ") :].rstrip()


def test_a_wrong_option_is_told_to_the_launcher_too(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    with pytest.raises(SystemExit):
        parse(PPOConfig, tmp_path, "--kl_coeff", "0.1")
    assert "--kl_coeff" in json.loads((tmp_path / "error.json").read_text())["message"]
    assert "--kl_coeff" in capsys.readouterr().err.splitlines()[-1]


def test_an_error_without_a_message_is_named_by_its_kind(capsys):
    def main():
        raise OSError

    with pytest.raises(SystemExit):
        run(main)
    assert capsys.readouterr().err.splitlines()[-1] == "error: OSError"
