"""The configuration of Gemma 4, whose layers differ in heads, widths and positions, and its tensors of no usual name."""

import math
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_decoders import Values, common, rms_epsilon
from layermesh.shared.checkpoints.gguf_keys import FamilyKeys
from layermesh.shared.checkpoints.gguf_rope import FREQUENCIES, read_factors, tensor_refusal

NAMES: Final = {
    "layer_output_scale.weight": "layer_scalar",
    "ffn_gate_inp.scale": "router.scale",
    "ffn_down_exps.scale": "router.per_expert_scale",
    "ffn_gate_up_exps.weight": "experts.gate_up_proj",
    "ffn_down_exps.weight": "experts.down_proj",
}
UNUSED_WHERE_SHARED: Final = ("attn_k.", "attn_v.", "attn_k_norm.")  # of layers that take an earlier one's
_STILL: Final = 1e29  # a factor from which on a frequency does not turn; llama.cpp writes 1e30
_ENDS_OF_TURNS: Final = (106, 50)  # <turn|> and <|tool_response> of the vocabulary with
_VOCABULARY: Final = 262_144  # tokens, which no other key of the file names


def gemma4(keys: FamilyKeys) -> tuple[str, Values]:
    """Gemma 4: windows in most layers, larger heads in the others, whose last layers share keys and values."""
    values = common(keys) | rms_epsilon(keys)
    num_layers, heads = values["num_hidden_layers"], keys.require("attention.head_count")
    windowed = keys.layers("attention.sliding_window_pattern", num_layers)
    if windowed is None:
        raise keys.refusal("attention.sliding_window_pattern", "does not name the layers that see a window")
    kinds = ["sliding_attention" if each else "full_attention" for each in windowed]
    head_dim, wide = keys.require("attention.key_length_swa"), keys.require("attention.key_length")
    keys.expect("attention.value_length_swa", head_dim)
    keys.expect("attention.value_length", wide)
    kv_heads, wide_kv_heads = _kv_heads(keys, kinds, heads)
    shared = keys.number("attention.shared_kv_layers", 0)
    values |= {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": keys.require("context_length"),
        "layer_types": kinds,
        "sliding_window": keys.require("attention.sliding_window"),
        "num_kv_shared_layers": shared,
        "final_logit_softcapping": keys.number("final_logit_softcapping", 0.0) or None,
        "rope_parameters": _rope(keys, head_dim, wide),
        "attention_k_eq_v": _keys_are_values(keys, kinds),
        "per_layer_config": {},
    }
    others = {"head_dim": wide, "num_key_value_heads": wide_kv_heads}
    if others := {name: value for name, value in others.items() if value != values[name]}:
        values["per_layer_config"] = {str(layer): others for layer, kind in enumerate(kinds) if kind == "full_attention"}
    values |= _widths(keys, num_layers, shared) | _inputs_of_layers(keys) | _experts(keys)
    if values["vocab_size"] >= _VOCABULARY and values["eos_token_id"] is not None:
        values["eos_token_id"] = list(dict.fromkeys((values["eos_token_id"], *_ENDS_OF_TURNS)))
    return "gemma4_text", values


def _kv_heads(keys: FamilyKeys, kinds: list[str], heads: int) -> tuple[int, int]:
    """Return the number of keys and values in layers with a window, and in the others."""
    stated = keys.layers("attention.head_count_kv", len(kinds))
    if stated is None:
        stated = [keys.number("attention.head_count_kv", heads)] * len(kinds)
    found: dict[str, set[int]] = {"sliding_attention": set(), "full_attention": set()}
    for kind, number in zip(kinds, stated, strict=True):
        found[kind].add(number)
    if any(len(numbers) != 1 for numbers in found.values()):
        raise keys.refusal("attention.head_count_kv", "differs among layers of one kind")
    return found["sliding_attention"].pop(), found["full_attention"].pop()


def _rope(keys: FamilyKeys, head_dim: int, wide: int) -> dict[str, Any]:
    keys.expect("rope.dimension_count_swa", head_dim)
    keys.expect("rope.dimension_count", wide)
    if FREQUENCIES not in keys.header.tensors:
        raise tensor_refusal(keys, FREQUENCIES, "is absent")
    factors = read_factors(keys, FREQUENCIES, wide)
    turning = sum(factor < _STILL for factor in factors)
    if not all(math.isclose(factor, 1.0) for factor in factors[:turning]) or not all(
        factor >= _STILL for factor in factors[turning:]
    ):
        raise tensor_refusal(keys, FREQUENCIES, "has factors other than 1 and 1e30")
    full = {"rope_type": "proportional", "partial_rotary_factor": turning / len(factors)}
    return {
        "full_attention": full | {"rope_theta": keys.number("rope.freq_base", 10000.0)},
        "sliding_attention": {"rope_type": "default", "rope_theta": keys.number("rope.freq_base_swa", 10000.0)},
    }


def _keys_are_values(keys: FamilyKeys, kinds: list[str]) -> bool:
    first = kinds.index("full_attention") if "full_attention" in kinds else 0
    return f"blk.{first}.attn_v.weight" not in keys.header.tensors


def _widths(keys: FamilyKeys, num_layers: int, shared: int) -> Values:
    """Return the width of the feed-forward networks, which may be twice as much where keys and values are shared."""
    stated = keys.layers("feed_forward_length", num_layers) or [keys.require("feed_forward_length")] * num_layers
    width = stated[0]
    doubled = [width] * (num_layers - shared) + [2 * width] * shared
    if stated not in ([width] * num_layers, doubled):
        raise keys.refusal("feed_forward_length", "differs otherwise than by twice as much in layers that share")
    return {"intermediate_size": width, "use_double_wide_mlp": shared > 0 and stated == doubled}


def _inputs_of_layers(keys: FamilyKeys) -> Values:
    size, table = keys.number("embedding_length_per_layer_input", 0), keys.header.tensors.get("per_layer_token_embd.weight")
    rows = {} if table is None else {"vocab_size_per_layer_input": table.shape[0]}
    return {"hidden_size_per_layer_input": size} | rows


def _experts(keys: FamilyKeys) -> Values:
    number = keys.number("expert_count", 0)
    if not number:
        return {"enable_moe_block": False}
    keys.expect("expert_weights_norm", True)
    keys.expect("expert_gating_func", 1)
    return {
        "enable_moe_block": True,
        "num_experts": number,
        "top_k_experts": keys.number("expert_used_count"),
        "moe_intermediate_size": keys.number("expert_feed_forward_length"),
    }
