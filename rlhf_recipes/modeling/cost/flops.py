"""Floating-point operations and active parameters of a model, counted on one that is built without its weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_recipes import filenames

# Every one of these is held against an operation count of the model itself in the tests.
KNOWN = (
    "gemma", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "llama", "mistral", "mixtral", "olmo", "olmo2",
    "olmoe", "opt", "phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "starcoder2",
)  # fmt: skip
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LayerShape:
    """The attention of one layer."""

    width: int  # query heads times the numbers in each
    window: int | None = None  # tokens that attention looks back on, itself included; None is all


@dataclass(frozen=True)
class DecoderShape:
    """A decoder, or an encoder, as far as its matrix products go.

    `active_weights` are those that every token is multiplied with, the head left out: projections, MLPs, routers, of
    experts those that a token goes through; no biases, no norms.
    """

    active_weights: int
    head_weights: int  # of the language-model head, also where they are those of the embeddings
    layers: tuple[LayerShape, ...]
    text_weights: int = 0  # of what reads one token of a text, as an encoder's pooler and classifier


def decoder_shape(model: Any) -> DecoderShape:
    """The shape of a decoder from its config: the model is built without memory for its weights, and its matrices are
    counted.

    Args:
        model: A transformers config, a model with one, a folder or a model id of the Hub. Of a model that also reads
            images, the language model counts.

    Raises:
        `ValueError`: if it is not known how such a model computes. A [`DecoderShape`] can be given by hand then.
    """
    if isinstance(model, DecoderShape):
        return model
    config = _text_config(_config_of(model))
    if config.model_type not in KNOWN:
        raise ValueError(
            f"How a model of type {config.model_type!r} computes is not known here. Known are {', '.join(KNOWN)}. For "
            "another decoder give a DecoderShape."
        )
    if getattr(config, "is_heterogeneous", False):
        raise ValueError(
            "The config says of single layers what differs in them (per_layer_config): give a DecoderShape."
        )
    from torch import nn

    layers = tuple(_layer_shape(config, index) for index in range(config.num_hidden_layers))
    network = _without_memory(config, "")
    head = network.get_output_embeddings().weight
    looked_up = {id(module.weight) for module in network.modules() if isinstance(module, nn.Embedding)}
    products = [p for p in network.parameters() if p.dim() > 1 and p is not head and id(p) not in looked_up]
    return DecoderShape(sum(p.numel() - _idle(p, config) for p in products), head.numel(), layers)


def completion_flops(model: Any, prompt_tokens: int, completion_tokens: int) -> int:
    """Floating-point operations of producing a completion with a key-value cache.

    The prompt of P tokens goes through the layers at once, then each of the N tokens produced but the last goes alone:
    T = P + N - 1 tokens in all. A product of m x k and k x n numbers is 2mnk operations.

    - weights: `2 * T * active_weights`; of a mixture of experts the router and the experts chosen;
    - head: `2 * N * vocab_size * hidden_size`, once for each token produced, of the prompt for its last token alone;
    - attention, scores and values, in each layer: `4 * heads * head_dim * (P^2 + sum_{i=1}^{N-1} min(P + i, window))`.

    Matrix products alone count, as in `torch.utils.flop_counter.FlopCounterMode`: embeddings are looked up and free;
    norms, activations, softmax and sampling are left out. Attention to the prompt counts the whole square, as that
    counter does for eager and fused attention, though the half above the diagonal is hidden and some kernels skip it.
    Adapters count as merged.

    Args:
        model: As for [`decoder_shape`], or a `DecoderShape`.
        prompt_tokens (`int`): P, at least 1.
        completion_tokens (`int`): N, with the end-of-sequence token. 0 costs nothing.

    Returns:
        `int`: operations, exactly.
    """
    shape = decoder_shape(model)
    if completion_tokens < 0:
        raise ValueError(f"completion_tokens is {completion_tokens}; it must be 0 or more.")
    if prompt_tokens < 1:
        raise ValueError(
            f"prompt_tokens is {prompt_tokens}; a completion starts from a token at least: give 1 or more."
        )
    if completion_tokens == 0:
        return 0
    weights = 2 * (prompt_tokens + completion_tokens - 1) * shape.active_weights
    head = 2 * completion_tokens * shape.head_weights
    attention = 0
    for layer in shape.layers:
        looked_at = prompt_tokens**2 + _looked_at(prompt_tokens, completion_tokens - 1, layer.window)
        attention += 4 * layer.width * looked_at
    return weights + head + attention


def prefill_flops(model: Any, tokens: int) -> int:
    """Floating-point operations of one pass over a text, with what the head says of each token.

    `2 * tokens * (active_weights + head_weights) + 2 * text_weights`, and for attention in each layer
    `4 * heads * head_dim * tokens^2`, as for the prompt of [`completion_flops`]. Without a head (`head_weights=0` and
    `text_weights=0`) these are the non-embedding operations.

    Args:
        model: As for [`decoder_shape`], or a `DecoderShape`.
        tokens (`int`): Of the text, at least 1.

    Returns:
        `int`: operations, exactly.
    """
    shape = decoder_shape(model)
    _check_tokens("tokens", tokens)
    attention = sum(4 * layer.width * tokens**2 for layer in shape.layers)
    return 2 * tokens * (shape.active_weights + shape.head_weights) + 2 * shape.text_weights + attention


def decode_flops(model: Any, context: int) -> int:
    """Floating-point operations of one more token behind a key-value cache.

    `2 * (active_weights + head_weights)`, and in each layer `4 * heads * head_dim * min(context, window)`.

    Args:
        model: As for [`decoder_shape`], or a `DecoderShape`.
        context (`int`): Tokens that are looked at, this one included; at least 1.

    Returns:
        `int`: operations, exactly.
    """
    shape = decoder_shape(model)
    _check_tokens("context", context)
    attention = sum(4 * layer.width * min(context, layer.window or context) for layer in shape.layers)
    return 2 * (shape.active_weights + shape.head_weights) + attention


def _check_tokens(name: str, count: int) -> None:
    if count < 1:
        raise ValueError(f"{name} is {count}; a pass needs a token at least: give 1 or more.")


def parameters_active(model: Any) -> int:
    """Parameters that a model uses for a token: all of them, but of a mixture's experts those that a token goes to.

    Biases, norms and the whole table of embeddings count; what is shared (tied embeddings) counts once, and 4-bit
    weights as what they stand for. Of an adapter's folder the base model counts.

    Args:
        model: A model, a transformers config, a folder or a model id of the Hub. From a config the model is built
            without memory for its weights: of the class that the config names, else as a language model.

    Raises:
        `ValueError`: if it has experts, but it is not known which of them a token goes to.
    """
    if model is None:
        raise ValueError("Parameters are counted of a model, a config, a folder or a model id, and none was given.")
    network, config = model, getattr(model, "config", None)
    if not hasattr(model, "parameters"):
        config = _config_of(model)
        network = _without_memory(config, (config.architectures or [""])[0])
    if hasattr(network, "num_parameters"):
        total = int(network.num_parameters())
    else:
        total = sum(parameter.numel() for parameter in network.parameters())
    if config is None or not any(getattr(_text_config(config), name, None) for name in EXPERT_COUNTS):
        return total
    decoder_shape(config)  # refuses mixtures that are not known
    text = _text_config(config)
    return total - sum(_idle(parameter, text) for parameter in _without_memory(text, "").parameters())


def _idle(parameter: Any, config: Any) -> int:
    """Of the weights of all experts `(experts, ..., ...)`, those that a token does not go to."""
    if parameter.dim() < 3:
        return 0
    return parameter.numel() // config.num_experts * (config.num_experts - config.num_experts_per_tok)


def _looked_at(prompt_tokens: int, steps: int, window: int | None) -> int:
    """How many tokens are looked at in all steps: step i, from 1, looks at `min(prompt_tokens + i, window)`."""
    growing = steps if window is None else min(steps, max(0, window - prompt_tokens))
    full = 0 if window is None else (steps - growing) * window
    return growing * prompt_tokens + growing * (growing + 1) // 2 + full


def _layer_shape(config: Any, index: int) -> LayerShape:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return LayerShape(heads * head_dim, window_of(config, index))


def window_of(config: Any, index: int) -> int | None:
    """How many tokens a layer looks back on, itself included; `None` where it is all."""
    kinds, window = getattr(config, "layer_types", None), getattr(config, "sliding_window", None)
    if kinds is not None and kinds[index] not in ("sliding_attention", "full_attention"):
        raise ValueError(f"Layer {index} is of type {kinds[index]!r}, which is not known here: give a DecoderShape.")
    return None if kinds is not None and kinds[index] == "full_attention" else window


def _config_of(model: Any) -> Any:
    if isinstance(model, (str, Path)):
        return _loaded_config(str(model))
    config = getattr(model, "config", model)
    if not hasattr(config, "model_type"):
        raise ValueError(
            f"A model is given as a folder, a model id, a transformers config or a model with one, not as {model!r}."
        )
    return config


def _loaded_config(name: str) -> Any:
    from peft import PeftConfig
    from transformers import AutoConfig

    from rlhf_recipes.modeling.loading import check_model_path, is_adapter

    name = check_model_path(name)
    if is_adapter(name) and not (Path(name) / filenames.MODEL_CONFIG).is_file():
        name = check_model_path(str(PeftConfig.from_pretrained(name).base_model_name_or_path))
    return AutoConfig.from_pretrained(name)


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _without_memory(config: Any, named: str) -> Any:
    """A model of the class that is named, else a language model, on no device."""
    import torch
    import transformers

    kind = getattr(transformers, named, None)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config) if kind is None else kind(config)
