r"""Train a reward model on human feedback of any kind: pairs, votes, ratings, rankings, best and worst, thumbs, steps.

On the starter kit, on a laptop's CPU:

    python recipes/reward.py --config recipes/configs/starter_reward.yaml

A decoder with LoRA on pairs of your own (a folder, a file or a Hub id; columns chosen, rejected and perhaps prompt):

    accelerate launch recipes/reward.py --dataset_name my-pairs --model_name_or_path Qwen/Qwen3-0.6B \
        --use_peft --learning_rate 1e-4 --max_length 1024 --output_dir runs/reward

The columns tell which feedback it is (docs/feedback_formats.md), and that tells the loss (docs/reward_losses.md);
--feedback_format and --loss overrule them. The output folder gets the model with its head and tokenizer (adapters
merged, and on their own in adapter/), reward_config.json (how logits become ratings), report.html and README.md (what
was learned, and where it fails), metrics.json, evaluation.json, bias.json, card.json, predictions.jsonl, config.yaml.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import transformers
import trl

from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments
from rlhf_recipes.data.cleaning.steps import CleaningArguments
from rlhf_recipes.data.feedback.formats import FeedbackArguments
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling import loading
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model, load_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.config import RewardConfig, fit_precision
from rlhf_recipes.reward_modeling.evaluation.measure import measure, summary
from rlhf_recipes.reward_modeling.examples import settings_for
from rlhf_recipes.reward_modeling.losses import choose_loss
from rlhf_recipes.reward_modeling.splits import check_conversations, load_splits


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (DataArguments, FeedbackArguments, CleaningArguments, TemplateArguments, RewardConfig, ModelArguments)
    data_args, *others = RecipeParser(arguments, __doc__).parse(argv)
    feedback_args, cleaning_args, template_args, training_args, model_args = others
    output_dir = prepare_output_dir(training_args.output_dir, "reward", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint)
    save_config(output_dir / "config.yaml", data_args, *others)
    pushes, training_args.push_to_hub = training_args.push_to_hub, False  # once, when it is measured

    # Data, the loss that reads it, and the tokenizer.
    if model_args.model_name_or_path:  # told before minutes are spent on reading rows
        loading.check_model_path(model_args.model_name_or_path)
    splits = load_splits(data_args, feedback_args, cleaning_args, training_args)
    loss = choose_loss(training_args.loss, splits.kind)
    tokenizer = load_tokenizer(model_args.model_name_or_path, revision=model_args.model_revision)

    # Imported here, because with these come libraries for which --help and a wrong name need not wait.
    from rlhf_recipes.reward_modeling.evaluation.reporting import write_report
    from rlhf_recipes.reward_modeling.saving import push_reward_model, save_reward_model, save_settings
    from rlhf_recipes.reward_modeling.trainer import choose_threads, fitted_objective, make_trainer

    objective = fitted_objective(loss, splits.train, training_args)
    print(f"{splits}\nLoss          {loss}")

    # Model. The seed comes first, because a new head is drawn at random.
    transformers.set_seed(training_args.seed)
    training_args = fit_precision(training_args, model_args)
    check_conversations(splits, objective, tokenizer, template_args, data_args, training_args.validation_split)
    of_steps = objective.step_token is not None
    model = load_reward_model(model_args, tokenizer, labels=objective.label_names, token_level=of_steps)
    loading.freeze_lower_layers(model, training_args.num_frozen_layers)
    settings = settings_for(
        tokenizer, model, training_args.max_length, splits.train, template_args.chat_template_kwargs
    )

    # Trainer: TRL's RewardTrainer for plain pairs, FeedbackTrainer for all else.
    held_out = splits.validation or splits.test
    trainer = make_trainer(model, loss, objective, splits.train, held_out, tokenizer, settings, training_args)

    # Train.
    threads = choose_threads(trainer)
    train_seconds = trainer.train(resume_from_checkpoint=checkpoint).metrics["train_runtime"]

    # Save, measure what was saved, push.
    save_reward_model(trainer, model_args)
    if trainer.is_world_process_zero():
        save_settings(output_dir, settings, objective, plain=isinstance(trainer, trl.RewardTrainer))
        metrics = measure(output_dir, splits.train, splits.validation, splits.test, training_args, splits.kind) | {
            "loss": loss,
            "train_pairs" if isinstance(trainer, trl.RewardTrainer) else "train_rows": len(trainer.train_dataset),
            "train_texts": splits.train_texts,
            "threads": threads,
            "train_seconds": round(train_seconds, 1),
            "seconds": round(time.perf_counter() - start, 1),
            **peak_memory_gb(),
        }
        end_run(output_dir, metrics, trainer.state.log_history, page=not training_args.card)
        if training_args.card:
            write_report(output_dir, splits, training_args, loss)
        print(f"\n{summary(metrics)}\nSaved in {output_dir}")
        if pushes:
            push_reward_model(output_dir, training_args)


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on from the last checkpoint, if one was saved.")
