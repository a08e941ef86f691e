r"""Measure a policy on held-out prompts: every reward, KL to the reference, length, diversity.

The policy that recipes/ppo.py has trained, on the starter kit:

    python recipes/evaluate.py --config recipes/configs/quickstart_after.yaml

Any model, on prompts of your own (a folder, a file or a Hub id with a column prompt):

    python recipes/evaluate.py --dataset_name my-prompts --model_name_or_path Qwen/Qwen3-0.6B \
        --reward_funcs runs/reward Vader --output_dir runs/evaluation

It samples at the temperature given and from the whole vocabulary (top_p 1). The noise of prompt i depends on seed and
i alone, so two policies meet the same prompts with the same luck. The output folder gets completions.jsonl (prompt,
completion, every score), metrics.json, config.yaml and report.html, which shows them.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_prompts
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.data.prompts import PromptArguments, load_prompts
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir
from rlhf_recipes.report import end_run
from rlhf_recipes.rewards import load_rewards


@dataclass
class EvaluationArguments:
    """What is measured, and how completions are sampled."""

    help_title = "Evaluation"

    output_dir: str = field(metadata={"help": "Folder for completions.jsonl and metrics.json."})
    reward_funcs: list[str | dict] = field(
        metadata={"help": "Reward models (folder or Hub id), rewards by name (EndsWithSentence) or file.py:function."}
    )
    reward_weights: list[float] | None = field(
        default=None, metadata={"help": "Weights of the sum called score. Default: 1 for all, or those in the YAML."}
    )
    ref_model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "What KL is measured against. Default: the base below the adapters, or the model itself."},
    )
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts lose their beginning."})
    max_completion_length: int = field(default=53, metadata={"help": "Most new tokens in a completion."})
    batch_size: int = field(default=64, metadata={"help": "Completions at a time; changes no result."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Write into a folder that holds other things. Nothing is deleted."}
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; sampling needs one above 0.")
        for name in ("max_prompt_length", "max_completion_length", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more.")


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (EvaluationArguments, DataArguments, PromptArguments, TemplateArguments, ModelArguments)
    args, data_args, prompt_args, template_args, model_args = RecipeParser(arguments, __doc__).parse(argv)
    output_dir = prepare_output_dir(args.output_dir, "evaluate", args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", args, data_args, prompt_args, template_args, model_args)

    # Data, and then the policy's tokenizer, whose chat template must be able to read it.
    prompts = load_prompts(data_args, prompt_args, held_out=True)
    tokenizer = load_policy_tokenizer(model_args, padding_side="left")
    prompts = ready_prompts(prompts, tokenizer, template_args, data_args, data_args.dataset_test_split)

    # Models, the policy last: a wrong name is told before seconds or minutes are spent on loading it.
    reward = load_rewards(args.reward_funcs, args.reward_weights)
    policy = load_policy(model_args, is_trainable=False, tokenizer=tokenizer)

    # Imported here for the same reason: with these come libraries that --help need not wait for.
    from rlhf_recipes.modeling.roles import ActorCritic
    from rlhf_recipes.ppo.run.held_out import move_to_best_device, summarize, write_completions

    if args.ref_model_name_or_path is None:
        roles = ActorCritic(policy, reference_is_base=True, critic=False, logits_chunk_size=256)
    else:
        ref_args = replace(model_args, model_name_or_path=args.ref_model_name_or_path, model_revision="main")
        roles = ActorCritic(policy, load_policy(ref_args, False, tokenizer), critic=False, logits_chunk_size=256)
    move_to_best_device(roles).eval()

    # Sample and score.
    completions = list(
        write_completions(
            roles,
            tokenizer,
            prompts,
            reward,
            max_prompt_length=args.max_prompt_length,
            max_completion_length=args.max_completion_length,
            temperature=args.temperature,
            batch_size=args.batch_size,
            seed=args.seed,
        )
    )

    # Save.
    metrics = summarize(completions) | {"seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()}
    end_run(output_dir, metrics, completions=completions)
    print("", *(f"{name:>24}: {value:.4g}" for name, value in metrics.items()), f"Saved in {output_dir}", sep="\n")


if __name__ == "__main__":
    run(main)
