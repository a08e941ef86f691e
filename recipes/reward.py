r"""Train a reward model on human feedback: ratings (pairs are drawn from them) or pairs.

On the starter kit, on a laptop's CPU:

    python recipes/reward.py --config recipes/configs/quickstart_reward.yaml

A decoder with LoRA on pairs of your own (a folder, a file or a Hub id; columns chosen, rejected and perhaps prompt):

    accelerate launch recipes/reward.py --dataset_name my-pairs --model_name_or_path Qwen/Qwen3-0.6B \
        --use_peft --learning_rate 1e-4 --max_length 1024 --output_dir runs/reward

Ratings have the columns completion and score, perhaps votes (every rater's) and prompt. The output folder gets the
model with its head and tokenizer (adapters merged, and on their own in adapter/), reward_config.json (how logits
become ratings), metrics.json, predictions.jsonl and config.yaml.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from transformers import set_seed
from trl import RewardTrainer

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.collators import PairCollator
from rlhf_recipes.data.formats import DataArguments
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model, load_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json
from rlhf_recipes.reward_modeling.data import load_feedback, pair_rows, settings_for
from rlhf_recipes.reward_modeling.evaluation import load_validation, measure, summary
from rlhf_recipes.reward_modeling.trainer import (
    RewardConfig,
    choose_threads,
    fit_precision,
    freeze_lower_layers,
    save_reward_model,
)


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    parser = RecipeParser((DataArguments, RewardConfig, ModelArguments), description=__doc__)
    data_args, training_args, model_args = parser.parse(argv)
    output_dir = prepare_output_dir(training_args.output_dir, "reward", training_args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", data_args, training_args, model_args)

    # Data. All splits are looked at now: a missing one should not be found out after the training.
    train = load_feedback(
        data_args, data_args.dataset_train_split, data_args.max_train_samples, training_args.train_share
    )
    validation = load_validation(data_args, training_args)
    test = load_feedback(data_args, data_args.dataset_test_split, data_args.max_eval_samples)

    # Model. The seed comes first, because a new head is drawn at random.
    set_seed(training_args.seed)
    training_args = fit_precision(training_args, model_args)
    tokenizer = load_tokenizer(model_args.model_name_or_path, revision=model_args.model_revision)
    model = load_reward_model(model_args, tokenizer)
    freeze_lower_layers(model, training_args.num_frozen_layers)
    settings = settings_for(tokenizer, model, training_args.max_length)

    # Trainer.
    pairing = {"min_gap": training_args.min_gap, "seed": training_args.seed}
    evaluates = training_args.eval_strategy != "no"
    trainer = RewardTrainer(
        model=model,
        args=training_args,
        train_dataset=pair_rows(train, tokenizer, settings, passes=training_args.passes, **pairing),
        eval_dataset=pair_rows(validation or test, tokenizer, settings, **pairing) if evaluates else None,
        processing_class=tokenizer,
        data_collator=PairCollator(tokenizer, training_args.pad_to_multiple_of),
    )

    # Train.
    threads = choose_threads(trainer)
    train_start = time.perf_counter()
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    train_seconds = time.perf_counter() - train_start

    # Save, measure what was saved, push.
    save_reward_model(trainer, model_args)
    if trainer.is_world_process_zero():
        settings.save(output_dir)
        metrics = measure(output_dir, train, validation, test, training_args) | {
            "train_pairs": len(trainer.train_dataset),
            "train_texts": len(train) * (1 if "score" in train.column_names else 2),
            "threads": threads,
            "train_seconds": round(train_seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            **peak_memory_gb(),
        }
        write_json(output_dir / "metrics.json", metrics)
        print(f"\n{summary(metrics)}\nSaved in {output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


if __name__ == "__main__":
    run(main)
