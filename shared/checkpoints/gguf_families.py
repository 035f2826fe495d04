"""The transformers configuration of each GGUF architecture: what its keys say, and what llama.cpp computes without saying.

A family is a function that reads every key it applies and returns transformers' model type and the values of its
configuration. `FAMILIES` names them all; a key that a family does not read is refused (`FamilyKeys.check_all_read`).
"""

from collections.abc import Callable
from typing import Final

from layermesh.shared.checkpoints.gguf_decoders import (
    SIGMOID,
    Values,
    decoder,
    epsilon,
    expert_width,
    experts,
    rms_epsilon,
    width,
    window_kinds,
)
from layermesh.shared.checkpoints.gguf_gemma4 import gemma4
from layermesh.shared.checkpoints.gguf_gpt_oss import ARCHITECTURE as GPT_OSS
from layermesh.shared.checkpoints.gguf_gpt_oss import gpt_oss
from layermesh.shared.checkpoints.gguf_hybrids import lfm2, mamba, qwen35, qwen35moe
from layermesh.shared.checkpoints.gguf_keys import FamilyKeys

Family = Callable[[FamilyKeys], tuple[str, Values]]

_LAYERS_OF_27B: Final = {"gemma2": 46, "gemma3": 62}  # whose queries llama.cpp scales otherwise


def llama(keys: FamilyKeys) -> tuple[str, Values]:
    """Llama, Mistral and all of their shape; with experts, Mixtral."""
    values = decoder(keys) | width(keys) | rms_epsilon(keys)
    if keys.number("expert_count", 0):
        keys.expect("expert_weights_norm", True)
        keys.expect("expert_feed_forward_length", values["intermediate_size"])
        return "mixtral", values | experts(keys, "num_local_experts") | {"sliding_window": None}
    biases = {"attention_bias": keys.has_tensor("attn_q.bias"), "mlp_bias": keys.has_tensor("ffn_up.bias")}
    return "llama", values | biases


def qwen2(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 2 and 2.5."""
    return "qwen2", decoder(keys) | width(keys) | rms_epsilon(keys)


def qwen3(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 3."""
    return "qwen3", decoder(keys) | width(keys) | rms_epsilon(keys)


def qwen2moe(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 1.5 and 2 with experts; the weights of the chosen ones do not add up to one."""
    values = decoder(keys) | rms_epsilon(keys) | experts(keys, "num_experts") | expert_width(keys)
    tensor = keys.header.tensors.get("blk.0.ffn_up_shexp.weight")
    shared = keys.number("expert_shared_feed_forward_length") or (tensor.shape[0] if tensor is not None else 0)
    values |= {"shared_expert_intermediate_size": shared, "intermediate_size": keys.number("feed_forward_length", shared)}
    return "qwen2_moe", values | {"norm_topk_prob": bool(keys.get("expert_weights_norm", False))}


def qwen3moe(keys: FamilyKeys) -> tuple[str, Values]:
    """Qwen 3 with experts; the weights of the chosen ones add up to one."""
    values = decoder(keys) | rms_epsilon(keys) | experts(keys, "num_experts") | expert_width(keys)
    values["intermediate_size"] = keys.number("feed_forward_length", values["moe_intermediate_size"])
    return "qwen3_moe", values | {"norm_topk_prob": bool(keys.get("expert_weights_norm", True))}


def minimax_m2(keys: FamilyKeys) -> tuple[str, Values]:
    """MiniMax M2: experts weighted by sigmoids, a part of each head turned."""
    values = decoder(keys, partial_rope=True) | rms_epsilon(keys) | expert_width(keys, "intermediate_size")
    keys.expect("feed_forward_length", values["intermediate_size"])
    keys.expect("expert_weights_norm", True)
    return "minimax_m2", values | experts(keys, "num_local_experts", gating=SIGMOID)


def phi3(keys: FamilyKeys) -> tuple[str, Values]:
    """Phi 3 and 4, whose long versions have two lists of factors for their frequencies."""
    window = keys.number("attention.sliding_window", 0)  # 0 is Phi 4's way to say none
    values = decoder(keys, own_head_dim=False, partial_rope=True, windowed=True) | width(keys) | rms_epsilon(keys)
    kind, original = values["rope_parameters"]["rope_type"], values["rope_parameters"].get("original_max_position_embeddings")
    if kind not in ("default", "longrope"):
        raise keys.refusal("rope.scaling.type", "makes positions that transformers' Phi 3 does not have")
    values["original_max_position_embeddings"] = original or values["max_position_embeddings"]
    return "phi3", values | {"sliding_window": window or None}


def gemma(keys: FamilyKeys) -> tuple[str, Values]:
    """Gemma."""
    return "gemma", decoder(keys) | width(keys) | rms_epsilon(keys)


def _query_scale(keys: FamilyKeys, values: Values) -> Values:
    """Return what queries are divided by the root of: what llama.cpp takes, which no key says."""
    is_27b = values["num_hidden_layers"] == _LAYERS_OF_27B[keys.header.architecture]
    share = values["hidden_size"] // values["num_attention_heads"]
    return {"query_pre_attn_scalar": share if is_27b else values["head_dim"]}


def gemma2(keys: FamilyKeys) -> tuple[str, Values]:
    """Gemma 2: every other layer sees a window, and two functions cap attention and logits."""
    values = decoder(keys, windowed=True) | width(keys) | rms_epsilon(keys)
    values |= _query_scale(keys, values) | {
        "sliding_window": keys.number("attention.sliding_window", 4096),
        "layer_types": window_kinds(keys, values["num_hidden_layers"], 2),
        "attn_logit_softcapping": keys.number("attn_logit_softcapping", 50.0) or None,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 30.0) or None,
    }
    keys.expect("rope.freq_base_swa", values["rope_parameters"]["rope_theta"])
    return "gemma2", values


def gemma3(keys: FamilyKeys) -> tuple[str, Values]:
    """Gemma 3: five layers of six see a window and turn by a base of their own, which is never scaled."""
    values = decoder(keys, windowed=True) | width(keys) | rms_epsilon(keys)
    window, local = keys.number("attention.sliding_window", 0), keys.number("rope.freq_base_swa", 10000.0)
    num_layers = values["num_hidden_layers"]
    kinds = window_kinds(keys, num_layers, 6) if window else ["full_attention"] * num_layers
    values |= _query_scale(keys, values) | {
        "sliding_window": window or values["max_position_embeddings"],
        "layer_types": kinds,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": {
            "full_attention": values["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        },
    }
    return "gemma3_text", values


def starcoder2(keys: FamilyKeys) -> tuple[str, Values]:
    """StarCoder 2."""
    values = decoder(keys, own_head_dim=False) | width(keys) | epsilon(keys, "norm_epsilon")
    return "starcoder2", values | {"use_bias": keys.has_tensor("attn_q.bias"), "sliding_window": None}


def stablelm(keys: FamilyKeys) -> tuple[str, Values]:
    """StableLM, which turns a part of each head; without a second norm the two halves of a layer are parallel."""
    values = decoder(keys, own_head_dim=False, partial_rope=True) | width(keys) | epsilon(keys, "layer_norm_eps")
    parallel = not keys.has_tensor("ffn_norm.weight")
    keys.expect("use_parallel_residual", parallel)
    return "stablelm", values | {"use_qkv_bias": keys.has_tensor("attn_q.bias"), "use_parallel_residual": parallel}


def nemotron(keys: FamilyKeys) -> tuple[str, Values]:
    """Nemotron and Minitron, which turn a part of each head."""
    values = decoder(keys, partial_rope=True) | width(keys) | epsilon(keys, "norm_eps")
    return "nemotron", values | {
        "attention_bias": keys.has_tensor("attn_q.bias"),
        "mlp_bias": keys.has_tensor("ffn_up.bias"),
    }


def falcon(keys: FamilyKeys) -> tuple[str, Values]:
    """Falcon with one key and value for all heads (7B); the order of the larger ones' is another."""
    keys.expect("attention.head_count_kv", 1, reason="makes an order of attn_qkv that layermesh does not read")
    keys.expect("tensor_data_layout", "jploski")
    values = decoder(keys, own_head_dim=False) | width(keys, "ffn_hidden_size") | epsilon(keys, "layer_norm_epsilon")
    values["num_kv_heads"] = values.pop("num_key_value_heads")
    return "falcon", values | {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}


def bloom(keys: FamilyKeys) -> tuple[str, Values]:
    """Bloom, which has biases by distance in place of turned positions."""
    values = decoder(keys, own_head_dim=False, rope=False) | epsilon(keys, "layer_norm_epsilon")
    keys.expect("attention.head_count_kv", values["num_attention_heads"])
    keys.expect("attention.max_alibi_bias", 8.0)
    keys.expect("feed_forward_length", 4 * values["hidden_size"])
    return "bloom", _without(values, "num_key_value_heads", "max_position_embeddings")


def gpt2(keys: FamilyKeys) -> tuple[str, Values]:
    """GPT-2, which has a learned vector for each position."""
    values = decoder(keys, own_head_dim=False, rope=False) | width(keys, "n_inner") | epsilon(keys, "layer_norm_epsilon")
    keys.expect("attention.head_count_kv", values["num_attention_heads"])
    return "gpt2", _without(values, "num_key_value_heads")


def _without(values: Values, *names: str) -> Values:
    return {name: value for name, value in values.items() if name not in names}


FAMILIES: Final[dict[str, Family]] = {
    GPT_OSS: gpt_oss,
    "bloom": bloom,
    "falcon": falcon,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3": gemma3,
    "gemma4": gemma4,
    "gpt2": gpt2,
    "lfm2": lfm2,
    "llama": llama,
    "mamba": mamba,
    "minimax-m2": minimax_m2,
    "nemotron": nemotron,
    "phi3": phi3,
    "qwen2": qwen2,
    "qwen2moe": qwen2moe,
    "qwen3": qwen3,
    "qwen35": qwen35,
    "qwen35moe": qwen35moe,
    "qwen3moe": qwen3moe,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
}
