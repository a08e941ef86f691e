r"""Which method finds the better smaller model? Methods x budgets x seeds, same data, same healing tokens.

    OMP_NUM_THREADS=2 python benchmarks/compression.py --config recipes/configs/starter_compress.yaml \
        --budgets 0.75 0.5 --seeds 0 1 2 --output runs/compression_benchmark

The file is one of recipes/compress.py, whose parts run here: search or baseline, cut, measure, heal, measure. A cell
is kept in a folder of its own as soon as it is done, and the same command goes on with those that are missing. A seed
draws texts for calibration and healing, adapters and the order of the texts, and structures of the policy.

Progress goes to stderr, and the table for people; the last line, on stdout, is one JSON object: for each budget and
method the figures of held-out rows before and after healing (mean over seeds, least and most), the latency beside the
original, and of the first method against each other one the paired difference (of perplexity the quotient) over all
rows and seeds, with its 95% interval. The rows are the same for all seeds and count as one unit each.
"""

import argparse
import contextlib
import copy
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers

from rlhf_recipes.arguments import RecipeParser
from rlhf_recipes.compression import cells
from rlhf_recipes.compression.config import METHODS, CompressConfig
from rlhf_recipes.compression.material import LanguageMaterial, load_original
from rlhf_recipes.compression.measured import Measured
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.loading import ModelArguments
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.uses.material import FeedbackMaterial


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    with contextlib.redirect_stdout(sys.stderr):  # libraries write there, too: stdout is for one line alone
        report = measure(args)
    print(json.dumps(report))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE.yaml", help="Of recipes/compress.py.")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.75, 0.5])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="Where cells are kept.")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="After --, options of the recipe, which win.")
    return parser.parse_args(argv)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All cells that were asked for, those that are there read, and what they gave."""
    start = time.perf_counter()
    found: dict[int, list[dict[str, Any]]] = {}
    for seed in args.seeds:
        folder = args.output / f"seed-{seed}"
        given = [
            "--config",
            args.config,
            *[word for word in args.options if word != "--"],
            "--output_dir",
            str(folder),
            "--seed",
            str(seed),
            "--methods",
            *args.methods,
            "--budgets",
            *map(str, args.budgets),
            "--resume_from_checkpoint",
            "auto",
        ]
        config, model_args, data_args = RecipeParser((CompressConfig, ModelArguments, DataArguments)).parse(given)
        scene = None
        found[seed] = []
        for budget in args.budgets:
            for method in args.methods:
                if not (cells.cell_folder(folder, method, budget) / cells.CELL).is_file() and scene is None:
                    scene = scene_of(config, model_args, data_args)
                    folder.mkdir(parents=True, exist_ok=True)
                    cells.check_same(folder, config, model_args, data_args)
                found[seed].append(cells.run_cell(scene, method, budget, folder))
                sys.stderr.write(f"seed {seed}, budget {budget:g}, {method}: {one_line(found[seed][-1])}\n")
    report = {"benchmark": "compression", "config": args.config, "seeds": args.seeds, "methods": args.methods,
              "original": original_of(args.output, args.seeds), "results": results(found, args),
              "cell_seconds": sum(cell["seconds"]["all"] for of_seed in found.values() for cell in of_seed),
              "seconds": round(time.perf_counter() - start, 1)}  # fmt: skip
    write_json(args.output / "compression_benchmark.json", report)
    sys.stderr.write(table(report))
    return report


def scene_of(config: CompressConfig, model_args: ModelArguments, data_args: DataArguments) -> cells.Scene:
    """The original and its data, as the recipe loads them."""
    transformers.set_seed(config.seed)
    model, tokenizer, is_reward = load_original(model_args)
    if is_reward:
        material: Any = FeedbackMaterial(
            data_args, config, tokenizer, str(model_args.model_name_or_path), model.device
        )
    else:
        material = LanguageMaterial(data_args, config, tokenizer, model.device)
    return cells.Scene(model, material, copy.copy(config), model_args)


def original_of(output: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """The figures of the original."""
    given = json.loads((output / f"seed-{seeds[0]}" / cells.ORIGINAL).read_text())
    return Measured.from_dict(given["measured"]).figures


def one_line(cell: Mapping[str, Any]) -> str:
    names = [name for name in cell["after"] if not name.endswith("_ci95")]
    figures = ", ".join(f"{name} {cell['before'][name]:.4g} cut, {cell['after'][name]:.4g} healed" for name in names)
    return f"cost {cell['cost']:.3f}, {figures}, {cell['seconds']['all']:.0f} s"


def results(found: Mapping[int, Sequence[Mapping[str, Any]]], args: argparse.Namespace) -> list[dict[str, Any]]:
    """For each budget and method the spread over seeds, and the first method against it."""
    rows = []
    for budget in args.budgets:
        by_method = {
            method: [cell for of_seed in found.values() for cell in of_seed
                     if (cell["method"], cell["budget"]) == (method, budget)] for method in args.methods
        }  # fmt: skip
        mine = _pooled(by_method[args.methods[0]])
        for method, of_method in by_method.items():
            names = [name for name in of_method[0]["after"] if not name.endswith("_ci95")]
            row: dict[str, Any] = {"budget": budget, "method": method}
            row["cost"] = _spread([cell["cost"] for cell in of_method])
            row["latency"] = _spread([cell["latency"]["ratio"] for cell in of_method])
            row["evaluations"] = _spread([cell["evaluations"] for cell in of_method])
            for side in ("before", "after"):
                row[side] = {name: _spread([cell[side][name] for cell in of_method]) for name in names}
            if method != args.methods[0]:
                row["first_against_this"] = mine.against(_pooled(of_method))
            rows.append(row)
    return rows


def _pooled(of_seeds: Sequence[Mapping[str, Any]]) -> Measured:
    """The rows of all seeds after healing: of each held-out row the mean, which is one unit."""
    all_of = [Measured.from_dict(cell["rows_after"]) for cell in of_seeds]
    columns = {
        name: (
            [statistics.fmean(values) for values in zip(*(m.columns[name][0] for m in all_of), strict=True)],
            counts,
        )
        for name, (_, counts) in all_of[0].columns.items()
    }
    return Measured(columns, all_of[0].exponentials, all_of[0].shares, all_of[0].units)


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": statistics.fmean(values), "min": min(values), "max": max(values)}


def table(report: Mapping[str, Any]) -> str:
    """The figures as a table for people, in Markdown."""
    names = [name for name in report["original"] if not name.endswith("_ci95")]
    first = report["methods"][0]
    header = [
        "budget",
        "method",
        "cost",
        *(f"{name}, {side}" for name in names for side in ("cut", "healed (min to max)")),
        "latency",
        *(f"{first} against it: {name}" for name in names),
    ]
    lines = [header, ["---"] * len(header),
             ["1", "original", "1", *(v for n in names for v in (f"{report['original'][n]:.4g}",) * 2), "1",
              *[""] * len(names)]]  # fmt: skip
    for row in report["results"]:
        against = row.get("first_against_this")
        lines.append(
            [f"{row['budget']:g}", row["method"], f"{row['cost']['mean']:.3f}",
             *(shown for name in names for shown in (
                 f"{row['before'][name]['mean']:.4g}",
                 "{mean:.4g} ({min:.4g} to {max:.4g})".format(**row["after"][name]))),
             f"{row['latency']['mean']:.3f}", *(_difference(against, name) if against else "" for name in names)]
        )  # fmt: skip
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _difference(against: Mapping[str, Any], name: str) -> str:
    ends = against[f"{name}_ci95"]
    return f"{against[name]:.4g}" + (f" ({ends[0]:.4g} to {ends[1]:.4g})" if ends else "")


if __name__ == "__main__":
    main()
