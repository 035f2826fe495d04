"""What the generic sizes in `sizes.py` cannot know: settings by model type, and the types that are not built."""

from __future__ import annotations

from typing import Any

_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
_SLIDING_AND_FULL: list[str] = ["sliding_attention", "full_attention"]
_DENSE_THEN_SPARSE: list[str] = ["dense", "sparse", "sparse", "sparse"]
_LINEAR_AND_FULL: list[str] = ["linear_attention", "full_attention"]

_DOTS3_NOTE: dict[str, Any] = {
    "num_key_value_heads": 4,
    "head_dim": 24,
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 16,
    "swa_kv_lora_rank": 16,
    "swa_head_dim": 16,
    "swa_qk_nope_head_dim": 8,
    "swa_v_head_dim": 16,
}
_GEMMA4: dict[str, Any] = {
    "num_hidden_layers": 6,
    "layer_types": _SLIDING_AND_FULL * 3,
    "global_head_dim": 32,
}
_GEMMA4_EXPERTS: dict[str, Any] = _GEMMA4 | {
    "enable_moe_block": True,
    "attention_k_eq_v": True,
    "num_global_key_value_heads": 1,
    "hidden_size_per_layer_input": 0,
}
_QWEN4_EXP: dict[str, Any] = {
    "hc_lowrank": 8,
    "ple_layer_ids": [1, 3],
    "ple_embed_dim": 64,
    "heads_per_ngram": 2,
    "ngram_vocab_size_base": 64,
    "make_ngram_vocab_size_divisible_by": 8,
    "split_ngram_parts": 2,
    "indexer_n_heads": 4,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
_LLAMA4: dict[str, Any] = {"interleave_moe_layer_step": 2, "floor_scale": 4}
_TINY_IMAGES: dict[str, Any] = {"image_size": 32}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3], "mamba_n_heads": 4},
    "blt": {
        "local_attention_window_len": 8,
        "num_hidden_layers": 5,
        "encoder_config": {"num_hidden_layers": 1, "hidden_size_global": 64},
        "decoder_config": {"hidden_size_global": 64},
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
    },
    "cohere": {"logit_scale": 1.0},
    "cohere2": {"logit_scale": 1.0},
    "cohere2_moe": {"logit_scale": 1.0, "mlp_layer_types": _DENSE_THEN_SPARSE},
    "cohere_compass_text": {
        "logit_scale": 1.0,
        "layer_types": _SLIDING_AND_FULL * 2,
        "rope_parameters": {
            "sliding_attention": _ROPE | {"mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "cpmant": {
        "dim_head": 16,
        "dim_ff": 96,
        "prompt_length": 4,
        "prompt_types": 4,
        "segment_types": 4,
        "position_bias_num_buckets": 32,
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"moe_top_k": 2, "ffn_hidden_size": 64},
    },
    "deepseek_v4": {
        "layer_types": [
            "sliding_attention",
            "heavily_compressed_attention",
            "compressed_sparse_attention",
            "heavily_compressed_attention",
        ],
        "mlp_layer_types": ["hash_moe", "moe", "moe", "moe"],
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "index_topk": 4,
    },
    "doge": {"is_moe": True, "keep_window_size": 8},
    "dory": {"n_input_layers": 1, "n_recurrent_layers": 2, "n_output_layers": 1},
    "dots3_note": {
        "text_config": _DOTS3_NOTE,
        "vision_config": {
            "adapter_in_dim": 64,
            "adapter_out_dim": 64,
            "num_hidden_layers": 4,
            "mlp_layer_types": ["dense", "sparse"] * 2,
            "per_layer_config": {},
        },
        "audio_config": {"adapter_input_size": 64, "adapter_out_dim": 64, "downsample_hidden_size": 16},
    },
    "dots3_note_text": _DOTS3_NOTE,
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4},
    "gemma3n_text": {
        "num_hidden_layers": 6,
        "layer_types": _SLIDING_AND_FULL * 3,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.9, 0.9, 0.0, 0.0, 0.0, 0.0],
    },
    "gemma4": {"text_config": _GEMMA4_EXPERTS},
    "gemma4_text": _GEMMA4 | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
    "gemma4_unified": {"text_config": _GEMMA4},
    "gemma4_unified_text": _GEMMA4,
    "got_ocr2": {"vision_config": _TINY_IMAGES | {"mlp_dim": 64, "output_channels": 16, "global_attn_indexes": [1]}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"mamba_n_heads": 4, "layer_types": _LINEAR_AND_FULL * 2},
    "inkling_text": {"mlp_layer_types": ["dense"] + ["sparse"] * 5, "logits_mup_width_multiplier": 1.0},
    "inkling2_text": {"n_layers_per_attn_res_block": 2},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 0},
    "laguna": {"layer_types": _SLIDING_AND_FULL * 2, "num_attention_heads_per_layer": [4, 8, 4, 8]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "llama4": {
        "text_config": _LLAMA4,
        "vision_config": _TINY_IMAGES
        | {"vision_output_dim": 64, "projector_input_dim": 64, "projector_output_dim": 64, "intermediate_size": 256},
    },
    "llama4_text": _LLAMA4,
    "longcat_flash": {"num_layers": 3, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
    "mellum": {"layer_types": _SLIDING_AND_FULL * 2, "mlp_layer_types": _DENSE_THEN_SPARSE},
    "minimax_m3_vl_text": {
        "layer_types": ["full_attention", "minimax_m3_sparse"] * 2,
        "mlp_layer_types": _DENSE_THEN_SPARSE,
        "index_block_size": 4,
        "index_topk_blocks": 2,
    },
    "mllama": {
        "text_config": {"num_hidden_layers": 6, "cross_attention_layers": [1, 4]},
        "vision_config": _TINY_IMAGES | {"vision_output_dim": 64, "num_global_layers": 2},
    },
    "nemotron_h": {"n_groups": 2},
    "phi4_multimodal": {
        "vision_config": _TINY_IMAGES | {"crop_size": 32, "patch_size": 8},
        "audio_config": {
            "num_blocks": 2,
            "ext_pw_out_channel": 64,
            "depthwise_separable_out_channel": 64,
            "nemo_conv_channels": 16,
        },
    },
    "reformer": {
        "attn_layers": ["local", "lsh", "local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [16, 48],
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "roc_bert": {
        "pronunciation_embed_dim": 16,
        "pronunciation_vocab_size": 32,
        "shape_embed_dim": 16,
        "shape_vocab_size": 32,
    },
    "qwen2_moe": {"mlp_only_layers": [0]},
    "qwen3_moe": {"mlp_only_layers": [0]},
    "qwen3_next": {"mlp_only_layers": [0]},
    "qwen4_exp": {"text_config": _QWEN4_EXP},
    "qwen4_exp_text": _QWEN4_EXP,
    "xlm": {"pad_token_id": 2, "eos_token_id": 1, "bos_token_id": 0, "mask_token_id": 5},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "youtu": {"pad_token_id": None},
    "zamba": {
        "attention_hidden_size": 128,
        "layers_block_type": ["linear_attention", "linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 5,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"] * 3,
        "num_hidden_layers": 6,
        "num_key_value_heads": 4,
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
        "adapter_rank": 8,
        "use_mem_rope": True,
    },
    "zaya": {"num_experts_per_tok": 1, "layer_types": ["hybrid", "hybrid_sliding"] * 2},
}

BUILT_AS: dict[str, str] = {
    "dots3_note": "Dots3NoteForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}

NOT_BUILT: dict[str, str] = {
    "emu3": "AutoModelForCausalLM finds none of its weights in the composite checkpoint and leaves them random",
    "gemma3n": "its vision tower needs timm and Pillow; gemma3n_text is built",
    "gemma4_assistant": "drafts for a target model, whose hidden states and keys it cannot do without",
    "gemma4_unified_assistant": "drafts for a target model, whose hidden states and keys it cannot do without",
    "musicgen": "AutoModelForCausalLM hands the decoder the composite config: no attribute 'dropout'",
    "musicgen_melody": "AutoModelForCausalLM hands the decoder the composite config: no attribute 'dropout'",
}
