"""gpt-oss in GGUF: what its keys mean to transformers, and which of its tensors is which parameter.

transformers' own reader fails at the keys for position scaling and does not know how experts are fused.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from layermesh.shared.checkpoints.gguf_header import GGUFHeader
from layermesh.shared.errors import CheckpointError, UnsupportedModelError

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

_BETA_FAST, _BETA_SLOW = 32.0, 1.0  # llama.cpp's, and gpt-oss's own
_NEEDED: Final = (
    "context_length", "embedding_length", "block_count", "attention.head_count", "attention.layer_norm_rms_epsilon",
    "attention.key_length", "attention.sliding_window", "expert_count", "expert_used_count", "rope.freq_base",
)  # fmt: skip
_APPLIED: Final = frozenset({
    *_NEEDED, "feed_forward_length", "expert_feed_forward_length", "attention.head_count_kv",
    "attention.sliding_window_pattern", "vocab_size", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
})  # fmt: skip
_HARMLESS: Final = frozenset({"rope.scaling.finetuned"})
_SOFTMAX_OF_CHOSEN: Final = 3  # llama.cpp's number for the way in which gpt-oss weighs experts


def gpt_oss_config(header: GGUFHeader) -> Any:
    """Return transformers' configuration for `header`, a gpt-oss model.

    Raises UnsupportedModelError for a key that says something which gpt-oss has no place for, CheckpointError for one that is
    missing or makes no sense.
    """
    from transformers import GptOssConfig

    stated = _stated(header)
    _check_keys(header, stated)
    head_dim = stated["attention.key_length"]
    token_ids = {
        f"{ours}_token_id": header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"))
    }
    return GptOssConfig(
        vocab_size=_vocab_size(header),
        hidden_size=stated["embedding_length"],
        intermediate_size=_feed_forward_length(header, stated),
        num_hidden_layers=stated["block_count"],
        num_attention_heads=stated["attention.head_count"],
        num_key_value_heads=stated.get("attention.head_count_kv", stated["attention.head_count"]),
        head_dim=head_dim,
        max_position_embeddings=stated["context_length"],
        rms_norm_eps=stated["attention.layer_norm_rms_epsilon"],
        sliding_window=stated["attention.sliding_window"],
        layer_types=_layer_types(header, stated),
        num_local_experts=stated["expert_count"],
        num_experts_per_tok=stated["expert_used_count"],
        rope_parameters=_rope_parameters(header, stated),
        tie_word_embeddings="output.weight" not in header.tensors,
        **token_ids,
    )


def _stated(header: GGUFHeader) -> dict[str, Any]:
    """Return the keys of the family without its name, with their values."""
    prefix = f"{ARCHITECTURE}."
    return {key.removeprefix(prefix): value for key, value in header.metadata.items() if key.startswith(prefix)}


def _check_keys(header: GGUFHeader, stated: Mapping[str, Any]) -> None:
    """Refuse a file that lacks a key, or that has one which would change the answer and is not applied."""
    if missing := [key for key in _NEEDED if stated.get(key) is None]:
        raise CheckpointError(f"{header.path} has no {ARCHITECTURE}.{missing[0]}. Fetch the file again.")
    allowed = _neutral_values(stated)
    for key, value in stated.items():
        if key in _APPLIED or key in _HARMLESS or (key in allowed and allowed[key](value)):
            continue
        raise UnsupportedModelError(
            f"{header.path} sets {ARCHITECTURE}.{ascii(key)[1:-1][:60]} to {ascii(value)[:40]}, which layermesh does not apply "
            f"to {ARCHITECTURE}. Look for another conversion of this model, or for its safetensors."
        )


def _neutral_values(stated: Mapping[str, Any]) -> dict[str, Callable[[Any], bool]]:
    """Return the keys that may say what holds anyway, each with the test whether they do."""
    head_dim, base = stated["attention.key_length"], stated["rope.freq_base"]
    factor = stated.get("rope.scaling.factor") or 1.0
    return {
        "attention.value_length": lambda value: value == head_dim,
        "attention.causal": lambda value: value is True,
        "attention.scale": lambda value: _close(value, head_dim**-0.5),
        "rope.dimension_count": lambda value: value == head_dim,
        "rope.freq_base_swa": lambda value: _close(value, base),
        "rope.scaling.attn_factor": lambda value: _close(value, 1.0),
        "rope.scaling.yarn_attn_factor": lambda value: _close(value, 0.1 * math.log(factor) + 1.0),
        "rope.scaling.yarn_ext_factor": lambda value: _close(value, 1.0) or value < 0,  # below 0 is not set
        "rope.scaling.yarn_log_multiplier": lambda value: value == 0,
        "expert_weights_scale": lambda value: value in (0, 1),
        "expert_gating_func": lambda value: value == _SOFTMAX_OF_CHOSEN,
        "expert_shared_count": lambda value: value == 0,
        "expert_group_count": lambda value: value in (0, 1),
        "expert_group_used_count": lambda value: value in (0, 1),
    }


def _close(value: Any, expected: float) -> bool:
    return isinstance(value, int | float) and math.isclose(value, expected, rel_tol=1e-4)


def _vocab_size(header: GGUFHeader) -> int:
    table = header.tensors.get("token_embd.weight")
    if table is None:
        raise CheckpointError(f"{header.path} has no tensor token_embd.weight. Fetch the file again.")
    return table.shape[0]


def _feed_forward_length(header: GGUFHeader, stated: Mapping[str, Any]) -> int:
    """Return the width of an expert, which files state under one key or two."""
    lengths = {stated[key] for key in ("expert_feed_forward_length", "feed_forward_length") if key in stated}
    if len(lengths) != 1 or not isinstance(length := lengths.pop(), int):
        raise CheckpointError(
            f"{header.path} gives no one width of its experts ({ARCHITECTURE}.expert_feed_forward_length). Fetch it again."
        )
    return length


def _layer_types(header: GGUFHeader, stated: Mapping[str, Any]) -> list[str]:
    """Return which layers see a window: every second one, or as a period or a list of them says, as llama.cpp reads it."""
    num_layers, pattern = stated["block_count"], stated.get("attention.sliding_window_pattern", 2)
    if isinstance(pattern, list) and len(pattern) == num_layers:
        slides = [bool(value) for value in pattern]
    elif isinstance(pattern, int) and not isinstance(pattern, bool) and pattern >= 0:
        slides = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(num_layers)]
    else:
        raise CheckpointError(
            f"{header.path}: its {ARCHITECTURE}.attention.sliding_window_pattern makes no sense. Fetch it again."
        )
    return ["sliding_attention" if slide else "full_attention" for slide in slides]


def _rope_parameters(header: GGUFHeader, stated: Mapping[str, Any]) -> dict[str, Any]:
    """Return how positions are scaled. gpt-oss does not round YaRN's bounds, and GGUF has no key that would tell."""
    kind, base = stated.get("rope.scaling.type", "none"), stated["rope.freq_base"]
    scaling = {key for key in stated if key.startswith("rope.scaling.")} - _HARMLESS - {"rope.scaling.type"}
    if kind == "none":
        if scaling:
            raise UnsupportedModelError(
                f"{header.path} sets {ARCHITECTURE}.{min(scaling)} and no kind of scaling. Look for another conversion."
            )
        return {"rope_type": "default", "rope_theta": base}
    if kind != "yarn":
        raise UnsupportedModelError(
            f"{header.path} sets {ARCHITECTURE}.rope.scaling.type to {ascii(kind)[:40]}, and {ARCHITECTURE} scales positions "
            "by yarn. Look for another conversion of this model."
        )
    if stated.get("rope.scaling.factor") is None:
        raise CheckpointError(f"{header.path} has no {ARCHITECTURE}.rope.scaling.factor. Fetch the file again.")
    return {
        "rope_type": "yarn",
        "rope_theta": base,
        "factor": stated["rope.scaling.factor"],
        "original_max_position_embeddings": stated.get("rope.scaling.original_context_length", stated["context_length"]),
        "beta_fast": stated.get("rope.scaling.yarn_beta_fast", _BETA_FAST),
        "beta_slow": stated.get("rope.scaling.yarn_beta_slow", _BETA_SLOW),
        "truncate": False,
    }
