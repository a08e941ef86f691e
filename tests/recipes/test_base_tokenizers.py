"""Base models with the tokenizers that they come with, through each recipe, and loaded again by other code."""

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.rewards import LearnedReward
from tests.base_tokenizers import BASES, save_base
from tests.recipes.tiny_runs import flags, load_main, write_rows, write_splits

POLICIES = ("sft", "dpo", "ppo", "grpo", "rloo")
QUICK = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "disable_tqdm": True,
}
SAMPLING = {"max_completion_length": 4, "reward_funcs": "Length"}
OPTIONS = {
    "sft": {"dataset_name": "answers", "max_steps": 1, "bf16": False},
    "dpo": {"dataset_name": "pairs", "max_steps": 1, "bf16": False},
    "ppo": {"dataset_name": "answers", "total_episodes": 4, **SAMPLING},
    "grpo": {"dataset_name": "answers", "max_steps": 1, "num_generations": 2, "beta": 0.1, "bf16": False, **SAMPLING},
    "rloo": {"dataset_name": "answers", "max_steps": 1, "num_generations": 2, "bf16": False, **SAMPLING},
    "reward": {"dataset_name": "pairs", "max_steps": 1, "card": "false"},
}
REWARD = "def length(completion_ids, **kwargs):\n    return [float(len(ids)) for ids in completion_ids]\n"
LORA = ["--use_peft", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
# The tokenizer that needs another row of the embedding, under a reference and a head, and one that does not.
DEFAULT = {("gpt2", "rloo"), ("gpt2", "reward"), ("qwen", "ppo")}
PRODUCT = [
    pytest.param(kind, recipe, marks=[] if (kind, recipe) in DEFAULT else pytest.mark.slow)
    for kind in BASES
    for recipe in (*POLICIES, "reward")
]
ADAPTED = [
    pytest.param(kind, recipe, marks=[] if (kind, recipe) == ("gpt2", "dpo") else pytest.mark.slow)
    for kind in ("gpt2", "pythia", "qwen", "llama3")
    for recipe in POLICIES
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    answers = [{"prompt": f"The film {row} is", "completion": " good" * row} for row in range(1, 9)]
    write_splits(folder / "answers", answers)
    pairs = [{"prompt": f"The film {row} is", "chosen": " good", "rejected": " bad" * row} for row in range(1, 17)]
    write_rows(folder / "pairs/train.jsonl", pairs[:8])
    write_rows(folder / "pairs/test.jsonl", pairs[8:])
    (folder / "rewards.py").write_text(REWARD)
    for kind in BASES:
        save_base(folder / kind, kind)
    return folder


def run(place, kind, recipe, out, *more):
    options = {**OPTIONS[recipe], **QUICK, "model_name_or_path": place / kind, "output_dir": out}
    options["dataset_name"] = place / options["dataset_name"]
    if "reward_funcs" in options:
        options["reward_funcs"] = f"{place}/rewards.py:length"
    load_main(recipe)(flags(options, *more))


def check_pads(folder, kind, model):
    """What any Hugging Face code finds there: a token that pads and ends nothing, and an embedding that has it."""
    tokenizer, base = AutoTokenizer.from_pretrained(folder), BASES[kind]
    assert tokenizer.pad_token == base.pads
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.eos_token == base.names["eos_token"]
    before = AutoModelForCausalLM.from_pretrained(folder.parent / kind).get_input_embeddings().weight.shape[0]
    assert model.get_input_embeddings().weight.shape[0] == before + base.grows > tokenizer.pad_token_id
    return tokenizer


@pytest.mark.parametrize(("kind", "recipe"), PRODUCT)
def test_each_base_runs_through_each_recipe_and_is_loaded_by_other_code(place, recipe, kind):
    out = place / f"{kind}-{recipe}"
    run(place, kind, recipe, out)
    auto = AutoModelForSequenceClassification if recipe == "reward" else AutoModelForCausalLM
    model = auto.from_pretrained(out)
    tokenizer = check_pads(out, kind, model)
    assert model.config.pad_token_id == tokenizer.pad_token_id
    # Of a batch of two lengths, padded by the tokenizer, the shorter text gets what it gets alone.
    texts = ["The film", "The film is a quiet and funny one"]
    alone = model(**tokenizer(texts[:1], return_tensors="pt")).logits[0]
    if recipe == "reward":
        together = model(**tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")).logits[0]
        torch.testing.assert_close(together, alone)
        scores = LearnedReward(str(out))(prompts=["The film", "The film"], completions=[" is", " is good"])
        assert len(set(scores)) == 2
    else:
        batch = tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        positions = (batch.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        torch.testing.assert_close(model(**batch, position_ids=positions).logits[0, -1], alone[-1])
        model.generate(**batch, max_new_tokens=2)


@pytest.mark.parametrize(("kind", "recipe"), ADAPTED)
def test_adapters_are_loaded_on_their_base_with_the_row_that_was_added(place, recipe, kind):
    out = place / f"{kind}-{recipe}-lora"
    run(place, kind, recipe, out, *LORA)
    model = AutoPeftModelForCausalLM.from_pretrained(out)
    tokenizer = check_pads(out, kind, model)
    args = ModelArguments(str(out), dtype="float32")
    again = load_policy(args, tokenizer=load_policy_tokenizer(args))
    batch = tokenizer(["The film", "The film is a quiet one"], padding=True, padding_side="left", return_tensors="pt")
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
