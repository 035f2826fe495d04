"""The configurations of GGUF architectures whose layers, or some of them, keep a state in place of keys and values."""

from layermesh.shared.checkpoints.gguf_decoders import (
    Values,
    common,
    decoder,
    expert_width,
    experts,
    rms_epsilon,
    width,
)
from layermesh.shared.checkpoints.gguf_keys import FamilyKeys
from layermesh.shared.checkpoints.gguf_rope import read_rope


def mamba(keys: FamilyKeys) -> tuple[str, Values]:
    """Mamba, which keeps a state in place of keys and values."""
    values = common(keys) | rms_epsilon(keys, "layer_norm_epsilon")
    keys.get("context_length")  # an arbitrary number
    for unused in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        keys.expect(unused, 0)
    keys.expect("ssm.dt_b_c_rms", False, reason="makes it a Falcon Mamba, not")
    inner = keys.require("ssm.inner_size")
    if inner % values["hidden_size"]:
        raise keys.refusal("ssm.inner_size", f"is no multiple of {values['hidden_size']}")
    return "mamba", values | {
        "expand": inner // values["hidden_size"],
        "intermediate_size": inner,
        "conv_kernel": keys.require("ssm.conv_kernel"),
        "state_size": keys.require("ssm.state_size"),
        "time_step_rank": keys.require("ssm.time_step_rank"),
        "use_conv_bias": keys.has_tensor("ssm_conv1d.bias"),
    }


def lfm2(keys: FamilyKeys) -> tuple[str, Values]:
    """LFM 2: attention where a layer has keys and values, a short convolution elsewhere."""
    values = common(keys) | width(keys) | rms_epsilon(keys, "norm_eps")
    num_layers = values["num_hidden_layers"]
    kv_heads = keys.layers("attention.head_count_kv", num_layers) or [keys.get("attention.head_count_kv")] * num_layers
    if len(set(kv_heads) - {0}) != 1:
        raise keys.refusal("attention.head_count_kv", "differs among the layers that attend")
    heads, context = keys.require("attention.head_count"), keys.require("context_length")
    head_dim = values["hidden_size"] // heads
    keys.expect("attention.key_length", head_dim)
    keys.expect("attention.value_length", head_dim)
    return "lfm2", values | {
        "max_position_embeddings": context,
        "num_attention_heads": heads,
        "num_key_value_heads": max(kv_heads),
        "layer_types": ["full_attention" if each else "conv" for each in kv_heads],
        "block_auto_adjust_ff_dim": False,  # the width is the adjusted one
        "conv_L_cache": keys.require("shortconv.l_cache"),
        "conv_bias": keys.has_tensor("shortconv.in_proj.bias"),
        "rope_parameters": read_rope(keys, head_dim, context),
    }


def qwen35(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 3.5: a gated state in most layers, full attention in the others."""
    return "qwen3_5_text", _qwen35(keys) | width(keys)


def qwen35moe(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 3.5 with experts; the weights of the chosen ones add up to one."""
    keys.expect("expert_weights_norm", True)
    keys.get("feed_forward_length")  # of no layer
    shared = {"shared_expert_intermediate_size": keys.require("expert_shared_feed_forward_length")}
    return "qwen3_5_moe_text", _qwen35(keys) | experts(keys, "num_experts") | expert_width(keys) | shared


def _qwen35(keys: FamilyKeys) -> Values:
    values = decoder(keys, partial_rope=True) | rms_epsilon(keys)
    num_layers = values["num_hidden_layers"] - keys.number("nextn_predict_layers", 0)  # a draft's layers come last
    interval = keys.number("full_attention_interval", 4)
    recurrent = keys.layers("attention.recurrent_layers", num_layers)
    if recurrent is None:
        recurrent = [bool((layer + 1) % interval) for layer in range(num_layers)]
    value_heads, inner = keys.require("ssm.time_step_rank"), keys.require("ssm.inner_size")
    sections = [section for section in keys.require("rope.dimension_sections") if section]
    values["rope_parameters"] |= {"mrope_section": sections, "mrope_interleaved": True}
    return values | {
        "num_hidden_layers": num_layers,
        "layer_types": ["linear_attention" if each else "full_attention" for each in recurrent],
        "linear_conv_kernel_dim": keys.require("ssm.conv_kernel"),
        "linear_key_head_dim": keys.require("ssm.state_size"),
        "linear_num_key_heads": keys.require("ssm.group_count"),
        "linear_num_value_heads": value_heads,
        "linear_value_head_dim": inner // value_heads,
    }
