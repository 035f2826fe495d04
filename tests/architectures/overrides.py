"""What the generic sizes in `tiny.py` cannot know: settings by model type, and the types that are not built."""

from __future__ import annotations

from typing import Any

OVERRIDES: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0},
    "cohere_compass_text": {"logit_scale": 1.0},
    "dbrx": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_config": {"kv_n_heads": 2},
        "ffn_config": {"moe_top_k": 2},
    },
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "granitemoehybrid": {"mamba_n_heads": 4, "layer_types": ["linear_attention", "full_attention"] * 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "nemotron_h": {"n_groups": 2},
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
        "is_decoder": True,
    },
    "zaya": {"num_experts_per_tok": 1},
    "xmod": {"default_language": "en_XX"},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "full_attention"] * 3,
        "num_kv_shared_layers": 2,
    },
}

NOT_BUILT: dict[str, str] = {}
