"""A tiny PPO run, and what tests ask of it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from rlhf_recipes.ppo import PPOConfig, PPOTrainer
from tests.tiny import tiny_causal_lm, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
OPENINGS = ["The film", "A dull script and", "It was", "Nobody could", "What a", "user", "a tired cast", "two"]
DATA = Dataset.from_dict({"prompt": OPENINGS * 2, "number": list(range(16))})


def many_short_tokens(completion_ids, **kwargs):
    """Something that differs from row to row: the share of tokens with a low id."""
    return [sum(token < 100 for token in ids) / len(ids) for ids in completion_ids]


def tiny_policy(seed=0, **config):
    return tiny_causal_lm(TOKENIZER, seed=seed, hidden_size=16, initializer_range=0.3, **config)


def lora_policy():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", lora_dropout=0.1)
        return get_peft_model(tiny_policy(), config)


# What goes to the trainer itself; everything else is a setting.
PARTS = ("ref_model", "reward_model", "value_model", "data_collator", "eval_dataset", "peft_config",
         "imitation_dataset", "generator")  # fmt: skip


def trainer(folder, model=None, reward=many_short_tokens, data=DATA, tokenizer=TOKENIZER, kept=(), **kwargs):
    """SGD at temperature 1, 8 episodes a rollout, 2 x 2 optimizer steps each, 2 rollouts; `kept` are callbacks."""
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 8,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "total_episodes": 16,
        "max_completion_length": 6,
        "temperature": 1.0,
        "optim": "sgd",
        "learning_rate": 0.1,
        "lr_scheduler_type": "linear",
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    parts = {name: kwargs.pop(name) for name in PARTS if name in kwargs}
    return PPOTrainer(
        PPOConfig(**options | kwargs),
        tokenizer,
        tiny_policy() if model is None else model,
        reward_funcs=reward,
        train_dataset=data,
        callbacks=list(kept),
        **parts,
    )


def weights(run):
    return {name: tensor.clone() for name, tensor in run.roles.state_dict().items()}


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max((one[name] - other[name]).abs().max().item() for name in one)


def logged(run):
    return [entry for entry in run.state.log_history if "objective/scores" in entry]


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def torchrun(script, *arguments, timeout=240):
    """Run a script of this folder in two processes; its output if it fails."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(Path(__file__).with_name(script)), *map(str, arguments)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout)


def same_log(one, other, tolerance=1e-7):
    """Whether two runs have logged the same: everything but times."""
    assert len(logged(one)) == len(logged(other))
    for mine, its in zip(logged(one), logged(other), strict=True):
        names = {name for name in its if not name.startswith("time/")}
        assert names == {name for name in mine if not name.startswith("time/")}
        for name in names:
            assert mine[name] == pytest.approx(its[name], rel=tolerance, abs=tolerance), name


class AtStep(TrainerCallback):
    """Sets one wish of the Trainer's control at the end of given steps."""

    def __init__(self, wish, *steps):
        self.wish, self.steps = wish, steps

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.steps:
            setattr(control, self.wish, True)
