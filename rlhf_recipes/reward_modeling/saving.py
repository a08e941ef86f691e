"""Writing a reward model so that others can load it: model, head and tokenizer, with adapters merged and apart."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any, cast

from peft import PeftModel, TaskType
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, Trainer

from rlhf_recipes import filenames
from rlhf_recipes.hub import OF_REWARD_MODEL, push_run
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import ModelArguments, load_reward_model
from rlhf_recipes.modeling.tokenizers.text_ends import adds_eos, ending_tokenizer
from rlhf_recipes.outputs import write_json
from rlhf_recipes.reward_modeling.config import RewardConfig
from rlhf_recipes.reward_modeling.losses.base import Objective

logger = logging.getLogger(__name__)
ADAPTER_FOLDER = "adapter"


def save_reward_model(trainer: Trainer, model_args: ModelArguments) -> None:
    """Save model, head and tokenizer so that any Hugging Face code can load them and gets the same scores.

    `AutoModelForSequenceClassification.from_pretrained(output_dir)` needs no PEFT: adapters are merged into the model
    that lies there, and saved once more on their own in `output_dir/adapter`, for whoever has the base in memory
    already. Adapters on a quantized base are merged into the base as it is on disk, in `model_args.dtype`: its scores
    differ a little from those of the quantized model, and what is measured afterwards is the merged one.
    """
    without_objective(trainer.model)
    folder = Path(str(trainer.args.output_dir)) / ADAPTER_FOLDER
    stale = not isinstance(trainer.model, PeftModel) and (folder / filenames.ADAPTER_CONFIG).is_file()
    if stale and trainer.args.should_save:
        logger.info("Removed the adapter of an earlier run, which does not belong to this model: %s.", folder)
        shutil.rmtree(folder)
    if isinstance(trainer.model, PeftModel):
        if trainer.args.should_save:
            trainer.model.save_pretrained(str(folder))
            cast(Any, trainer.processing_class).save_pretrained(str(folder))
        trainer.accelerator.wait_for_everyone()
        trainer.model = _merged(trainer.model, folder, model_args, trainer.processing_class)
    trainer.save_model()


def without_objective(model: Any) -> None:
    """Take away thresholds that were trained beside the model; its settings say what they became."""
    if hasattr(model, "objective"):
        del model.objective


def _merged(model: PeftModel, adapter: Path, model_args: ModelArguments, tokenizer: Any) -> PreTrainedModel:
    if not getattr(model, "is_loaded_in_4bit", False) and not getattr(model, "is_loaded_in_8bit", False):
        return model.merge_and_unload()
    plain = dataclasses.replace(model_args, load_in_4bit=False, load_in_8bit=False)
    labels = [model.config.id2label[index] for index in range(model.config.num_labels)]
    token_level = model.active_peft_config.task_type == TaskType.TOKEN_CLS
    base = load_reward_model(plain, tokenizer, is_trainable=False, labels=labels, token_level=token_level)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def push_reward_model(folder: Path, args: RewardConfig) -> None:
    """Push the model with its settings, figures, page and card, once, and nothing else of the run's folder.

    Raises:
        `PushError`: if it fails, with what to do; the local files stay as they are.
    """
    name = args.hub_model_id or folder.resolve().name
    push_run(
        folder,
        name,
        token=args.hub_token,
        private=args.hub_private_repo,
        revision=args.hub_revision,
        commit_message="Push the reward model",
        more=OF_REWARD_MODEL,
    )


def save_settings(folder: Path, settings: RewardModelSettings, objective: Objective, plain: bool = False) -> None:
    """Write beside the model how its outputs become one score, and the score a rating, as far as the loss says it.

    The tokenizer that lies there learns to end texts as training did, if it has not yet, and the configuration says
    that outputs are scores: `pipeline`, `CrossEncoder` and vLLM then give them as they are. Where the tokenizer cannot
    learn it, `append_eos` stays in the settings.

    Args:
        folder (`Path`): That of the model.
        settings ([`~rlhf_recipes.modeling.heads.RewardModelSettings`]): What it was trained to see.
        objective ([`~rlhf_recipes.reward_modeling.losses.base.Objective`]): The loss, trained.
        plain (`bool`): Whether the loss was that of TRL's `RewardTrainer`, which says nothing of ratings.
    """
    if not plain:
        settings = dataclasses.replace(
            settings,
            calibration=objective.calibration(),
            labels=cast(Any, objective.score_labels()),
            probabilities=objective.score_probabilities,
            step_token=objective.step_token,
        )
    for place in (folder, folder / ADAPTER_FOLDER):
        if place.is_dir():
            _carried(place, folder, settings).save(place)
    if settings.step_token is None:
        _say_what_outputs_are(folder / filenames.MODEL_CONFIG, settings)


def _carried(place: Path, folder: Path, settings: RewardModelSettings) -> RewardModelSettings:
    """The settings that are left to say once the tokenizer in a folder ends texts by itself."""
    whole = (folder / filenames.MODEL_CONFIG).is_file() and (place / filenames.TOKENIZER_CONFIG).is_file()
    if settings.step_token is not None or not whole:
        return settings
    tokenizer: Any = AutoTokenizer.from_pretrained(str(place))
    lacks_end = settings.append_eos and not adds_eos(tokenizer)
    if lacks_end or tokenizer.truncation_side != "left":
        config = AutoConfig.from_pretrained(str(folder))
        tokenizer = ending_tokenizer(tokenizer, config, settings.max_length, append_eos=lacks_end)
        tokenizer.save_pretrained(str(place))
    return dataclasses.replace(settings, append_eos=settings.append_eos and not adds_eos(tokenizer))


def _say_what_outputs_are(path: Path, settings: RewardModelSettings) -> None:
    """Keep other code from squashing a score: by itself it takes one output for the logit of a probability."""
    if not path.is_file():  # an adapter alone
        return
    config = json.loads(path.read_text(encoding="utf-8"))
    if settings.probabilities:
        config["problem_type"] = "single_label_classification"
    else:
        config["problem_type"] = "regression"
        config["sentence_transformers"] = {"activation_fn": "torch.nn.modules.linear.Identity"}
    write_json(path, config)
