"""The models of a run, built from their configs on the meta device: modules and shapes, and no weights."""

import contextlib
import copy
import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlhf_recipes.imports import names_a_file
from rlhf_recipes.modeling.loading import (
    ModelArguments,
    add_adapters,
    check_model_path,
    disable_dropout,
    freeze_lower_layers,
    is_adapter,
)

LANGUAGE_MODEL, CLASSIFIER, ENCODER = "AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoModel"


@cache
def shapes() -> dict[str, dict[str, Any]]:
    """Configs of well-known models by their id, as far as they say what a model takes."""
    found: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "shapes.json").read_text("utf-8"))
    return found


@contextlib.contextmanager
def known(name: str, config: Mapping[str, Any]) -> Iterator[None]:
    """Inside, a config has this name."""
    before = shapes().get(name)
    shapes()[name] = dict(config)
    try:
        yield
    finally:
        if before is None:
            del shapes()[name]
        else:
            shapes()[name] = before


def config_of(source: str, revision: str | None = None) -> Any:
    """The config of a model's folder or id, or of the base of an adapter's. Nothing else is read.

    Raises:
        `FileNotFoundError`: if there is none, or it is of the Hub and cannot be reached.
    """
    from transformers import AutoConfig

    if is_adapter(source):
        from peft import PeftConfig

        return config_of(str(PeftConfig.from_pretrained(source).base_model_name_or_path))
    if not Path(source).exists() and source in shapes():
        return AutoConfig.for_model(**shapes()[source])
    name = check_model_path(source)
    try:
        return AutoConfig.from_pretrained(name, revision=revision)
    except OSError as error:
        raise FileNotFoundError(
            f"The config of {source!r} is neither on this machine nor to be had from the Hugging Face Hub. Give a "
            f"folder with a config.json, go online once, or name one whose shape is known here: {', '.join(shapes())}."
        ) from error


def build(kind: str, config: Any, dtype: Any, attn_implementation: str | None = None) -> Any:
    """A model without weights, by the name of its auto class; with `"auto"` in the precision of its files."""
    import transformers

    precision = (config.dtype or torch.float32) if dtype in ("auto", None) else dtype
    precision = getattr(torch, precision) if isinstance(precision, str) else precision
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with torch.device("meta"):
        model = getattr(transformers, kind).from_config(copy.deepcopy(config), dtype=precision, **options)
    model.config.use_cache = True
    return model.eval()


def trained_model(args: ModelArguments, kind: str = LANGUAGE_MODEL, frozen_layers: int = 0) -> Any:
    """The model that is trained, with its adapters where it has some."""
    source = str(args.model_name_or_path)
    config = config_of(source, args.model_revision)
    if kind == CLASSIFIER:
        config.num_labels = 1
    model = build(kind, config, args.dtype, args.attn_implementation)
    with torch.device("meta"):
        if is_adapter(source):
            model = _with_saved_adapter(model, source, is_trainable=True)
        elif args.use_peft:
            task = "SEQ_CLS" if kind == CLASSIFIER else args.lora_task_type
            model = add_adapters(model, dataclasses.replace(args, lora_task_type=task))
    freeze_lower_layers(model, frozen_layers)
    disable_dropout(model)
    return model


def frozen_copy(args: ModelArguments, source: str | None = None) -> Any:
    """A reference: a model of its own, in the precision of the policy, which nothing trains."""
    config = config_of(source or str(args.model_name_or_path))
    return build(LANGUAGE_MODEL, config, args.dtype, args.attn_implementation).requires_grad_(False)


def critic(kind: str, policy: Any, args: ModelArguments) -> nn.Module | None:
    """What a critic trains and holds, beside a policy."""
    adapted = hasattr(policy, "peft_config")
    if kind == "none":
        return None
    with torch.device("meta"):
        if kind in ("head", "adapter"):
            # An adapter is of the size of the policy's, and stands on the same base.
            own = [p for name, p in policy.named_parameters() if kind == "adapter" and "lora_" in name]
            head = nn.Linear(policy.get_output_embeddings().in_features, 1, bias=kind == "head")
            head.reads_policy = kind == "head"  # type: ignore[assignment]
            if own:
                head.adapter = nn.ParameterList(torch.empty_like(p) for p in own)
            return head
        config = config_of(str(args.model_name_or_path) if kind in ("policy", "reward_model") else kind)
        config.num_labels = 1
        model = build(CLASSIFIER, config, policy.dtype, args.attn_implementation)
        if adapted:
            from peft import get_peft_model

            own_config: Any = dataclasses.replace(
                policy.active_peft_config, task_type="SEQ_CLS", modules_to_save=["score"]
            )
            model = get_peft_model(model, own_config)
    disable_dropout(model)
    return model


# ---- rewards


@dataclasses.dataclass(frozen=True)
class RewardModel:
    """A reward that is a model: where it lies, and what its entry says of how it is read."""

    name: str
    source: str
    args: Mapping[str, Any]

    @property
    def on_policy(self) -> bool:
        """Whether it is an adapter that reads the policy's base."""
        return self.args.get("base") == "policy"


def reward_models(specs: Any) -> list[RewardModel]:
    """Those of a list of rewards, as a YAML gives it, that are models.

    A reward by its name that brings a model of its own choosing is not among them.
    """
    found = []
    for spec in specs or ():
        given: dict[str, Any] = {"func": spec} if isinstance(spec, str) else dict(spec)
        func, args = str(given["func"]), dict(given.get("args") or {})
        source = args.get("model") or (func if "/" in func and not names_a_file(func) else None)
        if source is not None:
            found.append(RewardModel(str(given.get("name") or Path(func).name), str(source), args))
    return found


def reward(model: RewardModel, on_gpu: bool) -> Any:
    """Its model: in the precision of its files on a GPU, in float32 on a CPU. One on the policy's base: its adapter.

    Raises:
        `FileNotFoundError`: if it is not there.
    """
    source = model.source
    if model.on_policy and not is_adapter(source) and is_adapter(Path(source) / "adapter"):
        source = str(Path(source) / "adapter")
    config = config_of(source)
    kind = LANGUAGE_MODEL if "CausalLM" in str((config.architectures or [""])[0]) else CLASSIFIER
    if is_adapter(source):
        kind, config.num_labels = CLASSIFIER, 1
    built = build(kind, config, model.args.get("dtype") or ("auto" if on_gpu else "float32"))
    if is_adapter(source):
        with torch.device("meta"):
            built = _with_saved_adapter(built, source, is_trainable=False)
    built.requires_grad_(False)
    if not model.on_policy:
        return built
    marks = ("lora_", "modules_to_save")
    own = [parameter for name, parameter in built.named_parameters() if any(mark in name for mark in marks)]
    return nn.ParameterList(own).requires_grad_(False)


def _with_saved_adapter(model: Any, source: str, is_trainable: bool) -> Any:
    from peft import PeftConfig, get_peft_model

    config = PeftConfig.from_pretrained(source)
    config.inference_mode = not is_trainable
    return get_peft_model(model, config)
