"""Whether a model can be trained in the precision that was asked for, told before anything is loaded."""

from pathlib import Path
from typing import Any

from rlhf_recipes.imports import optional


def check_quantization(model_args: Any, is_trainable: bool = True) -> None:
    """Raise where a quantized model cannot be loaded, or cannot be trained as asked for.

    Args:
        model_args ([`~rlhf_recipes.modeling.loading.ModelArguments`]): Which model, and how.
        is_trainable (`bool`): Whether it is to be trained.

    Raises:
        `ImportError`: without bitsandbytes.
        `ValueError`: for a model that is to be trained whole; for 4 and 8 bit at once; for DoRA in 8 bit on a CPU.
    """
    asked = [name for name in ("load_in_4bit", "load_in_8bit") if getattr(model_args, name)]
    if not asked:
        return
    if len(asked) > 1:
        raise ValueError("load_in_4bit and load_in_8bit are both given. Give one of the two.")
    optional("bitsandbytes", asked[0], extra="quantization")
    if model_args.load_in_8bit and model_args.use_dora and is_trainable:
        import torch  # seconds, which nobody else waits for

        if not torch.cuda.is_available():  # seen with peft 0.21 and bitsandbytes 0.50
            raise ValueError(
                "use_dora with load_in_8bit cannot be trained on a CPU: peft reads the weights of an 8-bit layer in "
                "every pass, and on a CPU it loses their scales with the first. LoRA and rsLoRA train there in 8 bit, "
                "and DoRA in 4 bit (load_in_4bit)."
            )
    has_adapters = (Path(str(model_args.model_name_or_path or "")) / "adapter_config.json").is_file()
    if is_trainable and not model_args.use_peft and not has_adapters:
        raise ValueError(
            f"{asked[0]} holds the weights in {asked[0][8]} bit, which have no gradient, so that the model cannot be "
            "trained whole. Add use_peft, which trains adapters on it, or leave it out."
        )


def steady_8bit(model: Any) -> None:
    """Keep bitsandbytes from multiplying 8-bit weights in two ways on a CPU.

    There its layers round what goes into them to 8 bit in evaluation mode, and not in training mode, so that a policy
    would say something else in the update than in the rollout (seen with bitsandbytes 0.50.2: 0.06 nats a token). They
    now always do as in training. On a GPU both are one.
    """
    for module in model.modules():
        if hasattr(module, "init_8bit_state") and not module._forward_pre_hooks:
            module.register_forward_pre_hook(_as_in_training)


def _as_in_training(module: Any, args: tuple[Any, ...]) -> None:
    module.training = module.training or args[0].device.type == "cpu"


def check_precision(model_args: Any, args: Any) -> None:
    """Raise where a training cannot go well in the precision that was asked for.

    Args:
        model_args ([`~rlhf_recipes.modeling.loading.ModelArguments`]): Which model, and how.
        args (`TrainingArguments`): Of the training.

    Raises:
        `ImportError`, `ValueError`: as [`check_quantization`].
        `ValueError`: for float16 where its gradients would be lost.
    """
    check_quantization(model_args)
    if str(model_args.dtype).removeprefix("torch.") not in ("float16", "half"):
        return
    if not model_args.use_peft:
        raise ValueError(
            f"dtype is {model_args.dtype!r}: in float16 most steps would round to nothing, and a loss scaler cannot "
            "help weights that are float16 themselves. Load in float32, and let fp16 (on a GPU) or bf16 compute in "
            "16 bit; or train adapters (use_peft), which stay in float32."
        )
    if not args.fp16:
        raise ValueError(
            f"dtype is {model_args.dtype!r} without fp16: small gradients would become 0 on their way through the "
            "base, as no loss scaler is at work. Add fp16 (on a GPU), or take dtype bfloat16 or float32."
        )
