"""One cell of a comparison: a method at a budget, from the choice of a structure to a healed model in a folder.

Each part is written when it is done, and one that is there is not done again.
"""

import copy
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from rlhf_recipes.checkpoints import differences, find_checkpoint
from rlhf_recipes.compression.config import CompressConfig
from rlhf_recipes.compression.cut import cut
from rlhf_recipes.compression.heal import heal
from rlhf_recipes.compression.importance import read
from rlhf_recipes.compression.material import Material, quality_of
from rlhf_recipes.compression.measured import Measured
from rlhf_recipes.compression.quality import Quality
from rlhf_recipes.compression.search.methods import STRUCTURE, Chooser, Chosen
from rlhf_recipes.modeling.cost.latency import paired_latency
from rlhf_recipes.modeling.loading import ModelArguments
from rlhf_recipes.outputs import json_row, write_json

logger = logging.getLogger(__name__)
MODEL = "model"
CELL = "cell.json"
ORIGINAL = "original.json"
SETTINGS = "settings.json"
CELLS = "cells"  # of a run: a folder in it
FREE = {  # settings that may change when a run is gone on with
    "output_dir", "resume_from_checkpoint", "overwrite_output_dir", "disable_tqdm", "logging_dir", "report_to",
    "run_name", "save_strategy", "save_steps", "save_total_limit", "logging_steps", "methods", "budgets", "samples",
    "latency_seconds", "latency_rows", "hub_token", "push_to_hub_token",
}  # fmt: skip


@dataclass
class Scene:
    """What all cells of a run share: the original, its data, and who chooses.

    Args:
        model (`PreTrainedModel`): The original, in evaluation mode.
        material ([`~rlhf_recipes.compression.material.Material`]): The data.
        args ([`~rlhf_recipes.compression.config.CompressConfig`]), model_args: The settings.

    Raises:
        `ValueError`: as [`~rlhf_recipes.compression.search.methods.Chooser`].
    """

    model: Any
    material: Material
    args: CompressConfig
    model_args: ModelArguments

    def __post_init__(self) -> None:
        self.quality: Quality = quality_of(self.material, self.args)
        self.chooser = Chooser(self.model, self.material.calibration, self.quality, self.args)
        self._whole: dict[str, Any] | None = None

    def original(self, folder: Path) -> dict[str, Any]:
        """What the original costs and is worth; written once."""
        if self._whole is None:
            self._whole = _made(folder / ORIGINAL, self._of_original)
        return self._whole

    def _of_original(self) -> dict[str, Any]:
        space = next(iter(self.chooser.spaces.values()))
        measured = self.material.measure(self.model)
        return {"costs": dict(space.original), "quality": self.chooser.candidates(space.whole),
                "measured": Measured.from_dict(measured).to_dict(), "samples": self.material.samples(self.model),
                "heads": len(space.whole.layers[0].heads), "neurons": len(space.whole.layers[0].neurons),  # type: ignore[union-attr]
                "layers": len(space.whole.layers), "quality_name": self.quality.name}  # fmt: skip


def check_same(folder: Path, args: CompressConfig, model_args: ModelArguments, data_args: Any) -> None:
    """Note the settings of a run, or raise where a folder holds a run of other ones, or one that is not gone on with.

    Raises:
        `FileExistsError`: if there are parts of an earlier run, and `resume_from_checkpoint` does not ask for them.
        `ValueError`: if they were made with other settings.
    """
    now: dict[str, Any] = {}
    for given in (data_args, model_args, args):
        shown = given.to_dict() if hasattr(given, "to_dict") else asdict(given)
        now |= json.loads(json.dumps(shown, default=str))
    path = folder / SETTINGS
    if path.is_file():
        if args.resume_from_checkpoint is None:
            raise FileExistsError(
                f"{folder} holds parts of an earlier run. Go on from them with --resume_from_checkpoint auto, or, to "
                "start anew, name another --output_dir or delete the folder."
            )
        changed = differences(json.loads(path.read_text()), now, FREE)
        if changed:
            raise ValueError(
                f"{folder} holds a run of other settings, and its parts would not fit: {'; '.join(changed)}. Give the "
                "same ones, or another --output_dir."
            )
    write_json(path, now)


def run_cell(scene: Scene, method: str, budget: float, folder: Path) -> dict[str, Any]:
    """Choose, cut, measure, heal, measure, save; or read what of that is there.

    Args:
        scene ([`Scene`]): The original and its data.
        method (`str`), budget (`float`): Which cell.
        folder (`Path`): Of the run; the cell's own is in it.

    Returns:
        `dict`: what the page and tables need, as in the cell's `cell.json`.
    """
    place = cell_folder(folder, method, budget)
    place.mkdir(parents=True, exist_ok=True)
    return _made(place / CELL, lambda: _run(scene, method, budget, place, scene.original(folder)))


def cell_folder(folder: Path, method: str, budget: float) -> Path:
    """Where a cell lies in the folder of a run."""
    return folder / CELLS / f"{method}-{100 * budget:g}"


def _run(scene: Scene, method: str, budget: float, place: Path, original: Mapping[str, Any]) -> dict[str, Any]:
    start = time.perf_counter()
    args, material, whole = scene.args, scene.material, Measured.from_dict(original["measured"])
    if (place / STRUCTURE).is_file():
        chosen = Chosen.from_dict(json.loads((place / STRUCTURE).read_text()))
    else:
        chosen = scene.chooser(method, budget, place)
        chosen.save(place)
    logger.info("%s at %g: cost %.4g, %s %.5g, R %.5g, %d evaluations, %.0f s", method, budget, chosen.cost,
                scene.quality.name, chosen.quality, chosen.reward, chosen.evaluations, chosen.seconds)  # fmt: skip
    model = cut(scene.model, chosen.structure)
    before = Measured.from_dict(_made(place / "before.json", lambda: material.measure(model)))
    log: list[dict[str, Any]] = []
    after, healing = before, time.perf_counter()
    if args.heal:
        scene.chooser.candidates.forget()  # a gigabyte, which training can use
        of_cell = copy.copy(args)
        of_cell.output_dir = str(place)
        resume = find_checkpoint(place, "auto")
        objective = scene.chooser.objective(budget)

        def figures(model: Any) -> dict[str, float]:
            quality = scene.quality.of(model, material.calibration)
            return {"quality": quality, "cost": chosen.cost, "reward": objective(quality, chosen.cost)}

        bits = [layer.bits for layer in chosen.structure.layers if layer is not None]
        model, log = heal(
            model, scene.model, material, of_cell, scene.model_args, chosen.structure.kept, bits, resume, figures
        )
        after = Measured.from_dict(material.measure(model))
    seconds = {"choosing": chosen.seconds, "healing": time.perf_counter() - healing}
    latency = paired_latency(_readings({"original": scene.model, "cut": model}, args), args.latency_seconds)
    samples = material.samples(model)
    model.save_pretrained(place / MODEL)
    material.save(place / MODEL)
    for checkpoint in place.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return {
        "method": method,
        "budget": budget,
        "structure": {**chosen.structure.to_dict()},
        "cost": chosen.cost,
        "costs": scene.chooser.costs(chosen.structure),
        "quality": chosen.quality,
        "reward": chosen.reward,
        "evaluations": chosen.evaluations,
        "search_log": chosen.log,
        "front": chosen.front,
        "before": before.figures,
        "after": after.figures,
        "rows_before": before.to_dict(),
        "rows_after": after.to_dict(),
        "before_against_original": before.against(whole),
        "after_against_original": after.against(whole),
        "latency": {"seconds": latency.seconds, "ratio": latency.ratios["cut"], "rounds": latency.rounds},
        "samples": samples,
        "log": [json_row(row) for row in log],
        "seconds": {**{k: round(v, 1) for k, v in seconds.items()}, "all": round(time.perf_counter() - start, 1)},
    }


def take_model(cell: Path, folder: Path) -> None:
    """Lay the model of a cell into the folder of the run."""
    for file in sorted((cell / MODEL).iterdir()):
        shutil.copy2(file, folder / file.name)


def summary(original: Mapping[str, Any], cells: Sequence[Mapping[str, Any]], args: CompressConfig) -> dict[str, Any]:
    """All that the page of a run shows: the original, its cells, and the first method against each other one."""
    kept = [{key: value for key, value in cell.items() if not key.startswith("rows_")} for cell in cells]
    first = {cell["budget"]: cell for cell in cells if cell["method"] == args.methods[0]}
    for cell, shown in zip(cells, kept, strict=True):
        mine = first[cell["budget"]]
        if mine is not cell:
            after = (Measured.from_dict(of["rows_after"]) for of in (mine, cell))
            shown["first_against_this"] = next(after).against(next(after))
    whole = {key: value for key, value in original.items() if key != "measured"}
    whole["figures"] = Measured.from_dict(original["measured"]).figures
    return {"original": whole, "cells": kept, "cost": args.weights, "delta": [args.delta, args.delta_strength],
            "quality_map": args.quality_map, "cost_tokens": args.cost_tokens}  # fmt: skip


def flat_metrics(original: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
    """For metrics.json: the original, and the model that lies in the folder of the run before and after healing."""
    of = {
        "original": Measured.from_dict(original["measured"]).figures,
        "cut": first["before"],
        "healed": first["after"],
    }
    flat = {f"{name}_{key}": value for name, figures in of.items() for key, value in figures.items()}
    costs = {f"{name}_share": first["costs"][name] / original["costs"][name] for name in first["costs"]}
    return (
        flat
        | costs
        | {
            "cost": first["cost"],
            "quality": first["quality"],
            "search_reward": first["reward"],
            "latency_share": first["latency"]["ratio"],
            "evaluations": first["evaluations"],
        }
    )


def table(original: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table for people, in Markdown."""
    figures = Measured.from_dict(original["measured"]).figures
    names = [name for name in figures if not name.endswith("_ci95")]
    header = ["budget", "method", "cost", "layers", "evaluations", *(f"{n} cut" for n in names),
              *(f"{n} healed" for n in names), "latency", "s"]  # fmt: skip
    whole = [
        "",
        "original",
        "1",
        original["layers"],
        "",
        *(f"{figures[n]:.4g}" for n in names),
        *[""] * len(names),
        1,
        "",
    ]
    rows = [[f"{cell['budget']:g}", cell["method"], f"{cell['cost']:.3f}",
             sum(layer is not None for layer in cell["structure"]["layers"]), cell["evaluations"],
             *(f"{cell['before'][n]:.4g}" for n in names), *(f"{cell['after'][n]:.4g}" for n in names),
             f"{cell['latency']['ratio']:.3f}", f"{cell['seconds']['all']:.0f}"] for cell in cells]  # fmt: skip
    lines = [header, ["---"] * len(header), whole, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _readings(models: Mapping[str, Any], args: CompressConfig) -> dict[str, Callable[[], object]]:
    """A pass over one text of `cost_tokens` tokens, by each model."""

    def reading(model: Any) -> Callable[[], object]:
        length = min(args.cost_tokens, getattr(model.config, "max_position_embeddings", None) or args.cost_tokens)
        ids = torch.full((args.latency_rows, length), 5, device=model.device)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

        def step() -> object:
            with torch.no_grad():
                return read(model, batch)

        return step

    return {name: reading(model) for name, model in models.items()}


def _made(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a file holds; made and written first, where it is not there."""
    if not path.is_file():
        write_json(path, make())
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found
