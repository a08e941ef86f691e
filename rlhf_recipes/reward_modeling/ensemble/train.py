"""Training several members of an ensemble on one base: K LoRA adapters with their heads, one after another.

```
<folder>/adapter_0/   adapter_config.json, adapter_model.safetensors, reward_config.json, member.json
         adapter_1/   ...
```

Each is an adapter as PEFT writes it, and can be loaded alone. A folder `adapter_k` appears at once, when its member is
trained: a run that was killed goes on with those that are missing.
"""

import copy
import dataclasses
import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from rlhf_recipes.data.chat_rows import TemplateArguments
from rlhf_recipes.data.loading import DataArguments
from rlhf_recipes.modeling.loading import (
    ModelArguments,
    add_adapters,
    disable_dropout,
    load_reward_model,
    load_tokenizer,
)
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.examples import settings_for
from rlhf_recipes.reward_modeling.losses.base import Objective
from rlhf_recipes.reward_modeling.splits import Splits, check_conversations
from rlhf_recipes.rewards.combine.shared_ensemble import member_folder

if TYPE_CHECKING:
    from peft import PeftModel

logger = logging.getLogger(__name__)
MEMBER_FILE = "member.json"
CLASSIFIERS = ("classifier", "score")  # heads, as PEFT knows them

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

    Args:
        num_members (`int`, *optional*, defaults to 4):
            K. Member k has the seed `seed + k`: another LoRA initialization, head, and order of the rows.
        member_rows (`str`, *optional*, defaults to `"all"`):
            `"all"`, or `"bootstrap"`: each member draws as many rows as there are, with replacement (Breiman 1996).
        member_share (`float`, *optional*, defaults to 1.0):
            Each member draws this share of the rows, without replacement; under `"bootstrap"`, with it.
        shared_head (`bool`, *optional*, defaults to `False`):
            Whether a new head starts the same in all members. Members differ less then, and their weights average
            better.
        other_datasets (`list[str]`, *optional*):
            Datasets on whose test split the disagreement is measured too, to hold it against that at home.

    Raises:
        `ValueError`: if one of these is out of range.
    """

    help_title = "Ensemble"

    num_members: int = field(default=4, metadata={"help": "How many reward models, each an adapter on the one base."})
    member_rows: Literal["all", "bootstrap"] = field(
        default="all", metadata={"help": "Rows of each member: all, or as many drawn with replacement."}
    )
    member_share: float = field(default=1.0, metadata={"help": "Share of the rows that each member draws."})
    shared_head: bool = field(
        default=False, metadata={"help": "Start all members from one head: less different, and better to average."}
    )
    other_datasets: list[str] | None = field(
        default=None, metadata={"help": "Other datasets on which to see whether the members disagree more."}
    )

    def __post_init__(self) -> None:
        if self.num_members < 2:
            raise ValueError(
                f"num_members is {self.num_members}, but one model has nobody to disagree with. Give 2 or more, or "
                "train a single model with recipes/reward.py."
            )
        if self.member_rows not in ("all", "bootstrap"):
            raise ValueError(f"member_rows is {self.member_rows!r}; give all or bootstrap.")
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

    A member is what `recipes/reward.py` trains with its seed on its rows, by the same trainers. The base is loaded
    once, and not at all where nothing is missing. What a loss learns from the rows beforehand (the scale of ratings,
    their levels) it learns from all of them, so that the members have one unit. A member that was cut short starts
    anew: checkpoints are those of one member, and are deleted when it is finished.

    Args:
        folder (`str` or `Path`): Where the adapters go.
        splits ([`~rlhf_recipes.reward_modeling.splits.Splits`]): The data.
        loss (`str`): Of `rlhf_recipes.reward_modeling.losses.LOSSES`.
        training_args ([`RewardConfig`]): `seed` is that of the first member.
        model_args ([`~rlhf_recipes.modeling.loading.ModelArguments`]): The base, and how it is adapted.
        args ([`EnsembleArguments`]): The ensemble.
        template_args ([`~rlhf_recipes.data.chat_rows.TemplateArguments`]): What the chat template is told.
        data_args ([`~rlhf_recipes.data.loading.DataArguments`]): Where the rows are, for errors that name one.

    Returns:
        `list[dict]`: what `member.json` of each says: its seed, rows, seconds and what it was made from.

    Raises:
        `ValueError`: if `use_peft` is not set; if the chat template cannot render a row; if steps are to be judged, of
            which an ensemble has no one score; if a member is there that was made from something else.
    """
    _check_possible(loss, training_args, model_args)
    tokenizer = load_tokenizer(cast(str, model_args.model_name_or_path), revision=model_args.model_revision)
    template_kwargs = template_args.chat_template_kwargs
    _check_conversations(splits, loss, tokenizer, training_args, template_args, data_args)
    base: _Base | None = None
    facts = []
    for index in range(args.num_members):
        seed = training_args.seed + index
        rows = member_dataset(splits.train, seed, args)
        plan = _plan(seed, rows, loss, training_args, model_args, args)
        plan |= {"chat_template_kwargs": template_kwargs} if template_kwargs else {}
        place = member_folder(folder, index)
        if not place.exists():
            base = base or _Base(tokenizer, loss, splits, training_args, model_args, args, template_kwargs)
            base.train(place, seed, rows, plan)
        facts.append(_checked(place, plan))
    if base is None:
        logger.info("All %d members are trained already.", args.num_members)
    return facts


class _Base:
    """The one model that all members are put on, and what it takes to train one."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        loss: str,
        splits: Splits,
        training_args: RewardConfig,
        model_args: ModelArguments,
        args: EnsembleArguments,
        template_kwargs: Mapping[str, Any] | None,
    ) -> None:
        self.template_kwargs = template_kwargs
        self.tokenizer, self.loss, self.splits, self.args = tokenizer, loss, splits, args
        self.training_args = training_args
        self.threads_chosen = False
        labels = self.objective().label_names
        set_seed(training_args.seed)
        # With adapters, because loading then finds out which modules are new besides the head, such as a pooler.
        self.model = cast(Any, load_reward_model(model_args, tokenizer, labels=labels))
        whole = list(self.model.peft_config["default"].modules_to_save or ())
        self.model_args = dataclasses.replace(model_args, lora_task_type="SEQ_CLS", lora_modules_to_save=whole)
        self.model = self.model.unload()
        # PEFT trains copies of these, and leaves the last of them behind when adapters are taken off.
        self.originals = {
            name: copy.deepcopy(module)
            for name, module in self.model.named_modules()
            if any(name == key or name.endswith(f".{key}") for key in whole)
        }
        kept = {
            *(model_args.lora_modules_to_save or ()),
            *(() if _head_is_new(model_args, len(labels)) else CLASSIFIERS),
        }
        self.new = [] if args.shared_head else [key for key in whole if key not in kept]

    def objective(self) -> Objective:
        """A loss that has learned from the rows, and nothing from a member."""
        from rlhf_recipes.reward_modeling.trainer import fitted_objective

        return fitted_objective(self.loss, self.splits.train, self.training_args)

    def fresh(self, seed: int) -> "PeftModel":
        """The base with a new adapter and a new head: those that a run of its own would draw with that seed."""
        from peft import PeftModel

        if isinstance(self.model, PeftModel):
            self.model = self.model.unload()
        for name, module in self.originals.items():
            device = next(self.model.parameters()).device
            self.model.set_submodule(name, copy.deepcopy(module).to(device))
        set_seed(seed)
        for name, module in self.model.named_modules():
            if any(f".{key}." in f".{name}." for key in self.new):
                self.model._init_weights(module)
        self.model = add_adapters(self.model, self.model_args)
        disable_dropout(self.model)
        return self.model

    def train(self, place: Path, seed: int, rows: Dataset, plan: Mapping[str, Any]) -> None:
        """Train one member and put it into its folder, which appears at the end."""
        from trl import RewardTrainer

        from rlhf_recipes.reward_modeling.saving import save_settings
        from rlhf_recipes.reward_modeling.trainer import choose_threads, make_trainer

        work = place.with_name(f".{place.name}")
        args = dataclasses.replace(self.training_args, seed=seed, output_dir=str(work), push_to_hub=False)
        model, objective = self.fresh(seed), self.objective()
        settings = settings_for(self.tokenizer, cast(Any, model), args.max_length, rows, self.template_kwargs)
        held_out = (self.splits.validation or self.splits.test) if args.eval_strategy != "no" else None
        trainer = make_trainer(model, self.loss, objective, rows, held_out, self.tokenizer, settings, args)
        if not self.threads_chosen:
            choose_threads(trainer)
            self.threads_chosen = True
        logger.info("Training %s: seed %d, %d rows.", place.name, seed, len(rows))
        found = trainer.train()
        used: Any = trainer.train_dataset
        if hasattr(model, "objective"):  # thresholds that were trained beside it; the settings say what they became
            del model.objective
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


def _head_is_new(model_args: ModelArguments, outputs: int) -> bool:
    """Whether the files of the base have no head of that size, so that one is drawn at random."""
    from transformers import AutoConfig  # lists all models that there are

    config = AutoConfig.from_pretrained(str(model_args.model_name_or_path), revision=model_args.model_revision)
    has_head = any(name.endswith("ForSequenceClassification") for name in config.architectures or ())
    return not has_head or config.num_labels != outputs


def _plan(
    seed: int,
    rows: Dataset,
    loss: str,
    training_args: RewardConfig,
    model_args: ModelArguments,
    args: EnsembleArguments,
) -> dict[str, Any]:
    """What a member is made from, to tell whether one that is there is the one that is wanted."""
    plan: dict[str, Any] = {"seed": seed, "loss": loss, "shared_head": args.shared_head}
    plan |= {name: getattr(training_args, name) for name in OF_TRAINING}
    plan |= {name: getattr(model_args, name) for name in OF_MODEL}
    plan["rows"] = _digest(rows)
    return json.loads(json.dumps(plan, default=str))


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
