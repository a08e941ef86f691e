"""The same reward objects in TRL's GRPOTrainer, unchanged."""

import math

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from rlhf_recipes.rewards import EndsWithSentence, LearnedReward, LengthWindow, Vader, WeightedSum
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
