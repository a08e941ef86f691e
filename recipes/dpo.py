r"""Tune a language model on preferences directly, with no reward model and no sampling (TRL's DPOTrainer).

On the starter kit, on a laptop's CPU:

    python recipes/dpo.py --config recipes/configs/starter_dpo.yaml

A model of your own with LoRA (a folder, a file or a Hub id; columns chosen, rejected and perhaps prompt):

    accelerate launch recipes/dpo.py --dataset_name my-pairs --model_name_or_path runs/sft --use_peft \
        --learning_rate 1e-5 --output_dir runs/dpo

Of ratings (completion, score, perhaps prompt) pairs are drawn, within a prompt. The output folder gets the model (or
its adapters), report.html, metrics.json, log_history.json and config.yaml. --resume_from_checkpoint auto goes on.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import torch
import trl
from datasets import Dataset

from rlhf_recipes import outputs, report
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.checkpoints import find_checkpoint
from rlhf_recipes.cli import run
from rlhf_recipes.data.chat_rows import TemplateArguments, ready_texts
from rlhf_recipes.data.columns import drop_blank, require_columns
from rlhf_recipes.data.feedback.dialogues import own_columns
from rlhf_recipes.data.loading import DataArguments, load_rows, sample_rows
from rlhf_recipes.data.pairs import preferences
from rlhf_recipes.modeling.loading import ModelArguments, fit_reference, load_policy, load_policy_tokenizer


@dataclass
class DPOConfig(trl.DPOConfig):
    """TRL's options and defaults (beta 0.1, against the model as it was loaded), and two more."""

    min_gap: float = field(default=0.5, metadata={"help": "Of ratings: compare texts at least that far apart."})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "Write among other things; deletes nothing."})

    def __post_init__(self) -> None:
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()  # else TRL's bf16 is refused on a CPU
        super().__post_init__()


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    parser = RecipeParser((DPOConfig, ModelArguments, DataArguments, TemplateArguments), __doc__)
    training_args, model_args, data_args, template_args = parser.parse(argv)
    output_dir = outputs.prepare_output_dir(training_args.output_dir, "dpo", training_args.overwrite_output_dir)
    checkpoint = find_checkpoint(output_dir, training_args.resume_from_checkpoint)
    save_config(output_dir / "config.yaml", training_args, model_args, data_args, template_args)

    # Data. The texts of ratings without prompts share nothing, so they are compared as wholes: their prompt is empty.
    def pairs(split: str, count: int | None):
        rows, _ = own_columns(load_rows(data_args.dataset_name, split, data_args.dataset_config))
        columns = require_columns(rows, [("chosen", "rejected"), ("completion", "score")], "DPO")
        rows, _ = drop_blank(rows, [name for name in columns if name != "score"], data_args.dataset_name)
        rows = sample_rows(rows, count)
        if "score" in columns:
            rows = Dataset.from_dict(preferences(rows[:], min_gap=training_args.min_gap))
        return rows

    train = pairs(data_args.dataset_train_split, data_args.max_train_samples)
    evaluates = training_args.eval_strategy != "no"
    held_out = pairs(data_args.dataset_test_split, data_args.max_eval_samples) if evaluates else None

    # A tokenizer whose pad token is not the end of a text, and whose chat template must be able to read them.
    tokenizer = load_policy_tokenizer(model_args, must_end=True)
    reader = (["chosen", "rejected"], tokenizer, template_args, data_args)
    train = ready_texts(train, *reader, data_args.dataset_train_split)
    held_out = ready_texts(held_out, *reader, data_args.dataset_test_split) if evaluates else None

    # Model, with adapters or in 4 bits where asked for, and training.
    torch.manual_seed(training_args.seed)
    model = load_policy(model_args, tokenizer=tokenizer)
    if model_args.model_revision != "main":  # TRL loads the reference by its name, and else the newest revision
        training_args.model_init_kwargs = {"revision": model_args.model_revision}
    trainer = trl.DPOTrainer(model, None, training_args, None, train, held_out, tokenizer)
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
