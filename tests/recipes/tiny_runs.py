"""What the tests of the recipes on TRL's trainers share: a place with tiny models and data, command lines, results."""

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.tiny import save_tiny, tiny_causal_lm, tiny_classifier, tiny_tokenizer

RECIPES = Path(__file__).parents[2] / "recipes"
LORA = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
SMALL = {
    "max_steps": 4,
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}
SAVING = {"save_strategy": "steps", "save_steps": 2}
MY_REWARDS = '''
def stars(completions, stars, **kwargs):
    """What the row's own column says."""
    return [float(star) for star in stars]


def brevity(completion_ids, limit=4, **kwargs):
    """1 for a completion of at most `limit` tokens."""
    return [float(len(ids) <= limit) for ids in completion_ids]


def sometimes(completions, stars, **kwargs):
    """Applies to no row of 4 stars or more."""
    return [None if star >= 4 else 1.0 for star in stars]


def broken(completions, **kwargs):
    raise ZeroDivisionError("no stars")


class PerToken:
    per_token = True

    def __call__(self, completion_ids, **kwargs):
        return [[0.0] * len(ids) for ids in completion_ids]
'''


def load_main(name):
    """The `main` of a recipe, imported as a module of its own name: the Trainer pickles its options by that name."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe", RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.main


def make_place(folder):
    """What a user would have: a policy, a reward model, rows of each kind, and rewards of their own in a file."""
    llama, bert = tiny_tokenizer("llama", chat_template=True), tiny_tokenizer("bert")
    save_tiny(folder / "policy", tiny_causal_lm(llama), llama)
    save_tiny(folder / "judge", tiny_classifier(bert), bert)
    (folder / "my_rewards.py").write_text(MY_REWARDS)
    prompts = [{"prompt": f"The film {row} is", "stars": row % 6} for row in range(16)]
    write_splits(folder / "prompts", prompts)
    ratings = [{"completion": f"The film is {'good ' * (row % 5)}{row}", "score": row % 5 - 2.0} for row in range(20)]
    write_splits(folder / "ratings", ratings)
    return folder


def write_rows(file, rows):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def write_splits(folder, rows):
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "test.jsonl", rows[:8])
    return str(folder)


def flags(options, *more):
    """A command line of options by name; `None` leaves one out."""
    words = []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        words += [] if value is None else [f"--{name}", *map(str, values)]
    return [*words, *more]


def read(folder, name):
    return json.loads((Path(folder) / name).read_text())


def adapters(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def check_full(place, out):
    """The whole model lies there, loads as any other and has learned; its tokenizer's pad token is not its eos."""
    assert not (out / "adapter_config.json").exists()
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
        for folder in (place / "policy", out)
    )
    assert before.keys() == after.keys()
    assert not equal(before, after)
    assert AutoTokenizer.from_pretrained(out).pad_token == "<pad>"


def check_page(out, *figures, says=()):
    """The page of the run has these figures of its metrics.json as they stand there, and says what is given."""
    page, metrics = (Path(out) / "report.html").read_text(encoding="utf-8"), read(out, "metrics.json")
    for name in figures:
        assert f'<data value="{metrics[name]}">' in page, name
    for words in ("How to repeat it", "Machine and versions", *says):
        assert words in page, words


def check_adapters(out):
    """The adapters lie there alone, without a second copy of them, and each has moved away from 0."""
    assert not (out / "model.safetensors").exists()
    assert not (out / "ref").exists()
    outer = {name: tensor for name, tensor in adapters(out).items() if "lora_B" in name}
    assert len(outer) == 4  # q_proj and v_proj of two layers
    assert all(tensor.abs().max() > 0 for tensor in outer.values())


def cut_back(out, checkpoint):
    """As if the run had been killed right after that checkpoint: what was written later is not there."""
    for entry in out.iterdir():
        if entry.name not in (".recipe", "config.yaml", checkpoint):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
