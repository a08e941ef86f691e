"""Writing a policy for others to load: its adapters alone, or one model with the adapters merged into the weights.

And what the folder of a critic must say or have before it can begin another run.

Merging happens on a copy in main memory, so that the model in training stays as it is, bit for bit: peft's own
`merge_adapter` followed by `unmerge_adapter` adds to the weights and subtracts again, which does not round back.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_recipes import filenames
from rlhf_recipes.modeling.loading import check_model_path
from rlhf_recipes.modeling.zero import copy_whole

MODEL_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json", "pytorch_model*.bin")


def save_policy(policy: PreTrainedModel | PeftModel, folder: str | Path, merge: bool = False) -> Path:
    """Write a policy and its generation settings into a folder, and leave the policy as it is.

    Args:
        policy (`PreTrainedModel` or `PeftModel`):
            The model, without what a launcher wraps around it. A model without adapters is written whole.
        folder (`str` or `Path`):
            Where to; it is made if it is not there. Files of the same names are replaced. A README.md in it stays as
            it is (peft would put a form with empty fields there).
        merge (`bool`, *optional*, defaults to `False`):
            Write one whole model, `W + delta W` in place of each adapted weight (arXiv 2106.09685, section 4.1), which
            `AutoModelForCausalLM` loads without peft. It takes a second copy of the weights in main memory. In
            float32 the logits are those of the policy to about 1e-6 of their size; in half precision the sum is
            rounded once more.

    Returns:
        `Path`: the folder.

    Raises:
        `ValueError`: if the weights cannot be merged: a quantized base, weights of which this process holds only a
            part (ZeRO-3, FSDP), or a method of peft that has no weights to merge (prompt tuning).
        `FileExistsError`: if the folder holds the other form (a whole model where adapters are to go, or the other
            way round): whoever loads it could not tell which one is meant.
    """
    make_loadable(policy)
    target = Path(folder)
    as_adapter = isinstance(policy, PeftModel) and not merge
    refuse_two_forms(target, as_adapter)
    if isinstance(policy, PeftModel) and merge:
        merged_copy(policy).save_pretrained(target)
        return target
    if not isinstance(policy, PeftModel):
        policy.save_pretrained(target)
        return target
    readme = target / filenames.README
    before = readme.read_bytes() if readme.is_file() else None
    policy.save_pretrained(str(target), selected_adapters=list(policy.active_adapters))
    if before is not None:
        readme.write_bytes(before)
    else:
        readme.unlink(missing_ok=True)
    settings = getattr(policy.get_base_model(), "generation_config", None)
    if settings is not None:
        settings.save_pretrained(target)
    return target


def make_loadable(policy: PreTrainedModel | PeftModel) -> None:
    """Take a pad token that the model has no embedding for out of its configuration, or it could not be loaded.

    Trainer copies it there from a tokenizer to which one was added.
    """
    config = policy.config.get_text_config()
    if config.pad_token_id is not None and config.pad_token_id >= config.vocab_size:
        config.pad_token_id = None


def merged_copy(policy: PeftModel) -> PreTrainedModel:
    """A whole model on the CPU, in the policy's precision, with the active adapters merged into its weights.

    Raises:
        `ValueError`: see [`save_policy`].
    """
    _refuse_unmergeable(policy)
    duplicate = copy_whole(policy, to_cpu=True)  # a copy beside the original might not fit on the GPU
    _untie_adapted_embeddings(duplicate.get_base_model())
    merged: Any = duplicate.merge_and_unload(safe_merge=True)  # safe: it refuses weights that would not be finite
    return merged.requires_grad_(False)


def _untie_adapted_embeddings(base: Any) -> None:
    """Give the head a weight of its own where it shares the embedding's and one of the two has an adapter.

    Else what the adapter adds to one of them would be added to the other as well.
    """
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = [module for module in (head, embedding) if isinstance(module, BaseTunerLayer)]
    if head is not None and adapted and head.weight is embedding.weight:
        inner: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        inner.weight = nn.Parameter(inner.weight.detach().clone(), requires_grad=False)
        base.config.get_text_config().tie_word_embeddings = False
        base.config.tie_word_embeddings = False


def refuse_two_forms(folder: Path, as_adapter: bool) -> None:
    weights = sorted({file.name for pattern in MODEL_WEIGHTS for file in folder.glob(pattern)})
    adapter = [filenames.ADAPTER_CONFIG] if (folder / filenames.ADAPTER_CONFIG).is_file() else []
    if other := (weights if as_adapter else adapter):
        raise FileExistsError(
            f"{str(folder)!r} holds {other[0]}, so {'adapters' if as_adapter else 'a whole model'} beside it could "
            "not be told apart from it when loading. Save into a folder of its own, or delete the old files first."
        )


def _refuse_unmergeable(policy: PeftModel) -> None:
    base: Any = policy.get_base_model()
    parameters = list(policy.parameters())
    if getattr(base, "hf_quantizer", None) is not None or not all(p.is_floating_point() for p in parameters):
        method = getattr(getattr(base, "quantization_method", None), "value", None) or "quantized"
        raise ValueError(
            f"The base model is quantized ({method}), and adapters cannot be merged into it without loss. Save and "
            "push the adapters alone (merge=False). For a merged model load the base in full precision, the adapters "
            "on it, and merge there; its logits will differ a little from those that were trained."
        )
    if any(p.numel() == 0 or type(p.data) is not torch.Tensor for p in parameters):
        raise ValueError(
            "This process holds only a part of the weights (ZeRO-3 or FSDP), so they cannot be merged here. Save the "
            "adapters (merge=False), then load them in one process and merge there."
        )
    if policy.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"{policy.active_peft_config.peft_type} learns a prompt and changes no weights, so there is nothing to "
            "merge. Save it as it is (merge=False)."
        )


def body_of(policy: Any, width: int) -> dict[str, str]:
    """What a value head can stand on: the architecture, its depth and the width of the states that it reads."""
    config = policy.config.get_text_config()
    return {
        "model_type": str(config.model_type),
        "num_hidden_layers": str(getattr(config, "num_hidden_layers", "?")),
        "width": str(width),
    }


def read_head(file: Path, body: dict[str, str]) -> dict[str, Tensor]:
    """The weights of a value head that was saved on such a body.

    A file of 0.1.0 does not say on which it was, but for the width.

    Raises:
        `ValueError`: if it was saved on another.
    """
    with safe_open(file, framework="pt") as saved:
        weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - it is no dict
        found = {"width": str(weights["weight"].shape[1])} | (saved.metadata() or {})
    differing = [
        f"{name} {found[name]} there, {body[name]} here" for name in body if found.get(name, body[name]) != body[name]
    ]
    if differing:
        raise ValueError(
            f"The critic in {str(file.parent)!r} is a layer on the states of another model: {', '.join(differing)}. "
            "Give the policy that it was trained on, or one made from it; or critic 'head', which begins anew."
        )
    return weights


def check_base_is_there(folder: str) -> None:
    """Raise where the base below a critic's adapters is on no disk, as with `FileNotFoundError` where it has gone."""
    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    if not base:
        raise ValueError(
            f"The critic {folder!r} is adapters on a copy of a policy that is on no disk: one with adapters that had "
            "learned already, or one that was built in code. Merge the policy's adapters first (save_merged), let "
            "both runs begin with the merged folder, and train the critic anew; or take critic 'head'."
        )
    check_model_path(str(base))


def as_loaded(policy: Any) -> dict[str, Any]:
    """Options of `from_pretrained` for another model of the policy's precision, in 4 bit where the policy is."""
    quantization = quantization_of(policy)
    return {"dtype": policy.dtype} | ({} if quantization is None else {"quantization_config": quantization})


def quantization_of(model: Any) -> Any:
    """How a model's base is quantized, `None` where it is not."""
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    return getattr(inner, "quantization_config", None) or getattr(inner.config, "quantization_config", None)


def has_learned(model: Any) -> bool:
    """Whether a whole model has LoRA adapters that change something."""
    return any("lora_" in name and "_B" in name and bool(p.any()) for name, p in model.named_parameters())
