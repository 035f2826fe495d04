"""Small values for the settings that many families share, by the name that each family gives them."""

from __future__ import annotations

from typing import Any

_NAMES_BY_VALUE: dict[int, str] = {
    128: "vocab_size unpadded_vocab_size text_vocab_size decoder_vocab_size vocab_size_per_layer_input",
    256: """
        max_position_embeddings n_positions n_ctx max_seq_len context_length model_max_length max_target_positions
        max_sequence_length
    """,
    64: """
        hidden_size out_hidden_size d_model n_embd embedding_size embedding_dim emb_dim word_embed_proj_dim
        input_embedding_size output_embedding_size attention_hidden_size lru_width intermediate_size
        intermediate_size_mlp moe_intermediate_size shared_intermediate_size dense_intermediate_size
        shared_expert_intermediate_size shared_experts_intermediate_size moe_shared_expert_intermediate_size
        expert_ffn_hidden_size max_source_positions
    """,
    96: "decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size d_inner dff feed_forward_size n_inner",
    32: "q_lora_rank o_lora_rank hidden_size_per_layer_input linear_head_dim router_hidden_size",
    24: "qk_head_dim",
    16: """
        head_dim d_head attention_head_size swa_head_dim kv_lora_rank v_head_dim qk_nope_head_dim index_head_dim
        linear_key_head_dim linear_value_head_dim mamba_head_dim
    """,
    8: """
        qk_rope_head_dim rotary_dim sliding_window sliding_window_size attention_window_size window_size local_attention
        attention_chunk_size index_topk laurel_rank mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size
        block_size patch_size
    """,
    4: """
        num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads encoder_attention_heads
        num_decoder_attention_heads num_encoder_attention_heads swa_num_attention_heads index_n_heads
        linear_num_value_heads linear_num_heads mamba_num_heads num_experts num_local_experts n_routed_experts
        moe_num_experts
    """,
    2: """
        num_key_value_heads num_kv_heads swa_num_key_value_heads linear_num_key_heads num_experts_per_tok
        num_experts_per_token moe_topk moe_k top_k_experts max_window_layers depth eos_token_id
    """,
    1: """
        first_k_dense_replace num_dense_layers topk_group n_group n_shared_experts num_shared_experts bos_token_id
        decoder_start_token_id
    """,
    0: "pad_token_id",
}

SIZES: dict[str, Any] = {name: value for value, names in _NAMES_BY_VALUE.items() for name in names.split()} | {
    "is_decoder": True,
    "use_sliding_window": True,
    "forced_eos_token_id": None,
}

LATENT_ATTENTION_SIZES: dict[str, int] = {"head_dim": 8, "num_key_value_heads": 4}

LAYER_PATTERNS: tuple[str, ...] = ("layer_types", "mlp_layer_types", "layers_block_type")

NUM_LAYERS: tuple[str, ...] = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("decoder_layers", "num_decoder_layers", "encoder_layers", "num_encoder_layers"),
)
