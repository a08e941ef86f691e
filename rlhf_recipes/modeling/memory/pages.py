"""An estimate as a person reads it, and the table of sizes and cards of docs/memory.md."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_recipes.modeling.memory import built
from rlhf_recipes.modeling.memory.advice import Change
from rlhf_recipes.modeling.memory.estimate import Estimate, estimate
from rlhf_recipes.modeling.memory.machines import of_size
from rlhf_recipes.modeling.memory.settings import RunArguments
from rlhf_recipes.texts import readable_bytes

CARDS = (8, 12, 16, 24, 48, 80)  # GB
LORA = {"use_peft": True, "lora_target_modules": ["all-linear"], "dtype": "bfloat16"}
QLORA = {**LORA, "load_in_4bit": True, "use_bnb_nested_quant": True}
BATCH = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 16, "gradient_checkpointing": True}
SAMPLED = {**BATCH, "max_prompt_length": 512, "max_completion_length": 256, "rollout_forward_batch_size": 16}
# What stands above a column, the recipe, and its options.
COLUMNS: tuple[tuple[str, str, dict], ...] = (
    ("SFT, LoRA", "sft", {**LORA, **BATCH, "max_length": 768}),
    ("SFT, QLoRA", "sft", {**QLORA, **BATCH, "max_length": 768}),
    ("DPO, QLoRA", "dpo", {**QLORA, **BATCH, "per_device_train_batch_size": 1, "max_length": 768}),
    ("PPO, full", "ppo", SAMPLED),
    ("PPO, LoRA", "ppo", {**LORA, **SAMPLED}),
    ("PPO, QLoRA", "ppo", {**QLORA, **SAMPLED}),
    ("PPO, QLoRA, upper 8 layers", "ppo", {**QLORA, **SAMPLED, "lora_num_layers": 8}),
)


def page(found: Estimate, changes: Sequence[Change], console: Console | None = None) -> None:
    """Print what a run takes, whether it fits, and what would help."""
    console = Console(highlight=False, soft_wrap=True) if console is None else console
    roles = Table("role", *(f"{name}" for name in ("weights", "gradients", "optimizer")), "", box=None)
    for part in found.roles:
        optimizer = "unknown" if part.optimizer is None else readable_bytes(part.optimizer)
        roles.add_row(part.role, readable_bytes(part.weights), readable_bytes(part.gradients), optimizer, part.note)
    for column in roles.columns[1:4]:
        column.justify = "right"
    console.print(roles)
    moments = Table("moment", "all there is", "of it, beside the roles", box=None)
    moments.columns[1].justify = "right"
    for moment, parts in found.moments.items():
        told = ", ".join(f"{name} {readable_bytes(size)}" for name, size in parts.items() if size)
        moments.add_row(moment, readable_bytes(found.at(moment)), told)
    console.print()
    console.print(moments)
    console.print(f"\nThe process itself takes {readable_bytes(found.machine.process)} of each.")
    for note in found.notes:
        console.print(f"Note: {note}", markup=False)
    verdict = "fits" if found.fits else "does not fit"
    console.print(
        f"{found.recipe}: {readable_bytes(found.total)} at most (the {found.worst}), which {verdict} into "
        f"{found.machine.name} with {readable_bytes(found.machine.size)}.",
        markup=False,
    )
    for change in changes:
        console.print(f"With {change}: {readable_bytes(change.total)}{', which fits' if change.fits else ''}.")
    if not found.fits and not (changes and changes[-1].fits):
        console.print("Nothing known here makes it fit: take a smaller model, or shorter texts.")


def table(file: Path | None = None) -> str:
    """The table of docs/memory.md: for each size and set-up what it takes on a GPU, and the smallest card for it.

    Args:
        file (`Path`, *optional*): JSON of configs by name. Default: the sizes that are known here.

    Raises:
        `ValueError`: if the file is no mapping of configs.
    """
    sizes = built.shapes() if file is None else json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(sizes, dict) or not all(isinstance(c, dict) and "model_type" in c for c in sizes.values()):
        raise ValueError(f"{file} must map names to configs, each with its model_type.")
    lines = [
        f"| | {' | '.join(title for title, _, _ in COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name, config in sizes.items():
        cells = []
        for _, recipe, options in COLUMNS:
            run = RunArguments(model_name_or_path=name, **options)
            with built.known(name, config):
                total = estimate(run, recipe, of_size("1GB")).total
            card = next((f"{size} GB" for size in CARDS if total <= size * 10**9), "more")
            cells.append(f"{total / 1e9:.1f}: **{card}**")
        lines.append(f"| {name.rpartition('/')[2]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
