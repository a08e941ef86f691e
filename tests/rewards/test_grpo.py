"""The same reward objects in TRL's GRPOTrainer, unchanged."""

import math

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rlhf_recipes.rewards import Clip, EndsWithSentence, LearnedReward, LengthWindow, MathAnswer, Vader, WeightedSum
from rlhf_recipes.rewards.loading import RewardArguments
from tests.tiny import tiny_causal_lm, tiny_classifier, tiny_tokenizer


class Recorder:
    """A reward that lets another one work and keeps what came in."""

    def __init__(self, reward):
        self.reward, self.calls = reward, []
        self.__name__ = reward.__name__

    def __call__(self, **kwargs):
        self.calls.append(kwargs)
        return self.reward(**kwargs)


def test_two_steps_of_grpo_log_what_the_rewards_say_when_called_directly(tmp_path):
    policy_tokenizer, tokenizer = tiny_tokenizer("llama"), tiny_tokenizer("bert", vocab_size=300)
    learned = LearnedReward(tiny_classifier(tokenizer), tokenizer, name="judge", batch_size=2)
    mixed = WeightedSum([Vader(), LengthWindow(maximum=6, margin=4)], weights=[2.0, 0.5], name="mixed")
    rewards = [Recorder(learned), EndsWithSentence(), mixed]
    prompts = ["The film is", "A dull script", "What a", "It was bad, but the"]
    trainer = GRPOTrainer(
        model=tiny_causal_lm(policy_tokenizer),
        processing_class=policy_tokenizer,
        reward_funcs=rewards,
        train_dataset=Dataset.from_dict({"prompt": prompts, "source": ["a", "b", "c", "d"]}),
        args=GRPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=8,
            max_steps=2,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            learning_rate=1e-3,
        ),
    )
    trainer.train()

    calls = rewards[0].calls
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(calls) == len(logs) == 2
    for call, log in zip(calls, logs, strict=True):
        assert set(call) == {
            *("prompts", "completions", "completion_ids", "source", "trainer_state", "log_extra", "log_metric")
        }
        rows = {key: call[key] for key in ("prompts", "completions", "completion_ids")}
        assert len(rows["completions"]) == 4
        for reward in (learned, EndsWithSentence(), mixed):
            direct = reward(**rows)
            assert log[f"rewards/{reward.__name__}/mean"] == pytest.approx(math.fsum(direct) / 4, abs=1e-5)
        for name, values in mixed.parts(**rows).items():
            assert log[f"rewards/mixed/{name}"] == pytest.approx(math.fsum(values) / 4, abs=1e-5)


def test_a_tower_of_powers_does_not_hold_grpo_up(tmp_path):
    """Compositions of rewards with alarms, with a timeout and with a process of their own, in two steps of GRPO."""
    (tmp_path / "towers.py").write_text(
        "import signal\n"
        "def alarmed(completions, **kwargs):\n"
        "    signal.signal(signal.SIGALRM, signal.getsignal(signal.SIGALRM))\n"
        "    return [1.0 for _ in completions]\n"
        "def hangs(completions, **kwargs):\n"
        "    return [float(9**9**9**9) for _ in completions]\n"
    )

    def tower(completions, **columns):  # what a policy might write one day
        return Clip(MathAnswer(timeout=0.5), high=0.5)(completions=[r"\boxed{9^{9^{9^9}}}"] * 2, **columns)

    specs = [
        {"func": "Clip", "name": "alarmed", "args": {"reward": f"{tmp_path}/towers.py:alarmed", "high": 0.5}},
        {"func": f"{tmp_path}/towers.py:hangs", "timeout": 0.2},
        tower,
    ]
    reward_funcs, reward_weights = RewardArguments(specs).load_for_trl()
    policy_tokenizer = tiny_tokenizer("llama")
    trainer = GRPOTrainer(
        model=tiny_causal_lm(policy_tokenizer),
        processing_class=policy_tokenizer,
        reward_funcs=reward_funcs,
        train_dataset=Dataset.from_dict({"prompt": ["The film is", "What a"], "answer": ["4", "5"]}),
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=2,
            num_generations=2,
            max_completion_length=4,
            max_steps=1,
            logging_steps=1,
            report_to="none",
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            disable_tqdm=True,
            reward_weights=reward_weights,
        ),
    )
    trainer.train()
    [log] = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert log["rewards/alarmed/mean"] == 0.5
    assert log["rewards/tower/mean"] == 0.0
    assert log["rewards/hangs/mean"] is None  # no row had a value
    assert log["hangs/timed_out"] == 2.0
