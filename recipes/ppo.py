r"""Tune a language model with PPO, so that its completions please a reward model and whatever else is weighed.

On the starter kit, on a laptop's CPU (the reward model comes from recipes/reward.py):

    python recipes/ppo.py --config recipes/configs/quickstart_ppo.yaml

A model of your own with LoRA, on prompts of your own (a folder, a file or a Hub id with a column prompt):

    accelerate launch recipes/ppo.py --dataset_name my-prompts --model_name_or_path Qwen/Qwen3-0.6B --use_peft \
        --reward_funcs runs/reward my_rewards.py:brevity --reward_weights 1 0.5 --output_dir runs/ppo

The output folder gets the policy (its adapters, with --use_peft) and tokenizer, the critic in critic/, a model card
(README.md), report.html (curves, rewards, completions), completions.jsonl (the last ones), metrics.json, config.yaml,
log_history.json (every logged figure) and environment.json (versions); with --save_rollouts also rollouts/, for
recipes/critic.py. recipes/evaluate.py measures the policy on held-out prompts. A run that was interrupted goes on with
--resume_from_checkpoint auto.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import transformers
import yaml

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_prompts
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.prompts import PromptArguments, load_prompts
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir
from rlhf_recipes.ppo import PPOConfig
from rlhf_recipes.ppo.run.bases import check_before_loading
from rlhf_recipes.ppo.run.checkpoint import STATE_FILE
from rlhf_recipes.report import end_run
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.loading import RewardArguments


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (RewardArguments, ModelArguments, DataArguments, PromptArguments, TemplateArguments)
    training_args, reward_args, *others = RecipeParser((PPOConfig, *arguments), __doc__).parse(argv)
    model_args, data_args, prompt_args, template_args = others
    check_before_loading(training_args, model_args, reward_args.reward_funcs)
    with training_args.main_process_first(local=False):
        output_dir = prepare_output_dir(training_args.output_dir, "ppo", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint, required=[STATE_FILE])
    save_config(output_dir / "config.yaml", training_args, reward_args, *others)

    # Data, and then the policy's tokenizer, whose chat template must be able to read it.
    evaluates = training_args.eval_strategy != "no"
    train = load_prompts(data_args, prompt_args)
    held_out = load_prompts(data_args, prompt_args, held_out=True) if evaluates else None
    tokenizer = load_policy_tokenizer(model_args, padding_side="left")
    train = ready_prompts(train, tokenizer, template_args, data_args, data_args.dataset_train_split)
    if evaluates:
        held_out = ready_prompts(held_out, tokenizer, template_args, data_args, data_args.dataset_test_split)

    # Models, the policy last: a wrong name or server is told before seconds or minutes are spent on loading it.
    # Imported here for the same reason: with it come libraries that --help need not wait for.
    from rlhf_recipes.ppo.vllm.generator import resolve_generator

    generator = resolve_generator(training_args, tokenizer)
    rewards = load_rewards(reward_args.reward_funcs, reward_args.reward_weights)
    transformers.set_seed(training_args.seed)
    policy = load_policy(model_args, tokenizer=tokenizer)

    # Trainer.
    from rlhf_recipes.ppo import PPOTrainer

    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        reward_funcs=rewards,
        train_dataset=train,
        eval_dataset=held_out,
        generator=generator,
    )

    # Train.
    train_start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save and push.
    trainer.save_model()
    about = {
        "dataset_name": data_args.dataset_name,
        "config": yaml.safe_load((output_dir / "config.yaml").read_text()),
    }
    trainer.create_model_card(**about)
    if trainer.is_world_process_zero():
        history = trainer.state.log_history
        last = next((entry for entry in reversed(history) if "objective/scores" in entry), {})
        metrics = {name: value for name, value in last.items() if "/" in name} | {
            "episodes": trainer.state.global_step // trainer.sizes.updates * trainer.sizes.rollout,
            "train_seconds": round(time.perf_counter() - train_start, 1),
            "seconds": round(time.perf_counter() - start, 1),
            **peak_memory_gb(),
        }
        end_run(output_dir, metrics, history, trainer.last_rows)
        print(f"\n{metrics['episodes']} episodes in {metrics['train_seconds']:.0f} s. Saved in {output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(**about)


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on from the last checkpoint, if one was saved.")
