r"""Fine-tune a language model on texts or demonstrations, the step before DPO, PPO and the others (TRL's SFTTrainer).

On the starter kit, on a laptop's CPU:

    python recipes/sft.py --config recipes/configs/starter_sft.yaml

A model of your own with LoRA (a folder, a file or a Hub id; columns prompt and completion, or messages, or text):

    accelerate launch recipes/sft.py --dataset_name my-answers --model_name_or_path Qwen/Qwen3-0.6B --use_peft \
        --learning_rate 1e-4 --output_dir runs/sft

Where there are prompts, only completions are learned. The output folder gets the model (its adapters, with --use_peft)
and tokenizer, report.html, metrics.json, log_history.json and config.yaml. --resume_from_checkpoint auto goes on.
"""

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
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_texts
from rlhf_recipes.data.columns import drop_blank, require_columns
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.modeling.loading import ModelArguments, load_policy, load_policy_tokenizer


@dataclass
class SFTConfig(trl.SFTConfig):
    """TRL's options and defaults, and two more."""

    min_score: float | None = field(default=None, metadata={"help": "Learn only from rows with that score or more."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else TRL's bf16 is refused on a CPU
        super().__post_init__()


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    parser = RecipeParser((SFTConfig, ModelArguments, DataArguments, TemplateArguments), __doc__)
    training_args, model_args, data_args, template_args = parser.parse(argv)
    output_dir = outputs.prepare_output_dir(training_args.output_dir, "sft", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint)
    save_config(output_dir / "config.yaml", training_args, model_args, data_args, template_args)

    # Data. Ratings are texts too: their column completion is learned, where there are no prompts.
    def texts(split: str, count: int | None):
        rows = load_rows(data_args.dataset_name, split, data_args.dataset_config)
        if (least := training_args.min_score) is not None and require_columns(rows, ["score"], "min_score"):
            rows = rows.filter(lambda score: score is not None and score >= least, input_columns="score")
            if not len(rows):
                raise ValueError(f"No row of split {split!r} has a score of {least:g} or more. Lower min_score.")
        formats = [("prompt", "completion"), ("messages",), (training_args.dataset_text_field,), ("completion",)]
        columns = require_columns(rows, formats, "SFT")
        training_args.dataset_text_field = columns[-1]
        unused = {"prompt"}.intersection(rows.column_names) - set(columns)  # TRL would look for a completion of it
        rows, _ = drop_blank(rows.remove_columns(sorted(unused)), columns[-1:], data_args.dataset_name)
        return sample_rows(rows, count)

    train = texts(data_args.dataset_train_split, data_args.max_train_samples)
    evaluates = training_args.eval_strategy != "no"
    held_out = texts(data_args.dataset_test_split, data_args.max_eval_samples) if evaluates else None

    # A tokenizer whose pad token is not the end of a text, and whose chat template must be able to read them.
    tokenizer = load_policy_tokenizer(model_args, must_end=True)
    reader = ([training_args.dataset_text_field], tokenizer, template_args, data_args)
    train = ready_texts(train, *reader, data_args.dataset_train_split)
    held_out = ready_texts(held_out, *reader, data_args.dataset_test_split) if evaluates else None

    # Model, with adapters or in 4 bits where asked for.
    torch.manual_seed(training_args.seed)
    model = load_policy(model_args, tokenizer=tokenizer)

    # Trainer.
    trainer = trl.SFTTrainer(
        model=model, args=training_args, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer
    )
    trainer.train(resume_from_checkpoint=checkpoint)

    # Save and push.
    trainer.save_model()
    if metrics := report.write_figures(trainer, output_dir, start):  # on the main process
        print(f"\n{metrics['step']} steps in {metrics['train_seconds']:.0f} s. Saved in {output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=data_args.dataset_name)


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on from the last checkpoint, if one was saved.")
