"""A twin for each family and for each way in which a file may say how positions are turned."""

from typing import Any

import numpy as np
import torch
from gguf_twins import (
    CONTEXT,
    HEADS,
    HIDDEN,
    INNER,
    KEY_HEADS,
    KV,
    SHARE,
    STATE_DIM,
    THETA,
    VALUE_HEADS,
    VOCAB,
    Twin,
    by_kind,
    interleave,
    llama3_factors,
    plus_one,
    state_space,
    tile_heads,
    transpose,
)

LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
YARN_KEYS = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 64}
LONG = {"rope_type": "longrope", "original_max_position_embeddings": 64}
LONG |= {"short_factor": [1.0 + place / 8 for place in range(8)], "long_factor": [2.0 + place for place in range(8)]}
FACTORS = np.array([1.0, 1.5, 1.0, 3.0, 2.0, 7.0, 5.0, 11.0], dtype=np.float32)


def rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": THETA, "rope_type": "default", **values}}


def wide(dim: int) -> dict[str, Any]:
    return {"attention.key_length": dim, "attention.value_length": dim}


def layer_norm(**more: Any) -> dict[str, Any]:
    return {"attention.layer_norm_rms_epsilon": None, "attention.layer_norm_epsilon": 1e-5, **more}


def divide_frequencies(factors: np.ndarray) -> Any:
    return lambda model: model.model.rotary_emb.inv_freq.div_(torch.tensor(factors))


def llama(values: dict[str, Any], keys: dict[str, Any], **more: Any) -> Twin:
    keys = {"rope.dimension_count": SHARE, "vocab_size": VOCAB, **keys}
    return Twin("llama", "llama", values, keys, change=interleave, **more)


def gemma3(rope_keys: dict[str, Any], full: dict[str, Any], **values: Any) -> Twin:
    theta = {"full_attention": {"rope_theta": 1e6, "rope_type": "default", **full}}
    theta["sliding_attention"] = {"rope_theta": 1e4, "rope_type": "default"}
    values = {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32, "rope_parameters": theta, **values}
    keys = wide(32) | {"attention.sliding_window": 16, "rope.freq_base": 1e6, **rope_keys}
    return Twin("gemma3", "gemma3_text", values, keys, change=plus_one)


EXPERTS = {"expert_count": 4, "expert_used_count": 2}
QWEN_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48, "head_dim": 32}
PHI3 = {"original_max_position_embeddings": 64, "sliding_window": None}
PHI3_KEYS = {"rope.dimension_count": SHARE, "rope.scaling.original_context_length": 64, "attention.sliding_window": 0}
PHI3_TENSORS = {f"rope_factors_{kind}.weight": np.array(LONG[f"{kind}_factor"]) for kind in ("short", "long")}
PHI3_FACTOR = float(np.sqrt(1 + np.log(CONTEXT / 64) / np.log(64)))
LFM2_KINDS = ["conv", "full_attention", "conv"]
HYBRID = {
    "head_dim": 32, "linear_num_key_heads": KEY_HEADS, "linear_num_value_heads": VALUE_HEADS, "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": STATE_DIM, "linear_value_head_dim": STATE_DIM,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    **rope(partial_rotary_factor=0.5, mrope_section=[4, 2, 2], mrope_interleaved=True),
}  # fmt: skip
HYBRID_KEYS = wide(32) | {
    "rope.dimension_count": 16, "rope.dimension_sections": [4, 2, 2, 0], "full_attention_interval": 4,
    "attention.recurrent_layers": [True, False, True], "ssm.conv_kernel": 4, "ssm.group_count": KEY_HEADS,
    "ssm.inner_size": VALUE_HEADS * STATE_DIM, "ssm.state_size": STATE_DIM, "ssm.time_step_rank": VALUE_HEADS,
}  # fmt: skip

GEMMA4 = {
    "num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3, "head_dim": 16, "global_head_dim": 32,
    "sliding_window": 16, "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "tie_word_embeddings": True,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
    },
}  # fmt: skip
GEMMA4_KEYS = wide(32) | {
    "block_count": 6, "attention.key_length_swa": 16, "attention.value_length_swa": 16, "attention.sliding_window": 16,
    "attention.sliding_window_pattern": [True, False] * 3, "attention.shared_kv_layers": 0, "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4, "rope.dimension_count": 32, "rope.dimension_count_swa": 16,
    "embedding_length_per_layer_input": 0,
}  # fmt: skip
GEMMA4_TENSORS = {"rope_freqs.weight": np.array([1.0] * 4 + [1e30] * 12)}

TWINS = {
    "llama": llama(rope(), {}),
    "llama, tied": llama(rope() | {"tie_word_embeddings": True}, {}),
    "llama, heads of their own size": llama(rope() | {"head_dim": 24}, wide(24) | {"rope.dimension_count": 24}),
    "llama, biases": llama(rope() | {"attention_bias": True, "mlp_bias": True}, {}),
    "llama, another base": llama(rope(rope_theta=5e5), {"rope.freq_base": 5e5}),
    "llama, linear": llama(rope(rope_type="linear", factor=4.0), {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
    "llama, linear by default": llama(rope(rope_type="linear", factor=4.0), {"rope.scaling.factor": 4.0}),
    "llama, linear by the old key": llama(rope(rope_type="linear", factor=2.5), {"rope.scale_linear": 2.5}),
    "llama, none with a factor": llama(rope(), {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
    "llama, yarn": llama(rope(**YARN), YARN_KEYS),
    "llama, yarn with all its numbers": llama(
        rope(**YARN, beta_fast=16.0, beta_slow=2.0, attention_factor=1.3),
        YARN_KEYS
        | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0}
        | {"rope.scaling.yarn_attn_factor": 1.3, "rope.scaling.yarn_ext_factor": 1.0},
    ),
    "llama 3": llama(rope(**LLAMA3), {}, tensors={"rope_freqs.weight": llama3_factors(LLAMA3, SHARE)}),
    "llama 3, bounds of its own": llama(
        rope(**LLAMA3 | {"high_freq_factor": 16.0}),
        {},
        tensors={"rope_freqs.weight": llama3_factors(LLAMA3 | {"high_freq_factor": 16.0}, SHARE)},
    ),
    "llama, factors of no formula": llama(
        rope(), {}, tensors={"rope_freqs.weight": FACTORS}, prepare=divide_frequencies(FACTORS)
    ),
    "llama, factors and linear": llama(
        rope(),
        {"rope.scaling.factor": 2.0},
        tensors={"rope_freqs.weight": FACTORS},
        prepare=divide_frequencies(FACTORS * 2),
    ),
    "llama, longrope": llama(
        rope(**LONG, attention_factor=1.1),
        {"rope.scaling.type": "longrope", "rope.scaling.original_context_length": 64, "rope.scaling.attn_factor": 1.1},
        tensors=PHI3_TENSORS,
    ),
    "mixtral": Twin(
        "llama",
        "mixtral",
        rope() | {"num_local_experts": 4, "num_experts_per_tok": 2},
        EXPERTS | {"rope.dimension_count": SHARE},
        change=interleave,
    ),
    "qwen2": Twin("qwen2", "qwen2", rope()),
    "qwen2, yarn": Twin("qwen2", "qwen2", rope(**YARN), YARN_KEYS),
    "qwen2, linear": Twin("qwen2", "qwen2", rope(rope_type="linear", factor=8.0), {"rope.scaling.factor": 8.0}),
    "qwen2moe": Twin(
        "qwen2moe",
        "qwen2_moe",
        rope() | QWEN_EXPERTS | {"shared_expert_intermediate_size": 80, "head_dim": SHARE},
        EXPERTS | {"expert_feed_forward_length": 48, "expert_shared_feed_forward_length": 80},
    ),
    "qwen2moe, normed weights": Twin(
        "qwen2moe",
        "qwen2_moe",
        rope() | QWEN_EXPERTS | {"shared_expert_intermediate_size": 80, "head_dim": SHARE, "norm_topk_prob": True},
        EXPERTS | {"expert_feed_forward_length": 48, "expert_shared_feed_forward_length": 80, "expert_weights_norm": True},
    ),
    "qwen3": Twin("qwen3", "qwen3", rope() | {"head_dim": 32}, wide(32)),
    "qwen3, yarn": Twin("qwen3", "qwen3", rope(**YARN) | {"head_dim": SHARE}, YARN_KEYS),
    "qwen3moe": Twin(
        "qwen3moe",
        "qwen3_moe",
        rope() | QWEN_EXPERTS | {"norm_topk_prob": True},
        EXPERTS | wide(32) | {"expert_feed_forward_length": 48},
    ),
    "minimax-m2": Twin(
        "minimax-m2",
        "minimax_m2",
        rope(partial_rotary_factor=0.5) | {"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
        EXPERTS | wide(32) | {"rope.dimension_count": 16, "expert_gating_func": 2, "expert_feed_forward_length": INNER},
    ),
    "phi3": Twin("phi3", "phi3", rope() | PHI3, PHI3_KEYS),
    "phi3, window": Twin("phi3", "phi3", rope() | PHI3 | {"sliding_window": 32}, PHI3_KEYS | {"attention.sliding_window": 32}),
    "phi3, part of each head": Twin(
        "phi3", "phi3", rope(partial_rotary_factor=0.75) | PHI3, PHI3_KEYS | {"rope.dimension_count": 12}
    ),
    "phi3, longrope": Twin(
        "phi3", "phi3", rope(**LONG) | PHI3, PHI3_KEYS | {"rope.scaling.attn_factor": PHI3_FACTOR}, PHI3_TENSORS
    ),
    "gemma": Twin("gemma", "gemma", rope() | {"head_dim": 32, "tie_word_embeddings": True}, wide(32), change=plus_one),
    "gemma2": Twin(
        "gemma2",
        "gemma2",
        rope()
        | {"head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 32}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0, "tie_word_embeddings": True},
        wide(32) | {"attention.sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
        change=plus_one,
    ),
    "gemma3": gemma3({}, {}),
    "gemma3, linear": gemma3(
        {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "rope.freq_base_swa": 1e4},
        {"rope_type": "linear", "factor": 8.0},
    ),
    "gemma3, pattern of its own": gemma3(
        {"attention.sliding_window_pattern": [False, True, False]},
        {},
        layer_types=["full_attention", "sliding_attention", "full_attention"],
    ),
    "gemma3, period": gemma3({"attention.sliding_window_pattern": 2}, {}, sliding_window_pattern=2),
    "gemma3, capped": gemma3({"final_logit_softcapping": 2.0}, {}, final_logit_softcapping=2.0),
    "gemma3 of 27B, other queries": gemma3(
        {"block_count": 62}, {}, num_hidden_layers=62, query_pre_attn_scalar=HIDDEN // HEADS, initializer_range=0.05
    ),
    "gemma4, inputs of layers, shared keys": Twin(
        "gemma4",
        "gemma4_text",
        GEMMA4
        | {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB, "num_kv_shared_layers": 2}
        | {"use_double_wide_mlp": True, "final_logit_softcapping": 5.0},
        GEMMA4_KEYS
        | {"embedding_length_per_layer_input": 8, "attention.shared_kv_layers": 2, "final_logit_softcapping": 5.0}
        | {"feed_forward_length": [INNER] * 4 + [2 * INNER] * 2},
        GEMMA4_TENSORS,
    ),
    "gemma4, experts, keys as values": Twin(
        "gemma4",
        "gemma4_text",
        GEMMA4
        | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48}
        | {"initializer_range": 0.05}
        | {"attention_k_eq_v": True, "num_global_key_value_heads": 1},
        GEMMA4_KEYS | EXPERTS | {"expert_feed_forward_length": 48, "attention.head_count_kv": [KV, 1] * 3},
        GEMMA4_TENSORS,
    ),
    "starcoder2": Twin(
        "starcoder2",
        "starcoder2",
        rope(rope_theta=1e5) | {"norm_epsilon": 1e-5},
        layer_norm(**{"rope.freq_base": 1e5}),
    ),
    "stablelm": Twin(
        "stablelm",
        "stablelm",
        rope(partial_rotary_factor=0.25) | {"use_qkv_bias": True},
        layer_norm(**{"rope.dimension_count": 4, "rope.freq_base": None, "use_parallel_residual": False}),
    ),
    "stablelm, parallel": Twin(
        "stablelm",
        "stablelm",
        rope(partial_rotary_factor=0.5) | {"use_parallel_residual": True},
        layer_norm(**{"rope.dimension_count": 8, "use_parallel_residual": True}),
    ),
    "nemotron, linear": Twin(
        "nemotron",
        "nemotron",
        rope(rope_type="linear", factor=2.0, partial_rotary_factor=0.5) | {"norm_eps": 1e-5},
        layer_norm(**{"rope.dimension_count": 8, "rope.scaling.type": "linear", "rope.scaling.factor": 2.0}),
        change=plus_one,
    ),
    "falcon": Twin(
        "falcon",
        "falcon",
        {"num_kv_heads": 1, "tie_word_embeddings": True, "ffn_hidden_size": 4 * HIDDEN},
        layer_norm(**{"attention.head_count_kv": 1, "feed_forward_length": 4 * HIDDEN, "tensor_data_layout": "jploski"}),
    ),
    "bloom": Twin(
        "bloom",
        "bloom",
        {"tie_word_embeddings": True},
        layer_norm(**{"attention.head_count_kv": HEADS, "feed_forward_length": 4 * HIDDEN, "rope.freq_base": None}),
        change=by_kind,
    ),
    "gpt2": Twin(
        "gpt2",
        "gpt2",
        {"n_embd": HIDDEN, "n_inner": None, "n_positions": CONTEXT, "tie_word_embeddings": True},
        layer_norm(**{"attention.head_count_kv": None, "feed_forward_length": 4 * HIDDEN, "rope.freq_base": None}),
        change=transpose,
    ),
    "mamba": Twin(
        "mamba",
        "mamba",
        {"intermediate_size": 2 * HIDDEN, "state_size": 16, "conv_kernel": 4, "time_step_rank": 4, "tie_word_embeddings": True},
        {"ssm.conv_kernel": 4, "ssm.inner_size": 2 * HIDDEN, "ssm.state_size": 16, "ssm.time_step_rank": 4}
        | {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": None, "rope.freq_base": None}
        | {"attention.layer_norm_rms_epsilon": 1e-5, "ssm.dt_b_c_rms": False},
        change=state_space,
    ),
    "lfm2": Twin(
        "lfm2",
        "lfm2",
        rope() | {"layer_types": LFM2_KINDS, "block_auto_adjust_ff_dim": False, "tie_word_embeddings": True},
        {"attention.head_count_kv": [0, KV, 0], "shortconv.l_cache": 3, "attention.layer_norm_rms_epsilon": 1e-5},
    ),
    "qwen35": Twin("qwen35", "qwen3_5_text", HYBRID, HYBRID_KEYS, change=tile_heads),
    "qwen35moe": Twin(
        "qwen35moe",
        "qwen3_5_moe_text",
        HYBRID | QWEN_EXPERTS | {"shared_expert_intermediate_size": 80, "initializer_range": 0.1},
        HYBRID_KEYS
        | EXPERTS
        | {"feed_forward_length": None, "expert_feed_forward_length": 48, "expert_shared_feed_forward_length": 80},
        change=tile_heads,
    ),
}
