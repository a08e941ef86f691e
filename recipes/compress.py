r"""Compress a model: search the structure that is worth most for its cost, cut, heal, and measure beside baselines.

A language model of the starter kit at three quarters of its non-embedding FLOPs, on a laptop's CPU:

    python recipes/compress.py --config recipes/configs/starter_compress.yaml

The reward model that recipes/reward.py left, at half its FLOPs:

    python recipes/compress.py --config recipes/configs/starter_compress_reward.yaml

A model of your own, healed with LoRA, by the search and what it is held against:

    python recipes/compress.py --dataset_name my-texts.jsonl --model_name_or_path Qwen/Qwen3-0.6B --use_peft \
        --budgets 0.75 0.5 --methods search magnitude wanda shortgpt greedy ilp random --output_dir runs/compress

docs/compression.md says what is maximized, and what each method is. The output folder gets the model of the first
method at the first budget with its tokenizer (of a reward model reward_config.json too), as any other, and in cells/
those of all others; report.html with the front of quality against cost, compression.json, metrics.json, config.yaml,
completions.jsonl. --resume_from_checkpoint auto goes on where an interrupted run was.
"""

import time
from collections.abc import Sequence

import rlhf_recipes  # noqa: F401 - first, because it turns telemetry off before a Hugging Face library is imported

# isort: split
import transformers

from rlhf_recipes import filenames
from rlhf_recipes.arguments import RecipeParser, save_config
from rlhf_recipes.cli import run
from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.loading import ModelArguments, check_model_path
from rlhf_recipes.outputs import peak_memory_gb, prepare_output_dir, write_json
from rlhf_recipes.report import end_run


def main(argv: Sequence[str] | None = None) -> None:
    start = time.perf_counter()
    args, model_args, data_args = RecipeParser((CompressConfig, ModelArguments, DataArguments), __doc__).parse(argv)
    name = check_model_path(model_args.model_name_or_path or "")

    # Model and data. Imported here, because with these come libraries for which --help need not wait.
    from rlhf_recipes.compression import cells
    from rlhf_recipes.compression.material import LanguageMaterial, load_original
    from rlhf_recipes.reward_modeling.uses.material import FeedbackMaterial

    transformers.set_seed(args.seed)
    model, tokenizer, is_reward = load_original(model_args)
    if is_reward:
        material = FeedbackMaterial(data_args, args, tokenizer, name, model.device)
    else:
        material = LanguageMaterial(data_args, args, tokenizer, model.device)

    # All that can be wrong is known now; nothing was written yet.
    scene = cells.Scene(model, material, args, model_args)
    output_dir = prepare_output_dir(str(args.output_dir), "compress", args.overwrite_output_dir)
    cells.check_same(output_dir, args, model_args, data_args)
    save_config(output_dir / "config.yaml", args, model_args, data_args)

    # Search, cut, heal, measure: a cell for each budget and method.
    done = [cells.run_cell(scene, method, budget, output_dir) for budget in args.budgets for method in args.methods]
    first = done[0]

    # Save.
    cells.take_model(cells.cell_folder(output_dir, first["method"], first["budget"]), output_dir)
    figures = material.evaluate(output_dir) if is_reward else {}
    original = scene.original(output_dir)
    write_json(output_dir / filenames.COMPRESSION, cells.summary(original, done, args))
    metrics = figures | cells.flat_metrics(original, first) | {
        "seconds": round(time.perf_counter() - start, 1), **peak_memory_gb()
    }  # fmt: skip
    end_run(output_dir, metrics, first["log"], first["samples"])
    print(f"\n{cells.table(original, done)}\nSaved in {output_dir}")


if __name__ == "__main__":
    run(main, to_go_on="Add --resume_from_checkpoint auto to go on where it was.")
