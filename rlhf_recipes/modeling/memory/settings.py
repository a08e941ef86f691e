"""What of a recipe's YAML decides about memory, and what each recipe takes where the file does not say."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_recipes.modeling.cost.threads import cpu_has_bfloat16
from rlhf_recipes.modeling.loading import ModelArguments
from rlhf_recipes.outputs import RUN_MARKER

# The defaults of PPO and of reward models, whose classes stand above this floor; a test compares. Those of the other
# recipes are read from TRL.
TRAINING = {
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
}
SAMPLING = {"max_prompt_length": 512, "max_completion_length": 53}
OWN_DEFAULTS: dict[str, dict[str, Any]] = {
    "ppo": {
        **TRAINING, **SAMPLING, "rollout_forward_batch_size": 64, "logits_chunk_size": 128, "num_mini_batches": 1,
        "reuse_trunk": True, "trunk_memory_gb": 2.0, "critic": "head", "entropy_coef": 0.0,
    },
    "reward": {**TRAINING, "max_length": 1024, "loss": "auto", "num_frozen_layers": 0},
    "evaluate": {**SAMPLING, "batch_size": 64},
    "best_of_n": {**SAMPLING, "batch_size": 64},
    "critic": {}, "label": {}, "serve_reward": {}, "reward_linear": {}, "reward_personal": {},
}  # fmt: skip
OWN_DEFAULTS["reward_ensemble"] = OWN_DEFAULTS["reward"]
OF_TRL = {"sft": "SFTConfig", "dpo": "DPOConfig", "grpo": "GRPOConfig", "rloo": "RLOOConfig"}
RECIPES = (*OWN_DEFAULTS, *OF_TRL)
TRAINED = ("ppo", "reward", "reward_ensemble", *OF_TRL)
SAMPLED = ("ppo", "grpo", "rloo", "evaluate", "best_of_n")


def _option(text: str) -> Any:
    return field(default=None, metadata={"help": text})


@dataclass
class RunArguments(ModelArguments):
    """The run: the options of its recipe that decide about memory. Where they are left out, the recipe's defaults."""

    help_title = "The run"

    model_name_or_path: str | None = _option("The model: a folder or id, of which config.json is read alone.")
    per_device_train_batch_size: int | None = _option("Rows of a micro-batch.")
    gradient_accumulation_steps: int | None = _option("Micro-batches; for PPO those of a rollout.")
    num_mini_batches: int | None = _option("Optimizer steps for each pass over a rollout.")
    max_tokens_per_batch: int | None = _option("Tokens of a forward and backward pass at most.")
    gradient_checkpointing: bool | None = _option("Compute activations again in the backward pass.")
    bf16: bool | None = _option("bfloat16 mixed precision. Default: as the recipe chooses on the machine.")
    fp16: bool | None = _option("float16 mixed precision.")
    optim: str | None = _option("The optimizer, by the Trainer's name.")
    optim_args: str | None = _option("Its settings.")
    max_length: int | None = _option("Tokens of a text.")
    max_prompt_length: int | None = _option("Tokens of a prompt.")
    max_completion_length: int | None = _option("Tokens of a completion.")
    rollout_forward_batch_size: int | None = _option("Episodes sampled and read at a time.")
    batch_size: int | None = _option("Completions at a time, where nothing is trained.")
    steps_per_generation: int | None = _option("GRPO, RLOO: micro-batches that are sampled at a time.")
    logits_chunk_size: int | None = _option("Tokens whose logits exist at a time.")
    reuse_trunk: bool | None = _option("Run the layers below all that is trained once for each token.")
    trunk_memory_gb: float | None = _option("Keep what they say where it takes no more than this.")
    rollout_dtype: str | None = _option("Precision of a copy of the policy that samples.")
    packed_decoding: str | None = _option("Layers with a copy that decodes faster on a CPU: all, output or none.")
    critic: str | None = _option("head, adapter, policy, reward_model, none, or a folder or id.")
    ref_model_name_or_path: str | None = _option("The reference.")
    entropy_coef: float | None = _option("Weight of the entropy bonus, which keeps logits for the backward pass.")
    beta: float | None = _option("GRPO, RLOO: weight of the KL, which needs a reference; DPO: its temperature.")
    loss: str | None = _option("Reward models: the loss, which says how many texts a row has.")
    num_frozen_layers: int | None = _option("Reward models: embeddings and lowest layers that stay as they are.")
    num_members: int | None = _option("Ensembles: members, which are trained one after the other.")
    reward_funcs: list[str | dict] | None = _option("Rewards; those that are models take memory.")
    judge_funcs: list[str | dict] | None = _option("Rewards that choose nothing; models among them take memory too.")

    def changed(self, **values: Any) -> "RunArguments":
        """The same run with other options."""
        return dataclasses.replace(self, **values)


def recipe_of(config: str, asked: str | None = None) -> str:
    """Which recipe a YAML is for: what was asked for, the last command in its header, or the run in whose folder it
    lies.

    Raises:
        `ValueError`: if none of these says it, or it is no recipe of this project.
    """
    path, found = Path(config), asked
    if found is None:
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        header = "\n".join(line for line in lines if line.startswith("#"))
        commands = re.findall(r"recipes/(\w+)\.py", header)
        marker = path.parent / RUN_MARKER
        if commands:
            found = commands[-1]
        elif marker.is_file():
            found = marker.read_text(encoding="utf-8").strip()
    if found not in RECIPES:
        said = f"names {found!r}, which is none" if found else "does not say which recipe it is for"
        raise ValueError(f"{config} {said}. Give --recipe, one of {', '.join(RECIPES)}.")
    return found


def completed(given: RunArguments, recipe: str, on_gpu: bool) -> RunArguments:
    """The options of a run, those that were left out as the recipe has them on a GPU or CPU."""
    known = defaults_of(recipe)
    values: dict[str, Any] = {name: known.get(name) for name in _names() if getattr(given, name) is None}
    run = dataclasses.replace(given, **values)
    if recipe == "ppo" and on_gpu and given.logits_chunk_size is None:
        run.logits_chunk_size = 512
    if run.bf16 is None:
        if recipe in OF_TRL:
            run.bf16 = not run.fp16
        else:
            run.bf16 = not run.fp16 and (on_gpu or (recipe.startswith("reward") and cpu_has_bfloat16()))
    return run


def defaults_of(recipe: str) -> dict[str, Any]:
    """The defaults of a recipe, by option."""
    if recipe in OWN_DEFAULTS:
        return OWN_DEFAULTS[recipe]
    import trl

    fields = {f.name: f for f in dataclasses.fields(getattr(trl, OF_TRL[recipe]))}
    return {name: fields[name].default for name in _names() if name in fields}


def _names() -> list[str]:
    of_models = {f.name for f in dataclasses.fields(ModelArguments)} - {"model_name_or_path"}
    return [f.name for f in dataclasses.fields(RunArguments) if f.name not in of_models]
