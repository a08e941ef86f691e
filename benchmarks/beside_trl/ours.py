"""This project's PPOTrainer at work, through its public names alone."""

from typing import Any

from rlhf_recipes import PPOConfig, PPOTrainer  # first: it sets what other libraries read when they are imported

# isort: split
from datasets import Dataset

from beside_trl import common
from beside_trl.setups import MODEL, Setup


class Timed(PPOTrainer):
    """Tells when a rollout is collected."""

    marks: common.Marks

    def collect(self, iteration: int) -> Any:
        rollout = super().collect(iteration)
        self.marks.rollout_ends()
        return rollout


def run(setup: Setup, model: str, dataset: str, folder: str) -> dict[str, float]:
    """One run, and what it took; see [`beside_trl.common.Marks`]."""
    tokenizer, policy = common.load_tokenizer(model), common.load_policy(model)
    options = {name: model if value == MODEL else value for name, value in setup.options.items()}
    args = PPOConfig(**common.ppo_options(setup, folder) | {"stop_token": "none"} | options)
    marks = common.Marks(setup.epochs)
    trainer = Timed(
        args,
        tokenizer,
        policy,
        reward_model=common.load_classifier(model, tokenizer),
        train_dataset=Dataset.from_dict({"input_ids": common.prompts_of(setup, tokenizer, dataset)}),
        peft_config=common.lora(setup, policy.config.num_hidden_layers),
        callbacks=[marks],
    )
    trainer.marks = marks
    loaded = common.memory_mb("VmRSS")
    trainer.train()
    for row, entry in zip(marks.rows, trainer.state.log_history, strict=False):
        row["score_seconds"] = entry["time/score"]
        row["sample_seconds"] -= entry["time/score"]
    tokens = [entry["rollout/completion_length"] for entry in trainer.state.log_history if "objective/kl" in entry]
    assert set(tokens) == {float(setup.new_tokens)}, tokens
    return marks.figures(setup) | {"loaded_mb": loaded}
