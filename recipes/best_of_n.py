r"""Choose the best of several completions of each prompt with a reward, and see what each further candidate brings.

Sample from a policy and choose, on the starter kit:

    python recipes/best_of_n.py --config recipes/configs/starter_best_of_n.yaml

Choose among candidates that a dataset has (a column completions, a list in each row; perhaps prompt, and gold values):

    python recipes/best_of_n.py --dataset_name my-candidates.jsonl --dataset_test_split train \
        --completions_column completions --gold_column gold --reward_funcs my-org/my-reward-model --output_dir runs/re

The output folder gets best.jsonl (of each prompt the choice, its score, the order and all scores), candidates.jsonl,
curve.json, best_of_n.png (expected score and every judge's over n), pairs.jsonl with --write_pairs (best against
worst, for DPO), metrics.json, config.yaml and report.html.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import torch

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_prompts
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.data.prompts import PromptArguments, load_prompts
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json, write_jsonl
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.uses import best_of_n, candidates
from rlhf_recipes.rewards import load_rewards
from rlhf_recipes.rewards.loading import RewardArguments


@dataclass
class BestOfNArguments:
    """Where candidates come from, who judges the choice, and what is written."""

    help_title = "Best of n"

    output_dir: str = field(metadata={"help": "Folder for what is chosen and the curve."})
    num_candidates: int = field(default=16, metadata={"help": "Samples of each prompt."})
    completions_column: str | None = field(
        default=None, metadata={"help": "Column with given candidates, a list in each row. Default: sample them."}
    )
    gold_column: str | None = field(default=None, metadata={"help": "Column with one number for each candidate."})
    judge_funcs: list[str | dict] = field(
        default_factory=list, metadata={"help": "Rewards that do not choose, and say what the choice is worth."}
    )
    write_pairs: bool = field(default=False, metadata={"help": "Write pairs.jsonl, best against worst, for DPO."})
    min_gap: float = field(default=0.0, metadata={"help": "Of pairs: least difference of the two scores."})
    temperature: float = field(default=1.0, metadata={"help": "Temperature of sampling."})
    max_prompt_length: int = field(default=512, metadata={"help": "Longer prompts lose their beginning."})
    max_completion_length: int = field(default=53, metadata={"help": "Most new tokens in a completion."})
    batch_size: int = field(default=64, metadata={"help": "Completions at a time; changes no result."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling noise."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; sampling needs one above 0.")
        if self.num_candidates < 2:
            raise ValueError(f"num_candidates is {self.num_candidates}; a choice needs 2 or more.")
        if self.gold_column and not self.completions_column:
            raise ValueError("gold_column says how good given candidates are: name these with completions_column too.")


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (BestOfNArguments, RewardArguments, DataArguments, PromptArguments, TemplateArguments, ModelArguments)
    args, reward_args, data_args, prompt_args, template_args, model_args = RecipeParser(arguments, __doc__).parse(argv)
    if model_args.model_name_or_path is None and args.completions_column is None:
        raise ValueError("Give model_name_or_path to sample candidates, or completions_column for given ones.")
    output_dir = prepare_output_dir(args.output_dir, "best_of_n", args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", args, reward_args, data_args, prompt_args, template_args, model_args)

    # Data and models.
    rows = load_rows(data_args.dataset_name, data_args.dataset_test_split, data_args.dataset_config)
    if args.completions_column is None:
        rows = load_prompts(data_args, prompt_args, held_out=True)
    tokenizer = load_policy_tokenizer(model_args, "left") if model_args.model_name_or_path else None
    rewards = load_rewards(reward_args.reward_funcs, reward_args.reward_weights)
    judges = load_rewards(args.judge_funcs) if args.judge_funcs else None

    # Candidates.
    if args.completions_column is not None:
        rows, columns = sample_rows(rows, data_args.max_eval_samples), (prompt_args.prompt_column, args.gold_column)
        found = candidates.given_candidates(rows, args.completions_column, *columns, tokenizer)
    else:
        prompts = ready_prompts(rows, tokenizer, template_args, data_args, data_args.dataset_test_split)
        device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        policy = load_policy(model_args, is_trainable=False, tokenizer=tokenizer).to(device).eval()
        lengths = (args.max_prompt_length, args.max_completion_length)
        options = {"temperature": args.temperature, "batch_size": args.batch_size, "seed": args.seed}
        found = candidates.generate_candidates(policy, tokenizer, prompts, args.num_candidates, *lengths, **options)

    # Scores, the choice, and the curve.
    scored, said = candidates.score_candidates(rewards, found), candidates.judged(judges, found)
    write_jsonl(output_dir / "candidates.jsonl", candidates.candidate_rows(found, scored, said))
    write_jsonl(output_dir / "best.jsonl", candidates.best_rows(found, scored, said))
    curve = best_of_n.best_of_n_curve(scored.total, said, found.logprobs, sampled=found.logprobs is not None)
    write_json(output_dir / "curve.json", curve)
    best_of_n.draw_curve(curve, output_dir / "best_of_n.png", {"score": " + ".join(rewards.names)})

    # Figures, and pairs for DPO.
    metrics = {"prompts": len(found), "single_candidates": found.alone, **best_of_n.curve_metrics(curve)}
    if args.write_pairs:
        pairs, metrics["prompts_without_pair"] = candidates.pair_rows(found, scored, args.min_gap)
        write_jsonl(output_dir / "pairs.jsonl", pairs)
        metrics["pairs"] = len(pairs)
    end_run(output_dir, metrics | {"seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()})
    print("", best_of_n.curve_table(curve), "", *best_of_n.remarks(curve), f"Saved in {output_dir}", sep="\n")


if __name__ == "__main__":
    run(main)
