r"""Train several reward models on one base, to know where they guess: LoRA adapters, an ensemble, and their average.

On the starter kit, on a laptop's CPU:

    python recipes/reward_ensemble.py --config recipes/configs/starter_ensemble.yaml

A decoder, on pairs of your own (a folder, a file or a Hub id; columns chosen, rejected and perhaps prompt):

    accelerate launch recipes/reward_ensemble.py --dataset_name my-pairs --model_name_or_path Qwen/Qwen3-0.6B \
        --use_peft --num_members 4 --learning_rate 1e-4 --max_length 1024 --output_dir runs/ensemble

Data, losses and options are those of recipes/reward.py. Members differ in their seed (LoRA, head and order of the
rows), and where asked to in their rows (--member_rows bootstrap, --member_share 0.5). The output folder gets
adapter_0, adapter_1, ... (each loads alone), ensemble.json and the tokenizer (SharedBaseEnsemble loads them together),
average/ (one model, the mean of their weights), metrics.json, uncertainty.json and uncertainty.png, predictions.jsonl,
config.yaml and report.html. The same command after an interruption goes on, and keeps members that are finished.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments
from rlhf_recipes.data.cleaning.steps import CleaningArguments
from rlhf_recipes.data.feedback.formats import FeedbackArguments
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.loading import ModelArguments, check_model_path, load_tokenizer
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json
from rlhf_recipes.report import end_run
from rlhf_recipes.reward_modeling.config import RewardConfig, fit_precision
from rlhf_recipes.reward_modeling.ensemble.train import EnsembleArguments, train_members
from rlhf_recipes.reward_modeling.evaluation.measure import measure
from rlhf_recipes.reward_modeling.losses import choose_loss
from rlhf_recipes.reward_modeling.splits import load_splits
from rlhf_recipes.rewards.combine.shared_ensemble import member_folder


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    arguments = (DataArguments, FeedbackArguments, CleaningArguments, TemplateArguments)
    parsed = RecipeParser((*arguments, RewardConfig, ModelArguments, EnsembleArguments), __doc__).parse(argv)
    data_args, feedback_args, cleaning_args, template_args, training_args, model_args, ensemble_args = parsed
    output_dir = prepare_output_dir(training_args.output_dir, "reward_ensemble", training_args.overwrite_output_dir)
    save_config(output_dir / "config.yaml", *parsed)

    # Data, and the loss that reads it.
    if model_args.model_name_or_path:  # told before minutes are spent on reading rows
        check_model_path(model_args.model_name_or_path)
    splits = load_splits(data_args, feedback_args, cleaning_args, training_args)
    loss = choose_loss(training_args.loss, splits.kind)
    print(f"{splits}\nLoss          {loss}")

    # Members, those that are not there yet.
    training_args = fit_precision(training_args, model_args)
    of_run = (training_args, model_args, ensemble_args, template_args, data_args)
    members = train_members(output_dir, splits, loss, *of_run)
    if training_args.process_index != 0:
        return

    # Imported here, because with these come libraries for which --help and a wrong name need not wait.
    from rlhf_recipes.report.reward_figures import draw_uncertainty
    from rlhf_recipes.reward_modeling.ensemble.averaging import average_models
    from rlhf_recipes.reward_modeling.ensemble.evaluation import (
        AVERAGE_FOLDER,
        describe_ensemble,
        finish_ensemble,
        measure_ensemble,
    )

    # One scale for all of them, and one model with the mean of their weights.
    load_tokenizer(model_args.model_name_or_path, revision=model_args.model_revision).save_pretrained(output_dir)
    held_out = finish_ensemble(output_dir, len(members), splits, training_args)
    places = [member_folder(output_dir, index) for index in range(len(members))]
    average = average_models(places, output_dir / AVERAGE_FOLDER)

    # Measure what was saved.
    of_average = measure(average, splits.train, splits.validation, splits.test, training_args, splits.kind)
    write_json(average / "metrics.json", of_average)
    figures, report = measure_ensemble(output_dir, splits, training_args, held_out)
    draw_uncertainty(report, output_dir / "uncertainty.png")
    metrics = figures | {
        "loss": loss,
        "train_rows": len(splits.train),
        "train_seconds": round(sum(member["train_seconds"] for member in members), 1),
        "seconds": round(time.perf_counter() - start, 1),
        **peak_memory_gb(),
    }
    end_run(output_dir, metrics)
    print(f"\n{describe_ensemble(metrics, report)}\nSaved in {output_dir}")


if __name__ == "__main__":
    run(main, to_go_on="The same command goes on with the members that are missing.")
