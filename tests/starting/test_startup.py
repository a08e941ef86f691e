"""What a command waits for before it answers, and what it leaves unsaid."""

import functools
import gc
import importlib
import importlib.metadata
import inspect
import json
import logging
import os
import resource
import subprocess
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from rlhf_recipes.starting import startup
from tests.launching import in_one_process
from tests.tiny import tiny_tokenizer

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
COMMANDS = (
    "data.feedback", "data.cleaning", "data.corruption", "data.starter", "reward_modeling.evaluation",
    "reward_modeling.bias", "rewards score", "rewards calibrate", "report", "quickstart",
)  # fmt: skip
# What trains. Each takes seconds to import, or brings what does.
HEAVY = (
    "peft", "bitsandbytes", "deepspeed", "torch._inductor", "torch._dynamo", "transformers.modeling_utils",
    "transformers.trainer", "trl.trainer.utils", "trl.trainer.sft_trainer", "sklearn", "captum",
)  # fmt: skip


def recipe(name, *words):
    return [str(ROOT / f"recipes/{name}.py"), *map(str, words)]


def of_module(command, *words):
    name, *rest = command.split()
    return [f"rlhf_recipes.{name}", *rest, *words]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """What a user might have, and folders in which something is missing."""
    tmp_path = tmp_path_factory.mktemp("place")
    (tmp_path / "rows").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        rows = [
            {
                "prompt": f"Film {number} of {row}",
                "chosen": f"{row} is good",
                "rejected": f"{row} is {number} times bad",
            }
            for row in ("Kurosawa", "Varda", "Tati", "Ozu")
        ]
        (tmp_path / f"rows/{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "others.jsonl").write_text('{"colour": "red"}\n{"colour": "blue"}\n')
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.txt").write_text("mine")
    tiny_tokenizer(chat_template=True).save_pretrained(tmp_path / "reader")
    (tmp_path / "reader/config.json").write_text('{"model_type": "llama", "eos_token_id": 2}')
    return tmp_path


def wrong_commands(place):
    """For each recipe that trains or measures: an option, a file, a dataset, columns, a model that are not there."""
    rows, out = place / "rows", ("--output_dir", place / "out")
    rewards = ("--reward_funcs", "EndsWithSentence")
    for name in ("ppo", "grpo", "rloo", "evaluate", "best_of_n", "sft", "dpo", "reward", "reward_ensemble"):
        samples = name in ("ppo", "grpo", "rloo", "evaluate", "best_of_n")
        all_rows = (*out, "--overwrite_output_dir", *(rewards if samples else ()))
        if name == "reward_ensemble":
            all_rows = (*all_rows, "--use_peft")
        if name not in ("evaluate", "best_of_n"):
            all_rows = (*all_rows, "--per_device_train_batch_size", 2, "--bf16", "false")
        if name == "sft":
            all_rows = (*all_rows, "--dataset_text_field", "chosen")
        if name in ("grpo", "rloo"):
            all_rows = (*all_rows, "--num_generations", 2)
        known = ("--dataset_name", rows)
        yield "--sedd", recipe(name, *all_rows, *known, "--sedd", 1)
        yield "not-there.yaml", recipe(name, "--config", place / "not-there.yaml")
        reader = ("--model_name_or_path", place / "reader")
        yield "no-rows", recipe(name, *all_rows, *reader, "--dataset_name", place / "no-rows")
        others = ("--dataset_test_split", "train") if name in ("evaluate", "best_of_n") else ()
        yield "colour", recipe(name, *all_rows, *reader, *others, "--dataset_name", place / "others.jsonl")
        yield "no-model", recipe(name, *all_rows, *known, "--model_name_or_path", place / "no-model")
        full = (*all_rows, *known, "--model_name_or_path", place, "--output_dir", place / "full")
        yield "thesis.txt", recipe(name, *(word for word in full if word != "--overwrite_output_dir"))


@pytest.fixture(scope="module")
def told(place):
    """What each command said and has brought in; all in one process, since nothing that trains may be there yet."""
    helps = [recipe(name, "--help") for name in RECIPES] + [of_module(name, "--help") for name in COMMANDS]
    wrong = list(wrong_commands(place))
    said = in_one_process([*helps, *(command for _, command in wrong)], ROOT, place, HEAVY)
    of_help = {" ".join(command): said.pop(" ".join(command)) for command in helps}
    return of_help, [(named, command, said[" ".join(command)]) for named, command in wrong]


def test_help_imports_nothing_that_trains(told):
    for command, (code, said, brought) in told[0].items():
        assert (command, code, brought) == (command, 0, [])
        assert "usage:" in said.lower() or "Options" in said


def test_a_wrong_name_is_told_before_anything_that_trains_is_imported(told):
    for named, command, (code, said, brought) in told[1]:
        last = said.splitlines()[-1]
        assert (command, code, brought) == (command, 2 if named in ("--sedd", "not-there.yaml") else 1, [])
        assert "error: " in last
        assert named in last  # the cause
        assert "Traceback" not in said
        assert ("RLHF_RECIPES_DEBUG=1" in said) == (code == 1)


STAND_IN = """
import sys
import rlhf_recipes
from transformers import TrainingArguments, trainer_utils
from transformers.integrations import integration_utils
assert "peft" not in sys.modules
assert "transformers.modeling_utils" not in sys.modules
from tests.tiny import tiny_causal_lm, tiny_tokenizer
model = tiny_causal_lm(tiny_tokenizer())
assert not isinstance(model, trainer_utils.PeftModel)
from peft import LoraConfig, get_peft_model
adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
assert isinstance(adapted, trainer_utils.PeftModel)
assert not isinstance(adapted, trainer_utils.PeftMixedModel)
assert trainer_utils.unwrap_peft_model(adapted) is adapted.get_base_model()
mixed = get_peft_model(model, LoraConfig(target_modules=["q_proj"]), mixed=True)
assert isinstance(mixed, trainer_utils.PeftMixedModel)
assert isinstance(model, integration_utils.PreTrainedModel)
assert not isinstance(adapted, integration_utils.PreTrainedModel)
"""


@pytest.mark.slow
def test_transformers_knows_models_as_soon_as_there_are_some():
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", STAND_IN], capture_output=True, text=True, env=env, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["bitsandbytes.backends.cpu.ops", "DeepSpeed"])
def test_two_lines_go_unsaid_and_all_others_are_said(name, caplog):
    library = logging.getLogger(name)
    library.addHandler(caplog.handler)
    try:
        library.warning(
            "Failed to load CPU gemm_4bit_forward from kernels-community: %s." if "bits" in name else
            "Setting accelerator to CPU. If you have GPU or other accelerator, we were unable to detect it%s.", ""
        )  # fmt: skip
        assert not caplog.records
        library.warning("The weights are not there.")
        assert "The weights are not there." in caplog.messages
    finally:
        library.removeHandler(caplog.handler)


def test_what_is_installed_is_listed_once_until_something_is_installed(tmp_path, monkeypatch):
    plain = importlib.metadata.packages_distributions
    monkeypatch.setattr(importlib.metadata, "packages_distributions", plain)  # is put back
    monkeypatch.syspath_prepend(str(tmp_path))
    startup.remember_distributions()
    before = importlib.metadata.packages_distributions()
    assert importlib.metadata.packages_distributions() is before
    assert "brand_new" not in before
    (tmp_path / "brand_new-1.0.dist-info").mkdir()
    (tmp_path / "brand_new-1.0.dist-info/METADATA").write_text(
        "Metadata-Version: 2.1\nName: brand-new\nVersion: 1.0\n"
    )
    (tmp_path / "brand_new-1.0.dist-info/top_level.txt").write_text("brand_new\n")
    assert importlib.metadata.packages_distributions()["brand_new"] == ["brand-new"]


def test_garbage_is_looked_for_again_after_an_import_and_modules_are_as_they_would_be(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "torch_like.py").write_text("import gc\nwas_enabled = gc.isenabled()\n")
    monkeypatch.setattr(startup, "LARGE", ("torch_like",))
    module = importlib.import_module("torch_like")
    assert not module.was_enabled
    assert gc.isenabled()
    assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader
    assert "was_enabled" in inspect.getsource(module)


IN_ANOTHER_ORDER = """
import peft, transformers
import rlhf_recipes
from transformers import trainer_utils
from transformers.integrations import integration_utils
assert trainer_utils.PeftModel is peft.PeftModel
assert integration_utils.PreTrainedModel is transformers.PreTrainedModel
"""


@pytest.mark.slow
def test_what_is_imported_already_has_no_stand_in():
    done = subprocess.run([sys.executable, "-c", IN_ANOTHER_ORDER], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]


def processor_seconds(command):
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], capture_output=True, env=env, cwd=ROOT)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


LEAST = ["-c", "import torch, transformers"]


@functools.cache
def alone():
    return processor_seconds(LEAST)


def takes_little_more(command, share):
    """Whether it does in one of five turns with its measure: what else runs on a machine falls on both."""
    seconds, of_least = [], [alone()]
    for _ in range(5):
        seconds.append(processor_seconds(command))
        if min(seconds) < max(4.0, share * min(of_least)):
            return True
        of_least.append(processor_seconds(LEAST))
    return min(seconds), min(of_least)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_help_and_wrong_names_take_little_more_than_torch_and_transformers(place):
    """What is imported is the same for all mistakes of a recipe, so that two recipes stand for all of them."""
    helps = [recipe(name, "--help") for name in RECIPES] + [["-m", *of_module(name, "--help")] for name in COMMANDS]
    wrong = [command for _, command in wrong_commands(place) if command[0].endswith(("ppo.py", "reward.py"))]
    assert len(wrong) == 12
    taken = {" ".join(command): takes_little_more(command, 4 / 3) for command in helps}
    # Before a model is looked for, transformers lists all of its own, where arguments of training are made.
    taken |= {" ".join(command): takes_little_more(command, 3 / 2) for command in wrong}
    assert {command: seconds for command, seconds in taken.items() if seconds is not True} == {}
