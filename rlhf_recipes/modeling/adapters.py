"""Several roles on one base: adapters beside each other in one `PeftModel`, of which each role reads with its own.

The policy's adapter is the active one. Who reads with another, or with none, does so within [`active_adapter`], and
nothing of it is left behind: peft's own `set_adapter` also unfreezes what it switches on and freezes the rest.
"""

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf_recipes.modeling.zero import gathered

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # peft's, before the name that a weight has in the model that was adapted
CHANGING_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights
OF_ADAPTERS = ("lora_", "modules_to_save", "trainable_tokens_")  # in the names of weights that belong to an adapter


@contextlib.contextmanager
def active_adapter(model: Any, name: str | None) -> Iterator[Any]:
    """The model with one of its adapters on, or with none; afterwards with those that were on before.

    Which weights are trained stays as it is, inside and afterwards, also where an error leaves the context.

    Args:
        name (`str`, *optional*): The adapter; `None` for the base alone.
    """
    if name is not None and name not in model.peft_config:  # peft would read the base, without an error
        raise ValueError(f"There is no adapter {name!r}; there are {', '.join(model.peft_config)}.")
    before, were_on = list(model.active_adapters), _are_on(model)
    if (name is None and not were_on) or (were_on and before == [name]):
        yield model
        return
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def switch(names: list[str], on: bool) -> None:
        model.base_model.set_adapter(names)
        if len(names) == 1:
            model.active_adapter = names[0]
        if on:
            model.base_model.enable_adapter_layers()
        else:
            model.base_model.disable_adapter_layers()
        for parameter, requires_grad in trained:
            parameter.requires_grad_(requires_grad)

    try:
        switch(before if name is None else [name], on=name is not None)
        yield model
    finally:
        switch(before, were_on)


def _are_on(model: Any) -> bool:
    layer = next((module for module in model.modules() if isinstance(module, BaseTunerLayer)), None)
    return layer is None or not layer.disable_adapters


@contextlib.contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Again:
    """A context that may be entered more than once, made anew each time."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make
        self.entered: list[Any] = []

    def __enter__(self) -> None:
        self.entered.append(self.make())
        self.entered[-1].__enter__()

    def __exit__(self, *error: Any) -> Any:
        return self.entered.pop().__exit__(*error)


def checkpointing_with_adapters(model: PeftModel, given: dict[str, Any] | None) -> dict[str, Any]:
    """Options of gradient checkpointing under which a layer is computed again with the adapter of the first time.

    The backward pass comes when every role has read: without these, the layers of a role would be computed again with
    the policy's adapter, and its gradients would be those of another model, without an error.

    Raises:
        `ValueError`: for `use_reentrant`, which cannot do so.
    """
    options = dict(given or {})
    if options.setdefault("use_reentrant", False):
        raise ValueError(
            "gradient_checkpointing_kwargs has use_reentrant, with which layers that two roles share would be "
            "computed again with the wrong adapter. Give use_reentrant false, or critic: policy, a model of its own."
        )

    def contexts() -> tuple[Any, Any]:
        now = model.active_adapters[0] if _are_on(model) else None
        return contextlib.nullcontext(), _Again(lambda: active_adapter(model, now))

    return options | {"context_fn": contexts}


def is_of_adapters(name: str) -> bool:
    """Whether a parameter belongs to an adapter, by its name; all others are the base's."""
    return any(mark in name for mark in OF_ADAPTERS)


def check_shareable(model: Any, role: str) -> None:
    """Raise `ValueError` where the base below a policy does not stay as it is, so that no other role can share it."""
    if not isinstance(model, PeftModel):
        raise ValueError(
            f"{role} is to share the policy's base, but the policy has no adapters: all of its weights are trained, "
            "so that there is no base that stays. Train adapters (use_peft), or let it stand alone."
        )
    if not isinstance(model.active_peft_config, LoraConfig):
        raise ValueError(
            f"{role} is to share the policy's base, but the policy has {type(model.active_peft_config).__name__} "
            "adapters; only LoRA (rsLoRA, DoRA) adapters can stand beside each other here. Let it stand alone."
        )
    start = model.active_peft_config.init_lora_weights
    if isinstance(start, str) and start.startswith(CHANGING_THE_BASE):
        raise ValueError(
            f"{role} is to share the policy's base, but the policy's adapter began with init_lora_weights {start!r}, "
            "which takes a part out of the base, so that it is no longer the model of its name. Begin with true, or "
            "let it stand alone."
        )
    moving = [name for name, p in model.named_parameters() if p.requires_grad and not is_of_adapters(name)]
    if moving:
        raise ValueError(
            f"{role} is to share the policy's base, but the policy trains weights of the base itself "
            f"({moving[0].removeprefix(PREFIX)}, {len(moving)} in all), so that it does not stay as it is. Leave "
            "lora_bias out, or let it stand alone."
        )


def check_new_name(model: PeftModel, name: str, role: str) -> None:
    """Raise `ValueError` where the policy has an adapter of that name already."""
    if name in model.peft_config:
        raise ValueError(
            f"{role} would be the adapter {name!r} on the policy's base, but the policy has one of that name already "
            f"({', '.join(model.peft_config)}). Give one of the two another name."
        )


def free_name(model: PeftModel, name: str) -> str:
    """The name, with a number behind it where the model has an adapter that is called so."""
    names = [name, *(f"{name}_{number}" for number in range(2, len(model.peft_config) + 2))]
    return next(one for one in names if one not in model.peft_config)


def base_name(model: Any) -> str:
    """Where the base below a policy's adapters comes from, by its whole path where it is a folder; `""` in memory."""
    config = getattr(model, "active_peft_config", None)
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return whole_path(getattr(config, "base_model_name_or_path", None) or getattr(base, "name_or_path", "") or "")


def whole_path(name: str) -> str:
    """One spelling for each folder; an id of the Hub stays as it is."""
    return str(Path(name).expanduser().resolve()) if name and Path(name).expanduser().is_dir() else name


def base_of_adapter(folder: str | Path) -> str:
    """The base that a saved adapter says it was trained on; `""` where it does not."""
    return str(PeftConfig.from_pretrained(str(folder)).base_model_name_or_path or "")


def check_same_base(policy_base: str, own: str, role: str) -> None:
    """Raise `ValueError` where an adapter was trained on another base than the policy's; both are named."""
    if not own or whole_path(own) != whole_path(policy_base):
        raise ValueError(
            f"{role} was trained on the base {whole_path(own) or '(which it does not name)'!r}, and the policy's base "
            f"is {whole_path(policy_base) or '(in memory, without a name)'!r}: an adapter says nothing of use on "
            "another base. Let it stand alone (base: own), train it on the policy's base, or, if both are the same "
            "weights, write the name of the one into base_model_name_or_path of its adapter_config.json."
        )


def add_adapter(policy: PeftModel, name: str, config: LoraConfig, trains: bool, heads: bool = False) -> None:
    """Put one more LoRA adapter on a policy's base; the policy is what it was before.

    Args:
        config (`LoraConfig`): Its settings; dropout is left out, as it is of the policy.
        trains (`bool`): Whether its weights are to be trained.
        heads (`bool`): Whether it may lie on more than the body. What no role reads would have no gradient.

    Raises:
        `ValueError`: if the policy has an adapter of that name.
    """
    check_new_name(policy, name, f"An adapter {name!r}")
    base: Any = policy.get_base_model()
    body = {id(module) for module in base.base_model.modules()}
    outside = [p for p, m in base.named_modules() if isinstance(m, BaseTunerLayer) and id(m) not in body]
    paths = [path for path, module in base.named_modules() if id(module) in body]
    whole = [part for part in config.modules_to_save or [] if any(f".{path}".endswith(f".{part}") for path in paths)]
    mine = dataclasses.replace(
        config,
        task_type=TaskType.CAUSAL_LM,
        inference_mode=not trains,
        lora_dropout=0.0,
        init_lora_weights=True,  # other ways of beginning change the base
        modules_to_save=whole or None,
        exclude_modules=config.exclude_modules if heads or not outside else outside,
    )
    known = {id(parameter): parameter.requires_grad for parameter in policy.parameters()}
    active = list(policy.active_adapters)
    with torch.random.fork_rng():  # what is drawn here is overwritten, and must not move the user's generator
        policy.add_adapter(name, mine)
    tuner: Any = policy.base_model
    tuner.set_adapter(active)
    for path, parameter in policy.named_parameters():
        parameter.requires_grad_(known.get(id(parameter), trains and is_of_adapters(path)))


def adapter_parameters(policy: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """The weights of one adapter, by their names without that of the adapter."""
    mark = f".{name}"
    return {
        path.replace(mark, ""): parameter
        for path, parameter in policy.named_parameters()
        if is_of_adapters(path) and (path.endswith(mark) or f"{mark}." in path)
    }


@torch.no_grad()
def copy_adapter(policy: PeftModel, source: str, name: str, trains: bool, heads: bool = False) -> None:
    """Put a copy of one adapter on the base under another name; without `heads`, as far as it lies on the body."""
    config: Any = policy.peft_config[source]
    add_adapter(policy, name, dataclasses.replace(config, modules_to_save=None), trains, heads)
    given = adapter_parameters(policy, source)
    for path, parameter in adapter_parameters(policy, name).items():
        with gathered([given[path]]):
            parameter.copy_(given[path])


def body_state(policy: PeftModel, name: str, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The weights of one adapter as peft writes them into a file; from `state` where they had to be gathered."""
    return get_peft_model_state_dict(policy, state_dict=state, adapter_name=name, save_embedding_layers=False)


def read_adapter(folder: str | Path) -> tuple[Any, dict[str, Tensor]]:
    """The settings of a saved adapter and its weights, by the names that peft gives them."""
    return PeftConfig.from_pretrained(str(folder)), load_file(Path(folder) / WEIGHTS)


def fill_adapter(policy: PeftModel, name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give an adapter on the policy's base its weights.

    Returns:
        `dict[str, Tensor]`: those that belong to no part of the body: the head's, without peft's prefix.

    Raises:
        `ValueError`: if weights of the adapter are missing, or some are the base's own and differ from the policy's.
    """
    own = {key: value for key, value in weights.items() if any(mark in key for mark in ("lora_", "trainable_tokens_"))}
    base: Any = policy.get_base_model()
    places = dict(base.base_model.named_modules())
    settings: Any = policy.peft_config[name]
    whole = settings.modules_to_save or []
    rest = {}
    for key, value in weights.items():
        if key in own:
            continue
        inner = key.removeprefix(PREFIX)
        module, _, kind = inner.removeprefix(f"{base.base_model_prefix}.").rpartition(".")
        if inner.startswith(f"{base.base_model_prefix}.") and module in places:
            if any(module.endswith(part) for part in whole):
                own[key] = value
            elif not torch.equal(getattr(places[module], kind).detach().cpu(), value):
                raise ValueError(
                    f"The adapter {name!r} holds {inner}, a weight of the base itself, and it is another than the "
                    "policy's. Let it stand alone (base: own)."
                )
        else:
            rest[inner] = value
    expected = set(body_state(policy, name))
    missing, unread = sorted(expected - set(own)), sorted(set(own) - expected)
    if missing or unread:
        which = "lacks" if missing else "holds"
        first = (missing or unread)[0].removeprefix(PREFIX)
        raise ValueError(
            f"The adapter {name!r} {which} {first}, which does not fit the policy's base: they are built otherwise."
        )
    set_peft_model_state_dict(policy, own, adapter_name=name)
    return rest


class AdapterClassifier(nn.Module):
    """A sequence classifier whose body is that of a policy, read with an adapter of its own; its head is its own.

    It is called as any other classifier, and gives what the same adapter gives on a base of its own. The policy is as
    it was before: its adapter active, its weights trained or not, each of its modules in its own mode.

    Args:
        policy (`PeftModel`): Whose base it reads.
        name (`str`): The name that the adapter gets there.
        folder (`str` or `Path`): Of the adapter and its head, as `recipes/reward.py --use_peft` writes it.
        num_labels (`int`): Outputs of the head.

    Raises:
        `ValueError`: if the policy's base moves, is another than the adapter's or is built otherwise, or has an
            adapter of that name already.
    """

    def __init__(self, policy: Any, name: str, folder: str | Path, num_labels: int) -> None:
        super().__init__()
        role = f"The reward {str(folder)!r}"
        check_shareable(policy, role)
        check_new_name(policy, name, role)
        config, weights = read_adapter(folder)
        check_same_base(base_name(policy), str(config.base_model_name_or_path or ""), role)
        if not isinstance(config, LoraConfig) or config.bias != "none":
            what = f"trains biases (bias {config.bias!r})" if isinstance(config, LoraConfig) else type(config).__name__
            raise ValueError(f"{role} is no LoRA adapter alone: {what}. Let it stand alone (base: own).")
        self._policy = (policy,)  # in a tuple, so that the policy does not become a part of this
        self.name = name
        self.classifier = classifier_on(policy, num_labels, role)
        add_adapter(policy, name, config, trains=False)
        heads = fill_adapter(policy, name, weights)
        _fill_head(self.classifier, heads, policy.get_base_model().dtype, role)
        self.config = self.classifier.config
        self.training = False

    def reads(self, policy: Any) -> bool:
        """Whether this policy's base is what it reads."""
        return self._policy[0] is policy

    def train(self, mode: bool = True) -> "AdapterClassifier":
        """Nothing: it never trains, and the mode of the policy's modules is set by who trains the policy."""
        return self

    def get_input_embeddings(self) -> Any:
        """Those of the policy."""
        return self.classifier.get_input_embeddings()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **kwargs: Any) -> Any:
        """What the classifier says; without gradients."""
        [policy] = self._policy
        # Not in inference mode: buffers that a model renews as it reads (long RoPE) could then not be trained with.
        with torch.inference_mode(False), torch.no_grad(), active_adapter(policy, self.name), in_evaluation(policy):
            device = policy.get_input_embeddings().weight.device
            for path, part in self.classifier.named_children():
                if path != self.classifier.base_model_prefix:  # the head stays here when the policy is moved
                    part.to(device)
            tokens = {"input_ids": input_ids.clone(), "attention_mask": attention_mask.clone()}
            return self.classifier(**tokens, **kwargs)


def classifier_on(policy: Any, num_labels: int, role: str) -> Any:
    """A sequence classifier of the policy's kind around the policy's own body, its head without weights yet."""
    base = policy.get_base_model()
    config = copy.deepcopy(base.config)
    config.num_labels = num_labels
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    try:
        with torch.device("meta"):
            classifier: Any = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"{role} cannot read with the policy's base, a {type(base).__name__}: transformers has no sequence "
            "classifier for it. Let it stand alone (base: own)."
        ) from error
    prefix = classifier.base_model_prefix
    if type(getattr(classifier, prefix, None)) is not type(base.base_model):
        raise ValueError(
            f"{role} cannot read with the policy's base, a {type(base).__name__}: {type(classifier).__name__} is "
            "built otherwise. Let it stand alone (base: own)."
        )
    setattr(classifier, prefix, base.base_model)
    return classifier


def _fill_head(classifier: Any, weights: dict[str, Tensor], dtype: torch.dtype, role: str) -> None:
    expected = {path for path, parameter in classifier.named_parameters() if parameter.is_meta}
    if expected != set(weights):
        raise ValueError(
            f"{role} holds the head {', '.join(sorted(weights)) or '(none)'}, but a {type(classifier).__name__} has "
            f"{', '.join(sorted(expected))}. Train it with recipes/reward.py --use_peft, or let it stand alone."
        )
    for path, value in weights.items():
        module, _, kind = path.rpartition(".")
        setattr(classifier.get_submodule(module), kind, nn.Parameter(value.to(dtype), requires_grad=False))
