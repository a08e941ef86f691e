"""The critic of PPO: a layer on the policy's body, an adapter on the policy's base, a model of its own, or none.

A model of its own is a decoder with a scalar head, as `AutoModelForSequenceClassification` loads it; here its head is
read at every token and not only at the last. Where the policy trains adapters, so does such a critic: a full copy that
is trained in full would cost more than the policy itself.

What is longer than elsewhere is one file all the same: each kind that a user may name, and how one is built of it.
"""

import copy
import dataclasses
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import (
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftModel,
    TaskType,
    get_peft_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)

from rlhf_recipes.compat import loaded_whole
from rlhf_recipes.modeling.adapters import (
    PREFIX,
    WEIGHTS,
    active_adapter,
    adapter_parameters,
    add_adapter,
    base_name,
    body_state,
    check_new_name,
    check_same_base,
    check_shareable,
    copy_adapter,
    fill_adapter,
    read_adapter,
)
from rlhf_recipes.modeling.loading import check_model_path, disable_dropout, is_adapter, keep_gradients_of_4bit
from rlhf_recipes.modeling.saving import (
    as_loaded,
    body_of,
    check_base_is_there,
    has_learned,
    quantization_of,
    read_head,
)
from rlhf_recipes.modeling.zero import copy_whole, whole_state_dict
from rlhf_recipes.outputs import write_json

logger = logging.getLogger(__name__)
CRITIC_FOLDER = "critic"
VALUE_HEAD_FILE = "value_head.safetensors"
SHARED_FILE = "critic_config.json"  # beside an adapter that reads the policy's base
ON_POLICY = {"base": "policy"}


class ValueHead(nn.Linear):
    """One linear layer on the hidden states that the policy's language-model head reads. It starts at 0."""

    reads_policy = True

    def __init__(self, policy: Any) -> None:
        width = width_of_body(policy)
        super().__init__(width, 1, device=policy.get_output_embeddings().weight.device)
        self.body = body_of(policy, width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Values `(B, T)` from hidden states `(B, T, H)`."""
        return super().forward(hidden.to(self.weight.dtype)).squeeze(-1).float()

    def save_pretrained(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weights = self.state_dict() if state is None else state
        plain = {name: t.detach().cpu().contiguous() for name, t in weights.items()}
        save_file(plain, folder / VALUE_HEAD_FILE, metadata=self.body)

    def load_weights(self, folder: Path) -> None:
        self.load_state_dict(read_head(folder / VALUE_HEAD_FILE, self.body))


def width_of_body(policy: Any) -> int:
    """How wide the states are that the language-model head reads."""
    head = policy.get_output_embeddings()
    # They may be narrower than the hidden states (OPT-350m: 512 of 1024).
    return int(getattr(head, "in_features", None) or policy.config.get_text_config().hidden_size)


class AdapterCritic(nn.Module):
    """An adapter of its own on the policy's base, and a scalar head that is read at every token.

    It takes no base of its own, and its gradients move neither the policy's adapter nor the base. The adapter begins
    as a copy of the policy's, the head at 0. Its folder is that of an adapter for sequence classification, which
    `AutoPeftModelForSequenceClassification` loads where there is such a class.

    Args:
        policy (`PeftModel`): The policy. The adapter becomes a part of it, where it is trained; this holds the head.
        folder (`str` or `Path`, *optional*): Of such a critic, whose settings and weights are taken.
        name (`str`, *optional*, defaults to `"critic"`): The name of the adapter.

    Raises:
        `ValueError`: if the policy has no adapters, trains the base too, has an adapter of that name, or stands on
            another base than the critic in the folder.
    """

    reads_policy = False

    def __init__(self, policy: Any, folder: str | Path | None = None, name: str = CRITIC_FOLDER) -> None:
        super().__init__()
        role = "The critic" if folder is None else f"The critic {str(folder)!r}"
        check_shareable(policy, role)
        check_new_name(policy, name, role)
        self._policy = (policy,)  # in a tuple: the policy is registered, trained and saved where it is
        self.adapter = name
        # No bias, as in the heads of transformers' classifiers.
        self.score = nn.Linear(width_of_body(policy), 1, False, device=policy.get_output_embeddings().weight.device)
        nn.init.zeros_(self.score.weight)
        if folder is None:
            copy_adapter(policy, policy.active_adapter, name, trains=True)
        else:
            config, _ = read_adapter(folder)
            check_same_base(base_name(policy), str(config.base_model_name_or_path or ""), role)
            add_adapter(policy, name, config, trains=True)
            self.load_weights(Path(folder))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Values `(B, P + T)`: one for each token, read from what the base with this adapter knows after it."""
        [policy] = self._policy
        with active_adapter(policy, self.adapter):
            hidden = (
                policy.get_base_model()
                .base_model(
                    input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
                )
                .last_hidden_state
            )
        return self.values(hidden)

    def values(self, hidden: Tensor) -> Tensor:
        """Values `(B, T)` from the states `(B, T, H)` of the base with this adapter."""
        return self.score(hidden.to(self.score.weight.dtype)).squeeze(-1).float()

    def adapter_parameters(self) -> list[nn.Parameter]:
        """What it trains in the policy's module, beside its own head."""
        return list(adapter_parameters(self._policy[0], self.adapter).values())

    def save_pretrained(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        """Save adapter and head; `state` has the weights of the policy and this head where they had to be gathered."""
        [policy] = self._policy
        folder.mkdir(parents=True, exist_ok=True)
        weights = body_state(policy, self.adapter, state)
        weights[f"{PREFIX}score.weight"] = self.score.weight if state is None else state["score.weight"]
        save_file({name: t.detach().cpu().contiguous() for name, t in weights.items()}, folder / WEIGHTS)
        config = dataclasses.replace(
            policy.peft_config[self.adapter],
            task_type=TaskType.SEQ_CLS,
            modules_to_save=["score"],
            exclude_modules=None,  # heads of the language model, which a classifier does not have
            inference_mode=True,
        )
        config.save_pretrained(str(folder))
        write_json(folder / SHARED_FILE, ON_POLICY)

    def load_weights(self, folder: Path) -> None:
        rest = fill_adapter(self._policy[0], self.adapter, read_adapter(folder)[1])
        self.score.load_state_dict({"weight": rest["score.weight"]})


class ValueModel(nn.Module):
    """A model of its own whose scalar head is read at every token.

    It is a decoder with one label, as loaded by `AutoModelForSequenceClassification`.

    Raises:
        `ValueError`: if it has no scalar head that can be read at every token, or is an encoder, which would see the
            tokens that a value must not know.
    """

    reads_policy = False

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        super().__init__()
        self.model: Any = model
        inner = self._inner()
        name = type(inner).__name__
        if not has_scalar_head(inner):
            raise ValueError(
                f"The critic is a {name} with {getattr(inner.config, 'num_labels', 'no')} labels; it must be a "
                "decoder with a scalar head that can be read at every token, as "
                "AutoModelForSequenceClassification(..., num_labels=1) loads it. An encoder (BERT, "
                "MiniLM, ...) would see the tokens that are still to come. Give critic='policy' or critic='head' "
                "instead."
            )

    def _inner(self) -> Any:
        return self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Tensor:
        """Values `(B, P + T)`: one for each token, read from what the model knows after it."""
        inner = self._inner()
        hidden = inner.base_model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        return inner.score(hidden).squeeze(-1).float()

    def save_pretrained(self, folder: Path, state: dict[str, Tensor] | None = None) -> None:
        kwargs = {} if state is None else {"state_dict": without_prefix(state, "model.")}
        self.model.save_pretrained(str(folder), **kwargs)

    def load_weights(self, folder: Path) -> None:
        load_into(self.model, folder)


def load_into(model: Any, folder: Path, not_its: Collection[str] = ()) -> None:
    """Take over the weights that `model.save_pretrained(folder)` wrote: adapters where it has them, else all.

    Args:
        not_its (`Collection[str]`): Adapters that other roles have on it.
    """
    if isinstance(model, PeftModel):
        for name in set(model.peft_config) - set(not_its):
            # peft gives those of another name than "default" a folder of their own. Only the active are always saved.
            file = (folder if name == "default" else folder / name) / "adapter_model.safetensors"
            if name in model.active_adapters or file.is_file():
                set_peft_model_state_dict(model, load_file(file), adapter_name=name)
    else:
        saved = type(model).from_pretrained(folder, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())


def build_critic(kind: Any, policy: Any, reward_model: Any = None, peft_config: Any = None) -> nn.Module | None:
    """The critic that a user asked for.

    Args:
        kind (`nn.Module` or `str`):
            A model, or `"head"`, `"adapter"`, `"none"`, `"policy"`, `"reward_model"` (which is copied), or the folder
            or id of a model. A folder `critic/` of an earlier run is one too.
        policy (`PreTrainedModel` or `PeftModel`): the policy, dropout off.
        peft_config (`PeftConfig`, *optional*):
            Adapters for a critic of its own. Where the policy has adapters it gets the same without this.

    Raises:
        `ValueError`: if the critic cannot be made of what was given.
    """
    if kind == "none":
        return None
    if kind == "head":
        return ValueHead(policy)
    if isinstance(kind, str | Path) and (Path(kind) / VALUE_HEAD_FILE).is_file():
        head = ValueHead(policy)
        head.load_weights(Path(kind))
        return head
    if kind == "adapter":
        return AdapterCritic(policy)
    if isinstance(kind, str | Path) and (Path(kind) / SHARED_FILE).is_file():
        return AdapterCritic(policy, kind)
    model = _model_of(kind, policy, reward_model)
    disable_dropout(model)
    keep_gradients_of_4bit(model)
    critic = ValueModel(model)  # before adapters, so that an unfit model is refused as what it is
    if not isinstance(model, PeftModel) and (peft_config is not None or isinstance(policy, PeftModel)):
        critic = ValueModel(_with_adapters(model, peft_config or policy.active_peft_config))
        disable_dropout(critic)
    return critic


def _model_of(kind: Any, policy: Any, reward_model: Any) -> Any:
    """The critic's own model, before adapters are put on it."""
    if isinstance(kind, nn.Module):
        return kind
    if kind == "policy":
        return _from_policy(policy)
    if kind != "reward_model":
        return _load_critic(check_model_path(str(kind)), policy)
    if not isinstance(reward_model, nn.Module):
        raise ValueError(
            "critic is 'reward_model', but there is no reward model to copy: give reward_model, a decoder with a "
            "scalar head that shares the policy's tokenizer, or choose critic='policy' or critic='head'."
        )
    return _trainable_copy(reward_model)


def _trainable_copy(model: Any) -> Any:
    if isinstance(model, PeftModel):  # its base stays frozen
        model = copy_whole(model)
        model.set_requires_grad(model.active_adapter, True)
        return model
    model = copy_whole(model)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())  # quantized weights have no gradient
    return model


@loaded_whole()  # a head that is not saved is set to 0 below
def _load_critic(name: str, policy: Any) -> Any:
    """A model with a scalar head by its folder or id. A head that is not saved there starts at 0."""
    if is_adapter(name):
        check_base_is_there(name)
        return AutoPeftModelForSequenceClassification.from_pretrained(
            name, is_trainable=True, num_labels=1, **as_loaded(policy)
        )
    config = AutoConfig.from_pretrained(name, num_labels=1)
    if not has_classifier(config):
        raise ValueError(
            f"The critic {name!r} is of model_type {config.model_type!r}, for which transformers has no sequence "
            "classifier. Give critic='head', one layer on the policy's own states, which every policy can have."
        )
    model, report = AutoModelForSequenceClassification.from_pretrained(
        name, config=config, output_loading_info=True, **as_loaded(policy)
    )
    if "score.weight" in report["missing_keys"]:
        nn.init.zeros_(model.score.weight)
    return model


def _with_adapters(model: Any, config: Any) -> PeftModel:
    if not isinstance(config, LoraConfig):
        raise ValueError(
            f"The policy has {type(config).__name__} adapters, which a critic of its own cannot take over. Give a "
            "value_model with adapters, or critic='head'."
        )
    targets: Any = config.target_modules
    head = [] if isinstance(targets, str) else [name for name in targets or () if name == "lm_head"]
    keep: Any = set(targets or ()) - set(head) if head else targets
    mine = dataclasses.replace(
        config, task_type=TaskType.SEQ_CLS, target_modules=keep, modules_to_save=["score"], inference_mode=False
    )
    return get_peft_model(model, mine)


def has_scalar_head(model: Any) -> bool:
    """Whether a model, without adapters, is a decoder with one label, whose head is a layer that can be read alone."""
    return hasattr(model, "score") and getattr(model.config, "num_labels", 1) == 1


def has_classifier(config: Any) -> bool:
    """Whether `AutoModelForSequenceClassification` knows a class for a configuration."""
    own_code = getattr(config, "auto_map", None) or {}
    return (
        "AutoModelForSequenceClassification" in own_code or type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    )


def _from_policy(policy: Any) -> Any:
    """A model with the policy's body and a scalar head that starts at 0.

    Raises:
        `ValueError`: if there is no such class, or the body of the policy does not fit into it.
    """
    inner: Any = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    if not has_classifier(inner.config):
        raise _no_copy(inner, f"transformers has no sequence classifier for model_type {inner.config.model_type!r}")
    quantization = quantization_of(inner)
    if quantization is not None:
        # Quantized weights cannot be copied into another class: they are read and quantized once more.
        config = AutoConfig.from_pretrained(inner.name_or_path, num_labels=1)
        model = AutoModelForSequenceClassification.from_pretrained(
            inner.name_or_path,
            config=config,
            quantization_config=quantization,
            dtype=inner.dtype,
            device_map={"": inner.device},
        )
    else:
        config = copy.deepcopy(inner.config)
        config.num_labels = 1
        # Drawing a head that is set to 0 below must not move the user's generator.
        with loaded_whole(), torch.random.fork_rng():
            model = AutoModelForSequenceClassification.from_config(config, dtype=inner.dtype)
        copied: Any = copy_whole(policy) if isinstance(policy, PeftModel) else None
        learned = copied is not None and has_learned(copied)
        plain: Any = copied.merge_and_unload() if copied is not None else inner
        try:
            model.base_model.load_state_dict(whole_state_dict(plain.base_model, keep=True))
        except RuntimeError as error:
            raise _no_copy(inner, f"its body is built otherwise than that of {type(model).__name__}") from error
        model.to(inner.device)
        if learned:  # adapters on this base are not to be read on the policy's
            model.name_or_path = model.config.name_or_path = ""
    if not hasattr(model, "score"):
        raise _no_copy(inner, f"{type(model).__name__} has no scalar head that can be read at every token")
    nn.init.zeros_(model.score.weight)
    return model.requires_grad_(quantization is None)


def _no_copy(policy: Any, reason: str) -> ValueError:
    return ValueError(
        f"critic is 'policy', but a {type(policy).__name__} cannot be copied into a critic: {reason}. Give "
        "critic='head', one layer on the policy's own states, which every policy can have."
    )


def without_prefix(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
