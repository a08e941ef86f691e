"""The data of a PPO run: prompts as ids, their division into rollouts, demonstrations, and how to sample."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers import GenerationConfig

from rlhf_recipes.data.loading import load_rows
from rlhf_recipes.data.prompts import Prompts, check_prompts, encode_prompts
from rlhf_recipes.modeling.decoders import check_ends, check_ids
from rlhf_recipes.modeling.generation import sampling_config, warn_of_distortions
from rlhf_recipes.ppo.batches import BatchSizes
from rlhf_recipes.ppo.config import PPOConfig
from rlhf_recipes.ppo.run.demonstrations import encode_demonstrations

OF_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens", "stop_strings")


@dataclass(frozen=True)
class RunData:
    """What a run reads, checked and encoded."""

    prompts: dict[str, Prompts]  # by split: "train", and "eval/NAME" for each set of held-out prompts
    encoded: Callable[[Dataset], Prompts]  # other prompts in the same way
    sizes: BatchSizes
    demonstrations: list[tuple]
    sampling: GenerationConfig


def prepare_data(
    args: PPOConfig,
    tokenizer: Any,
    policy: Any,
    train: Dataset,
    held_out: Dataset | dict[str, Dataset] | None,
    demonstrations: Dataset | None,
    collator: Any,
) -> RunData:
    """Encode and check the prompts and demonstrations of a run.

    Raises:
        `ValueError`: if prompts are too few for a rollout, too long or unknown to the policy; if there is nothing to
            imitate though it is asked for, or the other way round; if no completion could end.
    """

    def encoded(dataset: Dataset) -> Prompts:
        prompts = encode_prompts(dataset, tokenizer, args.max_prompt_length, args.overlong_prompts, collator)
        check_prompts(prompts.ids, policy, args.max_completion_length)
        check_ids(prompts.ids, policy, tokenizer, "prompts")
        return prompts

    named = held_out if isinstance(held_out, dict) else {"": held_out}
    prompts = {"train": encoded(train)}
    prompts |= {f"eval/{name}": encoded(rows) for name, rows in named.items() if rows is not None}
    sizes = _sizes(args, len(prompts["train"]))
    imitated = _demonstrations(args, demonstrations, tokenizer)
    check_ids([ids for ids, _ in imitated], policy, tokenizer, "imitation_dataset")
    return RunData(prompts, encoded, sizes, imitated, _sampling(args, tokenizer, policy))


def _sizes(args: PPOConfig, count: int) -> BatchSizes:
    sizes = args.batch_sizes(num_prompts=count)
    if count < sizes.prompts:
        raise ValueError(
            f"The dataset has {count} prompts, but one rollout takes {sizes.prompts} "
            f"({sizes.local_rollout // sizes.siblings} on each of {sizes.world} processes). Give "
            "more prompts or a smaller per_device_train_batch_size or gradient_accumulation_steps."
        )
    return sizes


def _demonstrations(args: PPOConfig, demonstrations: Dataset | None, tokenizer: Any) -> list[tuple]:
    if demonstrations is None and args.imitation_dataset_name is not None:
        demonstrations = load_rows(args.imitation_dataset_name, "train")
    if args.imitation_coef and demonstrations is None:
        raise ValueError(
            "imitation_coef is above 0, but there is nothing to imitate: give imitation_dataset, or "
            "imitation_dataset_name in the settings."
        )
    if demonstrations is not None and not args.imitation_coef:
        raise ValueError("imitation_dataset was given, but imitation_coef is 0, so nothing would be imitated.")
    longest = args.max_prompt_length + args.max_completion_length
    return [] if demonstrations is None else encode_demonstrations(demonstrations, tokenizer, longest)


def _sampling(args: PPOConfig, tokenizer: Any, policy: Any) -> GenerationConfig:
    options = {name: getattr(args, name) for name in OF_SAMPLING} | (args.generation_kwargs or {})
    sampling = sampling_config(
        tokenizer, policy, args.max_completion_length, args.temperature, args.stop_token, args.stop_token_id, **options
    )
    if sampling.eos_token_id is None and args.stop_token != "none" and not args.stop_strings:
        raise ValueError(
            "Neither tokenizer nor model names an end-of-sequence token: no completion could end. Name one with "
            "stop_token_id, or say that this is meant with stop_token='none'."
        )
    check_ends(sampling.eos_token_id, args.stop_token_id, policy, tokenizer)
    warn_of_distortions(sampling)
    return sampling
