"""From flags and YAML to dataclasses: what is accepted, what is refused and with which words."""

import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
import yaml
from transformers import TrainingArguments

from rlhf_recipes.arguments import RecipeParser, save_config, text_or_mapping
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.report.markdown import hub_id

DESCRIPTION = """Train a policy.

    python ppo.py --config my.yaml
"""


@dataclass
class RunArguments(TrainingArguments):
    """Proximal policy optimization.

    More about it.
    """

    num_ppo_epochs: int = field(default=4, metadata={"help": "Passes over each batch; 20% more time for each."})
    num_mini_batches: int = field(default=1, metadata={"help": "Parts of a batch, already escaped: 5%% each."})
    max_prompt_length: int | None = field(default=512, metadata={"help": "Tokens of a prompt."})
    missing_eos_penalty: float | None = field(default=None, metadata={"help": "Taken off the score."})
    whiten_rewards: bool = field(default=True, metadata={"help": "Whiten."})
    stop_words: list[str] = field(default_factory=list, metadata={"help": "Words."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Weights."})
    reward_funcs: list[str | dict] | None = field(default=None, metadata={"help": "Rewards."})
    sampling: dict[str, float] | None = field(default=None, metadata={"help": "Sampling."})

    def __post_init__(self):
        super().__post_init__()
        if self.per_device_train_batch_size % self.num_mini_batches:
            raise ValueError(
                f"per_device_train_batch_size {self.per_device_train_batch_size} does not divide into "
                f"num_mini_batches {self.num_mini_batches}."
            )


REQUIRED = ["--dataset_name", "starter/movie-ratings"]


@pytest.fixture
def parser():
    return RecipeParser((DataArguments, RunArguments), description=DESCRIPTION, prog="ppo.py")


@pytest.fixture
def parse(parser, tmp_path):
    """`parse(text, *flags)` parses the text as the file of --config, and the flags; gives the run's arguments."""

    def run(text, *flags):
        (tmp_path / "run.yaml").write_text(text, encoding="utf-8")
        return parser.parse(["--config", str(tmp_path / "run.yaml"), *REQUIRED, *flags])[1]

    return run


@pytest.fixture
def refuse(parse, capsys):
    """`refuse(text, *flags)` gives the message with which it ends: one usage line, one error, code 2."""

    def run(text, *flags):
        with pytest.raises(SystemExit) as caught:
            parse(text, *flags)
        assert caught.value.code == 2
        output = capsys.readouterr()
        assert output.out == ""
        usage, message = output.err.rstrip("\n").split("\n")
        assert usage.startswith("usage: ppo.py [--config FILE.yaml]")
        return message.removeprefix("ppo.py: error: ")

    return run


# --- What is accepted -------------------------------------------------------------------------


def test_flags_give_one_instance_per_dataclass(parser):
    data_args, training_args = parser.parse([*REQUIRED, "--num-ppo-epochs", "2", "--num_mini_batches=4", "--use_cpu"])
    assert data_args == DataArguments("starter/movie-ratings")
    assert (training_args.num_ppo_epochs, training_args.num_mini_batches, training_args.use_cpu) == (2, 4, True)


def test_what_is_not_given_keeps_the_default_of_its_dataclass(parser):
    assert parser.parse(REQUIRED)[1].to_dict() == RunArguments().to_dict()
    assert parser.parse(REQUIRED)[1].whiten_rewards is True


def test_arguments_come_from_the_command_line_unless_given(parser, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ppo.py", *REQUIRED, "--seed", "7"])
    assert parser.parse()[1].seed == 7


def test_flags_override_the_file(parse):
    text = "num_ppo_epochs: 2\nnum-mini-batches: 4\nstop_words: [a, b]\nwhiten_rewards: true\n"
    args = parse(text, "--num_ppo_epochs", "3", "--stop_words", "c", "--no_whiten_rewards")
    assert (args.num_ppo_epochs, args.num_mini_batches, args.stop_words, args.whiten_rewards) == (3, 4, ["c"], False)


def test_the_file_gives_required_options_too(parser, tmp_path):
    (tmp_path / "run.yaml").write_text("dataset_name: ./rows.jsonl\nmax_train_samples: 8\n")
    data_args, _ = parser.parse([f"--config={tmp_path / 'run.yaml'}"])
    assert data_args == DataArguments("./rows.jsonl", max_train_samples=8)


def test_scalars_mean_what_is_written(parse):
    args = parse("learning_rate: 1e-5\neval_strategy: no\nrun_name: 1.10\nhub_model_id: 2026-01-31\nuse_cpu: yes\n")
    assert (args.learning_rate, args.run_name, args.hub_model_id, args.use_cpu) == (1e-5, "1.10", "2026-01-31", True)
    assert args.eval_strategy == "no"  # PyYAML alone would read False


@pytest.mark.parametrize("number", ["-1", "-1.5", "-1e-3", "-.5"])
def test_negative_numbers_are_no_flags(parse, number):
    assert parse(f"missing_eos_penalty: {number}\n").missing_eos_penalty == float(number)
    assert parse("seed: 1\n", "--missing_eos_penalty", number).missing_eos_penalty == float(number)
    assert parse(f"reward_weights: [1, {number}]\n").reward_weights == [1.0, float(number)]


def test_infinity_is_written_as_yaml_does(parse):
    assert parse("missing_eos_penalty: -.inf\n").missing_eos_penalty == float("-inf")


def test_null_means_none_and_a_missing_key_the_default(parse):
    assert parse("seed: 1\n").max_prompt_length == 512
    assert parse("max_prompt_length: null\n").max_prompt_length is None
    assert parse("max_prompt_length:\n", "--max_prompt_length", "7").max_prompt_length == 7
    assert parse("max_prompt_length: 7\n", "--max_prompt_length", "none").max_prompt_length is None


@dataclass
class Optionals:
    """One option of each kind that may be None, with another default."""

    word: str | None = field(default="a", metadata={"help": "A word."})
    number: float | None = field(default=1.0, metadata={"help": "A number."})
    switch: bool | None = field(default=True, metadata={"help": "A switch."})
    kind: Literal["a", "b"] | None = field(default="a", metadata={"help": "A kind."})
    words: list[str] | None = field(default_factory=list, metadata={"help": "Words."})
    numbers: list[float] | None = field(default_factory=list, metadata={"help": "Numbers."})
    mapping: dict[str, float] | None = field(default_factory=dict, metadata={"help": "A mapping."})
    either: str | dict | None = field(default="a", metadata={"help": "A name or a mapping."})


@pytest.mark.parametrize("name", [one.name for one in dataclasses.fields(Optionals)])
def test_null_on_the_command_line_is_the_null_of_a_file_for_every_optional_option(name, tmp_path):
    (tmp_path / "run.yaml").write_text(f"{name}: null\n")
    parser = RecipeParser(Optionals)
    assert getattr(parser.parse(["--config", str(tmp_path / "run.yaml")])[0], name) is None
    assert getattr(parser.parse([f"--{name}", "null"])[0], name) is None
    assert getattr(parser.parse([])[0], name) is not None


def test_null_is_no_element_and_none_is_a_word_where_a_text_is_possible(capsys):
    assert RecipeParser(Optionals).parse(["--word", "none"])[0].word == "none"
    with pytest.raises(SystemExit):
        RecipeParser(Optionals).parse(["--numbers", "1", "null"])
    assert "--numbers: null stands alone" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        RecipeParser(Optionals).parse(["--kind", "c"])
    assert "invalid choice: 'c' (choose from 'a', 'b'" in capsys.readouterr().err


def test_lists(parse):
    assert parse("stop_words: [Yes, 1.10, 'a b']\n").stop_words == ["Yes", "1.10", "a b"]
    assert parse("stop_words: one\n").stop_words == ["one"]
    assert parse("stop_words: []\n").stop_words == []
    assert parse("report_to: [tensorboard, wandb]\n").report_to == ["tensorboard", "wandb"]


def test_rewards_are_names_or_mappings_in_a_file_and_on_the_command_line(parse):
    mapping = {"func": "my_rewards.py:brevity", "weight": 0.5, "args": {"limit": 40, "scale": 1e-3}}
    text = """
reward_funcs:
- starter/rm
- {func: my_rewards.py:brevity, weight: 0.5, args: {limit: 40, scale: 1e-3}}
"""
    assert parse(text).reward_funcs == ["starter/rm", mapping]
    flags = ["--reward_funcs", "starter/rm", "my_rewards.py:brevity", '{"func": "x", "weight": 2}']
    assert parse(text, *flags).reward_funcs == ["starter/rm", "my_rewards.py:brevity", {"func": "x", "weight": 2}]
    assert text_or_mapping("starter/rm") == "starter/rm"


def test_mappings_reach_the_options_that_take_them(parse):
    args = parse("lr_scheduler_kwargs: {num_cycles: 2}\nsampling: {top_p: 0.9}\n")
    assert (args.lr_scheduler_kwargs, args.sampling) == ({"num_cycles": 2}, {"top_p": 0.9})
    assert parse("seed: 1\n", "--sampling", '{"top_p": 1}').sampling == {"top_p": 1}


def test_env_sets_environment_variables_as_in_trl(parse, monkeypatch):
    monkeypatch.setenv("RLHF_RECIPES_TEST", "before")
    parse("env: {RLHF_RECIPES_TEST: on}\n")
    assert os.environ["RLHF_RECIPES_TEST"] == "on"


# --- What is refused --------------------------------------------------------------------------


def test_strangers_are_refused_with_the_nearest_known_name(refuse):
    message = refuse("seed: 1\nlearning_rat: 1e-5\n")
    assert "run.yaml, line 2: unknown key 'learning_rat'. Did you mean 'learning_rate'?" in message
    message = refuse("seed: 1\n", "--num_ppo_epoch", "4")
    assert message.startswith("unknown option --num_ppo_epoch on the command line. Did you mean '--num_ppo_epochs'?")
    assert "Did you mean '--num_ppo_epochs'?" in refuse("seed: 1\n", "--num-ppo=4")  # a prefix is no abbreviation
    assert "No option has a similar name" in refuse("xyzzy_qqq: 1\n")
    assert "unexpected argument 'my.yaml' on the command line" in refuse("seed: 1\n", "--seed", "1", "my.yaml")


def test_an_ill_typed_value_is_refused_with_its_place(refuse):
    problem = "argument --learning_rate/--learning-rate: invalid float value: 'fast'"
    assert refuse("seed: 1\nlearning_rate: fast\n").endswith(f"run.yaml, line 2: {problem}")
    assert refuse("seed: 1\n", "--learning_rate", "fast") == problem
    assert "max_prompt_length/--max-prompt-length: invalid int value: '1.5'" in refuse("max_prompt_length: 1.5\n")
    assert "invalid choice: 'often'" in refuse("save_strategy: often\n")
    assert "not valid JSON" in refuse("seed: 1\n", "--reward_funcs", '{"func: 1}')


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("num_ppo_epochs: null\n", "line 1: num_ppo_epochs cannot be null. Give it a value, or leave the key out"),
        ("num_ppo_epochs: [1, 2]\n", "line 1: num_ppo_epochs takes one value, and the file gives a list"),
        ("run_name: {a: 1}\n", "line 1: run_name takes no mapping"),
        ("stop_words: [a, null]\n", "line 1: stop_words: an element of the list is null"),
        ("stop_words: [a, [b]]\n", "line 1: stop_words takes no list within a list"),
        ("stop_words: [--seed, 1]\n", "line 1: stop_words: an element of a list cannot start with '-'"),
        ("env: [A]\n", "line 1: `env` must be a mapping"),
        ("env: {A: null}\n", "line 1: `env` must be a mapping"),
        ("seed: 1\nseed: 2\n", "line 2: key 'seed' again; it stands in line 1"),
        ("num-ppo-epochs: 1\nnum_ppo_epochs: 2\n", "line 2: key 'num_ppo_epochs' again"),
        ("reward_funcs:\n- {func: a, weight: 1, weight: 2}\n", "line 2: key 'weight' again"),
        ("seed: [1\n", "line 2, column 1: not valid YAML"),
        ("seed: 1\n\tmax_steps: 2\n", "line 2, column 1: not valid YAML"),
        ("- seed\n", "must hold `key: value` lines, one per option, and holds a list"),
        ("seed\n", "and holds a single value"),
        ("# nothing yet\n", "and holds nothing"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(refuse, text, words):
    message = refuse(text)
    assert "run.yaml" in message
    assert words in message


def test_a_later_file_wins_over_an_earlier_one_and_a_flag_over_both(parser, tmp_path):
    (tmp_path / "preset.yaml").write_text("dataset_name: d\nseed: 1\nnum_ppo_epochs: 2\nrun_name: preset\n")
    (tmp_path / "run.yaml").write_text("seed: 3\nnum_ppo_epochs: 5\n")
    files = ["--config", str(tmp_path / "preset.yaml"), "--config", str(tmp_path / "run.yaml")]
    built = parser.parse([*files, "--num_ppo_epochs", "7"])
    found = {name: getattr(args, name) for args in built for name in ("seed", "num_ppo_epochs", "run_name")
             if hasattr(args, name)}  # fmt: skip
    assert found == {"seed": 3, "num_ppo_epochs": 7, "run_name": "preset"}


def test_a_missing_file_says_where_it_was_looked_for(parser, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        parser.parse(["--config", "no.yaml"])
    assert f"--config no.yaml: no such file (looked for {tmp_path / 'no.yaml'})" in capsys.readouterr().err


def test_missing_options_are_named(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse(["--seed", "1"])
    assert "missing: --dataset_name. Give it as a flag or in the file of --config." in capsys.readouterr().err


def test_what_a_dataclass_refuses_is_no_traceback(refuse):
    assert refuse("per_device_train_batch_size: 8\nnum_mini_batches: 3\n") == (
        "per_device_train_batch_size 8 does not divide into num_mini_batches 3."
    )


def test_nothing_is_set_in_the_environment_by_a_file_that_is_refused(refuse, monkeypatch):
    monkeypatch.delenv("RLHF_RECIPES_TEST", raising=False)
    refuse("env: {RLHF_RECIPES_TEST: on}\nsede: 1\n")
    assert "RLHF_RECIPES_TEST" not in os.environ


def test_fields_that_collide_are_refused_when_the_parser_is_made():
    @dataclass
    class Clash:
        seed: int = 1

    @dataclass
    class Reserved:
        config: str = ""

    with pytest.raises(ValueError, match="Clash has a field 'seed', which another dataclass has too"):
        RecipeParser((RunArguments, Clash))
    with pytest.raises(ValueError, match="Reserved has a field 'config', which the parser itself has too"):
        RecipeParser(Reserved)


# --- Help -------------------------------------------------------------------------------------


def shown(parser, flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parser.parse([flag])
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_help_opens_with_the_description_and_our_own_options(parser, capsys):
    text = shown(parser, "--help", capsys)
    assert text.startswith("Train a policy.\n\n    python ppo.py --config my.yaml\n")
    wanted = [
        "--config FILE.yaml",
        "Data:",
        "--dataset_name TEXT",
        "(required)",
        "Proximal policy optimization:",
        "--num_ppo_epochs INT",
        "Often used options of transformers.TrainingArguments:",
        "--learning_rate FLOAT",
        "more options are inherited: --help_all shows them",
    ]
    positions = [text.find(words) for words in wanted]
    assert -1 not in positions
    assert positions == sorted(positions)
    assert "--adam_beta1" not in text


def test_help_shows_defaults_and_survives_percent_signs(parser, capsys):
    text = " ".join(shown(parser, "-h", capsys).split())
    assert "Passes over each batch; 20% more time for each. (default: 4)" in text
    assert "already escaped: 5% each. (default: 1)" in text
    assert "--whiten_rewards [BOOL] Whiten. --no_whiten_rewards turns it off. (default: True)" in text
    assert "--reward_funcs TEXT|JSON [TEXT|JSON ...]" in text
    assert "--sampling JSON" in text


def test_help_all_shows_every_option(parser, capsys):
    text = shown(parser, "--help_all", capsys)
    for name in ("num_ppo_epochs", "learning_rate", "adam_beta1", "hub_token"):
        assert f"--{name} " in text
    assert "Other options of transformers.TrainingArguments:" in text
    assert "more options are inherited" not in text


# --- Saving -----------------------------------------------------------------------------------


def test_a_saved_configuration_gives_the_same_arguments_again(parser, tmp_path):
    flags = [*REQUIRED, "--max_train_samples", "9", "--output_dir", str(tmp_path), "--learning_rate", "1e-5"]
    flags += ["--max_prompt_length", "none", "--no_whiten_rewards", "--stop_words", "no", "null", "1.10", "a: b"]
    flags += ["--reward_funcs", "starter/rm", '{"func": "x", "weight": 0.001, "args": {"word": "no"}}']
    flags += ["--reward_weights", "1", "-1e-7", "--missing_eos_penalty", "inf", "--sampling", '{"top_p": 0.9}']
    flags += ["--eval_strategy", "no", "--save_strategy", "epoch", "--report_to", "tensorboard", "--use_cpu"]
    flags += ["--lr_scheduler_type", "cosine", "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--seed", "7"]
    first = parser.parse(flags)
    save_config(tmp_path / "made" / "run.yaml", *first)
    second = parser.parse(["--config", str(tmp_path / "made" / "run.yaml")])
    assert second[0] == first[0]
    assert second[1].to_dict() == first[1].to_dict()


def test_only_what_differs_is_saved_and_no_secret(parser, tmp_path):
    flags = ["--hub_token", "hf_secret", "--seed", "7", "--num_ppo_epochs", "4", "--output_dir", "runs/x"]
    rewards = ["--reward_funcs", '{"func": "judge.py:ask", "args": {"api_key": "sk-secret", "model": "m"}}']
    save_config(tmp_path / "run.yaml", *parser.parse([*REQUIRED, *flags, *rewards]))
    text = (tmp_path / "run.yaml").read_text()
    assert "secret" not in text
    assert yaml.safe_load(text) == {
        "dataset_name": "starter/movie-ratings",
        "output_dir": "runs/x",
        "seed": 7,
        "reward_funcs": [{"func": "judge.py:ask", "args": {"model": "m"}}],
    }


def test_a_run_of_defaults_can_be_saved_and_repeated(tmp_path):
    parser = RecipeParser(RunArguments)
    save_config(tmp_path / "run.yaml", *parser.parse([]))
    assert parser.parse(["--config", str(tmp_path / "run.yaml")])[0].num_ppo_epochs == 4


def test_a_default_that_this_machine_refuses_does_not_stop_saving(tmp_path):
    @dataclass
    class Bfloat16Arguments:
        bf16: bool = True
        width: int = 1
        derived: int | None = None

        def __post_init__(self):
            if self.bf16:
                raise ValueError("no bf16 on this machine")
            self.derived = 3 if self.derived is None else self.derived

    save_config(tmp_path / "run.yaml", Bfloat16Arguments(bf16=False, width=2))
    assert yaml.safe_load((tmp_path / "run.yaml").read_text()) == {"bf16": False, "width": 2}


def test_a_value_without_a_form_in_yaml_is_named(tmp_path):
    @dataclass
    class Odd:
        thing: object = None

    with pytest.raises(TypeError, match="thing holds a object, which has no form in YAML"):
        save_config(tmp_path / "run.yaml", Odd(object()))


def test_what_is_wrong_with_a_reward_of_a_file_is_said_with_its_line(tmp_path):
    from rlhf_recipes.rewards import load_rewards
    from rlhf_recipes.rewards.loading import RewardArguments

    config = tmp_path / "run.yaml"
    config.write_text("reward_funcs:\n  - EndsWithSentence\n  - EndsWithSentenc\n")
    (rewards,) = RecipeParser((RewardArguments,), "A test.").parse(["--config", str(config)])
    with pytest.raises(ValueError, match=r"run.yaml, line 3: There is no reward 'EndsWithSentenc'; did you mean"):
        load_rewards(rewards.reward_funcs)

    config.write_text("reward_funcs:\n  - EndsWithSentence\n  - func: LengthWindow\n    args: {maxmum: 3}\n")
    (rewards,) = RecipeParser((RewardArguments,), "A test.").parse(["--config", str(config)])
    with pytest.raises(ValueError, match=r"run.yaml, line 3: Reward 'LengthWindow' has no argument 'maxmum'"):
        load_rewards(rewards.reward_funcs)
    save_config(tmp_path / "saved.yaml", rewards)
    assert yaml.safe_load((tmp_path / "saved.yaml").read_text())["reward_funcs"] == [
        "EndsWithSentence", {"func": "LengthWindow", "args": {"maxmum": 3}}
    ]  # fmt: skip


# --- What is here, and what is on the Hub


@dataclass
class Named:
    """Names that may be paths or ids."""

    dataset_name: str = field(metadata={"help": "A folder or an id."})
    model_name_or_path: str | None = field(default=None, metadata={"help": "A folder or an id."})
    reward_funcs: list[str | dict] | None = field(default=None, metadata={"help": "Rewards."})
    output_dir: str | None = field(default=None, metadata={"help": "A folder."})


def test_a_saved_config_tells_in_every_folder_what_was_a_path(tmp_path, monkeypatch):
    for folder in ("data/films", "models/one", "judges/two", "Vader", "runs/three"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    rewards = ["judges/two", "Vader", "my-org/judge", {"func": "judges/two", "weight": 2.0}]
    save_config("config.yaml", Named("data/films", "models/one", rewards, "data/films"))
    saved = yaml.safe_load(Path("config.yaml").read_text())
    assert saved == {
        "dataset_name": "./data/films",
        "model_name_or_path": "./models/one",
        "reward_funcs": ["./judges/two", "Vader", "my-org/judge", {"func": "./judges/two", "weight": 2.0}],
        "output_dir": "data/films",
    }
    monkeypatch.chdir("/")
    assert [hub_id(saved[name]) for name in ("dataset_name", "model_name_or_path")] == [None, None]
    save_config(tmp_path / "config.yaml", Named("data/films", "runs/three"))  # now nothing here is called so
    saved = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert saved == {"dataset_name": "data/films", "model_name_or_path": "runs/three"}
    assert [hub_id(name) for name in saved.values()] == ["data/films", None]
