"""A tiny PPO run, and what tests ask of it."""

import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from rlhf_recipes.ppo import PPOConfig, PPOTrainer
from tests.launching import run_whole
from tests.tiny import tiny_causal_lm, tiny_tokenizer

# A server that has imported everything once: a process that comes from it starts in no time.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.ppo.helpers"])
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
    if isinstance(kwargs.get("generator"), str):  # the setting; an object is a part
        options["generator"] = kwargs.pop("generator")
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


def in_two_processes(folder, main):
    """Call `main(folder)` in two processes that find each other as those of a launcher do."""
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [shared | {"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    processes = [FORKS.Process(target=_as_one_of_two, args=(rank, folder, main)) for rank in ranks]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout=240)
    finally:
        for process in processes:
            process.kill()
    assert [process.exitcode for process in processes] == [0, 0], (folder / "output").read_text()[-3000:]


def _as_one_of_two(environment, folder, main):
    write_output_into(folder / "output")
    os.environ |= environment
    main(folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def write_output_into(file):
    """Of a child, which else writes into pytest's."""
    with open(file, "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def save_of_two(run, folder):
    """What a run on two processes came to: `weights.pt` and `log.json`."""
    assert run.sizes.world == 2
    if run.is_world_process_zero():
        torch.save(weights(run), folder / "weights.pt")
        (folder / "log.json").write_text(json.dumps(logged(run)))


def torchrun_command(script, *arguments):
    """What runs a script of this folder in two processes, and in which environment."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(free_port()), str(Path(__file__).with_name(script)), *map(str, arguments)]
    return command, os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}


def torchrun(script, *arguments, timeout=240):
    command, env = torchrun_command(script, *arguments)
    return run_whole(command, timeout, env=env)


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


def length_of_each(completion_ids, **kwargs):
    """A reward of each token, which falls along the completion."""
    return [[0.3 / (1 + place) for place, _ in enumerate(ids)] for ids in completion_ids]


length_of_each.per_token = True

TEXTS = Dataset.from_dict(
    {
        "prompt": ["The film", "It was", "What a", "two", "A dull"],
        "completion": [" is quiet", " good", " wonderful little picture", " brothers", " script"],
    }
)


def everything(folder, per_device=8, accumulation=1, **changed):
    """Many options in one run, with sums over episodes and tokens in many places. SGD, because AdamW's first steps
    make much of what rounding does to a small gradient."""
    return trainer(
        folder,
        reward=[many_short_tokens, length_of_each],
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_generations=2,
        critic="policy",
        use_kl_loss=True,
        kl_estimator="k2",
        kl_coef=0.3,
        kl_target=0.01,
        kl_horizon=16,
        ref_model=tiny_policy(seed=1),
        imitation_coef=0.5,
        imitation_dataset=TEXTS,
        normalize_rewards=True,
        use_score_scaling=True,
        use_score_norm=True,
        score_clip=2.0,
        entropy_coef=0.02,
        whiten_rewards=True,
        cliprange_high=0.3,
        dual_clip=3.0,
        missing_eos_penalty=0.5,
        stop_token_id=list(range(5, 400, 9)),
        mask_truncated_completions=True,
        lam_length_alpha=0.5,
        lam_value=1.0,
        **changed,
    )


# Much that a checkpoint must carry besides weights.
CARRIED = {"optim": "adamw_torch", "learning_rate": 0.01, "normalize_rewards": True, "use_score_scaling": True,
           "use_score_norm": True,
           "kl_target": 0.01, "kl_horizon": 16, "kl_coef": 0.2, "total_episodes": 24}  # fmt: skip


class Pause(TrainerCallback):
    """Stands still in the optimizer step after `step`, and says so with a file."""

    def __init__(self, marker, step, seconds):
        self.marker, self.step, self.seconds = marker, step, seconds

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            stand_still(self.marker, self.seconds)


def stand_still(marker, seconds):
    Path(f"{marker}-{os.getpid()}").touch()
    until = time.monotonic() + seconds
    while time.monotonic() < until:  # a single sleep would go on after a signal
        time.sleep(0.05)


def pausing_reward(marker, step, seconds):
    """`many_short_tokens`, which stands still in the rollout after `step`."""

    def reward(completion_ids, trainer_state, **kwargs):
        if trainer_state.global_step == step:
            stand_still(marker, seconds)
        return many_short_tokens(completion_ids)

    reward.__name__ = many_short_tokens.__name__  # a reward of another name would be another run
    return reward


def carried_run(folder, place=None, seconds=60, **options):
    """A run that saves after every optimizer step and stands still in the middle: in `"rollout"`, `"update"` or
    `"save"`; the file `still-<pid>` says when."""
    marker = Path(folder).parent / "still"
    kept = [AtStep("should_save", *range(1, 13))]
    reward = pausing_reward(marker, 8, seconds) if place == "rollout" else many_short_tokens
    if place == "update":
        kept.append(Pause(marker, 6, seconds))
    run = trainer(folder, reward=reward, kept=kept, **CARRIED | options)
    if place == "save":  # the weights are written by then, the rest is not
        state_dict = run.state_dict

        def slow():
            if run.state.global_step == 7:
                stand_still(marker, seconds)
            return state_dict()

        run.state_dict = slow
    return run
