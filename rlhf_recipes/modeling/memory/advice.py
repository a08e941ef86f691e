"""What to change where a run does not fit: each proposal is worked out, and told only where it lowers the need."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rlhf_recipes.modeling.memory.built import config_of
from rlhf_recipes.modeling.memory.estimate import Estimate, estimate
from rlhf_recipes.modeling.memory.settings import TRAINED, RunArguments, completed


@dataclass(frozen=True)
class Change:
    """Options that take less memory, and what the run needs with them and all changes before."""

    options: dict[str, Any]
    total: int
    fits: bool

    def __str__(self) -> str:
        return " ".join(f"--{name} {_typed(value)}" for name, value in self.options.items())


def advise(given: RunArguments, found: Estimate, prompt_tokens: int | None = None) -> list[Change]:
    """Changes, one on top of the other until the run fits; those that leave the need as it is are left out."""
    changes: list[Change] = []
    best, run = found, given
    tried: set[str] = set()
    while not best.fits:
        proposals = [options for options in _proposals(run, found) if str(options) not in tried]
        if not proposals:
            break
        tried.add(str(proposals[0]))
        other = run.changed(**proposals[0])
        new = estimate(other, found.recipe, found.machine, prompt_tokens)
        if new.total < best.total:
            changes.append(Change(proposals[0], new.total, new.fits))
            best, run = new, other
    return changes


def _proposals(given: RunArguments, found: Estimate) -> Iterator[dict[str, Any]]:
    """What costs little comes first: the same result in less memory, then other weights, then fewer of them."""
    run, trains = completed(given, found.recipe, found.machine.is_gpu), found.recipe in TRAINED
    adapted = run.use_peft and trains
    for name in ("rollout_forward_batch_size", "batch_size"):
        if (rows := getattr(run, name) or 0) > 8:
            yield {name: max(8, rows // 4)}
    if trains and (rows := run.per_device_train_batch_size or 1) > 1:
        fewer = rows // 4 if rows % 4 == 0 else 1
        accumulation = (run.gradient_accumulation_steps or 1) * (rows // fewer)
        yield {"per_device_train_batch_size": fewer, "gradient_accumulation_steps": accumulation}
    if trains and not run.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    if (run.logits_chunk_size or 0) > 128:
        yield {"logits_chunk_size": 128}
    if trains and not adapted and found.recipe != "reward_ensemble":
        yield {"use_peft": True, "lora_target_modules": ["all-linear"]}
    if (adapted or not trains) and run.dtype == "float32" and found.machine.is_gpu:
        yield {"dtype": "bfloat16"}
    if run.critic not in (None, "head", "none"):
        yield {"critic": "head"}
    if adapted and not run.load_in_4bit and not run.load_in_8bit:
        yield {"load_in_4bit": True, "use_bnb_nested_quant": True}
    if adapted and run.load_in_4bit and not run.use_bnb_nested_quant:
        yield {"use_bnb_nested_quant": True}
    if adapted and run.lora_num_layers is None and found.recipe in ("ppo", "sft", "dpo", "grpo", "rloo"):
        layers = config_of(str(run.model_name_or_path)).get_text_config().num_hidden_layers
        yield {"lora_num_layers": max(1, layers // 3)}


def _typed(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)
