"""GRPOTrainer of the installed TRL at work, with as many episodes of as many tokens."""

from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from beside_trl import common
from beside_trl.setups import Setup

GROUP = 4  # completions of each prompt


def run(setup: Setup, model: str, dataset: str, folder: str) -> dict[str, Any]:
    """One run, and what it took: no critic, the same reward model and KL term, one optimizer step for each epoch."""
    tokenizer, policy = common.load_tokenizer(model), common.load_policy(model)
    layers = policy.config.num_hidden_layers
    options = common.shared_options(setup, folder) | {
        "max_completion_length": setup.new_tokens,
        "generation_kwargs": {"min_new_tokens": setup.new_tokens},  # so that no completion ends before
        "num_generations": GROUP,
        "num_iterations": setup.epochs,
        "beta": 0.05,
        "max_steps": (setup.warmup + setup.rollouts) * setup.epochs,
    }
    marks = common.Marks(setup.epochs)
    prompts = common.prompts_of(setup, tokenizer, dataset)
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=common.load_classifier(model, tokenizer),
        reward_processing_classes=tokenizer,
        args=GRPOConfig(**options | setup.options),
        train_dataset=Dataset.from_dict({"prompt": tokenizer.batch_decode(prompts)}),
        processing_class=tokenizer,
        peft_config=common.lora(setup, layers),
        callbacks=[marks],
    )
    loaded = common.memory_mb("VmRSS")
    trainer.train()
    named = "completions/mean_length"
    lengths = {entry[named] for entry in trainer.state.log_history if named in entry}
    assert lengths == {float(setup.new_tokens)}, lengths
    return marks.figures(setup) | {"loaded_mb": loaded, "prompt_tokens": len(prompts[0])}
