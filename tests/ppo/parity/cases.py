"""The cases on which TRL 1.12 and this project are run side by side: models, prompts, completions, options.

Both processes build a case from this file alone, so that it imports neither library.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

LENGTH = 6  # new tokens of a completion
EPISODES = 16  # of a rollout
STOP = 300  # a token that a case may name as its stop token; no prompt and no completion has it otherwise

# Two epochs of two mini-batches of 8 episodes, each one micro-batch; clipping bites, because steps are large.
SHARED: dict[str, Any] = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "seed": 3,
    "per_device_train_batch_size": EPISODES,
    "gradient_accumulation_steps": 1,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "num_sample_generations": 0,
    "response_length": LENGTH,
    "temperature": 0.7,
    "kl_coef": 0.05,
    "gamma": 0.95,
    "lam": 0.9,
    "vf_coef": 0.5,
    "cliprange": 0.1,
    "cliprange_value": 0.1,
    "optim": "sgd",
    "learning_rate": 0.02,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,  # TRL clips nothing whatever this says
}


@dataclass(frozen=True)
class Case:
    """One run of both libraries.

    Args:
        options: settings of both, over those of `SHARED`; of TRL's names.
        ours: settings for this project alone.
        rollouts: how many.
        ends: which completions there are: `"none"` has no end, `"eos"` ends with EOS at different lengths, `"inside"`
            goes on after EOS, `"stop"` ends with the token `STOP`.
        lora: adapters for policy and critic; `"fresh"` through `peft_config`, `"trained"` with weights that change
            the model already.
        other_reference: a reference of its own, so that the KL is not 0 to begin with.
        pad_is_eos, pads_right: what the tokenizer does.
        score_on_end: TRL's score moved from one place behind the end onto it (see run_trl.py).
        held_out: whether there are prompts to evaluate on.
        passes: over the prompts, in the whole run.
    """

    options: dict[str, Any] = field(default_factory=dict)
    ours: dict[str, Any] = field(default_factory=dict)
    rollouts: int = 2
    ends: str = "none"
    lora: str | None = None
    other_reference: bool = True
    pad_is_eos: bool = False
    pads_right: bool = False
    score_on_end: bool = False
    held_out: bool = False
    passes: int = 1

    def config(self) -> dict[str, Any]:
        return SHARED | {"total_episodes": self.rollouts * EPISODES} | self.options


# The epsilon is above the rounding of gradients: AdamW would make steps of it, and others on another processor.
ADAMW = {"optim": "adamw_torch", "learning_rate": 1e-3, "weight_decay": 0.1, "adam_epsilon": 1e-6}
NO_STOP = {"stop_token": "none"}
IN_FOURS = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}

# Where TRL is right: completions of full length, one micro-batch for each optimizer step.
EQUAL: dict[str, Case] = {
    "sgd, k1": Case(ours=NO_STOP),
    "adamw, k3": Case(ADAMW | {"kl_estimator": "k3"}, ours=NO_STOP),
    "whitened rewards": Case({"whiten_rewards": True}, ours=NO_STOP),
    "whitened rewards, adamw, k3": Case(ADAMW | {"whiten_rewards": True, "kl_estimator": "k3"}, ours=NO_STOP),
    "two passes over the data": Case(ours=NO_STOP, rollouts=4, passes=2),
    "a copy as reference": Case(ours=NO_STOP, other_reference=False),
    "rollout in chunks": Case({"local_rollout_forward_batch_size": 5, "temperature": 1.3}, ours=NO_STOP),
    "eos as stop, no end reached": Case({"stop_token": "eos", "missing_eos_penalty": 1.5}),
    "no stop, penalty": Case({"missing_eos_penalty": 1.5}, ours=NO_STOP),
    "lora": Case({"learning_rate": 0.1}, ours=NO_STOP, lora="fresh", other_reference=False),
    "lora, adamw": Case(ADAMW | {"learning_rate": 1e-2}, ours=NO_STOP, lora="fresh", other_reference=False),
}
# Completions that end with EOS at different lengths, and TRL's score on that end.
ENDED: dict[str, Case] = {
    "ended, sgd": Case({"stop_token": "eos", "missing_eos_penalty": 1.5}, ends="eos", score_on_end=True),
    "ended, adamw": Case(
        ADAMW | {"stop_token": "eos", "whiten_rewards": True, "kl_estimator": "k3"}, ends="eos", score_on_end=True
    ),
    "ended, lora": Case(
        {"stop_token": "eos", "learning_rate": 0.1}, ends="eos", score_on_end=True, lora="fresh", other_reference=False
    ),
}
ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1}
# Where they differ on purpose.
DIFFERENT: dict[str, Case] = {
    "score place": Case({"stop_token": "eos"}, ends="eos", rollouts=1),
    "pad is eos": Case({"stop_token": "eos"}, ends="eos", rollouts=1, pad_is_eos=True),
    "one micro-batch": Case({"stop_token": "eos"} | ONE_STEP, ends="eos", rollouts=1, score_on_end=True),
    "four micro-batches": Case(
        {"stop_token": "eos"} | ONE_STEP | IN_FOURS, ends="eos", rollouts=2, passes=1, score_on_end=True
    ),
    "steps, 1 mini-batch": Case(IN_FOURS | {"num_mini_batches": 1}, ours=NO_STOP),
    "steps, 4 mini-batches": Case(IN_FOURS | {"num_mini_batches": 4}, ours=NO_STOP),
    "clipped gradient": Case({"max_grad_norm": 1e-3}, ours=NO_STOP),
    "penalty, stop token": Case(
        {"stop_token_id": STOP, "missing_eos_penalty": 1.5}, ours=NO_STOP, ends="stop", rollouts=1
    ),
    "default stop": Case({"missing_eos_penalty": 1.5}, ends="inside", rollouts=1),
    "no stop": Case({"missing_eos_penalty": 1.5}, ours=NO_STOP, ends="inside", rollouts=1),
    "trained adapters": Case(ours=NO_STOP, lora="trained", other_reference=False, rollouts=1),
    "linear schedule": Case({"lr_scheduler_type": "linear"}, ours=NO_STOP),
    "logging and evaluation": Case(
        {"logging_steps": 2, "eval_strategy": "steps", "eval_steps": 1}, ours=NO_STOP, rollouts=4, held_out=True
    ),
    "pads right": Case(ours=NO_STOP, rollouts=1, pads_right=True),
}
CASES = EQUAL | ENDED | DIFFERENT


def prompts(case: Case) -> list[list[int]]:
    """Prompts of 2 to 6 tokens, no two alike: as many as the case takes in one pass over them."""
    generator = torch.Generator().manual_seed(1)
    count = case.rollouts // case.passes * EPISODES
    lengths = [2 + row % 5 for row in range(count)]
    return [torch.randint(10, 290, (length,), generator=generator).tolist() for length in lengths]


def completions(case: Case, eos: int) -> dict[tuple[int, ...], list[int]]:
    """What is "sampled" for each prompt: `LENGTH` tokens; what stands behind an end is never looked at."""
    generator = torch.Generator().manual_seed(2)
    rows = {}
    for row, prompt in enumerate(prompts(case)):
        ids = torch.randint(10, 290, (LENGTH,), generator=generator).tolist()
        # Ends at the 2nd to 6th token, and every fifth completion has none.
        place = 1 + row % 5 if row % 5 != 4 else None
        if case.ends != "none" and place is not None:
            ids[place] = STOP if case.ends == "stop" else eos
        rows[tuple(prompt)] = ids
    return rows


def load(folder: Path, case: Case) -> dict[str, Any]:
    """What both constructors take, in float32, from the folder that the test has filled."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="right" if case.pads_right else "left")
    if case.pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    value = AutoModelForSequenceClassification.from_pretrained(folder / "value", num_labels=1, dtype=torch.float32)
    reward = AutoModelForSequenceClassification.from_pretrained(folder / "reward", num_labels=1, dtype=torch.float32)
    for model in (value, reward):
        model.config.pad_token_id = tokenizer.pad_token_id
    reference, lora = None, None
    if case.other_reference:
        reference = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
    if case.lora:
        torch.manual_seed(5)
        options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
        lora = LoraConfig(task_type="CAUSAL_LM", **options)
        value = get_peft_model(value, LoraConfig(task_type="SEQ_CLS", modules_to_save=["score"], **options))
    if case.lora == "trained":
        policy, lora = with_trained_adapters(policy, lora), None
    rows = Dataset.from_dict({"input_ids": prompts(case)})
    parts = {"processing_class": tokenizer, "model": policy, "ref_model": reference, "reward_model": reward}
    parts |= {"train_dataset": rows, "value_model": value, "peft_config": lora}
    parts["eval_dataset"] = rows.select(range(4)) if case.held_out else None
    torch.manual_seed(SHARED["seed"])  # what fresh adapters are drawn with, by both constructors
    return parts


def with_trained_adapters(policy: Any, config: Any) -> PeftModel:
    model = get_peft_model(policy, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(len(name)))
    return model
