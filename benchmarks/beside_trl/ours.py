"""This project's PPOTrainer at work, through its public names alone."""

from pathlib import Path
from typing import Any

from rlhf_recipes import PPOConfig, PPOTrainer  # first: it sets what other libraries read when they are imported

# isort: split
from datasets import Dataset
from peft import get_peft_model

from beside_trl import common
from beside_trl.setups import MODEL, Setup
from rlhf_recipes.rewards import Vader


class Timed(PPOTrainer):
    """Tells when a rollout is collected."""

    marks: common.Marks

    def collect(self, iteration: int) -> Any:
        rollout = super().collect(iteration)
        self.marks.rollout_ends()
        return rollout


def run(setup: Setup, model: str, dataset: str, folder: str) -> dict[str, Any]:
    """One run, and what it took; see [`beside_trl.common.Marks`]."""
    tokenizer, policy = common.load_tokenizer(model), common.load_policy(model)
    options = {name: model if value == MODEL else value for name, value in (setup.ours | setup.options).items()}
    args = PPOConfig(**common.ppo_options(setup, folder) | {"stop_token": "none"} | options)
    prompts = common.prompts_of(setup, tokenizer, dataset)
    marks = common.Marks(setup.steps)
    trainer = Timed(
        args,
        tokenizer,
        policy,
        train_dataset=Dataset.from_dict({"input_ids": prompts}),
        peft_config=common.lora(setup, policy.config.num_hidden_layers),
        callbacks=[marks],
        **reward_of(setup, model, tokenizer, folder),
    )
    trainer.marks = marks
    loaded = common.memory_mb("VmRSS")
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "objective/scores" in entry]
    for row, entry in zip(marks.rows, history, strict=True):
        row["score_seconds"] = entry["time/score"]
        row["sample_seconds"] -= entry["time/score"]
        assert entry["rollout/completion_length"] == setup.new_tokens, entry
    return marks.figures(setup) | {
        "loaded_mb": loaded,
        "prompt_tokens": len(prompts[0]),
        "curve": common.curve(history),
    }


def reward_of(setup: Setup, model: str, tokenizer: Any, folder: str) -> dict[str, Any]:
    """What the trainer is given as its reward."""
    if setup.reward == "lexicon":
        return {"reward_funcs": Vader(completion_only=True)}
    classifier = common.load_classifier(model, tokenizer)
    if setup.reward == "model":
        return {"reward_model": classifier}
    adapter = Path(folder) / "reward"
    whole = Setup(lora_layers=classifier.config.num_hidden_layers)
    get_peft_model(classifier, common.lora(whole, whole.lora_layers or 0, "SEQ_CLS")).save_pretrained(str(adapter))
    tokenizer.save_pretrained(str(adapter))
    return {"reward_funcs": [{"func": str(adapter), "args": {"base": "policy"}}]}
