"""docs/migrating_from_trl.md against the code: what it names exists, and nothing of TRL 1.12 is forgotten."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from rlhf_recipes.ppo import PPOConfig, PPOTrainer, functional
from rlhf_recipes.ppo.metrics import GLOSSARY, OPEN_PREFIXES
from rlhf_recipes.ppo.renamed import REMOVED, RENAMED, WORKED_OUT

PAGE = Path(__file__).parents[1] / "docs" / "migrating_from_trl.md"
# What TRL 1.12's own PPOConfig has beyond transformers' TrainingArguments, or with another default.
TRL_FIELDS = {
    "learning_rate": 3e-6,
    "logging_steps": 10,
    "gradient_checkpointing": True,
    "bf16": False,
    "push_to_hub": False,
    "dataset_num_proc": 2,
    "num_mini_batches": 1,
    "total_episodes": 64,
    "local_rollout_forward_batch_size": 64,
    "num_sample_generations": 10,
    "response_length": 53,
    "stop_token": "eos",
    "stop_token_id": 7,
    "temperature": 0.7,
    "missing_eos_penalty": 1.0,
    "sft_model_path": "EleutherAI/pythia-160m",
    "world_size": None,
    "num_total_batches": None,
    "micro_batch_size": None,
    "local_batch_size": None,
    "batch_size": None,
    "local_mini_batch_size": None,
    "mini_batch_size": None,
    "reward_model_path": "EleutherAI/pythia-160m",
    "model_adapter_name": "default",
    "ref_adapter_name": "reference",
    "num_ppo_epochs": 4,
    "whiten_rewards": False,
    "kl_coef": 0.05,
    "kl_estimator": "k1",
    "cliprange": 0.2,
    "vf_coef": 0.1,
    "cliprange_value": 0.2,
    "gamma": 1.0,
    "lam": 0.95,
    "ds3_gather_for_generation": True,
}
TRL_PARAMETERS = [
    "args", "processing_class", "model", "ref_model", "reward_model", "train_dataset", "value_model", "data_collator",
    "eval_dataset", "optimizers", "callbacks", "peft_config",
]  # fmt: skip
TRL_METRICS = [
    "eps", "objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
    "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "policy/entropy_avg", "loss/policy_avg",
    "loss/value_avg", "val/clipfrac_avg", "val/ratio", "val/ratio_var", "val/num_eos_tokens", "lr", "episode", "epoch",
]  # fmt: skip
OF_TRAINER = {"learning_rate", "epoch", "grad_norm"}  # logged by transformers' Trainer


def section(title):
    return re.search(rf"^#+ {title}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.MULTILINE | re.DOTALL)[1]


def table(title):
    """Rows of a section's table below its head, as lists of cells without backticks around a whole cell."""
    rows = [line.strip("| ").split("|") for line in section(title).splitlines() if line.startswith("|")]
    assert rows, f"no table in {title}"
    return [[re.sub(r"^`([^`]*)`$", r"\1", cell.strip()) for cell in row] for row in rows[2:]]


def config(folder, **kwargs):
    return PPOConfig(output_dir=str(folder), use_cpu=True, **kwargs)


# ---- the trainer and its settings


def test_the_first_twelve_parameters_are_those_of_trl_in_its_order():
    parameters = list(inspect.signature(PPOTrainer.__init__).parameters.values())[1:]
    assert [parameter.name for parameter in parameters[:12]] == TRL_PARAMETERS
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters[12:])
    named = re.findall(r"`(\w+)`", section("The trainer").split("All have")[0])
    assert named == TRL_PARAMETERS
    later = re.findall(r"`(\w+)`", section("The trainer").split("by name only,")[1].split("\n\n")[0])
    assert set(later) - {"GRPOTrainer"} == {parameter.name for parameter in parameters[12:]}


@pytest.mark.parametrize("name", TRL_FIELDS)
def test_every_field_of_trl_is_accepted_or_listed_as_not_taken(name, tmp_path):
    value = TRL_FIELDS[name]
    made = config(tmp_path, **{name: value})
    if name in WORKED_OUT:
        assert name in [row[0] for row in table("Not taken")]
        with pytest.raises(TypeError, match=f"{name} cannot be given: it follows from"):
            config(tmp_path, **{name: 8})
    elif name == "stop_token_id":
        assert made.stop_token_id == [7]
    else:
        assert getattr(made, name) == value


def test_what_is_not_taken_can_be_read_as_the_page_says(tmp_path):
    assert {row[0] for row in table("Not taken")} == set(WORKED_OUT)
    args = config(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=2)
    read = {row[0]: eval(row[2], {"args": args}) for row in table("Not taken")}
    assert read == {
        "batch_size": 8,
        "local_batch_size": 8,
        "micro_batch_size": 4,
        "mini_batch_size": 4,
        "local_mini_batch_size": 4,
        "num_total_batches": 375,  # 3 passes over 1000 prompts in rollouts of 8
        "world_size": 1,
    }


def test_old_names_are_those_of_the_code():
    assert dict(table("Old names")) == RENAMED


def test_removed_classes_are_those_of_the_code():
    assert {row[0] for row in table("Removed classes")} == set(REMOVED)


def test_functions_of_trl_are_where_the_page_says():
    x, mask = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    named = re.search(r"ppo_trainer`, `(\w+)` and `(\w+)` are in\s`([\w.]+)`", section("Removed classes"))
    mean, whiten = (getattr(functional, name) for name in named.groups()[:2])
    assert named[3] == functional.__name__
    assert mean(x, mask) == 2.5
    root = 0.5**0.5  # of the unbiased variance of 2 and 3
    assert whiten(x, mask)[1:3].tolist() == pytest.approx([-0.5 / root, 0.5 / root])
    assert whiten(x, mask, center=False)[1:3].tolist() == pytest.approx([2.5 - 0.5 / root, 2.5 + 0.5 / root])


def test_every_setting_that_gives_trls_behaviour_back_is_accepted(tmp_path):
    found = re.findall(r"Like TRL:(.*?)(?=\n- |\n#|\Z)", section("What differs on purpose"), re.DOTALL)
    settings = re.findall(r"`(\w+)=([^`]+)`", "\n".join(found))
    assert len(settings) >= 10
    for name, value in settings:
        assert config(tmp_path, **{name: eval(value)}) is not None
        assert name in {*PPOConfig.__dataclass_fields__}


def test_every_setting_in_backticks_exists():
    """Of what looks like a name of Python in the sections about settings."""
    known = set(PPOConfig.__dataclass_fields__) | set(inspect.signature(PPOTrainer.__init__).parameters)
    known |= set(WORKED_OUT) | {name for name in dir(PPOTrainer) if not name.startswith("_")}
    known |= {"dapo", "global_step", "prompt", "input_ids"}
    for title in ("What a step is", "What differs on purpose"):
        for name in re.findall(r"`(\w+)(?:=[^`]*|\(.*?\))?`", section(title)):
            assert name in known, f"{title}: {name}"


# ---- metrics


def exists(metric):
    return metric in GLOSSARY or metric in OF_TRAINER or metric.startswith(OPEN_PREFIXES)


def test_every_metric_of_trl_is_in_the_table_once_and_its_new_name_exists():
    rows = table("Metrics")
    assert [row[0] for row in rows] == TRL_METRICS
    for old, new, *_ in rows:
        assert exists(new), f"{old} -> {new}"
        assert old == new or not exists(old)  # a name that is still there keeps its meaning


def test_every_metric_in_the_text_is_one_of_ours_or_of_trl():
    for name in re.findall(r"`((?:objective|policy|loss|value|val|rollout|time)/\w+)`", PAGE.read_text()):
        assert exists(name) or name in TRL_METRICS, name


# ---- GRPO


def test_every_name_of_the_grpo_table_exists():
    theirs = set(GRPOConfig.__dataclass_fields__) | set(inspect.signature(GRPOTrainer.__init__).parameters)
    ours = set(PPOConfig.__dataclass_fields__) | set(inspect.signature(PPOTrainer.__init__).parameters)
    for old, new, *_ in table("From a GRPO script"):
        assert old in theirs, old
        assert new in ours | {"none"}, new
        assert new != "none" or old not in ours


def test_what_carries_over_from_grpo_under_its_name_is_in_the_table():
    base = {name for parent in GRPOConfig.__mro__[1:] for name in getattr(parent, "__dataclass_fields__", {})}
    own = set(GRPOConfig.__dataclass_fields__) - base
    shared = own & set(PPOConfig.__dataclass_fields__)
    assert shared <= {row[0] for row in table("From a GRPO script")}


def test_the_defaults_that_the_grpo_table_names_are_the_defaults():
    ours, theirs = PPOConfig.__dataclass_fields__, GRPOConfig.__dataclass_fields__
    assert ours["num_generations"].default == 1
    assert ours["max_completion_length"].default == 53
    assert ours["temperature"].default == 0.7
    assert (ours["num_ppo_epochs"].default, theirs["num_iterations"].default) == (4, 1)
    assert theirs["beta"].default == 0.0
    assert (ours["logging_steps"].default, ours["save_steps"].default) == (1, 50)
