"""`accelerate_configs/` and `deepspeed_configs/`, read by what will read them: accelerate, the Trainer, DeepSpeed."""

import json
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env

from rlhf_recipes.ppo import PPOConfig
from tests.tiny import tiny_causal_lm, tiny_tokenizer

ROOT = Path(__file__).parents[1]
TOPOLOGIES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
ENGINES = sorted((ROOT / "deepspeed_configs").glob("*.json"))


def name_of(file):
    return file.stem


def launch_arguments(file, *more):
    """What `accelerate launch --config_file FILE recipes/ppo.py` makes of its arguments."""
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(file), *more, "recipes/ppo.py"])
    return _validate_launch_command(args)[0]


# --- accelerate ---------------------------------------------------------------------------------


def test_these_are_all():
    assert [file.stem for file in TOPOLOGIES] == ["cpu", "cpu_2", "ddp", "single", "zero2", "zero3"]
    assert [file.stem for file in ENGINES] == ["zero2", "zero3", "zero3_offload"]


@pytest.mark.parametrize(
    ("name", "kind", "processes", "on_cpu"),
    [
        ("single", DistributedType.NO, 1, False),
        ("cpu", DistributedType.NO, 1, True),
        ("cpu_2", DistributedType.MULTI_GPU, 2, True),
        ("ddp", DistributedType.MULTI_GPU, 2, False),
        ("zero2", DistributedType.DEEPSPEED, 2, False),
        ("zero3", DistributedType.DEEPSPEED, 2, False),
    ],
)
def test_accelerate_reads_what_the_name_says(name, kind, processes, on_cpu):
    config = load_config_from_file(str(ROOT / f"accelerate_configs/{name}.yaml"))
    assert (config.distributed_type, config.num_processes, config.use_cpu) == (kind, processes, on_cpu)
    assert config.mixed_precision is None  # else it would overrule --bf16
    args = launch_arguments(ROOT / f"accelerate_configs/{name}.yaml")
    assert args.num_processes == processes
    assert args.use_deepspeed == (kind == DistributedType.DEEPSPEED)
    assert args.multi_gpu == (kind == DistributedType.MULTI_GPU)


@pytest.mark.parametrize("file", TOPOLOGIES, ids=name_of)
def test_another_number_of_processes_is_a_flag(file):
    assert launch_arguments(file, "--num_processes", "8").num_processes == 8


@pytest.mark.parametrize("file", TOPOLOGIES, ids=name_of)
def test_the_header_has_the_command_and_the_number_of_processes(file):
    comments = [line.removeprefix("#").strip() for line in file.read_text().splitlines() if line.startswith("#")]
    number = yaml.safe_load(file.read_text())["num_processes"]
    commands = [line for line in comments if line.startswith("accelerate launch")]
    assert commands
    assert all(f"--config_file accelerate_configs/{file.name} recipes/ppo.py" in line for line in commands)
    assert any(line.startswith(f"Processes: {number}.") for line in comments)


@pytest.mark.parametrize("file", TOPOLOGIES, ids=name_of)
def test_accelerate_refuses_an_unknown_key(file, tmp_path):
    (tmp_path / "odd.yaml").write_text(file.read_text() + "num_proceses: 2\n")
    with pytest.raises(ValueError, match="unknown keys.*num_proceses"):
        load_config_from_file(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize("file", TOPOLOGIES, ids=name_of)
def test_keys_under_deepspeed_config_are_options_of_the_launcher(file):
    # Of these accelerate takes any name without a word.
    known = {action.dest for action in launch_command_parser()._actions}
    assert set(yaml.safe_load(file.read_text()).get("deepspeed_config", {})) <= known


def plugin(file, monkeypatch):
    """The DeepSpeed settings that a process of `accelerate launch --config_file FILE` finds in its environment."""
    monkeypatch.chdir(ROOT)
    args = launch_arguments(file, "--main_process_port", "0")
    own = load_config_from_file(str(file))
    fields = [*own.deepspeed_config, *(["mixed_precision"] if own.mixed_precision else [])]
    args.deepspeed_fields_from_accelerate_config = ",".join(fields)
    _, environment = prepare_deepspeed_cmd_env(args)
    for name, value in environment.items():
        if name.startswith("ACCELERATE_"):
            monkeypatch.setenv(name, value)
    return DeepSpeedPlugin()


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_the_file_named_in_the_topology_is_the_one_that_counts(name, stage, monkeypatch):
    found = plugin(ROOT / f"accelerate_configs/{name}.yaml", monkeypatch)
    assert found.zero_stage == stage
    assert found.zero3_init_flag == (stage == 3)
    assert found.gradient_accumulation_steps == "auto"  # the Trainer's, not the launcher's


@pytest.mark.parametrize("odd", ["zero_stage: 3", "gradient_accumulation_steps: 4", "offload_param_device: cpu"])
def test_accelerate_refuses_in_the_topology_what_the_json_decides(odd, tmp_path, monkeypatch):
    text = (ROOT / "accelerate_configs/zero2.yaml").read_text()
    (tmp_path / "odd.yaml").write_text(text.replace("deepspeed_config:\n", f"deepspeed_config:\n  {odd}\n"))
    with pytest.raises(ValueError, match="will be ignored"):
        plugin(tmp_path / "odd.yaml", monkeypatch)


# --- DeepSpeed ----------------------------------------------------------------------------------


def values(config):
    """All values of a nested mapping, by their path."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{path}", inner) for path, inner in values(value))
        else:
            yield key, value


@pytest.mark.parametrize("file", ENGINES, ids=name_of)
def test_what_a_recipe_decides_is_left_to_it(file):
    found = dict(values(json.loads(file.read_text())))
    of_the_recipe = {
        *("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"),
        *("bf16.enabled", "fp16.enabled", "zero_optimization.reduce_bucket_size"),
    }
    if found["zero_optimization.stage"] == 3:
        of_the_recipe |= {
            "zero_optimization.stage3_prefetch_bucket_size",
            "zero_optimization.stage3_param_persistence_threshold",
        }
    assert {path for path, value in found.items() if value == "auto"} == of_the_recipe
    # An optimizer or a scheduler here would replace --optim and --lr_scheduler_type.
    assert not any(path.startswith(("optimizer", "scheduler")) for path in found)


def filled(config, folder, **kwargs):
    """The settings after the Trainer has put the recipe's values for "auto", for one process."""
    from transformers.integrations import HfTrainerDeepSpeedConfig

    args = PPOConfig(output_dir=str(folder), use_cpu=True, bf16=False, **kwargs)
    settings = HfTrainerDeepSpeedConfig(config)
    settings.trainer_config_process(args)
    settings.trainer_config_finalize(args, tiny_causal_lm(tiny_tokenizer(), hidden_size=32), num_training_steps=12)
    return settings.config


@pytest.mark.parametrize("file", ENGINES, ids=name_of)
def test_the_trainer_fills_in_and_deepspeed_accepts(file, tmp_path):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = filled(
        str(file), tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, max_grad_norm=0.5
    )
    assert not [path for path, value in values(config) if value == "auto"]
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 2
    assert config["train_batch_size"] == 8
    assert config["gradient_clipping"] == 0.5
    assert config["zero_optimization"]["reduce_bucket_size"] == 32 * 32
    read = DeepSpeedConfig(config)
    assert read.zero_config.stage == config["zero_optimization"]["stage"]
    assert read.zero_config.gather_16bit_weights_on_model_save == (read.zero_config.stage == 3)
    offloads = file.stem.endswith("offload")
    assert (read.zero_config.offload_optimizer is not None) == offloads
    assert (read.zero_config.offload_param is not None) == offloads


@pytest.mark.parametrize("file", ENGINES, ids=name_of)
def test_keys_at_the_top_are_deepspeeds_own(file):
    # DeepSpeed passes over a name that it does not know, here alone.
    pytest.importorskip("deepspeed")
    from deepspeed.runtime import constants, precision_config
    from deepspeed.runtime.zero import config as zero

    known = {
        value for part in (constants, precision_config, zero) for value in vars(part).values() if type(value) is str
    }
    assert set(json.loads(file.read_text())) <= known
    assert "gradient_cliping" not in known


@pytest.mark.parametrize("part", ["zero_optimization", "bf16", "fp16"])
@pytest.mark.parametrize("file", ENGINES, ids=name_of)
def test_deepspeed_refuses_an_unknown_key_below_the_top(file, part, tmp_path):
    pytest.importorskip("deepspeed")
    from deepspeed.runtime.config import DeepSpeedConfig

    config = filled(str(file), tmp_path)
    config[part]["overlap_com"] = True
    with pytest.raises(ValueError, match="overlap_com"):
        DeepSpeedConfig(config)
