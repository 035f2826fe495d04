"""gpt-oss in GGUF: what its keys mean to transformers, and which of its tensors is which parameter.

transformers' own reader fails at the keys for position scaling and does not know how experts are fused.
"""

from typing import Final

from layermesh.shared.checkpoints.gguf_decoders import Values, decoder, expert_width, experts, rms_epsilon, window_kinds
from layermesh.shared.checkpoints.gguf_keys import FamilyKeys

ARCHITECTURE: Final = "gpt-oss"
OUTER_NAMES: Final = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
LAYER_NAMES: Final = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    "attn_sinks.weight": "self_attn.sinks",
    "ffn_gate_inp.weight": "mlp.router.weight",
    "ffn_gate_inp.bias": "mlp.router.bias",
    "ffn_down_exps.bias": "mlp.experts.down_proj_bias",
    **{
        f"attn_{ours}.{leaf}": f"self_attn.{theirs}_proj.{leaf}"
        for ours, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("output", "o"))
        for leaf in ("weight", "bias")
    },
}
# The matrices of experts that are columns of a parameter: which, from which column on, and to every how manieth.
EXPERT_COLUMNS: Final = {
    "ffn_gate_exps.weight": ("mlp.experts.gate_up_proj", 0, 2),
    "ffn_up_exps.weight": ("mlp.experts.gate_up_proj", 1, 2),
    "ffn_down_exps.weight": ("mlp.experts.down_proj", 0, 1),
}
EXPERT_BIASES: Final = ("ffn_gate_exps.bias", "ffn_up_exps.bias")  # by turns in one parameter
GATE_UP_BIAS: Final = "mlp.experts.gate_up_proj_bias"

SOFTMAX_OF_CHOSEN: Final = 3  # llama.cpp's number for the way in which gpt-oss weighs experts


def gpt_oss(keys: FamilyKeys) -> tuple[str, Values]:
    """gpt-oss: every other layer sees a window, and YaRN's bounds are not rounded, which no key tells."""
    keys.require("attention.key_length")
    values = decoder(keys, windowed=True) | rms_epsilon(keys) | experts(keys, "num_local_experts", gating=SOFTMAX_OF_CHOSEN)
    keys.require("expert_used_count")
    values |= expert_width(keys, "intermediate_size") | {"sliding_window": keys.require("attention.sliding_window")}
    values["layer_types"] = window_kinds(keys, values["num_hidden_layers"], 2)
    if keys.number("feed_forward_length", values["intermediate_size"]) != values["intermediate_size"]:
        raise keys.broken("expert_feed_forward_length", "the width of its experts that feed_forward_length states")
    rope = values["rope_parameters"]
    keys.expect("rope.freq_base_swa", rope["rope_theta"])
    if rope["rope_type"] == "yarn":
        rope["truncate"] = False
    return "gpt_oss", values
