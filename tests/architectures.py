"""Every architecture that transformers calls a causal language model, small enough for a test, built from its config.

Sizes go by the names that configs have for them. What an architecture wants besides (a head size that fits, a list
with one entry for each layer) stands in `WANTS`; those that cannot be made small by that stand in `NOT_BUILT`, each
with the reason.
"""

import inspect

import pytest
import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel

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
    "index_n_heads": 2,
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "rotary_dim", "index_head_dim", "qk_rope_head_dim",
                     "qk_nope_head_dim", "v_head_dim", "vision_hidden_size"), 8),
}  # fmt: skip
LATENT = {"num_key_value_heads": 4}  # latent attention has as many keys as queries
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1, "mamba_chunk_size": 8}
SMALL_LISTS = {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8}
VISION = {"model_type": "siglip_vision_model", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
          "num_attention_heads": 2, "image_size": 28}  # fmt: skip
WANTS: dict[str, dict] = {
    **dict.fromkeys(("axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text", "glm4_moe_lite",
                     "glm_moe_dsa", "hy_v4", "longcat_flash", "minicpm3", "youtu"), LATENT),
    **dict.fromkeys(("qwen3_5_text", "qwen3_5_moe_text", "qwen3_next", "qwen4_exp_text", "olmo_hybrid"), HYBRID),
    "axk1": {"num_key_value_heads": 4, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
    "bailing_hybrid": LATENT | {"layer_group_size": 2},
    "bamba": MAMBA | {"attn_layer_indices": [1]},
    "gemma3": {"vision_config": VISION, "mm_tokens_per_image": 4},
    "qwen3_5": {"text_config": HYBRID, "vision_config": {"depth": 1, "out_hidden_size": 32}},
    "qwen3_5_moe": {"text_config": HYBRID, "vision_config": {"depth": 1, "out_hidden_size": 32}},
    "gemma4": {"text_config": SMALL_LISTS, "vision_config": {"position_embedding_size": 64}},
    "dots1": {"first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1},
    "falcon_h1": MAMBA | {"mamba_d_ssm": 64},
    "gemma3n_text": SMALL_LISTS,
    "gemma4_text": SMALL_LISTS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": MAMBA | {"layer_types": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": LATENT | HYBRID,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 2, "chunk_size": 8},
    "nemotron_h": {"mamba_num_heads": 4, "mamba_head_dim": 8, "chunk_size": 8, "n_groups": 1, "ssm_state_size": 16},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "roc_bert": {"shape_vocab_size": 100, "pronunciation_vocab_size": 100},
    "xlm": {"is_decoder": True},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip
# Beside language models these hold an encoder of images or sound, whose sizes have other names; their language models
# are here under names of their own, or are those of another architecture.
WITH_OTHER_INPUTS = (
    "dots3_note", "emu3", "fuyu", "gemma3n", "gemma4_assistant", "gemma4_unified", "gemma4_unified_assistant",
    "got_ocr2", "llama4", "moss_transcribe_diarize", "musicgen", "musicgen_melody", "phi4_multimodal", "qwen4_exp",
)  # fmt: skip
NOT_BUILT = dict.fromkeys(WITH_OTHER_INPUTS, "images or sound") | {
    "axk1": "its rotary part has no width at these sizes",
    "blt": "its table of hashed bytes has 96 million weights",
    "cohere_compass_text": "its default configuration has no rotary settings",
    "dbrx": "its configuration cannot be made in transformers 5.23",
    "qwen4_exp_text": "its default configuration has no sizes of the recurrent layers",
    "zamba": "ties weights of layers that a small one has not",
    "zamba2": "ties weights of layers that a small one has not",
}
# Their class is an encoder, or sees the prompt as a whole.
SEE_AHEAD = (
    "bert", "bert-generation", "big_bird", "camembert", "cpmant", "data2vec-text", "electra", "ernie", "megatron-bert",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm", "xlm-roberta", "xlm-roberta-xl",
    "xlnet", "xmod",
)  # fmt: skip
# `generate` of transformers itself fails on a batch of prompts of different lengths.
NOT_SAMPLED = {
    "prophetnet": "it refuses padding on the left",
    "xlstm": "its cache is of another shape than its states",
}
NAMES = {config.model_type: config for config in MODEL_FOR_CAUSAL_LM_MAPPING}


def tiny_model(name: str, seed: int = 0, **options: object) -> PreTrainedModel:
    """A model of that `model_type` with random weights, wide enough that its logits tell tokens apart.

    Args:
        options: Of its configuration, as they are set after that is made; those that it does not have are left out.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = tiny_config(NAMES[name], WANTS.get(name, {}))
        for option in options.keys() & vars(config).keys():
            setattr(config, option, options[option])
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def tiny_config(kind, wants):
    """A config with `SIZES`, of those names that it has, and with what the architecture wants besides."""
    parts = {name: of for name, of in kind.sub_configs.items() if getattr(of, "model_type", None)}
    names = set(inspect.signature(kind).parameters) | set(kind.attribute_map)
    sizes = {} if "text_config" in parts else {name: size for name, size in SIZES.items() if name in names}
    sizes |= {name: tiny_config(of, wants.get(name, {})) for name, of in parts.items()}
    return kind(**sizes | {name: value for name, value in wants.items() if name not in parts})


BUILT = [name for name in NAMES if name not in NOT_BUILT]
DECODERS = [name for name in BUILT if name not in SEE_AHEAD]
# One of each way to logits, positions and memory: the default run. Every other one is slow.
COMMON = (
    "bart", "bloom", "cohere", "falcon", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "granite", "lfm2", "llama",
    "llama4_text", "mamba", "minicpm3", "mixtral", "opt", "phimoe", "qwen2", "qwen3", "rwkv",
)  # fmt: skip


EVERY = (pytest.mark.slow, pytest.mark.every)


def each(names, by_default=COMMON):
    """Parameters of a test: some run by default, the others with `-m every`."""
    return [name if name in by_default else pytest.param(name, marks=EVERY) for name in names]
