"""What each role of a run takes in memory before the first token: weights, gradients and optimizer states, in bytes.

Counted from the tensors that are there, not from a formula over parameter counts, so that 4-bit weights, adapters and
roles that share one base come out right. Activations, the copies of gradients that DistributedDataParallel puts in
buckets, and temporary buffers come on top.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_recipes.texts import readable_bytes


@dataclass(frozen=True)
class RoleMemory:
    """Bytes that one role adds on one process; what it shares with an earlier role is counted there."""

    role: str
    weights: int  # parameters and buffers
    gradients: int  # of the parameters that are trained
    optimizer: int | None  # its states; `None` where they are not known
    note: str = ""

    @property
    def total(self) -> int:
        """All that is known."""
        return self.weights + self.gradients + (self.optimizer or 0)


@dataclass(frozen=True)
class Zero:
    """What DeepSpeed does with a model that it trains. Stage 0 and one process: nothing."""

    stage: int = 0
    world: int = 1
    half: bool = False  # whether the model is turned into 16 bit
    offload: tuple[str, ...] = field(default=())  # what lies in the computer's memory or on disk

    def share(self, size: int, from_stage: int) -> int:
        """Bytes on one process, of something that is divided from a stage on."""
        return -(-size // self.world) if self.stage >= from_stage else size


def memory_of_roles(roles: Mapping[str, nn.Module | None], args: Any) -> list[RoleMemory]:
    """Count what each role takes on one process.

    A tensor that several roles hold is counted with the first of them, so name the policy first.

    With DeepSpeed's ZeRO, whose stages divide optimizer states (from 1), gradients (from 2) and weights (from 3)
    among the processes (arXiv 1910.02054, figure 1), the optimizer also keeps a float32 copy of what it trains, and
    with `bf16` or `fp16` weights and gradients are of 16 bit. This goes for roles that are trained; a frozen one
    stays whole on each process unless it was loaded in parts.

    Args:
        roles (`Mapping[str, nn.Module]`): The models by name. `None` stands for one that takes nothing of its own,
            such as the reference that is the policy with its adapters off.
        args (`TrainingArguments`): What tells the optimizer, `world_size` and the DeepSpeed configuration are read.
    """
    zero = zero_of(args)
    seen: set[Any] = set()
    return [_role(role, module, args, zero, seen) for role, module in roles.items()]


def memory_line(roles: Mapping[str, nn.Module | None], args: Any, logits_tokens: int | None = None) -> str:
    """The figures of [`memory_of_roles`] in one line, and the largest tensor of logits.

    Args:
        logits_tokens (`int`, *optional*): Tokens whose logits exist at one time, in float32.

    Raises:
        `ValueError`: if `logits_tokens` is given and no role has a `config` that says how large the vocabulary is.
    """
    counted = memory_of_roles(roles, args)
    total = readable_bytes(sum(part.total for part in counted))
    unknown = any(part.optimizer is None for part in counted)
    line = "Memory before activations: " + ", ".join(_words(part) for part in counted)
    line += f"; total {total}{f' without the states of {_name(args.optim)}' if unknown else ''}"
    line += _words_of_zero(zero_of(args))
    if logits_tokens is None:
        return line
    size = _vocabulary(roles.values())
    largest = readable_bytes(logits_tokens * size * 4)
    return f"{line} Largest logits: {logits_tokens} tokens x {size} words x 4 bytes = {largest}."


def kept_states(rows: int, tokens: int, hidden_size: int, itemsize: int) -> int:
    """Bytes of what the frozen layers of a model say of `rows` texts of `tokens` tokens each."""
    return rows * tokens * hidden_size * itemsize


def zero_of(args: Any) -> Zero:
    """Read stage, precision and offloading out of the DeepSpeed configuration; no ZeRO without one."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is None:
        return Zero()
    config = plugin.deepspeed_config
    settings = config.get("zero_optimization", {})

    def is_on(name: str) -> bool:
        enabled = config.get(name, {}).get("enabled", False)
        return bool(getattr(args, name)) if enabled == "auto" else bool(enabled)

    offload = [name for name in ("optimizer", "param") if _device(settings.get(f"offload_{name}")) != "none"]
    return Zero(int(settings.get("stage", 0)), args.world_size, is_on("bf16") or is_on("fp16"), tuple(offload))


# ---- counting


def _role(role: str, module: nn.Module | None, args: Any, zero: Zero, seen: set[Any]) -> RoleMemory:
    """Count what is not in `seen`, and add it there."""
    if module is None:
        return RoleMemory(role, 0, 0, 0, "adapters off" if role == "reference" else "")
    tensors = {_key(tensor): tensor for tensor in _tensors(module)}
    new = [tensor for key, tensor in tensors.items() if key not in seen]
    note = "the rest is shared" if len(new) < len(tensors) else ""
    note = "head on the policy" if getattr(module, "reads_policy", False) else note
    seen.update(tensors)
    trained = [tensor for tensor in new if tensor.requires_grad]
    engine = zero if any(parameter.requires_grad for parameter in module.parameters()) else Zero()
    in_parts = zero if any(hasattr(tensor, "ds_numel") for tensor in new) else engine
    embeddings = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    states = _states(trained, args, zero, embeddings)
    return RoleMemory(
        role,
        in_parts.share(sum(_size(tensor, engine.half) for tensor in new), 3),
        engine.share(sum(_size(tensor, engine.half) for tensor in trained), 2),
        None if states is None else engine.share(states, 1),
        note,
    )


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, and what bitsandbytes keeps beside a quantized parameter to read it."""
    for tensor in (*module.parameters(), *module.buffers()):
        yield tensor
        yield from _quantization(getattr(tensor, "quant_state", None))  # 4 bit
        if isinstance(scales := getattr(tensor, "SCB", None), Tensor):  # 8 bit
            yield scales


def _quantization(state: Any) -> Iterator[Tensor]:
    if state is None:
        return
    for value in vars(state).values():
        if isinstance(value, Tensor):
            yield value
    yield from _quantization(state.state2)  # the scales can be quantized again


def _key(tensor: Tensor) -> Any:
    """The same for two tensors that are one piece of memory; those without memory yet are told apart as objects."""
    place = 0 if tensor.device.type == "meta" else tensor.data_ptr()
    return (str(tensor.device), place, tensor.numel()) if place else id(tensor)


def _numel(tensor: Tensor) -> int:
    return getattr(tensor, "ds_numel", tensor.numel())  # DeepSpeed leaves an empty tensor where a part lies elsewhere


def _size(tensor: Tensor, half: bool) -> int:
    if half and tensor.is_floating_point():
        return _numel(tensor) * min(tensor.element_size(), 2)
    return _numel(tensor) * tensor.element_size()


def _states(trained: Sequence[Tensor], args: Any, zero: Zero, embeddings: Collection[int]) -> int | None:
    """Bytes of the states that the Trainer's optimizer makes in a step, without step counts and tables that all share.

    It takes this step on no device, with one parameter of each shape. `None` where it cannot: an optimizer that is not
    installed, or needs a GPU.
    """
    if not trained:
        return 0
    wide = torch.float32 if zero.stage or zero.half else None  # ZeRO trains a copy, and counts it as a state
    kinds = Counter(
        (tuple(getattr(tensor, "ds_shape", tensor.shape)), wide or tensor.dtype, id(tensor) in embeddings)
        for tensor in trained
    )
    parameters = [nn.Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape, dtype, _ in kinds]
    try:
        optimizer = _stepped(parameters, [is_embedding for *_, is_embedding in kinds], args)
    except Exception:  # of any library's optimizer
        return None
    states = [
        sum(
            value.nbytes
            for name, value in optimizer.state[parameter].items()
            if isinstance(value, Tensor) and name != "step" and not name.startswith("qmap")
        )
        for parameter in parameters
    ]
    copies = [parameter.nbytes if wide else 0 for parameter in parameters]
    return sum(map(math.prod, zip(kinds.values(), map(sum, zip(states, copies, strict=True)), strict=True)))


def _stepped(parameters: list[nn.Parameter], is_embedding: Sequence[bool], args: Any) -> Any:
    """The optimizer that Trainer would make, with its states."""
    from transformers import Trainer

    kind, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    kwargs.pop("fused", None)  # the same states, which no fused kernel makes here
    optimizer: Any = kind(parameters, **kwargs)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter)
    if not hasattr(optimizer, "init_state"):
        optimizer.step()
        return optimizer
    optimizer.is_paged, bits = False, optimizer.args.optim_bits  # bitsandbytes
    for index, parameter in enumerate(parameters):
        optimizer.args.optim_bits = 32 if is_embedding[index] else bits  # as Trainer wants it of embeddings
        optimizer.init_state(optimizer.param_groups[0], parameter, 0, index)
    return optimizer


def _name(optim: Any) -> str:
    return str(getattr(optim, "value", optim))


def _device(offload: Mapping[str, Any] | None) -> str:
    return str((offload or {}).get("device", "none"))


def _vocabulary(modules: Iterable[Any]) -> int:
    for module in modules:
        if hasattr(module, "config"):
            return int(module.config.get_text_config().vocab_size)
    raise ValueError(
        "No role has a config that says how large the vocabulary is. Give one that has, or no logits_tokens."
    )


# ---- telling


def _words(part: RoleMemory) -> str:
    text = f"{part.role} {readable_bytes(part.weights)}"
    if part.gradients:
        text += f" + gradients {readable_bytes(part.gradients)}"
    if part.optimizer is None or part.optimizer:
        text += f" + optimizer {'unknown' if part.optimizer is None else readable_bytes(part.optimizer)}"
    return text + (f" ({part.note})" if part.note else "")


def _words_of_zero(zero: Zero) -> str:
    if not zero.stage:
        return "."
    divided = ["optimizer states", "gradients", "weights"][: zero.stage]
    text = f" on each process: ZeRO stage {zero.stage} divides {', '.join(divided)} of what is trained by {zero.world}"
    if zero.offload:
        names = {"optimizer": "optimizer states", "param": "weights"}
        text += f" and keeps {' and '.join(names[name] for name in zero.offload)} off the device"
    return text + "."
