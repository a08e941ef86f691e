"""Estimates against hand counts, published sizes and bitsandbytes itself; and every YAML of the recipes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, LlamaConfig

from rlhf_recipes.modeling.memory import built
from rlhf_recipes.modeling.memory import estimate as module
from rlhf_recipes.modeling.memory.__main__ import main
from rlhf_recipes.modeling.memory.advice import advise
from rlhf_recipes.modeling.memory.estimate import estimate
from rlhf_recipes.modeling.memory.machines import GPUS, named, of_size, this_one
from rlhf_recipes.modeling.memory.packed import pack
from rlhf_recipes.modeling.memory.pages import QLORA, SAMPLED, table
from rlhf_recipes.modeling.memory.roles import memory_of_roles
from rlhf_recipes.modeling.memory.settings import OWN_DEFAULTS, RunArguments, defaults_of, recipe_of
from rlhf_recipes.modeling.memory.tracked import Pass
from tests.modeling.memory.test_roles import arguments
from tests.test_configs import CONFIGS, PRESETS, PROJECT, options_of

HUGE = of_size("10TB")
SHAPE = {
    "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "tie_word_embeddings": False,
}  # fmt: skip
# Embedding and head; per layer query and output, key and value, three of the MLP, two norms; the last norm.
LAYER = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128 + 2 * 64
NUMBERS = 2 * 96 * 64 + 4 * LAYER + 64
ROTARY = 2 * 8 * 4  # half of the 16 numbers of a head are frequencies, kept twice, in float32


@pytest.fixture
def folder(tmp_path):
    LlamaConfig(**SHAPE).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def no_passes(monkeypatch):
    """Nothing is computed: what is tried is all that stands around it."""
    for name in ("update", "reading", "cache"):
        monkeypatch.setattr(module, name, lambda *args, **kwargs: Pass(10, 100))


def roles(found):
    return {role.role: role for role in found.roles}


# ---- weights, gradients, states


def test_full_training_by_hand(folder, no_passes):
    found = estimate(RunArguments(model_name_or_path=folder), "ppo", HUGE)
    of = roles(found)
    assert (of["policy"].weights, of["policy"].gradients) == (4 * NUMBERS + ROTARY, 4 * NUMBERS)
    assert of["policy"].optimizer == 8 * NUMBERS
    assert (of["reference"].weights, of["reference"].gradients) == (4 * NUMBERS + ROTARY, 0)
    assert of["critic"].weights == 65 * 4  # a weight for each number of the states, and a bias


def test_adapters_by_hand(folder, no_passes):
    run = RunArguments(model_name_or_path=folder, use_peft=True, lora_r=2, lora_target_modules=["q_proj", "v_proj"])
    of = roles(estimate(run, "ppo", HUGE))
    # 64 -> 2 -> 64 for queries and 64 -> 2 -> 32 for values, in 4 layers
    trained = 4 * (2 * 64 * 2 + (64 + 32) * 2)
    assert (of["policy"].gradients, of["policy"].optimizer) == (4 * trained, 8 * trained)
    assert of["policy"].weights == 4 * (NUMBERS + trained) + ROTARY
    assert of["reference"].total == 0
    whole = roles(estimate(run.changed(critic="policy"), "ppo", HUGE))["critic"]
    assert whole.gradients == 4 * (trained + 64)  # a head of its own, without a bias
    adapter = roles(estimate(run.changed(critic="adapter"), "ppo", HUGE))["critic"]
    assert (adapter.weights, adapter.gradients) == (4 * (trained + 64), 4 * (trained + 64))


def test_kept_states_by_hand(folder, no_passes):
    run = RunArguments(
        model_name_or_path=folder, use_peft=True, lora_num_layers=1, lora_target_modules=["q_proj", "v_proj"],
        per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=3, max_completion_length=7,
    )  # fmt: skip
    found = estimate(run, "ppo", HUGE, prompt_tokens=5)
    kept = (4 * 3) * (5 + 7) * 64 * 4
    assert found.moments["sampling"]["kept states"] == kept
    assert found.moments["update"]["kept states"] == kept + kept // 3  # the rows of an optimizer step beside them
    for change in ({"reuse_trunk": False}, {"trunk_memory_gb": 0.0}, {"lora_num_layers": 4}):
        none = estimate(run.changed(**change), "ppo", HUGE, prompt_tokens=5)
        assert not none.moments["update"].get("kept states")


def test_weights_laid_out_for_decoding_by_hand(folder, no_passes):
    run = RunArguments(model_name_or_path=folder)
    cpu = replace(HUGE, is_gpu=False)
    output = 96 * 64
    of_layers = 4 * (2 * 64 * 64 + 3 * 64 * 128)  # keys and values are too narrow
    for which, numbers in ((None, output + of_layers), ("output", output), ("none", 0)):
        found = estimate(run.changed(packed_decoding=which), "ppo", cpu)
        assert found.moments["sampling"]["packed weights"] == 4 * numbers
    assert not estimate(run, "ppo", HUGE).moments["sampling"]["packed weights"]


def test_a_moment_is_the_sum_of_what_is_there(folder, no_passes):
    found = estimate(RunArguments(model_name_or_path=folder), "ppo", HUGE)
    held = HUGE.process + 2 * (4 * NUMBERS + ROTARY) + 260 + 8 * (NUMBERS + 65)
    assert found.at("update") == held + 4 * (NUMBERS + 65) + max(100, 96 * 64 * 4)  # or an embedding's gradient twice
    assert found.at("sampling") == held + 100 + 64 * 8 // 8 * 0 + min(8, 64) * 96 * (4 + 13)
    assert found.total == found.at(found.worst) == max(map(found.at, found.moments))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [  # as the cards of these models have them
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen2.5-14B", 14_770_033_664),
        ("meta-llama/Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_the_known_sizes_have_as_many_weights_as_published(name, numbers):
    model = built.build(built.LANGUAGE_MODEL, built.config_of(name), "auto")
    assert sum(parameter.numel() for parameter in model.parameters()) == numbers
    assert model.dtype == torch.bfloat16


# ---- 4 and 8 bit


@pytest.mark.parametrize("nested", [True, False])
def test_4_bit_takes_what_bitsandbytes_takes(nested):
    bnb = pytest.importorskip("bitsandbytes")
    real = bnb.nn.Linear4bit(512, 192, bias=False, quant_type="nf4", compress_statistics=nested)
    real.weight = bnb.nn.Params4bit(torch.randn(192, 512), False, compress_statistics=nested, quant_type="nf4")
    real = real.to("cpu")
    plain = torch.nn.Sequential(torch.nn.Linear(512, 192, bias=False, device="meta")).requires_grad_(False)
    pack(plain, 4, nested)
    told, counted = (memory_of_roles({"policy": m}, arguments())[0].weights for m in (real, plain))
    assert counted == told
    bits = counted * 8 / (512 * 192)
    assert bits == pytest.approx(4.127 if nested else 4.5, abs=0.1)  # and tables, which so small a layer shows


def test_bits_for_a_weight():
    plain = torch.nn.Sequential(torch.nn.Linear(8192, 8192, bias=False, device="meta")).requires_grad_(False)
    pack(plain, 4, True)
    (counted,) = memory_of_roles({"policy": plain}, arguments())
    # 4, and 8 for a scale of 64, and 32 for a scale of 256 scales
    assert counted.weights * 8 / 8192**2 == pytest.approx(4 + 8 / 64 + 32 / 64 / 256, abs=1e-3)


def test_heads_and_adapters_are_not_packed(folder):
    run = RunArguments(model_name_or_path=folder, use_peft=True, lora_target_modules=["all-linear"])
    model = built.trained_model(run)
    pack(model, 4, True)
    packed = {name for name, p in model.named_parameters() if p.dtype == torch.uint8}
    assert len(packed) == 4 * 7
    assert not any("lora_" in name or "lm_head" in name or "embed" in name for name in packed)


# ---- rewards


def test_rewards_that_are_models(folder, tmp_path, no_passes):
    BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50,
               num_labels=1, dtype="float16").save_pretrained(tmp_path / "reward")  # fmt: skip
    base = built.trained_model(RunArguments(model_name_or_path=folder), built.CLASSIFIER)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS", base_model_name_or_path=folder)
    with torch.device("meta"):
        get_peft_model(base, config)
    config.save_pretrained(tmp_path / "adapter")
    specs = [
        {"func": str(tmp_path / "reward"), "name": "own"},
        {"func": str(tmp_path / "adapter"), "name": "lora", "args": {"base": "policy"}},
        {"func": str(tmp_path / "nothing"), "name": "missing"},
        "EndsWithSentence",
        "my_rewards.py:brevity",
    ]
    run = RunArguments(model_name_or_path=folder, reward_funcs=specs)
    found = estimate(run, "ppo", HUGE)
    assert set(roles(found)) == {"policy", "reference", "critic", "reward own", "reward lora"}
    # 4 layers of 64 -> 2 -> 64, and a head
    assert roles(found)["reward lora"].weights == 4 * (4 * 2 * 2 * 64 + 64)
    in_files = roles(found)["reward own"].weights
    on_cpu = roles(estimate(run, "ppo", this_one()))["reward own"].weights
    # Every number has 4 bytes in place of 2, but for the ids of 512 positions and of their types, which are integers.
    assert 2 * in_files - on_cpu == 2 * 512 * 8
    assert len(found.notes) == 1
    assert "missing" in found.notes[0]


# ---- what does not fit


def test_7b_fits_24_gb():  # some seconds, for what the page promises
    run = RunArguments(model_name_or_path="Qwen/Qwen2.5-7B", **QLORA, **SAMPLED)
    assert estimate(run, "ppo", of_size("24GB")).fits


def lowered(run, machine):
    found = estimate(run, "ppo", machine)
    assert not found.fits
    changes = advise(run, found)
    totals = [found.total, *(change.total for change in changes)]
    assert changes
    assert all(after < before for before, after in zip(totals, totals[1:], strict=False))
    assert not any(change.fits for change in changes[:-1])
    for change in changes:
        run = run.changed(**change.options)
    assert estimate(run, "ppo", machine).total == totals[-1]
    return changes


def test_advice_lowers_the_need_each_time(folder, no_passes):
    # Where passes take nothing that matters, weights alone can be fewer: adapters, in half, in 4 bit.
    changes = lowered(RunArguments(model_name_or_path=folder), of_size("1MB"))
    told = [name for change in changes for name in change.options]
    assert "use_peft" in told
    assert "load_in_4bit" in told


@pytest.mark.slow  # each proposal is worked out, passes and all
def test_advice_with_passes(folder):
    lowered(RunArguments(model_name_or_path=folder, per_device_train_batch_size=16), of_size("603MB"))


def test_machines():
    assert named("NVIDIA GeForce RTX 4090").size == named("rtx4090").size == 24 * 10**9
    assert of_size("24").size == of_size("24 gb").size == 24 * 10**9
    assert of_size("1.5GiB").size == 1.5 * 2**30
    assert this_one().size > this_one().process > 10**8
    for wrong in ("", "24 apples", "0GB", "-3GB"):
        with pytest.raises(ValueError, match="no size of memory"):
            of_size(wrong)
    with pytest.raises(ValueError, match="RTX 4090"):
        named("RTX 9999")
    assert min(GPUS.values()) > 1


# ---- recipes and their files


@pytest.mark.parametrize("recipe", ["ppo", "reward", "evaluate", "best_of_n"])
def test_defaults_are_those_of_the_recipe(recipe, tmp_path):
    need = ["--output_dir", tmp_path / "out", "--dataset_name", "rows", "--model_name_or_path", "model"]
    need += [] if recipe == "reward" else ["--reward_funcs", "EndsWithSentence"]
    need += ["--judge_funcs", "EndsWithSentence"] if recipe == "best_of_n" else []
    options = options_of(PROJECT / f"recipes/{recipe}.py", *need)
    assert {name: options[name] for name in OWN_DEFAULTS[recipe]} == OWN_DEFAULTS[recipe]


def test_defaults_of_trl():
    assert defaults_of("sft")["gradient_checkpointing"] is True
    assert defaults_of("grpo")["max_completion_length"] > 0


def test_which_recipe(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        "# python recipes/reward.py --config a.yaml\n# then: python recipes/dpo.py --config b.yaml\nseed: 0\n"
    )
    assert recipe_of(str(file)) == "dpo"
    assert recipe_of(str(file), "sft") == "sft"
    file.write_text("seed: 0\n")
    with pytest.raises(ValueError, match="--recipe, one of ppo"):
        recipe_of(str(file))
    (tmp_path / ".recipe").write_text("reward\n")
    assert recipe_of(str(file)) == "reward"


def models_of(file):
    """The folders that a YAML names."""
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    specs = [*settings.get("reward_funcs", []), *settings.get("judge_funcs", [])]
    named_there = [spec["func"] if isinstance(spec, dict) else spec for spec in specs]
    return [name for name in [settings.get("model_name_or_path"), *named_there] if name and "/" in name]


# What compress.py holds beside a model (the original, a cut one, states of candidates) is not estimated, and refused.
ESTIMATED = [file for file in CONFIGS if "compress" not in file.stem]


@pytest.mark.parametrize("file", ESTIMATED, ids=lambda file: file.stem)
def test_every_yaml(file, tmp_path, monkeypatch, capsys, no_passes):
    monkeypatch.chdir(tmp_path)
    for name in models_of(file):
        config = BertConfig(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=64)
        decodes = "smollm" in name or "ppo" in name or "sft" in name
        (LlamaConfig(**{**SHAPE, "num_hidden_layers": 12}) if decodes else config).save_pretrained(name)
    assert main(["--config", str(file), "--fits", "100GB", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"] == recipe_of(str(file))
    assert found["notes"] == []
    models = [role for role in found["roles"] if role["weights"]]
    assert len(models) >= len(set(models_of(file)))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_is_no_run(file, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(file), "--recipe", "ppo"])
    assert stop.value.code == 2
    assert "No model is named" in capsys.readouterr().err


# ---- the command


def test_the_command(folder, tmp_path, capsys, no_passes):
    file = tmp_path / "run.yaml"
    file.write_text(f"# python recipes/ppo.py --config run.yaml\nmodel_name_or_path: {folder}\nlearning_rate: 1e-5\n")
    assert main(["--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert "policy" in said
    assert "fits into this machine" in said or "fits into" in said
    assert main(["--config", str(file), "--fits", "1MB"]) == 1
    said = capsys.readouterr().out
    assert "does not fit" in said
    assert "Nothing known here makes it fit" in said
    assert "--use_peft" in said


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gpu", "RTX 4090", "--fits", "24GB"], "Give one of them"),
        (["--gpu", "Voodoo 2"], "Known are"),
        (["--fits", "much"], "no size of memory"),
        (["--model_name_or_path", "nobody/nothing-there"], "neither on this machine nor"),
        (["--model_name_or_path", "./nowhere"], "No model at"),
        (["--optim", "adamw_magic"], "no optimizer"),
        (["--prompt_tokens", "0"], "give 1 or more"),
        (["--recipe", "soup"], "--recipe, one of"),
        (["--lora_q", "3"], "unknown option"),
    ],
)
def test_mistakes(folder, flags, message, capsys, no_passes):
    given = ["--recipe", "ppo", "--model_name_or_path", folder, *flags]
    with pytest.raises(SystemExit) as stop:
        main(given)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_whose_code_needs_numbers_is_said(folder, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("a number is asked for")

    monkeypatch.setattr(module, "update", fails)
    found = estimate(RunArguments(model_name_or_path=folder), "sft", HUGE)
    assert found.notes == ["what LlamaForCausalLM computes is not counted: RuntimeError: a number is asked for"]


# ---- the page


@pytest.mark.slow  # builds and works out 35 runs, up to 70B
def test_the_table_of_the_page_is_that_of_the_command():
    page = Path("docs/memory.md").read_text(encoding="utf-8")
    assert table() in page


def test_a_table_of_own_sizes(tmp_path, no_passes):
    file = tmp_path / "sizes.json"
    file.write_text(json.dumps({"mine/small": {"model_type": "llama", **{**SHAPE, "num_hidden_layers": 8}}}))
    lines = table(file).splitlines()
    assert lines[2].startswith("| small | 0.6: **8 GB** |")
    file.write_text("[1]")
    with pytest.raises(ValueError, match="map names to configs"):
        table(file)
