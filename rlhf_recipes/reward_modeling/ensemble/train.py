"""Training several members of an ensemble on one base: K LoRA adapters with their heads, one after another.

```
<folder>/adapter_0/   adapter_config.json, adapter_model.safetensors, reward_config.json, member.json
         adapter_1/   ...
```

Each is an adapter as PEFT writes it, and can be loaded alone. A folder `adapter_k` appears at once, when its member is
trained: a run that was killed goes on with those that are missing.
"""

import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from rlhf_recipes.data.chat_rows import TemplateArguments
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model, load_tokenizer
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.examples import settings_for
from rlhf_recipes.reward_modeling.splits import Splits, check_conversations
from rlhf_recipes.rewards.combine.shared_ensemble import member_folder
from rlhf_recipes.starting.options import check_choice, option

logger = logging.getLogger(__name__)
MEMBER_FILE = "member.json"

# What makes a member what it is, besides its seed and its rows.
OF_TRAINING = (
    "learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs", "max_steps", "weight_decay",
    "max_grad_norm", "optim", "per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "passes",
    "min_gap", "loss_args", "center_rewards_coefficient", "debias", "group_column", "group_penalty", "bf16", "fp16",
)  # fmt: skip
OF_MODEL = (
    "model_name_or_path", "model_revision", "dtype", "lora_r", "lora_alpha", "lora_target_modules",
    "lora_modules_to_save", "lora_num_layers", "use_rslora", "use_dora", "load_in_4bit", "load_in_8bit",
)  # fmt: skip


@dataclass
class EnsembleArguments:
    """How many members, and in what they differ.

    Raises:
        `ValueError`: if one of these is out of range.
    """

    help_title = "Ensemble"

    num_members: int = option(
        4, "How many reward models, each an adapter on the one base; seeds count up from the run's."
    )
    member_rows: Literal["all", "bootstrap"] = option(
        "all", "Rows of each member: all, or as many drawn with replacement."
    )
    member_share: float = option(1.0, "Share of the rows that each member draws.")
    shared_head: bool = option(False, "Start all members from one head: less different, and better to average.")

    def __post_init__(self) -> None:
        if self.num_members < 2:
            raise ValueError(
                f"num_members is {self.num_members}, but one model has nobody to disagree with. Give 2 or more, or "
                "train a single model with recipes/reward.py."
            )
        check_choice("member_rows", self.member_rows, ("all", "bootstrap"))
        if not 0 < self.member_share <= 1:
            raise ValueError(f"member_share is {self.member_share}; give more than 0, and 1 at most.")


def member_dataset(rows: Dataset, seed: int, args: EnsembleArguments) -> Dataset:
    """The training rows of one member.

    Raises:
        `ValueError`: if its share has no row.
    """
    count = round(args.member_share * len(rows))
    if count < 1:
        raise ValueError(f"member_share {args.member_share} of {len(rows)} rows is none. Give a larger share.")
    again = args.member_rows == "bootstrap"
    if not again and count == len(rows):
        return rows
    drawn = np.random.default_rng(seed).choice(len(rows), size=count, replace=again)
    return rows.select(drawn.tolist())


def train_members(
    folder: str | Path,
    splits: Splits,
    loss: str,
    training_args: RewardConfig,
    model_args: ModelArguments,
    args: EnsembleArguments,
    template_args: TemplateArguments,
    data_args: DataArguments,
) -> list[dict[str, Any]]:
    """Train the members that the folder does not have yet.

    A member is what `recipes/reward.py` trains with its seed on its rows, by the same trainers. What a loss learns of
    the rows beforehand (the scale of ratings, their levels) it learns from all of them, so that the members have one
    unit. A member that was cut short starts anew: checkpoints are those of one member, and are deleted when it is
    finished.

    Returns:
        `list[dict]`: what `member.json` of each says: its seed, rows, seconds and what it was made from.

    Raises:
        `ValueError`: if `use_peft` is not set; if the chat template cannot render a row; if steps are to be judged, of
            which an ensemble has no one score; if a member is there that was made from something else.
    """
    _check_possible(loss, training_args, model_args)
    tokenizer = load_tokenizer(cast(str, model_args.model_name_or_path), revision=model_args.model_revision)
    _check_conversations(splits, loss, tokenizer, training_args, template_args, data_args)
    run = _Run(tokenizer, loss, splits, training_args, model_args, args, template_args.chat_template_kwargs)
    facts, trained = [], 0
    for index in range(args.num_members):
        seed = training_args.seed + index
        rows = member_dataset(splits.train, seed, args)
        plan = run.plan(seed, rows)
        place = member_folder(folder, index)
        if not place.exists():
            run.train(place, seed, rows, plan, chooses_threads=not trained)
            trained += 1
        facts.append(_checked(place, plan))
    if not trained:
        logger.info("All %d members are trained already.", args.num_members)
    return facts


@dataclass(frozen=True)
class _Run:
    """What all members have in common."""

    tokenizer: PreTrainedTokenizerBase
    loss: str
    splits: Splits
    training_args: RewardConfig
    model_args: ModelArguments
    args: EnsembleArguments
    template_kwargs: Mapping[str, Any] | None

    def plan(self, seed: int, rows: Dataset) -> dict[str, Any]:
        """What a member is made from, to tell whether one that is there is the one that is wanted."""
        plan: dict[str, Any] = {"seed": seed, "loss": self.loss, "shared_head": self.args.shared_head}
        plan |= {name: getattr(self.training_args, name) for name in OF_TRAINING}
        plan |= {name: getattr(self.model_args, name) for name in OF_MODEL}
        plan["rows"] = _digest(rows)
        plan |= {"chat_template_kwargs": self.template_kwargs} if self.template_kwargs else {}
        return json.loads(json.dumps(plan, default=str))

    def train(self, place: Path, seed: int, rows: Dataset, plan: Mapping[str, Any], chooses_threads: bool) -> None:
        """Train one member and put it into its folder, which appears at the end."""
        from trl import RewardTrainer

        from rlhf_recipes.reward_modeling.saving import save_settings, without_objective
        from rlhf_recipes.reward_modeling.trainer import choose_threads, fitted_objective, make_trainer

        work = place.with_name(f".{place.name}")
        args = dataclasses.replace(self.training_args, seed=seed, output_dir=str(work), push_to_hub=False)
        objective = fitted_objective(self.loss, self.splits.train, self.training_args)
        shared = self.args.shared_head
        set_seed(self.training_args.seed if shared else seed)
        kinds: dict[str, Any] = {"labels": objective.label_names, "adapter_seed": seed if shared else None}
        model: Any = load_reward_model(self.model_args, self.tokenizer, **kinds)
        settings = settings_for(self.tokenizer, model, args.max_length, rows, self.template_kwargs)
        held_out = self.splits.validation or self.splits.test
        trainer = make_trainer(model, self.loss, objective, rows, held_out, self.tokenizer, settings, args)
        if chooses_threads:
            choose_threads(trainer)
        logger.info("Training %s: seed %d, %d rows.", place.name, seed, len(rows))
        found = trainer.train()
        used: Any = trainer.train_dataset
        without_objective(model)
        if trainer.is_world_process_zero():
            draft = work / "finished"
            model.save_pretrained(str(draft))
            save_settings(draft, settings, objective, plain=isinstance(trainer, RewardTrainer))
            seconds = round(found.metrics["train_runtime"], 1)
            write_json(
                draft / MEMBER_FILE,
                {"seed": seed, "rows": len(rows), "train_rows": len(used), "train_seconds": seconds}
                | {"loss": found.training_loss, "made_from": plan},
            )
            draft.rename(place)
            shutil.rmtree(work)
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()


def _check_conversations(
    splits: Splits,
    loss: str,
    tokenizer: PreTrainedTokenizerBase,
    training_args: RewardConfig,
    template_args: TemplateArguments,
    data_args: DataArguments,
) -> None:
    from rlhf_recipes.reward_modeling.trainer import fitted_objective

    objective = fitted_objective(loss, splits.train, training_args)
    check_conversations(splits, objective, tokenizer, template_args, data_args, training_args.validation_split)


def _check_possible(loss: str, training_args: RewardConfig, model_args: ModelArguments) -> None:
    if not model_args.use_peft:
        raise ValueError(
            "The members of this ensemble are adapters on one base: give --use_peft. For whole models, train each "
            "with recipes/reward.py and another --seed, and put the folders into an EnsembleReward."
        )
    if loss == "process":
        raise ValueError(
            "The loss process judges steps, and an ensemble gives one score for a completion. Train process reward "
            "models apart, with recipes/reward.py."
        )
    if training_args.resume_from_checkpoint:
        raise ValueError(
            "resume_from_checkpoint is for one model. An ensemble goes on by itself: members that are finished are "
            "kept, and one that was cut short starts anew."
        )
    if training_args.num_frozen_layers:
        raise ValueError(
            f"num_frozen_layers is {training_args.num_frozen_layers}, but with adapters the whole base is frozen. To "
            "adapt the upper layers alone, give lora_num_layers."
        )


def _digest(rows: Dataset) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _checked(place: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    """What `member.json` says, if it is the member that is wanted."""
    path = place / MEMBER_FILE
    if not path.is_file():
        raise ValueError(f"{place} has no {MEMBER_FILE}, so it is none of this recipe's. Name another --output_dir.")
    facts = json.loads(path.read_text(encoding="utf-8"))
    for key, wanted in plan.items():
        there = facts["made_from"].get(key)
        if there != wanted:
            raise ValueError(
                f"{place} was trained with {key} {there!r}, and now it is {wanted!r}: members made in different ways "
                "would be mixed. Name another --output_dir, or delete the adapters to train them anew."
            )
    return facts
