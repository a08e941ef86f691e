"""Floating-point operations and active parameters of a decoder, from its configuration alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Whether the MLP has a gate stands in no config, so that the kinds of models have to be known. Every one of these is
# held against an operation count of the model itself in the tests.
GATED = ("gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "olmo2", "phi3", "qwen2", "qwen3",
         "smollm3")  # fmt: skip
PLAIN = ("gpt2", "gpt_neox", "opt", "phi", "starcoder2")
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe")
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


@dataclass(frozen=True)
class LayerShape:
    """One layer of a decoder, as far as its matrix products go.

    Args:
        heads (`int`): Query heads.
        kv_heads (`int`): Key and value heads; fewer than `heads` with grouped queries (arXiv 2305.13245).
        head_dim (`int`): Numbers in each head.
        mlp_size (`int`): Inner units of the MLP that every token goes through, 0 if there is none.
        gated (`bool`): Whether an MLP has three matrices (gate, up, down) or two (up, down).
        window (`int`, *optional*): Tokens that attention looks back on, itself included. `None` is all.
        experts (`int`): Experts of a mixture, 0 if there is none.
        active_experts (`int`): Experts that each token goes through.
        expert_size (`int`): Inner units of each expert.
        shared_gate (`bool`): Whether a number is computed that weighs the MLP beside the experts (Qwen2-MoE).
    """

    heads: int
    kv_heads: int
    head_dim: int
    mlp_size: int
    gated: bool = True
    window: int | None = None
    experts: int = 0
    active_experts: int = 0
    expert_size: int = 0
    shared_gate: bool = False

    def expert_weights(self, hidden_size: int) -> int:
        """Weights of one expert."""
        return hidden_size * self.expert_size * (3 if self.gated else 2)

    def active_weights(self, hidden_size: int) -> int:
        """Weights that a token is multiplied with: projections, MLP, router and its experts; no biases, no norms."""
        attention = hidden_size * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlp = hidden_size * self.mlp_size * (3 if self.gated else 2)
        router = hidden_size * (self.experts + self.shared_gate)
        return attention + mlp + router + self.active_experts * self.expert_weights(hidden_size)


@dataclass(frozen=True)
class DecoderShape:
    """A decoder, as far as its matrix products go. Layers may differ, as they do where some were pruned.

    Args:
        hidden_size (`int`): Width of the residual stream.
        vocab_size (`int`): Outputs of the language-model head, whether or not its weights are those of the embeddings.
        layers (`tuple[LayerShape, ...]`): From the first to the last.
        embedding_size (`int`, *optional*):
            Width of the embeddings, where projections lead from them to the residual stream and back (OPT-350m).
    """

    hidden_size: int
    vocab_size: int
    layers: tuple[LayerShape, ...]
    embedding_size: int | None = None

    @property
    def active_weights(self) -> int:
        """Weights that every token is multiplied with, the head left out."""
        projections = 0 if self.embedding_size is None else 2 * self.hidden_size * self.embedding_size
        return projections + sum(layer.active_weights(self.hidden_size) for layer in self.layers)

    @property
    def head_weights(self) -> int:
        """Weights of the language-model head."""
        return self.vocab_size * (self.embedding_size or self.hidden_size)


def decoder_shape(model: Any) -> DecoderShape:
    """The shape of a decoder from its config.

    Args:
        model: A transformers config, a model with one, a folder or a model id of the Hub. Of a model that also reads
            images, the language model counts.

    Raises:
        `ValueError`: if it is not known how such a model computes, or its config lacks a number that is needed. A
            [`DecoderShape`] can be given by hand then.
    """
    if isinstance(model, DecoderShape):
        return model
    config = _text_config(_config_of(model))
    kind = getattr(config, "model_type", None)
    if kind not in GATED + PLAIN + MIXTURES:
        raise ValueError(
            f"How a model of type {kind!r} computes is not known here. Known are "
            f"{', '.join(sorted(GATED + PLAIN + MIXTURES))}. For another decoder give a DecoderShape."
        )
    hidden_size = _number(config, "hidden_size")
    embedding_size = getattr(config, "word_embed_proj_dim", None)
    # A config may say of single layers what differs from the rest.
    each = getattr(config, "per_layer_config", None)
    layers = tuple(
        _layer_shape(config if each is None else each[index], kind, index)
        for index in range(_number(config, "num_hidden_layers"))
    )
    return DecoderShape(
        hidden_size=hidden_size,
        vocab_size=_number(config, "vocab_size"),
        layers=layers,
        embedding_size=None if embedding_size in (None, hidden_size) else embedding_size,
    )


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
        attention += 4 * layer.heads * layer.head_dim * looked_at
    return weights + head + attention


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
    config = _config_of(model, required=False)
    network = model if hasattr(model, "parameters") else _without_memory(config)
    if hasattr(network, "num_parameters"):
        total = int(network.num_parameters())
    else:
        total = sum(parameter.numel() for parameter in network.parameters())
    if config is None or not any(getattr(_text_config(config), name, None) for name in EXPERT_COUNTS):
        return total
    shape = decoder_shape(config)
    idle = [(layer.experts - layer.active_experts) * layer.expert_weights(shape.hidden_size) for layer in shape.layers]
    return total - sum(idle)


def _looked_at(prompt_tokens: int, steps: int, window: int | None) -> int:
    """How many tokens are looked at in all steps: step i, from 1, looks at `min(prompt_tokens + i, window)`."""
    growing = steps if window is None else min(steps, max(0, window - prompt_tokens))
    full = 0 if window is None else (steps - growing) * window
    return growing * prompt_tokens + growing * (growing + 1) // 2 + full


def _layer_shape(config: Any, kind: str, index: int) -> LayerShape:
    if getattr(config, "skip", None):
        raise ValueError(f"Layer {index} leaves out {', '.join(config.skip)}: give a DecoderShape instead.")
    heads = _number(config, "num_attention_heads")
    attention: dict[str, Any] = {
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or _number(config, "hidden_size") // heads,
        "window": _window(config, index),
    }
    if kind in MIXTURES and _is_mixture(config, kind, index):
        shared = getattr(config, "shared_expert_intermediate_size", 0)
        return LayerShape(
            **attention,
            mlp_size=shared,
            experts=_number(config, "num_experts"),
            active_experts=_number(config, "num_experts_per_tok"),
            expert_size=_number(config, "moe_intermediate_size" if kind.startswith("qwen") else "intermediate_size"),
            shared_gate=shared > 0,
        )
    if kind == "gpt2":
        size = config.n_inner or 4 * _number(config, "hidden_size")
    else:
        size = _number(config, "ffn_dim" if kind == "opt" else "intermediate_size")
    return LayerShape(**attention, mlp_size=size, gated=kind not in PLAIN)


def _is_mixture(config: Any, kind: str, index: int) -> bool:
    if kind in ("mixtral", "olmoe"):
        return True
    sparse = index not in (config.mlp_only_layers or []) and (index + 1) % config.decoder_sparse_step == 0
    return sparse and config.num_experts > 0


def _window(config: Any, index: int) -> int | None:
    kinds = getattr(config, "layer_types", None)
    window: int | None = getattr(config, "sliding_window", None)
    if kinds is None or kinds[index] == "sliding_attention":
        return window
    if kinds[index] != "full_attention":
        raise ValueError(f"Layer {index} is of type {kinds[index]!r}, which is not known here: give a DecoderShape.")
    return None


def _number(config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int) or value < 1:
        raise ValueError(
            f"The config of type {getattr(config, 'model_type', None)!r} has {name} {value!r}, but a whole number "
            "from 1 up is needed to count operations. Give a full config, or a DecoderShape."
        )
    return value


def _config_of(model: Any, required: bool = True) -> Any:
    if isinstance(model, (str, Path)):
        return _loaded_config(str(model))
    config = getattr(model, "config", model)
    if hasattr(config, "model_type"):
        return config
    if required:
        raise ValueError(
            f"A model is given as a folder, a model id, a transformers config or a model with one, not as {model!r}."
        )
    return None


def _loaded_config(name: str) -> Any:
    from peft import PeftConfig
    from transformers import AutoConfig

    from rlhf_recipes.modeling.loading import check_model_path

    name = check_model_path(name)
    if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
        name = check_model_path(str(PeftConfig.from_pretrained(name).base_model_name_or_path))
    return AutoConfig.from_pretrained(name)


def _text_config(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _without_memory(config: Any) -> Any:
    import torch
    import transformers

    if config is None:
        raise ValueError("Parameters are counted of a model, a config, a folder or a model id, and none was given.")
    named = getattr(transformers, (config.architectures or [""])[0], None)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config) if named is None else named(config)
