"""Adapters on a tiny base, put beside each other by hand as `recipes/reward_ensemble.py` leaves them."""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.rewards.combine.shared_ensemble import EnsembleSettings
from tests.tiny import save_tiny, tiny_classifier, tiny_tokenizer

TARGETS = {"bert": ["query", "value"], "llama": ["q_proj", "v_proj"]}


def make_base(folder, kind="bert", num_labels=1, **settings):
    tokenizer = tiny_tokenizer(kind)
    return str(save_tiny(folder, tiny_classifier(tokenizer, kind, num_labels=num_labels, **settings), tokenizer))


def make_adapter(folder, base, seed, kind="bert", rank=2, num_labels=1, **lora):
    """An adapter of which both matrices are random, so that it changes what the base says, with a head of its own."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=num_labels, ignore_mismatched_sizes=True
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        settings = {"r": rank, "lora_alpha": 3 * rank, "init_lora_weights": False, **lora}
        config = LoraConfig(task_type="SEQ_CLS", target_modules=TARGETS[kind], **settings)
        model = get_peft_model(model, config)
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                torch.nn.init.normal_(parameter)
    model.save_pretrained(str(folder))
    RewardModelSettings(append_eos=kind == "llama").save(folder)
    return folder


def make_ensemble(folder, base, count=3, kind="bert", means=None, stds=None, **lora):
    for index in range(count):
        make_adapter(folder / f"adapter_{index}", base, seed=index, kind=kind, **lora)
    EnsembleSettings(count, means or (0.0,) * count, stds or (1.0,) * count, texts=10).save(folder)
    return folder
