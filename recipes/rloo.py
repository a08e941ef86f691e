r"""Tune a language model with RLOO: the others of a prompt are each completion's baseline (TRL's trainer).

On the starter kit, on a laptop's CPU (the reward model comes from recipes/reward.py):

    python recipes/rloo.py --config recipes/configs/starter_rloo.yaml

A model of your own with LoRA, on prompts of your own (a folder, a file or a Hub id with a column prompt):

    accelerate launch recipes/rloo.py --dataset_name my-prompts --model_name_or_path Qwen/Qwen3-0.6B --use_peft \
        --reward_funcs runs/reward my_rewards.py:brevity --reward_weights 1 0.5 --output_dir runs/rloo

Rewards are those of recipes/ppo.py. The output folder gets the policy (its adapters, with --use_peft) and tokenizer,
report.html, metrics.json, log_history.json and config.yaml. --resume_from_checkpoint auto goes on.
"""

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import torch
import trl

from rlhf_recipes import outputs, report
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments, for_trl, ready_prompts
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.prompts import PromptArguments, load_prompts
from rlhf_recipes.modeling.loading import ModelArguments, fit_reference, load_policy, load_policy_tokenizer
from rlhf_recipes.rewards.loading import RewardArguments


@dataclass
class RLOOConfig(trl.RLOOConfig):
    """TRL's options and defaults: beta 0.05 against the model as loaded; temperature, top_p and more for sampling."""

    counted_in_batches = ("completions", "an optimizer step")
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})
    reward_weights: list[float] | None = field(default=None, init=False)  # they come with the rewards
    chat_template_kwargs: dict | None = field(default=None, init=False)  # they come with the rows
    remove_unused_columns: bool = field(default=False, init=False)  # rewards are given all columns of the dataset

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else TRL's bf16 is refused on a CPU
        sizes = self.generation_batch_size, self.steps_per_generation
        super().__post_init__()
        self.asked = copy.copy(self)  # for config.yaml: TRL works out one size from the other, and refuses both
        self.asked.generation_batch_size, self.asked.steps_per_generation = sizes


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (RewardArguments, ModelArguments, DataArguments, PromptArguments, TemplateArguments)
    training_args, reward_args, *others = RecipeParser((RLOOConfig, *arguments), __doc__).parse(argv)
    model_args, data_args, prompt_args, template_args = others
    output_dir = outputs.prepare_output_dir(training_args.output_dir, "rloo", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint)
    save_config(output_dir / "config.yaml", training_args.asked, reward_args, *others)

    # Data, and then the policy's tokenizer, whose chat template must be able to read it.
    evaluates = training_args.eval_strategy != "no"
    train = load_prompts(data_args, prompt_args)
    held_out = load_prompts(data_args, prompt_args, held_out=True) if evaluates else None
    tokenizer = load_policy_tokenizer(model_args, padding_side="left", must_end=True)
    reader = (tokenizer, template_args, data_args)
    train = for_trl(ready_prompts(train, *reader, data_args.dataset_train_split), tokenizer)
    if evaluates:
        held_out = for_trl(ready_prompts(held_out, *reader, data_args.dataset_test_split), tokenizer)
    if len(train) < (needed := training_args.generation_batch_size // training_args.num_generations):
        raise ValueError(f"There are {len(train)} prompts, but a rollout takes {needed}. Make the batch smaller.")

    # Models, and training.
    torch.manual_seed(training_args.seed)
    rewards, training_args.reward_weights = reward_args.load_for_trl()
    if model_args.model_revision != "main":  # TRL loads the reference by its name, and else the newest revision
        training_args.model_init_kwargs = {"revision": model_args.model_revision}
    policy = load_policy(model_args, tokenizer=tokenizer)
    trainer = trl.RLOOTrainer(policy, rewards, training_args, train, held_out, tokenizer)
    fit_reference(trainer, tokenizer)
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save and push.
    if "ref" in getattr(trainer.model, "peft_config", {}):
        trainer.model.delete_adapter("ref")  # TRL's frozen copy of the adapters
    trainer.save_model()
    if metrics := report.write_figures(trainer, output_dir, start):  # on the main process
        print(f"\n{metrics['step']} steps in {metrics['train_seconds']:.0f} s. Saved in {output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on from the last checkpoint, if one was saved.")
