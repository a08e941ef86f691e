"""One model out of several by averaging their weights, as WARM does (Rame et al., arXiv 2401.12187).

`theta = sum_k w_k theta_k`, with `w_k = 1/K` unless weights are given. It costs what one model costs. That it works is
no law: the models must come from one pretrained model, so that their weights are near each other, and heads that were
drawn apart average badly. Measure the result before it is used.

Two ways that give the same model:

- [`average_models`]: whole models, or adapters merged into their bases first; the result is a model folder.
- [`concatenate_adapters`]: of LoRA adapters on one base, a single adapter of rank `sum_k r_k`. The average of products
  is no product of averages: `sum_k w_k s_k B_k A_k = [B_1 .. B_K] [w_1 s_1 A_1; ..; w_K s_K A_K]`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlhf_recipes import filenames
from rlhf_recipes.modeling.frozen import own_tokenizer, place_model
from rlhf_recipes.modeling.heads import RewardModelSettings
from rlhf_recipes.modeling.loading import check_model_path

FIRST, SECOND = ("lora_A", "lora_embedding_A"), ("lora_B", "lora_embedding_B")

# Options under which an adapter is no plain product of two matrices.
NOT_LINEAR = ("use_dora", "alora_invocation_tokens", "layer_replication", "megatron_config")


def average_models(
    folders: Sequence[str | Path],
    output_dir: str | Path,
    weights: Sequence[float] | None = None,
    processing_class: str | Path | PreTrainedTokenizerBase | None = None,
) -> Path:
    """Average reward models, save one that loads like any other, and return its folder. Two models are in memory at
    most.

    Args:
        folders (`Sequence` of `str` or `Path`):
            Two or more sequence classifiers: model folders, adapter folders, ids of the Hub. Adapters are merged into
            their bases first.
        output_dir (`str` or `Path`):
            Gets the model in float32, the tokenizer, and `reward_config.json` without a calibration, which was that of
            other scores.
        weights (`Sequence[float]`, *optional*):
            What each counts; they are divided by their sum. Default: all alike.
        processing_class (*optional*):
            The tokenizer, or where it lies. Default: that of the first model.

    Raises:
        `FileNotFoundError`: if there is no model where a path points.
        `ValueError`: if there are fewer than two, or they do not fit: another architecture, other parameters or
            labels, another vocabulary, another reading of texts; or if a weight is NaN or infinite.
    """
    shares = _shares(folders, weights)
    settings = _same_settings(folders)
    tokenizer = own_tokenizer(processing_class, check_model_path(str(folders[0])))
    total: dict[str, Tensor] = {}
    first: Any = None
    for folder, share in zip(folders, shares, strict=True):
        model = place_model(AutoModelForSequenceClassification, folder, "cpu", "float32", False)
        if isinstance(model, PeftModel):
            model = model.merge_and_unload()
        table = model.state_dict()
        _check_finite(table, folder)
        if first is None:
            first, facts = model.config, _facts(model)
        else:
            if processing_class is None:
                _check_vocabulary(tokenizer, own_tokenizer(None, check_model_path(str(folder))), folders[0], folder)
            _check_fit(facts, _facts(model), folders[0], folder)
        for name, tensor in table.items():
            if tensor.is_floating_point():
                total[name] = total.get(name, 0.0) + share * tensor
            elif not torch.equal(total.setdefault(name, tensor), tensor):
                raise ValueError(
                    f"The numbers {name} of {folder} are not those of the first model, and cannot be averaged."
                )
    model.load_state_dict(total)
    model.config = first
    target = Path(output_dir)
    model.save_pretrained(str(target))
    tokenizer.save_pretrained(str(target))
    settings.save(target)
    return target


def concatenate_adapters(
    folders: Sequence[str | Path], output_dir: str | Path, weights: Sequence[float] | None = None
) -> Path:
    """Average LoRA adapters on one base into one adapter, exactly; nothing but the adapters is read.

    Whatever else was trained (heads, biases) is averaged as it is. The result has K times the rank, and costs more
    than one of them until it is merged.

    Args:
        folders, output_dir, weights: As in [`average_models`], with folders of adapters, and the result an adapter.

    Raises:
        `ValueError`: if there are fewer than two, they are no LoRA, have different bases or parameters, adapt by more
            than a product of two matrices (DoRA), have layers of different ranks, or hold NaN or infinity.
    """
    shares = _shares(folders, weights)
    settings = _same_settings(folders)
    configs = [_lora_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if _identity(config) != _identity(configs[0]):
            raise ValueError(
                f"{folders[0]} adapts {_identity(configs[0])} and {folder} {_identity(config)}: only adapters of one "
                "base and of the same modules can be averaged."
            )
    tables = [load_file(Path(folder) / filenames.ADAPTER_WEIGHTS) for folder in folders]
    for folder, table in zip(folders, tables, strict=True):
        _check_finite(table, folder)
        if table.keys() != tables[0].keys():
            raise ValueError(f"The adapters in {folders[0]} and {folder} have different parameters.")
    merged = {}
    for name in tables[0]:
        parts = [table[name].float() for table in tables]
        if any(part in name.split(".") for part in FIRST):
            scaled = [x * share * _scaling(c) for x, share, c in zip(parts, shares, configs, strict=True)]
            merged[name] = torch.cat(scaled, dim=0)
        elif any(part in name.split(".") for part in SECOND):
            merged[name] = torch.cat(parts, dim=1)
        else:
            for folder, part in zip(folders, parts, strict=True):
                shapes = (tuple(parts[0].shape), tuple(part.shape))
                _check_shape(name, *shapes, folders[0], folder, "the models have different outputs")
            merged[name] = sum(share * x for share, x in zip(shares, parts, strict=True))  # type: ignore[assignment]
    rank = sum(config.r for config in configs)
    target = Path(output_dir)
    # With alpha = rank and no square root the scaling is 1: it is in the weights already.
    config = dataclasses.replace(configs[0], r=rank, lora_alpha=rank, use_rslora=False)
    config.save_pretrained(str(target))
    save_file(
        {name: tensor.contiguous() for name, tensor in merged.items()},
        target / filenames.ADAPTER_WEIGHTS,
        {"format": "pt"},
    )
    settings.save(target)
    return target


def _shares(folders: Sequence[str | Path], weights: Sequence[float] | None) -> list[float]:
    if isinstance(folders, str) or len(folders) < 2:
        raise ValueError(f"An average is of two models or more, but there is {folders!r}.")
    given = [1.0] * len(folders) if weights is None else [float(weight) for weight in weights]
    if len(given) != len(folders):
        raise ValueError(f"There are {len(folders)} models and {len(given)} weights; give one for each.")
    total = math.fsum(given)
    if not all(math.isfinite(weight) and weight >= 0 for weight in given) or total <= 0:
        raise ValueError(f"weights is {given}; give finite numbers of 0 or more, and one above 0 at least.")
    return [weight / total for weight in given]


def _same_settings(folders: Sequence[str | Path]) -> RewardModelSettings:
    found = [dataclasses.replace(RewardModelSettings.load(folder), calibration=None) for folder in folders]
    for folder, settings in zip(folders, found, strict=True):
        if settings != found[0]:
            raise ValueError(
                f"{folders[0]} and {folder} read texts in different ways: {found[0]} and {settings}. Their "
                "weights were made for different inputs or outputs; score with both in an EnsembleReward instead."
            )
    return found[0]


def _facts(model: Any) -> dict[str, Any]:
    """What models must have alike, so that their weights average: class, labels, and shapes by name."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {"class": type(model).__name__, "labels": model.config.id2label, **shapes}


def _check_fit(one: Mapping[str, Any], other: Mapping[str, Any], first: str | Path, second: str | Path) -> None:
    do_not = "weights of different models do not average"
    for what in ("class", "labels"):
        if one[what] != other[what]:
            raise ValueError(f"{first} has the {what} {one[what]} and {second} {other[what]}: {do_not}.")
    for name in sorted(one.keys() | other.keys()):
        _check_shape(name, one.get(name, "none"), other.get(name, "none"), first, second, do_not)


def _check_shape(name: str, one: Any, other: Any, first: str | Path, second: str | Path, why: str) -> None:
    if one != other:
        raise ValueError(f"The weights {name} have the shape {one} in {first} and {other} in {second}: {why}.")


def _check_vocabulary(
    one: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, first: str | Path, second: str | Path
) -> None:
    if one.get_vocab() != other.get_vocab():
        raise ValueError(
            f"The tokenizers of {first} and {second} have different vocabularies, so that a token id is not the same "
            "token to both models, and their weights do not average."
        )


def _check_finite(table: Mapping[str, Tensor], folder: str | Path) -> None:
    for name, tensor in table.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"The weights {name} of {folder} hold NaN or infinity. Train it anew, or leave it out.")


def _lora_config(folder: str | Path) -> LoraConfig:
    path = Path(folder)
    if not (path / filenames.ADAPTER_CONFIG).is_file() or not (path / filenames.ADAPTER_WEIGHTS).is_file():
        raise ValueError(f"{folder} holds no adapter (adapter_config.json and {filenames.ADAPTER_WEIGHTS}).")
    config = PeftConfig.from_pretrained(str(folder))
    if not isinstance(config, LoraConfig):
        raise ValueError(f"The adapter in {folder} is {config.peft_type}; only LoRA adapters can be put side by side.")
    used = [name for name in NOT_LINEAR if getattr(config, name, None)]
    if used or config.rank_pattern or config.alpha_pattern:
        raise ValueError(
            f"The adapter in {folder} has {', '.join(used) or 'layers of different ranks'}, and is no plain product "
            "of two matrices. Use average_models, which merges each into its base first."
        )
    return config


def _identity(config: LoraConfig) -> str:
    modules = config.target_modules
    named = modules if isinstance(modules, str) else sorted(modules or ())
    return json.dumps([config.base_model_name_or_path, config.revision, named, sorted(config.modules_to_save or ())])


def _scaling(config: LoraConfig) -> float:
    return config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
