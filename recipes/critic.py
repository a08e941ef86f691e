r"""Train a critic on the rollouts that an earlier PPO run has stored, so that the next run begins with one that knows.

On the starter kit, on a laptop's CPU (the rollouts come from recipes/ppo.py with --save_rollouts 4):

    python recipes/critic.py --config recipes/configs/starter_critic.yaml

For a policy of your own, with a critic of its own in adapters:

    accelerate launch recipes/critic.py --rollouts runs/ppo --model_name_or_path Qwen/Qwen3-0.6B --use_peft \
        --critic policy --output_dir runs/critic

--model_name_or_path is the policy that the next run begins with, and --take the end of the earlier run that such a
policy wrote: first where it begins as that run began, last where it goes on from what that run left. The next run
takes --critic runs/critic/critic. The output folder gets the critic in critic/, metrics.json (its explained variance
on prompts it has not learned from, before and after, beside that of the earlier run's critic), report.html,
config.yaml, log_history.json and environment.json. docs/warm_critic.md says what a warm critic saves.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import transformers

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir
from rlhf_recipes.ppo.warm_critic.config import CriticConfig
from rlhf_recipes.report import end_run


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    training_args, model_args = RecipeParser((CriticConfig, ModelArguments), __doc__).parse(argv)
    with training_args.main_process_first(local=False):
        output_dir = prepare_output_dir(training_args.output_dir, "critic", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint)
    save_config(output_dir / "config.yaml", training_args, model_args)

    # Data: imported here, because with it come libraries for which --help and a wrong option need not wait.
    from rlhf_recipes.ppo.warm_critic import rollouts, trainer

    args = training_args
    stored = rollouts.read_rollouts(args.rollouts, args.take, args.num_rollouts, args.gamma)
    episodes = [episode for rollout in stored for episode in rollout.episodes]
    train, held_out = rollouts.split_by_prompt(episodes, args.held_out, args.seed)
    print(f"{len(stored)} rollouts, {stored[0].number} to {stored[-1].number}: {len(train)} episodes to learn from, "
          f"{len(held_out)} to measure on")  # fmt: skip

    # Models: the policy, which stays as it is, and the critic.
    tokenizer = load_policy_tokenizer(model_args, padding_side="left")
    transformers.set_seed(args.seed)
    policy = load_policy(model_args, tokenizer=tokenizer)
    model = trainer.CriticOnPolicy(policy, args.critic, tokenizer)

    # Trainer.
    of_critic = trainer.CriticTrainer(model, args, train, held_out)
    before = of_critic.evaluate(metric_key_prefix="before")["before_explained_variance"]
    far = trainer.distance(policy, stored, tokenizer)

    # Train.
    seconds = of_critic.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]

    # Save.
    after = of_critic.evaluate()["eval_explained_variance"]
    of_critic.save_model()
    if of_critic.is_world_process_zero():
        metrics = {
            "explained_variance": after,
            "explained_variance_before": before,
            "explained_variance_earlier_run": trainer.earlier_explained_variance(held_out),
            "policy_distance": far,
            "rollouts": len(stored),
            "train_episodes": len(train),
            "held_out_episodes": len(held_out),
            "train_seconds": round(seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            **peak_memory_gb(),
        }
        end_run(output_dir, metrics, of_critic.state.log_history)
        print(f"\nExplained variance on held-out prompts {before:.2f} before, {after:.2f} now "
              f"({metrics['explained_variance_earlier_run']:.2f} in the earlier run). For the next run: "
              f"--critic {output_dir / 'critic'}")  # fmt: skip


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on from the last checkpoint, if one was saved.")
