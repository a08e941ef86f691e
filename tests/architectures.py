"""Every architecture that transformers calls a causal language model, small enough for a test, built from its config.

Sizes go by the names that configs have for them. What an architecture wants besides (a head size that fits, a list
with one entry for each layer) stands in `WANTS`; those that cannot be made small by that stand in `NOT_BUILT`, each
with the reason.
"""

import inspect

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel

VOCABULARY = 400
SIZES = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "attention_hidden_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "n_inner", "dff",
                     "shared_intermediate_size", "feed_forward_hidden_size"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
                     "num_decoder_layers", "num_encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
                     "decoder_attention_heads", "num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "kv_channels"), 8),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "context_length", "max_seq_len"), 256),
    "vocab_size": VOCABULARY,
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k"), 2),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    "bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2,
    **dict.fromkeys(("index_n_heads",), 2),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "rotary_dim", "index_head_dim", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "vision_hidden_size"), 8),
}  # fmt: skip
ONE_HEAD_EACH = {"num_key_value_heads": 4}  # latent attention has as many keys as queries
WANTS: dict[str, dict] = {
    **dict.fromkeys(
        (
            "axk1",
            "axk2",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "youtu",
            "dots3_note_text",
            "hy_v4",
            "longcat_flash",
            "kimi_linear",
            "bailing_hybrid",
        ),
        ONE_HEAD_EACH,
    ),
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "granitemoehybrid": {"mamba_n_heads": 4, "mamba_d_head": 16},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "reformer": {"is_decoder": True, "axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16)},
    "zaya": {"num_experts_per_tok": 1},
    "xlm": {"is_decoder": True},
    "axk1": {"num_key_value_heads": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2},
    "zamba": {"layer_types": ["linear_attention", "hybrid"]},
    "zamba2": {"layer_types": ["linear_attention", "hybrid"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gemma4_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8},
    "roc_bert": {
        "shape_vocab_size": 100,
        "pronunciation_vocab_size": 100,
        "shape_embed_dim": 8,
        "pronunciation_embed_dim": 8,
    },
    "xmod": {"default_language": "en_XX"},
}
NOT_BUILT: dict[str, str] = {}
NAMES = {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A model of that `model_type` with random weights, wide enough that its logits tell tokens apart."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(NAMES[name], WANTS.get(name, {}))
        model = MODEL_FOR_CAUSAL_LM_MAPPING[NAMES[name]](config)
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tiny_config(kind, wants):
    names = set(inspect.signature(kind).parameters) | set(getattr(kind, "attribute_map", {}))
    sizes = {name: size for name, size in SIZES.items() if name in names}
    for name, of_part in getattr(kind, "sub_configs", {}).items():
        if inspect.isclass(of_part) and hasattr(of_part, "model_type") and of_part.model_type:
            sizes[name] = tiny_config(of_part, wants.get(name, {}))
    return kind(
        **sizes
        | {
            name: value
            for name, value in wants.items()
            if not isinstance(value, dict) or name not in getattr(kind, "sub_configs", {})
        }
    )
